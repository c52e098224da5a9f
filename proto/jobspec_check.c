/* jobspec_check - the rules of a job spec that involve several keys, one row each.
 *
 * A row names the keys it reads. It runs only when none of them (and none of the objects they lie in) has a
 * finding, so that one mistake gives one message. docs/jobs.md lists the same rules; those that JSON Schema
 * cannot express are the only ones in which the schema is more permissive than this file.
 */
#include "proto/jobspec_fields.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct arch_width {
    const char *arch;
    int64_t channels; /* of the last stage, at width 1 */
    int expansion;    /* feature channels for each of them */
};

static const struct arch_width arch_widths[] = {
    {"resnet8", 64, 1},   {"resnet20", 64, 1},  {"resnet32", 64, 1},
    {"resnet18", 512, 1}, {"resnet50", 512, 4}, {"cifar-resnet18", 512, 1},
};

int64_t jobspec_scale_channels(int64_t base, double width)
{
    int64_t n = lround((double)base * width);

    return n < 1 ? 1 : n;
}

int jobspec_feature_width(const char *arch, double width)
{
    for (size_t i = 0; i < sizeof arch_widths / sizeof *arch_widths; i++)
        if (strcmp(arch_widths[i].arch, arch) == 0)
            return (int)jobspec_scale_channels(arch_widths[i].channels, width) * arch_widths[i].expansion;
    return 0;
}

struct check {
    const char *pointer;  /* where the finding is reported */
    const char *reads[4]; /* ends with NULL */
    /* Writes a message and returns true when the rule is broken. */
    bool (*broken)(const struct jobspec *s, char *message, size_t cap);
};

#define SAY(...) (snprintf(message, cap, __VA_ARGS__), true)

static bool ranks_over_batch(const struct jobspec *s, char *message, size_t cap)
{
    return s->resources.ranks > s->train.batch_size &&
           SAY("%d found, more ranks than rows in a batch; at most train.batch_size = %lld is accepted",
               s->resources.ranks, (long long)s->train.batch_size);
}

static bool max_ranks_over_batch(const struct jobspec *s, char *message, size_t cap)
{
    /* ranks > batch_size has its own finding; a max_ranks that only follows ranks adds nothing to it. */
    return s->resources.max_ranks > s->train.batch_size && s->resources.ranks <= s->train.batch_size &&
           SAY("%d found, more ranks than rows in a batch; at most train.batch_size = %lld is accepted",
               s->resources.max_ranks, (long long)s->train.batch_size);
}

static bool max_ranks_over_eval_batch(const struct jobspec *s, char *message, size_t cap)
{
    return s->resources.max_ranks > s->eval.batch_size &&
           SAY("%lld found, fewer rows in a batch than ranks; at least resources.max_ranks = %d is accepted",
               (long long)s->eval.batch_size, s->resources.max_ranks);
}

static bool min_over_ranks(const struct jobspec *s, char *message, size_t cap)
{
    return s->resources.min_ranks > s->resources.ranks &&
           SAY("%d found, at most resources.ranks = %d is accepted", s->resources.min_ranks,
               s->resources.ranks);
}

static bool max_under_ranks(const struct jobspec *s, char *message, size_t cap)
{
    return s->resources.max_ranks < s->resources.ranks &&
           SAY("%d found, at least resources.ranks = %d is accepted", s->resources.max_ranks,
               s->resources.ranks);
}

static bool nodes_over_ranks(const struct jobspec *s, char *message, size_t cap)
{
    return s->resources.nodes > s->resources.min_ranks &&
           SAY("%d found, more hosts than processes that it may start with; at most resources.min_ranks = %d "
               "is "
               "accepted",
               s->resources.nodes, s->resources.min_ranks);
}

static bool heads_not_divisor(const struct jobspec *s, char *message, size_t cap)
{
    int width = jobspec_feature_width(s->model.arch, s->model.width);

    return s->batchformer.enabled && width % s->batchformer.heads != 0 &&
           SAY("%d found, a divisor of the feature width %d (%s, width %.6g) is accepted",
               s->batchformer.heads, width, s->model.arch, s->model.width);
}

static bool nesterov_alone(const struct jobspec *s, char *message, size_t cap)
{
    return s->optim.nesterov && s->optim.momentum == 0 &&
           SAY("true found, false is accepted while optim.momentum is 0");
}

static bool warmup_too_long(const struct jobspec *s, char *message, size_t cap)
{
    return s->optim.schedule.warmup_epochs >= (double)s->train.epochs &&
           SAY("%.6g found, less than train.epochs = %lld is accepted", s->optim.schedule.warmup_epochs,
               (long long)s->train.epochs);
}

static bool milestones_not_rising(const struct jobspec *s, char *message, size_t cap)
{
    const double *m = s->optim.schedule.milestones;

    for (int i = 1; i < s->optim.schedule.n_milestones; i++)
        if (m[i] <= m[i - 1])
            return SAY("%.6g found after %.6g, rising values are accepted", m[i], m[i - 1]);
    return false;
}

