/* test_loader - batches: the same for every number of ranks, at any step in any order, with and without
 * prefetch. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "tests/unit/data/tail_fixture.h"
#include "worker/data/loader.h"

enum { BATCH = 13 };

static struct loader_config config(const struct fixture *f, enum loader_mode mode, int rank, int size,
                                   bool prefetch)
{
    return (struct loader_config){
        .mode = mode,
        .split = mode == LOADER_TRAIN ? f->train : f->test,
        .seed = 6,
        .batch_size = BATCH,
        .augment = {.crop_padding = 2, .flip = true, .normalize = true},
        .rank = rank,
        .size = size,
        .prefetch = prefetch,
    };
}

static struct loader *make(const struct loader_config *cfg)
{
    struct err e = ERR_INIT;
    struct loader *l = loader_create(cfg, &e);

    if (!l)
        fail_msg("%s", e.msg);
    return l;
}

/* One rank's rows, on the heap with no slack, so that a sanitizer sees a row too many. */
struct rows {
    float *images;
    int32_t *labels;
    int64_t n;
};

static struct rows get(struct loader *l, bool train, int64_t i)
{
    struct err e = ERR_INIT;
    int64_t batch_rows, first, count;

    loader_rows(l, i, &batch_rows, &first, &count);
    assert_true(count <= loader_max_rows(l));
    struct rows r = {malloc((size_t)count * VALUES * sizeof(float) + 1),
                     malloc((size_t)count * sizeof(int32_t) + 1), 0};
    r.n =
        train ? loader_batch(l, i, r.images, r.labels, &e) : loader_eval_batch(l, i, r.images, r.labels, &e);
    if (r.n < 0)
        fail_msg("%s", e.msg);
    assert_int_equal(r.n, count);
    return r;
}

static void rows_free(struct rows *r)
{
    free(r->images);
    free(r->labels);
}

/* Rows of `part` are rows first … of `whole`, bit by bit. */
static void check_slice(const struct rows *whole, const struct rows *part, int64_t first)
{
    assert_true(first + part->n <= whole->n);
    assert_memory_equal(part->images, whole->images + first * VALUES,
                        (size_t)part->n * VALUES * sizeof *part->images);
    assert_memory_equal(part->labels, whole->labels + first, (size_t)part->n * sizeof *part->labels);
}

/* What the parts promise, put together by hand: sampler, split, augmentation. */
static void test_content(void **state)
{
    const struct fixture *f = *state;
    struct loader_config cfg = config(f, LOADER_TRAIN, 0, 1, false);
    struct loader *l = make(&cfg);
    struct sampler *s = sampler_create(6, f->train->n, BATCH, NULL);
    struct augment *a = augment_create(&cfg.augment, f->data.train, NULL);

    assert_int_equal(loader_n_batches(l), f->train->n / BATCH);
    assert_int_equal(loader_max_rows(l), BATCH);
    for (int64_t step = 0; step < 3 * loader_n_batches(l); step++) {
        struct rows r = get(l, true, step);
        int32_t at[BATCH];
        sampler_batch(s, step, 0, BATCH, at);
        for (int i = 0; i < BATCH; i++) {
            float want[VALUES];
            int32_t index = f->train->indices[at[i]];
            struct sampler_position pos = loader_position(l, step);
            augment_apply(a, augment_draw(a, 6, index, pos.epoch), f->data.train->images + index * VALUES,
                          want);
            assert_memory_equal(r.images + i * VALUES, want, sizeof want);
            assert_int_equal(r.labels[i], f->data.train->labels[index]);
        }
        rows_free(&r);
    }
    sampler_destroy(s);
    augment_destroy(a);
    loader_destroy(l);
}

/* The rows of all ranks, one after another, are batch i of one rank alone: none missing, none twice. */
static void check_union(struct loader *whole, struct loader **ranks, int size, bool train, int64_t i)
{
    struct rows all = get(whole, train, i);
    int64_t next = 0;

    for (int rank = 0; rank < size; rank++) {
        struct rows part = get(ranks[rank], train, i);
        int64_t batch_rows, first, count;
        loader_rows(ranks[rank], i, &batch_rows, &first, &count);
        assert_int_equal(batch_rows, all.n);
        assert_int_equal(first, next);
        check_slice(&all, &part, first);
        next += part.n;
        rows_free(&part);
    }
    assert_int_equal(next, all.n);
    rows_free(&all);
}

