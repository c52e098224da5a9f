/* test_groups - many, medium and few: both rules, empty groups, classes without samples. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <string.h>
#include "worker/tasks/groups.h"

static void by_counts(void **state)
{
    static const int32_t counts[] = {500, 101, 100, 20, 19, 5};
    static const double acc[] = {1, 0.5, 0.25, 0.75, 0, 0.5};
    struct groups g;

    (void)state;
    groups_init(&g, counts, 6, 100, 20);
    assert_string_equal(g.rule, "counts");
    assert_int_equal(g.sizes[GROUP_MANY], 2);
    assert_int_equal(g.sizes[GROUP_MEDIUM], 2);
    assert_int_equal(g.sizes[GROUP_FEW], 2);
    assert_true(groups_mean(&g, GROUP_MANY, acc) == 0.75);
    assert_true(groups_mean(&g, GROUP_MEDIUM, acc) == 0.5);
    assert_true(groups_mean(&g, GROUP_FEW, acc) == 0.25);
    groups_free(&g);
}

static void empty_group_is_undefined(void **state)
{
    static const int32_t counts[] = {500, 10};
    static const double acc[] = {1, 0.5};
    struct groups g;

    (void)state;
    groups_init(&g, counts, 2, 100, 20);
    assert_string_equal(g.rule, "counts");
    assert_true(isnan(groups_mean(&g, GROUP_MEDIUM, acc)));
    groups_free(&g);
}

static void check_thirds(int k, int many, int medium, int few)
{
    int32_t counts[16];
    struct groups g;

    for (int c = 0; c < k; c++)
        counts[c] = 1000 - c;
    groups_init(&g, counts, k, 100, 20);
    assert_string_equal(g.rule, "thirds");
    assert_non_null(strstr(g.text, "thirds"));
    assert_int_equal(g.sizes[GROUP_MANY], many);
    assert_int_equal(g.sizes[GROUP_MEDIUM], medium);
    assert_int_equal(g.sizes[GROUP_FEW], few);
    for (int c = 1; c < k; c++)
        assert_true(g.of[c] >= g.of[c - 1]);
    groups_free(&g);
}

static void by_thirds(void **state)
{
    (void)state;
    check_thirds(10, 4, 3, 3);
    check_thirds(9, 3, 3, 3);
    check_thirds(8, 3, 3, 2);
    check_thirds(2, 1, 1, 0);
    check_thirds(1, 1, 0, 0);
}

static void classes_without_samples_are_left_out(void **state)
{
    static const int32_t counts[] = {500, 400, 10};
    const double acc[] = {NAN, 0.5, NAN};
    struct groups g;

    (void)state;
    groups_init(&g, counts, 3, 100, 20);
    assert_true(groups_mean(&g, GROUP_MANY, acc) == 0.5);
    assert_true(isnan(groups_mean(&g, GROUP_FEW, acc)));
    groups_free(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_counts),
        cmocka_unit_test(empty_group_is_undefined),
        cmocka_unit_test(by_thirds),
        cmocka_unit_test(classes_without_samples_are_left_out),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
