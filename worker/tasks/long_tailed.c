/* long_tailed - see long_tailed.h.
 *
 * Shape letters: N rows of the global mini-batch, n of them here, H×W pixels, C features, K classes.
 *
 *   training    images (n,H,W,c) → ResNet → X (n,C);  Z = BatchFormer(X) (n,C), attending over all N rows
 *               rows [X; Z] (2n,C), labels [y; y] → one shared classifier → (2n,K)
 *               loss = Σ cross entropy over all 2N rows / 2N       (without the module: N rows / N)
 *   evaluation  X → classifier. With batchformer.eval [X; Z] → classifier, and the two logits are averaged; a
 *               prediction then depends on the samples it is evaluated with, and the result says
 * "transductive".
 *
 * Balanced softmax (Ren et al. 2020) adds the log of the class counts to the logits in training only.
 *
 * Owns the data set, its splits and the training loader. Nodes belong to the graphs.
 */
#include "worker/tasks/long_tailed.h"

#include <math.h>
#include <stdlib.h>
#include "worker/data/idx.h"
#include "worker/data/longtail.h"
#include "worker/data/synth.h"
#include "worker/nn/resnet.h"
#include "worker/tasks/classify.h"
#include "worker/tasks/groups.h"

struct long_tailed {
    struct task base;
    struct task_env env;
    const struct resnet_arch *arch;
    struct dataset_pair data;
    struct split *train, *holdout, *test; /* holdout: NULL when none is kept */
    struct loader *loader;
    struct groups groups;

    struct node *images, *labels; /* inputs of the training graph */
    float *host_images;           /* (n,H,W,c) */
    int32_t *host_labels;         /* (n) */
    int64_t ahead;                /* step whose batch is in host memory already; -1: none */

    struct classify *classify;
    int holdout_idx, test_idx; /* numbers in classify */
};

static struct long_tailed *self(struct task *t)
{
    return (struct long_tailed *)t;
}

static const struct long_tailed *self_const(const struct task *t)
{
    return (const struct long_tailed *)t;
}

enum gather_kind long_tailed_gather(int world_size, int64_t c)
{
    const double bytes_per_s = 1e9, flops_per_s = 5e10;
    double width = (double)c;
    double kv = 4 * width * sizeof(float) / bytes_per_s;
    double features = 2 * width * sizeof(float) / bytes_per_s + 12 * width * width / flops_per_s;

    return world_size > 1 && features < kv ? GATHER_ROWS : GATHER_KEYS_VALUES;
}

/* ---- data ---- */

static int open_data(struct long_tailed *t, struct err *e)
{
    const struct jobspec *s = t->env.spec;

    if (s->data.format == FORMAT_IDX)
        return idx_open(s->data.path, &t->data, e) < 0 ? err_wrap(e, "/data/path") : 0;
    struct synth_config sc = {.h = s->data.synthetic.height,
                              .w = s->data.synthetic.width,
                              .c = s->data.synthetic.channels,
                              .classes = s->data.synthetic.classes,
                              .train_per_class = s->data.synthetic.train_per_class,
                              .test_per_class = s->data.synthetic.test_per_class,
                              .seed = s->seed};
    return synth_open(&sc, &t->data, e);
}

static int open_splits(struct long_tailed *t, struct err *e)
{
    static const enum longtail_kind kinds[] = {
        [TAIL_NONE] = LONGTAIL_NONE, [TAIL_EXP] = LONGTAIL_EXP, [TAIL_STEP] = LONGTAIL_STEP};
    const struct jobspec *s = t->env.spec;
    struct longtail_config lc = {.kind = kinds[s->data.long_tail.kind],
                                 .factor = s->data.long_tail.factor,
                                 .max_per_class = s->data.long_tail.max_per_class,
                                 .holdout_per_class = s->data.holdout_per_class};

    if (longtail_split(&lc, t->data.train, &t->train, &t->holdout, e) < 0)
        return err_wrap(e, "/data/long_tail");
    t->test = split_create_all(t->data.test);
    groups_init(&t->groups, t->train->class_counts, t->data.train->n_classes, s->eval.many_above,
                s->eval.few_below);
    return 0;
}

