/* op_run - see op_run.h. */
#include "tests/ops/op_run.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/philox.h"
#include "worker/backend/cpu/cpu.h"

void op_check_failed(const char *file, int line, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    _fail(file, line);
}

double op_uniform(uint64_t seed, uint32_t stream, int64_t k)
{
    struct philox_block b = philox(philox_make_key(seed, stream), (uint32_t)k, (uint32_t)(k >> 32), 0, 0);

    return b.v[0] * 0x1p-31 - 1;
}

double op_value(const void *p, enum dtype t, int64_t k)
{
    return t == DTYPE_F64   ? ((const double *)p)[k]
           : t == DTYPE_F32 ? (double)((const float *)p)[k]
                            : (double)((const int32_t *)p)[k];
}

void op_set_value(void *p, enum dtype t, int64_t k, double v)
{
    if (t == DTYPE_F64)
        ((double *)p)[k] = v;
    else if (t == DTYPE_F32)
        ((float *)p)[k] = (float)v;
    else
        ((int32_t *)p)[k] = (int32_t)v;
}

double op_distance(const void *a, const void *b, enum dtype t, int64_t n)
{
    double d = 0, s = 0;

    for (int64_t i = 0; i < n; i++) {
        double x = op_value(a, t, i), y = op_value(b, t, i);

        d += (x - y) * (x - y);
        s += y * y;
    }
    return sqrt(d) / fmax(sqrt(s), 1e-30);
}

static const struct node *tensor_of(const struct op_run *r, int i)
{
    return i < 0 ? &r->node : r->node.in[i];
}

int64_t op_run_count(const struct op_run *r, int i)
{
    return shape_count(tensor_of(r, i)->shape);
}

static size_t bytes_of(const struct op_run *r, int i)
{
    return (size_t)op_run_count(r, i) * dtype_bytes(tensor_of(r, i)->dtype);
}

/* As a program does, a tensor of no bytes has no address. */
static void *tensor_alloc(const struct op_run *r, size_t bytes)
{
    void *p;

    if (!bytes)
        return NULL;
    p = r->be->ops->mem_alloc(r->be, bytes, NULL);
    assert_non_null(p);
    r->be->ops->poison(r->be, p, bytes);
    return p;
}

static double fill_value(const struct op_case *s, enum fill fill, const struct shape *shape, int64_t k,
                         double u)
{
    const int64_t C = shape_channels(*shape);

    switch (fill) {
    case FILL_APART:
        return u < 0 ? u - 0.4 : u + 0.4;
    case FILL_SMALL:
        return 0.1 * u;
    case FILL_ONE:
        return 1 + 0.3 * u;
    case FILL_SUMS: { /* row 0: count·mean, row 1: count·(variance + mean²); means alternate with the channel
                       */
        double mean = (k % C % 2 ? -0.1 : 0.1) * (double)(k % C + 1) / (double)C;

        return s->attr.bn.count * (k < C ? mean : 1 + 0.1 * u + mean * mean);
    }
    case FILL_DISTINCT: /* 7919 is prime and divides no count used here */
        return 0.05 * (double)(k * 7919 % shape_count(*shape));
    case FILL_TARGETS:
        return floor((u + 1) * 0.49999 * (double)shape_channels(s->in[0].shape));
    default:
        return u;
    }
}

static enum dtype fill_dtype(enum fill f)
{
    return f == FILL_SUMS ? DTYPE_F64 : f == FILL_TARGETS ? DTYPE_I32 : DTYPE_F32;
}

static void make_inputs(struct op_run *r, uint64_t seed)
{
    for (int i = 0; i < r->spec->n_inputs; i++) {
        struct node *x = &r->in_nodes[i];
        const struct op_input *in = &r->spec->in[i];

        *x = (struct node){
            .name = "input", .shape = in->shape, .dtype = fill_dtype(in->fill), .needs_grad = true};
        r->node.in[i] = x;
        r->call.in[i] = tensor_alloc(r, bytes_of(r, i));
        r->in_copy[i] = tensor_alloc(r, bytes_of(r, i));
        for (int64_t k = 0; k < op_run_count(r, i); k++)
            op_set_value(r->call.in[i], x->dtype, k,
                         fill_value(r->spec, in->fill, &in->shape, k, op_uniform(seed, (uint32_t)i, k)));
    }
}

static void prepare(struct op_run *r)
{
    struct err e = ERR_INIT;

    if (op_table[r->spec->op].infer(&r->node, &e) < 0)
        op_check_failed(__FILE__, __LINE__, "%s: %s", r->spec->name, e.msg);
    r->kernel = &r->be->ops->kernels[r->spec->op];
    if (r->kernel->prepare && r->kernel->prepare(r->be, &r->node, &r->prep, &e) < 0)
        op_check_failed(__FILE__, __LINE__, "%s: %s", r->spec->name, e.msg);
    r->call.state = r->prep.state;
    r->call.aux = tensor_alloc(r, r->prep.aux_bytes);
    r->call.scratch = tensor_alloc(r, r->prep.scratch_bytes);
    r->call.out = tensor_alloc(r, bytes_of(r, -1));
    r->out_copy = tensor_alloc(r, bytes_of(r, -1));
    r->call.dout = tensor_alloc(r, bytes_of(r, -1));
}