static bool min_lr_over_lr(const struct jobspec *s, char *message, size_t cap)
{
    return s->optim.schedule.min_lr > s->optim.lr &&
           SAY("%.6g found, at most optim.lr = %.6g is accepted", s->optim.schedule.min_lr, s->optim.lr);
}

static bool groups_overlap(const struct jobspec *s, char *message, size_t cap)
{
    return s->eval.few_below > s->eval.many_above + 1 &&
           SAY("%lld found, at most eval.many_above + 1 = %lld is accepted: a class would be both few and "
               "many",
               (long long)s->eval.few_below, (long long)s->eval.many_above + 1);
}

/* Bitwise: nothing may depend on which rank holds which row. */

static bool bitwise(const struct jobspec *s)
{
    return s->train.determinism == DETERMINISM_BITWISE;
}

/* Shards begin anywhere in a buffer; the libraries' choice of algorithm follows alignment. */
static bool bitwise_gpu(const struct jobspec *s, char *message, size_t cap)
{
    return bitwise(s) && s->resources.gpus_per_rank > 0 &&
           SAY("\"bitwise\" found, \"default\" is accepted while resources.gpus_per_rank is not 0");
}

static bool tf32_needs_gpu(const struct jobspec *s, char *message, size_t cap)
{
    return s->train.precision == PRECISION_TF32 && s->resources.gpus_per_rank == 0 &&
           SAY("\"tf32\" found, \"fp32\" or \"bf16\" is accepted while resources.gpus_per_rank is 0");
}

static bool autotune_needs_gpu(const struct jobspec *s, char *message, size_t cap)
{
    return s->train.autotune && s->resources.gpus_per_rank == 0 &&
           SAY("true found, false is accepted while resources.gpus_per_rank is 0");
}

static bool winograd_needs_cpu(const struct jobspec *s, char *message, size_t cap)
{
    return s->train.winograd && s->resources.gpus_per_rank > 0 &&
           SAY("true found, false is accepted while resources.gpus_per_rank is not 0");
}

static bool shards_over_batch(const struct jobspec *s, char *message, size_t cap)
{
    return bitwise(s) && s->train.micro_shards > s->train.batch_size &&
           SAY("%d found, at most train.batch_size = %lld is accepted", s->train.micro_shards,
               (long long)s->train.batch_size);
}

static bool shards_under_ranks(const struct jobspec *s, char *message, size_t cap)
{
    return bitwise(s) && s->train.micro_shards < s->resources.max_ranks &&
           s->resources.max_ranks <= s->train.batch_size &&
           SAY("%d found, at least resources.max_ranks = %d is accepted", s->train.micro_shards,
               s->resources.max_ranks);
}

static bool bitwise_norm(const struct jobspec *s, char *message, size_t cap)
{
    return bitwise(s) && s->model.norm == NORM_BATCH &&
           SAY("\"batch\" found, \"sync_batch\" is accepted while train.determinism is \"bitwise\": "
               "statistics "
               "of a rank's own rows depend on the number of ranks");
}

static bool bitwise_scope(const struct jobspec *s, char *message, size_t cap)
{
    return bitwise(s) && s->batchformer.enabled && s->batchformer.scope == SCOPE_LOCAL &&
           SAY("\"local\" found, \"global\" is accepted while train.determinism is \"bitwise\": what attends "
               "to a "
               "rank's own rows depends on the number of ranks");
}

static bool bitwise_gather(const struct jobspec *s, char *message, size_t cap)
{
    return bitwise(s) && s->batchformer.enabled && s->batchformer.gather == GATHER_FEATURES &&
           SAY("\"features\" found, \"auto\" or \"kv\" is accepted while train.determinism is \"bitwise\": "
               "projections of gathered rows are summed on each rank");
}

static bool bitwise_threads(const struct jobspec *s, char *message, size_t cap)
{
    return bitwise(s) && s->resources.threads_per_rank > 1 &&
           SAY("%d found, null or 1 is accepted while train.determinism is \"bitwise\"; ask for more ranks "
               "instead",
               s->resources.threads_per_rank);
}

/* Synthetic data: their size is known here, so what the reader of the files would refuse is refused at once.
 */

static bool synthetic(const struct jobspec *s)
{
    return s->data.format == FORMAT_SYNTHETIC;
}

static bool synthetic_too_many(const struct jobspec *s, char *message, size_t cap)
{
    int64_t most = INT32_MAX / (s->data.synthetic.classes ? s->data.synthetic.classes : 1);
    int64_t more = s->data.synthetic.train_per_class > s->data.synthetic.test_per_class
                       ? s->data.synthetic.train_per_class
                       : s->data.synthetic.test_per_class;

    return synthetic(s) && more > most &&
           SAY("%lld images of each of %d classes found, at most %d images in all are accepted",
               (long long)more, s->data.synthetic.classes, INT32_MAX);
}

static bool holdout_takes_all(const struct jobspec *s, char *message, size_t cap)
{
    return synthetic(s) && s->data.holdout_per_class >= s->data.synthetic.train_per_class &&
           SAY("%lld found, less than data.synthetic.train_per_class = %lld is accepted",
               (long long)s->data.holdout_per_class, (long long)s->data.synthetic.train_per_class);
}

