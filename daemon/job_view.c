/* job_view - see job_view.h. Times are milliseconds since the Unix epoch, null while they have not come. */
#include "daemon/job_view.h"
#include "common/clock.h"
#include "common/fsutil.h"
#include "common/json.h"
#include "daemon/actions.h"
#include "daemon/beats.h"
#include "daemon/metrics_file.h"
#include "daemon/planner.h"
#include "daemon/run_dir.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add_time(cJSON *v, const char *key, int64_t ms)
{
    if (ms)
        cJSON_AddNumberToObject(v, key, (double)ms);
    else
        cJSON_AddNullToObject(v, key);
}

static const struct progress *progress_of(const struct daemon *d, const struct job *job)
{
    const struct progress *live = actions_latest(d->actions, job->id);

    return live ? live : job->progress;
}

cJSON *job_view_summary(const struct daemon *d, const struct job *job)
{
    const struct progress *p = progress_of(d, job);
    cJSON *v = cJSON_CreateObject();

    cJSON_AddNumberToObject(v, "id", (double)job->id);
    cJSON_AddStringToObject(v, "name", job->name);
    cJSON_AddStringToObject(v, "state", job_state_name(job->state));
    cJSON_AddStringToObject(v, "reason", job->reason);
    cJSON_AddBoolToObject(v, "cancelling", job->cancelling);
    cJSON_AddStringToObject(v, "user", job->user);
    cJSON_AddNumberToObject(v, "priority", (double)job->priority);
    cJSON_AddNumberToObject(v, "ranks", (double)job->n_ranks);
    cJSON_AddNumberToObject(v, "attempts", (double)(job->attempt ? job->n_restarts + 1 : 0));
    cJSON_AddNumberToObject(v, "max_attempts", (double)(job->max_restarts + 1));
    if (job->array) {
        cJSON *array = cJSON_AddObjectToObject(v, "array");
        cJSON_AddNumberToObject(array, "id", (double)job->array);
        cJSON_AddNumberToObject(array, "index", (double)job->array_index);
    }
    add_time(v, "submitted_ms", job->submitted_ms);
    add_time(v, "started_ms", job->started_ms);
    add_time(v, "ended_ms", job->ended_ms);
    cJSON_AddItemToObject(v, "progress", p ? progress_to_json(p) : cJSON_CreateNull());
    return v;
}

static cJSON *view_allocation(const struct job *job)
{
    cJSON *v, *nodes;

    if (!job->held_ranks)
        return cJSON_CreateNull();
    v = cJSON_CreateObject();
    cJSON_AddStringToObject(v, "node", job->node);
    cJSON_AddNumberToObject(v, "ranks", (double)job->held_ranks);
    nodes = cJSON_AddArrayToObject(v, "nodes");
    for (int64_t i = 0; i < job->place.n; i++) {
        const struct place_piece *piece = &job->place.v[i];
        cJSON *n = cJSON_CreateObject(), *gpus;
        cJSON_AddStringToObject(n, "name", piece->node);
        cJSON_AddNumberToObject(n, "ranks", (double)piece->ranks);
        gpus = cJSON_AddArrayToObject(n, "gpus");
        for (int g = 0; g < PLACE_MAX_GPUS; g++)
            if (piece->gpus >> g & 1)
                cJSON_AddItemToArray(gpus, cJSON_CreateNumber(g));
        cJSON_AddItemToArray(nodes, n);
    }
    if (job->process.pid)
        cJSON_AddNumberToObject(v, "pid", (double)job->process.pid);
    return v;
}

static cJSON *view_paths(const struct daemon *d, const struct job *job)
{
    static const char *const files[][2] = {{"spec", "job.json"},           {"metrics", "metrics.jsonl"},
                                           {"result", "result.json"},      {"logs", "log"},
                                           {"checkpoints", "checkpoints"}, {"tensorboard", "tensorboard"},
                                           {"model", "model.safetensors"}};
    char *dir = run_dir_path(d->options->state_dir, job->id), *path = xasprintf("%s/%32s", dir, "");
    char *name = path + strlen(dir) + 1;
    cJSON *v = cJSON_CreateObject();

    cJSON_AddStringToObject(v, "run_dir", dir);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        strcpy(name, files[i][1]);
        cJSON_AddStringToObject(v, files[i][0], path);
    }
    free(path);
    free(dir);
    return v;
}

/* What rank 0 has reported to this coordinator, else what the run's file says: the latter outlives both. */
static cJSON *view_metrics(const struct daemon *d, const struct job *job)
{
    const cJSON *live = actions_latest_metrics(d->actions, job->id);
    cJSON *v;

    if (live)
        return cJSON_Duplicate(live, true);
    if (!job->attempt)
        return cJSON_CreateNull(); /* nobody can have written one */
    char *dir = run_dir_path(d->options->state_dir, job->id), *path = fs_join(dir, "metrics.jsonl");
    v = metrics_file_latest(path);
    free(path);
    free(dir);
    return v ? v : cJSON_CreateNull();
}

