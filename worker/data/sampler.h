/* sampler - in which order samples are seen, and which of them a rank sees.
 *
 * The order of an epoch is a stateless function of (seed, epoch, n): a permutation of [0, n) by Fisher-Yates
 * with Philox draws. It is cut into n / batch_size global batches; what is left at the end of an epoch is
 * dropped (another part each epoch). A step number is therefore all that a resumed run needs. Ranks see
 * slices of the global batch, so the order knows nothing of ranks.
 *
 * The one permutation in memory belongs to the epoch asked for last; asking for another epoch recomputes it.
 * A sampler is used by one thread at a time.
 */
#ifndef DATA_SAMPLER_H
#define DATA_SAMPLER_H

#include <stdint.h>
#include "common/err.h"

/* Rows [*first, *first + *count) of n that part `rank` of `size` owns: [n*rank/size, n*(rank+1)/size). Parts
 * tile [0, n) in order and differ by at most one row; a part is empty only when n < size. n >= 0, 0 <= rank
 * < size. */
void rows_of_rank(int64_t n, int rank, int size, int64_t *first, int64_t *count);

/* The same in whole micro-shards (n_shards > 0; shard k is [n*k/n_shards, n*(k+1)/n_shards)): a rank owns the
 * rows of a run of shards. Where n < n_shards every row is a shard. With n_shards = 0 it is rows_of_rank().
 */
void rows_of_rank_sharded(int64_t n, int64_t n_shards, int rank, int size, int64_t *first, int64_t *count);

/* The largest *count over all ranks. For sizing buffers. */
int64_t rows_of_rank_max(int64_t n, int64_t n_shards, int size);

/* Evaluation goes through n samples in their own order, in ceil(n / batch_size) batches whose sizes differ
 * by at most one and never exceed batch_size: every sample once, and at most two shapes to compile. */
int64_t eval_n_batches(int64_t n, int64_t batch_size);
void eval_batches(int64_t n, int64_t batch_size, int64_t i, int64_t *first, int64_t *count);

struct sampler_position {
    int64_t epoch; /* from 0 */
    int64_t batch; /* in the epoch, from 0 */
};

struct sampler;

/* n samples in global batches of batch_size. Fails when batch_size < 1 or n < batch_size: there would be no
 * batch. */
struct sampler *sampler_create(uint64_t seed, int32_t n, int64_t batch_size, struct err *e);

/* NULL is legal. */
void sampler_destroy(struct sampler *s);

/* n / batch_size. */
int64_t sampler_steps_per_epoch(const struct sampler *s);

/* Where the global step (from 0) lies. */
struct sampler_position sampler_position(const struct sampler *s, int64_t step);

/* Rows [first, first + count) of the global batch of `step`, as positions in [0, n), into out (count). */
void sampler_batch(struct sampler *s, int64_t step, int64_t first, int64_t count, int32_t *out);

#endif
