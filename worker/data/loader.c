/* loader - see loader.h.
 *
 * fill() prepares a batch from its number; it is the only user of `sampler`, `augment` and `positions`,
 * which therefore belong to the prefetch thread when there is one, and to the caller otherwise.
 *
 * With the thread, `lock` guards the four fields of `slot` and they pass the buffer to and fro:
 *   wanted   set by the caller: which batch to prepare next
 *   filling  set by the thread while it writes the buffer, unlocked
 *   ready    the batch that the buffer holds; the caller copies it out under the lock, while wanted is NONE
 * and the thread thus asleep
 * A caller that finds another batch ready or being filled sets wanted and waits;
 * so a wrong guess costs time only.
 */
#include "worker/data/loader.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"

enum { NONE = -1 };

struct loader {
    struct loader_config cfg;
    int64_t n_batches;
    int64_t max_rows;
    size_t image_values; /* H * W * C */
    int64_t wait_ns;     /* the caller's */

    int32_t *served; /* (max_rows) positions in the dataset, of the batch served last; the caller's */
    int64_t served_first, served_count; /* its rows; count 0: none yet */

    struct sampler *sampler; /* LOADER_TRAIN */
    struct augment *augment;
    int32_t *positions; /* (max_rows), in the split */

    bool threaded;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct {
        int64_t wanted, filling, ready; /* batch numbers or NONE */
        bool stop;
    } slot;
    float *images;    /* (max_rows, H, W, C) */
    int32_t *labels;  /* (max_rows) */
    int32_t *indices; /* (max_rows) positions in the dataset */
};

int64_t loader_max_rows(const struct loader *l)
{
    return l->max_rows;
}

int64_t loader_n_batches(const struct loader *l)
{
    return l->n_batches;
}

int64_t loader_data_wait_ns(const struct loader *l)
{
    return l->wait_ns;
}

struct sampler_position loader_position(const struct loader *l, int64_t step)
{
    ASSERT(l->cfg.mode == LOADER_TRAIN);
    return sampler_position(l->sampler, step);
}

void loader_rows(const struct loader *l, int64_t i, int64_t *batch_rows, int64_t *first, int64_t *count)
{
    int64_t start;

    *batch_rows = l->cfg.batch_size;
    if (l->cfg.mode == LOADER_EVAL)
        eval_batches(l->cfg.split->n, l->cfg.batch_size, i, &start, batch_rows);
    rows_of_rank_sharded(*batch_rows, l->cfg.n_shards, l->cfg.rank, l->cfg.size, first, count);
}

/* Fills this rank's rows of batch i; a function of the configuration and i alone. `indices` says which images
 * of the dataset they are. */
static void fill(struct loader *l, int64_t i, float *images, int32_t *labels, int32_t *indices)
{
    const struct split *s = l->cfg.split;
    const struct dataset *d = s->dataset;
    int64_t batch_rows, first, count, epoch = 0, start = 0;

    loader_rows(l, i, &batch_rows, &first, &count);
    if (l->cfg.mode == LOADER_TRAIN) {
        epoch = sampler_position(l->sampler, i).epoch;
        sampler_batch(l->sampler, i, first, count, l->positions);
    } else {
        eval_batches(s->n, l->cfg.batch_size, i, &start, &batch_rows);
        for (int64_t row = 0; row < count; row++)
            l->positions[row] = (int32_t)(start + first + row);
    }
    for (int64_t row = 0; row < count; row++) {
        int32_t at = s->indices[l->positions[row]];
        struct augment_draw draw = l->cfg.mode == LOADER_TRAIN
                                       ? augment_draw(l->augment, l->cfg.seed, at, epoch)
                                       : augment_draw_none(l->augment);
        augment_apply(l->augment, draw, d->images + (size_t)at * l->image_values,
                      images + (size_t)row * l->image_values);
        labels[row] = d->labels[at];
        indices[row] = at;
    }
}

