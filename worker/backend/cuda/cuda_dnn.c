/* cuda_dnn - see cuda_dnn.h: a handle, and the convolutions planned so far in a list (a network has some
 * dozens of shapes, and looks them up when it is compiled only). */
#include "worker/backend/cuda/cuda_dnn.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "worker/backend/cuda/cuda_dnn_plan.h"
#include "worker/backend/cuda/cuda_util.h"
#include "worker/engine/tuning.h"

/* Bytes: what an allocation has; the engine's arenas align less. */
enum { WORKSPACE_ALIGN = 256 };

struct cuda_dnn {
    cudnnHandle_t handle;
    cudaStream_t stream;
    char device[256]; /* "NVIDIA H100 80GB HBM3" */
    struct cuda_conv *convs;
};

struct cuda_conv {
    struct cuda_dnn *dnn;
    struct cuda_conv *next;
    struct conv_shape shape;
    struct cuda_conv_options options;
    enum dtype grad_dtype;
    struct conv_plan plans[N_CONV_PASSES];
    char text[N_CONV_PASSES * (CONV_TEXT_MAX + 64)];
};

static const char *const pass_names[N_CONV_PASSES] = {"forward", "backward_data", "backward_weights"};

static int dnn_init(struct cuda_dnn *d, struct err *e)
{
    struct cudaDeviceProp prop;
    int device;

    CUDNN_TRY(e, cudnnCreate(&d->handle));
    CUDNN_TRY(e, cudnnSetStream(d->handle, d->stream));
    CUDA_TRY(e, cudaGetDevice(&device));
    CUDA_TRY(e, cudaGetDeviceProperties(&prop, device));
    snprintf(d->device, sizeof(d->device), "%s", prop.name);
    return 0;
}

struct cuda_dnn *cuda_dnn_create(cudaStream_t stream, struct err *e)
{
    struct cuda_dnn *d = xcalloc(1, sizeof(*d));

    d->stream = stream;
    if (dnn_init(d, e) < 0) {
        cuda_dnn_destroy(d);
        return NULL;
    }
    return d;
}

static void conv_destroy(struct cuda_conv *c)
{
    for (int i = 0; i < N_CONV_PASSES; i++)
        conv_plan_destroy(&c->plans[i]);
    free(c);
}

void cuda_dnn_destroy(struct cuda_dnn *d)
{
    if (!d)
        return;
    while (d->convs) {
        struct cuda_conv *c = d->convs;

        d->convs = c->next;
        conv_destroy(c);
    }
    if (d->handle)
        cudnnDestroy(d->handle);
    free(d);
}

/* ------------------------------------------------------------------ planning */

static bool shape_same(const struct conv_shape *a, const struct conv_shape *b)
{
    return a->n == b->n && a->h == b->h && a->w == b->w && a->ci == b->ci && a->ho == b->ho &&
           a->wo == b->wo && a->co == b->co && a->groups == b->groups && a->kernel == b->kernel &&
           a->stride == b->stride && a->pad == b->pad;
}

static bool options_same(const struct cuda_conv_options *a, const struct cuda_conv_options *b)
{
    return a->dtype == b->dtype && a->allow_tf32 == b->allow_tf32 && a->deterministic == b->deterministic &&
           a->f32_grad == b->f32_grad && a->workspace_limit == b->workspace_limit && a->tuning == b->tuning;
}

static struct cuda_conv *conv_find(struct cuda_dnn *d, const struct conv_shape *s,
                                   const struct cuda_conv_options *o)
{
    struct cuda_conv *c = d->convs;

    while (c && !(shape_same(&c->shape, s) && options_same(&c->options, o)))
        c = c->next;
    return c;
}

/* What the pass is called in the table of choices: all that decides which engines there are and what they do.
 */
static char *key_of(const struct cuda_conv *c, enum conv_pass pass, enum dtype w_dtype)
{
    const struct conv_shape *s = &c->shape;
    const struct cuda_conv_options *o = &c->options;

    return xasprintf("cudnn %zu %s (%lld, %lld, %lld, %lld) %lldx%lld/%lld pad %lld to %lld groups %lld %s "
                     "%s%s%s",
                     cudnnGetVersion(), c->dnn->device, (long long)tuning_rows(o->tuning, s->n),
                     (long long)s->h, (long long)s->w, (long long)s->ci, (long long)s->kernel,
                     (long long)s->kernel, (long long)s->stride, (long long)s->pad, (long long)s->co,
                     (long long)s->groups,
                     o->dtype == DTYPE_F32 && o->allow_tf32 ? "tf32" : dtype_name(o->dtype), pass_names[pass],
                     w_dtype != o->dtype ? " to f32" : "", o->deterministic ? "" : " in any order");
}

static int pass_plan(struct cuda_conv *c, enum conv_pass pass, enum dtype w_dtype, bool no_fallback,
                     struct err *e)
{
    char *key = c->options.tuning ? key_of(c, pass, w_dtype) : NULL;
    const struct conv_problem p = {c->shape, c->options, pass, w_dtype, no_fallback, key};
    const int rc = conv_plan_create(c->dnn->handle, c->dnn->stream, &p, &c->plans[pass], e);

