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

/* A step that is not finite on any rank leaves everything as it was. */
static void test_sgd_skips(void **state)
{
    struct backend *be = *state;
    const struct sgd_args a = {.lr_scale = 1, .momentum = 0.9f};
    const struct step_scalars bad[] = {{.lr = 1, .loss_not_finite = 1}, {.lr = 1, .grad_not_finite = 3}};
    float w = 1, g = 2, m = 3;

    for (int i = 0; i < 2; i++) {
        assert_int_equal(be->ops->flat->sgd(be, &w, &g, &m, 1, &a, &bad[i], NULL), 0);
        assert_true(w == 1 && g == 2 && m == 3);
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
    struct backend *be = *state, *two;
    float *x = uniform(1, COUNT);
    double want = 0, got = sumsq(be, x, COUNT), again;

    for (size_t i = 0; i < COUNT; i++)
        want += (double)x[i] * x[i];
    assert_true(fabs(got - want) < 1e-12 * want);
    assert_true(sumsq(be, x, 0) == 0);
#ifdef BF_OPENMP
    two = cpu_backend_create(2, NULL);
#else
    two = cpu_backend_create(1, NULL);
#endif
    assert_non_null(two);
    again = sumsq(two, x, COUNT);
    assert_memory_equal(&got, &again, sizeof(got)); /* same bits with two threads */
    two->ops->destroy(two);
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
    *state = cpu_backend_create(1, NULL);
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
        cmocka_unit_test(test_sgd),    cmocka_unit_test(test_sgd_skips),
        cmocka_unit_test(test_sumsq),  cmocka_unit_test(test_measure),
        cmocka_unit_test(test_memory), cmocka_unit_test(test_vector_functions),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
