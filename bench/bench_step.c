/* bench_step - one training step on CPUs, as the worker makes it: how long it takes, and where the time goes.
 *
 *     bench_step [--arch resnet20] [--precision fp32] [--batch 128] [--size 28] [--channels 1] [--classes 10]
 *                [--width 1] [--batchformer 1] [--heads 4] [--dropout 0.5] [--threads 1] [--winograd 1]
 *                [--warm 3] [--steps 20] [--seconds 0] [--watched 5] [--table]
 *     bench_step --arch layer --batch N --features C …         the BatchFormer alone, forward and backward
 *     mpirun -n R bench_step …                                 the same global mini-batch on R ranks
 *
 * A step is: feed, forward, backward with the sums of gradients over the ranks, gradient norm, vote, SGD with
 * momentum and weight decay, reading back the loss; --arch layer has no vote and no update. The data are made
 * up.
 * --warm steps do not count; --steps do, or as many as fit --seconds (5 at least). Then --watched more steps
 * are made with a clock after every operator, which the step times do not know of.
 *
 * Rank 0 writes one JSON document, or, with --table, a table for people. Times are in milliseconds, medians
 * with least and most. "losses" has every step's, from the first. "peak_rss_bytes" is VmHWM of each rank.
 * "nodes" has every operator, forward ("ms") and backward; FLOP counts products only, on rank 0's rows, and
 * bytes each tensor that an operator reads or writes once. The time from the end of the last operator to the
 * end of backward is "sums"; the clearing of gradients is in the loss's backward. "share" is of the watched
 * steps' median sum.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "bench/bench_net.h"
#include "bench/bench_run.h"
#include "bench/bench_step_tell.h"
#include "common/clock.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/train/optim.h"

enum { BUCKET_BYTES = 8 << 20 /* as the trainer's */, MIN_STEPS = 5, MAX_STEPS = 2000 };

struct options {
    struct bench_net_cfg net;
    long threads, winograd, warm, steps, watched;
    double seconds;
    bool table;
};

struct bench {
    struct options o;
    struct comm *comm;
    struct backend *be;
    struct bench_net net;
    struct optim *optim; /* NULL: the layer alone */
    struct step_scalars *scalars;
    struct bench_times t;
    int made;     /* steps, of all kinds */
    bool watched; /* the step that runs now */
};

static double ms_since(int64_t start_ns)
{
    return (double)(clock_mono_ns() - start_ns) / 1e6;
}

static int parse(struct options *o, int argc, char **argv)
{
    const struct bench_arg table[] = {
        BENCH_NET_ARGS(&o->net),
        {"--threads", ARG_INT, &o->threads, "OpenMP threads of each rank"},
        {"--winograd", ARG_INT0, &o->winograd, "0: convolutions by the direct algorithm"},
        {"--warm", ARG_INT0, &o->warm, "steps that do not count"},
        {"--steps", ARG_INT, &o->steps, "steps that count"},
        {"--seconds", ARG_REAL0, &o->seconds, "above 0: as many steps as fit"},
        {"--watched", ARG_INT0, &o->watched, "steps with a clock after every operator"},
        {"--table", ARG_FLAG, &o->table, "a table for people in place of JSON"},
        {NULL, ARG_FLAG, NULL, NULL}};
    struct err e = ERR_INIT;

    *o = (struct options){
        .net = bench_net_defaults(), .threads = 1, .winograd = 1, .warm = 3, .steps = 20, .watched = 5};
    if (bench_args_read(table, argc, argv, &e) == 0)
        return 0;
    fprintf(stderr, "bench_step: %s\noptions:\n", e.msg);
    bench_args_help(table);
    return -1;
}

/* ---- steps ---- */

static int update(struct bench *b, struct step_scalars *s, struct err *e)
{
    if (!b->optim) {
        s->loss = *program_loss_share(b->net.program);
        return 0;
    }
    if (optim_measure(b->optim, program_loss_share(b->net.program), b->scalars, e) < 0 ||
        comm_all_reduce(b->comm, &b->scalars->loss, STEP_VOTE_COUNT, DTYPE_F64, e) < 0 ||
        optim_step(b->optim, b->scalars, e) < 0)
        return -1;
    return b->be->ops->download(b->be, s, b->scalars, sizeof *s, e);
}

/* What a watched step does beside its operators. */
static void mark_part(struct bench *b, enum bench_part part)
{
    if (b->watched)
        bench_times_part(&b->t, part);
}

