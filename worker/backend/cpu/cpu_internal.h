/* cpu_internal - what the files of the CPU backend share: the backend's struct, the rule by which work is
 * cut, and the kernels' prototypes (the table is in cpu.c).
 *
 * Determinism: whatever is summed is summed over chunks whose number and bounds depend on shapes only;
 * threads take whole chunks and one thread adds up the partial sums in order. So our own kernels give the
 * same bits for every number of threads. An element of a matrix product depends on its row and its column
 * only (cpu_panel.h), so products may be cut in any way. The one exception is oneDNN's convolution backward
 * for weights, whose order of summation depends on the number of threads (cpu_conv.c).
 */
#ifndef BACKEND_CPU_INTERNAL_H
#define BACKEND_CPU_INTERNAL_H

#ifdef _OPENMP
#include <omp.h>
#endif
#include "worker/backend/cpu/cpu_draws.h"
#include "worker/backend/cpu/dn.h"
#include "worker/engine/backend.h"

struct cpu_backend {
    struct backend base;    /* first: a struct backend * is a struct cpu_backend * */
    struct backend_ops ops; /* what base.ops is; bf16 is what this CPU can do */
    struct dn *dn;
    int n_threads;
    bool winograd; /* convolutions may take Winograd's algorithm */
};

static inline struct cpu_backend *cpu_of(struct backend *be)
{
    return (struct cpu_backend *)be;
}

/* Of the calling thread, within its team. */
static inline int cpu_thread_idx(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static inline int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}
static inline int64_t max_i64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}
static inline int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

enum { CHUNKS_MAX = 64 };

/* n_items cut into n <= CHUNKS_MAX chunks of `step` items (the last may be shorter). */
struct chunks {
    int64_t n_items, step;
    int n;
};

/* step is at least min_step, and a multiple of it. */
static inline struct chunks chunks_make(int64_t n_items, int64_t min_step)
{
    int64_t step = ceil_div(ceil_div(n_items, CHUNKS_MAX), min_step) * min_step;

    step = max_i64(step, min_step);
    return (struct chunks){n_items, step, (int)ceil_div(n_items, step)};
}

static inline int64_t chunk_first(const struct chunks *c, int k)
{
    return k * c->step;
}
static inline int64_t chunk_end(const struct chunks *c, int k)
{
    return min_i64((k + 1) * c->step, c->n_items);
}

static inline bool acc_bit(const struct op_call *c, int input)
{
    return (c->acc >> input) & 1;
}

/* out[i] = Σ over parts of part[k·width + i], in order; fp64. */
static inline void cpu_sum_parts(const double *part, int n_parts, int64_t width, double *out)
{
    for (int64_t i = 0; i < width; i++)
        out[i] = 0;
    for (int k = 0; k < n_parts; k++)
        for (int64_t i = 0; i < width; i++)
            out[i] += part[k * width + i];
}

/* *dst = v, or *dst += v. */
static inline void cpu_put(float *dst, double v, bool add)
{
    *dst = (float)(add ? *dst + v : v);
}

/* dst = src, or dst += src; n floats. */
void cpu_copy_or_add(float *dst, const float *src, int64_t n, bool add);
/* Likewise; n elements of type t, f32 or bf16. */
void cpu_write_or_add(void *dst, const void *src, int64_t n, enum dtype t, bool add);
/* dst = src, or dst += src, from one of the types f32 and bf16 to the other or the same; n elements. */
void cpu_cast(void *dst, enum dtype to, const void *src, enum dtype from, int64_t n, bool add);

extern const struct flat_ops cpu_flat_ops;

#define KERNEL_PREPARE(name)                                                                                 \
    int cpu_##name##_prepare(struct backend *be, const struct node *n, struct op_prep *p, struct err *e)
#define KERNEL_FORWARD(name) int cpu_##name##_forward(const struct op_call *c, struct err *e)
#define KERNEL_BACKWARD(name) int cpu_##name##_backward(const struct op_call *c, struct err *e)

/* cpu_conv.c: what looks at pixels */
KERNEL_PREPARE(conv2d);
void cpu_conv2d_release(void *state);
KERNEL_FORWARD(conv2d);
KERNEL_BACKWARD(conv2d);
KERNEL_PREPARE(maxpool);
KERNEL_FORWARD(maxpool);
KERNEL_BACKWARD(maxpool);
KERNEL_FORWARD(mean_spatial);
KERNEL_BACKWARD(mean_spatial);
KERNEL_FORWARD(shortcut_pad);
KERNEL_BACKWARD(shortcut_pad);
/* cpu_wide.c: layernorm, linear, attention and softmax_xent, f32 and bf16 */
KERNEL_PREPARE(wide);
void cpu_wide_release(void *state);
KERNEL_FORWARD(wide);
KERNEL_BACKWARD(wide);
/* cpu_norm.c, cpu_layernorm.c */
KERNEL_PREPARE(bn_stats);
KERNEL_FORWARD(bn_stats);
KERNEL_BACKWARD(bn_stats);
KERNEL_PREPARE(bn_apply);
KERNEL_FORWARD(bn_apply);
KERNEL_BACKWARD(bn_apply);
KERNEL_PREPARE(bn_infer);
KERNEL_FORWARD(bn_infer);
KERNEL_PREPARE(layernorm);
KERNEL_FORWARD(layernorm);
KERNEL_BACKWARD(layernorm);
/* cpu_gemm.c */
KERNEL_PREPARE(linear);
KERNEL_FORWARD(linear);
KERNEL_BACKWARD(linear);
/* cpu_attention.c */
KERNEL_PREPARE(attention);
KERNEL_FORWARD(attention);
KERNEL_BACKWARD(attention);
/* cpu_elem.c */
KERNEL_FORWARD(cast);
KERNEL_BACKWARD(cast);
KERNEL_FORWARD(act);
KERNEL_BACKWARD(act);
KERNEL_FORWARD(add);
KERNEL_BACKWARD(add);
KERNEL_FORWARD(dropout);
KERNEL_BACKWARD(dropout);
KERNEL_FORWARD(concat_rows);
KERNEL_BACKWARD(concat_rows);
KERNEL_FORWARD(slice_rows);
KERNEL_BACKWARD(slice_rows);
/* cpu_loss.c */
KERNEL_PREPARE(softmax_xent);
KERNEL_FORWARD(softmax_xent);
KERNEL_BACKWARD(softmax_xent);

#endif
