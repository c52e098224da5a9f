/* flat - sweeps over flat fp32 ranges in device memory, which is how parameters and their gradients lie
 * (params.h): the gradient's norm, the step's vote, optimisers. One table of functions a backend.
 *
 * What changes from step to step is read from device memory (struct step_scalars), so that a GPU can replay a
 * recorded step. No update touches anything when the vote says that something is not finite. In all of them
 *
 *   lr = rate of the step × lr_scale
 *   c  = min(1, max_grad_norm / (grad_norm + 1e-6)), as torch.nn.utils.clip_grad_norm_
 */
#ifndef ENGINE_FLAT_H
#define ENGINE_FLAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/err.h"

struct backend;

/* What a training step is told and what it finds, in device memory: so a step is a fixed piece of work that
 * never asks the host, and that a GPU can record once and replay. The host writes it before the step and
 * reads it after. From `loss` to `digest` it is the vote: each rank's part before, the sums over the ranks
 * after. */
struct step_scalars {
    double lr;            /* of this step */
    double update;        /* the number of this update, from 1 */
    double max_grad_norm; /* 0: gradients are not clipped */
    double loss;          /* this rank's share → the loss of the global mini-batch */
    double loss_not_finite, grad_not_finite, stop, checkpoint; /* says this rank → ranks that say so */
    double digest[4]; /* of the rows that were fed: 16 bits each, lowest first; doubles add them exactly */
    double grad_norm; /* of the global gradient, before clipping */
};

enum { STEP_VOTE_COUNT = 9 }; /* doubles from `loss` on */

struct sgd_args {
    double lr_scale;
    float momentum, weight_decay;
    bool nesterov;
};

struct adam_args {
    double lr_scale, beta1, beta2; /* betas in [0, 1) */
    float eps, weight_decay;
    bool decoupled; /* decay as AdamW's */
};

/* A tensor within flat ranges, and a piece of one, for updates that need norms of tensors. */
enum { FLAT_CHUNK = 16384 }; /* floats, at most */
struct flat_tensor {
    int64_t first, count;     /* floats */
    int64_t chunk0, n_chunks; /* its chunks, set by flat_chunks() */
    double lr_scale;
    float weight_decay;
    int adapts; /* 0: its trust is 1 */
};
struct flat_chunk {
    int64_t first; /* float */
    int32_t count, tensor;
};

struct lars_args { /* pointers to device memory */
    const struct flat_tensor *tensors;
    const struct flat_chunk *chunks;
    int64_t n_tensors, n_chunks;
    double *partials; /* 2·n_chunks, scratch */
    float *trust;     /* n_tensors, scratch */
    double coefficient, eps;
    float momentum;
    bool nesterov;
};

/* A row that a backend does not have is NULL. */
struct flat_ops {
    /* s->loss = *loss (0 where loss is NULL), s->grad_norm = sqrt(Σ grads²), and whether they are finite. */
    int (*measure)(struct backend *be, const float *grads, size_t n, const double *loss,
                   struct step_scalars *s, struct err *e);
    /* *out (host) = Σx² in fp64 over fixed chunks; not finite when any x is not. */
    int (*sumsq)(struct backend *be, const float *x, size_t n, double *out, struct err *e);
    /* As torch.optim.SGD: g = c·g + wd·w; m = momentum·m + g; w -= lr·(nesterov ? g + momentum·m : m). g is
     * left clipped and decayed. */
    int (*sgd)(struct backend *be, float *w, float *g, float *m, size_t n, const struct sgd_args *a,
               const struct step_scalars *s, struct err *e);
    /* As torch.optim.Adam, or AdamW where decay is decoupled; t is the number of the update:
     *   AdamW: d = c·g, w -= lr·wd·w;  Adam: d = c·g + wd·w
     *   m += (1-β₁)(d - m);  v = β₂v + (1-β₂)d²;  w -= lr/(1-β₁ᵗ)·m / (√v/√(1-β₂ᵗ) + eps) */
    int (*adam)(struct backend *be, float *w, const float *g, float *m, float *v, size_t n,
                const struct adam_args *a, const struct step_scalars *s, struct err *e);
    /* Layer-wise adaptive rates (You, Gitman, Ginsburg, arXiv 1708.03888), all tensors at once; w, g and m
     * are whole flat ranges. Norms are of a tensor, in fp64 over its chunks:
     *   trust = coefficient·‖w‖ / (‖c·g‖ + wd·‖w‖ + eps); 1 where it does not adapt or a norm is 0
     *   d = trust·(c·g + wd·w);  m = momentum·m + d;  w -= lr·(nesterov ? d + momentum·m : m) */
    int (*lars)(struct backend *be, float *w, const float *g, float *m, const struct lars_args *a,
                const struct step_scalars *s, struct err *e);
    /* ema += (1-decay)·(w - ema). (In fp32 decay·ema + (1-decay)·w would settle beside w: the two factors are
     * rounded each by itself.) */
    int (*ema)(struct backend *be, float *ema, const float *w, size_t n, double decay,
               const struct step_scalars *s, struct err *e);
};

#ifdef __cplusplus
extern "C" {
#endif

/* Cuts tensors into chunks, sets chunk0 and n_chunks, fills out unless it is NULL; returns how many chunks
 * there are. Host memory. */
int64_t flat_chunks(struct flat_tensor *tensors, int64_t n_tensors, struct flat_chunk *out);

#ifdef __cplusplus
}
#endif

#endif