static int step(struct bench *b, double *ms, struct err *e)
{
    struct step_scalars s = {.lr = 0.01, .update = b->made + 1};
    const int64_t start = clock_mono_ns();

    b->t.mark_ns = start;
    if (bench_net_feed(&b->net, e) < 0 || b->be->ops->upload(b->be, b->scalars, &s, sizeof s, e) < 0 ||
        program_begin(b->net.program, 1, (uint64_t)b->made, e) < 0)
        return -1;
    mark_part(b, BENCH_PART_FEED);
    if (program_run(b->net.program, e) < 0 || program_backward(b->net.program, e) < 0)
        return -1;
    mark_part(b, BENCH_PART_SUMS);
    if (update(b, &s, e) < 0)
        return -1;
    mark_part(b, BENCH_PART_UPDATE);
    *ms = ms_since(start);
    b->t.losses[b->made++] = s.loss;
    return 0;
}

/* How many steps fit, as rank 0 sees it after the last warm step. */
static int choose_steps(struct bench *b, double warm_ms, struct err *e)
{
    int32_t n = (int32_t)b->o.steps;

    if (b->o.seconds > 0 && warm_ms > 0) {
        const double fit = b->o.seconds * 1e3 / warm_ms;
        n = fit < MIN_STEPS ? MIN_STEPS : fit > MAX_STEPS ? MAX_STEPS : (int32_t)fit;
    }
    if (comm_broadcast(b->comm, &n, sizeof n, 0, e) < 0)
        return -1;
    b->t.n_steps = n;
    b->t.step_ms = xcalloc((size_t)n, sizeof *b->t.step_ms);
    b->t.losses =
        xrealloc(b->t.losses, ((size_t)b->o.warm + (size_t)n + (size_t)b->o.watched) * sizeof *b->t.losses);
    return 0;
}

static int measure(struct bench *b, struct err *e)
{
    double ms = 0;

    b->t.losses = xcalloc((size_t)b->o.warm + 1, sizeof *b->t.losses);
    for (int i = 0; i < b->o.warm; i++)
        if (step(b, &ms, e) < 0)
            return -1;
    if (choose_steps(b, ms, e) < 0)
        return -1;
    for (int i = 0; i < b->t.n_steps; i++)
        if (step(b, &b->t.step_ms[i], e) < 0)
            return -1;
    b->t.peak_rss = bench_peak_rss();
    b->watched = true;
    bench_times_watch(&b->t, b->net.program);
    for (b->t.step = 0; b->t.step < b->o.watched; b->t.step++)
        if (step(b, &ms, e) < 0)
            return -1;
    b->t.n_losses = b->made;
    return 0;
}

/* ---- birth and death ---- */

static int open_optim(struct bench *b, struct err *e)
{
    struct jobspec *spec = xcalloc(1, sizeof *spec);

    spec->optim.kind = OPTIM_SGD;
    spec->optim.momentum = 0.9;
    spec->optim.weight_decay = 5e-4;
    b->optim = optim_create(spec, b->net.params, e);
    free(spec);
    return b->optim ? 0 : -1;
}

static int open_all(struct bench *b, struct err *e)
{
    const struct cpu_config cfg = {.n_threads = (int)b->o.threads, .winograd = b->o.winograd};

    if (!(b->be = cpu_backend_create(&cfg, e)) ||
        !(b->scalars = b->be->ops->mem_alloc(b->be, sizeof *b->scalars, e)) ||
        bench_net_open(&b->net, &b->o.net, b->be, b->comm, BUCKET_BYTES, e) < 0)
        return -1;
    bench_times_open(&b->t, b->net.graph->n_nodes, (int)b->o.watched);
    return strcmp(b->o.net.arch, "layer") ? open_optim(b, e) : 0;
}

static void close_all(struct bench *b)
{
    optim_destroy(b->optim);
    bench_net_close(&b->net);
    bench_times_close(&b->t);
    if (b->be) {
        b->be->ops->mem_free(b->be, b->scalars);
        b->be->ops->destroy(b->be);
    }
}

static int run(struct bench *b, struct err *e)
{
    if (open_all(b, e) < 0 || measure(b, e) < 0)
        return -1;
    const struct bench_told told = {
        .net = &b->net, .comm = b->comm, .times = &b->t, .threads = b->o.threads, .warm = b->o.warm};
    return bench_step_tell(&told, b->o.table, e);
}

int main(int argc, char **argv)
{
    static struct bench b;
    struct err e = ERR_INIT;

    if (parse(&b.o, argc, argv) < 0)
        return 2;
    b.comm = bench_comm_open(&argc, &argv, &e);
    const int rc = b.comm ? run(&b, &e) : -1;
    if (rc < 0) {
        fprintf(stderr, "bench_step: %s\n", e.msg);
        if (b.comm && b.comm->size > 1)
            comm_abort(b.comm, 1); /* the others may wait for this one */
    }
    close_all(&b);
    bench_comm_close(b.comm);
    return rc < 0;
}
