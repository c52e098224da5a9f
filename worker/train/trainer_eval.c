/* trainer_eval - evaluations as the trainer sees them: timed, recorded, the best one kept; see trainer.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/json.h"
#include "worker/train/trainer_impl.h"

double task_eval_scalar(const struct task_eval *v, const char *name)
{
    for (int i = 0; i < v->n_scalars; i++)
        if (strcmp(v->scalars[i].name, name) == 0)
            return v->scalars[i].value;
    return NAN;
}

void task_eval_free(struct task_eval *v)
{
    free(v->per_class);
    *v = (struct task_eval){0};
}

static cJSON *eval_to_json(const struct trainer *t, const struct task_eval *v, const char *split)
{
    cJSON *doc = cJSON_CreateObject();

    cJSON_AddStringToObject(doc, "split", split);
    cJSON_AddNumberToObject(doc, "step", (double)t->at.step);
    cJSON_AddNumberToObject(doc, "samples", (double)v->n_samples);
    if (t->optim->average)
        cJSON_AddStringToObject(doc, "weights", "ema");
    for (int i = 0; i < v->n_scalars; i++)
        json_add_double(doc, v->scalars[i].name, v->scalars[i].value);
    if (v->per_class) {
        cJSON *per_class = cJSON_AddArrayToObject(doc, "per_class");
        for (int c = 0; c < v->n_classes; c++)
            cJSON_AddItemToArray(per_class, cJSON_CreateNumber(v->per_class[c]));
    }
    t->task->ops->describe(t->task, doc);
    return doc;
}

static int record_eval(struct trainer *t, const struct task_eval *v, const char *split, const char *prefix,
                       struct err *e)
{
    struct record r = {.kind = "eval", .split = split, .step = t->at.step, .epoch = trainer_epoch(t)};

    for (int i = 0; i < v->n_scalars; i++)
        record_add(&r, prefix, v->scalars[i].name, v->scalars[i].value);
    return recorder_write(&t->recorder, &r, e);
}

/* With batch norm per rank the running statistics differ between ranks, and rank 0's are what is saved: all
 * evaluate with those, as torch's DistributedDataParallel does. */
static int share_statistics(struct trainer *t, struct err *e)
{
    const struct params *ps = t->params;

    if (t->cfg.spec->model.norm != NORM_BATCH || t->cfg.comm->size == 1)
        return 0;
    return comm_broadcast(t->cfg.device_comm, ps->buffers, ps->n_buffers * sizeof(float), 0, e);
}

/* With the weights' moving average in their place, where there is one. */
static int run_evaluation(struct trainer *t, enum task_split split, struct task_eval *v, struct err *e)
{
    if (share_statistics(t, e) < 0 || optim_use_average(t->optim, e) < 0 ||
        t->task->ops->evaluate(t->task, split, v, e) < 0)
        return -1;
    return optim_use_weights(t->optim, e);
}

/* *doc is replaced. Does nothing when the split does not exist. */
static int evaluate(struct trainer *t, enum task_split split, bool record, struct task_eval *v, cJSON **doc,
                    struct err *e)
{
    static const char *const names[] = {"validation", "test"}, *const prefixes[] = {"val_", "test_"};
    const struct task_ops *ops = t->task->ops;
    int64_t from = clock_mono_ns();
    const char *before = t->phase;
    enum heart_phase heart = trainer_heart(t, HEART_EVALUATE);

    trainer_progress(t, "evaluate");
    if (run_evaluation(t, split, v, e) < 0)
        return err_wrap(e, "evaluation (%s) after step %lld", names[split], (long long)t->at.step);
    t->phase = before;
    trainer_heart(t, heart);
    t->eval_ns += clock_mono_ns() - from;
    if (v->n_samples == 0)
        return 0;
    cJSON_Delete(*doc);
    *doc = eval_to_json(t, v, names[split]);
    double primary = task_eval_scalar(v, ops->primary), loss = task_eval_scalar(v, "loss");
    log_info(t->cfg.log, "step %lld: %s %s %.4f, loss %.4f", (long long)t->at.step, names[split],
             ops->primary, primary, loss);
    log_info(t->cfg.console, "step %lld: %s %s %.4f, loss %.4f", (long long)t->at.step, names[split],
             ops->primary, primary, loss);
    return t->rank0 && record ? record_eval(t, v, names[split], prefixes[split], e) : 0;
}

int trainer_validate(struct trainer *t, bool record, struct err *e)
{
    struct task_eval v = {0};
    int rc = evaluate(t, TASK_VALIDATION, record, &v, &t->validation, e);

    t->validated_step = t->at.step;
    if (rc == 0 && v.n_samples > 0) {
        double value = task_eval_scalar(&v, t->task->ops->primary);
        if (t->at.best.epoch < 0 || value > t->at.best.value)
            t->at.best = (struct checkpoint_best){trainer_epoch(t), t->at.step, value};
    }
    task_eval_free(&v);
    return rc;
}

int trainer_test(struct trainer *t, struct err *e)
{
    struct task_eval v = {0};
    int rc = evaluate(t, TASK_TEST, true, &v, &t->test, e);

    task_eval_free(&v);
    return rc;
}
