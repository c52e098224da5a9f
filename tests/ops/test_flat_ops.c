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

static void check_sgd(const struct flat_ops *ops, size_t n, bool nesterov)
{
    const struct sgd_args a = {.lr = 0.1f, .momentum = 0.9f, .weight_decay = 0.01f, .nesterov = nesterov};
    float *w = uniform(1, n), *g = uniform(2, n), *m = uniform(3, n);
    float *w0 = uniform(1, n), *g0 = uniform(2, n), *m0 = uniform(3, n);

    ops->sgd(w, g, m, n, &a);
    for (size_t i = 0; i < n; i++) {
        double grad = g0[i] + 0.01 * w0[i], mom = 0.9 * m0[i] + grad;
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
    struct backend *be = *state;

    check_sgd(be->ops->flat, COUNT, false);
    check_sgd(be->ops->flat, COUNT, true);
    check_sgd(be->ops->flat, 3, true);
    check_sgd(be->ops->flat, 0, false);
}

static void test_scale(void **state)
{
    struct backend *be = *state;
    float *x = uniform(1, COUNT), *x0 = uniform(1, COUNT);

    be->ops->flat->scale(x, COUNT, 0.375f);
    for (size_t i = 0; i < COUNT; i++)
        assert_true(x[i] == x0[i] * 0.375f);
    free(x);
    free(x0);
}

static void test_sumsq(void **state)
{
    struct backend *be = *state, *two;
    float *x = uniform(1, COUNT);
    double want = 0, got = be->ops->flat->sumsq(x, COUNT), again;

    for (size_t i = 0; i < COUNT; i++)
        want += (double)x[i] * x[i];
    assert_true(fabs(got - want) < 1e-12 * want);
    assert_true(be->ops->flat->sumsq(x, 0) == 0);
#ifdef BF_OPENMP
    two = cpu_backend_create(2, NULL);
#else
    two = cpu_backend_create(1, NULL);
#endif
    assert_non_null(two);
    again = two->ops->flat->sumsq(x, COUNT);
    assert_memory_equal(&got, &again, sizeof(got)); /* same bits with two threads */
    two->ops->destroy(two);
    x[COUNT - 1] = NAN;
    assert_true(isnan(be->ops->flat->sumsq(x, COUNT)));
    x[COUNT - 1] = INFINITY;
    assert_true(isinf(be->ops->flat->sumsq(x, COUNT)));
    free(x);
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
        cmocka_unit_test(test_sgd),
        cmocka_unit_test(test_scale),
        cmocka_unit_test(test_sumsq),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_vector_functions),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
