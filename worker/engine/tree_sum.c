/* tree_sum - see tree_sum.h. */
#include "worker/engine/tree_sum.h"

#include <stdbool.h>
#include <stdlib.h>
#include "common/cut.h"

/* Up to so many bytes of all roots together are gathered whole: one message less. */
enum { GATHER_MAX_BYTES = 64 << 10 };

struct tree_sum *tree_sum_create(struct comm *comm, struct backend *backend, int32_t n_shards)
{
    struct tree_sum *t = xcalloc(1, sizeof *t);
    size_t size = (size_t)comm->size;

    ASSERT(n_shards >= comm->size);
    t->comm = comm;
    t->backend = backend;
    t->n_shards = n_shards;
    t->nodes = xcalloc(size * SHARDS_MAX_ROOTS, sizeof *t->nodes);
    t->roots = xcalloc(size, sizeof *t->roots);
    t->send = xcalloc(size, sizeof *t->send);
    t->recv = xcalloc(size, sizeof *t->recv);
    t->slice = xcalloc(size, sizeof *t->slice);
    for (int r = 0; r < comm->size; r++) {
        int32_t first, end;
        shards_of_rank(n_shards, r, comm->size, &first, &end);
        int n = shards_roots(n_shards, first, end, t->nodes + t->n_all);
        t->roots[r] = n;
        t->n_all += n;
    }
    t->n_roots = (int)t->roots[comm->rank];
    return t;
}

void tree_sum_destroy(struct tree_sum *t)
{
    if (!t)
        return;
    free(t->nodes);
    free(t->roots);
    free(t->send);
    free(t->recv);
    free(t->slice);
    free(t);
}

static bool gathers_whole(const struct tree_sum *t, int64_t n, enum dtype dtype)
{
    return (size_t)n * dtype_bytes(dtype) * (size_t)t->n_all <= GATHER_MAX_BYTES;
}

/* Own roots packed, and behind them what comes from all ranks: n elements of each root, or a slice of each.
 */
static size_t packed_bytes(const struct tree_sum *t, int64_t n, enum dtype dtype)
{
    return align_up((size_t)n * dtype_bytes(dtype) * (size_t)t->n_roots);
}

/* `each`: elements of every root that this rank adds up. */
static size_t stage_bytes(const struct tree_sum *t, int64_t n, int64_t each, enum dtype dtype)
{
    if (t->comm->size == 1)
        return 0;
    return packed_bytes(t, n, dtype) + align_up((size_t)each * dtype_bytes(dtype) * (size_t)t->n_all);
}

size_t tree_all_reduce_stage_bytes(const struct tree_sum *t, int64_t n, enum dtype dtype)
{
    return stage_bytes(t, n, gathers_whole(t, n, dtype) ? n : n / t->comm->size + 1, dtype);
}

size_t tree_reduce_scatter_stage_bytes(const struct tree_sum *t, const int64_t *counts, int64_t width)
{
    int64_t n = 0;

    for (int r = 0; r < t->comm->size; r++)
        n += counts[r] * width;
    return stage_bytes(t, n, counts[t->comm->rank] * width, DTYPE_F32);
}

/* Copies elements [first, first + n) of every root of this rank to `to`, one behind the other. */
static int pack(const struct tree_sum *t, void *const *parts, int64_t first, int64_t n, size_t bytes,
                char *to, struct err *e)
{
    for (int i = 0; i < t->n_roots; i++)
        if (t->backend->ops->copy(t->backend, to + (size_t)(i * n) * bytes,
                                  (const char *)parts[i] + (size_t)first * bytes, (size_t)n * bytes, e) < 0)
            return -1;
    return 0;
}

