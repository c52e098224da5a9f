/* estimate_net - see estimate_net.h.
 *
 * Follows worker/nn and worker/tasks/long_tailed.c operator by operator; tests hold the two together by the
 * number of parameters and the bytes of activations. Letters: n rows here, N of the mini-batch, C channels.
 */
#include "proto/estimate_net.h"
#include "common/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { IN0 = 1, IN1 = 2, IN2 = 4 };

static const double f32 = 4, f64 = 8;

struct builder {
    struct paper_net *net;
    const struct paper_cfg *cfg;
    double b; /* bytes of a number in activations: 4, in bf16 2 */
    enum paper_part part;
    int height, width; /* of the value made last */
};

static struct paper_op *op_of(const struct builder *s, int id)
{
    return &s->net->ops[id];
}

static int add_op(struct builder *s, struct paper_op op)
{
    struct paper_net *net = s->net;

    if (net->n == net->cap) {
        net->cap = net->cap ? 2 * net->cap : 128;
        net->ops = xrealloc(net->ops, (size_t)net->cap * sizeof *net->ops);
    }
    op.part = s->part;
    net->parameters += op.parameters;
    net->module_parameters += s->part == PAPER_MODULE ? op.parameters : 0;
    net->ops[net->n] = op;
    return net->n++;
}

/* An operator of one input whose value has the input's shape, with nothing known yet about its cost. */
static struct paper_op like(const struct builder *s, int x)
{
    const struct paper_op *in = op_of(s, x);

    return (struct paper_op){.in = {x},
                             .n_in = 1,
                             .flows = IN0,
                             .rows = in->rows,
                             .pixels = in->pixels,
                             .channels = in->channels,
                             .value = in->value,
                             .grad = in->grad};
}

/* Operators that touch each element a few times: `forward` and `backward` count reads and writes. */
static int elementwise(struct builder *s, int x, unsigned reads, double forward, double backward)
{
    struct paper_op op = like(s, x);

    op.reads = reads;
    op.moved[PAPER_FORWARD] = forward * op.value;
    op.moved[PAPER_BACKWARD] = backward * op.value;
    return add_op(s, op);
}

static int add_two(struct builder *s, int a, int b)
{
    struct paper_op op = like(s, a);

    op.in[1] = b;
    op.n_in = 2;
    op.flows = IN0 | IN1;
    op.moved[PAPER_FORWARD] = 3 * op.value;
    op.moved[PAPER_BACKWARD] = 4 * op.value;
    return add_op(s, op);
}

static double elements(const struct paper_op *op)
{
    return op->rows * op->pixels * op->channels;
}

/* ---- backbone ---- */

static int out_size(int size, int kernel, int stride)
{
    return (size + 2 * (kernel / 2) - kernel) / stride + 1;
}

/* Convolution without bias. The images get no gradient, so the first one's backward is half as much. */
static int conv(struct builder *s, int x, double channels, int kernel, int stride)
{
    struct paper_op op = like(s, x), in = *op_of(s, x);
    double weights = channels * in.channels * kernel * kernel;
    bool first = in.grad == 0;

    s->height = out_size(s->height, kernel, stride);
    s->width = out_size(s->width, kernel, stride);
    op.rate = PAPER_CONV;
    op.reads = IN0;
    op.flows = first ? 0 : IN0;
    op.pixels = (double)s->height * s->width;
    op.channels = channels;
    op.value = op.grad = elements(&op) * s->b;
    op.parameters = weights;
    op.flops[PAPER_FORWARD] = 2 * op.rows * op.pixels * weights;
    op.flops[PAPER_BACKWARD] = (first ? 1 : 2) * op.flops[PAPER_FORWARD];
    op.moved[PAPER_FORWARD] = in.value + op.value + weights * f32;
    op.moved[PAPER_BACKWARD] = (first ? 1 : 2) * (in.value + op.value + weights * f32);
    op.scratch = (first ? 0 : in.value) + 2 * weights * f32;
    return add_op(s, op);
}

