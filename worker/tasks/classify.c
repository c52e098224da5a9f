/* classify - see classify.h. */
#include "worker/tasks/classify.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SPLITS = 4 };

/* A program for batches of `total` rows over all ranks. */
struct shape_program {
    int64_t total;
    int64_t *counts; /* rows of each rank */
    struct graph *graph;
    struct program *program;
    struct node *images, *logits;
};

struct classify {
    struct classify_cfg cfg;
    struct shape_program programs[2 * MAX_SPLITS];
    int n_programs;
    struct loader *loaders[MAX_SPLITS];
    int n_loaders;
    float *images; /* rows of the largest batch, (n,H,W,c) */
    int32_t *labels;
    float *logits;      /* (S·n,K) */
    double *row_losses; /* (n) */
    double *all_losses; /* of all rows of the batch */
    int64_t max_rows, max_total;
};

struct classify *classify_create(const struct classify_cfg *cfg)
{
    struct classify *c = xcalloc(1, sizeof *c);

    c->cfg = *cfg;
    return c;
}

void classify_destroy(struct classify *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->n_programs; i++) {
        program_destroy(c->programs[i].program);
        graph_destroy(c->programs[i].graph);
        free(c->programs[i].counts);
    }
    for (int i = 0; i < c->n_loaders; i++)
        loader_destroy(c->loaders[i]);
    free(c->images);
    free(c->labels);
    free(c->logits);
    free(c->row_losses);
    free(c->all_losses);
    free(c);
}

static struct shape_program *find_program(struct classify *c, int64_t total)
{
    for (int i = 0; i < c->n_programs; i++)
        if (c->programs[i].total == total)
            return &c->programs[i];
    return NULL;
}

/* On failure the half-made program stays in the list for classify_destroy(). */
static int make_program(struct classify *c, int64_t total, struct err *e)
{
    const struct comm *comm = c->cfg.env.comm;
    struct shape_program *p = &c->programs[c->n_programs++];
    int64_t shards = c->cfg.env.spec->train.micro_shards;
    struct row_split rows = {.rank = comm->rank,
                             .size = comm->size,
                             .total = total,
                             .n_shards = (int32_t)(shards < total ? shards : total)};

    p->total = total;
    p->counts = xcalloc((size_t)comm->size, sizeof *p->counts);
    for (int r = 0; r < comm->size; r++) {
        int64_t first;
        rows_of_rank_sharded(total, rows.n_shards, r, comm->size, &first, &p->counts[r]);
        if (r == comm->rank)
            rows.first = first;
    }
    rows.counts = p->counts;
    rows.local = p->counts[comm->rank];
    p->graph = graph_create(c->cfg.env.params, &rows, false);
    if (c->cfg.build(c->cfg.arg, p->graph, &p->images, &p->logits, e) < 0)
        return err_wrap(e, "evaluation model");
    struct program_cfg pc = {.backend = c->cfg.env.backend,
                             .comm = c->cfg.env.device_comm,
                             .outputs = &p->logits};
    pc.n_outputs = 1;
    p->program = program_compile(p->graph, &pc, e);
    return p->program ? 0 : -1;
}

static int make_programs(struct classify *c, const struct loader *l, struct err *e)
{
    for (int64_t i = 0; i < loader_n_batches(l); i++) {
        int64_t total, first, count;
        loader_rows(l, i, &total, &first, &count);
        if (total < c->cfg.env.comm->size)
            return err_set_kind(
                e, ERR_SPEC,
                "%d ranks for an evaluation batch of %lld rows (/eval/batch_size %lld): at most %lld "
                "ranks are accepted",
                c->cfg.env.comm->size, (long long)total, (long long)c->cfg.env.spec->eval.batch_size,
                (long long)total);
        if (!find_program(c, total) && make_program(c, total, e) < 0)
            return -1;
    }
    return 0;
}

/* Rows of the largest batch, all ranks together. */
static int grow_losses(struct classify *c, const struct loader *l, struct err *e)
{
    for (int64_t i = 0; i < loader_n_batches(l); i++) {
        int64_t total, first, count;
        loader_rows(l, i, &total, &first, &count);
        c->max_total = total > c->max_total ? total : c->max_total;
    }
    free(c->all_losses);
    c->all_losses = malloc((size_t)c->max_total * sizeof *c->all_losses);
    return c->all_losses ? 0 : err_set(e, "no memory for %lld losses", (long long)c->max_total);
}

static int grow_buffers(struct classify *c, const struct split *split, int64_t rows, struct err *e)
{
    if (rows <= c->max_rows)
        return 0;
    size_t n = (size_t)rows, pixels = n * dataset_image_bytes(split->dataset);
    free(c->images);
    free(c->labels);
    free(c->logits);
    free(c->row_losses);
    c->images = malloc(pixels * sizeof *c->images);
    c->labels = malloc(n * sizeof *c->labels);
    c->logits = malloc(n * (size_t)(c->cfg.streams * c->cfg.n_classes) * sizeof *c->logits);
    c->row_losses = malloc(n * sizeof *c->row_losses);
    c->max_rows = rows;
    if (!c->images || !c->labels || !c->logits || !c->row_losses)
        return err_set(e, "no memory for an evaluation batch of %lld rows", (long long)rows);
    return 0;
}

