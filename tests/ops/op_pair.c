/* op_pair - see op_pair.h. */
#include "tests/ops/op_pair.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Inputs that are activations; the others stay f32, f64 or i32. */
static unsigned activations(enum op op)
{
    switch (op) {
    case OP_BN_APPLY:
        return 1u << 0 | 1u << 6;
    case OP_ATTENTION:
    case OP_ADD:
        return 3;
    case OP_CONCAT_ROWS:
        return 255;
    default:
        return 1;
    }
}

/* Inputs that a product rounds. */
static unsigned weights(enum op op)
{
    return op == OP_CONV2D || op == OP_LINEAR ? 2 : 0;
}

bool op_takes_gathered(enum op op)
{
    return op == OP_ATTENTION || op == OP_LINEAR;
}

uint16_t op_to_bf16(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float op_from_bf16(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;

    memcpy(&f, &bits, sizeof f);
    return f;
}

static void round_to_bf16(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = op_from_bf16(op_to_bf16(x[i]));
}

static void ok(const struct op_pair *p, int rc, const struct err *e, const char *what)
{
    CHECK(rc == 0, "%s (%s): %s: %s", p->cpu.spec->name, dtype_name(p->t), what, e->msg);
}

static void *device_alloc(struct op_pair *p, size_t bytes)
{
    struct err e = ERR_INIT;
    void *d = p->be->ops->mem_alloc(p->be, bytes, &e);

    ok(p, d ? 0 : -1, &e, "memory");
    p->be->ops->poison(p->be, d, bytes);
    return d;
}

/* A tensor of the host to the device, as type t where it is f32. */
static void send(struct op_pair *p, void *dst, const void *src, enum dtype host, enum dtype t, int64_t n)
{
    struct err e = ERR_INIT;

    if (host != DTYPE_F32 || t == DTYPE_F32) {
        ok(p, p->be->ops->upload(p->be, dst, src, (size_t)n * dtype_bytes(host), &e), &e, "upload");
        return;
    }
    uint16_t *h = xmalloc((size_t)n * sizeof *h + 1);
    for (int64_t i = 0; i < n; i++)
        h[i] = op_to_bf16(((const float *)src)[i]);
    ok(p, p->be->ops->upload(p->be, dst, h, (size_t)n * sizeof *h, &e), &e, "upload");
    free(h);
}

/* The other way; malloc'ed, f32 where the device has bf16. */
static void *fetch(struct op_pair *p, const void *src, enum dtype t, int64_t n)
{
    struct err e = ERR_INIT;
    void *raw = xmalloc((size_t)n * dtype_bytes(t) + 8);

    ok(p, p->be->ops->download(p->be, raw, src, (size_t)n * dtype_bytes(t), &e), &e, "download");
    if (t != DTYPE_BF16)
        return raw;
    float *f = xmalloc((size_t)n * sizeof *f + 1);
    for (int64_t i = 0; i < n; i++)
        f[i] = op_from_bf16(((uint16_t *)raw)[i]);
    free(raw);
    return f;
}

/* Every element is the CPU's, rounded once where it is bf16. */
static void compare_bits(struct op_pair *p, const char *what, int i, const void *host, enum dtype t,
                         const void *cpu, enum dtype cpu_type, int64_t n)
{
    for (int64_t k = 0; k < n; k++) {
        double got = op_value(host, cpu_type, k), want = op_value(cpu, cpu_type, k);

        if (t == DTYPE_BF16)
            want = (double)op_from_bf16(op_to_bf16((float)want));
        CHECK(got == want, "%s (%s): %s %d: element %lld is %.9g, not %.9g", p->cpu.spec->name,
              dtype_name(p->t), what, i, (long long)k, got, want);
    }
}

/* factor: the device's values are so many times the CPU's; then each was rounded more than once. */
static void compare(struct op_pair *p, const char *what, int i, const void *dev, enum dtype t,
                    const void *cpu, enum dtype cpu_type, int64_t n, double factor)
{
    void *host = fetch(p, dev, t, n);

    for (int64_t k = 0; factor != 1 && k < n; k++)
        op_set_value(host, cpu_type, k, op_value(host, cpu_type, k) / factor);
    double d = op_distance(host, cpu, cpu_type, n);
    double most = p->tolerance > 0 ? p->tolerance : p->t == DTYPE_BF16 ? 0x1p-8 : 1e-7;
    CHECK(d <= most, "%s (%s): %s %d differs by %.2e of its norm", p->cpu.spec->name, dtype_name(p->t), what,
          i, d);
    if (p->tolerance == 0 && factor == 1)
        compare_bits(p, what, i, host, t, cpu, cpu_type, n);
    free(host);
}

/* Whose rows may have been gathered, so that its gradient is f32: keys and values, or what they are projected
 * from. */
static int gathered_input(enum op op)
{
    return op == OP_ATTENTION ? 1 : 0;
}

static void make_nodes(struct op_pair *p)
{
    struct err e = ERR_INIT;
    const struct op_run *r = &p->cpu;

    p->node = r->node;
    for (int i = 0; i < r->node.n_inputs; i++) {
        p->in_nodes[i] = *r->node.in[i];
        if (activations(r->spec->op) >> i & 1 && p->in_nodes[i].dtype == DTYPE_F32)
            p->in_nodes[i].dtype = p->t;
        p->in_nodes[i].grad_dtype =
            p->gathered && i == gathered_input(r->spec->op) ? DTYPE_F32 : p->in_nodes[i].dtype;
        p->node.in[i] = &p->in_nodes[i];
    }
    ok(p, op_table[r->spec->op].infer(&p->node, &e), &e, "shape rule");
    p->node.grad_dtype = p->node.dtype;
}

void op_pair_init(struct op_pair *p, struct backend *cpu, struct backend *be, const struct op_case *spec,
                  enum dtype t, bool gathered, double tolerance)
{
    struct err e = ERR_INIT;

    *p = (struct op_pair){.be = be,
                          .kernel = &be->ops->kernels[spec->op],
                          .t = t,
                          .gathered = gathered,
                          .tolerance = tolerance};
    op_run_init(&p->cpu, cpu, spec, 1);
    for (int i = 0; t == DTYPE_BF16 && i < spec->n_inputs; i++)
        if ((activations(spec->op) | weights(spec->op)) >> i & 1)
            round_to_bf16(p->cpu.call.in[i], op_run_count(&p->cpu, i));
    make_nodes(p);
    CHECK(p->kernel->forward, "%s: backend %s has no kernel", spec->name, be->ops->name);
    if (p->kernel->prepare)
        ok(p, p->kernel->prepare(be, &p->node, &p->prep, &e), &e, "prepare");
    p->call = (struct op_call){
        .node = &p->node, .state = p->prep.state, .step = &p->cpu.step, .rows = &p->cpu.rows};
    if (be->ops->set_step)
        ok(p, be->ops->set_step(be, &p->cpu.step, &e), &e, "step");
    p->call.aux = device_alloc(p, p->prep.aux_bytes);
    p->call.scratch = device_alloc(p, p->prep.scratch_bytes);
    p->call.out = device_alloc(p, (size_t)op_run_count(&p->cpu, -1) * dtype_bytes(p->node.dtype));
    for (int i = 0; i < spec->n_inputs; i++) {
        int64_t n = op_run_count(&p->cpu, i);
        p->call.in[i] = device_alloc(p, (size_t)n * dtype_bytes(p->in_nodes[i].dtype));
        send(p, p->call.in[i], p->cpu.call.in[i], p->cpu.node.in[i]->dtype, p->in_nodes[i].dtype, n);
    }
}

void op_pair_free(struct op_pair *p)
{
    void (*const drop)(struct backend *, void *) = p->be->ops->mem_free;

    for (int i = 0; i < p->node.n_inputs; i++) {
        drop(p->be, p->call.in[i]);
        drop(p->be, p->call.din[i]);
    }
    drop(p->be, p->call.aux);
    drop(p->be, p->call.scratch);
    drop(p->be, p->call.out);
    drop(p->be, (void *)(uintptr_t)p->call.dout);
    if (p->kernel->release)
        p->kernel->release(p->prep.state);
    op_run_free(&p->cpu);
}

void op_pair_forward(struct op_pair *p)
{
    struct err e = ERR_INIT;
    const struct op_run *r = &p->cpu;

    op_run_forward(&p->cpu);
    ok(p, p->kernel->forward(&p->call, &e), &e, "forward");
    compare(p, "output", -1, p->call.out, p->node.dtype, r->call.out, r->node.dtype, op_run_count(r, -1), 1);
    for (int i = 4; r->spec->op == OP_BN_APPLY && i < 6; i++)
        compare(p, "running statistic", i, p->call.in[i], DTYPE_F32, r->call.in[i], DTYPE_F32,
                op_run_count(r, i), 1);
}

static void run_backward(struct op_pair *p, unsigned acc)
{
    struct err e = ERR_INIT;

    p->call.acc = acc;
    p->be->ops->poison(p->be, p->call.scratch, p->prep.scratch_bytes);
    ok(p, p->kernel->backward(&p->call, &e), &e, "backward");
}

/* Gradients as they come, and then once more on top of themselves. */
void op_pair_backward(struct op_pair *p)
{
    struct op_run *r = &p->cpu;
    const unsigned mask = op_run_grad_mask(r);
    const int64_t n_out = op_run_count(r, -1);

    op_run_want(r, mask);
    op_run_fill_dout(r, 2);
    if (p->node.grad_dtype == DTYPE_BF16)
        round_to_bf16((float *)(uintptr_t)r->call.dout, n_out);
    if (p->node.dtype == DTYPE_BF16) /* backward reads it as it was stored */
        round_to_bf16(r->call.out, n_out);
    op_run_backward(r);
    void *dout = device_alloc(p, (size_t)n_out * dtype_bytes(p->node.grad_dtype));
    send(p, dout, r->call.dout, r->node.dtype, p->node.grad_dtype, n_out);
    p->call.dout = dout;
    for (int i = 0; i < r->node.n_inputs; i++)
        if (mask >> i & 1)
            p->call.din[i] =
                device_alloc(p, (size_t)op_run_count(r, i) * dtype_bytes(p->in_nodes[i].grad_dtype));
    for (int twice = 0; twice < 2; twice++) {
        run_backward(p, twice ? mask : 0);
        for (int i = 0; i < r->node.n_inputs; i++)
            if (mask >> i & 1)
                compare(p, twice ? "added gradient" : "gradient", i, p->call.din[i],
                        p->in_nodes[i].grad_dtype, r->call.din[i], r->node.in[i]->dtype, op_run_count(r, i),
                        1 + twice);
    }
}

void op_pair_check(struct backend **be, const struct op_case *spec, enum dtype t, bool gathered,
                   double tolerance)
{
    struct op_pair p;

    op_pair_init(&p, be[0], be[1], spec, t, gathered, tolerance);
    op_pair_forward(&p);
    if (op_run_grad_mask(&p.cpu))
        op_pair_backward(&p);
    op_pair_free(&p);
}
