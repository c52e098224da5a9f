/* inspect - which tensor of a step is the first that is not finite.
 *
 * A step is a stateless function of its inputs, weights, seed and number, so one that went wrong can be made
 * again and looked at, as long as the weights were not updated: this runs the very same forward and backward
 * pass with an eye on every node. Slow: each tensor is copied to the host.
 *
 * Running statistics are updated by the forward pass, here for a second time: nothing of this program's state
 * may be saved afterwards. They are not looked at, for training never reads them and the step that went wrong
 * has already written to them.
 */
#ifndef ENGINE_INSPECT_H
#define ENGINE_INSPECT_H

#include "worker/engine/program.h"

enum finding_kind {
    FINDING_NONE,       /* everything is finite */
    FINDING_PARAM,      /* a parameter or constant, before the step */
    FINDING_INPUT,      /* an input, as it was fed */
    FINDING_VALUE,      /* the output of a node */
    FINDING_GRAD,       /* the gradient of a node's output */
    FINDING_PARAM_GRAD, /* this rank's share of the gradient of a parameter */
    FINDING_GRAD_SUM,   /* the gradient of a parameter, summed over the ranks */
};

/* Plain data of one size on all ranks: it is gathered as it is. */
struct finding {
    int32_t kind; /* enum finding_kind */
    int32_t time; /* on the line of program.h; -2: parameters, -1: inputs, 2n: sums over ranks (n nodes) */
    char name[128];
    int64_t element, count; /* the first element that is not finite, and how many the tensor has */
    double value;           /* NaN or ±infinity */
};

/* After the inputs were fed: runs forward and backward, all collectives included, so every rank calls it in
 * step. *out is what this rank found first. Fails as program_forward() and program_backward() do. */
int program_find_not_finite(struct program *p, uint64_t seed, uint64_t step, struct finding *out,
                            struct err *e);

#endif