static int open_loader(struct long_tailed *t, struct err *e)
{
    const struct jobspec *s = t->env.spec;
    struct loader_config lc = {.mode = LOADER_TRAIN,
                               .split = t->train,
                               .seed = s->seed,
                               .batch_size = s->train.batch_size,
                               .augment = {.crop_padding = s->data.augment.crop_padding,
                                           .flip = s->data.augment.flip,
                                           .normalize = s->data.normalize},
                               .rank = t->env.comm->rank,
                               .size = t->env.comm->size,
                               .n_shards = s->train.micro_shards,
                               .prefetch = true};

    if (!(t->loader = loader_create(&lc, e)))
        return err_wrap(e, "training data (/train/batch_size %lld)", (long long)s->train.batch_size);
    size_t rows = (size_t)loader_max_rows(t->loader);
    t->host_images = malloc(rows * dataset_image_bytes(t->data.train) * sizeof *t->host_images);
    t->host_labels = malloc(rows * sizeof *t->host_labels);
    if (!t->host_images || !t->host_labels)
        return err_set(e, "no memory for a mini-batch of %zu images", rows);
    return 0;
}

static void log_data(const struct long_tailed *t)
{
    const int32_t *counts = t->train->class_counts;
    int k = t->data.train->n_classes, least = counts[0], most = counts[0];

    for (int c = 1; c < k; c++) {
        least = counts[c] < least ? counts[c] : least;
        most = counts[c] > most ? counts[c] : most;
    }
    log_info(t->env.log, "%d training images of %d classes (%d to %d a class), %d held out, %d test",
             t->train->n, k, least, most, t->holdout ? t->holdout->n : 0, t->test->n);
    if (!t->holdout)
        log_info(t->env.log,
                 "no hold-out (data.holdout_per_class is 0): nothing is evaluated before the end");
}

static void destroy(struct task *base)
{
    struct long_tailed *t = self(base);

    classify_destroy(t->classify);
    loader_destroy(t->loader);
    free(t->host_images);
    free(t->host_labels);
    groups_free(&t->groups);
    split_destroy(t->train);
    split_destroy(t->holdout);
    split_destroy(t->test);
    dataset_pair_free(&t->data);
    free(t);
}

static struct task *create(const struct task_env *env, struct err *e)
{
    struct long_tailed *t = xcalloc(1, sizeof *t);

    t->base.ops = &long_tailed_task;
    t->env = *env;
    t->ahead = -1;
    t->arch = resnet_find(env->spec->model.arch);
    int rc =
        t->arch ? 0 : err_set_kind(e, ERR_SPEC, "/model/arch: no architecture '%s'", env->spec->model.arch);
    if (rc < 0 || open_data(t, e) < 0 || open_splits(t, e) < 0 || open_loader(t, e) < 0) {
        destroy(&t->base);
        return NULL;
    }
    log_data(t);
    return &t->base;
}

static int64_t steps_per_epoch(const struct task *base)
{
    return loader_n_batches(self_const(base)->loader);
}

static int64_t data_wait_ns(const struct task *base)
{
    return loader_data_wait_ns(self_const(base)->loader);
}

static struct hash_hex fingerprint(const struct task *base)
{
    const struct long_tailed *t = self_const(base);
    struct hash_hex all[4] = {{{0}}};

    all[0] = dataset_hash(t->data.train);
    all[1] = dataset_hash(t->data.test);
    all[2] = split_hash(t->train);
    if (t->holdout)
        all[3] = split_hash(t->holdout);
    return hash_bytes(all, sizeof all);
}

/* ---- model ---- */

static struct node *build_images(const struct long_tailed *t, struct net *net)
{
    const struct dataset *d = t->data.train;

    return net_input(net, "images", shape4(net->graph->rows.local, d->h, d->w, d->c), DTYPE_F32);
}

static struct node *build_module(const struct long_tailed *t, struct net *net, struct node *x)
{
    static const enum gather_kind kinds[] = {
        [GATHER_KV] = GATHER_KEYS_VALUES, [GATHER_FEATURES] = GATHER_ROWS};
    const struct jobspec *s = t->env.spec;

    if (net_failed(net))
        return NULL;
    int64_t c = shape_channels(x->shape);
    struct batchformer_cfg cfg = {.layers = s->batchformer.layers,
                                  .heads = s->batchformer.heads,
                                  .ffn = s->batchformer.ffn ? s->batchformer.ffn : c,
                                  .dropout = s->batchformer.dropout,
                                  .global = s->batchformer.scope == SCOPE_GLOBAL,
                                  .gather = kinds[s->batchformer.gather]};

    if (s->batchformer.gather == GATHER_AUTO) /* bitwise: the same for every number of ranks */
        cfg.gather = s->train.determinism == DETERMINISM_BITWISE ? GATHER_KEYS_VALUES
                                                                 : long_tailed_gather(t->env.comm->size, c);
    net->lr_scale = s->batchformer.lr_scale;
    net->weight_decay = s->batchformer.weight_decay;
    struct node *z = batchformer_build(net, &cfg, x);
    net->lr_scale = 1;
    net->weight_decay = -1;
    return z;
}

