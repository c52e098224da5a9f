/* loader - this rank's rows of any global batch, ready for the net: float32 (rows, H, W, C) and int32
 * labels.
 *
 * A training loader serves global steps, an evaluation loader serves evaluation batches. Both are random
 * access: what a call returns is a function of the configuration and the number asked for, never of calls
 * before it, so a resumed run needs no state. With prefetch on, one thread prepares the batch that follows
 * the last one served; asking for another one is right all the same and only waits longer.
 *
 * The split and its dataset are borrowed and must outlive the loader. One thread at a time calls.
 */
#ifndef DATA_LOADER_H
#define DATA_LOADER_H

#include <stdbool.h>
#include <stdint.h>
#include "common/err.h"
#include "worker/data/augment.h"
#include "worker/data/dataset.h"
#include "worker/data/sampler.h"

enum loader_mode {
    LOADER_TRAIN, /* shuffled by epoch, augmented, last partial batch dropped */
    LOADER_EVAL,  /* in the split's order, every image once, never augmented (normalize still holds) */
};

struct loader_config {
    enum loader_mode mode;
    const struct split *split;
    uint64_t seed;      /* LOADER_TRAIN */
    int64_t batch_size; /* global; for LOADER_EVAL the most that a batch may have */
    struct augment_config augment;
    int rank, size;
    int64_t n_shards; /* > 0: ranks own whole micro-shards (rows_of_rank_sharded()) */
    bool prefetch;    /* a thread of its own; costs one more batch of memory */
};

struct loader;

/* Fails when the split is smaller than one batch (LOADER_TRAIN) or empty, on a bad rank or size, on a bad
 * augment configuration, when memory is short, or when the thread cannot start. */
struct loader *loader_create(const struct loader_config *cfg, struct err *e);

/* Ends the thread. NULL is legal. */
void loader_destroy(struct loader *l);

/* Most rows that any call fills on any rank. Buffers hold so many rows. */
int64_t loader_max_rows(const struct loader *l);

/* LOADER_TRAIN: global steps an epoch. LOADER_EVAL: batches an evaluation. */
int64_t loader_n_batches(const struct loader *l);

/* LOADER_TRAIN only: epoch and batch of a global step. */
struct sampler_position loader_position(const struct loader *l, int64_t step);

/* The global rows of batch `i` (a step or an evaluation batch): *batch_rows in all, this rank's are [*first,
 * *first + *count). first is also the global row number that keys dropout. */
void loader_rows(const struct loader *l, int64_t i, int64_t *batch_rows, int64_t *first, int64_t *count);

/* LOADER_TRAIN only: fills this rank's rows of the global batch of `step` (>= 0, from 0 over the whole run).
 * images and labels are the caller's, loader_max_rows() rows each. Returns the rows filled (0 when there are
 * more ranks than rows), or -1 for a negative step. */
int64_t loader_batch(struct loader *l, int64_t step, float *images, int32_t *labels, struct err *e);

/* LOADER_EVAL only: the same for evaluation batch i in [0, loader_n_batches()). */
int64_t loader_eval_batch(struct loader *l, int64_t i, float *images, int32_t *labels, struct err *e);

/* Which images of the dataset the batch served last was made of: positions in it, one a row, from global row
 * *first of the batch. Noted where the pixels are copied, by whichever thread does it. Valid until the next
 * batch. *count 0: no batch yet. */
const int32_t *loader_served(const struct loader *l, int64_t *first, int64_t *count);

/* A digest of the same: Σ mod 2^64 over the rows of mix64(global row, position in the dataset). Digests of
 * all ranks add up to that of one rank, in any order; it is 0 without rows. */
uint64_t loader_digest(const struct loader *l);

/* Nanoseconds that calls so far have spent waiting for data (preparing it, without prefetch). */
int64_t loader_data_wait_ns(const struct loader *l);

#endif
