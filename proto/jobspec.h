/* jobspec - the job spec: the only place that knows the names of its fields.
 *
 * A spec is JSON. jobspec_parse() checks everything that can be checked without touching files or hardware,
 * reports all errors at once (JSON Pointer, value found, what is accepted; unknown keys name the nearest
 * known one), fills in every default, and gives both a struct for the code and the resolved document for
 * job.json. The JSON Schema in proto/schema/jobspec.schema.json says the same for other people's tools; tests
 * hold the two together.
 *
 * What this version cannot do yet is refused here, by name, never ignored.
 */
#ifndef PROTO_JOBSPEC_H
#define PROTO_JOBSPEC_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>
#include "common/err.h"

enum jobspec_task { TASK_LONG_TAILED };
enum jobspec_format { FORMAT_IDX, FORMAT_SYNTHETIC };
enum jobspec_tail { TAIL_NONE, TAIL_EXP, TAIL_STEP };
enum jobspec_norm { NORM_SYNC_BATCH, NORM_BATCH };
enum jobspec_scope { SCOPE_GLOBAL, SCOPE_LOCAL };
enum jobspec_gather { GATHER_AUTO, GATHER_KV, GATHER_FEATURES };
enum jobspec_loss { LOSS_CROSS_ENTROPY, LOSS_BALANCED_SOFTMAX };
enum jobspec_optim { OPTIM_SGD, OPTIM_ADAM, OPTIM_ADAMW, OPTIM_LARS };
enum jobspec_precision { PRECISION_FP32, PRECISION_TF32, PRECISION_BF16 };
enum jobspec_determinism { DETERMINISM_DEFAULT, DETERMINISM_BITWISE };
enum jobspec_schedule { SCHEDULE_CONSTANT, SCHEDULE_STEP, SCHEDULE_COSINE };

enum {
    JOBSPEC_MAX_MILESTONES = 16,
    JOBSPEC_MAX_NAME = 128,
    JOBSPEC_MAX_PATH = 4096,
    JOBSPEC_MAX_AFTER = 16,
    JOBSPEC_MAX_SWEEP_KEYS = 16,
    JOBSPEC_MAX_SWEEP = 1000 /* jobs that one sweep makes */
};

struct jobspec {
    char name[JOBSPEC_MAX_NAME];
    enum jobspec_task task;
    uint64_t seed; /* 0 … 10^15 */

    struct {
        enum jobspec_format format;
        char path[JOBSPEC_MAX_PATH]; /* directory of the data set; "" for synthetic */
        struct {
            enum jobspec_tail kind; /* spec: null = none, "exp", "step" */
            double factor;          /* imbalance factor >= 1: head count / tail count */
            int64_t max_per_class;  /* n_max; 0 = as many as every class has after the hold-out */
        } long_tail;
        int64_t holdout_per_class; /* training images per class kept for validation; >= 0 */
        struct {
            int crop_padding; /* zero-padding on each side before a random crop; 0 = off */
            bool flip;        /* horizontal flip with probability 1/2 */
        } augment;
        bool normalize; /* subtract mean, divide by standard deviation of the data set's training file */
        struct {        /* format synthetic */
            int height, width, channels, classes;
            int64_t train_per_class, test_per_class;
        } synthetic;
    } data;

    struct {
        char arch[32]; /* "resnet8" "resnet20" "resnet32" "resnet18" "resnet50" "cifar-resnet18" */
        double width;  /* multiplies every channel count */
        enum jobspec_norm norm;
    } model;

    struct {
        bool enabled;
        enum jobspec_scope scope;
        int layers, heads;
        int ffn;        /* 0 = the feature width (spec: null) */
        double dropout; /* [0, 1) */
        bool shared_classifier;
        enum jobspec_gather gather;
        double lr_scale;
        double weight_decay; /* < 0 = as optim.weight_decay (spec: null) */
        bool eval;           /* run the module at evaluation too (transductive) */
    } batchformer;

    struct {
        enum jobspec_loss kind;
    } loss;

    struct {
        enum jobspec_optim kind;
        double lr, weight_decay;
        double momentum; /* sgd and lars, as nesterov; else 0 */
        bool nesterov;
        double beta1, beta2;      /* adam and adamw */
        double eps;               /* adam, adamw and lars */
        double trust_coefficient; /* lars */
        double ema;               /* decay of the weights' moving average; 0 = none (spec: null) */
        struct {
            enum jobspec_schedule kind;
            double warmup_epochs;
            double milestones[JOBSPEC_MAX_MILESTONES]; /* epochs, rising; step only */
            int n_milestones;
            double gamma;  /* step only */
            double min_lr; /* cosine only: where it ends */
        } schedule;
    } optim;

