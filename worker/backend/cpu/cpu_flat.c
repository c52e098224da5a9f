/* cpu_flat - sweeps over flat fp32 ranges: the optimiser's step, the gradient's norm.
 *
 * Chunks depend on lengths alone, so sums of squares have the same bits for every number of threads.
 */
#include <math.h>
#include "worker/backend/cpu/cpu_internal.h"

enum { FLAT_STEP = 4096 }; /* floats; a chunk is a multiple */

/* What a sweep of SGD uses, rounded once. */
struct sgd_step {
    float lr, clip, momentum, weight_decay;
    bool nesterov;
};

static void sgd_range(float *restrict w, float *restrict g, float *restrict m, int64_t n,
                      const struct sgd_step *a)
{
    const float lr = a->lr, clip = a->clip, momentum = a->momentum, wd = a->weight_decay;

    if (a->nesterov) {
        for (int64_t i = 0; i < n; i++) {
            g[i] = clip * g[i] + wd * w[i];
            m[i] = momentum * m[i] + g[i];
            w[i] -= lr * (g[i] + momentum * m[i]);
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            g[i] = clip * g[i] + wd * w[i];
            m[i] = momentum * m[i] + g[i];
            w[i] -= lr * m[i];
        }
    }
}

static float clip_factor(const struct step_scalars *s)
{
    double factor = s->max_grad_norm > 0 ? s->max_grad_norm / (s->grad_norm + 1e-6) : 1;

    return factor < 1 ? (float)factor : 1;
}

static bool skips(const struct step_scalars *s)
{
    return s->loss_not_finite > 0 || s->grad_not_finite > 0;
}

static int sgd(struct backend *be, float *w, float *g, float *m, size_t n, const struct sgd_args *a,
               const struct step_scalars *s, struct err *e)
{
    const struct chunks ch = chunks_make((int64_t)n, FLAT_STEP);
    const struct sgd_step step = {.lr = (float)(s->lr * a->lr_scale),
                                  .clip = clip_factor(s),
                                  .momentum = a->momentum,
                                  .weight_decay = a->weight_decay,
                                  .nesterov = a->nesterov};

    (void)be;
    (void)e;
    if (skips(s))
        return 0;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++) {
        int64_t i = chunk_first(&ch, k);

        sgd_range(w + i, g + i, m + i, chunk_end(&ch, k) - i, &step);
    }
    return 0;
}

static double sumsq_range(const float *x, int64_t n)
{
    double sum = 0;

#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return sum;
}

static int sumsq(struct backend *be, const float *x, size_t n, double *out, struct err *e)
{
    const struct chunks ch = chunks_make((int64_t)n, FLAT_STEP);
    double part[CHUNKS_MAX], sum = 0;

    (void)be;
    (void)e;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++)
        part[k] = sumsq_range(x + chunk_first(&ch, k), chunk_end(&ch, k) - chunk_first(&ch, k));
    for (int k = 0; k < ch.n; k++)
        sum += part[k];
    *out = sum;
    return 0;
}

static int measure(struct backend *be, const float *grads, size_t n, const double *loss,
                   struct step_scalars *s, struct err *e)
{
    double sq;

    if (sumsq(be, grads, n, &sq, e) < 0)
        return -1;
    s->grad_norm = sqrt(sq);
    s->grad_not_finite = !isfinite(sq);
    s->loss = loss ? *loss : 0;
    s->loss_not_finite = !isfinite(s->loss);
    return 0;
}

/* What a sweep of Adam uses, rounded once. */
struct adam_step {
    float rate, root;         /* lr/(1-β₁ᵗ), √(1-β₂ᵗ) */
    float clip, l2;           /* d = clip·g + l2·w: decay of Adam */
    float keep;               /* of w: decay of AdamW */
    float beta2, c1, c2, eps; /* c = 1-β */
};

/* 1 - βᵗ = -expm1(t·ln β), to full precision. */
static struct adam_step adam_step_make(const struct adam_args *a, const struct step_scalars *s)
{
    const double lr = s->lr * a->lr_scale;

    return (struct adam_step){.rate = (float)(lr / -expm1(s->update * log(a->beta1))),
                              .root = (float)sqrt(-expm1(s->update * log(a->beta2))),
                              .clip = clip_factor(s),
                              .keep = a->decoupled ? (float)(1 - lr * (double)a->weight_decay) : 1,
                              .l2 = a->decoupled ? 0 : a->weight_decay,
                              .beta2 = (float)a->beta2,
                              .c1 = (float)(1 - a->beta1),
                              .c2 = (float)(1 - a->beta2),
                              .eps = a->eps};
}

