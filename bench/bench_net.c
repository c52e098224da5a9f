/* bench_net - see bench_net.h. */
#include "bench/bench_net.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "worker/nn/batchformer.h"
#include "worker/nn/resnet.h"

struct bench_net_cfg bench_net_defaults(void)
{
    return (struct bench_net_cfg){.arch = "resnet20",
                                  .precision = "fp32",
                                  .batch = 128,
                                  .size = 28,
                                  .channels = 1,
                                  .classes = 10,
                                  .heads = 4,
                                  .features = 64,
                                  .batchformer = 1,
                                  .width = 1,
                                  .dropout = 0.5};
}

/* ---- the graph ---- */

static bool is_layer(const struct bench_net_cfg *c)
{
    return strcmp(c->arch, "layer") == 0;
}

static int check(const struct bench_net_cfg *c, const struct backend *be, const struct comm *comm,
                 struct err *e)
{
    static const char *const precisions[] = {"fp32", "tf32", "bf16"};
    bool known = false;

    for (size_t i = 0; i < sizeof precisions / sizeof *precisions; i++)
        known |= strcmp(c->precision, precisions[i]) == 0;
    if (!known)
        return err_set(e, "--precision: \"%s\" found; fp32, tf32 and bf16 are accepted", c->precision);
    if (strcmp(c->precision, "tf32") == 0 && strcmp(be->ops->name, "cpu") == 0)
        return err_set(e, "--precision: tf32 found, which needs a GPU; fp32 and bf16 are accepted");
    if (!is_layer(c) && !resnet_find(c->arch))
        return err_set(e, "--arch: \"%s\" found; layer and the networks of worker/nn/resnet.c are accepted",
                       c->arch);
    if (is_layer(c) && comm->size > 1)
        return err_set(e, "--arch layer: %d ranks found, 1 is accepted", comm->size);
    if (comm->size > c->batch)
        return err_set(e, "--batch: %ld found, at least one row for each of the %d ranks is accepted",
                       c->batch, comm->size);
    if (c->dropout >= 1)
        return err_set(e, "--dropout: %g found, a number below 1 is accepted", c->dropout);
    return 0;
}

static struct node *features(struct bench_net *b, struct net *net, enum dtype t)
{
    const struct bench_net_cfg *c = &b->cfg;
    const int64_t rows = b->graph->rows.local;

    if (is_layer(c))
        return net_cast(
            net, net_param(net, "x", PARAM_WEIGHT, shape2(rows, c->features), (struct init){INIT_NORMAL, 1}),
            t);
    b->images = net_input(net, "images", shape4(rows, c->size, c->size, c->channels), DTYPE_F32);
    return resnet_build(net, resnet_find(c->arch), c->width, net_cast(net, b->images, t));
}

/* The training graph of the long-tailed task. */
static int build(struct bench_net *b, struct err *e)
{
    const struct bench_net_cfg *c = &b->cfg;
    const struct resnet_arch *arch = resnet_find(c->arch);
    const enum dtype t = strcmp(c->precision, "bf16") ? DTYPE_F32 : DTYPE_BF16;
    const bool both = !is_layer(c) && c->batchformer;
    struct net net;

    net_init(&net, b->graph, true, e);
    b->labels = net_input(&net, "labels", shape1(b->graph->rows.local), DTYPE_I32);
    struct node *x = features(b, &net, t);
    if (net_failed(&net))
        return -1;
    const int64_t width = shape_channels(x->shape);
    const struct batchformer_cfg bf = {.layers = 1,
                                       .heads = (int)c->heads,
                                       .ffn = width,
                                       .dropout = c->dropout,
                                       .global = true,
                                       .gather = GATHER_KEYS_VALUES};
    const struct init init = {INIT_UNIFORM, 1 / sqrt((double)width)};
    if (is_layer(c) || both) {
        struct node *z = batchformer_build(&net, &bf, x);
        x = both ? net_concat_rows(&net, x, z) : z;
    }
    x = net_cast(&net, net_linear(&net, x, arch ? arch->classifier : "classifier", c->classes, init, init),
                 DTYPE_F32);
    b->loss = net_softmax_xent(&net, x, both ? net_concat_rows(&net, b->labels, b->labels) : b->labels, NULL,
                               (both ? 2.0 : 1.0) * (double)c->batch);
    return net_failed(&net) ? -1 : 0;
}

static int64_t first_row(int64_t total, int rank, int size)
{
    return total * rank / size;
}

/* Consecutive slices, as the trainer cuts them. */
static struct row_split split_rows(struct bench_net *b)
{
    struct row_split rows = {.rank = b->comm->rank, .size = b->comm->size, .total = b->cfg.batch};

    b->counts = xcalloc((size_t)rows.size, sizeof *b->counts);
    for (int r = 0; r < rows.size; r++)
        b->counts[r] = first_row(rows.total, r + 1, rows.size) - first_row(rows.total, r, rows.size);
    rows.counts = b->counts;
    rows.first = first_row(rows.total, rows.rank, rows.size);
    rows.local = b->counts[rows.rank];
    return rows;
}

/* Bits of a number, mixed (the finaliser of MurmurHash3). */
static uint32_t mix(uint32_t h)
{
    h = (h ^ h >> 16) * 0x85ebca6bu;
    h = (h ^ h >> 13) * 0xc2b2ae35u;
    return h ^ h >> 16;
}

