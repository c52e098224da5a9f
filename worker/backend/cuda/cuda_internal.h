/* cuda_internal - what the files of the CUDA backend share: the backend's struct and the kernels' prototypes
 * (the table is in cuda.c). Same eight families as backend/cpu.
 */
#ifndef BACKEND_CUDA_INTERNAL_H
#define BACKEND_CUDA_INTERNAL_H

#include <cuda_runtime_api.h>
#include "worker/backend/cuda/cuda.h"
#include "worker/backend/cuda/cuda_blas.h"
#include "worker/backend/cuda/cuda_dnn.h"
#include "worker/backend/cuda/cuda_util.h"

enum { STAGING_BYTES = 8 << 20, N_STAGING = 2 };

/* A pinned buffer on its way to the device. */
struct staging {
    char *host;
    cudaEvent_t sent; /* its last copy has been made */
};

/* What upload_ahead() brings: it waits in device memory until upload() copies it to its place. */
struct ahead {
    cudaStream_t stream;
    cudaEvent_t arrived, used; /* all of it is there; it was copied to its place */
    void *device;
    size_t capacity;
    const void *src; /* NULL: nothing is waiting */
    size_t bytes;
};

struct cuda_backend {
    struct backend base; /* first: a struct backend * is a struct cuda_backend * */
    struct cuda_config cfg;
    cudaStream_t compute, comm;
    struct cuda_dnn *dnn;
    struct cuda_blas *blas;
    struct staging staging[N_STAGING];
    int next_staging;
    struct ahead ahead;
    struct step_ctx *step;  /* device: what random draws are keyed by */
    double *partials, *sum; /* device: scratch of sums over flat ranges */
};

static inline struct cuda_backend *cuda_of(struct backend *be)
{
    return (struct cuda_backend *)be;
}

/* The backend that a node was prepared for is the start of every state. */
struct cuda_state {
    struct cuda_backend *be;
};

static inline struct cuda_backend *cuda_call_backend(const struct op_call *c)
{
    return ((const struct cuda_state *)c->state)->be;
}

static inline bool acc_bit(const struct op_call *c, int input)
{
    return (c->acc >> input) & 1;
}

/* A state that holds no more than the backend; released by free(). */
int cuda_plain_prepare(struct backend *be, const struct node *n, struct op_prep *p, struct err *e);

extern const struct flat_ops cuda_flat_ops;

#define KERNEL_PREPARE(name)                                                                                 \
    int cuda_##name##_prepare(struct backend *be, const struct node *n, struct op_prep *p, struct err *e)
#define KERNEL_FORWARD(name) int cuda_##name##_op_forward(const struct op_call *c, struct err *e)
#define KERNEL_BACKWARD(name) int cuda_##name##_op_backward(const struct op_call *c, struct err *e)

/* cuda_conv.c: what looks at pixels */
KERNEL_PREPARE(conv2d);
KERNEL_FORWARD(conv2d);
KERNEL_BACKWARD(conv2d);
KERNEL_PREPARE(maxpool);
KERNEL_FORWARD(maxpool);
KERNEL_BACKWARD(maxpool);
KERNEL_FORWARD(mean_spatial);
KERNEL_BACKWARD(mean_spatial);
KERNEL_FORWARD(shortcut_pad);
KERNEL_BACKWARD(shortcut_pad);
/* cuda_norm.c */
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
/* cuda_gemm.c */
KERNEL_PREPARE(linear);
KERNEL_FORWARD(linear);
KERNEL_BACKWARD(linear);
/* cuda_attention.c */
KERNEL_PREPARE(attention);
KERNEL_FORWARD(attention);
KERNEL_BACKWARD(attention);
/* cuda_elem.c */
KERNEL_FORWARD(act);
KERNEL_BACKWARD(act);
KERNEL_FORWARD(add);
KERNEL_BACKWARD(add);
KERNEL_FORWARD(cast);
KERNEL_BACKWARD(cast);
KERNEL_FORWARD(dropout);
KERNEL_BACKWARD(dropout);
KERNEL_FORWARD(concat_rows);
KERNEL_BACKWARD(concat_rows);
KERNEL_FORWARD(slice_rows);
KERNEL_BACKWARD(slice_rows);
/* cuda_loss.c */
KERNEL_PREPARE(softmax_xent);
KERNEL_FORWARD(softmax_xent);
KERNEL_BACKWARD(softmax_xent);

#endif
