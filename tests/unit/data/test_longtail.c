/* test_longtail - the published counts of CIFAR-LT, NumPy's shuffle bit by bit, and what is held out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "worker/data/longtail.h"
#include "worker/data/mt19937.h"

static void test_mt19937(void **state)
{
    static const int32_t ten[10] = {2, 8, 4, 9, 1, 6, 7, 3, 0, 5};
    static const struct {
        uint32_t seed;
        int32_t of_5000[5], of_500[5]; /* the second with the same generator, going on */
    } rows[] = {
        {0, {398, 3833, 4836, 4572, 636}, {339, 298, 170, 289, 375}},
        {1, {2764, 4767, 3814, 3499, 2735}, {182, 40, 164, 158, 195}},
        {42, {1501, 2586, 2653, 1055, 705}, {437, 32, 0, 160, 231}},
    };
    int32_t v[5000];
    struct mt19937 g;

    (void)state;
    mt19937_seed(&g, 0);
    assert_int_equal(mt19937_next(&g), 2357136044u); /* numpy.random.seed(0): the first three words */
    assert_int_equal(mt19937_next(&g), 2546248239u);
    assert_int_equal(mt19937_next(&g), 3071714933u);
    mt19937_seed(&g, 0);
    for (int i = 0; i < 10; i++)
        v[i] = i;
    mt19937_shuffle(&g, v, 10);
    assert_memory_equal(v, ten, sizeof ten);
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        mt19937_seed(&g, rows[r].seed);
        for (int i = 0; i < 5000; i++)
            v[i] = i;
        mt19937_shuffle(&g, v, 5000);
        assert_memory_equal(v, rows[r].of_5000, sizeof rows[r].of_5000);
        for (int i = 0; i < 500; i++)
            v[i] = i;
        mt19937_shuffle(&g, v, 500);
        assert_memory_equal(v, rows[r].of_500, sizeof rows[r].of_500);
    }
    mt19937_shuffle(&g, v, 0); /* draws nothing */
    mt19937_shuffle(&g, v, 1);
    assert_int_equal(mt19937_interval(&g, 0), 0);
}

static void test_golden_counts(void **state)
{
    static const struct {
        int classes;
        double factor;
        int total, many, medium, few;
        int32_t first[6], last[6];
    } rows[] = {
        {10, 10, 20431, 10, 0, 0, {5000, 3871, 2997, 2320, 1796, 1391}, {1796, 1391, 1077, 834, 645, 500}},
        {10, 50, 13996, 9, 1, 0, {5000, 3237, 2096, 1357, 878, 568}, {878, 568, 368, 238, 154, 100}},
        {10, 100, 12406, 8, 2, 0, {5000, 2997, 1796, 1077, 645, 387}, {645, 387, 232, 139, 83, 50}},
        {10, 200, 11203, 7, 3, 0, {5000, 2775, 1540, 854, 474, 263}, {474, 263, 146, 81, 45, 25}},
        {100, 10, 19573, 69, 31, 0, {500, 488, 477, 466, 455, 445}, {56, 54, 53, 52, 51, 50}},
        {100, 50, 12608, 41, 41, 18, {500, 480, 462, 444, 426, 410}, {12, 11, 11, 10, 10, 10}},
        {100, 100, 10847, 35, 35, 30, {500, 477, 455, 434, 415, 396}, {6, 6, 5, 5, 5, 5}},
        {100, 200, 9502, 30, 31, 39, {500, 473, 449, 425, 403, 382}, {3, 3, 2, 2, 2, 2}},
    };

    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        int32_t available[100], counts[100];
        int k = rows[r].classes, total = 0, many = 0, few = 0;
        struct longtail_config cfg = {.kind = LONGTAIL_EXP, .factor = rows[r].factor};
        struct err e = ERR_INIT;

        for (int c = 0; c < k; c++)
            available[c] = 50000 / k;
        assert_int_equal(longtail_counts(&cfg, available, k, counts, &e), 0);
        for (int c = 0; c < k; c++) {
            total += counts[c];
            many += counts[c] > 100;
            few += counts[c] < 20;
        }
        assert_int_equal(total, rows[r].total);
        assert_int_equal(many, rows[r].many);
        assert_int_equal(few, rows[r].few);
        assert_int_equal(k - many - few, rows[r].medium);
        assert_memory_equal(counts, rows[r].first, sizeof rows[r].first);
        assert_memory_equal(counts + k - 6, rows[r].last, sizeof rows[r].last);
    }
}