/* all: the roots of all ranks, n elements each. Block 0 becomes the sum. */
static int sum_blocks(const struct tree_sum *t, char *all, int64_t n, enum dtype dtype, struct err *e)
{
    const size_t block = (size_t)n * dtype_bytes(dtype);
    struct tree_stack stack = tree_stack_make(t->n_shards);
    char *slots[SHARDS_MAX_ROOTS + 1];

    for (int k = 0; k < t->n_all; k++) {
        int top = stack.n;
        slots[top] = all + (size_t)k * block;
        for (int merges = tree_push(&stack, t->nodes[k]); merges > 0; merges--, top--)
            if (n > 0 &&
                t->backend->ops->accumulate(t->backend, slots[top - 1], slots[top], (size_t)n, dtype, e) < 0)
                return -1;
    }
    ASSERT(stack.n == 1);
    return 0;
}

/* Every rank receives all roots whole. */
static int sum_gathered(struct tree_sum *t, void *const *parts, void *out, int64_t n, enum dtype dtype,
                        char *stage, struct err *e)
{
    const size_t bytes = dtype_bytes(dtype);
    char *all = stage + packed_bytes(t, n, dtype);

    if (pack(t, parts, 0, n, bytes, stage, e) < 0 ||
        comm_all_gather(t->comm, stage, all, t->roots, (size_t)n * bytes, e) < 0 ||
        sum_blocks(t, all, n, dtype, e) < 0)
        return -1;
    return t->backend->ops->copy(t->backend, out, all, (size_t)n * bytes, e);
}

/* Rank r receives elements t->slice[r] of all roots and adds them up; *sum points at its slice of the sum. */
static int sum_slices(struct tree_sum *t, void *const *parts, int64_t n, enum dtype dtype, char *stage,
                      char **sum, struct err *e)
{
    const size_t bytes = dtype_bytes(dtype);
    const int64_t own = t->slice[t->comm->rank];
    char *to = stage;
    int64_t first = 0;

    for (int r = 0; r < t->comm->size; r++) {
        if (pack(t, parts, first, t->slice[r], bytes, to, e) < 0)
            return -1;
        t->send[r] = t->slice[r] * t->n_roots;
        t->recv[r] = own * t->roots[r];
        to += (size_t)t->send[r] * bytes;
        first += t->slice[r];
    }
    ASSERT(first == n);
    *sum = stage + packed_bytes(t, n, dtype);
    if (comm_all_to_all(t->comm, stage, t->send, *sum, t->recv, bytes, e) < 0)
        return -1;
    return sum_blocks(t, *sum, own, dtype, e);
}

int tree_all_reduce(struct tree_sum *t, void *const *parts, void *out, int64_t n, enum dtype dtype,
                    void *stage, struct err *e)
{
    const size_t bytes = dtype_bytes(dtype);
    char *sum;

    if (t->comm->size == 1)
        return out == parts[0] ? 0 : t->backend->ops->copy(t->backend, out, parts[0], (size_t)n * bytes, e);
    if (gathers_whole(t, n, dtype))
        return sum_gathered(t, parts, out, n, dtype, stage, e);
    for (int r = 0; r < t->comm->size; r++)
        t->slice[r] = cut_first(n, t->comm->size, r + 1) - cut_first(n, t->comm->size, r);
    if (sum_slices(t, parts, n, dtype, stage, &sum, e) < 0)
        return -1;
    return comm_all_gather(t->comm, sum, out, t->slice, bytes, e);
}

int tree_reduce_scatter(struct tree_sum *t, void *const *parts, float *out, const int64_t *counts,
                        int64_t width, void *stage, struct err *e)
{
    int64_t n = 0;
    char *sum;

    for (int r = 0; r < t->comm->size; r++)
        n += t->slice[r] = counts[r] * width;
    if (t->comm->size == 1)
        return t->backend->ops->copy(t->backend, out, parts[0], (size_t)n * sizeof *out, e);
    if (sum_slices(t, parts, n, DTYPE_F32, stage, &sum, e) < 0)
        return -1;
    return t->backend->ops->copy(t->backend, out, sum, (size_t)t->slice[t->comm->rank] * sizeof *out, e);
}
