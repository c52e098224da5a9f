/* optim - SGD over the flat weight buffer, in sweeps over ranges whose parameters share a learning rate and
 * decay.
 *
 * Owns the momentum buffer (layout of params->weights). Every rank holds the whole of it and does the same
 * arithmetic on the same gradients, so weights never differ between ranks.
 */
#ifndef TRAIN_OPTIM_H
#define TRAIN_OPTIM_H

#include "proto/jobspec.h"
#include "worker/engine/backend.h"

/* Floats [first, first + count) of the flat buffers. */
struct optim_segment {
    size_t first, count;
    double lr_scale, weight_decay;
};

struct optim {
    struct params *params; /* borrowed */
    float *momentum;       /* device pointer, params->n_weights floats, owned */
    struct optim_segment *segments;
    int n_segments;
    float momentum_factor;
    bool nesterov;
};

/* After params_finalize(). Momentum starts at zero. */
struct optim *optim_create(const struct jobspec *spec, struct params *params, struct err *e);
void optim_destroy(struct optim *o); /* NULL is legal */

/* The fewest ranges, in order, that cover all weights and within which lr_scale and weight decay are equal.
 * Parameters whose own decay is negative have `weight_decay`. Padding belongs to the parameter before it.
 * Returns how many; *out is malloc'ed. */
int optim_segments(const struct params *params, double weight_decay, struct optim_segment **out);

/* After backward: loss share, norm of the global gradient and whether they are finite, into *s (device). */
int optim_measure(const struct optim *o, const double *loss, struct step_scalars *s, struct err *e);

/* One step as *s (device) says: learning rate, clipping; nothing when the vote found something not finite.
 * Gradients are left clipped and decayed. */
int optim_step(struct optim *o, const struct step_scalars *s, struct err *e);

#endif