static void test_other_counts(void **state)
{
    int32_t available[5] = {120, 100, 130, 100, 110}, counts[5];
    struct err e = ERR_INIT;
    const struct {
        struct longtail_config cfg;
        int32_t counts[5];
    } rows[] = {
        {{LONGTAIL_NONE, 0, 0, 0}, {120, 100, 130, 100, 110}},
        {{LONGTAIL_NONE, 0, 0, 30}, {90, 70, 100, 70, 80}},
        {{LONGTAIL_STEP, 10, 0, 0}, {100, 100, 10, 10, 10}}, /* 5 / 2 = 2 head classes */
        {{LONGTAIL_STEP, 10, 55, 20}, {55, 55, 5, 5, 5}},
        {{LONGTAIL_EXP, 16, 0, 20}, {80, 40, 20, 10, 5}},
        {{LONGTAIL_EXP, 16, 96, 0}, {96, 48, 24, 12, 6}},
        {{LONGTAIL_EXP, 1, 0, 0}, {100, 100, 100, 100, 100}},
        {{LONGTAIL_EXP, 16, 110, 10}, {110, 55, 27, 13, 6}}, /* class 0: exactly 110 + 10 of 120 */
    };

    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        assert_int_equal(longtail_counts(&rows[r].cfg, available, 5, counts, &e), 0);
        assert_memory_equal(counts, rows[r].counts, sizeof counts);
    }
}

static void test_bad(void **state)
{
    int32_t available[5] = {120, 100, 130, 100, 110}, counts[5] = {-7, -7, -7, -7, -7};
    const struct {
        struct longtail_config cfg;
        int n_classes;
        const char *says;
    } rows[] = {
        {{LONGTAIL_EXP, 16, 121, 0},
         5,
         "class 0: 121 images to keep and 0 to hold out, but only 120 available"},
        {{LONGTAIL_EXP, 16, 110, 11}, 5, "class 0: 110 images to keep and 11 to hold out, but only 120"},
        {{LONGTAIL_STEP, 2, 101, 0},
         5,
         "class 1: 101 images to keep and 0 to hold out, but only 100 available"},
        {{LONGTAIL_NONE, 0, 0, 100},
         5,
         "class 1: no image is left to train on: 100 available, 100 to hold out"},
        {{LONGTAIL_EXP, 2, 0, 100},
         5,
         "class 1: no image is left to train on: 100 available, 100 to hold out"},
        {{LONGTAIL_EXP, 1000, 0, 0},
         5,
         "class 3: no image would be kept: 100 in the largest class, factor 1000"},
        {{LONGTAIL_EXP, 0.5, 0, 0}, 5, "factor: 0.5 found"},
        {{LONGTAIL_EXP, (double)NAN, 0, 0}, 5, "factor: nan found"},
        {{LONGTAIL_STEP, (double)INFINITY, 0, 0}, 5, "factor: inf found"},
        {{LONGTAIL_EXP, 2, 0, 0}, 1, "kind exp needs at least 2 classes, the data have 1"},
        {{LONGTAIL_EXP, 2, -1, 0}, 5, "max_per_class: -1 found"},
        {{LONGTAIL_EXP, 2, 0, -1}, 5, "holdout_per_class: -1 found"},
        {{LONGTAIL_NONE, 0, 10, 0}, 5, "max_per_class: 10 found without a long tail"},
    };

    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        struct err e = ERR_INIT;
        assert_int_equal(longtail_counts(&rows[r].cfg, available, rows[r].n_classes, counts, &e), -1);
        if (!strstr(e.msg, rows[r].says))
            fail_msg("row %zu: %s", r, e.msg);
    }
}

