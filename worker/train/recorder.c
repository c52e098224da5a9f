/* recorder - see recorder.h. */
#include "worker/train/recorder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/clock.h"
#include "common/fsutil.h"
#include "common/json.h"

void record_add(struct record *r, const char *prefix, const char *name, double value)
{
    ASSERT(r->n_values < RECORD_MAX_VALUES);
    snprintf(r->values[r->n_values].name, sizeof r->values[0].name, "%s%s", prefix, name);
    r->values[r->n_values++].value = value;
}

int recorder_open(struct recorder *r, const char *run_dir, int64_t at_step, struct report *report,
                  struct err *e)
{
    char *metrics = fs_join(run_dir, "metrics.jsonl"), *board = fs_join(run_dir, "tensorboard");

    *r = (struct recorder){.metrics.fd = -1, .tfevents.fd = -1, .report = report};
    int rc = metrics_open(&r->metrics, metrics, at_step, e);
    if (rc == 0)
        rc = tfevents_open(&r->tfevents, board, at_step + 1, e);
    free(metrics);
    free(board);
    return rc;
}

static int write_line(struct recorder *r, const struct record *rec, struct err *e)
{
    cJSON *line = cJSON_CreateObject();
    char when[32];

    cJSON_AddStringToObject(line, "kind", rec->kind);
    cJSON_AddNumberToObject(line, "step", (double)rec->step);
    cJSON_AddNumberToObject(line, "epoch", (double)rec->epoch);
    if (rec->split)
        cJSON_AddStringToObject(line, "split", rec->split);
    for (int i = 0; i < rec->n_values; i++)
        json_add_double(line, rec->values[i].name, rec->values[i].value);
    clock_iso(clock_wall_ms(), when);
    cJSON_AddStringToObject(line, "time", when);
    int rc = metrics_write(&r->metrics, line, e);
    cJSON_Delete(line);
    return rc;
}

static int write_events(struct recorder *r, const struct record *rec, struct err *e)
{
    for (int i = 0; i < rec->n_values; i++) {
        char tag[64];
        snprintf(tag, sizeof tag, "%s/%s", rec->kind, rec->values[i].name);
        if (isfinite(rec->values[i].value) &&
            tfevents_scalar(&r->tfevents, rec->step, tag, rec->values[i].value, e) < 0)
            return -1;
    }
    return 0;
}

static void tell_coordinator(struct recorder *r, const struct record *rec)
{
    cJSON *values = cJSON_CreateObject();

    for (int i = 0; i < rec->n_values; i++)
        if (isfinite(rec->values[i].value))
            json_add_double(values, rec->values[i].name, rec->values[i].value);
    report_metrics(r->report, rec->kind, rec->step, rec->epoch, values);
    cJSON_Delete(values);
}

int recorder_write(struct recorder *r, const struct record *rec, struct err *e)
{
    if (write_line(r, rec, e) < 0 || write_events(r, rec, e) < 0)
        return -1;
    if (r->report)
        tell_coordinator(r, rec);
    return 0;
}

int recorder_sync(struct recorder *r, struct err *e)
{
    return metrics_sync(&r->metrics, e);
}

void recorder_close(struct recorder *r)
{
    metrics_close(&r->metrics);
    tfevents_close(&r->tfevents);
}
