/* test_flat_ops - the sweeps over flat ranges against plain loops in fp64, and the vector functions against
 * libm. */
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/cpu_simd.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/ops/op_run.h"

enum { COUNT = 700001 }; /* several chunks, the last one short */

static float *uniform(uint32_t stream, size_t n)
{
    float *x = xmalloc(n * sizeof(*x));

    for (size_t i = 0; i < n; i++)
        x[i] = (float)op_uniform(1, stream, (int64_t)i);
    return x;
}

/* The gradient's norm is taken as 3; max_norm 0: no clipping. */
static void check_sgd(struct backend *be, size_t n, bool nesterov, double max_norm)
{
    const struct sgd_args a = {
        .lr_scale = 0.5, .momentum = 0.9f, .weight_decay = 0.01f, .nesterov = nesterov};
    const struct step_scalars s = {.lr = 0.2, .max_grad_norm = max_norm, .grad_norm = 3};
    const double clip = max_norm > 0 ? max_norm / (3 + 1e-6) : 1;
    float *w = uniform(1, n), *g = uniform(2, n), *m = uniform(3, n);
    float *w0 = uniform(1, n), *g0 = uniform(2, n), *m0 = uniform(3, n);

    assert_int_equal(be->ops->flat->sgd(be, w, g, m, n, &a, &s, NULL), 0);
    for (size_t i = 0; i < n; i++) {
        double grad = clip * g0[i] + 0.01 * w0[i], mom = 0.9 * m0[i] + grad;
        double step = nesterov ? grad + 0.9 * mom : mom;

        CHECK(fabs(g[i] - grad) < 1e-6 && fabs(m[i] - mom) < 1e-6 && fabs(w[i] - (w0[i] - 0.1 * step)) < 1e-6,
              "sgd%s: element %zu of %zu", nesterov ? " with nesterov" : "", i, n);
    }
    free(w);
    free(g);
    free(m);
    free(w0);
    free(g0);
    free(m0);
}

static void test_sgd(void **state)
{
    check_sgd(*state, COUNT, false, 0);
    check_sgd(*state, COUNT, true, 0);
    check_sgd(*state, COUNT, true, 1.5);
    check_sgd(*state, 3, true, 0);
    check_sgd(*state, 0, false, 0);
}

/* The number of threads is the process's: the backend that was made last says it. */
static void set_threads(int n)
{
#ifndef BF_OPENMP
    n = 1;
#endif
    struct backend *be = cpu_backend_create(&(struct cpu_config){.n_threads = n}, NULL);

    assert_non_null(be);
    be->ops->destroy(be);
}

static bool is_near(float got, double want)
{
    return fabs(got - want) < 1e-6 + 1e-6 * fabs(want);
}

/* update: its number; max_norm as above. */
static void check_adam(struct backend *be, size_t n, bool decoupled, double update, double beta1,
                       double max_norm)
{
    const struct adam_args a = {.lr_scale = 0.5,
                                .beta1 = beta1,
                                .beta2 = 0.999,
                                .eps = 1e-4f,
                                .weight_decay = 0.25f,
                                .decoupled = decoupled};
    const struct step_scalars s = {.lr = 0.2, .update = update, .max_grad_norm = max_norm, .grad_norm = 3};
    const double clip = max_norm > 0 ? max_norm / (3 + 1e-6) : 1, lr = 0.1;
    float *w = uniform(1, n), *g = uniform(2, n), *m = uniform(3, n), *v = uniform(4, n);
    float *w0 = uniform(1, n), *g0 = uniform(2, n), *m0 = uniform(3, n), *v0 = uniform(4, n);

    for (size_t i = 0; i < n; i++)
        v[i] = v0[i] = fabsf(v0[i]); /* a mean of squares */
    assert_int_equal(be->ops->flat->adam(be, w, g, m, v, n, &a, &s, NULL), 0);
    for (size_t i = 0; i < n; i++) {
        double d = clip * g0[i] + (decoupled ? 0 : 0.25 * w0[i]);
        double m1 = beta1 * m0[i] + (1 - beta1) * d, v1 = 0.999 * v0[i] + 0.001 * d * d;
        double mean = m1 / (1 - pow(beta1, update)), square = v1 / (1 - pow(0.999, update));
        double w1 = w0[i] - (decoupled ? lr * 0.25 * w0[i] : 0) - lr * mean / (sqrt(square) + 1e-4);

        CHECK(is_near(m[i], m1) && is_near(v[i], v1) && is_near(w[i], w1) && g[i] == g0[i],
              "adam%s: element %zu of %zu after update %g: %g, not %g", decoupled ? "w" : "", i, n, update,
              (double)w[i], w1);
    }
    float *all[] = {w, g, m, v, w0, g0, m0, v0};
    for (int i = 0; i < 8; i++)
        free(all[i]);
}