/* 3000 one-pixel images with labels from an LCG: no class lies in blocks or at a stride. */
static struct dataset *scattered(void)
{
    struct dataset *d = dataset_create(3000, 1, 1, 1, 5, NULL, NULL);
    uint32_t s = 1;

    for (int i = 0; i < 3000; i++) {
        s = 1664525u * s + 1013904223u;
        d->labels[i] = (int32_t)((s >> 24) % 5);
        d->images[i] = (uint8_t)i;
    }
    return d;
}

static uint32_t fnv_of(const struct split *s)
{
    uint32_t h = 2166136261u;

    for (int i = 0; i < s->n; i++)
        h = (h ^ (uint32_t)s->indices[i]) * 16777619u;
    return h;
}

/* The numbers were made with NumPy 1.24: seed(0), then per class shuffle(where(labels == c)). */
static void test_choice_is_numpys(void **state)
{
    struct dataset *d = scattered();
    struct longtail_config cfg = {.kind = LONGTAIL_EXP, .factor = 10};
    const int32_t plain[5] = {592, 332, 187, 105, 59}, held[5] = {572, 321, 180, 101, 57};
    const int32_t first[6] = {2798, 282, 2622, 1689, 301, 323}, out[4] = {826, 448, 2240, 2140};
    struct split *train = NULL, *holdout = NULL;
    struct err e = ERR_INIT;

    (void)state;
    assert_int_equal(longtail_split(&cfg, d, &train, &holdout, &e), 0);
    assert_null(holdout);
    assert_memory_equal(train->class_counts, plain, sizeof plain);
    assert_memory_equal(train->indices, first, sizeof first);
    assert_int_equal(fnv_of(train), 0xafe4fbbbu);
    split_destroy(train);
    cfg.holdout_per_class = 20;
    assert_int_equal(longtail_split(&cfg, d, &train, &holdout, &e), 0);
    assert_memory_equal(train->class_counts, held, sizeof held);
    assert_memory_equal(train->indices, first, sizeof first);
    assert_memory_equal(holdout->indices, out, sizeof out);
    assert_int_equal(fnv_of(train), 0x045ef9f0u);
    assert_int_equal(fnv_of(holdout), 0xc477ff7eu);
    split_destroy(train);
    split_destroy(holdout);
    dataset_destroy(d);
}

static void test_parts_are_disjoint(void **state)
{
    const struct longtail_config cfgs[] = {{LONGTAIL_NONE, 0, 0, 50},
                                           {LONGTAIL_EXP, 20, 0, 50},
                                           {LONGTAIL_STEP, 4, 542, 50}};
    struct dataset *d = scattered();

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        uint8_t seen[3000] = {0};
        struct split *train, *holdout;
        struct err e = ERR_INIT;
        assert_int_equal(longtail_split(&cfgs[i], d, &train, &holdout, &e), 0);
        for (int j = 0; j < train->n; j++)
            assert_int_equal(seen[train->indices[j]]++, 0);
        for (int j = 0; j < holdout->n; j++)
            assert_int_equal(seen[holdout->indices[j]]++, 0);
        for (int c = 0; c < 5; c++)
            assert_int_equal(holdout->class_counts[c], 50);
        if (cfgs[i].kind == LONGTAIL_NONE) /* nothing is lost */
            assert_int_equal(train->n + holdout->n, 3000);
        split_destroy(train);
        split_destroy(holdout);
    }
    struct longtail_config bad = {LONGTAIL_EXP, 4, 605, 0};
    struct split *train = NULL, *holdout = NULL;
    struct err e = ERR_INIT;
    assert_int_equal(longtail_split(&bad, d, &train, &holdout, &e), -1);
    assert_null(train);
    assert_non_null(strstr(e.msg, "class 0: 605 images to keep"));
    dataset_destroy(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mt19937),          cmocka_unit_test(test_golden_counts),
        cmocka_unit_test(test_other_counts),     cmocka_unit_test(test_bad),
        cmocka_unit_test(test_choice_is_numpys), cmocka_unit_test(test_parts_are_disjoint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
