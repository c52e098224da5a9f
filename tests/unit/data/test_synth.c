/* test_synth - datasets and splits, and the synthetic images: golden bytes, statistics, learnable. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "worker/data/synth.h"

static const struct synth_config small = {
    .h = 6, .w = 7, .c = 3, .classes = 3, .train_per_class = 5, .test_per_class = 2, .seed = 5};

static struct dataset_pair open_synth(const struct synth_config *cfg)
{
    struct dataset_pair p;
    struct err e = ERR_INIT;

    if (synth_open(cfg, &p, &e) < 0)
        fail_msg("%s", e.msg);
    return p;
}

/* Bytes computed by an independent implementation of Philox4x32-10 and of synth.h's description. */
static void test_golden(void **state)
{
    static const int at[7] = {0, 1, 2, 3, 4, 5, 125};
    static const uint8_t train[7] = {92, 82, 223, 51, 255, 255, 0},
                         test[7] = {130, 51, 255, 138, 28, 243, 71};
    struct dataset_pair p = open_synth(&small);

    (void)state;
    assert_int_equal(p.train->n, 15);
    assert_int_equal(p.test->n, 6);
    assert_int_equal(dataset_image_bytes(p.train), 126);
    for (int i = 0; i < 7; i++) {
        assert_int_equal(p.train->images[4 * 126 + at[i]], train[i]);
        assert_int_equal(p.test->images[4 * 126 + at[i]], test[i]);
    }
    for (int i = 0; i < p.train->n; i++)
        assert_int_equal(p.train->labels[i], i % 3);
    dataset_pair_free(&p);
}

static void test_hash(void **state)
{
    struct synth_config other = small;
    struct dataset_pair a = open_synth(&small), b = open_synth(&small);

    (void)state;
    assert_string_equal(dataset_hash(a.train).s, dataset_hash(b.train).s);
    assert_string_not_equal(dataset_hash(a.train).s, dataset_hash(a.test).s);
    b.train->labels[3] ^= 1;
    assert_string_not_equal(dataset_hash(a.train).s, dataset_hash(b.train).s);
    b.train->labels[3] ^= 1;
    b.train->images[100] ^= 1;
    assert_string_not_equal(dataset_hash(a.train).s, dataset_hash(b.train).s);
    b.train->images[100] ^= 1;
    b.train->h = 7, b.train->w = 6; /* the same bytes in another shape */
    assert_string_not_equal(dataset_hash(a.train).s, dataset_hash(b.train).s);
    dataset_pair_free(&b);
    other.seed++;
    b = open_synth(&other);
    assert_string_not_equal(dataset_hash(a.train).s, dataset_hash(b.train).s);
    dataset_pair_free(&a);
    dataset_pair_free(&b);
}

static void test_measure(void **state)
{
    struct dataset_pair p = open_synth(&small);
    struct dataset *d = p.train;

    (void)state;
    for (int ch = 0; ch < 3; ch++) {
        double sum = 0, spread = 0;
        int n = d->n * d->h * d->w;
        for (int i = 0; i < n; i++)
            sum += d->images[i * 3 + ch] / 255.0;
        for (int i = 0; i < n; i++)
            spread += pow(d->images[i * 3 + ch] / 255.0 - sum / n, 2);
        assert_true(fabs((double)d->mean[ch] - sum / n) < 1e-6);
        assert_true(fabs((double)d->std[ch] - sqrt(spread / n)) < 1e-6);
    }
    for (int i = 0; i < d->n * d->h * d->w; i++)
        d->images[i * 3 + 1] = 77;
    dataset_measure(d);
    assert_true(d->std[1] == 0 && d->std[0] > 0 && d->mean[1] == 77.0f / 255);
    dataset_pair_free(&p);
}

/* Many of the largest value: no sum of a block or of all overflows, with one channel and with more. */
static void test_measure_of_many_bright_pixels(void **state)
{
    (void)state;
    for (int c = 1; c <= 2; c++) {
        struct err e = ERR_INIT;
        struct dataset *d = dataset_create(70001, 3, 1, c, 2, NULL, &e);
        assert_non_null(d);
        memset(d->images, 255, (size_t)d->n * 3 * (size_t)c);
        dataset_measure(d);
        assert_true(d->mean[c - 1] == 1 && d->std[c - 1] == 0);
        memset(d->images, 0, (size_t)c); /* the first pixel */
        dataset_measure(d);
        const double n = 70001.0 * 3;
        assert_true(d->mean[c - 1] == (float)((n - 1) / n));
        assert_true(fabs(d->std[c - 1] - sqrt(n - 1) / n) < 1e-9);
        dataset_destroy(d);
    }
}