static void test_adam(void **state)
{
    check_adam(*state, COUNT, true, 1, 0.9, 0);
    check_adam(*state, COUNT, false, 7, 0.9, 1.5);
    check_adam(*state, COUNT, true, 1e6, 0.9, 0);
    check_adam(*state, 3, true, 2, 0, 0); /* no first moment */
    check_adam(*state, 0, true, 1, 0.9, 0);
}

/* Adapting ones, short and of several chunks, with a gap between; one that does not adapt; zero weights; zero
 * gradients; none. */
static const struct flat_tensor tensors[] = {
    {.first = 0, .count = 5, .lr_scale = 1, .weight_decay = 0.01f, .adapts = 1},
    {.first = 16, .count = 2 * FLAT_CHUNK + 77, .lr_scale = 0.5, .weight_decay = 0.02f, .adapts = 1},
    {.first = 40000, .count = 1000, .lr_scale = 1},
    {.first = 41008, .count = 64, .lr_scale = 1, .weight_decay = 0.01f, .adapts = 1},
    {.first = 41072, .count = 64, .lr_scale = 1, .weight_decay = 0.01f, .adapts = 1},
    {.first = 41136, .lr_scale = 1, .adapts = 1},
};
enum { N_TENSORS = sizeof tensors / sizeof *tensors, LARS_COUNT = 41200, MAX_CHUNKS = 16 };

static void lars_data(float **w, float **g, float **m)
{
    *w = uniform(1, LARS_COUNT);
    *g = uniform(2, LARS_COUNT);
    *m = uniform(3, LARS_COUNT);
    for (int i = 0; i < 64; i++)
        (*w)[41008 + i] = (*g)[41072 + i] = 0;
}

static void run_lars(struct backend *be, float *w, const float *g, float *m, bool nesterov, double max_norm)
{
    struct flat_tensor table[N_TENSORS];
    struct flat_chunk chunks[MAX_CHUNKS];
    double partials[2 * MAX_CHUNKS];
    float trust[N_TENSORS];
    struct lars_args a = {.tensors = table,
                          .chunks = chunks,
                          .n_tensors = N_TENSORS,
                          .partials = partials,
                          .trust = trust,
                          .coefficient = 0.02,
                          .eps = 1e-3,
                          .momentum = 0.9f,
                          .nesterov = nesterov};
    const struct step_scalars s = {.lr = 0.2, .max_grad_norm = max_norm, .grad_norm = 3};

    memcpy(table, tensors, sizeof table);
    a.n_chunks = flat_chunks(table, N_TENSORS, NULL);
    assert_int_equal(a.n_chunks, 7);
    assert_int_equal(flat_chunks(table, N_TENSORS, chunks), 7);
    assert_int_equal(be->ops->flat->lars(be, w, g, m, &a, &s, NULL), 0);
}

static double norm(const float *x, int64_t n)
{
    double sum = 0;

    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return sqrt(sum);
}

static void check_lars(struct backend *be, bool nesterov, double max_norm)
{
    const double clip = max_norm > 0 ? max_norm / (3 + 1e-6) : 1;
    float *w, *g, *m, *w0, *g0, *m0;

    lars_data(&w, &g, &m);
    lars_data(&w0, &g0, &m0);
    run_lars(be, w, g, m, nesterov, max_norm);
    for (int k = 0; k < N_TENSORS; k++) {
        const struct flat_tensor *t = &tensors[k];
        double ww = norm(w0 + t->first, t->count), gg = clip * norm(g0 + t->first, t->count),
               wd = t->weight_decay;
        double trust = t->adapts && ww > 0 && gg > 0 ? 0.02 * ww / (gg + wd * ww + 1e-3) : 1;
        for (int64_t i = t->first; i < t->first + t->count; i++) {
            double d = trust * (clip * g0[i] + wd * w0[i]), m1 = 0.9 * m0[i] + d;
            double w1 = w0[i] - 0.2 * t->lr_scale * (nesterov ? d + 0.9 * m1 : m1);
            CHECK(is_near(m[i], m1) && is_near(w[i], w1), "lars: element %lld: %g, not %g", (long long)i,
                  (double)w[i], w1);
            w0[i] = w[i];
            m0[i] = m[i];
        }
    }
    assert_memory_equal(w, w0, LARS_COUNT * sizeof *w); /* nothing between tensors was touched */
    assert_memory_equal(m, m0, LARS_COUNT * sizeof *m);
    assert_memory_equal(g, g0, LARS_COUNT * sizeof *g);
    float *all[] = {w, g, m, w0, g0, m0};
    for (int i = 0; i < 6; i++)
        free(all[i]);
}

