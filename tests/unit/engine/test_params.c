/* test_params - layout in backward order, initial values that depend on nothing but seed and name. */
#include "tests/unit/cm.h"
#include "tests/unit/engine/toy_backend.h"

static const struct init normal = {INIT_NORMAL, 0.5}, uniform = {INIT_UNIFORM, 0.25}, one = {INIT_CONST, 1};

static void test_layout(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct params *ps = params_create(&toy_backend);
    struct param *a = params_declare(ps, "a", PARAM_WEIGHT, shape1(5), normal, &e);
    struct param *m = params_declare(ps, "m", PARAM_BUFFER, shape1(3), one, &e);
    struct param *b = params_declare(ps, "b", PARAM_WEIGHT, shape2(4, 5), uniform, &e);

    assert_int_equal(params_finalize(ps, 7, &e), 0);
    assert_int_equal(b->offset, 0); /* the last declared comes first */
    assert_int_equal(a->offset, 32);
    assert_int_equal(ps->n_weights, 48);
    assert_ptr_equal(a->grad, ps->grads + 32);
    assert_null(m->grad);
    for (int i = 5; i < 16; i++)
        assert_float_equal(a->value[i], 0, 0); /* padding */
    assert_null(params_declare(ps, "late", PARAM_WEIGHT, shape1(1), one, &e));
    assert_non_null(strstr(e.msg, "late is unknown to the training graph"));
    params_destroy(ps);
}

static void test_values_depend_on_seed_and_name(void **state)
{
    (void)state;
    assert_float_equal(init_value(normal, 7, "a", 3), init_value(normal, 7, "a", 3), 0);
    assert_true(init_value(normal, 7, "a", 3) != init_value(normal, 8, "a", 3));
    assert_true(init_value(normal, 7, "a", 3) != init_value(normal, 7, "b", 3));
    assert_true(init_value(normal, 7, "a", 3) != init_value(normal, 7, "a", 4));
}

static void test_distributions(void **state)
{
    (void)state;
    enum { N = 100000 };
    double s = 0, sq = 0, su = 0, squ = 0;

    for (int i = 0; i < N; i++) {
        double v = init_value(normal, 1, "n", i), u = init_value(uniform, 1, "u", i);
        s += v;
        sq += v * v;
        su += u;
        squ += u * u;
        assert_true(fabs(u) <= 0.25);
    }
    /* four standard errors */
    assert_true(fabs(s / N) < 4 * 0.5 / sqrt(N));
    assert_true(fabs(sq / N - 0.25) < 4 * 0.25 * sqrt(2.0 / N));
    assert_true(fabs(su / N) < 4 * 0.25 / sqrt(3.0 * N));
    assert_true(fabs(squ / N - 0.0625 / 3) < 4 * 0.0625 / 3 * sqrt(0.8 / N));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_values_depend_on_seed_and_name),
        cmocka_unit_test(test_distributions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
