/* sampler - see sampler.h.
 *
 * Draws: key (seed, stream "data.order"), counter (i / 4, low and high half of the epoch, 0), word i % 4 for
 * the swap of place i.
 */
#include "worker/data/sampler.h"

#include <stdlib.h>
#include <string.h>
#include "common/cut.h"
#include "common/philox.h"

struct sampler {
    struct philox_key key;
    int32_t n;
    int64_t batch_size;
    int64_t epoch; /* of perm; -1 before the first */
    int32_t *perm; /* (n) */
};

void rows_of_rank(int64_t n, int rank, int size, int64_t *first, int64_t *count)
{
    *first = cut_first(n, size, rank);
    *count = cut_first(n, size, rank + 1) - *first;
}

void rows_of_rank_sharded(int64_t n, int64_t n_shards, int rank, int size, int64_t *first, int64_t *count)
{
    if (n_shards == 0 || n < n_shards) {
        rows_of_rank(n, rank, size, first, count);
        return;
    }
    *first = cut_first(n, n_shards, cut_first(n_shards, size, rank));
    *count = cut_first(n, n_shards, cut_first(n_shards, size, rank + 1)) - *first;
}

int64_t rows_of_rank_max(int64_t n, int64_t n_shards, int size)
{
    int64_t most = 0, first, count;

    for (int r = 0; r < size; r++) {
        rows_of_rank_sharded(n, n_shards, r, size, &first, &count);
        most = count > most ? count : most;
    }
    return most;
}

int64_t eval_n_batches(int64_t n, int64_t batch_size)
{
    return (n + batch_size - 1) / batch_size;
}

void eval_batches(int64_t n, int64_t batch_size, int64_t i, int64_t *first, int64_t *count)
{
    int64_t k = eval_n_batches(n, batch_size);

    *first = n * i / k;
    *count = n * (i + 1) / k - *first;
}

struct sampler *sampler_create(uint64_t seed, int32_t n, int64_t batch_size, struct err *e)
{
    if (batch_size < 1) {
        err_set(e, "batch_size: %lld found, at least 1 is accepted", (long long)batch_size);
        return NULL;
    }
    if (n < batch_size) {
        err_set(e,
                "batch_size: %lld found, but there are only %d training images: not one full batch an epoch",
                (long long)batch_size, n);
        return NULL;
    }
    struct sampler *s = xcalloc(1, sizeof *s);
    s->key = philox_make_key(seed, philox_stream("data.order"));
    s->n = n;
    s->batch_size = batch_size;
    s->epoch = -1;
    s->perm = xmalloc((size_t)n * sizeof *s->perm);
    return s;
}

void sampler_destroy(struct sampler *s)
{
    if (!s)
        return;
    free(s->perm);
    free(s);
}

int64_t sampler_steps_per_epoch(const struct sampler *s)
{
    return s->n / s->batch_size;
}

struct sampler_position sampler_position(const struct sampler *s, int64_t step)
{
    int64_t per_epoch = sampler_steps_per_epoch(s);

    return (struct sampler_position){.epoch = step / per_epoch, .batch = step % per_epoch};
}

static void permute(struct sampler *s, int64_t epoch)
{
    struct philox_block r = {{0}};

    for (int32_t i = 0; i < s->n; i++)
        s->perm[i] = i;
    for (int32_t i = s->n - 1; i > 0; i--) {
        uint32_t word = (uint32_t)i % 4;
        if (word == 3 || i == s->n - 1) /* the words of a block are used downwards */
            r = philox(s->key, (uint32_t)i / 4, (uint32_t)epoch, (uint32_t)(epoch >> 32), 0);
        uint32_t j = philox_below(r.v[word], (uint32_t)i + 1);
        int32_t t = s->perm[i];
        s->perm[i] = s->perm[j];
        s->perm[j] = t;
    }
    s->epoch = epoch;
}

void sampler_batch(struct sampler *s, int64_t step, int64_t first, int64_t count, int32_t *out)
{
    struct sampler_position at = sampler_position(s, step);

    ASSERT(step >= 0 && first >= 0 && count >= 0 && first + count <= s->batch_size);
    if (at.epoch != s->epoch)
        permute(s, at.epoch);
    memcpy(out, s->perm + at.batch * s->batch_size + first, (size_t)count * sizeof *out);
}