/* The nearest class mean of the training images must name most test images, and noise must not be nil. */
static void test_learnable(void **state)
{
    const struct synth_config cfg = {
        .h = 16, .w = 16, .c = 1, .classes = 10, .train_per_class = 50, .test_per_class = 20, .seed = 1};
    struct dataset_pair p = open_synth(&cfg);
    static double mean[10][256];
    int right = 0;

    (void)state;
    for (int i = 0; i < p.train->n; i++)
        for (int j = 0; j < 256; j++)
            mean[p.train->labels[i]][j] += p.train->images[i * 256 + j] / 50.0;
    for (int i = 0; i < p.test->n; i++) {
        int best = 0;
        double best_d = INFINITY;
        for (int k = 0; k < 10; k++) {
            double dist = 0;
            for (int j = 0; j < 256; j++)
                dist += pow(p.test->images[i * 256 + j] - mean[k][j], 2);
            if (dist < best_d)
                best_d = dist, best = k;
        }
        right += best == p.test->labels[i];
    }
    assert_true(right > 190);
    assert_memory_not_equal(p.train->images, p.train->images + 10 * 256, 256); /* same class, other noise */
    dataset_pair_free(&p);
}

static void test_splits(void **state)
{
    struct dataset_pair p = open_synth(&small);
    const int32_t some[4] = {4, 0, 14, 3};
    struct split *all = split_create_all(p.train), *s = split_create(p.train, some, 4);
    struct split *same = split_create(p.train, some, 4), *none = split_create(p.train, some, 0);

    (void)state;
    assert_int_equal(all->n, 15);
    assert_int_equal(all->indices[14], 14);
    assert_int_equal(all->class_counts[2], 5);
    assert_memory_equal(s->indices, some, sizeof some);
    assert_int_equal(s->class_counts[0], 2);
    assert_int_equal(s->class_counts[1], 1);
    assert_int_equal(s->class_counts[2], 1);
    assert_string_equal(split_hash(s).s, split_hash(same).s);
    assert_string_not_equal(split_hash(s).s, split_hash(all).s);
    assert_int_equal(none->n, 0);
    split_destroy(all);
    split_destroy(s);
    split_destroy(same);
    split_destroy(none);
    split_destroy(NULL);
    dataset_destroy(NULL);
    dataset_pair_free(&p);
}

static void test_bad(void **state)
{
    static const struct {
        struct synth_config cfg;
        const char *says;
    } rows[] = {
        {{0, 7, 3, 3, 5, 2, 0}, "image size: 0 x 7 found, 1 to 16384"},
        {{6, 99999, 3, 3, 5, 2, 0}, "image size: 6 x 99999 found"},
        {{6, 7, 5, 3, 5, 2, 0}, "channels: 5 found, 1 to 4"},
        {{6, 7, 3, 1, 5, 2, 0}, "classes: 1 found, 2 to 65536"},
        {{6, 7, 3, 3, 0, 2, 0}, "training images per class: 0 found"},
        {{6, 7, 3, 3, 5, -1, 0}, "test images per class: -1 found"},
        {{6, 7, 3, 3, 1000000000, 2, 0}, "training images per class: 1000000000 found, 1 to 715827882"},
    };
    struct dataset_pair p;

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = ERR_INIT;
        assert_int_equal(synth_open(&rows[i].cfg, &p, &e), -1);
        if (strncmp(e.msg, "synthetic data: ", 16) != 0 || !strstr(e.msg, rows[i].says))
            fail_msg("row %zu: %s", i, e.msg);
    }
    struct err e = ERR_INIT;
    assert_null(dataset_create(0, 1, 1, 1, 2, NULL, &e));
    assert_non_null(strstr(e.msg, "images: 0 found, 1 to 2147483647"));
    assert_null(dataset_create(1, 1, 1, 9, 2, NULL, &e));
    assert_non_null(strstr(e.msg, "channels: 9 found, 1 to 4"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),    cmocka_unit_test(test_hash),
        cmocka_unit_test(test_measure),   cmocka_unit_test(test_measure_of_many_bright_pixels),
        cmocka_unit_test(test_learnable), cmocka_unit_test(test_splits),
        cmocka_unit_test(test_bad),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
