/* dn - oneDNN; see dn.h. One engine and one in-order stream a struct dn.
 *
 * A pass of a convolution is a primitive with memory objects for its arguments, a reorder of the weights
 * where oneDNN's layout or type differs from the plain one, and its own scratchpad. Scratch of a call is cut
 * as [weights in oneDNN's layout | weights in plain layout (backward weights) | scratchpad]. Where the two
 * layouts agree, there is no reorder and the caller's buffer is used as it is.
 *
 * The two versions of the C API differ in how a convolution is described and in what a memory descriptor is:
 * the section "versions" hides both.
 */
#include "worker/backend/cpu/dn.h"
#include <dnnl.h>
#include <stdlib.h>
#include "worker/engine/tensor.h"

#define DN_TRY(e, call)                                                                                      \
    do {                                                                                                     \
        dnnl_status_t status_ = (call);                                                                      \
        if (status_ != dnnl_success)                                                                         \
            return err_set((e), "oneDNN: %s: status %d (%s:%d)", #call, (int)status_, __FILE__, __LINE__);   \
    } while (0)

/* ------------------------------------------------------------------ versions */

#if DNNL_VERSION_MAJOR >= 3
typedef const_dnnl_memory_desc_t md_ref;
struct md {
    dnnl_memory_desc_t v;
};
static md_ref md_use(const struct md *m)
{
    return m->v;
}
static dnnl_status_t md_init(struct md *m, int n_dims, const dnnl_dim_t *dims, dnnl_data_type_t type,
                             dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_create_with_tag(&m->v, n_dims, dims, type, tag);
}
static void md_done(struct md *m)
{
    if (m->v)
        dnnl_memory_desc_destroy(m->v);
}
#else
typedef const dnnl_memory_desc_t *md_ref;
struct md {
    dnnl_memory_desc_t v;
};
static md_ref md_use(const struct md *m)
{
    return &m->v;
}
static dnnl_status_t md_init(struct md *m, int n_dims, const dnnl_dim_t *dims, dnnl_data_type_t type,
                             dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_init_by_tag(&m->v, n_dims, dims, type, tag);
}
static void md_done(struct md *m)
{
    (void)m;
}
#endif

/* What a convolution is made of. The weights, of x's type, and their gradient, f32, are in any layout. */
struct conv_desc {
    struct md x, w, dw, y;
    dnnl_dims_t strides, dilates, pad_low, pad_high;
};

#if DNNL_VERSION_MAJOR >= 3
static dnnl_status_t conv_pd_create(dnnl_primitive_desc_t *pd, enum conv_pass pass, const struct conv_desc *d,
                                    dnnl_engine_t eng, dnnl_primitive_desc_t hint, dnnl_primitive_attr_t attr)
{
    const dnnl_alg_kind_t alg = dnnl_convolution_direct;

    switch (pass) {
    case CONV_FORWARD:
        return dnnl_convolution_forward_primitive_desc_create(pd, eng, dnnl_forward_training, alg, d->x.v,
                                                              d->w.v, NULL, d->y.v, d->strides, d->dilates,
                                                              d->pad_low, d->pad_high, attr);
    case CONV_BACKWARD_DATA:
        return dnnl_convolution_backward_data_primitive_desc_create(pd, eng, alg, d->x.v, d->w.v, d->y.v,
                                                                    d->strides, d->dilates, d->pad_low,
                                                                    d->pad_high, hint, attr);
    default:
        return dnnl_convolution_backward_weights_primitive_desc_create(pd, eng, alg, d->x.v, d->dw.v, NULL,
                                                                       d->y.v, d->strides, d->dilates,
                                                                       d->pad_low, d->pad_high, hint, attr);
    }
}
#else
static dnnl_status_t conv_pd_create(dnnl_primitive_desc_t *pd, enum conv_pass pass, const struct conv_desc *d,
                                    dnnl_engine_t eng, dnnl_primitive_desc_t hint, dnnl_primitive_attr_t attr)
{
    const dnnl_alg_kind_t alg = dnnl_convolution_direct;
    dnnl_convolution_desc_t c;
    dnnl_status_t s;

    switch (pass) {
    case CONV_FORWARD:
        s = dnnl_dilated_convolution_forward_desc_init(&c, dnnl_forward_training, alg, &d->x.v, &d->w.v, NULL,
                                                       &d->y.v, d->strides, d->dilates, d->pad_low,
                                                       d->pad_high);
        break;
    case CONV_BACKWARD_DATA:
        s = dnnl_dilated_convolution_backward_data_desc_init(&c, alg, &d->x.v, &d->w.v, &d->y.v, d->strides,
                                                             d->dilates, d->pad_low, d->pad_high);
        break;
    default:
        s = dnnl_dilated_convolution_backward_weights_desc_init(&c, alg, &d->x.v, &d->dw.v, NULL, &d->y.v,
                                                                d->strides, d->dilates, d->pad_low,
                                                                d->pad_high);
    }
    return s != dnnl_success ? s : dnnl_primitive_desc_create(pd, &c, attr, eng, hint);
}
#endif

/* ------------------------------------------------------------------ engine */

struct dn {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_attr_t attr; /* the caller provides scratchpads */
};

static int dn_init(struct dn *d, struct err *e)
{
    DN_TRY(e, dnnl_engine_create(&d->engine, dnnl_cpu, 0));
    DN_TRY(e, dnnl_stream_create(&d->stream, d->engine, dnnl_stream_default_flags));
    DN_TRY(e, dnnl_primitive_attr_create(&d->attr));
    DN_TRY(e, dnnl_primitive_attr_set_scratchpad_mode(d->attr, dnnl_scratchpad_mode_user));
    return 0;
}

struct dn *dn_create(struct err *e)
{
    struct dn *d = xcalloc(1, sizeof(*d));

    if (dn_init(d, e) < 0) {
        dn_destroy(d);
        return NULL;
    }
    return d;
}

void dn_destroy(struct dn *d)
{
    if (!d)
        return;
    if (d->attr)
        dnnl_primitive_attr_destroy(d->attr);
    if (d->stream)
        dnnl_stream_destroy(d->stream);
    if (d->engine)
        dnnl_engine_destroy(d->engine);
    free(d);
}

const char *dn_isa(void)
{
    switch (dnnl_get_effective_cpu_isa()) {
    case dnnl_cpu_isa_sse41:
        return "SSE4.1";
    case dnnl_cpu_isa_avx:
        return "AVX";
    case dnnl_cpu_isa_avx2:
        return "AVX2";
    case dnnl_cpu_isa_avx2_vnni:
        return "AVX2 and VNNI";
    case dnnl_cpu_isa_avx512_core:
        return "AVX-512";
    default:
        return "others";
    }
}

/* ------------------------------------------------------------------ convolution */

struct pass_state {
    dnnl_primitive_t conv, reorder; /* reorder NULL: oneDNN takes the plain layout */
    dnnl_memory_t x, w, y;          /* in backward: their gradients where they are results */
    dnnl_memory_t w_plain;
    dnnl_memory_t scratchpad;
    size_t w_bytes, scratchpad_bytes;
};

struct dn_conv {
    struct dn *dn;
    struct pass_state pass[N_CONV_PASSES];
    size_t w_plain_bytes, scratch_bytes;
};

static int memory_create(struct dn *d, md_ref md, dnnl_memory_t *m, struct err *e)
{
    DN_TRY(e, dnnl_memory_create(m, md, d->engine, DNNL_MEMORY_NONE));
    return 0;
}

/* A reorder between memory objects of the plain and oneDNN's layout, unless they are the same. */
static int reorder_create(struct dn *d, md_ref from, md_ref to, dnnl_primitive_t *r, struct err *e)
{
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t s;

    if (dnnl_memory_desc_equal(from, to))
        return 0;
    DN_TRY(e, dnnl_reorder_primitive_desc_create(&pd, from, d->engine, to, d->engine, NULL));
    s = dnnl_primitive_create(r, pd);
    dnnl_primitive_desc_destroy(pd);
    DN_TRY(e, s);
    return 0;
}

/* Everything of a pass that follows from its primitive descriptor. */
static int pass_fill(struct dn_conv *c, enum conv_pass pass, dnnl_primitive_desc_t pd,
                     const struct conv_desc *d, const struct md *plain, struct err *e)
{
    struct pass_state *s = &c->pass[pass];
    const bool weights = pass == CONV_BACKWARD_WEIGHTS;
    md_ref w =
        dnnl_primitive_desc_query_md(pd, weights ? dnnl_query_diff_weights_md : dnnl_query_weights_md, 0);
    md_ref pad = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    md_ref from = weights ? w : md_use(plain), to = weights ? md_use(plain) : w;

    s->w_bytes = dnnl_memory_desc_get_size(w);
    s->scratchpad_bytes = dnnl_memory_desc_get_size(pad);
    DN_TRY(e, dnnl_primitive_create(&s->conv, pd));
    if (memory_create(c->dn, md_use(&d->x), &s->x, e) < 0 ||
        memory_create(c->dn, md_use(&d->y), &s->y, e) < 0 || memory_create(c->dn, w, &s->w, e) < 0 ||
        memory_create(c->dn, md_use(plain), &s->w_plain, e) < 0 ||
        memory_create(c->dn, pad, &s->scratchpad, e) < 0)
        return -1;
    return reorder_create(c->dn, from, to, &s->reorder, e);
}

/* *fwd is made by the first call and is the hint of the later ones. */
static int pass_create(struct dn_conv *c, enum conv_pass pass, const struct conv_desc *d,
                       const struct md *plain, dnnl_primitive_desc_t *fwd, bool wanted, struct err *e)
{
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t s = conv_pd_create(&pd, pass, d, c->dn->engine, *fwd, c->dn->attr);
    int rc;

    if (s != dnnl_success)
        return err_set(e, "oneDNN has no direct NHWC convolution for this shape and type: status %d", (int)s);
    rc = wanted ? pass_fill(c, pass, pd, d, plain, e) : 0;
    if (pass == CONV_FORWARD)
        *fwd = pd;
    else
        dnnl_primitive_desc_destroy(pd);
    return rc;
}

/* plain: of the weights as everybody else has them, f32. */
static int conv_desc_init(struct conv_desc *d, struct md *plain, const struct conv_shape *s, enum dtype t,
                          struct err *e)
{
    const int64_t g = s->groups, k = s->kernel;
    const int w_dims = g > 1 ? 5 : 4;
    const dnnl_data_type_t type = t == DTYPE_BF16 ? dnnl_bf16 : dnnl_f32;
    const dnnl_dims_t x = {s->n, s->ci, s->h, s->w}, y = {s->n, s->co, s->ho, s->wo};
    const dnnl_dims_t w4 = {s->co, s->ci, k, k}, w5 = {g, s->co / g, s->ci / g, k, k};
    const dnnl_dim_t *w = g > 1 ? w5 : w4;

    for (int i = 0; i < 2; i++) {
        d->strides[i] = s->stride;
        d->pad_low[i] = s->pad;
        d->pad_high[i] = s->pad;
    }
    DN_TRY(e, md_init(&d->x, 4, x, type, dnnl_nhwc));
    DN_TRY(e, md_init(&d->y, 4, y, type, dnnl_nhwc));
    DN_TRY(e, md_init(&d->w, w_dims, w, type, dnnl_format_tag_any));
    DN_TRY(e, md_init(&d->dw, w_dims, w, dnnl_f32, dnnl_format_tag_any));
    DN_TRY(e, md_init(plain, w_dims, w, dnnl_f32, g > 1 ? dnnl_goihw : dnnl_oihw));
    return 0;
}

static void conv_desc_done(struct conv_desc *d)
{
    md_done(&d->x);
    md_done(&d->w);
    md_done(&d->dw);
    md_done(&d->y);
}

static void set_scratch_bytes(struct dn_conv *c)
{
    for (int i = 0; i < N_CONV_PASSES; i++) {
        const struct pass_state *s = &c->pass[i];
        size_t n = align_up(s->w_bytes) + align_up(c->w_plain_bytes) + align_up(s->scratchpad_bytes);

        if (s->conv && n > c->scratch_bytes)
            c->scratch_bytes = n;
    }
}

static int conv_init(struct dn_conv *c, const struct conv_shape *s, enum dtype t, unsigned passes,
                     struct err *e)
{
    struct conv_desc d = {0};
    struct md plain = {0};
    dnnl_primitive_desc_t fwd = NULL;
    int rc = conv_desc_init(&d, &plain, s, t, e);

    if (rc == 0)
        c->w_plain_bytes = dnnl_memory_desc_get_size(md_use(&plain));
    for (int i = 0; rc == 0 && i < N_CONV_PASSES; i++)
        if (i == CONV_FORWARD || passes >> i & 1)
            rc = pass_create(c, i, &d, &plain, &fwd, passes >> i & 1, e);
    if (fwd)
        dnnl_primitive_desc_destroy(fwd);
    conv_desc_done(&d);
    md_done(&plain);
    set_scratch_bytes(c);
    return rc;
}

bool dn_has_bf16(struct dn *d)
{
    const struct conv_shape s = {1, 8, 8, 16, 8, 8, 16, .groups = 1, .kernel = 3, .stride = 1, .pad = 1};
    struct conv_desc cd = {0};
    struct md plain = {0};
    dnnl_primitive_desc_t pd[N_CONV_PASSES] = {NULL};
    bool has = conv_desc_init(&cd, &plain, &s, DTYPE_BF16, NULL) == 0;

    for (int i = 0; i < N_CONV_PASSES; i++)
        has = has && conv_pd_create(&pd[i], i, &cd, d->engine, pd[CONV_FORWARD], d->attr) == dnnl_success;
    for (int i = 0; i < N_CONV_PASSES; i++)
        if (pd[i])
            dnnl_primitive_desc_destroy(pd[i]);
    conv_desc_done(&cd);
    md_done(&plain);
    return has;
}

struct dn_conv *dn_conv_create(struct dn *d, const struct conv_shape *s, enum dtype t, unsigned passes,
                               struct err *e)
{
    struct dn_conv *c = xcalloc(1, sizeof(*c));

    c->dn = d;
    if (conv_init(c, s, t, passes, e) < 0) {
        dn_conv_destroy(c);
        return NULL;
    }
    return c;
}

void dn_conv_destroy(struct dn_conv *c)
{
    if (!c)
        return;
    for (int i = 0; i < N_CONV_PASSES; i++) {
        struct pass_state *s = &c->pass[i];
        dnnl_memory_t memories[] = {s->x, s->w, s->y, s->w_plain, s->scratchpad};

        for (size_t k = 0; k < sizeof(memories) / sizeof(memories[0]); k++)
            if (memories[k])
                dnnl_memory_destroy(memories[k]);
        if (s->conv)
            dnnl_primitive_destroy(s->conv);
        if (s->reorder)
            dnnl_primitive_destroy(s->reorder);
    }
    free(c);
}

size_t dn_conv_scratch_bytes(const struct dn_conv *c)
{
    return c->scratch_bytes;
}

static int reorder_run(struct dn_conv *c, const struct pass_state *s, dnnl_memory_t from, dnnl_memory_t to,
                       struct err *e)
{
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};

    DN_TRY(e, dnnl_primitive_execute(s->reorder, c->dn->stream, 2, args));
    return 0;
}

