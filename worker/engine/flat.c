/* flat - see flat.h. */
#include "worker/engine/flat.h"

int64_t flat_chunks(struct flat_tensor *tensors, int64_t n_tensors, struct flat_chunk *out)
{
    int64_t n = 0;

    for (int64_t i = 0; i < n_tensors; i++) {
        struct flat_tensor *t = &tensors[i];
        t->chunk0 = n;
        t->n_chunks = (t->count + FLAT_CHUNK - 1) / FLAT_CHUNK;
        for (int64_t c = 0; c < t->n_chunks; c++, n++) {
            int64_t from = c * FLAT_CHUNK, left = t->count - from;
            if (out)
                out[n] = (struct flat_chunk){.first = t->first + from,
                                             .count = left < FLAT_CHUNK ? (int32_t)left : (int32_t)FLAT_CHUNK,
                                             .tensor = (int32_t)i};
        }
    }
    return n;
}