/* torch.nn.Linear's default: weight and bias U(±1/√C). */
static struct node *build_classifier(const struct long_tailed *t, struct net *net, struct node *rows)
{
    if (net_failed(net))
        return NULL;
    struct init init = {INIT_UNIFORM, 1 / sqrt((double)shape_channels(rows->shape))};
    return net_linear(net, rows, t->arch->classifier, t->data.train->n_classes, init, init);
}

/* (n or 2n, K): with the module [logits of X; logits of Z]. */
static struct node *build_logits(const struct long_tailed *t, struct net *net, struct node *images,
                                 bool module)
{
    bool bf16 = t->env.spec->train.precision == PRECISION_BF16;
    struct node *x = net_cast(net, images, bf16 ? DTYPE_BF16 : DTYPE_F32);

    x = resnet_build(net, t->arch, t->env.spec->model.width, x);
    if (module)
        x = net_concat_rows(net, x, build_module(t, net, x));
    return net_cast(net, build_classifier(t, net, x), DTYPE_F32);
}

static int build(struct task *base, struct graph *g, struct task_graph *out, struct err *e)
{
    struct long_tailed *t = self(base);
    const struct jobspec *s = t->env.spec;
    bool module = s->batchformer.enabled;
    struct node *offset = NULL;
    struct net net;

    net_init(&net, g, s->model.norm == NORM_SYNC_BATCH, e);
    t->images = build_images(t, &net);
    t->labels = net_input(&net, "labels", shape1(g->rows.local), DTYPE_I32);
    struct node *logits = build_logits(t, &net, t->images, module);
    struct node *targets = module ? net_concat_rows(&net, t->labels, t->labels) : t->labels;
    if (s->loss.kind == LOSS_BALANCED_SOFTMAX)
        offset = net_param(&net, "log_class_counts", PARAM_CONST, shape1(t->data.train->n_classes),
                           (struct init){INIT_CONST, 0});
    out->loss = net_softmax_xent(&net, logits, targets, offset, (double)g->rows.total * (module ? 2 : 1));
    return net_failed(&net) ? -1 : 0;
}

static int set_constants(struct task *base, struct err *e)
{
    const struct long_tailed *t = self_const(base);
    int k = t->data.train->n_classes;
    const struct param *p = params_find(t->env.params, "log_class_counts");

    if (!p)
        return 0;
    float *logs = xmalloc((size_t)k * sizeof *logs);
    for (int c = 0; c < k; c++)
        logs[c] = (float)log((double)t->train->class_counts[c]);
    int rc = params_set(t->env.params, p, logs, e);
    free(logs);
    return rc;
}

/* The batch of `step` to host memory; what was brought to the device from there is then another's. */
static int load(struct long_tailed *t, struct program *p, int64_t step, struct err *e)
{
    t->ahead = -1;
    if (program_feed_ahead(p, NULL, 0, e) < 0)
        return -1;
    int64_t got = loader_batch(t->loader, step, t->host_images, t->host_labels, e);
    ASSERT(got < 0 || got == t->labels->shape.dims[0]);
    return got < 0 ? -1 : 0;
}

static size_t image_bytes(const struct long_tailed *t)
{
    return (size_t)shape_count(t->images->shape) * sizeof(float);
}

/* On a CPU there is nobody to work meanwhile, and the loader has a thread that prepares the next batch. */
static int feed_ahead(struct task *base, struct program *p, int64_t step, struct err *e)
{
    struct long_tailed *t = self(base);

    if (!t->env.backend->ops->upload_ahead)
        return 0;
    if (load(t, p, step, e) < 0 || program_feed_ahead(p, t->host_images, image_bytes(t), e) < 0)
        return -1;
    t->ahead = step;
    return 0;
}

static int feed(struct task *base, struct program *p, int64_t step, struct err *e)
{
    struct long_tailed *t = self(base);
    size_t rows = (size_t)t->labels->shape.dims[0];

    if (t->ahead != step && load(t, p, step, e) < 0)
        return -1;
    t->ahead = -1;
    if (program_feed(p, t->images, t->host_images, image_bytes(t), e) < 0)
        return -1;
    return program_feed(p, t->labels, t->host_labels, rows * sizeof *t->host_labels, e);
}

static uint64_t batch_digest(const struct task *base)
{
    return loader_digest(self_const(base)->loader);
}

/* ---- evaluation ---- */

static bool module_at_eval(const struct long_tailed *t)
{
    return t->env.spec->batchformer.enabled && t->env.spec->batchformer.eval;
}

