/* estimate - see estimate.h.
 *
 * Time. An operator takes the longer of its arithmetic at the machine's rate and its bytes at the memory's,
 * and a constant. The collectives of the graph (batch norm's sums, the gather and its reduce-scatter) wait:
 * what follows needs their result. Gradient buckets go one after the other from the moment that backward has
 * passed the layer, where the machine moves data by itself; else after backward. Letters: R ranks, B bytes of
 * the whole result, α a hop's latency, β bytes/s.
 */
#include "proto/estimate.h"

#include <math.h>
#include <stdlib.h>

/* The trainer's gradient buckets, of CPUs and of GPUs. */
static const double bucket_bytes[] = {2 << 20, 8 << 20};

static const double f32 = 4;

/* The worker's rule for gather "auto" (long_tailed_gather): it knows no machine but these two figures. */
static const double auto_bytes_per_s = 1e9, auto_flops_per_s = 5e10;

/* ---- the optimiser ---- */

/* Numbers that the worker's optimiser keeps of each weight, without the moving average. */
static int n_moments(const struct jobspec *spec)
{
    return spec->optim.kind == OPTIM_ADAM || spec->optim.kind == OPTIM_ADAMW ? 2 : 1;
}

static int n_states(const struct jobspec *spec)
{
    return n_moments(spec) + (spec->optim.ema > 0);
}

/* Sweeps over all parameters in a step: clear gradients (1), measure them (1), update (reads gradient, weight
 * and moments; writes weight and moments); lars measures weights and gradients again; the moving average
 * reads itself and the weights and writes itself. */
static int n_sweeps(const struct jobspec *spec)
{
    return 2 + 3 + 2 * n_moments(spec) + (spec->optim.kind == OPTIM_LARS ? 2 : 0) +
           (spec->optim.ema > 0 ? 3 : 0);
}

/* ---- collectives ---- */

static int hosts(const struct estimate_machine *m, int ranks)
{
    return m->ranks_per_host ? (ranks + m->ranks_per_host - 1) / m->ranks_per_host : 1;
}

/* Latency of a flat ring: R-1 hops, as many between hosts as there are hosts. */
static double ring_latency(const struct estimate_machine *m, int ranks)
{
    int between = hosts(m, ranks) > 1 ? hosts(m, ranks) : 0;

    return fmax(0, ranks - 1 - between) * m->latency_s[0] + between * m->latency_s[1];
}

static double link(const struct estimate_machine *m, int ranks)
{
    return m->bytes_per_s[hosts(m, ranks) > 1];
}

/* All-gather, or reduce-scatter: hops and (R-1)/R of the bytes. */
static double ring_s(const struct estimate_machine *m, int ranks, double bytes)
{
    return ranks == 1 ? 0 : ring_latency(m, ranks) + bytes * (ranks - 1) / ranks / link(m, ranks);
}

/* All-reduce: two rings, or up and down a tree, whichever is faster: libraries choose. */
static double all_reduce_s(const struct estimate_machine *m, int ranks, double bytes)
{
    int n_hosts = hosts(m, ranks), in_host = n_hosts > 1 ? m->ranks_per_host : ranks;

    if (ranks == 1)
        return 0;
    double tree = 2 * (ceil(log2(in_host)) * m->latency_s[0] + ceil(log2(n_hosts)) * m->latency_s[1] +
                       bytes / link(m, ranks));
    return fmin(2 * ring_s(m, ranks, bytes), tree);
}

/* ---- time ---- */

static double op_s(const struct estimate *est, const struct paper_op *op, enum paper_pass pass)
{
    const struct estimate_machine *m = est->machine;

    if (op->comm != PAPER_NO_COMM || (op->flops[pass] == 0 && op->moved[pass] == 0))
        return 0;
    double arithmetic =
        op->rate == PAPER_MEMORY ? 0 : op->flops[pass] / m->flops_per_s[op->rate][est->precision];
    return fmax(arithmetic, op->moved[pass] / m->memory_bytes_per_s) + m->op_s;
}

