/* test_sampler - the order of samples: golden permutations, no sample twice, slices that tile, no dependence
 * on ranks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "worker/data/sampler.h"

static struct sampler *make(uint64_t seed, int32_t n, int64_t batch_size)
{
    struct err e = ERR_INIT;
    struct sampler *s = sampler_create(seed, n, batch_size, &e);

    if (!s)
        fail_msg("%s", e.msg);
    return s;
}

static void test_rows_of_rank(void **state)
{
    (void)state;
    for (int64_t n = 0; n <= 40; n++) {
        for (int size = 1; size <= 9; size++) {
            int64_t at = 0, least = INT64_MAX, most = 0;
            for (int rank = 0; rank < size; rank++) {
                int64_t first, count;
                rows_of_rank(n, rank, size, &first, &count);
                assert_int_equal(first, at);
                at += count;
                least = count < least ? count : least;
                most = count > most ? count : most;
            }
            assert_int_equal(at, n);
            assert_true(most - least <= 1);
            assert_int_equal(most, rows_of_rank_max(n, 0, size));
        }
    }
    int64_t first, count;
    rows_of_rank(7, 1, 2, &first, &count); /* floor(7 / 2) = 3 */
    assert_int_equal(first, 3);
    assert_int_equal(count, 4);
}

static void test_eval_batches(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 60; n++) {
        for (int64_t batch = 1; batch <= 65; batch++) {
            int64_t at = 0, least = INT64_MAX, most = 0, k = eval_n_batches(n, batch);
            assert_int_equal(k, n / batch + (n % batch != 0));
            for (int64_t i = 0; i < k; i++) {
                int64_t first, count;
                eval_batches(n, batch, i, &first, &count);
                assert_int_equal(first, at);
                at += count;
                least = count < least ? count : least;
                most = count > most ? count : most;
            }
            assert_int_equal(at, n);
            assert_true(least >= 1 && most <= batch && most - least <= 1);
        }
    }
}

/* Computed by an independent implementation of Philox4x32-10 and of the draws that sampler.c describes. */
static void test_golden(void **state)
{
    static const struct {
        uint64_t seed;
        int64_t epoch;
        int32_t perm[10];
    } rows[] = {
        {0, 0, {1, 4, 6, 8, 0, 9, 7, 3, 2, 5}},
        {0, 1, {4, 9, 3, 5, 8, 7, 0, 2, 6, 1}},
        {(1ull << 40) + 7, (1ll << 33) + 1, {3, 4, 7, 9, 8, 1, 2, 5, 6, 0}},
    };
    static const int32_t head[5] = {57, 254, 753, 798, 251}, tail[5] = {955, 297, 430, 770, 892};
    int32_t got[1000];

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sampler *s = make(rows[i].seed, 10, 10);
        sampler_batch(s, rows[i].epoch, 0, 10, got);
        assert_memory_equal(got, rows[i].perm, sizeof rows[i].perm);
        sampler_destroy(s);
    }
    struct sampler *s = make(3, 1000, 1000);
    sampler_batch(s, 2, 0, 1000, got);
    assert_memory_equal(got, head, sizeof head);
    assert_memory_equal(got + 995, tail, sizeof tail);
    sampler_destroy(s);
}

/* Each epoch: every sample at most once, and only the n mod batch_size left over are missing. */
static void test_no_repeats(void **state)
{
    enum { N = 103, BATCH = 10 };
    struct sampler *s = make(9, N, BATCH);
    int missed_ever[N] = {0}, n_missed_ever = 0;

    (void)state;
    assert_int_equal(sampler_steps_per_epoch(s), 10);
    for (int64_t epoch = 0; epoch < 40; epoch++) {
        int seen[N] = {0}, missing = 0;
        for (int64_t b = 0; b < 10; b++) {
            int32_t got[BATCH];
            struct sampler_position at = sampler_position(s, epoch * 10 + b);
            assert_int_equal(at.epoch, epoch);
            assert_int_equal(at.batch, b);
            sampler_batch(s, epoch * 10 + b, 0, BATCH, got);
            for (int i = 0; i < BATCH; i++) {
                assert_in_range(got[i], 0, N - 1);
                assert_int_equal(seen[got[i]]++, 0);
            }
        }
        for (int i = 0; i < N; i++) {
            missing += !seen[i];
            missed_ever[i] |= !seen[i];
        }
        assert_int_equal(missing, N % BATCH);
    }
    for (int i = 0; i < N; i++)
        n_missed_ever += missed_ever[i];
    assert_true(n_missed_ever > 30); /* it is not always the same three that are dropped */
    sampler_destroy(s);
}