static int build_eval(void *arg, struct graph *g, struct node **images, struct node **logits, struct err *e)
{
    const struct long_tailed *t = arg;
    struct net net;

    net_init(&net, g, t->env.spec->model.norm == NORM_SYNC_BATCH, e);
    *images = build_images(t, &net);
    *logits = build_logits(t, &net, *images, module_at_eval(t));
    return net_failed(&net) ? -1 : 0;
}

static int prepare_eval(struct task *base, struct err *e)
{
    struct long_tailed *t = self(base);
    struct classify_cfg cc = {.env = t->env,
                              .build = build_eval,
                              .arg = t,
                              .streams = module_at_eval(t) ? 2 : 1,
                              .n_classes = t->data.train->n_classes,
                              .augment = {.normalize = t->env.spec->data.normalize}};

    t->classify = classify_create(&cc);
    if (t->holdout && (t->holdout_idx = classify_add(t->classify, t->holdout, e)) < 0)
        return -1;
    t->test_idx = classify_add(t->classify, t->test, e);
    return t->test_idx < 0 ? -1 : 0;
}

static void add_scalar(struct task_eval *v, const char *name, double value)
{
    ASSERT(v->n_scalars < TASK_MAX_SCALARS);
    v->scalars[v->n_scalars].name = name;
    v->scalars[v->n_scalars++].value = value;
}

static void fill_eval(const struct long_tailed *t, const struct classify_counts *n, struct task_eval *out)
{
    int64_t hits = 0;

    out->n_samples = n->n;
    out->n_classes = t->groups.n_classes;
    out->per_class = xcalloc((size_t)out->n_classes, sizeof *out->per_class);
    for (int c = 0; c < out->n_classes; c++) {
        hits += n->hits[c];
        out->per_class[c] = n->totals[c] ? (double)n->hits[c] / n->totals[c] : NAN;
    }
    add_scalar(out, "top1", (double)hits / (double)n->n);
    add_scalar(out, "many", groups_mean(&t->groups, GROUP_MANY, out->per_class));
    add_scalar(out, "medium", groups_mean(&t->groups, GROUP_MEDIUM, out->per_class));
    add_scalar(out, "few", groups_mean(&t->groups, GROUP_FEW, out->per_class));
    add_scalar(out, "loss", n->loss_sum / (double)n->n);
}

static int evaluate(struct task *base, enum task_split split, struct task_eval *out, struct err *e)
{
    struct long_tailed *t = self(base);
    size_t k = (size_t)t->groups.n_classes;

    *out = (struct task_eval){0};
    if (split == TASK_VALIDATION && !t->holdout)
        return 0;
    struct classify_counts n = {.hits = xcalloc(k, sizeof *n.hits), .totals = xcalloc(k, sizeof *n.totals)};
    int rc = classify_run(t->classify, split == TASK_TEST ? t->test_idx : t->holdout_idx, &n, e);
    if (rc == 0)
        fill_eval(t, &n, out);
    free(n.hits);
    free(n.totals);
    return rc;
}

static void describe(const struct task *base, cJSON *eval)
{
    static const char *const names[] = {
        [GROUP_MANY] = "many", [GROUP_MEDIUM] = "medium", [GROUP_FEW] = "few"};
    const struct long_tailed *t = self_const(base);
    cJSON *groups = cJSON_AddObjectToObject(eval, "groups");

    cJSON_AddStringToObject(groups, "rule", t->groups.rule);
    cJSON_AddStringToObject(groups, "text", t->groups.text);
    for (int g = 0; g < GROUP_COUNT; g++) {
        cJSON *classes = cJSON_AddArrayToObject(groups, names[g]);
        for (int c = 0; c < t->groups.n_classes; c++)
            if (t->groups.of[c] == (enum group)g)
                cJSON_AddItemToArray(classes, cJSON_CreateNumber(c));
    }
    cJSON *counts = cJSON_AddArrayToObject(eval, "train_counts");
    for (int c = 0; c < t->groups.n_classes; c++)
        cJSON_AddItemToArray(counts, cJSON_CreateNumber(t->train->class_counts[c]));
    cJSON_AddBoolToObject(eval, "transductive", module_at_eval(t));
}

static const char *classifier(const struct task *base)
{
    return self_const(base)->arch->classifier;
}

const struct task_ops long_tailed_task = {
    .name = "long_tailed",
    .primary = "top1",
    .train_only = "batchformer.",
    .create = create,
    .steps_per_epoch = steps_per_epoch,
    .build = build,
    .set_constants = set_constants,
    .feed = feed,
    .feed_ahead = feed_ahead,
    .batch_digest = batch_digest,
    .prepare_eval = prepare_eval,
    .evaluate = evaluate,
    .describe = describe,
    .fingerprint = fingerprint,
    .classifier = classifier,
    .data_wait_ns = data_wait_ns,
    .destroy = destroy,
};
