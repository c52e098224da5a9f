/* test_order - what ranks are really fed: every sample of an epoch once, in the global order of one rank,
 * through changes of the number of ranks in the middle of epochs; and the digest that receipts are made of.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "tests/unit/data/tail_fixture.h"
#include "worker/data/loader.h"

enum { MAX_RANKS = 16, EPOCHS = 3 };

/* The ranks of a job; no augmentation, so that pixels tell which image they are. */
struct job {
    int size;
    struct loader *ranks[MAX_RANKS];
};

static void start(struct job *j, const struct fixture *f, uint64_t seed, int64_t batch, int size)
{
    struct err e = ERR_INIT;

    j->size = size;
    for (int r = 0; r < size; r++) {
        struct loader_config cfg = {.mode = LOADER_TRAIN,
                                    .split = f->train,
                                    .seed = seed,
                                    .batch_size = batch,
                                    .rank = r,
                                    .size = size,
                                    .prefetch = r % 2 == 0}; /* some with, some without the thread */
        if (!(j->ranks[r] = loader_create(&cfg, &e)))
            fail_msg("%s", e.msg);
    }
}

static void stop(struct job *j)
{
    for (int r = 0; r < j->size; r++)
        loader_destroy(j->ranks[r]);
}

/* The image in `pixels` is image `at` of the dataset, and has its label. */
static void check_image(const struct dataset *d, int32_t at, const float *pixels, int32_t label)
{
    assert_int_equal(label, d->labels[at]);
    for (int v = 0; v < VALUES; v++) {
        float want = (float)d->images[(size_t)at * VALUES + v] / 255;
        assert_true(pixels[v] - want < 1e-6f && want - pixels[v] < 1e-6f);
    }
}

/* All ranks take a step: their rows, put together, are the global batch, into out (batch). Returns the sum of
 * their digests. */
static uint64_t step_of(struct job *j, const struct fixture *f, int64_t step, int64_t batch, int32_t *out)
{
    struct err e = ERR_INIT;
    uint64_t digest = 0;
    int64_t next = 0;

    for (int r = 0; r < j->size; r++) {
        int64_t most = loader_max_rows(j->ranks[r]), first, count;
        float *images = malloc((size_t)most * VALUES * sizeof *images);
        int32_t *labels = malloc((size_t)most * sizeof *labels);
        int64_t n = loader_batch(j->ranks[r], step, images, labels, &e);
        if (n < 0)
            fail_msg("%s", e.msg);
        const int32_t *served = loader_served(j->ranks[r], &first, &count);
        assert_true(count == n && first == next && first + count <= batch);
        for (int64_t i = 0; i < count; i++) {
            check_image(f->data.train, served[i], images + i * VALUES, labels[i]);
            out[next++] = served[i];
        }
        digest += loader_digest(j->ranks[r]);
        free(images);
        free(labels);
    }
    assert_int_equal(next, batch);
    return digest;
}

/* Counts of each image over one epoch: 1 or, for what the remainder dropped, 0. */
static void check_epoch(const struct fixture *f, const int *seen, int64_t batch)
{
    int64_t fed = 0, in_split = 0;

    for (int32_t i = 0; i < f->data.train->n; i++) {
        assert_true(seen[i] <= 1);
        fed += seen[i];
    }
    for (int32_t i = 0; i < f->train->n; i++)
        in_split += seen[f->train->indices[i]];
    assert_int_equal(fed, f->train->n / batch * batch);
    assert_int_equal(in_split, fed); /* nothing from outside the split */
}

/* Three epochs that go 2 → 8 → 3 → 2 … ranks, a new job every few steps, as a run that is stopped and
 * resumed. */