/* The union over ranks, in rank order, is the global batch, whatever the number of ranks. */
static void test_union_of_ranks(void **state)
{
    static const int sizes[] = {1, 2, 3, 4, 5, 8, 16};
    enum { N = 97, BATCH = 13 }; /* 13 rows: unequal slices for all but one rank; empty ones for 16 */

    (void)state;
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        struct sampler *whole = make(4, N, BATCH), *mine = make(4, N, BATCH);
        for (int64_t step = 0; step < 30; step++) {
            int32_t want[BATCH], got[BATCH];
            sampler_batch(whole, step, 0, BATCH, want);
            for (int rank = 0; rank < sizes[k]; rank++) {
                int64_t first, count;
                rows_of_rank(BATCH, rank, sizes[k], &first, &count);
                sampler_batch(mine, step, first, count, got + first);
            }
            assert_memory_equal(got, want, sizeof want);
        }
        sampler_destroy(whole);
        sampler_destroy(mine);
    }
}

/* The order of an epoch is one sequence: another batch size only cuts it elsewhere. */
static void test_batch_size_only_cuts(void **state)
{
    struct sampler *small = make(4, 96, 8), *large = make(4, 96, 32);
    int32_t a[32], b[32];

    (void)state;
    for (int64_t step = 0; step < 9; step++) {
        sampler_batch(large, step, 0, 32, a);
        for (int64_t i = 0; i < 4; i++)
            sampler_batch(small, step * 4 + i, 0, 8, b + 8 * i);
        assert_memory_equal(a, b, sizeof a);
    }
    sampler_destroy(small);
    sampler_destroy(large);
}

static void test_random_access(void **state)
{
    static const int64_t steps[] = {25, 3, 24, 0, 1000003, 25, 7, 3};
    struct sampler *s = make(11, 50, 6);
    int32_t a[6], b[6];

    (void)state;
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        struct sampler *fresh = make(11, 50, 6);
        sampler_batch(s, steps[i], 0, 6, a);
        sampler_batch(fresh, steps[i], 0, 6, b);
        assert_memory_equal(a, b, sizeof a);
        sampler_destroy(fresh);
    }
    sampler_destroy(s);
}

/* All 120 orders of 5 samples over 12000 epochs, and over as many seeds: chi-square with 119 degrees of
 * freedom stays below 180 (p = 2e-4; the draws are fixed, so this either holds or does not). */
static void test_uniform(void **state)
{
    (void)state;
    for (int by_seed = 0; by_seed < 2; by_seed++) {
        int counts[3125] = {0}, n_orders = 0;
        double chi2 = 0;
        struct sampler *s = make(1, 5, 5);
        for (int i = 0; i < 12000; i++) {
            int32_t p[5];
            if (by_seed) {
                sampler_destroy(s);
                s = make((uint64_t)i, 5, 5);
            }
            sampler_batch(s, by_seed ? 0 : i, 0, 5, p);
            counts[(((p[0] * 5 + p[1]) * 5 + p[2]) * 5 + p[3]) * 5 + p[4]]++;
        }
        for (int i = 0; i < 3125; i++) {
            n_orders += counts[i] > 0;
            if (counts[i])
                chi2 += (counts[i] - 100.0) * (counts[i] - 100.0) / 100;
        }
        assert_int_equal(n_orders, 120);
        assert_true(chi2 < 180);
        sampler_destroy(s);
    }
}

static void test_bad(void **state)
{
    struct err e = ERR_INIT;

    (void)state;
    assert_null(sampler_create(0, 10, 0, &e));
    assert_non_null(strstr(e.msg, "batch_size: 0 found"));
    assert_null(sampler_create(0, 10, 11, &e));
    assert_non_null(strstr(e.msg, "batch_size: 11 found, but there are only 10 training images"));
    sampler_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_of_rank),
        cmocka_unit_test(test_eval_batches),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_no_repeats),
        cmocka_unit_test(test_union_of_ranks),
        cmocka_unit_test(test_batch_size_only_cuts),
        cmocka_unit_test(test_random_access),
        cmocka_unit_test(test_uniform),
        cmocka_unit_test(test_bad),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
