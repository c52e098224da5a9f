/* jobspec_fields - see jobspec_fields.h.
 *
 * Order of the rows is the order of the keys in the resolved document. An object comes before its children, a
 * key that others depend on (.when_key, .derive) before those. A new key is a row here, a member in struct
 * jobspec, and what the schema test then asks for.
 */
#include "proto/jobspec_fields.h"

#include <stdio.h>
#include <string.h>

#define AT(member) offsetof(struct jobspec, member)
#define CAP(member) sizeof(((struct jobspec *)0)->member)

/* Bounds shared by several rows. They are wide: they keep numbers inside the types that carry them. */
#define MAX_SEED 1e15 /* cJSON writes 15 digits: up to here whole numbers survive */
#define MAX_COUNT 1e9
#define MAX_BATCH 1048576
#define MAX_RANKS 65536

static const struct field_choice tasks[] = {
    {"long_tailed", TASK_LONG_TAILED},
    {"domain_generalization", FIELD_LATER},
    {"compositional_zero_shot", FIELD_LATER},
    {"contrastive", FIELD_LATER},
    {"linear_probe", FIELD_LATER},
    {0},
};

static const struct field_choice formats[] = {
    {"idx", FORMAT_IDX},           {"synthetic", FORMAT_SYNTHETIC},
    {"cifar10", FIELD_LATER},      {"cifar100", FIELD_LATER},
    {"image_folder", FIELD_LATER}, {"image_list", FIELD_LATER},
    {"shards", FIELD_LATER},       {0},
};

static const struct field_choice tails[] = {{"exp", TAIL_EXP}, {"step", TAIL_STEP}, {0}};

static const struct field_choice archs[] = {
    {"resnet8", 0},
    {"resnet20", 0},
    {"resnet32", 0},
    {"resnet18", 0},
    {"resnet50", 0},
    {"cifar-resnet18", 0},
    {0},
};

static const struct field_choice norms[] = {{"sync_batch", NORM_SYNC_BATCH}, {"batch", NORM_BATCH}, {0}};
static const struct field_choice scopes[] = {{"global", SCOPE_GLOBAL}, {"local", SCOPE_LOCAL}, {0}};

static const struct field_choice gathers[] = {
    {"auto", GATHER_AUTO},
    {"kv", GATHER_KV},
    {"features", GATHER_FEATURES},
    {0},
};

static const struct field_choice losses[] = {
    {"cross_entropy", LOSS_CROSS_ENTROPY},
    {"balanced_softmax", LOSS_BALANCED_SOFTMAX},
    {0},
};

static const struct field_choice optimisers[] = {
    {"sgd", OPTIM_SGD}, {"adam", OPTIM_ADAM}, {"adamw", OPTIM_ADAMW}, {"lars", OPTIM_LARS}, {0},
};

static const struct field_choice schedules[] = {
    {"constant", SCHEDULE_CONSTANT},
    {"step", SCHEDULE_STEP},
    {"cosine", SCHEDULE_COSINE},
    {0},
};

static const struct field_choice precisions[] = {
    {"fp32", PRECISION_FP32}, {"tf32", PRECISION_TF32}, {"bf16", PRECISION_BF16}, {"fp16", FIELD_LATER}, {0},
};

static const struct field_choice determinisms[] = {
    {"default", DETERMINISM_DEFAULT},
    {"bitwise", DETERMINISM_BITWISE},
    {0},
};

static double derive_holdout(const struct jobspec *spec)
{
    return spec->data.format == FORMAT_IDX ? 100 : 0;
}

static double derive_micro_shards(const struct jobspec *spec)
{
    return spec->train.batch_size < 16 ? (double)spec->train.batch_size : 16;
}

static bool is_adam(const struct jobspec *spec)
{
    return spec->optim.kind == OPTIM_ADAM || spec->optim.kind == OPTIM_ADAMW;
}

static double derive_lr(const struct jobspec *spec)
{
    return is_adam(spec) ? 0.001 : 0.1;
}

