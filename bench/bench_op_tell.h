/* bench_op_tell - what bench_op measured, as a JSON document or as a table. */
#ifndef BENCH_BENCH_OP_TELL_H
#define BENCH_BENCH_OP_TELL_H

#include "bench/bench_dn.h"
#include "bench/bench_net.h"
#include "bench/bench_peak.h"

/* One pass of a convolution in oneDNN alone. */
struct bench_op_peer {
    enum conv_pass pass;
    struct bench_dn_way ways[BENCH_DN_WAYS];
};

/* Operators of one shape, in one direction. */
struct bench_op_row {
    char key[BENCH_KEY_BYTES];
    const struct node *node; /* the first of them */
    bool backward;
    int n_nodes;
    double flops, bytes;         /* of one */
    double in_step_ms, alone_ms; /* of all; of one */
    struct bench_op_peer peers[2];
    bool is_timed;
    int n_peers;    /* 0: not measured */
    double peer_ms; /* the fastest ways, of one */
};

struct bench_op_result {
    struct bench_op_row *rows;
    int n_rows;
    double step_ms;         /* all operators of a step */
    struct bench_peak peak; /* zero: not measured */
};

/* Sorts the rows by their time in the step. */
int bench_op_tell(struct bench_op_result *r, const struct bench_net_cfg *cfg, long threads, bool table,
                  struct err *e);

#endif