static bool tail_over_stock(const struct jobspec *s, char *message, size_t cap)
{
    int64_t left = s->data.synthetic.train_per_class - s->data.holdout_per_class;

    return synthetic(s) && left > 0 && s->data.long_tail.max_per_class > left &&
           SAY("%lld found, at most %lld is accepted: data.synthetic.train_per_class less the hold-out",
               (long long)s->data.long_tail.max_per_class, (long long)left);
}

static bool no_full_batch(const struct jobspec *s, char *message, size_t cap)
{
    int64_t per_class = s->data.synthetic.train_per_class - s->data.holdout_per_class;
    int64_t n = per_class * s->data.synthetic.classes;

    return synthetic(s) && per_class > 0 && n < s->train.batch_size &&
           SAY("%lld found, at most the %lld training images of data.synthetic are accepted",
               (long long)s->train.batch_size, (long long)n);
}

/* clang-format off */
static const struct check checks[] = {
    {"/resources/ranks", {"/resources/ranks", "/train/batch_size"}, ranks_over_batch},
    {"/resources/max_ranks", {"/resources/max_ranks", "/resources/ranks", "/train/batch_size"}, max_ranks_over_batch},
    {"/eval/batch_size", {"/eval/batch_size", "/resources/max_ranks", "/resources/ranks"}, max_ranks_over_eval_batch},
    {"/resources/min_ranks", {"/resources/min_ranks", "/resources/ranks"}, min_over_ranks},
    {"/resources/max_ranks", {"/resources/max_ranks", "/resources/ranks"}, max_under_ranks},
    {"/resources/nodes", {"/resources/nodes", "/resources/min_ranks"}, nodes_over_ranks},
    {"/batchformer/heads", {"/batchformer/heads", "/batchformer/enabled", "/model"}, heads_not_divisor},
    {"/optim/nesterov", {"/optim/nesterov", "/optim/momentum"}, nesterov_alone},
    {"/optim/schedule/warmup_epochs", {"/optim/schedule/warmup_epochs", "/train/epochs"}, warmup_too_long},
    {"/optim/schedule/milestones", {"/optim/schedule"}, milestones_not_rising},
    {"/optim/schedule/min_lr", {"/optim/schedule", "/optim/lr"}, min_lr_over_lr},
    {"/eval/few_below", {"/eval/few_below", "/eval/many_above"}, groups_overlap},
    {"/train/micro_shards", {"/train/micro_shards", "/train/determinism", "/train/batch_size"}, shards_over_batch},
    {"/train/micro_shards", {"/train", "/resources/max_ranks", "/resources/ranks"}, shards_under_ranks},
    {"/train/determinism", {"/train/determinism", "/resources/gpus_per_rank"}, bitwise_gpu},
    {"/train/precision", {"/train/precision", "/resources/gpus_per_rank"}, tf32_needs_gpu},
    {"/train/autotune", {"/train/autotune", "/resources/gpus_per_rank"}, autotune_needs_gpu},
    {"/train/winograd", {"/train/winograd", "/resources/gpus_per_rank"}, winograd_needs_cpu},
    {"/model/norm", {"/model/norm", "/train/determinism"}, bitwise_norm},
    {"/batchformer/scope", {"/batchformer/scope", "/batchformer/enabled", "/train/determinism"}, bitwise_scope},
    {"/batchformer/gather", {"/batchformer/gather", "/batchformer/enabled", "/train/determinism"}, bitwise_gather},
    {"/resources/threads_per_rank", {"/resources/threads_per_rank", "/train/determinism"}, bitwise_threads},
    {"/data/synthetic", {"/data"}, synthetic_too_many},
    {"/data/holdout_per_class", {"/data"}, holdout_takes_all},
    {"/data/long_tail/max_per_class", {"/data"}, tail_over_stock},
    {"/train/batch_size", {"/train/batch_size", "/data"}, no_full_batch},
};
/* clang-format on */

static bool starts_at(const char *pointer, const char *prefix)
{
    size_t n = strlen(prefix);

    return strncmp(pointer, prefix, n) == 0 && (pointer[n] == 0 || pointer[n] == '/');
}

/* No finding at the pointer, above it or below it. */
static bool sound(const struct jobspec_errors *errs, int n_errs, const char *pointer)
{
    for (int i = 0; i < n_errs; i++)
        if (starts_at(errs->v[i].pointer, pointer) || starts_at(pointer, errs->v[i].pointer))
            return false;
    return true;
}

void jobspec_cross_check(const struct jobspec *spec, struct jobspec_errors *errs)
{
    int n_before = errs->n; /* the checks do not silence each other */
    char message[256];

    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        const struct check *c = &checks[i];
        bool run = true;
        for (int k = 0; k < 4 && c->reads[k]; k++)
            run = run && sound(errs, n_before, c->reads[k]);
        if (run && c->broken(spec, message, sizeof message))
            jobspec_errors_add(errs, c->pointer, "%s", message);
    }
}
