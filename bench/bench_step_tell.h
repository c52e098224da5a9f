/* bench_step_tell - what bench_step measured, as a JSON document or as a table. */
#ifndef BENCH_BENCH_STEP_TELL_H
#define BENCH_BENCH_STEP_TELL_H

#include "bench/bench_net.h"
#include "bench/bench_times.h"

struct bench_told {
    const struct bench_net *net;
    struct comm *comm;
    struct bench_times *times;
    long threads, warm;
};

/* Collective; rank 0 prints. */
int bench_step_tell(const struct bench_told *told, bool table, struct err *e);

#endif