static double comm_s(const struct estimate *est, const struct paper_op *op, enum paper_pass pass)
{
    return op->comm == PAPER_NORM     ? all_reduce_s(est->machine, est->ranks, op->exchanged[pass])
           : op->comm == PAPER_GATHER ? ring_s(est->machine, est->ranks, op->exchanged[pass])
                                      : 0;
}

static void add_op(struct estimate *est, const struct paper_op *op)
{
    double forward = comm_s(est, op, PAPER_FORWARD), backward = comm_s(est, op, PAPER_BACKWARD);
    double other_rows = est->total_rows > 0 ? 1 - (double)est->rows / (double)est->total_rows : 0;

    for (int pass = 0; pass < PAPER_PASSES; pass++) {
        double s = op_s(est, op, (enum paper_pass)pass);
        est->flops[op->part][pass] += op->flops[pass];
        est->seconds.compute[pass] += s;
        est->seconds.module += op->part == PAPER_MODULE ? s : 0;
    }
    if (op->comm == PAPER_NORM) {
        est->seconds.norm += forward + backward;
        est->bytes.norm += (op->exchanged[0] + op->exchanged[1]) * 2 * (est->ranks - 1) / est->ranks;
    } else if (op->comm == PAPER_GATHER) {
        est->seconds.gather += forward;
        est->seconds.scatter += backward;
        est->bytes.gather += op->exchanged[PAPER_FORWARD] * other_rows;
        est->bytes.scatter += op->exchanged[PAPER_BACKWARD] * other_rows;
    }
}

/* Walks backward; a bucket starts when it is full and the one before is through. */
static void add_gradients(struct estimate *est, const struct paper_net *net)
{
    double now = 0, free_at = 0, pending = 0;

    for (int i = net->n - 1; i >= 0; i--) {
        const struct paper_op *op = &net->ops[i];
        now += op_s(est, op, PAPER_BACKWARD) + comm_s(est, op, PAPER_BACKWARD);
        pending += op->parameters * f32;
        if (pending == 0 || (pending < bucket_bytes[est->machine->gpu] && i > 0))
            continue;
        double s = all_reduce_s(est->machine, est->ranks, pending);
        free_at = fmax(free_at, now) + s;
        est->seconds.gradients += s;
        pending = 0;
    }
    est->seconds.gradients_exposed = est->machine->overlaps ? fmax(0, free_at - now) : est->seconds.gradients;
    est->bytes.gradients = 2 * est->parameters * f32 * (est->ranks - 1) / est->ranks;
}

static void add_total(struct estimate *est, const struct jobspec *spec)
{
    double sweeps = n_sweeps(spec) * est->parameters * f32;

    est->seconds.update = sweeps / est->machine->memory_bytes_per_s;
    est->seconds.total = est->seconds.compute[PAPER_FORWARD] + est->seconds.compute[PAPER_BACKWARD] +
                         est->seconds.update + est->seconds.norm + est->seconds.gather +
                         est->seconds.scatter + est->seconds.gradients_exposed;
    est->images_per_s = (double)est->total_rows / est->seconds.total;
}

/* ---- gather ---- */

static double number_bytes(const struct estimate *est)
{
    return est->precision == PRECISION_BF16 ? 2 : f32;
}

/* Per gathered row and feature: forward b bytes, backward 4; twice that for keys and values. Features cost
 * 4C² multiplications and additions forward and 8C² backward for each row of another rank. */
static void compare_gathers(struct estimate *est, const struct jobspec *spec)
{
    double c = jobspec_feature_width(spec->model.arch, spec->model.width), n = (double)est->total_rows;
    double b = number_bytes(est), rate = est->machine->flops_per_s[PAPER_GEMM][est->precision];
    double twice = 12 * c * c * (n - (double)est->rows) / rate;
    double layers = spec->batchformer.layers;

    est->gather.exists =
        spec->batchformer.enabled && spec->batchformer.scope == SCOPE_GLOBAL && est->ranks > 1;
    if (!est->gather.exists)
        return;
    est->gather.kv_s = layers * (ring_s(est->machine, est->ranks, 2 * n * c * b) +
                                 ring_s(est->machine, est->ranks, 2 * n * c * f32));
    est->gather.features_s = layers * (ring_s(est->machine, est->ranks, n * c * b) +
                                       ring_s(est->machine, est->ranks, n * c * f32) + twice);
    est->gather.cross_width = (b + f32) * rate / (12 * link(est->machine, est->ranks));
}