static void test_lars(void **state)
{
    float *w, *g, *m, *w2, *g2, *m2;

    check_lars(*state, false, 0);
    check_lars(*state, true, 1.5);
    lars_data(&w, &g, &m);
    lars_data(&w2, &g2, &m2);
    run_lars(*state, w, g, m, true, 0);
    set_threads(2);
    run_lars(*state, w2, g2, m2, true, 0);
    set_threads(1);
    assert_memory_equal(w, w2, LARS_COUNT * sizeof *w); /* same bits with two threads */
    float *all[] = {w, g, m, w2, g2, m2};
    for (int i = 0; i < 6; i++)
        free(all[i]);
}

static void test_ema(void **state)
{
    struct backend *be = *state;
    const struct step_scalars s = {.lr = 1};

    for (size_t n = 0; n <= COUNT; n += COUNT) {
        float *w = uniform(1, n), *x = uniform(2, n), *x0 = uniform(2, n);
        assert_int_equal(be->ops->flat->ema(be, x, w, n, 0.99, &s, NULL), 0);
        for (size_t i = 0; i < n; i++)
            CHECK(is_near(x[i], 0.99 * x0[i] + 0.01 * w[i]), "ema: element %zu", i);
        memcpy(x, w, n * sizeof *x);
        assert_int_equal(be->ops->flat->ema(be, x, w, n, 0.9999, &s, NULL), 0);
        assert_memory_equal(x, w, n * sizeof *x); /* the average of what does not change */
        free(w);
        free(x);
        free(x0);
    }
}

/* A step that is not finite on any rank leaves everything as it was. */
static void test_updates_skip(void **state)
{
    struct backend *be = *state;
    const struct flat_ops *f = be->ops->flat;
    const struct sgd_args sgd = {.lr_scale = 1, .momentum = 0.9f};
    const struct adam_args adam = {.lr_scale = 1, .beta1 = 0.9, .beta2 = 0.9, .eps = 1};
    const struct step_scalars bad[] = {{.lr = 1, .update = 1, .loss_not_finite = 1},
                                       {.lr = 1, .update = 1, .grad_not_finite = 3}};
    struct flat_tensor t = {.count = 1, .lr_scale = 1, .adapts = 1};
    struct flat_chunk chunk;
    double partials[2];
    float w = 1, g = 2, m = 3, v = 4, trust;
    const struct lars_args lars = {.tensors = &t,
                                   .chunks = &chunk,
                                   .n_tensors = 1,
                                   .n_chunks = 1,
                                   .partials = partials,
                                   .trust = &trust};

    assert_int_equal(flat_chunks(&t, 1, &chunk), 1);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(f->sgd(be, &w, &g, &m, 1, &sgd, &bad[i], NULL), 0);
        assert_int_equal(f->adam(be, &w, &g, &m, &v, 1, &adam, &bad[i], NULL), 0);
        assert_int_equal(f->lars(be, &w, &g, &m, &lars, &bad[i], NULL), 0);
        assert_int_equal(f->ema(be, &m, &w, 1, 0.5, &bad[i], NULL), 0);
        assert_true(w == 1 && g == 2 && m == 3 && v == 4);
    }
}

static double sumsq(struct backend *be, const float *x, size_t n)
{
    double out;

    assert_int_equal(be->ops->flat->sumsq(be, x, n, &out, NULL), 0);
    return out;
}

