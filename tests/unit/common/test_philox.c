/* test_philox - known answers of Philox4x32-10 (Random123's kat_vectors), thresholds and ranges. */
#include "tests/unit/cm.h"
#include "common/philox.h"

static void expect(struct philox_block b, uint32_t a, uint32_t c, uint32_t d, uint32_t f)
{
    assert_int_equal(b.v[0], a);
    assert_int_equal(b.v[1], c);
    assert_int_equal(b.v[2], d);
    assert_int_equal(b.v[3], f);
}

static void test_known_answers(void **state)
{
    (void)state;
    expect(philox((struct philox_key){0, 0}, 0, 0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8);
    expect(philox((struct philox_key){~0u, ~0u}, ~0u, ~0u, ~0u, ~0u), 0x408f276d, 0x41c83b0e, 0xa20bc7c6,
           0x6d5451fd);
    expect(philox((struct philox_key){0xa4093822, 0x299f31d0}, 0x243f6a88, 0x85a308d3, 0x13198a2e,
                  0x03707344),
           0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1);
}

static void test_ranges(void **state)
{
    (void)state;
    assert_int_equal(philox_threshold(0), 0);
    assert_int_equal(philox_threshold(1), ~0u);
    assert_int_equal(philox_threshold(0.5), 0x80000000u);
    assert_int_equal(philox_below(~0u, 7), 6);
    assert_int_equal(philox_below(0, 7), 0);
    assert_true(philox_unit(~0u) < 1);
    assert_true(philox_stream("a.dropout1") != philox_stream("a.dropout2"));
}

/* Each of 9 values is drawn about as often as any other: chi-square below the 99.99 % quantile of 8 degrees.
 */
static void test_below_is_uniform(void **state)
{
    (void)state;
    enum { N = 90000, K = 9 };
    int count[K] = {0};
    double chi2 = 0;

    for (uint32_t i = 0; i < N; i++)
        count[philox_below(philox(philox_make_key(5, 9), i / 4, 0, 0, 0).v[i % 4], K)]++;
    for (int k = 0; k < K; k++)
        chi2 += (count[k] - N / K) * (double)(count[k] - N / K) / (N / K);
    assert_true(chi2 < 31.8);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_below_is_uniform),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
