/* test_draws - many draws at a time are those of philox.h, wherever a range begins and however long it is. */
#include "tests/ops/op_run.h"
#include "worker/backend/cpu/cpu_draws.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { SUB = 3, STREAM = 0xBEEF };

static const struct step_ctx step = {0x123456789ABCDEFull, 0xFFFFFFF1u};

static bool kept(float p, uint32_t sample, int64_t position)
{
    const struct philox_block b = philox(philox_make_key(step.seed, STREAM), (uint32_t)(position / 4), sample,
                                         (uint32_t)step.step, SUB);

    return b.v[position % 4] >= philox_threshold((double)p);
}

static void check_range(float p, int64_t first, int n)
{
    const struct dropout_site site = dropout_site_make(&step, STREAM, p);
    const uint32_t samples[] = {0, 1, 77, 0x80000000u, 0xFFFFFFFFu};
    struct draws d;

    draws_init(&d, &site, SUB, first, n);
    for (size_t k = 0; k < sizeof(samples) / sizeof(*samples); k++) {
        uint32_t bits[DRAWS_BLOCKS];
        float keep[DRAWS_MAX];

        draws_keep_bits(&d, samples[k], bits);
        dropout_keep(&site, samples[k], SUB, first, n, keep);
        for (int j = 0; j < n; j++) {
            const bool want = kept(p, samples[k], first + j);

            CHECK((bits[j / 32] >> j % 32 & 1) == want, "position %lld of %d from %lld, p %g",
                  (long long)(first + j), n, (long long)first, (double)p);
            CHECK(keep[j] == (want ? site.scale : 0), "multiplier %g at %lld", (double)keep[j],
                  (long long)(first + j));
        }
    }
}

static void test_ranges(void **state)
{
    const float rates[] = {0, 0.1f, 0.5f, 0.999f, 1};
    const int lengths[] = {1, 3, 4, 5, 28, 29, 31, 32, 33, 61, 64, 100, 253, 255, 256};

    (void)state;
    for (size_t r = 0; r < sizeof(rates) / sizeof(*rates); r++)
        for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++)
            for (int64_t first = 0; first < 6; first++)
                check_range(rates[r], first, lengths[i]);
    check_range(0.5f, 1000003, 256);
    check_range(0.5f, ((int64_t)1 << 34) - 300, 256); /* the last blocks that a counter can name */
}

/* Longer than one range, from an odd position. */
static void test_long_row(void **state)
{
    const struct dropout_site site = dropout_site_make(&step, STREAM, 0.3f);
    float keep[1001];

    (void)state;
    dropout_keep(&site, 9, SUB, 5, 1001, keep);
    for (int j = 0; j < 1001; j++)
        CHECK((keep[j] > 0) == kept(0.3f, 9, 5 + j), "position %d", 5 + j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_long_row),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