static void test_sumsq(void **state)
{
    struct backend *be = *state;
    float *x = uniform(1, COUNT);
    double want = 0, got = sumsq(be, x, COUNT), again;

    for (size_t i = 0; i < COUNT; i++)
        want += (double)x[i] * x[i];
    assert_true(fabs(got - want) < 1e-12 * want);
    assert_true(sumsq(be, x, 0) == 0);
    set_threads(2);
    again = sumsq(be, x, COUNT);
    set_threads(1);
    assert_memory_equal(&got, &again, sizeof(got)); /* same bits with two threads */
    x[COUNT - 1] = NAN;
    assert_true(isnan(sumsq(be, x, COUNT)));
    x[COUNT - 1] = INFINITY;
    assert_true(isinf(sumsq(be, x, COUNT)));
    free(x);
}

static void test_measure(void **state)
{
    struct backend *be = *state;
    float g[3] = {2, -1, 2};
    double loss = 0.5;
    struct step_scalars s = {.lr = 7};

    assert_int_equal(be->ops->flat->measure(be, g, 3, &loss, &s, NULL), 0);
    assert_true(s.grad_norm == 3 && s.loss == 0.5 && s.loss_not_finite == 0 && s.grad_not_finite == 0 &&
                s.lr == 7);
    g[1] = INFINITY;
    loss = NAN;
    assert_int_equal(be->ops->flat->measure(be, g, 3, &loss, &s, NULL), 0);
    assert_true(s.loss_not_finite == 1 && s.grad_not_finite == 1);
    assert_int_equal(be->ops->flat->measure(be, g, 1, NULL, &s, NULL), 0);
    assert_true(s.loss == 0 && s.loss_not_finite == 0);
}

static void test_memory(void **state)
{
    struct backend *be = *state;
    const double a[3] = {1, 2, 3}, want[3] = {2, 4, 6};
    const int32_t i[2] = {7, -9}, want_i[2] = {14, -18};
    char *p = be->ops->mem_alloc(be, 100, NULL), *q = be->ops->mem_alloc(be, 0, NULL);
    struct err e = ERR_INIT;

    assert_non_null(p);
    assert_non_null(q);
    assert_int_equal((uintptr_t)p % TENSOR_ALIGN_BYTES, 0);
    assert_int_equal(be->ops->upload(be, p, a, sizeof(a), NULL), 0);
    assert_int_equal(be->ops->accumulate(be, p, a, 3, DTYPE_F64, NULL), 0);
    assert_memory_equal(p, want, sizeof(want));
    assert_int_equal(be->ops->upload(be, p, i, sizeof(i), NULL), 0);
    assert_int_equal(be->ops->accumulate(be, p, i, 2, DTYPE_I32, NULL), 0);
    assert_memory_equal(p, want_i, sizeof(want_i));
    be->ops->poison(be, p, sizeof(a));
    assert_true(isnan(((double *)p)[2]) && isnan(((float *)p)[5]));
    assert_int_equal(be->ops->zero(be, p, 100, NULL), 0);
    assert_int_equal(p[99], 0);
    assert_null(be->ops->mem_alloc(be, SIZE_MAX, &e));
    assert_non_null(strstr(e.msg, "out of memory"));
    be->ops->mem_free(be, p);
    be->ops->mem_free(be, q);
    be->ops->mem_free(be, NULL);
}

static void test_vector_functions(void **state)
{
    (void)state;
    for (float x = -87.3f; x < 88; x += 0.0037f)
        CHECK(fabs(simd_expf(x) / exp((double)x) - 1) < 3e-7, "exp(%g) = %g", (double)x,
              (double)simd_expf(x));
    assert_true(simd_expf(0) == 1);
    assert_true(simd_expf(-100) == 0 && simd_expf(-INFINITY) == 0);
    assert_true(isnan(simd_expf(NAN)));
    for (float x = -6; x < 6; x += 0.0007f)
        CHECK(fabs(simd_erff(x) - erf((double)x)) < 5e-7, "erf(%g) = %g", (double)x, (double)simd_erff(x));
    assert_true(isnan(simd_erff(NAN)));
}

static int setup(void **state)
{
    *state = cpu_backend_create(&(struct cpu_config){.n_threads = 1}, NULL);
    return *state ? 0 : -1;
}

static int teardown(void **state)
{
    struct backend *be = *state;

    be->ops->destroy(be);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adam),
        cmocka_unit_test(test_lars),
        cmocka_unit_test(test_ema),
        cmocka_unit_test(test_sgd),
        cmocka_unit_test(test_updates_skip),
        cmocka_unit_test(test_sumsq),
        cmocka_unit_test(test_measure),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_vector_functions),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