static double derive_weight_decay(const struct jobspec *spec)
{
    return !is_adam(spec) ? 0.0005 : spec->optim.kind == OPTIM_ADAMW ? 0.01 : 0;
}

static double derive_autotune(const struct jobspec *spec)
{
    return spec->resources.gpus_per_rank > 0;
}

static double derive_winograd(const struct jobspec *spec)
{
    return spec->resources.gpus_per_rank == 0;
}

static double derive_max_ranks(const struct jobspec *spec)
{
    return spec->resources.ranks;
}

/* clang-format off */
const struct field jobspec_fields[] = {
    {"/version", FIELD_INT, 0, FIELD_NOT_KEPT, NULL, 1, 1,
     .help = "Version of the format."},
    {"/name", FIELD_LABEL, AT(name), 0, "\"job\"", .cap_bytes = CAP(name),
     .help = "What people call the job."},
    {"/task", FIELD_ENUM, AT(task), 0, NULL, .choices = tasks,
     .help = "What is learned and how it is evaluated."},
    {"/seed", FIELD_UINT64, AT(seed), 0, "0", 0, MAX_SEED,
     .help = "Seed of initialisation, order, augmentation and dropout."},

    {"/data", FIELD_OBJECT, .flags = FIELD_NOT_KEPT,
     .help = "The data set."},
    {"/data/format", FIELD_ENUM, AT(data.format), 0, NULL, .choices = formats,
     .help = "How the data set is stored: idx is the MNIST family's, synthetic is made up on the spot."},
    {"/data/path", FIELD_PATH, AT(data.path), 0, NULL, .cap_bytes = CAP(data.path),
     .when_key = "format", .when_values = {"idx"},
     .help = "Directory of the data set; bfctl resolves a relative one against the directory of the spec file."},
    {"/data/synthetic", FIELD_OBJECT, 0, FIELD_NOT_KEPT, NULL, .when_key = "format", .when_values = {"synthetic"},
     .help = "Shape and size of synthetic data."},
    {"/data/synthetic/height", FIELD_INT, AT(data.synthetic.height), 0, NULL, 1, 4096,
     .help = "Rows of an image."},
    {"/data/synthetic/width", FIELD_INT, AT(data.synthetic.width), 0, NULL, 1, 4096,
     .help = "Columns of an image."},
    {"/data/synthetic/channels", FIELD_INT, AT(data.synthetic.channels), 0, NULL, 1, 4,
     .help = "Channels of an image."},
    {"/data/synthetic/classes", FIELD_INT, AT(data.synthetic.classes), 0, NULL, 2, 65536,
     .help = "Number of classes."},
    {"/data/synthetic/train_per_class", FIELD_INT64, AT(data.synthetic.train_per_class), 0, NULL, 1, MAX_COUNT,
     .help = "Training images of each class, hold-out included."},
    {"/data/synthetic/test_per_class", FIELD_INT64, AT(data.synthetic.test_per_class), 0, NULL, 1, MAX_COUNT,
     .help = "Test images of each class."},
    {"/data/long_tail", FIELD_OBJECT, 0, FIELD_NOT_KEPT | FIELD_NULLABLE, "null",
     .help = "Thins the training images out to a long tail; null keeps all."},
    {"/data/long_tail/kind", FIELD_ENUM, AT(data.long_tail.kind), 0, NULL, .choices = tails,
     .help = "Class sizes fall exponentially from head to tail, or in one step at the middle class."},
    {"/data/long_tail/factor", FIELD_NUMBER, AT(data.long_tail.factor), 0, NULL, 1, MAX_COUNT,
     .help = "Imbalance factor: images of the first class divided by images of the last."},
    {"/data/long_tail/max_per_class", FIELD_INT64, AT(data.long_tail.max_per_class), FIELD_NULLABLE, "null",
     1, MAX_COUNT,
     .help = "Images of the first class; null is as many as every class has after the hold-out."},
    {"/data/holdout_per_class", FIELD_INT64, AT(data.holdout_per_class), 0, NULL, 0, MAX_COUNT,
     .derive = derive_holdout, .derive_text = "100 for idx, 0 for synthetic",
     .help = "Training images of each class set aside for validation."},
    {"/data/augment", FIELD_OBJECT, 0, FIELD_NOT_KEPT | FIELD_NULLABLE, "{}",
     .help = "Random changes to training images; null is none."},
    {"/data/augment/crop_padding", FIELD_INT, AT(data.augment.crop_padding), 0, "0", 0, 1024,
     .help = "Zero pixels added on each side before a random crop back to the image's size; 0 is no crop."},
    {"/data/augment/flip", FIELD_BOOL, AT(data.augment.flip), 0, "false",
     .help = "Mirrors an image left to right with probability 1/2."},
    {"/data/normalize", FIELD_BOOL, AT(data.normalize), 0, "true",
     .help = "Subtracts each channel's mean and divides by its standard deviation, both of the whole training file."},

    {"/model", FIELD_OBJECT, .flags = FIELD_NOT_KEPT,
     .help = "The network."},
    {"/model/arch", FIELD_WORD, AT(model.arch), 0, NULL, .cap_bytes = CAP(model.arch), .choices = archs,
     .help = "Architecture: 8, 20 and 32 are the small-image family, 18 and 50 torchvision's; cifar-resnet18 is 18 with a 3×3 stem and no max pooling."},
    {"/model/width", FIELD_NUMBER, AT(model.width), FIELD_MIN_OUT, "1", 0, 16,
     .help = "Multiplies every channel count."},
    {"/model/norm", FIELD_ENUM, AT(model.norm), 0, "\"sync_batch\"", .choices = norms,
     .help = "Batch norm with statistics of the global mini-batch, or of each rank's rows."},

    {"/batchformer", FIELD_OBJECT, 0, FIELD_NOT_KEPT, "{}",
     .help = "The transformer layer over the samples of the mini-batch."},
    {"/batchformer/enabled", FIELD_BOOL, AT(batchformer.enabled), 0, "true",
     .help = "false trains the network without the module."},
    {"/batchformer/scope", FIELD_ENUM, AT(batchformer.scope), 0, "\"global\"", .choices = scopes,
     .help = "Attends over the samples of all ranks, or of each rank alone."},
    {"/batchformer/layers", FIELD_INT, AT(batchformer.layers), 0, "1", 1, 64,
     .help = "Encoder layers."},
    {"/batchformer/heads", FIELD_INT, AT(batchformer.heads), 0, "4", 1, 1024,
     .help = "Attention heads; must divide the feature width."},
    {"/batchformer/ffn", FIELD_INT, AT(batchformer.ffn), FIELD_NULLABLE, "null", 1, MAX_BATCH,
     .help = "Width of the feed-forward part; null is the feature width."},
    {"/batchformer/dropout", FIELD_NUMBER, AT(batchformer.dropout), FIELD_MAX_OUT, "0.5", 0, 1,
     .help = "Dropout probability inside the module."},
    {"/batchformer/shared_classifier", FIELD_BOOL, AT(batchformer.shared_classifier), FIELD_FIXED, "true",
     .help = "One classifier for the features before and after the module."},
    {"/batchformer/gather", FIELD_ENUM, AT(batchformer.gather), 0, "\"auto\"", .choices = gathers,
     .help = "What ranks exchange: keys and values, features, or the cheaper of the two; same results."},
    {"/batchformer/lr_scale", FIELD_NUMBER, AT(batchformer.lr_scale), 0, "1", 0, 1e6,
     .help = "Multiplies the learning rate of the module's parameters."},
    {"/batchformer/weight_decay", FIELD_NUMBER, AT(batchformer.weight_decay), FIELD_NULLABLE, "null", 0, 1e3,
     .null_value = -1, .help = "Weight decay of the module's parameters; null is optim.weight_decay."},
    {"/batchformer/eval", FIELD_BOOL, AT(batchformer.eval), 0, "false",
     .help = "Runs the module at evaluation too; results then depend on the evaluation batch (transductive)."},

    {"/loss", FIELD_OBJECT, 0, FIELD_NOT_KEPT, "{}",
     .help = "The loss function."},
    {"/loss/kind", FIELD_ENUM, AT(loss.kind), 0, "\"cross_entropy\"", .choices = losses,
     .help = "Cross entropy, or cross entropy over logits shifted by the log of the class counts."},

    {"/optim", FIELD_OBJECT, 0, FIELD_NOT_KEPT, "{}",
     .help = "The optimiser."},
    {"/optim/kind", FIELD_ENUM, AT(optim.kind), 0, "\"sgd\"", .choices = optimisers,
     .help = "Gradient descent with momentum, Adam, Adam with decoupled weight decay, or layer-wise adaptive rates."},
    {"/optim/lr", FIELD_NUMBER, AT(optim.lr), FIELD_MIN_OUT, NULL, 0, 1e6,
     .derive = derive_lr, .derive_text = "0.001 with adam and adamw, else 0.1",
     .help = "Learning rate at the top of the schedule, for the global mini-batch."},
    {"/optim/momentum", FIELD_NUMBER, AT(optim.momentum), FIELD_MAX_OUT, "0.9", 0, 1,
     .when_key = "kind", .when_values = {"sgd", "lars"},
     .help = "Momentum."},
    {"/optim/nesterov", FIELD_BOOL, AT(optim.nesterov), 0, "false",
     .when_key = "kind", .when_values = {"sgd", "lars"},
     .help = "Nesterov's form of momentum; needs a momentum above 0."},
    {"/optim/beta1", FIELD_NUMBER, AT(optim.beta1), FIELD_MAX_OUT, "0.9", 0, 1,
     .when_key = "kind", .when_values = {"adam", "adamw"},
     .help = "Decay of the running mean of gradients."},
    {"/optim/beta2", FIELD_NUMBER, AT(optim.beta2), FIELD_MAX_OUT, "0.999", 0, 1,
     .when_key = "kind", .when_values = {"adam", "adamw"},
     .help = "Decay of the running mean of squared gradients."},
    {"/optim/eps", FIELD_NUMBER, AT(optim.eps), 0, "1e-8", 1e-12, 1,
     .when_key = "kind", .when_values = {"adam", "adamw", "lars"},
     .help = "Added to the denominator of the update."},
    {"/optim/trust_coefficient", FIELD_NUMBER, AT(optim.trust_coefficient), FIELD_MIN_OUT, "0.001", 0, 1e3,
     .when_key = "kind", .when_values = {"lars"},
     .help = "Length of a tensor's update beside that of its weights, at learning rate 1 and without momentum."},
    {"/optim/weight_decay", FIELD_NUMBER, AT(optim.weight_decay), 0, NULL, 0, 1e3,
     .derive = derive_weight_decay, .derive_text = "0.01 with adamw, 0 with adam, else 0.0005",
     .help = "L2 penalty, added to the gradient; with adamw taken from the weights instead, times the learning rate."},
    {"/optim/ema", FIELD_NUMBER, AT(optim.ema), FIELD_NULLABLE | FIELD_MIN_OUT | FIELD_MAX_OUT, "null", 0, 1,
     .help = "Decay of a moving average of the weights, for evaluation and the exported model; null is none."},
    {"/optim/schedule", FIELD_OBJECT, 0, FIELD_NOT_KEPT, "{}",
     .help = "The learning rate over time."},
    {"/optim/schedule/kind", FIELD_ENUM, AT(optim.schedule.kind), 0, "\"cosine\"", .choices = schedules,
     .help = "Constant, multiplied by gamma at each milestone, or half a cosine down to min_lr."},
    {"/optim/schedule/warmup_epochs", FIELD_NUMBER, AT(optim.schedule.warmup_epochs), 0, "0", 0, 1e6,
     .help = "Epochs of linear rise at the start; less than train.epochs."},
    {"/optim/schedule/milestones", FIELD_NUMBERS, AT(optim.schedule.milestones), FIELD_MIN_OUT, NULL, 0, 1e6,
     .when_key = "kind", .when_values = {"step"},
     .help = "Epochs at which the learning rate falls, rising."},
    {"/optim/schedule/gamma", FIELD_NUMBER, AT(optim.schedule.gamma), FIELD_MIN_OUT, "0.1", 0, 1,
     .when_key = "kind", .when_values = {"step"},
     .help = "Factor of each fall."},
    {"/optim/schedule/min_lr", FIELD_NUMBER, AT(optim.schedule.min_lr), 0, "0", 0, 1e6,
     .when_key = "kind", .when_values = {"cosine"},
     .help = "Learning rate at the end; at most optim.lr."},

    {"/resources", FIELD_OBJECT, 0, FIELD_NOT_KEPT, "{}",
     .help = "What the job runs on."},
    {"/resources/ranks", FIELD_INT, AT(resources.ranks), 0, "1", 1, MAX_RANKS,
     .help = "Processes that the job asks for."},
    {"/resources/min_ranks", FIELD_INT, AT(resources.min_ranks), 0, "1", 1, MAX_RANKS,
     .help = "Processes that it can start with where fewer are free; at most ranks."},
    {"/resources/max_ranks", FIELD_INT, AT(resources.max_ranks), 0, NULL, 1, MAX_RANKS,
     .derive = derive_max_ranks, .derive_text = "resources.ranks",
     .help = "Processes that it may grow to; at least ranks."},
    {"/resources/gpus_per_rank", FIELD_INT, AT(resources.gpus_per_rank), 0, "0", 0, 1,
     .help = "GPUs of each process."},
    {"/resources/threads_per_rank", FIELD_INT, AT(resources.threads_per_rank), FIELD_NULLABLE, "null", 1, 1024,
     .help = "Threads of each process; null is the cores that it may use divided by the processes that share them."},
    {"/resources/nodes", FIELD_INT, AT(resources.nodes), FIELD_NULLABLE, "null", 1, MAX_RANKS,
     .help = "Hosts that the processes are spread over evenly; null is as few as possible."},

    {"/train", FIELD_OBJECT, .flags = FIELD_NOT_KEPT,
     .help = "The training run."},
    {"/train/epochs", FIELD_INT64, AT(train.epochs), 0, NULL, 1, 1e6,
     .help = "Passes over the training images."},
    {"/train/batch_size", FIELD_INT64, AT(train.batch_size), 0, NULL, 1, MAX_BATCH,
     .help = "Rows of the global mini-batch, whatever the number of ranks."},
    {"/train/precision", FIELD_ENUM, AT(train.precision), 0, "\"fp32\"", .choices = precisions,
     .help = "Number format of activations and products; weights, their gradients and sums are fp32. tf32 needs GPUs, and bf16 on CPUs AVX-512."},
    {"/train/determinism", FIELD_ENUM, AT(train.determinism), 0, "\"default\"", .choices = determinisms,
     .help = "default: equal within tolerance for every number of ranks; bitwise: the same bits for every number."},
    {"/train/micro_shards", FIELD_INT, AT(train.micro_shards), 0, NULL, 1, MAX_BATCH,
     .derive = derive_micro_shards, .derive_text = "16, or train.batch_size where that is less",
     .when_key = "determinism", .when_values = {"bitwise"},
     .help = "Parts of the mini-batch that are computed by themselves and summed in one fixed order; another number rounds otherwise."},
    {"/train/autotune", FIELD_BOOL, AT(train.autotune), 0, NULL,
     .derive = derive_autotune, .derive_text = "true where resources.gpus_per_rank is not 0, else false",
     .help = "GPUs only: measures at the start which of the libraries' engines are the fastest, and keeps to them."},
    {"/train/winograd", FIELD_BOOL, AT(train.winograd), 0, NULL,
     .derive = derive_winograd, .derive_text = "true where resources.gpus_per_rank is 0, else false",
     .help = "CPUs only: 3×3 convolutions of stride 1 by Winograd's algorithm where it fits: faster, and rounds otherwise."},
    {"/train/log_every_steps", FIELD_INT64, AT(train.log_every_steps), 0, "10", 1, MAX_COUNT,
     .help = "Steps between two logged training losses."},
    {"/train/max_grad_norm", FIELD_NUMBER, AT(train.max_grad_norm), FIELD_NULLABLE | FIELD_MIN_OUT, "null", 0, 1e9,
     .help = "Scales the gradient down to this norm; null is no limit."},

    {"/eval", FIELD_OBJECT, 0, FIELD_NOT_KEPT, "{}",
     .help = "Evaluation."},
    {"/eval/every_epochs", FIELD_INT64, AT(eval.every_epochs), 0, "1", 0, 1e6,
     .help = "Epochs between two validations; 0 is only at the end."},
    {"/eval/batch_size", FIELD_INT64, AT(eval.batch_size), 0, "512", 1, MAX_BATCH,
     .help = "Largest batch of an evaluation, all ranks together."},
    {"/eval/many_above", FIELD_INT64, AT(eval.many_above), 0, "100", 0, MAX_COUNT,
     .help = "A class with more training images than this is one of the many-shot classes."},
    {"/eval/few_below", FIELD_INT64, AT(eval.few_below), 0, "20", 0, MAX_COUNT,
     .help = "A class with fewer training images than this is one of the few-shot classes."},

    {"/checkpoint", FIELD_OBJECT, 0, FIELD_NOT_KEPT, "{}",
     .help = "Checkpoints."},
    {"/checkpoint/every_steps", FIELD_INT64, AT(checkpoint.every_steps), 0, "200", 0, MAX_COUNT,
     .help = "Steps between two checkpoints; 0 is only at the end."},
    {"/checkpoint/keep", FIELD_INT64, AT(checkpoint.keep), 0, "3", 1, 1e6,
     .help = "How many of the newest checkpoints stay on disk."},

    {"/init", FIELD_OBJECT, 0, FIELD_NOT_KEPT, "{}",
     .help = "Where the weights start."},
    {"/init/weights", FIELD_PATH, AT(init.weights), FIELD_NULLABLE, "null", .cap_bytes = CAP(init.weights),
     .help = "A safetensors file to start from, null is random; relative paths as in data.path."},

    {"/scheduling", FIELD_OBJECT, 0, FIELD_NOT_KEPT, "{}",
     .help = "When the job runs."},
    {"/scheduling/priority", FIELD_INT, AT(scheduling.priority), 0, "0", -1000, 1000,
     .help = "Higher goes first."},
    {"/scheduling/max_restarts", FIELD_INT, AT(scheduling.max_restarts), 0, "3", 0, 1000,
     .help = "How often the job is started again after a rank was lost."},
    {"/scheduling/time_limit_s", FIELD_NUMBER, AT(scheduling.time_limit_s), FIELD_NULLABLE | FIELD_MIN_OUT, "null",
     0, 1e9,
     .help = "Seconds after which the job is stopped; null is none."},
    {"/scheduling/after", FIELD_IDS, AT(scheduling.after), 0, "[]", 1, 9007199254740991,
     .help = "Ids of jobs that must have succeeded before; when one fails or is cancelled, so is this one."},

    {"/sweep", FIELD_SWEEP, 0, FIELD_NOT_KEPT | FIELD_NULLABLE, "null",
     .help = "One job for each combination of the values given for some dotted keys; null is one job."},
};
/* clang-format on */