static void check_ranks(const struct fixture *f, enum loader_mode mode, bool prefetch)
{
    static const int sizes[] = {1, 2, 3, 4, 8, 16}; /* 13 rows: unequal slices; with 16 ranks, empty ones */
    bool train = mode == LOADER_TRAIN;
    struct loader_config cfg = config(f, mode, 0, 1, false);
    struct loader *whole = make(&cfg), *ranks[16];
    int64_t n = train ? 2 * loader_n_batches(whole) : loader_n_batches(whole);

    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        for (int rank = 0; rank < sizes[k]; rank++) {
            struct loader_config mine = config(f, mode, rank, sizes[k], prefetch);
            ranks[rank] = make(&mine);
        }
        for (int64_t i = 0; i < n; i++)
            check_union(whole, ranks, sizes[k], train, i);
        for (int rank = 0; rank < sizes[k]; rank++)
            loader_destroy(ranks[rank]);
    }
    loader_destroy(whole);
}

static void test_train_ranks(void **state)
{
    check_ranks(*state, LOADER_TRAIN, false);
    check_ranks(*state, LOADER_TRAIN, true);
}

static void test_eval_ranks(void **state)
{
    check_ranks(*state, LOADER_EVAL, false);
    check_ranks(*state, LOADER_EVAL, true);
}

/* Any step, first or after any other, gives what a run from step 0 gives. */
static void test_resume(void **state)
{
    static const int64_t jumps[] = {5, 6, 7, 2, 2, 19, 0, 18, 19, 20, 1, 0};

    for (int prefetch = 0; prefetch < 2; prefetch++) {
        struct loader_config plain = config(*state, LOADER_TRAIN, 1, 3, false), cfg = plain;
        cfg.prefetch = prefetch;
        struct loader *from_zero = make(&plain), *jumping = make(&cfg);
        struct rows want[21];
        for (int64_t i = 0; i < 21; i++)
            want[i] = get(from_zero, true, i);
        for (size_t i = 0; i < sizeof jumps / sizeof *jumps; i++) {
            struct loader *fresh = make(&cfg);
            struct rows a = get(jumping, true, jumps[i]), b = get(fresh, true, jumps[i]);
            check_slice(&want[jumps[i]], &a, 0);
            check_slice(&want[jumps[i]], &b, 0);
            rows_free(&a);
            rows_free(&b);
            loader_destroy(fresh);
        }
        for (int i = 0; i < 21; i++)
            rows_free(&want[i]);
        loader_destroy(from_zero);
        loader_destroy(jumping);
    }
}

/* A sample is augmented by what it is and by its epoch: another batch size moves it to another row and step,
 * and changes no bit of it. */
static void test_augment_knows_no_row(void **state)
{
    const struct fixture *f = *state;
    struct loader_config one = config(f, LOADER_TRAIN, 0, 1, false), other = one;

    one.batch_size = 1;
    other.batch_size = f->train->n;
    struct loader *a = make(&one), *b = make(&other);
    for (int64_t epoch = 0; epoch < 2; epoch++) {
        struct rows all = get(b, true, epoch);
        for (int64_t i = 0; i < f->train->n; i++) {
            struct rows r = get(a, true, epoch * f->train->n + i);
            check_slice(&all, &r, i);
            rows_free(&r);
        }
        rows_free(&all);
    }
    loader_destroy(a);
    loader_destroy(b);
}

