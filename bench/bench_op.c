/* bench_op - every operator of a network's training step on CPUs, by itself, beside what the machine and
 * oneDNN reach.
 *
 *     bench_op [--arch resnet20] [--precision fp32] [--batch 128] … (the network: as bench_step)
 *              [--threads 1] [--winograd 1] [--seconds 0.05] [--steps 5] [--peaks 1] [--peer 1] [--table]
 *
 * --steps steps are made with a clock after every operator: "in_step_ms", the sum over all nodes of one
 * shape. In one more step, when a shape's first node has run, and everything that it reads and writes is
 * alive, its kernel is run again for --seconds: "alone_ms", the least, as other load only adds, of one node.
 * Rates are of the run alone, so small tensors are in a cache then; bytes count each tensor that an operator
 * reads or writes once.
 *
 * "share_of_peak" is of the register peak for products, else of the triad from memory or, where the
 * operator's bytes fit, from L3. Each convolution is held against the fastest way of oneDNN alone
 * (bench_dn.h); "of_onednn" above 1 is faster than that. At the end: all convolutions' share of oneDNN alone,
 * and the share of the step that everything else takes. --peaks 0 and --peer 0 leave these measurements out.
 *
 * Writes one JSON document, or, with --table, a table for people.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "bench/bench_net.h"
#include "bench/bench_op_tell.h"
#include "bench/bench_peak.h"
#include "bench/bench_run.h"
#include "bench/bench_times.h"
#include "common/clock.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/engine/program_impl.h"

enum { MIN_RUNS = 5 };

struct options {
    struct bench_net_cfg net;
    long threads, winograd, steps, peaks, peer;
    double seconds;
    bool table;
};

struct bench {
    struct options o;
    struct comm *comm;
    struct backend *be;
    struct bench_net net;
    struct bench_times t;
    struct bench_dn *dn;
    struct bench_op_result r;
};

static int parse(struct options *o, int argc, char **argv)
{
    const struct bench_arg table[] = {
        BENCH_NET_ARGS(&o->net),
        {"--threads", ARG_INT, &o->threads, "OpenMP threads"},
        {"--winograd", ARG_INT0, &o->winograd, "0: convolutions by the direct algorithm"},
        {"--steps", ARG_INT, &o->steps, "steps with a clock after every operator"},
        {"--seconds", ARG_REAL, &o->seconds, "for each operator alone"},
        {"--peaks", ARG_INT0, &o->peaks, "0: what the machine reaches is not measured"},
        {"--peer", ARG_INT0, &o->peer, "0: oneDNN alone is not measured"},
        {"--table", ARG_FLAG, &o->table, "a table for people in place of JSON"},
        {NULL, ARG_FLAG, NULL, NULL}};
    struct err e = ERR_INIT;

    *o = (struct options){.net = bench_net_defaults(),
                          .threads = 1,
                          .winograd = 1,
                          .steps = 5,
                          .peaks = 1,
                          .peer = 1,
                          .seconds = 0.05};
    if (bench_args_read(table, argc, argv, &e) == 0)
        return 0;
    fprintf(stderr, "bench_op: %s\noptions:\n", e.msg);
    bench_args_help(table);
    return -1;
}

/* ---- rows: one a shape and direction ---- */

static struct bench_op_row *find_row(struct bench_op_result *r, const char *key)
{
    for (int i = 0; i < r->n_rows; i++)
        if (strcmp(r->rows[i].key, key) == 0)
            return &r->rows[i];
    return NULL;
}

static void add_node(struct bench *b, const struct node *n, bool backward)
{
    char key[BENCH_KEY_BYTES];
    struct bench_op_row *row;

    bench_node_key(n, backward, key);
    if (!(row = find_row(&b->r, key))) {
        row = &b->r.rows[b->r.n_rows++];
        *row = (struct bench_op_row){.node = n,
                                     .backward = backward,
                                     .flops = bench_node_flops(n, backward),
                                     .bytes = bench_node_bytes(n, backward)};
        memcpy(row->key, key, sizeof key);
    }
    row->n_nodes++;
    row->in_step_ms += bench_times_node(&b->t, n->id, backward);
}

/* What runs, in the order of the step. */
static void make_rows(struct bench *b)
{
    const struct program *p = b->net.program;
    const int n = b->net.graph->n_nodes;

    b->r.rows = xcalloc(2 * (size_t)n, sizeof *b->r.rows);
    for (int i = 0; i < n; i++)
        if (p->steps[i].kernel)
            add_node(b, b->net.graph->nodes[i], false);
    for (int i = n - 1; i >= 0; i--)
        if (p->steps[i].backward)
            add_node(b, b->net.graph->nodes[i], true);
    for (int i = 0; i < b->r.n_rows; i++)
        b->r.step_ms += b->r.rows[i].in_step_ms;
}

