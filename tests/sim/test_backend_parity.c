/* test_backend_parity - the CUDA backend beside the CPU's on the shared table of cases: every operator
 * forward and backward, gradients defined and added to, in f32 and in bf16. On simulated GPUs here, on a real
 * one in tests/cuda.
 *
 * The optimisers' sweeps over flat ranges are compared as well.
 *
 * $BF_PARITY_SKIP names operators to leave out, with commas: under a sanitizer those that are the vendor's.
 * In bf16 the CPU computes in f32 (op_pair.h).
 */
#include "tests/ops/op_pair.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cuda/cuda.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SKIPPED = 77 };

static const double BF16_TOLERANCE = 2e-2;

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
            op_pair_check(*state, &op_cases[i], DTYPE_F32, false, 1e-5);
}

static void test_bf16(void **state)
{
    for (size_t i = 0; i < n_op_cases; i++) {
        if (skipped(op_cases[i].op))
            continue;
        op_pair_check(*state, &op_cases[i], DTYPE_BF16, false, BF16_TOLERANCE);
        if (op_takes_gathered(op_cases[i].op))
            op_pair_check(*state, &op_cases[i], DTYPE_BF16, true, BF16_TOLERANCE);
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