static void adam_range(float *restrict w, const float *restrict g, float *restrict m, float *restrict v,
                       int64_t n, const struct adam_step *a)
{
    const float rate = a->rate, root = a->root, clip = a->clip, keep = a->keep, l2 = a->l2;
    const float b2 = a->beta2, c1 = a->c1, c2 = a->c2, eps = a->eps;

    for (int64_t i = 0; i < n; i++) {
        const float d = clip * g[i] + l2 * w[i];

        m[i] += c1 * (d - m[i]);
        v[i] = b2 * v[i] + c2 * d * d;
        w[i] = keep * w[i] - rate * (m[i] / (sqrtf(v[i]) / root + eps));
    }
}

static int adam(struct backend *be, float *w, const float *g, float *m, float *v, size_t n,
                const struct adam_args *a, const struct step_scalars *s, struct err *e)
{
    const struct chunks ch = chunks_make((int64_t)n, FLAT_STEP);
    const struct adam_step step = adam_step_make(a, s);

    (void)be;
    (void)e;
    if (skips(s))
        return 0;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++) {
        int64_t i = chunk_first(&ch, k);

        adam_range(w + i, g + i, m + i, v + i, chunk_end(&ch, k) - i, &step);
    }
    return 0;
}

static float lars_trust(const struct flat_tensor *t, const struct lars_args *a, float clip)
{
    double ww = 0, gg = 0;

    for (int64_t c = t->chunk0; c < t->chunk0 + t->n_chunks; c++) {
        ww += a->partials[2 * c];
        gg += a->partials[2 * c + 1];
    }
    ww = sqrt(ww);
    gg = sqrt(gg) * clip;
    if (!t->adapts || ww == 0 || gg == 0)
        return 1;
    return (float)(a->coefficient * ww / (gg + (double)t->weight_decay * ww + a->eps));
}

static void lars_range(float *restrict w, const float *restrict g, float *restrict m, int64_t n, float trust,
                       const struct sgd_step *a)
{
    const float lr = a->lr, clip = a->clip, momentum = a->momentum, wd = a->weight_decay;
    const float now = a->nesterov ? 1 : 0, kept = a->nesterov ? momentum : 1;

    for (int64_t i = 0; i < n; i++) {
        const float d = trust * (clip * g[i] + wd * w[i]);

        m[i] = momentum * m[i] + d;
        w[i] -= lr * (now * d + kept * m[i]);
    }
}

static int lars(struct backend *be, float *w, const float *g, float *m, const struct lars_args *a,
                const struct step_scalars *s, struct err *e)
{
    const float clip = clip_factor(s);

    (void)be;
    (void)e;
    if (skips(s))
        return 0;
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < a->n_chunks; c++) {
        a->partials[2 * c] = sumsq_range(w + a->chunks[c].first, a->chunks[c].count);
        a->partials[2 * c + 1] = sumsq_range(g + a->chunks[c].first, a->chunks[c].count);
    }
    for (int64_t i = 0; i < a->n_tensors; i++)
        a->trust[i] = lars_trust(&a->tensors[i], a, clip);
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < a->n_chunks; c++) {
        const struct flat_chunk *ch = &a->chunks[c];
        const struct flat_tensor *t = &a->tensors[ch->tensor];
        const struct sgd_step step = {.lr = (float)(s->lr * t->lr_scale),
                                      .clip = clip,
                                      .momentum = a->momentum,
                                      .weight_decay = t->weight_decay,
                                      .nesterov = a->nesterov};

        lars_range(w + ch->first, g + ch->first, m + ch->first, ch->count, a->trust[ch->tensor], &step);
    }
    return 0;
}

static void ema_range(float *restrict average, const float *restrict w, int64_t n, float rest)
{
    for (int64_t i = 0; i < n; i++)
        average[i] += rest * (w[i] - average[i]);
}

static int ema(struct backend *be, float *average, const float *w, size_t n, double decay,
               const struct step_scalars *s, struct err *e)
{
    const struct chunks ch = chunks_make((int64_t)n, FLAT_STEP);

    (void)be;
    (void)e;
    if (skips(s))
        return 0;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < ch.n; k++) {
        int64_t i = chunk_first(&ch, k);

        ema_range(average + i, w + i, chunk_end(&ch, k) - i, (float)(1 - decay));
    }
    return 0;
}

const struct flat_ops cpu_flat_ops = {
    .measure = measure, .sumsq = sumsq, .sgd = sgd, .adam = adam, .lars = lars, .ema = ema};
