/* estimate_net - a job's network on paper: the operators of one rank's training step, in the order in which
 * the worker runs them, each with its arithmetic, the memory it moves, what it keeps for how long and what it
 * exchanges. No weights, no kernels; proto/estimate.h makes seconds and bytes of it.
 */
#ifndef PROTO_ESTIMATE_NET_H
#define PROTO_ESTIMATE_NET_H

#include <stdbool.h>
#include "proto/jobspec.h"

enum paper_part { PAPER_BACKBONE, PAPER_MODULE, PAPER_PARTS }; /* the classifier counts as backbone */
enum paper_rate { PAPER_MEMORY, PAPER_CONV, PAPER_GEMM, PAPER_RATES };
enum paper_comm { PAPER_NO_COMM, PAPER_NORM, PAPER_GATHER };
enum paper_pass { PAPER_FORWARD, PAPER_BACKWARD, PAPER_PASSES };

/* Bit of `reads`: backward reads the operator's own value. */
enum { PAPER_READS_OUT = 1 << 8, PAPER_MAX_INPUTS = 3 };

struct paper_op {
    int in[PAPER_MAX_INPUTS];
    int n_in;
    unsigned flows; /* inputs that get a gradient */
    unsigned reads; /* values that backward reads: bit i = input i */
    bool is_input;  /* there before the step begins */
    enum paper_part part;
    enum paper_rate rate;
    enum paper_comm comm;
    double rows, pixels, channels;    /* shape of the value */
    double value, grad, aux, scratch; /* bytes; grad 0: no gradient flows here */
    double flops[PAPER_PASSES];       /* a multiplication and an addition are two */
    double moved[PAPER_PASSES];       /* bytes between the operator and main memory */
    double exchanged[PAPER_PASSES];   /* bytes of the whole result of the collective */
    double parameters;                /* numbers whose gradient is final after this one's backward */
};

struct paper_shape {
    double height, width, channels, classes;
};

struct paper_cfg {
    const struct jobspec *spec;
    struct paper_shape input;
    double rows;       /* of this rank */
    double total_rows; /* of the global mini-batch */
    bool gather_features;
    bool gpu; /* the backend: it decides how large an attention tile is */
};

struct paper_net {
    struct paper_op *ops;
    int n, cap;
    double parameters, module_parameters, buffers;
    double gathered; /* bytes of the gathered rows and of their gradient; part of the peak */
    double tile;     /* bytes of the attention's scratch; part of the peak */
};

void paper_net_build(struct paper_net *net, const struct paper_cfg *cfg);
void paper_net_free(struct paper_net *net);

/* Bytes of a rank's activation arena: the most that is alive at one time, and the largest scratch. Lives are
 * the engine's (worker/engine/program.h), so this is the least that its planner could reach, apart from what
 * a convolution library takes as scratch. */
double paper_net_peak(const struct paper_net *net);

#endif
