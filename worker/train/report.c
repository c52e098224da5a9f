/* report - see report.h. */
#include "worker/train/report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "common/clock.h"
#include "common/json.h"
#include "proto/client.h"
#include "proto/progress.h"

enum {
    RETRY_MS = 1000,
    RETRY_REFUSED_MS = 30000,
    RETRY_TIMED_OUT_MS = 10000,
    DONE_SEND_TIMEOUT_MS = 2000,
    METRICS_SEND_TIMEOUT_MS = 20,
};

struct report {
    const struct log *log;
    char *address;
    struct progress_attach self;
    struct client *client; /* NULL while there is no link */
    int64_t next_try_ns;
    bool told_away; /* the log has been told that the coordinator is away */
    int64_t last_sent_ns;
    char last_phase[16];
    unsigned commands;
};

bool report_wanted(void)
{
    const char *address = getenv(PROGRESS_ENV_ADDRESS);

    return address && *address;
}

static void drop_link(struct report *r, const char *why, int64_t retry_ms)
{
    client_close(r->client);
    r->client = NULL;
    r->next_try_ns = clock_mono_ns() + retry_ms * 1000000;
    if (!r->told_away)
        log_warn(r->log, "no link to the coordinator, training goes on: %s", why);
    r->told_away = true;
}

static void try_attach(struct report *r)
{
    struct err e = ERR_INIT;

    r->client = client_connect(r->address, &e);
    if (!r->client) {
        drop_link(r, e.msg, RETRY_MS);
        return;
    }
    cJSON *result = client_call(r->client, "worker.attach", progress_attach_to_json(&r->self),
                                REPORT_ATTACH_TIMEOUT_MS, NULL, &e);
    if (!result) {
        if (e.kind == ERR_REMOTE)
            err_wrap(&e, "the coordinator refused this worker");
        drop_link(r, e.msg,
                  e.kind == ERR_REMOTE        ? RETRY_REFUSED_MS
                  : e.kind == ERR_UNREACHABLE ? RETRY_MS
                                              : RETRY_TIMED_OUT_MS);
        return;
    }
    cJSON_Delete(result);
    log_info(r->log, "attached to the coordinator at %s as job %lld, attempt %lld", r->address,
             (long long)r->self.job, (long long)r->self.attempt);
    r->told_away = false;
    r->last_phase[0] = 0; /* say at once where we are */
}

static void take_command(struct report *r, const cJSON *note)
{
    const cJSON *method = json_find(note, "method"), *params = json_find(note, "params");
    const char *command;

    if (!cJSON_IsString(method) || strcmp(method->valuestring, "worker.command") != 0 ||
        json_get_str(params, "/params", "command", &command, NULL) < 0)
        return;
    log_info(r->log, "the coordinator asks: %.32s", command);
    if (strcmp(command, "stop") == 0)
        r->commands |= REPORT_STOP;
    else if (strcmp(command, "checkpoint") == 0)
        r->commands |= REPORT_CHECKPOINT;
    else
        log_warn(r->log, "unknown command '%.32s'; stop and checkpoint are known", command);
}

/* Connects when it is time to, and takes in what has arrived. */
static void keep_link(struct report *r)
{
    if (!r->client && clock_mono_ns() >= r->next_try_ns)
        try_attach(r);
    while (r->client) {
        struct err e = ERR_INIT;
        cJSON *note = client_next(r->client, 0, &e);
        if (note)
            take_command(r, note);
        else if (e.msg[0])
            drop_link(r, e.msg, RETRY_MS);
        if (!note)
            return;
        cJSON_Delete(note);
    }
}

static bool notify(struct report *r, const char *method, cJSON *params, int timeout_ms)
{
    struct err e = ERR_INIT;

    if (!r->client) {
        cJSON_Delete(params);
        return false;
    }
    if (client_notify(r->client, method, params, timeout_ms, &e) == 0)
        return true;
    if (e.kind == ERR_UNREACHABLE)
        drop_link(r, e.msg, RETRY_MS);
    return false;
}

struct report *report_create(const struct log *log, int world_size, struct err *e)
{
    struct report *r = xcalloc(1, sizeof *r);

    r->log = log;
    r->self.ranks = world_size;
    r->address = xstrdup(getenv(PROGRESS_ENV_ADDRESS));
    if (progress_attach_from_env(&r->self, e) < 0) {
        report_destroy(r);
        return NULL;
    }
    keep_link(r);
    return r;
}

void report_destroy(struct report *r)
{
    if (!r)
        return;
    client_close(r->client);
    free(r->address);
    free(r);
}

void report_progress(struct report *r, const struct report_progress *p)
{
    int64_t now = clock_mono_ns();
    struct progress wire = {.step = p->step,
                            .n_steps = p->n_steps,
                            .epoch = p->epoch,
                            .n_epochs = p->n_epochs,
                            .loss = p->loss,
                            .images_per_s = p->images_per_s,
                            .eta_s = p->eta_s,
                            .checkpoint_step = p->checkpoint_step};

    keep_link(r);
    bool changed = strcmp(r->last_phase, p->phase) != 0;
    if (!r->client || (!changed && now - r->last_sent_ns < (int64_t)REPORT_PROGRESS_EVERY_MS * 1000000))
        return;
    snprintf(wire.phase, sizeof wire.phase, "%s", p->phase);
    if (!notify(r, "worker.progress", progress_to_json(&wire), 0))
        return;
    r->last_sent_ns = now;
    snprintf(r->last_phase, sizeof r->last_phase, "%s", p->phase);
}

void report_metrics(struct report *r, const char *kind, int64_t step, int64_t epoch, const cJSON *values)
{
    cJSON *params = cJSON_CreateObject();

    cJSON_AddNumberToObject(params, "step", (double)step);
    cJSON_AddNumberToObject(params, "epoch", (double)epoch);
    cJSON_AddStringToObject(params, "kind", kind);
    cJSON_AddItemToObject(params, "values", cJSON_Duplicate(values, 1));
    keep_link(r);
    notify(r, "worker.metrics", params, METRICS_SEND_TIMEOUT_MS);
}

unsigned report_take_commands(struct report *r)
{
    keep_link(r);
    unsigned got = r->commands;
    r->commands = 0;
    return got;
}

void report_done(struct report *r, const char *status, const char *reason, const cJSON *result,
                 int timeout_ms)
{
    static const struct timespec pause = {0, 50 * 1000 * 1000};
    int64_t deadline = clock_mono_ns() + (int64_t)timeout_ms * 1000000;

    for (;;) {
        cJSON *params = cJSON_CreateObject();
        cJSON_AddStringToObject(params, "status", status);
        cJSON_AddItemToObject(params, "reason", reason ? cJSON_CreateString(reason) : cJSON_CreateNull());
        cJSON_AddItemToObject(params, "result", result ? cJSON_Duplicate(result, 1) : cJSON_CreateNull());
        keep_link(r);
        if (notify(r, "worker.done", params, DONE_SEND_TIMEOUT_MS))
            return;
        if (clock_mono_ns() >= deadline) {
            log_warn(r->log, "the coordinator has not been told that this run %s", status);
            return;
        }
        nanosleep(&pause, NULL);
    }
}