/* Every test image once, in order, untouched but for the normalisation. */
static void test_eval_content(void **state)
{
    const struct fixture *f = *state;
    const struct dataset *d = f->data.test;
    struct loader_config cfg = config(f, LOADER_EVAL, 0, 1, true);
    struct loader *l = make(&cfg);
    int64_t at = 0;

    assert_int_equal(loader_n_batches(l), 3); /* 32 images, at most 13: 10 + 11 + 11 */
    assert_int_equal(loader_max_rows(l), 11);
    for (int64_t i = 0; i < 3; i++) {
        struct rows r = get(l, false, i);
        for (int64_t row = 0; row < r.n; row++, at++) {
            assert_int_equal(r.labels[row], d->labels[at]);
            for (int v = 0; v < VALUES; v++) {
                double mean = (double)d->mean[v % 2], std = (double)d->std[v % 2];
                double want = (d->images[at * VALUES + v] / 255.0 - mean) / std;
                double got = (double)r.images[row * VALUES + v];
                assert_true(got - want < 1e-5 && want - got < 1e-5);
            }
        }
        rows_free(&r);
    }
    assert_int_equal(at, d->n);
    assert_true(loader_data_wait_ns(l) > 0);
    loader_destroy(l);
}

/* Created and destroyed before, during and after the first batch, and with a single evaluation batch. */
static void test_life(void **state)
{
    struct loader_config cfg = config(*state, LOADER_TRAIN, 0, 1, true);
    struct loader_config eval = config(*state, LOADER_EVAL, 0, 1, true);

    eval.batch_size = 1000;
    for (int i = 0; i < 200; i++) {
        struct loader *a = make(&cfg), *b = make(&eval);
        if (i % 3 == 0) {
            struct rows r = get(a, true, i), s = get(b, false, 0), again = get(b, false, 0);
            assert_int_equal(s.n, 32);
            check_slice(&s, &again, 0);
            rows_free(&r);
            rows_free(&s);
            rows_free(&again);
        }
        loader_destroy(a);
        loader_destroy(b);
    }
    loader_destroy(NULL);
}

static void test_bad(void **state)
{
    const struct fixture *f = *state;
    struct loader_config cfg = config(f, LOADER_TRAIN, 0, 1, true);
    struct split *empty = split_create(f->data.test, NULL, 0);
    struct err e = ERR_INIT;
    float image[VALUES];
    int32_t label;

    cfg.batch_size = f->train->n + 1;
    assert_null(loader_create(&cfg, &e));
    assert_non_null(strstr(e.msg, "data loader: batch_size: "));
    assert_non_null(strstr(e.msg, "training images"));
    cfg.batch_size = 0;
    assert_null(loader_create(&cfg, &e));
    assert_non_null(strstr(e.msg, "batch_size: 0 found"));
    cfg = config(f, LOADER_TRAIN, 3, 3, true);
    assert_null(loader_create(&cfg, &e));
    assert_non_null(strstr(e.msg, "rank 3 of 3"));
    cfg = config(f, LOADER_EVAL, 0, 1, true);
    cfg.augment.crop_padding = -1;
    assert_null(loader_create(&cfg, &e));
    assert_non_null(strstr(e.msg, "crop_padding: -1"));
    cfg.augment.crop_padding = 0;
    cfg.split = empty;
    assert_null(loader_create(&cfg, &e));
    assert_non_null(strstr(e.msg, "no image"));
    cfg.split = f->test;
    struct loader *l = make(&cfg);
    assert_int_equal(loader_eval_batch(l, 3, image, &label, &e), -1);
    assert_non_null(strstr(e.msg, "evaluation batch 3 found, 0 to 2"));
    assert_int_equal(loader_eval_batch(l, -1, image, &label, &e), -1);
    loader_destroy(l);
    cfg = config(f, LOADER_TRAIN, 0, 1, true);
    l = make(&cfg);
    assert_int_equal(loader_batch(l, -1, image, &label, &e), -1);
    assert_non_null(strstr(e.msg, "step -1 found"));
    loader_destroy(l);
    split_destroy(empty);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_content),
        cmocka_unit_test(test_train_ranks),
        cmocka_unit_test(test_eval_ranks),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_augment_knows_no_row),
        cmocka_unit_test(test_eval_content),
        cmocka_unit_test(test_life),
        cmocka_unit_test(test_bad),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
