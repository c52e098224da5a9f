/* cuda_dnn_plan - one convolution pass as cuDNN's graph API wants it: tensors, operation, graph, heuristics,
 * plan. Private to cuda_dnn.c.
 *
 * cuDNN speaks of tensors as (N,C,H,W) and of weights as (K,C,R,S) whatever their order in memory; strides
 * say that channels come last. Groups are told by the weights' C alone.
 */
#ifndef BACKEND_CUDA_DNN_PLAN_H
#define BACKEND_CUDA_DNN_PLAN_H

#include <cudnn.h>
#include "worker/backend/cuda/cuda_dnn.h"

enum {
    CONV_PACKS = 32,     /* sets of pointers that a plan remembers */
    CONV_TEXT_MAX = 256, /* an engine and its knobs */
    CONV_ALIGNMENT = 16, /* bytes; of every tensor */
    CONV_DESCS = 8,      /* what a plan stands on: 3 tensors, convolution, operation, graph, engine */
};

/* One pass of one shape, as asked for. */
struct conv_problem {
    struct conv_shape shape;
    struct cuda_conv_options options;
    enum conv_pass pass;
    enum dtype w_dtype; /* options.dtype but for a gradient of weights in fp32 */
    bool no_fallback;   /* only engines that the heuristics recommend */
    const char *key;    /* in options.tuning; NULL without one */
};

enum { CONV_X, CONV_W, CONV_Y, CONV_WORKSPACE, N_CONV_PTRS };

/* Pointers, as cuDNN wants them: made once for each set, because making one allocates. */
struct conv_pack {
    void *ptr[N_CONV_PTRS];
    cudnnBackendDescriptor_t desc;
};

struct conv_plan {
    cudnnBackendDescriptor_t plan;              /* NULL: not planned */
    cudnnBackendDescriptor_t descs[CONV_DESCS]; /* kept as long as the plan */
    int n_descs;
    size_t workspace_bytes;
    struct conv_pack packs[CONV_PACKS];
    int next_pack; /* the one to be replaced next */
    char text[CONV_TEXT_MAX];
};

/* Chooses and makes the plan; *plan is zeroed before. After a failure it is to be destroyed, too. */
int conv_plan_create(cudnnHandle_t handle, cudaStream_t stream, const struct conv_problem *p,
                     struct conv_plan *plan, struct err *e);
void conv_plan_destroy(struct conv_plan *plan);

/* Enqueues the pass on the handle's stream. ptr: x, w, y (or their gradients) and workspace. */
int conv_plan_run(cudnnHandle_t handle, struct conv_plan *plan, void *const ptr[N_CONV_PTRS], struct err *e);

#endif