/* bn_stats → all_reduce → bn_apply. residual < 0: none. */
static int batch_norm(struct builder *s, int x, int residual, bool relu)
{
    struct paper_op in = *op_of(s, x), stats = like(s, x);
    double bytes = 2 * in.channels * f64;
    bool adds = residual >= 0;

    stats.reads = IN0;
    stats.rows = stats.pixels = 1;
    stats.channels *= 2;
    stats.value = stats.grad = bytes;
    stats.moved[PAPER_FORWARD] = in.value;
    stats.moved[PAPER_BACKWARD] = 3 * in.value; /* the correction: reads x and the gradient, writes it */
    int sums = add_op(s, stats);
    if (s->cfg->spec->model.norm == NORM_SYNC_BATCH) {
        struct paper_op sync = like(s, sums);
        sync.comm = PAPER_NORM;
        sync.exchanged[PAPER_FORWARD] = sync.exchanged[PAPER_BACKWARD] = bytes;
        sums = add_op(s, sync);
    }
    struct paper_op apply = like(s, x);
    apply.in[1] = sums;
    apply.in[2] = residual;
    apply.n_in = adds ? 3 : 2;
    apply.flows = IN0 | IN1 | (adds ? IN2 : 0);
    apply.reads = IN0 | IN1 | (relu ? PAPER_READS_OUT : 0);
    apply.parameters = 2 * in.channels;
    apply.moved[PAPER_FORWARD] = (adds ? 3 : 2) * in.value;
    apply.moved[PAPER_BACKWARD] = (3 + (relu ? 1 : 0) + (adds ? 1 : 0)) * in.value;
    s->net->buffers += 2 * in.channels;
    return add_op(s, apply);
}

static int max_pool(struct builder *s, int x)
{
    struct paper_op op = like(s, x);
    double in = op.value;

    s->height = out_size(s->height, 3, 2);
    s->width = out_size(s->width, 3, 2);
    op.pixels = (double)s->height * s->width;
    op.value = op.grad = elements(&op) * s->b;
    op.aux = elements(&op) * 2;
    op.moved[PAPER_FORWARD] = in + op.value + op.aux;
    op.moved[PAPER_BACKWARD] = 2 * in + op.value + op.aux;
    return add_op(s, op);
}

static int mean_spatial(struct builder *s, int x)
{
    struct paper_op op = like(s, x);
    double in = op.value;

    op.pixels = 1;
    op.value = op.grad = elements(&op) * s->b;
    op.moved[PAPER_FORWARD] = op.moved[PAPER_BACKWARD] = in + op.value;
    return add_op(s, op);
}

struct arch {
    const char *name;
    bool small, pads, bottleneck;
    int blocks[4], channels;
};

static const struct arch archs[] = {
    /* name     small  pads  bottleneck  blocks   channels */
    {"resnet8", true, true, false, {1, 1, 1, 0}, 16},
    {"resnet20", true, true, false, {3, 3, 3, 0}, 16},
    {"resnet32", true, true, false, {5, 5, 5, 0}, 16},
    {"resnet18", false, false, false, {2, 2, 2, 2}, 64},
    {"resnet50", false, false, true, {3, 4, 6, 3}, 64},
    {"cifar-resnet18", true, false, false, {2, 2, 2, 2}, 64},
};

static const struct arch *find_arch(const char *name)
{
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
        if (strcmp(archs[i].name, name) == 0)
            return &archs[i];
    ASSERT(!"a checked spec names an architecture");
    return NULL;
}