    free(key);
    if (rc == 0)
        return 0;
    conv_plan_destroy(&c->plans[pass]);
    return err_wrap(
        e, "convolution of (%lld, %lld, %lld, %lld) to %lld channels, kernel %lld, stride %lld, %s %s",
        (long long)c->shape.n, (long long)c->shape.h, (long long)c->shape.w, (long long)c->shape.ci,
        (long long)c->shape.co, (long long)c->shape.kernel, (long long)c->shape.stride,
        dtype_name(c->options.dtype), pass_names[pass]);
}

static int conv_plan_pass(struct cuda_conv *c, enum conv_pass pass, struct err *e)
{
    if (c->plans[pass].plan)
        return 0;
    if (pass != CONV_BACKWARD_WEIGHTS)
        return pass_plan(c, pass, c->options.dtype, false, e);
    /* A fallback engine that stores fp32 would cost far more than a last rounding, whose sums are fp32
     * anyway.
     */
    c->grad_dtype = DTYPE_F32;
    if (c->options.f32_grad && c->options.dtype != DTYPE_F32 &&
        pass_plan(c, pass, DTYPE_F32, true, NULL) == 0)
        return 0;
    c->grad_dtype = c->options.dtype;
    return pass_plan(c, pass, c->options.dtype, false, e);
}

static void conv_set_text(struct cuda_conv *c)
{
    size_t at = 0;

    c->text[0] = 0;
    for (int i = 0; i < N_CONV_PASSES; i++)
        if (c->plans[i].plan)
            at += (size_t)snprintf(c->text + at, sizeof(c->text) - at, "%s%s %s%s", at ? " " : "",
                                   pass_names[i], c->plans[i].text,
                                   i == CONV_BACKWARD_WEIGHTS && c->grad_dtype != c->options.dtype ? " to f32"
                                                                                                   : "");
}

struct cuda_conv *cuda_conv_get(struct cuda_dnn *d, const struct conv_shape *s,
                                const struct cuda_conv_options *o, unsigned passes, struct err *e)
{
    struct cuda_conv *c = conv_find(d, s, o);

    ASSERT(o->dtype == DTYPE_F32 || o->dtype == DTYPE_BF16);
    ASSERT(s->n >= 1 && s->ho >= 1 && s->wo >= 1);
    if (!c) {
        c = xcalloc(1, sizeof(*c));
        c->dnn = d;
        c->shape = *s;
        c->options = *o;
        c->grad_dtype = o->dtype;
        c->next = d->convs;
        d->convs = c;
    }
    for (int i = 0; i < N_CONV_PASSES; i++)
        if (passes >> i & 1 && conv_plan_pass(c, i, e) < 0)
            return NULL;
    conv_set_text(c);
    return c;
}

size_t cuda_conv_workspace_bytes(const struct cuda_conv *c)
{
    size_t n = 0;

    for (int i = 0; i < N_CONV_PASSES; i++)
        if (c->plans[i].plan && c->plans[i].workspace_bytes > n)
            n = c->plans[i].workspace_bytes;
    return n ? n + WORKSPACE_ALIGN : 0;
}

enum dtype cuda_conv_grad_dtype(const struct cuda_conv *c)
{
    return c->grad_dtype;
}

const char *cuda_conv_text(const struct cuda_conv *c)
{
    return c->text;
}

/* ------------------------------------------------------------------ running */

static void *align_pointer(void *p)
{
    return (void *)(((uintptr_t)p + WORKSPACE_ALIGN - 1) / WORKSPACE_ALIGN * WORKSPACE_ALIGN);
}

/* cuDNN takes pointers to non-const for tensors that it only reads. */
static int conv_run(struct cuda_conv *c, enum conv_pass pass, const void *x, const void *w, const void *y,
                    void *workspace, struct err *e)
{
    void *const ptr[N_CONV_PTRS] = {
        [CONV_X] = (void *)(uintptr_t)x,
        [CONV_W] = (void *)(uintptr_t)w,
        [CONV_Y] = (void *)(uintptr_t)y,
        [CONV_WORKSPACE] = align_pointer(workspace),
    };

    ASSERT(c->plans[pass].plan);
    return conv_plan_run(c->dnn->handle, &c->plans[pass], ptr, e);
}

int cuda_conv_forward(struct cuda_conv *c, const void *x, const void *w, void *y, void *workspace,
                      struct err *e)
{
    return conv_run(c, CONV_FORWARD, x, w, y, workspace, e);
}

int cuda_conv_backward_data(struct cuda_conv *c, const void *dy, const void *w, void *dx, void *workspace,
                            struct err *e)
{
    return conv_run(c, CONV_BACKWARD_DATA, dx, w, dy, workspace, e);
}

int cuda_conv_backward_weights(struct cuda_conv *c, const void *x, const void *dy, void *dw, void *workspace,
                               struct err *e)
{
    return conv_run(c, CONV_BACKWARD_WEIGHTS, x, dw, dy, workspace, e);
}

size_t cuda_dnn_version(void)
{
    return cudnnGetVersion();
}