static bool gathers_features(const struct jobspec *spec, int ranks)
{
    double c = jobspec_feature_width(spec->model.arch, spec->model.width);
    double kv = 4 * c * f32 / auto_bytes_per_s;
    double features = 2 * c * f32 / auto_bytes_per_s + 12 * c * c / auto_flops_per_s;

    if (spec->batchformer.gather != GATHER_AUTO)
        return spec->batchformer.gather == GATHER_FEATURES;
    return spec->train.determinism != DETERMINISM_BITWISE && ranks > 1 && features < kv;
}

/* ---- the job ---- */

/* What images are like: the spec says so for synthetic data only. Others count as Fashion-MNIST's. */
static void find_input(struct estimate *est, const struct jobspec *spec)
{
    est->input_assumed = spec->data.format != FORMAT_SYNTHETIC;
    est->input = (struct paper_shape){28, 28, 1, 10};
    if (!est->input_assumed)
        est->input = (struct paper_shape){spec->data.synthetic.height, spec->data.synthetic.width,
                                          spec->data.synthetic.channels, spec->data.synthetic.classes};
}

const char *estimate_precision_name(enum jobspec_precision p)
{
    static const char *const names[] = {
        [PRECISION_FP32] = "fp32", [PRECISION_TF32] = "tf32", [PRECISION_BF16] = "bf16"};

    return names[p];
}

static int check(const struct estimate_query *q, struct err *e)
{
    const struct jobspec *s = q->spec;

    if (q->ranks < 1 || q->ranks > ESTIMATE_MAX_RANKS)
        return err_set_kind(e, ERR_USAGE, "%d ranks found, 1 to %d are accepted", q->ranks,
                            ESTIMATE_MAX_RANKS);
    if (q->ranks > s->train.batch_size)
        return err_set_kind(e, ERR_USAGE, "%d ranks found, at most train.batch_size = %lld is accepted",
                            q->ranks, (long long)s->train.batch_size);
    if (q->machine->flops_per_s[PAPER_GEMM][s->train.precision] == 0)
        return err_set_kind(
            e, ERR_USAGE, "machine %s does not compute in train.precision \"%s\"; fp32 and bf16 are accepted",
            q->machine->name, estimate_precision_name(s->train.precision));
    return 0;
}

static void count(const struct estimate_query *q, int ranks, struct estimate *est)
{
    const struct jobspec *spec = q->spec;
    struct paper_net net;

    *est = (struct estimate){.machine = q->machine,
                             .ranks = ranks,
                             .total_rows = spec->train.batch_size,
                             .rows = (spec->train.batch_size + ranks - 1) / ranks,
                             .precision = spec->train.precision,
                             .bitwise = spec->train.determinism == DETERMINISM_BITWISE};
    find_input(est, spec);
    est->gather.features = gathers_features(spec, ranks);
    struct paper_cfg cfg = {.spec = spec,
                            .input = est->input,
                            .rows = (double)est->rows,
                            .total_rows = (double)est->total_rows,
                            .gpu = q->machine->gpu,
                            .gather_features = est->gather.features};
    paper_net_build(&net, &cfg);
    est->parameters = net.parameters;
    est->module_parameters = net.module_parameters;
    est->memory.weights = (net.parameters + net.buffers) * f32;
    est->memory.gradients = net.parameters * f32;
    est->memory.optimizer = n_states(spec) * net.parameters * f32;
    est->memory.activations = paper_net_peak(&net);
    est->memory.gathered = net.gathered;
    est->memory.tile = net.tile;
    for (int i = 0; i < net.n; i++)
        add_op(est, &net.ops[i]);
    add_gradients(est, &net);
    add_total(est, spec);
    compare_gathers(est, spec);
    paper_net_free(&net);
}

int estimate_job(const struct estimate_query *q, struct estimate *out, struct err *e)
{
    struct estimate alone;

    if (check(q, e) < 0)
        return -1;
    count(q, q->ranks, out);
    count(q, 1, &alone);
    out->efficiency = alone.seconds.total / (q->ranks * out->seconds.total);
    return 0;
}
