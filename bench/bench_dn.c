/* bench_dn - see bench_dn.h. Here and in worker/backend/cpu/dn.c alone is oneDNN's header known: there it is
 * what the worker runs on, here it is the peer.
 *
 * Winograd exists in versions up to 3.1 only. Its backward for weights is tried as the others are.
 */
#include "bench/bench_dn.h"

#include <dnnl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"

enum { MIN_RUNS = 5, MAX_ARGS = 3 };

#define DN_TRY(e, call)                                                                                      \
    do {                                                                                                     \
        dnnl_status_t status_ = (call);                                                                      \
        if (status_ != dnnl_success)                                                                         \
            return err_set((e), "oneDNN: %s: status %d", #call, (int)status_);                               \
    } while (0)

static const struct {
    const char *name;
    bool nhwc, winograd;
} ways[BENCH_DN_WAYS] = {{"blocked direct", false, false},
                         {"nhwc direct", true, false},
                         {"blocked Winograd", false, true},
                         {"nhwc Winograd", true, true}};

struct bench_dn {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
};

const char *bench_dn_version(void)
{
    static char text[32]; /* written with the same bytes each time */
    const dnnl_version_t *v = dnnl_version();

    snprintf(text, sizeof text, "%d.%d.%d", v->major, v->minor, v->patch);
    return text;
}

struct bench_dn *bench_dn_create(struct err *e)
{
    struct bench_dn *d = xcalloc(1, sizeof *d);

    if (dnnl_engine_create(&d->engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&d->stream, d->engine, dnnl_stream_default_flags) != dnnl_success) {
        err_set(e, "oneDNN has no engine or stream for CPUs");
        bench_dn_destroy(d);
        return NULL;
    }
    return d;
}

void bench_dn_destroy(struct bench_dn *d)
{
    if (!d)
        return;
    if (d->stream)
        dnnl_stream_destroy(d->stream);
    if (d->engine)
        dnnl_engine_destroy(d->engine);
    free(d);
}

/* ---- versions ---- */

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t md_t;
typedef const_dnnl_memory_desc_t md_ref;
static dnnl_status_t md_make(md_t *m, int n_dims, const dnnl_dim_t *dims, dnnl_data_type_t t,
                             dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_create_with_tag(m, n_dims, dims, t, tag);
}
static void md_done(md_t *m)
{
    if (*m)
        dnnl_memory_desc_destroy(*m);
}
#else
typedef dnnl_memory_desc_t md_t;
typedef const dnnl_memory_desc_t *md_ref;
static dnnl_status_t md_make(md_t *m, int n_dims, const dnnl_dim_t *dims, dnnl_data_type_t t,
                             dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_init_by_tag(m, n_dims, dims, t, tag);
}
static void md_done(md_t *m)
{
    (void)m;
}
#endif

/* A convolution; gw is the gradient of w, which is f32. */
struct conv {
    md_t x, w, gw, y;
    dnnl_alg_kind_t alg;
    dnnl_dims_t strides, dilates, pad;
};

#if DNNL_VERSION_MAJOR >= 3
static dnnl_status_t make_pd(dnnl_primitive_desc_t *pd, enum conv_pass pass, const struct conv *c,
                             dnnl_engine_t eng, dnnl_primitive_desc_t hint)
{
    switch (pass) {
    case CONV_FORWARD:
        return dnnl_convolution_forward_primitive_desc_create(pd, eng, dnnl_forward_training, c->alg, c->x,
                                                              c->w, NULL, c->y, c->strides, c->dilates,
                                                              c->pad, c->pad, NULL);
    case CONV_BACKWARD_DATA:
        return dnnl_convolution_backward_data_primitive_desc_create(pd, eng, c->alg, c->x, c->w, c->y,
                                                                    c->strides, c->dilates, c->pad, c->pad,
                                                                    hint, NULL);
    default:
        return dnnl_convolution_backward_weights_primitive_desc_create(pd, eng, c->alg, c->x, c->gw, NULL,
                                                                       c->y, c->strides, c->dilates, c->pad,
                                                                       c->pad, hint, NULL);
    }
}
#else
static dnnl_status_t make_pd(dnnl_primitive_desc_t *pd, enum conv_pass pass, const struct conv *c,
                             dnnl_engine_t eng, dnnl_primitive_desc_t hint)
{
    dnnl_convolution_desc_t d;
    dnnl_status_t s;

    switch (pass) {
    case CONV_FORWARD:
        s = dnnl_dilated_convolution_forward_desc_init(&d, dnnl_forward_training, c->alg, &c->x, &c->w, NULL,
                                                       &c->y, c->strides, c->dilates, c->pad, c->pad);
        break;
    case CONV_BACKWARD_DATA:
        s = dnnl_dilated_convolution_backward_data_desc_init(&d, c->alg, &c->x, &c->w, &c->y, c->strides,
                                                             c->dilates, c->pad, c->pad);
        break;
    default:
        s = dnnl_dilated_convolution_backward_weights_desc_init(&d, c->alg, &c->x, &c->gw, NULL, &c->y,
                                                                c->strides, c->dilates, c->pad, c->pad);
    }
    return s != dnnl_success ? s : dnnl_primitive_desc_create(pd, &d, NULL, eng, hint);
}
#endif

static int describe(struct conv *c, const struct conv_shape *s, int way, enum dtype dtype, struct err *e)
{
    const dnnl_data_type_t t = dtype == DTYPE_BF16 ? dnnl_bf16 : dnnl_f32;
    const dnnl_format_tag_t tag = ways[way].nhwc ? dnnl_nhwc : dnnl_format_tag_any;
    const dnnl_dims_t x = {s->n, s->ci, s->h, s->w}, y = {s->n, s->co, s->ho, s->wo};
    const int64_t g = s->groups, k = s->kernel;
    const dnnl_dims_t w4 = {s->co, s->ci, k, k}, w5 = {g, s->co / g, s->ci / g, k, k};

    c->alg = ways[way].winograd ? dnnl_convolution_winograd : dnnl_convolution_direct;
    for (int i = 0; i < 2; i++) {
        c->strides[i] = s->stride;
        c->pad[i] = s->pad;
    }
    DN_TRY(e, md_make(&c->x, 4, x, t, tag));
    DN_TRY(e, md_make(&c->y, 4, y, t, tag));
    DN_TRY(e, md_make(&c->w, g > 1 ? 5 : 4, g > 1 ? w5 : w4, t, dnnl_format_tag_any));
    DN_TRY(e, md_make(&c->gw, g > 1 ? 5 : 4, g > 1 ? w5 : w4, dnnl_f32, dnnl_format_tag_any));
    return 0;
}

/* ---- running ---- */

struct running {
    dnnl_primitive_t prim;
    dnnl_memory_t memory[MAX_ARGS];
    void *data[MAX_ARGS];
    dnnl_exec_arg_t args[MAX_ARGS];
    int n;
};

/* Memory of an argument, filled with small numbers of either type. */
static int add_argument(struct bench_dn *d, struct running *r, md_ref md, int arg, struct err *e)
{
    const size_t bytes = dnnl_memory_desc_get_size(md);
    uint32_t *p = aligned_alloc(TENSOR_ALIGN_BYTES, align_up(bytes + 1));

    if (!p)
        return err_set(e, "out of memory: %zu bytes", bytes);
    r->data[r->n] = p;
    for (size_t i = 0; i < bytes / sizeof *p; i++)
        p[i] = 0x3e003e00u | (uint32_t)i * 2654435761u >> 9 >> 16 | ((uint32_t)i & 1) << 31;
    DN_TRY(e, dnnl_memory_create(&r->memory[r->n], md, d->engine, p));
    r->args[r->n] = (dnnl_exec_arg_t){arg, r->memory[r->n]};
    r->n++;
    return 0;
}

static int open_running(struct bench_dn *d, struct running *r, dnnl_primitive_desc_t pd, enum conv_pass pass,
                        struct err *e)
{
    static const struct {
        dnnl_query_t md;
        int arg;
    } of[N_CONV_PASSES][3] = {[CONV_FORWARD] = {{dnnl_query_src_md, DNNL_ARG_SRC},
                                                {dnnl_query_weights_md, DNNL_ARG_WEIGHTS},
                                                {dnnl_query_dst_md, DNNL_ARG_DST}},
                              [CONV_BACKWARD_DATA] = {{dnnl_query_diff_src_md, DNNL_ARG_DIFF_SRC},
                                                      {dnnl_query_weights_md, DNNL_ARG_WEIGHTS},
                                                      {dnnl_query_diff_dst_md, DNNL_ARG_DIFF_DST}},
                              [CONV_BACKWARD_WEIGHTS] = {{dnnl_query_src_md, DNNL_ARG_SRC},
                                                         {dnnl_query_diff_weights_md, DNNL_ARG_DIFF_WEIGHTS},
                                                         {dnnl_query_diff_dst_md, DNNL_ARG_DIFF_DST}}};

    DN_TRY(e, dnnl_primitive_create(&r->prim, pd));
    for (int i = 0; i < 3; i++)
        if (add_argument(d, r, dnnl_primitive_desc_query_md(pd, of[pass][i].md, 0), of[pass][i].arg, e) < 0)
            return -1;
    return 0;
}

static void close_running(struct running *r)
{
    for (int i = 0; i < MAX_ARGS; i++) {
        if (r->memory[i])
            dnnl_memory_destroy(r->memory[i]);
        free(r->data[i]);
    }
    if (r->prim)
        dnnl_primitive_destroy(r->prim);
}

static int run_once(struct bench_dn *d, struct running *r, struct err *e)
{
    DN_TRY(e, dnnl_primitive_execute(r->prim, d->stream, r->n, r->args));
    DN_TRY(e, dnnl_stream_wait(d->stream));
    return 0;
}

/* The least of runs that fill the time. */
static int time_running(struct bench_dn *d, struct running *r, double seconds, double *ms, struct err *e)
{
    const int64_t start = clock_mono_ns();

    if (run_once(d, r, e) < 0)
        return -1;
    for (int n = 0; n < MIN_RUNS || (double)(clock_mono_ns() - start) < seconds * 1e9; n++) {
        const int64_t t = clock_mono_ns();
        if (run_once(d, r, e) < 0)
            return -1;
        const double one = (double)(clock_mono_ns() - t) / 1e6;
        *ms = *ms < 0 || one < *ms ? one : *ms;
    }
    return 0;
}

/* *ms stays as it is where the library does not have this way. Backward needs a forward of the same kind as a
 * hint. */
static int time_way(struct bench_dn *d, const struct conv *c, enum conv_pass pass, double seconds, double *ms,
                    struct err *e)
{
    dnnl_primitive_desc_t forward = NULL, pd = NULL;
    struct running r = {.n = 0};
    int rc = 0;

    if (make_pd(&forward, CONV_FORWARD, c, d->engine, NULL) != dnnl_success)
        return 0;
    if (pass == CONV_FORWARD || make_pd(&pd, pass, c, d->engine, forward) == dnnl_success) {
        rc = open_running(d, &r, pd ? pd : forward, pass, e);
        if (rc == 0)
            rc = time_running(d, &r, seconds, ms, e);
        close_running(&r);
    }
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    dnnl_primitive_desc_destroy(forward);
    return rc;
}

int bench_dn_conv(struct bench_dn *d, const struct conv_shape *s, enum conv_pass pass, enum dtype dtype,
                  double seconds, struct bench_dn_way out[BENCH_DN_WAYS], struct err *e)
{
    for (int w = 0; w < BENCH_DN_WAYS; w++) {
        struct conv c;
        memset(&c, 0, sizeof c);
        out[w] = (struct bench_dn_way){ways[w].name, -1};
        int rc = describe(&c, s, w, dtype, e);
        if (rc == 0)
            rc = time_way(d, &c, pass, seconds, &out[w].ms, e);
        md_done(&c.x);
        md_done(&c.w);
        md_done(&c.gw);
        md_done(&c.y);
        if (rc < 0)
            return err_wrap(e, "%s", ways[w].name);
    }
    return 0;
}

const struct bench_dn_way *bench_dn_best(const struct bench_dn_way v[BENCH_DN_WAYS])
{
    const struct bench_dn_way *best = NULL;

    for (int w = 0; w < BENCH_DN_WAYS; w++)
        if (v[w].ms >= 0 && (!best || v[w].ms < best->ms))
            best = &v[w];
    return best;
}
