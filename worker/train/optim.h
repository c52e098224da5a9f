/* optim - the optimiser over the flat weight buffer, and what it keeps of each weight from step to step.
 *
 *   kind         keeps of each weight      updates
 *   sgd          momentum                  ranges whose parameters share a learning rate and decay
 *   adam, adamw  exp_avg, exp_avg_sq       the same
 *   lars         momentum                  all tensors at once, each by its norms
 *   ema          ema, beside any of them
 *
 * engine/flat.h has the formulas. Under lars a tensor of one dimension (biases; scales and shifts of norms)
 * neither adapts nor decays. Learning rates lie outside of the momentum, as torch.optim.SGD has it; the paper
 * of LARS has them inside, which differs while the rate changes.
 *
 * Adam's number of updates is the step's own number and no state: a step that the vote forbids is no update
 * and ends the run (trainer.h), so every step that was made is an update.
 *
 * The moving average begins as the weights that the run begins with and takes the weights after every update.
 * Training goes on with the weights; between optim_use_average() and optim_use_weights() the average is in
 * their place.
 *
 * Every rank holds the whole of the state and does the same arithmetic on the same gradients, so weights
 * never differ between ranks.
 */
#ifndef TRAIN_OPTIM_H
#define TRAIN_OPTIM_H

#include "proto/jobspec.h"
#include "worker/engine/backend.h"

enum { OPTIM_MAX_STATES = 3 };

/* One buffer of the layout of params->weights. */
struct optim_state {
    const char *name; /* "momentum"; static storage */
    float *values;    /* device pointer */
};
struct optim_states {
    int n;
    struct optim_state v[OPTIM_MAX_STATES];
};

/* Floats [first, first + count) of the flat buffers. */
struct optim_segment {
    size_t first, count;
    double lr_scale, weight_decay;
};

struct optim {
    struct params *params; /* borrowed */
    enum jobspec_optim kind;
    struct optim_states states; /* those of the kind, then the average; owned */
    float *average;             /* one of the states; NULL: none */
    double decay;               /* of the average */
    struct optim_segment *segments;
    int n_segments;
    struct sgd_args sgd; /* of the kind; a segment's own rate and decay take the place of theirs */
    struct adam_args adam;
    struct lars_args lars; /* its tables and scratch are owned */
};

/* After params_finalize(). All state is zero. An error when the backend lacks what the kind needs. */
struct optim *optim_create(const struct jobspec *spec, struct params *params, struct err *e);
void optim_destroy(struct optim *o); /* NULL is legal */

/* A run begins with these weights: so does their average. */
int optim_begin(struct optim *o, struct err *e);

/* The fewest ranges, in order, that cover all weights and within which lr_scale and weight decay are equal.
 * Parameters whose own decay is negative have `weight_decay`. Padding belongs to the parameter before it.
 * Returns how many; *out is malloc'ed. */
int optim_segments(const struct params *params, double weight_decay, struct optim_segment **out);

/* After backward: loss share, norm of the global gradient and whether they are finite, into *s (device). */
int optim_measure(const struct optim *o, const double *loss, struct step_scalars *s, struct err *e);

/* One step as *s (device) says: learning rate, clipping; nothing when the vote found something not finite.
 * Gradients mean nothing afterwards. */
int optim_step(struct optim *o, const struct step_scalars *s, struct err *e);

/* Puts the average in the weights' place, for evaluation and export, and the weights back. In between the
 * weights wait in the gradients' buffer, so no step may be made. Nothing is done where there is no average.
 */
int optim_use_average(struct optim *o, struct err *e);
int optim_use_weights(struct optim *o, struct err *e);

#endif
