/* result - see result.h. */
#include "worker/train/result.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/fsutil.h"
#include "common/json.h"

static void add_text(cJSON *obj, const char *key, const char *text)
{
    cJSON_AddItemToObject(obj, key, text ? cJSON_CreateString(text) : cJSON_CreateNull());
}

static void add_copy(cJSON *obj, const char *key, const cJSON *v)
{
    cJSON_AddItemToObject(obj, key, v ? cJSON_Duplicate(v, 1) : cJSON_CreateNull());
}

static void add_final(cJSON *doc, const struct result *r)
{
    cJSON *final = cJSON_AddObjectToObject(doc, "final");
    const cJSON *v = r->validation ? json_find(r->validation, r->primary) : NULL;
    const cJSON *t = r->eval ? json_find(r->eval, r->primary) : NULL;
    char name[64];

    json_add_double(final, "loss", r->loss);
    if (!r->primary)
        return;
    snprintf(name, sizeof name, "val_%s", r->primary);
    add_copy(final, name, v);
    snprintf(name, sizeof name, "test_%s", r->primary);
    add_copy(final, name, t);
}

static void add_best(cJSON *doc, const struct result *r)
{
    if (r->best.epoch < 0) {
        cJSON_AddNullToObject(doc, "best");
        return;
    }
    cJSON *best = cJSON_AddObjectToObject(doc, "best");
    char name[64];
    cJSON_AddNumberToObject(best, "epoch", (double)r->best.epoch);
    cJSON_AddNumberToObject(best, "step", (double)r->best.step);
    snprintf(name, sizeof name, "val_%s", r->primary);
    json_add_double(best, name, r->best.value);
}

static void add_timings(cJSON *doc, const struct result *r)
{
    cJSON *t = cJSON_AddObjectToObject(doc, "timings");

    json_add_double(t, "start_s", r->timings.start_s);
    json_add_double(t, "comm_s", r->timings.comm_s);
    json_add_double(t, "data_s", r->timings.data_s);
    json_add_double(t, "compile_s", r->timings.compile_s);
    json_add_double(t, "first_step_s", r->timings.first_step_s);
    json_add_double(t, "train_s", r->timings.train_s);
    json_add_double(t, "eval_s", r->timings.eval_s);
    json_add_double(t, "checkpoint_s", r->timings.checkpoint_s);
    json_add_double(t, "data_wait_s", r->timings.data_wait_s);
    json_add_double(t, "comm_wait_s", r->timings.comm_wait_s);
    json_add_double(t, "total_s", r->timings.total_s);
}

static void add_receipts(cJSON *doc, const struct receipts *r)
{
    cJSON_AddNumberToObject(doc, "order_from", r ? (double)r->from : 0);
    cJSON_AddItemToObject(doc, "receipts", r ? receipts_to_json(r) : cJSON_CreateArray());
}

cJSON *result_to_json(const struct result *r)
{
    cJSON *doc = cJSON_CreateObject();

    add_text(doc, "status", r->status);
    add_text(doc, "reason", r->reason);
    cJSON_AddBoolToObject(doc, "peer_lost", r->peer_lost);
    add_text(doc, "name", r->name);
    add_text(doc, "task", r->task);
    cJSON_AddBoolToObject(doc, "batchformer", r->batchformer);
    cJSON_AddNumberToObject(doc, "world_size", r->world_size);
    cJSON_AddNumberToObject(doc, "threads_per_rank", r->threads_per_rank);
    add_text(doc, "threads_from", r->threads_from);
    cJSON_AddNumberToObject(doc, "parameters", (double)r->parameters);
    cJSON_AddNumberToObject(doc, "steps", (double)r->steps);
    cJSON_AddNumberToObject(doc, "n_steps", (double)r->n_steps);
    cJSON_AddNumberToObject(doc, "epochs", (double)r->epochs);
    cJSON_AddNumberToObject(doc, "n_epochs", (double)r->n_epochs);
    add_final(doc, r);
    add_best(doc, r);
    add_copy(doc, "eval", r->eval);
    add_copy(doc, "validation", r->validation);
    json_add_double(doc, "images_per_s", r->images_per_s);
    add_timings(doc, r);
    add_text(doc, "data_checksum", r->data_hash);
    add_receipts(doc, r->receipts);
    add_text(doc, "version", BF_VERSION);
    return doc;
}

int result_write(const char *run_dir, const cJSON *result, struct err *e)
{
    char *path = fs_join(run_dir, "result.json");
    char *text = json_text_pretty(result);
    int rc = fs_atomic_replace(path, text, strlen(text), e);

    free(text);
    free(path);
    return rc;
}