    struct {
        int64_t epochs, batch_size; /* batch_size is global, whatever the number of ranks */
        enum jobspec_precision precision;
        enum jobspec_determinism determinism;
        int micro_shards; /* bitwise only; else 0 */
        bool autotune;    /* GPUs only: measure engines, and keep to what was measured */
        bool winograd;    /* CPUs only: convolutions may take Winograd's algorithm */
        int64_t log_every_steps;
        double max_grad_norm; /* 0 = no clipping (spec: null) */
    } train;

    struct {
        int64_t every_epochs; /* validation; 0 = only at the end */
        int64_t batch_size;
        int64_t many_above, few_below; /* thresholds on training counts: many > many_above, few < few_below */
    } eval;

    struct {
        int64_t every_steps; /* 0 = only at the end */
        int64_t keep;
    } checkpoint;

    struct {
        char weights[JOBSPEC_MAX_PATH]; /* safetensors file; "" = random initialisation (spec: null) */
    } init;

    struct {
        int ranks, min_ranks, max_ranks;
        int gpus_per_rank;    /* 0: CPUs; 1 */
        int nodes;            /* hosts that the ranks are spread over; 0 = any number (spec: null) */
        int threads_per_rank; /* 0 = cores of the host / ranks on it, at least 1 (spec: null) */
    } resources;

    struct {
        int priority;
        int max_restarts;
        double time_limit_s;              /* 0 = none (spec: null) */
        int64_t after[JOBSPEC_MAX_AFTER]; /* ids of jobs that must have succeeded before */
        int n_after;
    } scheduling;
};

/* One finding. */
struct jobspec_error {
    char *pointer; /* "/train/batch_size" */
    char *message; /* "0 found, a whole number from 1 to … is accepted" */
};

struct jobspec_errors {
    struct jobspec_error *v;
    int n;
};

void jobspec_errors_free(struct jobspec_errors *errs);
cJSON *jobspec_errors_to_json(const struct jobspec_errors *errs); /* [{pointer, message}] */

/* Checks `doc` and resolves it. Returns 0 and fills *spec and, if `resolved` is not NULL, *resolved (owned by
 * the caller); or -1 with every finding in *errs (owned by the caller, also when empty). */
int jobspec_parse(const cJSON *doc, struct jobspec *spec, cJSON **resolved, struct jobspec_errors *errs);

/* A sweep's jobs: one document for each combination of its values, the last key changing fastest, each
 * without "sweep". A document without a sweep gives one: a copy of itself. Returns how many and sets *docs
 * (an array, each element and the array owned by the caller: jobspec_expand_free), or -1 with findings about
 * the sweep itself in *errs. What the combinations say is checked by jobspec_parse(), which takes no sweep.
 */
int jobspec_expand(const cJSON *doc, cJSON ***docs, struct jobspec_errors *errs);
void jobspec_expand_free(cJSON **docs, int n);

/* jobspec_parse() of every job that the document makes: *n of them, or -1 with each finding once. Both arrays
 * are the caller's: jobspec_jobs_free(). */
struct jobspec_job {
    struct jobspec spec;
    cJSON *resolved;
};
int jobspec_parse_jobs(const cJSON *doc, struct jobspec_job **jobs, struct jobspec_errors *errs);
void jobspec_jobs_free(struct jobspec_job *jobs, int n);

/* Reads a spec file (at most 1 MiB). Bad JSON counts as one finding at pointer "". A spec with findings gives
 * an error of kind ERR_SPEC whose message lists them all, one a line. */
int jobspec_load(const char *path, struct jobspec *spec, cJSON **resolved, struct err *e);

/* --set a.b.c=VALUE: VALUE is JSON, or a string where it does not parse. Makes missing objects on the way. */
int jobspec_set(cJSON *doc, const char *assignment, struct err *e);

/* A path that a spec names, borrowed from it. */
struct jobspec_path {
    const char *pointer, *value;
};

/* Every path of a resolved spec, in the order of its keys. Returns how many there are; at most `cap` of them
 * are in `out`. */
int jobspec_paths(const cJSON *resolved, struct jobspec_path *out, int cap);

/* Channels that a layer of `base` channels has in a net of this width: base * width rounded, at least 1. */
int64_t jobspec_scale_channels(int64_t base, double width);

/* Width of the pooled feature of an architecture; 0 when there is no such architecture. */
int jobspec_feature_width(const char *arch, double width);

#endif
