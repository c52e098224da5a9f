/* test_verify - what counts as within the limits, in each mode. */
#include "tests/unit/cm.h"
#include "cli/verify.h"

#include <math.h>

/* Two world sizes of which everything was compared and nothing differs. */
static struct verify equal(bool bitwise, double tolerance)
{
    struct verify v = {.n_steps = 2, .bitwise = bitwise, .n_worlds = 2};

    verify_limits(bitwise, false, tolerance, &v.limits);
    v.worlds[0].kind[VERIFY_RESUMED].made = true;
    v.worlds[1].kind[VERIFY_SAME_WEIGHTS].made = v.worlds[1].kind[VERIFY_FROM_START].made = true;
    return v;
}

static bool within(bool bitwise, double tolerance, enum verify_kind k, enum verify_part p,
                   struct dump_deviation d)
{
    struct verify v = equal(bitwise, tolerance);

    assert_true(verify_within(&v));
    v.worlds[k != VERIFY_RESUMED].kind[k].part[p] = d;
    return verify_within(&v);
}

#define D(value) ((struct dump_deviation){value, value, "t", 9, 1})

static void bitwise(void **state)
{
    (void)state;
    /* -0 for 0: no deviation, and not the same bits. */
    for (int k = 0; k < VERIFY_KINDS; k++)
        for (int p = 0; p < VERIFY_PARTS; p++)
            assert_int_equal(within(true, -1, k, p, D(0)), k == VERIFY_SAME_WEIGHTS && p == VERIFY_WEIGHTS);
}

static void same_weights(void **state)
{
    (void)state;
    assert_true(within(false, -1, VERIFY_SAME_WEIGHTS, VERIFY_LOSS, D(9e-7)));
    assert_false(within(false, -1, VERIFY_SAME_WEIGHTS, VERIFY_LOSS, D(2e-6)));
    assert_true(within(false, -1, VERIFY_SAME_WEIGHTS, VERIFY_GRADIENT, D(9e-4)));
    assert_false(within(false, -1, VERIFY_SAME_WEIGHTS, VERIFY_GRADIENT, D(2e-3)));
    assert_false(within(false, 1, VERIFY_SAME_WEIGHTS, VERIFY_GRADIENT, D(2e-3))); /* not --tolerance's */
    assert_false(within(false, -1, VERIFY_SAME_WEIGHTS, VERIFY_GRADIENT, D(INFINITY)));
    assert_false(within(false, -1, VERIFY_SAME_WEIGHTS, VERIFY_GRADIENT, D(NAN)));
}

static void from_start(void **state)
{
    (void)state;
    const struct dump_deviation one_tensor = {.worst = 0.5, .overall = 1e-3, .elements_different = 1};

    assert_true(within(false, -1, VERIFY_FROM_START, VERIFY_LOSS, D(1e-2)));
    assert_false(within(false, -1, VERIFY_FROM_START, VERIFY_LOSS, D(3e-2)));
    assert_true(within(false, -1, VERIFY_FROM_START, VERIFY_GRADIENT, D(1)));
    assert_true(within(false, -1, VERIFY_FROM_START, VERIFY_WEIGHTS, one_tensor));
    assert_false(within(false, -1, VERIFY_FROM_START, VERIFY_WEIGHTS, D(3e-2)));
    assert_true(within(false, 4e-2, VERIFY_FROM_START, VERIFY_WEIGHTS, D(3e-2)));
    assert_true(within(false, 4e-2, VERIFY_FROM_START, VERIFY_LOSS, D(3e-2)));
    assert_false(within(false, 0, VERIFY_FROM_START, VERIFY_LOSS, D(1e-9)));
    assert_false(within(false, -1, VERIFY_RESUMED, VERIFY_WEIGHTS, D(0)));
}

/* What is rounded to 8 bits may move by one of them; a wrong exchange moves more, and bits are bits. */
static void bf16(void **state)
{
    struct verify_limits l, exact, plain;

    (void)state;
    verify_limits(false, true, -1, &l);
    verify_limits(false, false, -1, &plain);
    for (int p = 0; p < VERIFY_PARTS; p++)
        assert_int_equal(l.v[VERIFY_RESUMED][p].rule, VERIFY_SAME_BITS);
    assert_true(l.v[VERIFY_SAME_WEIGHTS][VERIFY_GRADIENT].at_most > 0x1p-6);
    assert_true(l.v[VERIFY_SAME_WEIGHTS][VERIFY_GRADIENT].at_most < 0.1);
    assert_true(l.v[VERIFY_SAME_WEIGHTS][VERIFY_LOSS].at_most >
                plain.v[VERIFY_SAME_WEIGHTS][VERIFY_LOSS].at_most);
    verify_limits(true, true, -1, &l);
    verify_limits(true, false, -1, &exact);
    for (int k = 0; k < VERIFY_KINDS; k++)
        for (int p = 0; p < VERIFY_PARTS; p++)
            assert_int_equal(l.v[k][p].rule, exact.v[k][p].rule);
    verify_limits(false, true, 0.5, &l);
    assert_true(l.v[VERIFY_FROM_START][VERIFY_WEIGHTS].at_most == 0.5);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(bitwise),
        cmocka_unit_test(same_weights),
        cmocka_unit_test(from_start),
        cmocka_unit_test(bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