static void *prefetch_main(void *arg)
{
    struct loader *l = arg;

    pthread_mutex_lock(&l->lock);
    for (;;) {
        while (!l->slot.stop && l->slot.wanted == NONE)
            pthread_cond_wait(&l->changed, &l->lock);
        if (l->slot.stop)
            break;
        int64_t i = l->slot.wanted;
        l->slot.wanted = NONE;
        l->slot.ready = NONE;
        l->slot.filling = i;
        pthread_mutex_unlock(&l->lock);
        fill(l, i, l->images, l->labels, l->indices);
        pthread_mutex_lock(&l->lock);
        l->slot.filling = NONE;
        l->slot.ready = i;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* The batch most likely asked for after i. */
static int64_t guess_next(const struct loader *l, int64_t i)
{
    return l->cfg.mode == LOADER_EVAL && i + 1 == l->n_batches ? 0 : i + 1;
}

static void take_prefetched(struct loader *l, int64_t i, int64_t count, float *images, int32_t *labels)
{
    int64_t since = clock_mono_ns();

    pthread_mutex_lock(&l->lock);
    while (l->slot.ready != i) {
        if (l->slot.filling != i && l->slot.wanted != i) {
            l->slot.wanted = i;
            pthread_cond_broadcast(&l->changed);
        }
        pthread_cond_wait(&l->changed, &l->lock);
    }
    l->wait_ns += clock_mono_ns() - since;
    memcpy(images, l->images, (size_t)count * l->image_values * sizeof *images);
    memcpy(labels, l->labels, (size_t)count * sizeof *labels);
    memcpy(l->served, l->indices, (size_t)count * sizeof *l->served);
    if (guess_next(l, i) != i) {
        l->slot.wanted = guess_next(l, i);
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
}

static int64_t take(struct loader *l, int64_t i, float *images, int32_t *labels)
{
    int64_t batch_rows, count;

    loader_rows(l, i, &batch_rows, &l->served_first, &count);
    l->served_count = count;
    if (l->threaded) {
        take_prefetched(l, i, count, images, labels);
        return count;
    }
    int64_t since = clock_mono_ns();
    fill(l, i, images, labels, l->served);
    l->wait_ns += clock_mono_ns() - since;
    return count;
}

int64_t loader_batch(struct loader *l, int64_t step, float *images, int32_t *labels, struct err *e)
{
    ASSERT(l->cfg.mode == LOADER_TRAIN);
    if (step < 0)
        return err_set(e, "data loader: step %lld found, at least 0 is accepted", (long long)step);
    return take(l, step, images, labels);
}

int64_t loader_eval_batch(struct loader *l, int64_t i, float *images, int32_t *labels, struct err *e)
{
    ASSERT(l->cfg.mode == LOADER_EVAL);
    if (i < 0 || i >= l->n_batches)
        return err_set(e, "data loader: evaluation batch %lld found, 0 to %lld is accepted", (long long)i,
                       (long long)l->n_batches - 1);
    return take(l, i, images, labels);
}

const int32_t *loader_served(const struct loader *l, int64_t *first, int64_t *count)
{
    *first = l->served_first;
    *count = l->served_count;
    return l->served;
}

/* The finalizer of SplitMix64: one to one, and a flip of any bit flips about half of the others. */
static uint64_t mix64(uint64_t x)
{
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

uint64_t loader_digest(const struct loader *l)
{
    uint64_t sum = 0;

    for (int64_t row = 0; row < l->served_count; row++) {
        uint64_t at = (uint64_t)(l->served_first + row) << 32 | (uint32_t)l->served[row];
        sum += mix64(at + 0x9E3779B97F4A7C15u);
    }
    return sum;
}

static int check_config(const struct loader_config *cfg, struct err *e)
{
    if (cfg->size < 1 || cfg->rank < 0 || cfg->rank >= cfg->size)
        return err_set(e, "rank %d of %d ranks", cfg->rank, cfg->size);
    if (cfg->batch_size < 1 || cfg->batch_size > INT32_MAX)
        return err_set(e, "batch_size: %lld found, 1 to %d is accepted", (long long)cfg->batch_size,
                       INT32_MAX);
    if (cfg->split->n < 1)
        return err_set(e, "the split holds no image");
    return 0;
}

/* Everything but the thread. */
static int set_up(struct loader *l, struct err *e)
{
    const struct split *s = l->cfg.split;
    int64_t largest = l->cfg.batch_size;

    if (l->cfg.mode == LOADER_TRAIN) {
        l->sampler = sampler_create(l->cfg.seed, s->n, l->cfg.batch_size, e);
        if (!l->sampler)
            return -1;
        l->n_batches = sampler_steps_per_epoch(l->sampler);
    } else {
        l->n_batches = eval_n_batches(s->n, l->cfg.batch_size);
        largest = eval_n_batches(s->n, l->n_batches); /* ceil(n / batches) */
    }
    l->augment = augment_create(&l->cfg.augment, s->dataset, e);
    if (!l->augment)
        return -1;
    l->image_values = dataset_image_bytes(s->dataset);
    l->max_rows = rows_of_rank_max(largest, l->cfg.n_shards, l->cfg.size);
    if (l->cfg.mode == LOADER_EVAL) { /* batches of one row less: with shards a rank may have more of it */
        int64_t rows = rows_of_rank_max(largest - 1, l->cfg.n_shards, l->cfg.size);
        l->max_rows = rows > l->max_rows ? rows : l->max_rows;
    }
    l->positions = xmalloc((size_t)l->max_rows * sizeof *l->positions);
    l->served = xmalloc((size_t)l->max_rows * sizeof *l->served);
    return 0;
}

static int start_thread(struct loader *l, struct err *e)
{
    sigset_t all, before;

    l->labels = xmalloc((size_t)l->max_rows * sizeof *l->labels);
    l->indices = xmalloc((size_t)l->max_rows * sizeof *l->indices);
    l->images = malloc((size_t)l->max_rows * l->image_values * sizeof *l->images);
    if (!l->images)
        return err_set(e, "out of memory for %lld images to prefetch", (long long)l->max_rows);
    l->slot.wanted = l->cfg.mode == LOADER_EVAL ? 0 : NONE; /* training may resume anywhere */
    l->slot.filling = l->slot.ready = NONE;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    /* Signals are for the program's own threads: this one would only steal them. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&l->thread, NULL, prefetch_main, l);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        pthread_cond_destroy(&l->changed);
        pthread_mutex_destroy(&l->lock);
        return err_set(e, "cannot start the prefetch thread: %s", strerror(rc));
    }
    l->threaded = true;
    return 0;
}

struct loader *loader_create(const struct loader_config *cfg, struct err *e)
{
    struct loader *l = xcalloc(1, sizeof *l);

    l->cfg = *cfg;
    if (check_config(cfg, e) < 0 || set_up(l, e) < 0 || (cfg->prefetch && start_thread(l, e) < 0)) {
        err_wrap(e, "data loader");
        loader_destroy(l);
        return NULL;
    }
    return l;
}

void loader_destroy(struct loader *l)
{
    if (!l)
        return;
    if (l->threaded) {
        pthread_mutex_lock(&l->lock);
        l->slot.stop = true;
        pthread_cond_broadcast(&l->changed);
        pthread_mutex_unlock(&l->lock);
        pthread_join(l->thread, NULL);
        pthread_cond_destroy(&l->changed);
        pthread_mutex_destroy(&l->lock);
    }
    sampler_destroy(l->sampler);
    augment_destroy(l->augment);
    free(l->positions);
    free(l->served);
    free(l->images);
    free(l->labels);
    free(l->indices);
    free(l);
}
