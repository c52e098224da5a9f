/* test_fashion - the real Fashion-MNIST, as Debian's package dataset-fashion-mnist installs it. The expected
 * numbers were computed with NumPy 1.24 from the same files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "worker/data/idx.h"
#include "worker/data/loader.h"
#include "worker/data/longtail.h"

static const char dir[] = "/usr/share/datasets/fashion-mnist";

static int set_up(void **state)
{
    struct dataset_pair *p = calloc(1, sizeof *p);
    struct err e = ERR_INIT;

    *state = p;
    if (idx_open(dir, p, &e) < 0) {
        print_error("%s (package dataset-fashion-mnist)\n", e.msg);
        return -1;
    }
    return 0;
}

static int tear_down(void **state)
{
    dataset_pair_free(*state);
    free(*state);
    return 0;
}

static int64_t sum(const uint8_t *p)
{
    int64_t s = 0;

    for (int i = 0; i < 784; i++)
        s += p[i];
    return s;
}

static void test_content(void **state)
{
    static const int32_t labels[10] = {9, 0, 0, 3, 0, 2, 7, 2, 5, 5};
    const struct dataset_pair *p = *state;
    int32_t counts[10];

    assert_int_equal(p->train->n, 60000);
    assert_int_equal(p->test->n, 10000);
    assert_int_equal(p->train->h, 28);
    assert_int_equal(p->test->w, 28);
    assert_int_equal(p->train->n_classes, 10);
    assert_memory_equal(p->train->labels, labels, sizeof labels);
    assert_int_equal(sum(p->train->images), 76247);
    assert_int_equal(sum(p->train->images + 59999 * 784), 16684);
    assert_true(fabs((double)p->train->mean[0] - 0.2860405969887955) < 1e-7);
    assert_true(fabs((double)p->train->std[0] - 0.35302424451492237) < 1e-7);
    dataset_class_counts(p->train, counts);
    for (int c = 0; c < 10; c++)
        assert_int_equal(counts[c], 6000);
    dataset_class_counts(p->test, counts);
    for (int c = 0; c < 10; c++)
        assert_int_equal(counts[c], 1000);
}

static void test_long_tail(void **state)
{
    static const int32_t want[10] = {6000, 3596, 2156, 1292, 774, 464, 278, 166, 100, 60};
    static const int32_t first[5] = {43279, 20687, 56899, 5141, 14437};
    static const int32_t last_class[5] = {26316, 46136, 43924, 33823, 40433};
    const struct dataset_pair *p = *state;
    const struct longtail_config cfg = {.kind = LONGTAIL_EXP, .factor = 100};
    struct split *train, *holdout;
    struct err e = ERR_INIT;
    uint32_t h = 2166136261u;

    assert_int_equal(longtail_split(&cfg, p->train, &train, &holdout, &e), 0);
    assert_null(holdout);
    assert_int_equal(train->n, 14886);
    assert_memory_equal(train->class_counts, want, sizeof want);
    assert_memory_equal(train->indices, first, sizeof first);
    assert_memory_equal(train->indices + 14886 - 60, last_class, sizeof last_class);
    for (int i = 0; i < train->n; i++)
        h = (h ^ (uint32_t)train->indices[i]) * 16777619u;
    assert_int_equal(h, 0xa8568763u);
    split_destroy(train);
}

/* Over a whole epoch without augmentation the normalised values must have mean 0 and variance 1. */
static void test_normalised_epoch(void **state)
{
    const struct dataset_pair *p = *state;
    struct split *all = split_create_all(p->train);
    const struct loader_config cfg = {.mode = LOADER_TRAIN,
                                      .split = all,
                                      .batch_size = 250,
                                      .augment = {.normalize = true},
                                      .size = 1,
                                      .prefetch = true};
    struct err e = ERR_INIT;
    struct loader *l = loader_create(&cfg, &e);
    float *images = malloc(250 * 784 * sizeof *images);
    int32_t labels[250], counts[10] = {0};
    double s = 0, sq = 0;

    assert_non_null(l);
    assert_int_equal(loader_n_batches(l), 240);
    for (int64_t step = 0; step < 240; step++) {
        assert_int_equal(loader_batch(l, step, images, labels, &e), 250);
        for (int i = 0; i < 250; i++)
            counts[labels[i]]++;
        for (int i = 0; i < 250 * 784; i++) {
            s += (double)images[i];
            sq += (double)images[i] * (double)images[i];
        }
    }
    for (int c = 0; c < 10; c++)
        assert_int_equal(counts[c], 6000);
    assert_true(fabs(s / (60000.0 * 784)) < 1e-6);
    assert_true(fabs(sq / (60000.0 * 784) - 1) < 1e-5);
    free(images);
    loader_destroy(l);
    split_destroy(all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_content),
        cmocka_unit_test(test_long_tail),
        cmocka_unit_test(test_normalised_epoch),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