/* Noise, as a mini-batch that has no pattern is the plainest; it depends on the global row only. */
static void make_data(struct bench_net *b)
{
    const struct row_split *rows = &b->graph->rows;
    const int64_t row_size = b->cfg.size * b->cfg.size * b->cfg.channels;

    b->classes = xmalloc((size_t)rows->local * sizeof *b->classes);
    for (int64_t i = 0; i < rows->local; i++)
        b->classes[i] = (int32_t)((rows->first + i) % b->cfg.classes);
    if (!b->images)
        return;
    b->pixels = xmalloc((size_t)(rows->local * row_size) * sizeof *b->pixels);
    for (int64_t i = 0; i < rows->local * row_size; i++)
        b->pixels[i] = (float)(mix((uint32_t)(rows->first * row_size + i)) >> 8) * 0x1p-23f - 1;
}

int bench_net_open(struct bench_net *b, const struct bench_net_cfg *cfg, struct backend *be,
                   struct comm *comm, size_t bucket_bytes, struct err *e)
{
    *b = (struct bench_net){.cfg = *cfg, .backend = be, .comm = comm};
    if (check(cfg, be, comm, e) < 0)
        return -1;
    struct row_split rows = split_rows(b);
    b->params = params_create(be);
    b->graph = graph_create(b->params, &rows, true);
    if (build(b, e) < 0 || params_finalize(b->params, 1, e) < 0)
        return -1;
    struct program_cfg pc = {.backend = be, .comm = comm, .loss = b->loss, .bucket_bytes = bucket_bytes};
    if (!(b->program = program_compile(b->graph, &pc, e)))
        return -1;
    make_data(b);
    return 0;
}

void bench_net_close(struct bench_net *b)
{
    if (b->program)
        program_destroy(b->program);
    if (b->graph)
        graph_destroy(b->graph);
    if (b->params)
        params_destroy(b->params);
    free(b->counts);
    free(b->pixels);
    free(b->classes);
    *b = (struct bench_net){.params = NULL};
}

int bench_net_feed(struct bench_net *b, struct err *e)
{
    if (b->images && program_feed(b->program, b->images, b->pixels,
                                  (size_t)shape_count(b->images->shape) * sizeof *b->pixels, e) < 0)
        return -1;
    return program_feed(b->program, b->labels, b->classes,
                        (size_t)shape_count(b->labels->shape) * sizeof *b->classes, e);
}

void bench_net_tell(cJSON *doc, const struct bench_net_cfg *c)
{
    const bool layer = strcmp(c->arch, "layer") == 0;

    cJSON_AddStringToObject(doc, "arch", c->arch);
    cJSON_AddStringToObject(doc, "precision", c->precision);
    cJSON_AddNumberToObject(doc, "batch", (double)c->batch);
    if (layer) {
        cJSON_AddNumberToObject(doc, "features", (double)c->features);
    } else {
        cJSON_AddNumberToObject(doc, "size", (double)c->size);
        cJSON_AddNumberToObject(doc, "channels", (double)c->channels);
        cJSON_AddNumberToObject(doc, "width", c->width);
    }
    cJSON_AddNumberToObject(doc, "classes", (double)c->classes);
    cJSON_AddBoolToObject(doc, "batchformer", layer || c->batchformer);
    cJSON_AddNumberToObject(doc, "heads", (double)c->heads);
    cJSON_AddNumberToObject(doc, "dropout", c->dropout);
}

/* ---- what an operator does ---- */

static double tensor_bytes(const struct node *n)
{
    return (double)shape_count(n->shape) * (double)dtype_bytes(n->dtype);
}

double bench_node_bytes(const struct node *n, bool backward)
{
    double sum = tensor_bytes(n); /* its value, or the gradient of that */

    for (int i = 0; i < n->n_inputs; i++) {
        if (!backward || n->bwd_reads >> i & 1)
            sum += tensor_bytes(n->in[i]);
        if (backward && op_table[n->op].grad_inputs >> i & 1 && n->in[i]->needs_grad)
            sum += tensor_bytes(n->in[i]);
    }
    return backward && n->bwd_reads & READS_OUT ? sum + tensor_bytes(n) : sum;
}

/* Attention makes two products forward, and five backward, as weights are made again. */
double bench_node_flops(const struct node *n, bool backward)
{
    double one;

    switch (n->op) {
    case OP_CONV2D:
        one = 2 * (double)shape_count(n->shape) * (double)shape_count(n->in[1]->shape) /
              (double)n->shape.dims[3];
        break;
    case OP_LINEAR:
        one = 2 * (double)shape_count(n->in[1]->shape) * (double)shape_rows(n->shape);
        break;
    case OP_ATTENTION:
        return (backward ? 10 : 4) * (double)shape_count(n->shape) * (double)n->in[1]->shape.dims[0];
    default:
        return 0;
    }
    return backward ? one * (n->in[0]->needs_grad + n->in[1]->needs_grad) : one;
}

void bench_node_key(const struct node *n, bool backward, char key[BENCH_KEY_BYTES])
{
    char in[96], out[96], more[48] = "";

    shape_text(n->in[0]->shape, in);
    shape_text(n->shape, out);
    if (n->op == OP_CONV2D)
        snprintf(more, sizeof more, " %dx%d/%d", n->attr.conv.kernel, n->attr.conv.kernel,
                 n->attr.conv.stride);
    snprintf(key, BENCH_KEY_BYTES, "%s%s %s -> %s%s", op_table[n->op].name, more, in, out,
             backward ? " backward" : "");
}
