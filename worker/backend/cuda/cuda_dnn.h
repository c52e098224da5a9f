/* cuda_dnn - the thin wrapper of cuDNN's graph API: only cuda_dnn_plan.h, which is private to
 * its two files, includes its header.
 *
 * Convolutions are channels-last: activations (n,H,W,C), weights (Co,k,k,Ci/groups) of the activations' type
 * (reorder.h makes them from the engine's masters), products summed in fp32. A convolution is a plan for each
 * pass, chosen once for a shape and shared by all nodes of that shape.
 *
 * Choosing asks the library's heuristics for engines, in the order of their promise. Without a table of
 * choices (engine/tuning.h) the first that may be used is taken. With one, the engine that it names, as long
 * as it may be used; else, with a warning, the first. Where the table has no entry and measuring is allowed,
 * the first few that may be used run on scratch memory, and the fastest is taken.
 *
 * Every result is defined, none is added to. A run allocates nothing once it has seen its pointers, and can
 * be captured in a CUDA graph.
 */
#ifndef BACKEND_CUDA_DNN_H
#define BACKEND_CUDA_DNN_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/err.h"
#include "worker/engine/conv.h"
#include "worker/engine/tensor.h"

struct cuda_dnn;
struct cuda_conv;
struct tuning;

/* 91900 for 9.19.0, of the library that is loaded. */
size_t cuda_dnn_version(void);

struct cuda_conv_options {
    enum dtype dtype;       /* of activations, and of the weights given: DTYPE_F32 or DTYPE_BF16 */
    bool allow_tf32;        /* fp32 only: tensor cores may read operands with 10 bits of mantissa */
    bool deterministic;     /* no engine that may give other bits the next time */
    bool f32_grad;          /* bf16 only: the gradient of weights in fp32 where an engine can do that */
    size_t workspace_limit; /* bytes a pass may ask for */
    struct tuning *tuning;  /* what to take, or NULL; longer-lived than the struct cuda_dnn */
};

/* Everything runs on `stream`, which the caller keeps until after cuda_dnn_destroy(). */
struct cuda_dnn *cuda_dnn_create(cudaStream_t stream, struct err *e);
void cuda_dnn_destroy(struct cuda_dnn *d); /* with all its convolutions */

/* The convolution of that shape and those options, from the cache, or made now; it belongs to `d`. `passes`
 * is a set of 1u << enum conv_pass: those of them that it cannot do yet are planned. n, ho, wo >= 1. Not
 * inside a capture. */
struct cuda_conv *cuda_conv_get(struct cuda_dnn *d, const struct conv_shape *s,
                                const struct cuda_conv_options *o, unsigned passes, struct err *e);

/* Bytes that each call needs at `workspace`, however aligned; the largest of the planned passes. */
size_t cuda_conv_workspace_bytes(const struct cuda_conv *c);

/* Of the gradient that cuda_conv_backward_weights() makes. */
enum dtype cuda_conv_grad_dtype(const struct cuda_conv *c);

/* "forward eng37_k2=5_k13=1 …": engine index and knobs of every planned pass. Valid until the next
 * cuda_conv_get(). */
const char *cuda_conv_text(const struct cuda_conv *c);

/* x (n,h,w,ci), w (co,k,k,ci/groups), y (n,ho,wo,co), gradients likewise; aligned to 16. Calling a pass that
 * was not asked for is our bug. */
int cuda_conv_forward(struct cuda_conv *c, const void *x, const void *w, void *y, void *workspace,
                      struct err *e);
int cuda_conv_backward_data(struct cuda_conv *c, const void *dy, const void *w, void *dx, void *workspace,
                            struct err *e);
int cuda_conv_backward_weights(struct cuda_conv *c, const void *x, const void *dy, void *dw, void *workspace,
                               struct err *e);

#endif
