/* test_backend_parity - the CUDA backend beside the CPU's on the shared table of cases: every operator
 * forward and backward, gradients defined and added to, in f32 and in bf16. On simulated GPUs here, on a real
 * one in tests/cuda.
 *
 * The optimisers' sweeps over flat ranges are compared as well.
 *
 * $BF_PARITY_SKIP names operators to leave out, with commas: under a sanitizer those that are the vendor's.
 *
 * In bf16 the CPU computes in f32 from inputs that were rounded to bf16, so that only the rounding of results
 * and of what lies between differs.
 */
#include "tests/ops/op_run.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cuda/cuda.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SKIPPED = 77 };

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

/* An op_run of the CPU and the same node on the device. */
struct pair {
    struct op_run cpu;
    struct backend *be;
    const struct kernel *kernel;
    enum dtype t; /* of activations */
    bool f32_kv;  /* the gradient of attention's keys and values is f32, as where they were gathered */
    struct node node, in_nodes[OP_MAX_INPUTS];
    struct op_prep prep;
    struct op_call call;
};

static double tolerance(const struct pair *p)
{
    return p->t == DTYPE_F32 ? 1e-5 : 2e-2;
}

static uint16_t to_bf16(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float from_bf16(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;

    memcpy(&f, &bits, sizeof f);
    return f;
}

static void round_to_bf16(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = from_bf16(to_bf16(x[i]));
}

static void ok(const struct pair *p, int rc, const struct err *e, const char *what)
{
    CHECK(rc == 0, "%s (%s): %s: %s", p->cpu.spec->name, dtype_name(p->t), what, e->msg);
}

static void *device_alloc(struct pair *p, size_t bytes)
{
    struct err e = ERR_INIT;
    void *d = p->be->ops->mem_alloc(p->be, bytes, &e);

    ok(p, d ? 0 : -1, &e, "memory");
    p->be->ops->poison(p->be, d, bytes);
    return d;
}

/* A tensor of the host to the device, as type t where it is f32. */
static void send(struct pair *p, void *dst, const void *src, enum dtype host, enum dtype t, int64_t n)
{
    struct err e = ERR_INIT;

    if (host != DTYPE_F32 || t == DTYPE_F32) {
        ok(p, p->be->ops->upload(p->be, dst, src, (size_t)n * dtype_bytes(host), &e), &e, "upload");
        return;
    }
    uint16_t *h = xmalloc((size_t)n * sizeof *h + 1);
    for (int64_t i = 0; i < n; i++)
        h[i] = to_bf16(((const float *)src)[i]);
    ok(p, p->be->ops->upload(p->be, dst, h, (size_t)n * sizeof *h, &e), &e, "upload");
    free(h);
}

/* The other way; malloc'ed, f32 where the device has bf16. */
static void *fetch(struct pair *p, const void *src, enum dtype t, int64_t n)
{
    struct err e = ERR_INIT;
    void *raw = xmalloc((size_t)n * dtype_bytes(t) + 8);

    ok(p, p->be->ops->download(p->be, raw, src, (size_t)n * dtype_bytes(t), &e), &e, "download");
    if (t != DTYPE_BF16)
        return raw;
    float *f = xmalloc((size_t)n * sizeof *f + 1);
    for (int64_t i = 0; i < n; i++)
        f[i] = from_bf16(((uint16_t *)raw)[i]);
    free(raw);
    return f;
}

/* factor: the device's values are so many times the CPU's. */
static void compare(struct pair *p, const char *what, int i, const void *dev, enum dtype t, const void *cpu,
                    enum dtype cpu_type, int64_t n, double factor)
{
    void *host = fetch(p, dev, t, n);

    for (int64_t k = 0; factor != 1 && k < n; k++)
        op_set_value(host, cpu_type, k, op_value(host, cpu_type, k) / factor);
    double d = op_distance(host, cpu, cpu_type, n);
    CHECK(d <= tolerance(p), "%s (%s): %s %d differs by %.2e of its norm", p->cpu.spec->name,
          dtype_name(p->t), what, i, d);
    free(host);
}

static void make_nodes(struct pair *p)
{
    struct err e = ERR_INIT;
    const struct op_run *r = &p->cpu;

    p->node = r->node;
    for (int i = 0; i < r->node.n_inputs; i++) {
        p->in_nodes[i] = *r->node.in[i];
        if (activations(r->spec->op) >> i & 1 && p->in_nodes[i].dtype == DTYPE_F32)
            p->in_nodes[i].dtype = p->t;
        p->in_nodes[i].grad_dtype = p->f32_kv && i == 1 ? DTYPE_F32 : p->in_nodes[i].dtype;
        p->node.in[i] = &p->in_nodes[i];
    }
    ok(p, op_table[r->spec->op].infer(&p->node, &e), &e, "shape rule");
    p->node.grad_dtype = p->node.dtype;
}

static void pair_init(struct pair *p, struct backend *cpu, struct backend *gpu, const struct op_case *spec,
                      enum dtype t, bool f32_kv)
{
    struct err e = ERR_INIT;

    *p = (struct pair){.be = gpu, .kernel = &gpu->ops->kernels[spec->op], .t = t, .f32_kv = f32_kv};
    op_run_init(&p->cpu, cpu, spec, 1);
    for (int i = 0; t == DTYPE_BF16 && i < spec->n_inputs; i++)
        if (activations(spec->op) >> i & 1)
            round_to_bf16(p->cpu.call.in[i], op_run_count(&p->cpu, i));
    make_nodes(p);
    CHECK(p->kernel->forward, "%s: the CUDA backend has no kernel", spec->name);
    if (p->kernel->prepare)
        ok(p, p->kernel->prepare(gpu, &p->node, &p->prep, &e), &e, "prepare");
    p->call = (struct op_call){
        .node = &p->node, .state = p->prep.state, .step = &p->cpu.step, .rows = &p->cpu.rows};
    ok(p, gpu->ops->set_step(gpu, &p->cpu.step, &e), &e, "step");
    p->call.aux = device_alloc(p, p->prep.aux_bytes);
    p->call.scratch = device_alloc(p, p->prep.scratch_bytes);
    p->call.out = device_alloc(p, (size_t)op_run_count(&p->cpu, -1) * dtype_bytes(p->node.dtype));
    for (int i = 0; i < spec->n_inputs; i++) {
        int64_t n = op_run_count(&p->cpu, i);
        p->call.in[i] = device_alloc(p, (size_t)n * dtype_bytes(p->in_nodes[i].dtype));
        send(p, p->call.in[i], p->cpu.call.in[i], p->cpu.node.in[i]->dtype, p->in_nodes[i].dtype, n);
    }
}

static void pair_free(struct pair *p)
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

static void check_forward(struct pair *p)
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

static void run_backward(struct pair *p, unsigned acc)
{
    struct err e = ERR_INIT;

    p->call.acc = acc;
    p->be->ops->poison(p->be, p->call.scratch, p->prep.scratch_bytes);
    ok(p, p->kernel->backward(&p->call, &e), &e, "backward");
}

/* Gradients as they come, and then once more on top of themselves. */
static void check_backward(struct pair *p)
{
    struct op_run *r = &p->cpu;
    const unsigned mask = op_run_grad_mask(r);
    const int64_t n_out = op_run_count(r, -1);

    op_run_want(r, mask);
    op_run_fill_dout(r, 2);
    if (p->node.grad_dtype == DTYPE_BF16)
        round_to_bf16((float *)(uintptr_t)r->call.dout, n_out);
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

static void check_case(struct backend **be, const struct op_case *spec, enum dtype t, bool f32_kv)
{
    struct pair p;

    pair_init(&p, be[0], be[1], spec, t, f32_kv);
    check_forward(&p);
    if (op_run_grad_mask(&p.cpu))
        check_backward(&p);
    pair_free(&p);
}

static bool skipped(enum op op)
{
    const char *list = getenv("BF_PARITY_SKIP"), *name = op_table[op].name;
    const size_t n = strlen(name);

    for (const char *at = list; at && (at = strstr(at, name)); at += n)
        if ((at == list || at[-1] == ',') && (at[n] == 0 || at[n] == ','))
            return true;
    return false;
}

static void test_f32(void **state)
{
    for (size_t i = 0; i < n_op_cases; i++)
        if (!skipped(op_cases[i].op))
            check_case(*state, &op_cases[i], DTYPE_F32, false);
}

static void test_bf16(void **state)
{
    for (size_t i = 0; i < n_op_cases; i++) {
        if (skipped(op_cases[i].op))
            continue;
        check_case(*state, &op_cases[i], DTYPE_BF16, false);
        if (op_cases[i].op == OP_ATTENTION)
            check_case(*state, &op_cases[i], DTYPE_BF16, true);
    }
}

/* ---- sweeps over flat ranges ---- */

enum { FLAT_COUNT = 2 * FLAT_CHUNK + 1000 };
enum { BUF_W, BUF_G, BUF_M, BUF_V, BUF_AVERAGE, N_BUFS };

/* The same numbers in both backends' memory, and tables of tensors. */
struct flat_pair {
    struct backend *be;
    float *buf[N_BUFS];
    struct step_scalars *s;
    struct lars_args lars;
};

static void *on(struct backend *be, const void *host, size_t bytes)
{
    struct err e = ERR_INIT;
    void *p = be->ops->mem_alloc(be, bytes, &e);

    CHECK(p && be->ops->upload(be, p, host, bytes, &e) == 0, "memory of %s: %s", be->ops->name, e.msg);
    return p;
}

static void flat_init(struct flat_pair *f, struct backend *be)
{
    struct flat_tensor tensors[] = {
        {.first = 0, .count = 100, .lr_scale = 1},
        {.first = 112, .count = 2 * FLAT_CHUNK + 3, .lr_scale = 0.5, .weight_decay = 0.1f, .adapts = 1},
        {.first = 2 * FLAT_CHUNK + 128, .count = 800, .lr_scale = 1, .weight_decay = 0.1f, .adapts = 1},
    };
    const struct step_scalars s = {.lr = 0.1, .update = 3, .max_grad_norm = 2, .grad_norm = 5};
    struct flat_chunk chunks[8];
    float *x = xmalloc(FLAT_COUNT * sizeof *x);
    double zero[16] = {0};

    *f = (struct flat_pair){.be = be, .s = on(be, &s, sizeof s)};
    for (int b = 0; b < N_BUFS; b++) {
        for (int i = 0; i < FLAT_COUNT; i++)
            x[i] = (float)op_uniform(9, (uint32_t)b, i) + (b == BUF_V ? 2 : 0);
        f->buf[b] = on(be, x, FLAT_COUNT * sizeof *x);
    }
    free(x);
    f->lars = (struct lars_args){.n_tensors = 3,
                                 .n_chunks = flat_chunks(tensors, 3, NULL),
                                 .partials = on(be, zero, sizeof zero),
                                 .trust = on(be, zero, sizeof zero),
                                 .coefficient = 0.5,
                                 .eps = 1e-3,
                                 .momentum = 0.9f,
                                 .nesterov = true};
    assert_int_equal(flat_chunks(tensors, 3, chunks), 5);
    f->lars.tensors = on(be, tensors, sizeof tensors);
    f->lars.chunks = on(be, chunks, sizeof chunks);
}

static void flat_free(struct flat_pair *f)
{
    void *const all[] = {f->s, (void *)f->lars.tensors, (void *)f->lars.chunks, f->lars.partials,
                         f->lars.trust};

    for (int b = 0; b < N_BUFS; b++)
        f->be->ops->mem_free(f->be, f->buf[b]);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        f->be->ops->mem_free(f->be, all[i]);
}

static const char *const sweeps[] = {"sgd", "adam", "adamw", "lars"};

/* One update, and the average of it. */
static void flat_update(struct flat_pair *f, int sweep)
{
    const struct flat_ops *ops = f->be->ops->flat;
    const struct sgd_args sgd = {.lr_scale = 2, .momentum = 0.9f, .weight_decay = 0.1f, .nesterov = true};
    const struct adam_args adam = {.lr_scale = 2,
                                   .beta1 = 0.9,
                                   .beta2 = 0.99,
                                   .eps = 1e-3f,
                                   .weight_decay = 0.1f,
                                   .decoupled = sweep == 2};
    float **b = f->buf;
    struct err e = ERR_INIT;
    int rc = sweep == 0 ? ops->sgd(f->be, b[BUF_W], b[BUF_G], b[BUF_M], FLAT_COUNT, &sgd, f->s, &e)
             : sweep < 3
                 ? ops->adam(f->be, b[BUF_W], b[BUF_G], b[BUF_M], b[BUF_V], FLAT_COUNT, &adam, f->s, &e)
                 : ops->lars(f->be, b[BUF_W], b[BUF_G], b[BUF_M], &f->lars, f->s, &e);

    CHECK(rc == 0 && ops->ema(f->be, b[BUF_AVERAGE], b[BUF_W], FLAT_COUNT, 0.75, f->s, &e) == 0,
          "%s on %s: %s", sweeps[sweep], f->be->ops->name, e.msg);
}

static void test_sweeps(void **state)
{
    struct backend **be = *state;
    float *host[2] = {xmalloc(FLAT_COUNT * sizeof(float)), xmalloc(FLAT_COUNT * sizeof(float))};

    for (int sweep = 0; sweep < 4; sweep++) {
        struct flat_pair f[2];
        for (int i = 0; i < 2; i++) {
            flat_init(&f[i], be[i]);
            flat_update(&f[i], sweep);
        }
        for (int b = 0; b < N_BUFS; b++) {
            for (int i = 0; i < 2; i++)
                assert_int_equal(
                    be[i]->ops->download(be[i], host[i], f[i].buf[b], FLAT_COUNT * sizeof(float), NULL), 0);
            double d = op_distance(host[1], host[0], DTYPE_F32, FLAT_COUNT);
            CHECK(d <= 1e-6, "%s: buffer %d differs by %.2e of its norm", sweeps[sweep], b, d);
        }
        flat_free(&f[0]);
        flat_free(&f[1]);
    }
    free(host[0]);
    free(host[1]);
}

/* ---- the rest ---- */

/* What was brought ahead arrives, in one piece and in many, and only what is asked for: other ranges and
 * sizes take the usual way, and what was forgotten does so, too. */
static void test_upload_ahead(void **state)
{
    enum { MOST = (20 << 20) + 12 };
    struct backend *be = ((struct backend **)*state)[1];
    const struct backend_ops *ops = be->ops;
    const size_t sizes[] = {4, 1000, MOST, 4096};
    struct err e = ERR_INIT;
    char *src = xmalloc(MOST), *back = xcalloc(1, MOST), *dst = ops->mem_alloc(be, MOST, &e);

    assert_non_null(dst);
    for (int i = 0; i < 16; i++) {
        const size_t n = sizes[i % 4];
        const bool forgets = i % 3 == 2;
        memset(src, 1 + 2 * i, n);
        assert_int_equal(ops->upload_ahead(be, src, n, &e), 0);
        if (i % 5 == 4) { /* something else comes first */
            assert_int_equal(ops->upload(be, dst, src + 1, n - 1, &e), 0);
            assert_int_equal(ops->upload(be, dst, src, n - 1, &e), 0);
        }
        if (forgets) {
            assert_int_equal(ops->upload_ahead(be, NULL, 0, &e), 0);
            memset(src, 2 + 2 * i, n);
        }
        assert_int_equal(ops->upload(be, dst, src, n, &e), 0);
        assert_int_equal(ops->upload_ahead(be, back, n, &e), 0); /* the next one, before that was copied */
        assert_int_equal(ops->upload_ahead(be, NULL, 0, &e), 0);
        assert_int_equal(ops->download(be, back, dst, n, &e), 0);
        assert_memory_equal(back, src, n);
    }
    ops->mem_free(be, dst);
    free(src);
    free(back);
}

/* What the CPU can do, the GPU can. */
static void test_no_operator_is_missing(void **state)
{
    struct backend **be = *state;

    for (int op = 0; op < OP_COUNT; op++) {
        const struct kernel *c = &be[0]->ops->kernels[op], *g = &be[1]->ops->kernels[op];
        CHECK(!c->forward || g->forward, "operator %s has no forward kernel on CUDA", op_table[op].name);
        CHECK(!c->backward || g->backward, "operator %s has no backward kernel on CUDA", op_table[op].name);
    }
}

static int setup(void **state)
{
    static struct backend *be[2];
    const struct cuda_config cfg = {.deterministic = true};
    struct err e = ERR_INIT;

    be[0] = cpu_backend_create(&(struct cpu_config){.n_threads = 1}, &e);
    be[1] = cuda_backend_create(&cfg, &e);
    *state = be;
    if (!be[1])
        fprintf(stderr, "%s\n", e.msg);
    return be[0] && be[1] ? 0 : -1;
}

static int teardown(void **state)
{
    struct backend **be = *state;

    be[0]->ops->destroy(be[0]);
    be[1]->ops->destroy(be[1]);
    return 0;
}

int main(void)
{
    struct err e = ERR_INIT;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_operator_is_missing),
        cmocka_unit_test(test_upload_ahead),
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_sweeps),
    };

    if (cuda_device_count(&e) == 0) {
        fprintf(stderr, "skipped: %s\n", e.msg);
        return SKIPPED;
    }
    return cmocka_run_group_tests(tests, setup, teardown);
}