void op_run_init(struct op_run *r, struct backend *be, const struct op_case *spec, uint64_t seed)
{
    *r = (struct op_run){.spec = spec, .be = be, .step = {.seed = 12345, .step = 7}};
    r->node = (struct node){.op = spec->op,
                            .name = spec->name,
                            .n_inputs = spec->n_inputs,
                            .attr = spec->attr,
                            .bwd_reads = op_table[spec->op].bwd_reads,
                            .needs_grad = true};
    make_inputs(r, seed);
    prepare(r);
    r->counts[0] = spec->in[0].shape.dims[0];
    r->rows = (struct row_split){.size = 1,
                                 .total = spec->total ? spec->total : r->counts[0],
                                 .first = spec->first,
                                 .local = r->counts[0],
                                 .counts = r->counts};
    r->call.node = &r->node;
    r->call.step = &r->step;
    r->call.rows = &r->rows;
}

void op_run_free(struct op_run *r)
{
    void (*const drop)(struct backend *, void *) = r->be->ops->mem_free;

    for (int i = 0; i < r->spec->n_inputs; i++) {
        drop(r->be, r->call.in[i]);
        drop(r->be, r->in_copy[i]);
        drop(r->be, r->call.din[i]);
    }
    drop(r->be, r->call.out);
    drop(r->be, r->out_copy);
    drop(r->be, (void *)(uintptr_t)r->call.dout);
    drop(r->be, r->call.aux);
    drop(r->be, r->call.scratch);
    if (r->kernel->release)
        r->kernel->release(r->prep.state);
}

void op_run_forward(struct op_run *r)
{
    struct err e = ERR_INIT;

    r->be->ops->poison(r->be, r->call.out, bytes_of(r, -1));
    r->be->ops->poison(r->be, r->call.aux, r->prep.aux_bytes);
    r->be->ops->poison(r->be, r->call.scratch, r->prep.scratch_bytes);
    if (r->kernel->forward(&r->call, &e) < 0)
        op_check_failed(__FILE__, __LINE__, "%s: forward: %s", r->spec->name, e.msg);
}

/* Swaps the values that backward may not read for NaN, or back. */
static void hide(struct op_run *r, bool hidden)
{
    struct backend *be = r->be;

    for (int i = -1; i < r->node.n_inputs; i++) {
        void *v = i < 0 ? r->call.out : r->call.in[i], *copy = i < 0 ? r->out_copy : r->in_copy[i];
        unsigned bit = i < 0 ? READS_OUT : 1u << i;

        if (r->node.bwd_reads & bit)
            continue;
        be->ops->copy(be, hidden ? copy : v, hidden ? v : copy, bytes_of(r, i), NULL);
        if (hidden)
            be->ops->poison(be, v, bytes_of(r, i));
    }
}

void op_run_backward(struct op_run *r)
{
    struct err e = ERR_INIT;
    int rc;

    r->be->ops->poison(r->be, r->call.scratch, r->prep.scratch_bytes);
    hide(r, true);
    rc = r->kernel->backward(&r->call, &e);
    hide(r, false);
    if (rc < 0)
        op_check_failed(__FILE__, __LINE__, "%s: backward: %s", r->spec->name, e.msg);
}

void op_run_want(struct op_run *r, unsigned mask)
{
    r->call.acc = 0;
    for (int i = 0; i < r->node.n_inputs; i++) {
        r->be->ops->mem_free(r->be, r->call.din[i]);
        r->call.din[i] = mask >> i & 1 ? tensor_alloc(r, bytes_of(r, i)) : NULL;
    }
}

void op_run_fill_dout(struct op_run *r, uint64_t seed)
{
    for (int64_t k = 0; k < op_run_count(r, -1); k++)
        op_set_value((void *)(uintptr_t)r->call.dout, r->node.dtype, k, op_uniform(seed, 1000, k));
}

unsigned op_run_grad_mask(const struct op_run *r)
{
    return op_table[r->spec->op].grad_inputs & ((1u << r->node.n_inputs) - 1);
}

void op_run_whole(struct op_run *r, struct backend *be, const struct op_case *spec)
{
    op_run_init(r, be, spec, 1);
    op_run_fill_dout(r, 2);
    op_run_want(r, op_run_grad_mask(r));
    op_run_forward(r);
    op_run_backward(r);
}

struct backend *op_run_backend(int n_threads)
{
    struct err e = ERR_INIT;
    struct backend *be =
        cpu_backend_create(&(struct cpu_config){.n_threads = n_threads, .winograd = true}, &e);

    if (!be)
        op_check_failed(__FILE__, __LINE__, "%s", e.msg);
    return be;
}