static void changing_ranks_feeds_every_sample_once(void **state)
{
    static const int sizes[] = {2, 8, 3, 16, 1};
    static const int64_t batches[] = {13, 10, 23, 7, 24};
    const struct fixture *f = *state;
    int *seen = calloc((size_t)f->data.train->n, sizeof *seen);

    for (size_t b = 0; b < sizeof batches / sizeof *batches; b++) {
        struct job one, many = {0};
        int64_t batch = batches[b], per_epoch = f->train->n / batch, stride = per_epoch / 2 + 1;
        start(&one, f, 6, batch, 1);
        assert_true(per_epoch % stride != 0); /* changes fall inside epochs */
        for (int64_t step = 0; step < EPOCHS * per_epoch; step++) {
            int32_t want[32], got[32];
            if (step % stride == 0) {
                stop(&many);
                start(&many, f, 6, batch, sizes[step / stride % 5]);
            }
            if (step % per_epoch == 0)
                memset(seen, 0, (size_t)f->data.train->n * sizeof *seen);
            uint64_t digest = step_of(&many, f, step, batch, got);
            assert_true(digest == step_of(&one, f, step, batch, want));
            assert_memory_equal(got, want, (size_t)batch * sizeof *got);
            for (int64_t i = 0; i < batch; i++)
                seen[got[i]]++;
            if ((step + 1) % per_epoch == 0)
                check_epoch(f, seen, batch);
        }
        stop(&many);
        stop(&one);
    }
    free(seen);
}

/* The first batch of an epoch is the same whatever was asked for before; seeds and epochs have their own. */
static void order_is_a_function_of_seed_and_epoch(void **state)
{
    enum { BATCH = 13, SEEDS = 4 };
    const struct fixture *f = *state;
    int64_t per_epoch = f->train->n / BATCH;
    int32_t rows[SEEDS * EPOCHS][BATCH];
    uint64_t digests[SEEDS * EPOCHS];

    for (int seed = 0; seed < SEEDS; seed++) {
        struct job j;
        start(&j, f, (uint64_t)seed, BATCH, 3);
        for (int64_t epoch = EPOCHS - 1; epoch >= 0; epoch--) { /* the last one first */
            int64_t i = seed * EPOCHS + epoch;
            digests[i] = step_of(&j, f, epoch * per_epoch, BATCH, rows[i]);
        }
        stop(&j);
        start(&j, f, (uint64_t)seed, BATCH, 2);
        for (int64_t epoch = 0; epoch < EPOCHS; epoch++) {
            int32_t again[BATCH];
            int64_t i = seed * EPOCHS + epoch;
            assert_true(digests[i] == step_of(&j, f, epoch * per_epoch, BATCH, again));
            assert_memory_equal(again, rows[i], sizeof again);
        }
        stop(&j);
    }
    for (int a = 0; a < SEEDS * EPOCHS; a++)
        for (int b = 0; b < a; b++)
            assert_true(digests[a] != digests[b] && memcmp(rows[a], rows[b], sizeof rows[a]) != 0);
}

/* Two rows changing places, within a rank or between two, change the digest: places count, ranks do not. */
static void the_digest_knows_places(void **state)
{
    enum { BATCH = 5 };
    const struct fixture *f = *state;
    int32_t order[BATCH] = {9, 4, 7, 1, 3};
    uint64_t digests[BATCH * BATCH];
    int n = 0;

    for (int a = 0; a < BATCH; a++)
        for (int b = 0; b <= a; b++) {
            if (b == a && a > 0)
                continue; /* (0, 0): unchanged */
            int32_t swapped[BATCH], rows[BATCH];
            memcpy(swapped, order, sizeof order);
            swapped[a] = order[b];
            swapped[b] = order[a];
            struct split *s = split_create(f->data.train, swapped, BATCH);
            struct fixture g = {.data = f->data, .train = s};
            struct job j;
            start(&j, &g, 1, BATCH, 1);
            assert_true(loader_digest(j.ranks[0]) == 0); /* nothing was served yet */
            digests[n++] = step_of(&j, &g, 0, BATCH, rows);
            stop(&j);
            split_destroy(s);
        }
    assert_int_equal(n, 11);
    for (int a = 0; a < n; a++)
        for (int b = 0; b < a; b++)
            assert_true(digests[a] != digests[b]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(changing_ranks_feeds_every_sample_once),
        cmocka_unit_test(order_is_a_function_of_seed_and_epoch),
        cmocka_unit_test(the_digest_knows_places),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
