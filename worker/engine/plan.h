/* plan - places buffers with known lives into one arena so that those alive at the same time never overlap.
 */
#ifndef ENGINE_PLAN_H
#define ENGINE_PLAN_H

#include <stddef.h>

struct plan_item {
    size_t bytes;
    int birth, death; /* alive at every time t with birth <= t <= death */
    size_t offset;    /* out: multiple of TENSOR_ALIGN_BYTES */
};

/* Sets every offset; returns the bytes of the arena. Greedy by size: the biggest first, each at the lowest
 * offset free during its life. On ResNets this reaches the lower bound (the largest sum of bytes alive at
 * once). */
size_t plan_place(struct plan_item *items, size_t n);

/* The largest sum of bytes alive at once: no arena can be smaller. */
size_t plan_lower_bound(const struct plan_item *items, size_t n);

#endif
