/* tail_fixture - a small synthetic data set for the tests of what comes after it: a long tail of its training
 * images (less a hold-out), and all of its test images. Include it after cmocka.h. */
#ifndef TESTS_TAIL_FIXTURE_H
#define TESTS_TAIL_FIXTURE_H

#include <stdlib.h>
#include "worker/data/longtail.h"
#include "worker/data/synth.h"

enum { VALUES = 6 * 5 * 2 }; /* of an image */

struct fixture {
    struct dataset_pair data;
    struct split *train, *test;
};

static int set_up(void **state)
{
    const struct synth_config synth = {
        .h = 6, .w = 5, .c = 2, .classes = 4, .train_per_class = 40, .test_per_class = 8, .seed = 2};
    const struct longtail_config tail = {.kind = LONGTAIL_EXP, .factor = 4, .holdout_per_class = 2};
    struct fixture *f = calloc(1, sizeof *f);
    struct split *holdout = NULL;

    if (synth_open(&synth, &f->data, NULL) < 0 ||
        longtail_split(&tail, f->data.train, &f->train, &holdout, NULL) < 0)
        return -1;
    split_destroy(holdout);
    f->test = split_create_all(f->data.test);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    split_destroy(f->train);
    split_destroy(f->test);
    dataset_pair_free(&f->data);
    free(f);
    return 0;
}

#endif