/* Sets the addresses of a pass. oneDNN takes pointers to non-const for arguments that it only reads. */
static int bind(struct pass_state *s, const void *x, const void *y, char *w, char *plain, char *pad,
                struct err *e)
{
    DN_TRY(e, dnnl_memory_set_data_handle(s->x, (void *)(uintptr_t)x));
    DN_TRY(e, dnnl_memory_set_data_handle(s->y, (void *)(uintptr_t)y));
    DN_TRY(e, dnnl_memory_set_data_handle(s->w, w));
    DN_TRY(e, dnnl_memory_set_data_handle(s->w_plain, plain));
    DN_TRY(e, dnnl_memory_set_data_handle(s->scratchpad, pad));
    return 0;
}

/* Forward and backward for data: the weights are read, in oneDNN's layout, from scratch. */
static int run_with_weights(struct dn_conv *c, enum conv_pass pass, const void *x, const void *y,
                            const float *w, void *scratch, struct err *e)
{
    struct pass_state *s = &c->pass[pass];
    char *own = (char *)scratch, *plain = (char *)(uintptr_t)w, *pad = own + align_up(s->w_bytes);
    const bool fwd = pass == CONV_FORWARD;
    const dnnl_exec_arg_t args[] = {{fwd ? DNNL_ARG_SRC : DNNL_ARG_DIFF_SRC, s->x},
                                    {DNNL_ARG_WEIGHTS, s->w},
                                    {fwd ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, s->y},
                                    {DNNL_ARG_SCRATCHPAD, s->scratchpad}};

    ASSERT(s->conv);
    if (bind(s, x, y, s->reorder ? own : plain, plain, pad, e) < 0)
        return -1;
    if (s->reorder && reorder_run(c, s, s->w_plain, s->w, e) < 0)
        return -1;
    DN_TRY(e, dnnl_primitive_execute(s->conv, c->dn->stream, 4, args));
    DN_TRY(e, dnnl_stream_wait(c->dn->stream));
    return 0;
}