cJSON *job_view_record(const struct daemon *d, const struct job *job, struct err *e)
{
    const char *spec = spec_cache_get(d->specs, d->store, job->id, e);

    if (!spec)
        return NULL;
    cJSON *v = job_view_summary(d, job);
    cJSON_AddNumberToObject(v, "uid", (double)job->uid);
    cJSON_AddNumberToObject(v, "min_ranks", (double)job->min_ranks);
    cJSON_AddNumberToObject(v, "max_ranks", (double)job->max_ranks);
    cJSON_AddNumberToObject(v, "launches", (double)job->attempt);
    cJSON_AddNumberToObject(v, "yields", (double)job->n_yields);
    cJSON_AddNumberToObject(v, "checkpoint_step", (double)job->checkpoint_step);
    cJSON_AddItemToObject(v, "allocation", view_allocation(job));
    const struct beats *beats = actions_beats(d->actions, job->id);
    cJSON_AddItemToObject(v, "per_rank", beats ? beats_to_json(beats) : cJSON_CreateArray());
    cJSON_AddItemToObject(v, "metrics", view_metrics(d, job));
    cJSON_AddItemToObject(v, "paths", view_paths(d, job));
    cJSON_AddRawToObject(v, "spec", spec);
    return v;
}

/* --- explain --- */

/* Why it is not even in the queue's order; false when it is. */
static bool explain_held(const struct daemon *d, const struct job *job, char *out, size_t size)
{
    int64_t wait_ms = job->not_before_ms - clock_wall_ms();

    for (int64_t i = 0; i < job->n_after; i++) {
        const struct job *first = jobs_find(&d->jobs, job->after[i]);
        if (first && first->state != JOB_SUCCEEDED) {
            snprintf(out, size, "waits until job %lld has succeeded, which is %s", (long long)first->id,
                     job_state_name(first->state));
            return true;
        }
    }
    if (wait_ms > 0)
        snprintf(out, size, "waits %lld s more before it is started again after a fault: %.200s",
                 (long long)(wait_ms + 999) / 1000, job->reason);
    return wait_ms > 0;
}

static void explain_queued(const struct daemon *d, const struct job *job, char *out, size_t size)
{
    if (d->draining)
        snprintf(out, size, "waits because the coordinator is draining: nothing starts any more");
    else if (!explain_held(d, job, out, size))
        snprintf(out, size, "has just been queued and is about to be looked at");
}

static void explain_stopping(const struct daemon *d, const struct job *job, char *out, size_t size)
{
    const struct options *o = d->options;

    if (job->cancelling)
        snprintf(out, size,
                 "is being stopped: cancelled by %s; its processes have %lld s before they are killed",
                 job->cancel_user, (long long)(o->stop_ms + o->kill_ms + 999) / 1000);
    else
        snprintf(out, size,
                 "writes a checkpoint and gives its %lld rank%s back within %lld s, then %s: %.200s",
                 (long long)job->held_ranks, job->held_ranks == 1 ? "" : "s",
                 (long long)(o->yield_ms + 999) / 1000,
                 job->yield_to == JOB_YIELD_PAUSE ? "is paused" : "waits in the queue", job->reason);
}

static void explain_active(const struct daemon *d, const struct job *job, char *out, size_t size)
{
    const struct progress *p = actions_latest(d->actions, job->id);
    const char *room = actions_waits_for(d->actions, job->id);
    const struct beats *beats = actions_beats(d->actions, job->id);
    char where[160], slow[200];
    int n;

    place_brief(&job->place, where, sizeof where);
    if (room) {
        snprintf(out, size, "is about to start and waits for room on the disk: %s", room);
        return;
    }
    if (job->cancelling || job->state == JOB_PREEMPTING) {
        explain_stopping(d, job, out, size);
        return;
    }
    if (job->state == JOB_STARTING || !p) {
        snprintf(out, size, "%s with %lld rank%s on %s; rank 0 has not reported %s yet",
                 job->state == JOB_STARTING ? "is starting" : "runs", (long long)job->held_ranks,
                 job->held_ranks == 1 ? "" : "s", where, job->state == JOB_STARTING ? "anything" : "a step");
        return;
    }
    n = snprintf(out, size, "runs with %lld rank%s on %s: phase %s, step %lld of %lld",
                 (long long)job->held_ranks, job->held_ranks == 1 ? "" : "s", where, p->phase,
                 (long long)p->step, (long long)p->n_steps);
    if (n > 0 && (size_t)n < size && isfinite(p->eta_s))
        n += snprintf(out + n, size - (size_t)n, ", about %.0f s left", p->eta_s);
    if (beats && beats_slowest(beats) >= 0 && n > 0 && (size_t)n < size) {
        beats_say_slow(beats, beats_slowest(beats), slow, sizeof slow);
        snprintf(out + n, size - (size_t)n, "; %s", slow);
    }
}

void job_view_explain(const struct daemon *d, const struct job *job, char *out, size_t size)
{
    char text[400];

    if (job->state == JOB_QUEUED && !d->draining &&
        planner_explain(actions_planner(d->actions), job, out, size))
        return;
    if (job->state == JOB_QUEUED)
        explain_queued(d, job, text, sizeof text);
    else if (job_state_holds_slots(job->state))
        explain_active(d, job, text, sizeof text);
    else
        snprintf(text, sizeof text, "%s%s: %.300s", job->state == JOB_PAUSED ? "is " : "has ",
                 job->state == JOB_CANCELLED ? "been cancelled" : job_state_name(job->state), job->reason);
    snprintf(out, size, "job %lld %s", (long long)job->id, text);
}