/* The block's input, zero-padded or projected where shapes differ. height and width are the input's. */
static int shortcut(struct builder *s, const struct arch *a, int x, double channels, int stride)
{
    struct paper_op op = like(s, x);

    if (stride == 1 && op.channels == channels)
        return x;
    if (!a->pads)
        return batch_norm(s, conv(s, x, channels, 1, stride), -1, false);
    s->height = (s->height + stride - 1) / stride;
    s->width = (s->width + stride - 1) / stride;
    op.pixels = (double)s->height * s->width;
    op.channels = channels;
    op.value = op.grad = elements(&op) * s->b;
    op.moved[PAPER_FORWARD] = 2 * op.value;
    op.moved[PAPER_BACKWARD] = 2 * op.value;
    return add_op(s, op);
}

static int block(struct builder *s, const struct arch *a, int x, double c, int stride)
{
    int height = s->height, width = s->width, y;
    double out = a->bottleneck ? 4 * c : c;

    if (a->bottleneck) {
        y = batch_norm(s, conv(s, x, c, 1, 1), -1, true);
        y = batch_norm(s, conv(s, y, c, 3, stride), -1, true);
        y = conv(s, y, out, 1, 1);
    } else {
        y = batch_norm(s, conv(s, x, c, 3, stride), -1, true);
        y = conv(s, y, out, 3, 1);
    }
    s->height = height;
    s->width = width;
    return batch_norm(s, y, shortcut(s, a, x, out, stride), true);
}

static int backbone(struct builder *s)
{
    const struct jobspec *spec = s->cfg->spec;
    const struct arch *a = find_arch(spec->model.arch);
    const struct paper_shape *in = &s->cfg->input;
    struct paper_op images = {
        .is_input = true, .rows = s->cfg->rows, .pixels = in->height * in->width, .channels = in->channels};

    images.value = elements(&images) * f32;
    s->height = (int)in->height;
    s->width = (int)in->width;
    int x = add_op(s, images);
    if (s->b != f32) {
        struct paper_op cast = like(s, x);
        cast.flows = 0;
        cast.value = elements(&cast) * s->b;
        cast.moved[PAPER_FORWARD] = images.value + cast.value;
        x = add_op(s, cast);
    }
    double c = (double)jobspec_scale_channels(a->channels, spec->model.width);
    x = batch_norm(s, conv(s, x, c, a->small ? 3 : 7, a->small ? 1 : 2), -1, true);
    if (!a->small)
        x = max_pool(s, x);
    for (int stage = 0; stage < 4 && a->blocks[stage]; stage++) {
        c = (double)jobspec_scale_channels(a->channels << stage, spec->model.width);
        for (int i = 0; i < a->blocks[stage]; i++)
            x = block(s, a, x, c, i == 0 && stage > 0 ? 2 : 1);
    }
    return mean_spatial(s, x);
}

/* ---- module ---- */

/* x·wᵀ + b over all rows of x. w >= 0: the weights are that operator's value (a slice); else its own. */
static int linear(struct builder *s, int x, double width, int w)
{
    struct paper_op op = like(s, x);
    double in = op.value, weights = op.channels * width;

    if (w >= 0) {
        op.in[op.n_in++] = w;
        op.flows |= IN1;
        op.reads |= IN1;
    }
    op.rate = PAPER_GEMM;
    op.reads |= IN0;
    op.channels = width;
    op.value = op.grad = elements(&op) * s->b;
    op.parameters = w >= 0 ? 0 : weights + width;
    op.flops[PAPER_FORWARD] = 2 * op.rows * weights;
    op.flops[PAPER_BACKWARD] = 2 * op.flops[PAPER_FORWARD];
    op.moved[PAPER_FORWARD] = in + op.value + weights * f32;
    op.moved[PAPER_BACKWARD] = 2 * (in + op.value + weights * f32);
    return add_op(s, op);
}

/* Rows of the input projection's matrix and bias: used where they lie in the parameter, or, in micro-shards,
 * copied out of it. */