const int jobspec_n_fields = sizeof jobspec_fields / sizeof jobspec_fields[0];

const char *jobspec_field_key(const struct field *f)
{
    return strrchr(f->pointer, '/') + 1;
}

bool jobspec_field_exists_with(const struct field *f, const char *value)
{
    for (int i = 0; f->when_values[i]; i++)
        if (strcmp(f->when_values[i], value) == 0)
            return true;
    return false;
}

void jobspec_field_when(const struct field *f, char quote, char *out, size_t out_bytes)
{
    const char *const *v = f->when_values;
    size_t n = 0;

    for (int i = 0; v[i] && n < out_bytes; i++)
        n += (size_t)snprintf(out + n, out_bytes - n, "%s%c%s%c",
                              i == 0     ? ""
                              : v[i + 1] ? ", "
                                         : " or ",
                              quote, v[i], quote);
}

bool jobspec_field_is_child(const struct field *f, const char *parent)
{
    size_t n = strlen(parent);

    /* Most differ here: a spec is walked as often as the table has sections. */
    if (n > 1 && f->pointer[1] != parent[1])
        return false;
    return strncmp(f->pointer, parent, n) == 0 && f->pointer[n] == '/' && !strchr(f->pointer + n + 1, '/');
}

static void accepted_choices(const struct field *f, char *out, size_t cap)
{
    int n_open = 0;
    size_t n = 0;

    for (const struct field_choice *c = f->choices; c->name; c++)
        n_open += c->value != FIELD_LATER;
    if (n_open > 1)
        n += (size_t)snprintf(out, cap, "one of ");
    const char *comma = "";
    for (const struct field_choice *c = f->choices; c->name && n < cap; c++)
        if (c->value != FIELD_LATER) {
            n += (size_t)snprintf(out + n, cap - n, "%s\"%s\"", comma, c->name);
            comma = ", ";
        }
}