int dn_conv_forward(struct dn_conv *c, const void *x, const float *w, void *y, void *scratch, struct err *e)
{
    return run_with_weights(c, CONV_FORWARD, x, y, w, scratch, e);
}

int dn_conv_backward_data(struct dn_conv *c, const void *dy, const float *w, void *dx, void *scratch,
                          struct err *e)
{
    return run_with_weights(c, CONV_BACKWARD_DATA, dx, dy, w, scratch, e);
}

int dn_conv_backward_weights(struct dn_conv *c, const void *x, const void *dy, void *scratch,
                             const float **dw, struct err *e)
{
    struct pass_state *s = &c->pass[CONV_BACKWARD_WEIGHTS];
    char *own = (char *)scratch, *plain = own + align_up(s->w_bytes),
         *pad = plain + align_up(c->w_plain_bytes);
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, s->x},
                                    {DNNL_ARG_DIFF_DST, s->y},
                                    {DNNL_ARG_DIFF_WEIGHTS, s->w},
                                    {DNNL_ARG_SCRATCHPAD, s->scratchpad}};

    ASSERT(s->conv);
    if (bind(s, x, dy, own, plain, pad, e) < 0)
        return -1;
    DN_TRY(e, dnnl_primitive_execute(s->conv, c->dn->stream, 4, args));
    if (s->reorder && reorder_run(c, s, s->w, s->w_plain, e) < 0)
        return -1;
    DN_TRY(e, dnnl_stream_wait(c->dn->stream));
    *dw = (const float *)(s->reorder ? plain : own);
    return 0;
}