static int slice(struct builder *s, double rows, double c)
{
    const bool copied = s->cfg->spec->train.determinism == DETERMINISM_BITWISE;
    double bytes = copied ? rows * (c + 1) * f32 : 0;

    return add_op(s, (struct paper_op){.rows = rows,
                                       .pixels = 1,
                                       .channels = c,
                                       .value = bytes,
                                       .grad = bytes,
                                       .moved = {2 * bytes, 3 * bytes},
                                       .parameters = rows * (c + 1)});
}

static int gather(struct builder *s, int x)
{
    struct paper_op op = like(s, x);
    double local = elements(&op);

    op.comm = PAPER_GATHER;
    op.rows = s->cfg->total_rows;
    op.value = elements(&op) * s->b;
    op.grad = elements(&op) * f32; /* summed over ranks in f32 whatever the activations are */
    op.scratch = local * f32;
    op.exchanged[PAPER_FORWARD] = op.value;
    op.exchanged[PAPER_BACKWARD] = op.grad;
    s->net->gathered += op.value + op.grad;
    return add_op(s, op);
}

/* Rows of an attention tile when `floats` hold one of `columns` columns, as the backends choose them. */
static double tile_rows(double n, double columns, double floats, double most)
{
    return fmin(n, fmin(most, fmax(16, floor(floats / columns / 16) * 16)));
}

/* Scratch of the attention. CPU: two tiles of 128 queries × 256 keys for each thread. GPU: 64 MiB of all
 * heads' scores and as much of their gradients, in f32 and, where that is another type, once more in the
 * activations' own. */
static double tile_bytes(const struct builder *s, double n, double keys)
{
    const struct jobspec *spec = s->cfg->spec;
    double h = spec->batchformer.heads, threads = fmax(1, spec->resources.threads_per_rank);

    if (s->cfg->gpu)
        return 2 * h * keys * tile_rows(n, h * keys, 16 << 20, 1024) * (f32 + (s->b != f32 ? s->b : 0));
    return threads * 2 * fmin(n, 128) * fmin(keys, 256) * f32;
}

/* h heads: 4nNC multiplications and additions forward; backward makes the scores again and four products
 * more. Each of the h·n·N weights is touched four times forward and eight times backward. */
static int attention(struct builder *s, int q, int kv)
{
    struct paper_op op = like(s, q);
    double n = op.rows, keys = op_of(s, kv)->rows, c = op.channels;
    double h = s->cfg->spec->batchformer.heads, weights = h * n * keys * f32;

    op.in[op.n_in++] = kv;
    op.flows = op.reads = IN0 | IN1;
    op.rate = PAPER_GEMM;
    op.aux = 2 * h * n * f32;
    op.flops[PAPER_FORWARD] = 4 * n * keys * c;
    op.flops[PAPER_BACKWARD] = 10 * n * keys * c;
    op.moved[PAPER_FORWARD] = 4 * weights + 2 * op.value + op_of(s, kv)->value;
    op.moved[PAPER_BACKWARD] = 8 * weights + 4 * op.value + 3 * op_of(s, kv)->value;
    op.scratch = tile_bytes(s, n, keys);
    s->net->tile = fmax(s->net->tile, op.scratch);
    return add_op(s, op);
}

static int layer_norm(struct builder *s, int x)
{
    int id = elementwise(s, x, IN0, 2, 3);
    struct paper_op *op = op_of(s, id);

    op->aux = 2 * op->rows * f32;
    op->parameters = 2 * op->channels;
    s->net->parameters += op->parameters;
    s->net->module_parameters += op->parameters;
    return id;
}

static int dropout(struct builder *s, int x)
{
    return s->cfg->spec->batchformer.dropout > 0 ? elementwise(s, x, 0, 2, 2) : x;
}