static void accepted_number(const struct field *f, const char *what, char *out, size_t cap)
{
    if (f->min == f->max)
        snprintf(out, cap, "%.16g", f->min);
    else if (f->flags & (FIELD_MIN_OUT | FIELD_MAX_OUT))
        snprintf(out, cap, "%s %s %.16g and %s %.16g", what,
                 f->flags & FIELD_MIN_OUT ? "above" : "of at least", f->min,
                 f->flags & FIELD_MAX_OUT ? "below" : "at most", f->max);
    else
        snprintf(out, cap, "%s from %.16g to %.16g", what, f->min, f->max);
}

void jobspec_field_accepted(const struct field *f, char *out, size_t out_bytes)
{
    char kind[192] = "";

    switch (f->type) {
    case FIELD_OBJECT:
        snprintf(kind, sizeof kind, "an object");
        break;
    case FIELD_LABEL:
        snprintf(kind, sizeof kind,
                 "a string of 1 to %zu letters, digits and . _ + = - that starts with a letter or digit",
                 f->cap_bytes - 1);
        break;
    case FIELD_PATH:
        snprintf(kind, sizeof kind, "a string of 1 to %zu bytes without control characters",
                 f->cap_bytes - 1);
        break;
    case FIELD_ENUM:
    case FIELD_WORD:
        accepted_choices(f, kind, sizeof kind);
        break;
    case FIELD_BOOL:
        snprintf(kind, sizeof kind, "true or false");
        break;
    case FIELD_INT:
    case FIELD_INT64:
    case FIELD_UINT64:
        accepted_number(f, "a whole number", kind, sizeof kind);
        break;
    case FIELD_NUMBER:
        accepted_number(f, "a number", kind, sizeof kind);
        break;
    case FIELD_NUMBERS: {
        int n = snprintf(kind, sizeof kind, "an array of 1 to %d values, each ", JOBSPEC_MAX_MILESTONES);
        accepted_number(f, "a number", kind + n, sizeof kind - (size_t)n);
        break;
    }
    case FIELD_IDS:
        snprintf(kind, sizeof kind, "an array of at most %d different job ids", JOBSPEC_MAX_AFTER);
        break;
    case FIELD_SWEEP:
        snprintf(kind, sizeof kind, "an object of dotted keys with arrays of values");
        break;
    }
    snprintf(out, out_bytes, "%s%s", f->flags & FIELD_NULLABLE ? "null or " : "", kind);
}
