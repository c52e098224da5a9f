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

/* The kernel only reads g. */
static int adam(struct backend *be, float *w, const float *g, float *m, float *v, size_t n,
                const struct adam_args *a, const struct step_scalars *s, struct err *e)
{
    const struct flat_range range = {.w = w, .g = (float *)g, .n = (int64_t)n, .lr_scale = a->lr_scale};

    CUDA_TRY(e, flat_adam(&range, m, v, a, s, cuda_of(be)->compute));
    return 0;
}

/* The same. */
static int lars(struct backend *be, float *w, const float *g, float *m, const struct lars_args *a,
                const struct step_scalars *s, struct err *e)
{
    const struct flat_range range = {.w = w, .g = (float *)g};

    CUDA_TRY(e, flat_lars(&range, m, a, s, cuda_of(be)->compute));
    return 0;
}

static int ema(struct backend *be, float *average, const float *w, size_t n, double decay,
               const struct step_scalars *s, struct err *e)
{
    CUDA_TRY(e, flat_ema(average, w, (int64_t)n, decay, s, cuda_of(be)->compute));
    return 0;
}

const struct flat_ops cuda_flat_ops = {
    .measure = measure, .sumsq = sumsq, .sgd = sgd, .adam = adam, .lars = lars, .ema = ema};