int classify_add(struct classify *c, const struct split *split, struct err *e)
{
    const struct task_env *env = &c->cfg.env;
    struct loader_config lc = {.mode = LOADER_EVAL,
                               .split = split,
                               .batch_size = env->spec->eval.batch_size,
                               .augment = {.normalize = c->cfg.augment.normalize},
                               .rank = env->comm->rank,
                               .size = env->comm->size,
                               .n_shards = env->spec->train.micro_shards};

    ASSERT(c->n_loaders < MAX_SPLITS);
    struct loader *l = loader_create(&lc, e);
    if (!l)
        return -1;
    c->loaders[c->n_loaders++] = l;
    if (make_programs(c, l, e) < 0 || grow_buffers(c, split, loader_max_rows(l), e) < 0 ||
        grow_losses(c, l, e) < 0)
        return -1;
    return c->n_loaders - 1;
}

double classify_row_loss(const float *logits, int n_classes, int label)
{
    double most = logits[0], sum = 0;

    for (int k = 1; k < n_classes; k++)
        if (logits[k] > most)
            most = logits[k];
    for (int k = 0; k < n_classes; k++)
        sum += exp(logits[k] - most);
    return log(sum) + most - logits[label];
}

/* Row i: the mean over the streams, into the row of the first stream. */
static const float *merge_streams(struct classify *c, int64_t i, int64_t n)
{
    int k_all = c->cfg.n_classes, s_all = c->cfg.streams;
    float *row = c->logits + i * k_all;

    for (int k = 0; k < k_all && s_all > 1; k++) {
        float sum = row[k];
        for (int s = 1; s < s_all; s++)
            sum += c->logits[(s * n + i) * k_all + k];
        row[k] = sum / (float)s_all;
    }
    return row;
}

static void count_rows(struct classify *c, int64_t n, struct classify_counts *out)
{
    for (int64_t i = 0; i < n; i++) {
        const float *row = merge_streams(c, i, n);
        int best = 0, label = c->labels[i];
        for (int k = 1; k < c->cfg.n_classes; k++)
            if (row[k] > row[best])
                best = k;
        out->hits[label] += best == label;
        out->totals[label]++;
        c->row_losses[i] = classify_row_loss(row, c->cfg.n_classes, label);
    }
}

/* Adds up the losses of all rows in the order of the batch, so that the sum does not depend on ranks. */
static int add_losses(struct classify *c, const struct shape_program *p, struct classify_counts *out,
                      struct err *e)
{
    if (comm_all_gather(c->cfg.env.comm, c->row_losses, c->all_losses, p->counts, sizeof *c->row_losses, e) <
        0)
        return -1;
    for (int64_t i = 0; i < p->total; i++)
        out->loss_sum += c->all_losses[i];
    return 0;
}

static int run_batch(struct classify *c, struct loader *l, int64_t i, struct classify_counts *out,
                     struct err *e)
{
    int64_t total, first, count;

    loader_rows(l, i, &total, &first, &count);
    struct shape_program *p = find_program(c, total);
    ASSERT(p);
    size_t image_bytes = (size_t)shape_count(p->images->shape) * sizeof(float);
    size_t logit_bytes = (size_t)shape_count(p->logits->shape) * sizeof(float);
    if (loader_eval_batch(l, i, c->images, c->labels, e) < 0 ||
        program_feed(p->program, p->images, c->images, image_bytes, e) < 0 ||
        program_forward(p->program, c->cfg.env.spec->seed, 0, e) < 0 ||
        program_read(p->program, p->logits, c->logits, logit_bytes, e) < 0)
        return -1;
    count_rows(c, count, out);
    return add_losses(c, p, out, e);
}

int classify_run(struct classify *c, int which, struct classify_counts *out, struct err *e)
{
    struct loader *l = c->loaders[which];
    struct comm *comm = c->cfg.env.comm;
    size_t k = (size_t)c->cfg.n_classes;

    memset(out->hits, 0, k * sizeof *out->hits);
    memset(out->totals, 0, k * sizeof *out->totals);
    out->loss_sum = 0;
    out->n = 0;
    for (int64_t i = 0; i < loader_n_batches(l); i++)
        if (run_batch(c, l, i, out, e) < 0)
            return -1;
    if (comm_all_reduce(comm, out->hits, k, DTYPE_I32, e) < 0 ||
        comm_all_reduce(comm, out->totals, k, DTYPE_I32, e) < 0)
        return -1;
    for (size_t i = 0; i < k; i++)
        out->n += out->totals[i];
    return 0;
}
