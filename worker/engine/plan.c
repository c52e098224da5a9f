/* plan - see plan.h. */
#include "worker/engine/plan.h"
#include "common/err.h"
#include "worker/engine/tensor.h"

#include <stdlib.h>

/* Bigger first; ties in order of birth, then of address, so that the plan is a function of the graph. */
static int by_size(const void *pa, const void *pb)
{
    const struct plan_item *a = *(struct plan_item *const *)pa, *b = *(struct plan_item *const *)pb;

    if (a->bytes != b->bytes)
        return a->bytes > b->bytes ? -1 : 1;
    if (a->birth != b->birth)
        return a->birth < b->birth ? -1 : 1;
    return a < b ? -1 : a > b;
}

static int overlap(const struct plan_item *a, const struct plan_item *b)
{
    return a->birth <= b->death && b->birth <= a->death;
}

/* `placed` is sorted by offset. Slides over the placed items that live at the same time, to the first gap. */
static size_t find_gap(struct plan_item *const *placed, size_t n, const struct plan_item *it)
{
    size_t at = 0;

    for (size_t i = 0; i < n; i++) {
        if (!overlap(placed[i], it))
            continue;
        if (at + align_up(it->bytes) <= placed[i]->offset)
            return at;
        size_t end = placed[i]->offset + align_up(placed[i]->bytes);
        if (end > at)
            at = end;
    }
    return at;
}

size_t plan_place(struct plan_item *items, size_t n)
{
    struct plan_item **order = xmalloc(n * sizeof *order), **placed = xmalloc(n * sizeof *placed);
    size_t total = 0, n_placed = 0;

    for (size_t i = 0; i < n; i++)
        order[i] = &items[i];
    qsort(order, n, sizeof *order, by_size);
    for (size_t i = 0; i < n; i++) {
        struct plan_item *it = order[i];
        it->offset = find_gap(placed, n_placed, it);
        if (it->offset + align_up(it->bytes) > total)
            total = it->offset + align_up(it->bytes);
        size_t k = n_placed++;
        for (; k > 0 && placed[k - 1]->offset > it->offset; k--)
            placed[k] = placed[k - 1];
        placed[k] = it;
    }
    free(order);
    free(placed);
    return total;
}

size_t plan_lower_bound(const struct plan_item *items, size_t n)
{
    size_t best = 0;

    for (size_t i = 0; i < n; i++) {
        size_t sum = 0;
        for (size_t j = 0; j < n; j++)
            if (items[j].birth <= items[i].birth && items[i].birth <= items[j].death)
                sum += align_up(items[j].bytes);
        if (sum > best)
            best = sum;
    }
    return best;
}
