/* estimate - scale on paper: what a training step of a job takes on R ranks of a machine. Parameters,
 * arithmetic, bytes exchanged, memory and seconds, from the job spec and a row of machine constants; nothing
 * is run.
 *
 * All figures are those of one rank, one that holds most rows (⌈N/R⌉). docs/scaling.md has the formulas.
 */
#ifndef PROTO_ESTIMATE_H
#define PROTO_ESTIMATE_H

#include <cjson/cJSON.h>
#include "proto/estimate_net.h"

enum { ESTIMATE_PRECISIONS = PRECISION_BF16 + 1, ESTIMATE_MAX_RANKS = 65536 };

struct estimate_machine {
    const char *name, *description;
    bool measured; /* by us; false: published figures and assumptions */
    bool gpu;
    int ranks_per_host;                                   /* 0: all ranks lie within one fast domain */
    double flops_per_s[PAPER_RATES][ESTIMATE_PRECISIONS]; /* achieved; PAPER_MEMORY unused; 0: not there */
    double memory_bytes_per_s;           /* achieved, of one rank while the others run, too */
    double op_s;                         /* each operator, beside its work */
    double latency_s[2], bytes_per_s[2]; /* one hop: within a host, between hosts */
    bool overlaps;                       /* collectives move on by themselves while the rank computes */
};

/* All rows; a NULL name ends them. */
extern const struct estimate_machine estimate_machines[];

/* NULL name: the one that suits the job. NULL with an error that lists the names when there is none. */
const struct estimate_machine *estimate_machine_find(const char *name, const struct jobspec *spec,
                                                     struct err *e);

struct estimate_query {
    const struct jobspec *spec; /* train.batch_size is the global mini-batch */
    const struct estimate_machine *machine;
    int ranks;
};

struct estimate {
    const struct estimate_machine *machine;
    int ranks;
    int64_t total_rows, rows;
    struct paper_shape input;
    bool input_assumed; /* the data set's files would tell */
    enum jobspec_precision precision;
    bool bitwise;

    double parameters, module_parameters;
    double flops[PAPER_PARTS][PAPER_PASSES];

    struct {
        double gather, scatter, gradients, norm; /* received by this rank in a step */
    } bytes;

    struct {
        double weights, gradients, optimizer, activations;
        double gathered, tile; /* parts of activations */
    } memory;

    struct {
        double compute[PAPER_PASSES];
        double module; /* part of compute */
        double update; /* clearing gradients, measuring them, the optimiser */
        double norm, gather, scatter;
        double gradients;         /* all of their all-reduce */
        double gradients_exposed; /* what backward does not hide of it */
        double total;
    } seconds;
    double images_per_s;
    double efficiency; /* against the same job on one rank, had it the memory */

    struct {
        bool exists;             /* ranks exchange rows at all */
        bool features;           /* what the worker does for this spec */
        double kv_s, features_s; /* exchange and repeated projections of a step */
        double cross_width;      /* below this feature width gathering features is cheaper here */
    } gather;
};

/* -1 when the job cannot run on that number of ranks, or the machine does not compute in its precision. */
int estimate_job(const struct estimate_query *q, struct estimate *out, struct err *e);

cJSON *estimate_to_json(const struct estimate *est);

const char *estimate_precision_name(enum jobspec_precision p);

#endif
