/* cuda_flat - the optimiser's sweeps and the gradient's norm (kernels in flat.cu). */
#include "worker/backend/cuda/cuda_internal.h"
#include "worker/backend/cuda/flat.h"

static int measure(struct backend *be, const float *grads, size_t n, const double *loss,
                   struct step_scalars *s, struct err *e)
{
    struct cuda_backend *b = cuda_of(be);

    CUDA_TRY(e, flat_grad_norm(grads, (int64_t)n, b->partials, s, b->compute));
    CUDA_TRY(e, flat_vote(loss, s, b->compute));
    return 0;
}

static int sgd(struct backend *be, float *w, float *g, float *m, size_t n, const struct sgd_args *a,
               const struct step_scalars *s, struct err *e)
{
    const struct flat_range range = {.w = w, .g = g, .n = (int64_t)n, .lr_scale = a->lr_scale};
    const struct flat_sgd_args args = {
        .momentum = a->momentum, .weight_decay = a->weight_decay, .nesterov = a->nesterov, .keep_grad = 1};

    CUDA_TRY(e, flat_sgd(&range, m, &args, s, cuda_of(be)->compute));
    return 0;
}

static int sumsq(struct backend *be, const float *x, size_t n, double *out, struct err *e)
{
    struct cuda_backend *b = cuda_of(be);

    CUDA_TRY(e, flat_sumsq(x, (int64_t)n, b->partials, b->sum, b->compute));
    return be->ops->download(be, out, b->sum, sizeof *out, e);
}

const struct flat_ops cuda_flat_ops = {measure, sgd, sumsq};