static int encoder_layer(struct builder *s, int x)
{
    const struct jobspec *spec = s->cfg->spec;
    double c = op_of(s, x)->channels, ffn = spec->batchformer.ffn ? spec->batchformer.ffn : c;
    bool global = spec->batchformer.scope == SCOPE_GLOBAL;
    int q = linear(s, x, c, slice(s, c, c)), kv;

    if (global && s->cfg->gather_features) {
        int all = gather(s, x);
        kv = linear(s, all, 2 * c, slice(s, 2 * c, c));
    } else {
        kv = linear(s, x, 2 * c, slice(s, 2 * c, c));
        kv = global ? gather(s, kv) : kv;
    }
    int o = dropout(s, linear(s, attention(s, q, kv), c, -1));
    int h = layer_norm(s, add_two(s, x, o));
    int f = dropout(s, elementwise(s, linear(s, h, ffn, -1), IN0, 2, 3));
    f = dropout(s, linear(s, f, c, -1));
    return layer_norm(s, add_two(s, h, f));
}

static int concat_rows(struct builder *s, int a, int b)
{
    int id = add_two(s, a, b);
    struct paper_op *op = op_of(s, id);

    op->rows *= 2;
    op->value *= 2;
    op->grad *= 2;
    return id;
}

void paper_net_build(struct paper_net *net, const struct paper_cfg *cfg)
{
    const struct jobspec *spec = cfg->spec;
    struct builder s = {.net = net, .cfg = cfg, .b = spec->train.precision == PRECISION_BF16 ? 2 : f32};

    *net = (struct paper_net){0};
    int x = backbone(&s);
    if (spec->batchformer.enabled) {
        int z = x;
        s.part = PAPER_MODULE;
        for (int i = 0; i < spec->batchformer.layers; i++)
            z = encoder_layer(&s, z);
        s.part = PAPER_BACKBONE;
        x = concat_rows(&s, x, z);
    }
    x = linear(&s, x, cfg->input.classes, -1);
    elementwise(&s, x, IN0, 1, 2); /* cross entropy: one number, but it passes over the logits */
    struct paper_op *loss = op_of(&s, net->n - 1);
    loss->aux = 2 * loss->rows * f32;
    loss->scratch = loss->rows * f64;
    loss->value = loss->grad = f64;
}

void paper_net_free(struct paper_net *net)
{
    free(net->ops);
    *net = (struct paper_net){0};
}

/* ---- lives ---- */

/* delta[t + 1] is the change of what is alive at time t = -1 … 2n. */
static void live(double *delta, int birth, int death, double bytes)
{
    delta[birth + 1] += bytes;
    delta[death + 2] -= bytes;
}

double paper_net_peak(const struct paper_net *net)
{
    int n = net->n;
    double *delta = xcalloc((size_t)(2 * n) + 3, sizeof *delta), scratch = 0, now = 0, peak = 0;
    int *death = xcalloc((size_t)n, sizeof *death), *writer = xcalloc((size_t)n, sizeof *writer);

    for (int i = 0; i < n; i++) {
        const struct paper_op *op = &net->ops[i];
        death[i] = op->reads & PAPER_READS_OUT ? 2 * n - 1 - i : i;
        writer[i] = i;
        for (int k = 0; k < op->n_in; k++) {
            int x = op->in[k], last = op->reads >> k & 1 ? 2 * n - 1 - i : i;
            death[x] = last > death[x] ? last : death[x];
            if (op->flows >> k & 1)
                writer[x] = i; /* the last consumer's backward runs first */
        }
        scratch = fmax(scratch, op->scratch);
    }
    for (int i = 0; i < n; i++) {
        const struct paper_op *op = &net->ops[i];
        live(delta, op->is_input ? -1 : i, death[i], op->value);
        live(delta, i, 2 * n - 1 - i, op->aux);
        live(delta, 2 * n - 1 - writer[i], 2 * n - 1 - i, op->grad);
    }
    for (int t = 0; t < 2 * n + 2; t++) {
        now += delta[t];
        peak = fmax(peak, now);
    }
    free(delta);
    free(death);
    free(writer);
    return peak + scratch;
}