/* ---- measuring ---- */

static int run_kernel(const struct step *s, bool backward, struct err *e)
{
    return backward ? s->kernel->backward(&s->call, e) : s->kernel->forward(&s->call, e);
}

/* program_impl.h: node i has just run, and nothing of it has died. Gradients that it adds to grow, which is
 * of no consequence here. */
static int again(void *arg, const struct program *p, int i, bool backward, struct err *e)
{
    struct bench *b = arg;
    char key[BENCH_KEY_BYTES];

    bench_node_key(p->graph->nodes[i], backward, key);
    struct bench_op_row *row = find_row(&b->r, key);
    if (row->is_timed)
        return 0;
    row->is_timed = true;
    const int64_t start = clock_mono_ns();
    for (int n = 0; n < MIN_RUNS || (double)(clock_mono_ns() - start) < b->o.seconds * 1e9; n++) {
        const int64_t t = clock_mono_ns();
        if (run_kernel(&p->steps[i], backward, e) < 0)
            return -1;
        const double ms = (double)(clock_mono_ns() - t) / 1e6;
        row->alone_ms = n == 0 || ms < row->alone_ms ? ms : row->alone_ms;
    }
    return 0;
}

static int step(struct bench *b, uint64_t number, struct err *e)
{
    if (bench_net_feed(&b->net, e) < 0 || program_begin(b->net.program, 1, number, e) < 0)
        return -1;
    b->t.mark_ns = clock_mono_ns();
    return program_run(b->net.program, e) < 0 || program_backward(b->net.program, e) < 0 ? -1 : 0;
}

static int measure(struct bench *b, struct err *e)
{
    if (step(b, 0, e) < 0 || step(b, 1, e) < 0)
        return -1;
    bench_times_watch(&b->t, b->net.program);
    for (b->t.step = 0; b->t.step < b->o.steps; b->t.step++)
        if (step(b, 2 + (uint64_t)b->t.step, e) < 0)
            return -1;
    make_rows(b);
    b->net.program->watch = (struct watch){again, b};
    return step(b, 2 + (uint64_t)b->o.steps, e);
}

/* The fastest ways of the passes that a row's operator makes, one after the other. */
static int measure_peer(struct bench *b, struct bench_op_row *row, struct err *e)
{
    const struct conv_shape s = conv_shape_of(row->node);
    const unsigned passes = conv_passes_of(row->node);

    for (int pass = 0; pass < N_CONV_PASSES; pass++) {
        if (!(passes >> pass & 1) || (pass != CONV_FORWARD) != row->backward)
            continue;
        struct bench_op_peer *p = &row->peers[row->n_peers++];
        p->pass = pass;
        if (bench_dn_conv(b->dn, &s, pass, row->node->dtype, b->o.seconds, p->ways, e) < 0)
            return err_wrap(e, "%s", row->key);
        const struct bench_dn_way *best = bench_dn_best(p->ways);
        if (!best)
            return err_set(e, "%s: oneDNN has no way for it", row->key);
        row->peer_ms += best->ms;
    }
    return 0;
}

static int measure_peers(struct bench *b, struct err *e)
{
    if (!b->o.peer)
        return 0;
    if (!(b->dn = bench_dn_create(e)))
        return -1;
    for (int i = 0; i < b->r.n_rows; i++)
        if (b->r.rows[i].node->op == OP_CONV2D && measure_peer(b, &b->r.rows[i], e) < 0)
            return -1;
    return 0;
}

static int run(struct bench *b, struct err *e)
{
    const struct cpu_config cfg = {.n_threads = (int)b->o.threads, .winograd = b->o.winograd};

    if (!(b->be = cpu_backend_create(&cfg, e)) ||
        (b->o.peaks && bench_peak_measure((int)b->o.threads, &b->r.peak, e) < 0) ||
        bench_net_open(&b->net, &b->o.net, b->be, b->comm, 0, e) < 0)
        return -1;
    bench_times_open(&b->t, b->net.graph->n_nodes, (int)b->o.steps);
    if (measure(b, e) < 0 || measure_peers(b, e) < 0)
        return -1;
    return bench_op_tell(&b->r, &b->o.net, b->o.threads, b->o.table, e);
}

int main(int argc, char **argv)
{
    static struct bench b;
    struct err e = ERR_INIT;

    if (parse(&b.o, argc, argv) < 0)
        return 2;
    b.comm = comm_single_create();
    const int rc = run(&b, &e);
    if (rc < 0)
        fprintf(stderr, "bench_op: %s\n", e.msg);
    bench_dn_destroy(b.dn);
    bench_net_close(&b.net);
    bench_times_close(&b.t);
    free(b.r.rows);
    if (b.be)
        b.be->ops->destroy(b.be);
    comm_destroy(b.comm);
    return rc < 0;
}
