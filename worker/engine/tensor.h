/* tensor - shapes and element types. There is no tensor object: a node has a shape, a plan has an offset, and
 * an arena owns the bytes.
 *
 * Activations are row-major and channels-last: (n, H, W, C) for images, (n, C) for features. "Rows" are what
 * comes before the last dimension, so every operator but convolution, pooling and attention is a (rows ×
 * channels) loop.
 */
#ifndef ENGINE_TENSOR_H
#define ENGINE_TENSOR_H

#include <stddef.h>
#include <stdint.h>

enum dtype { DTYPE_F32, DTYPE_F64, DTYPE_I32, DTYPE_BF16 };

enum { SHAPE_MAX_DIMS = 4, TENSOR_ALIGN_BYTES = 64 };

struct shape {
    int n_dims;
    int64_t dims[SHAPE_MAX_DIMS];
};

static inline struct shape shape1(int64_t a)
{
    return (struct shape){1, {a}};
}
static inline struct shape shape2(int64_t a, int64_t b)
{
    return (struct shape){2, {a, b}};
}
static inline struct shape shape4(int64_t a, int64_t b, int64_t c, int64_t d)
{
    return (struct shape){4, {a, b, c, d}};
}

static inline int64_t shape_count(struct shape s)
{
    int64_t n = 1;

    for (int i = 0; i < s.n_dims; i++)
        n *= s.dims[i];
    return n;
}

/* The last dimension. */
static inline int64_t shape_channels(struct shape s)
{
    return s.dims[s.n_dims - 1];
}

/* Elements divided by channels. */
static inline int64_t shape_rows(struct shape s)
{
    int64_t n = 1;

    for (int i = 0; i < s.n_dims - 1; i++)
        n *= s.dims[i];
    return n;
}

static inline int shape_equal(struct shape a, struct shape b)
{
    if (a.n_dims != b.n_dims)
        return 0;
    for (int i = 0; i < a.n_dims; i++)
        if (a.dims[i] != b.dims[i])
            return 0;
    return 1;
}

static inline size_t dtype_bytes(enum dtype t)
{
    return t == DTYPE_F64 ? 8 : t == DTYPE_BF16 ? 2 : 4;
}

static inline size_t align_up(size_t n)
{
    return (n + TENSOR_ALIGN_BYTES - 1) & ~(size_t)(TENSOR_ALIGN_BYTES - 1);
}

/* "(32, 28, 28, 16)" */
const char *shape_text(struct shape s, char out[96]);

const char *dtype_name(enum dtype t);

#endif
