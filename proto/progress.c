/* progress - see progress.h. On the wire NaN is null: JSON has no other word for "unknown". */
#include "proto/progress.h"
#include "common/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const int64_t max_count = (int64_t)1 << 53; /* what a JSON number holds exactly */

static void add_number_or_null(cJSON *obj, const char *key, double v)
{
    if (isfinite(v))
        cJSON_AddNumberToObject(obj, key, v);
    else
        cJSON_AddNullToObject(obj, key);
}

static int get_number_or_null(const cJSON *obj, const char *key, double *out, struct err *e)
{
    const cJSON *v = json_find(obj, key);

    if (cJSON_IsNull(v)) {
        *out = NAN;
        return 0;
    }
    return json_get_num(obj, "", key, out, e);
}

/* Copies a string member that must fit. */
static int get_text(const cJSON *obj, const char *key, char *out, size_t size, struct err *e)
{
    const char *s;

    if (json_get_str(obj, "", key, &s, e) < 0)
        return -1;
    if (strlen(s) >= size)
        return err_set(e, "/%s: %zu characters found, at most %zu are accepted", key, strlen(s), size - 1);
    strcpy(out, s);
    return 0;
}

cJSON *progress_to_json(const struct progress *p)
{
    cJSON *v = cJSON_CreateObject();

    cJSON_AddStringToObject(v, "phase", p->phase);
    cJSON_AddNumberToObject(v, "step", (double)p->step);
    cJSON_AddNumberToObject(v, "n_steps", (double)p->n_steps);
    cJSON_AddNumberToObject(v, "epoch", (double)p->epoch);
    cJSON_AddNumberToObject(v, "n_epochs", (double)p->n_epochs);
    add_number_or_null(v, "loss", p->loss);
    add_number_or_null(v, "images_per_s", p->images_per_s);
    add_number_or_null(v, "eta_s", p->eta_s);
    cJSON_AddNumberToObject(v, "checkpoint_step", (double)p->checkpoint_step);
    return v;
}

int progress_from_json(const cJSON *v, struct progress *p, struct err *e)
{
    struct progress r;

    if (get_text(v, "phase", r.phase, sizeof r.phase, e) < 0 ||
        json_get_int(v, "", "step", 0, max_count, &r.step, e) < 0 ||
        json_get_int(v, "", "n_steps", 0, max_count, &r.n_steps, e) < 0 ||
        json_get_int(v, "", "epoch", 0, max_count, &r.epoch, e) < 0 ||
        json_get_int(v, "", "n_epochs", 0, max_count, &r.n_epochs, e) < 0 ||
        get_number_or_null(v, "loss", &r.loss, e) < 0 ||
        get_number_or_null(v, "images_per_s", &r.images_per_s, e) < 0 ||
        get_number_or_null(v, "eta_s", &r.eta_s, e) < 0 ||
        json_get_int(v, "", "checkpoint_step", -1, max_count, &r.checkpoint_step, e) < 0)
        return -1;
    *p = r;
    return 0;
}

static int env_int(const char *name, int64_t *out, struct err *e)
{
    const char *text = getenv(name);
    char *end;
    long long v = text ? strtoll(text, &end, 10) : 0;

    if (!text || end == text || *end || v < 1)
        return err_set(e, "environment variable %s: '%s' found, a whole number from 1 is accepted", name,
                       text ? text : "");
    *out = v;
    return 0;
}

int progress_attach_from_env(struct progress_attach *a, struct err *e)
{
    const char *token = getenv(PROGRESS_ENV_TOKEN);

    if (env_int(PROGRESS_ENV_JOB, &a->job, e) < 0 || env_int(PROGRESS_ENV_ATTEMPT, &a->attempt, e) < 0)
        return -1;
    if (!token || !*token || strlen(token) >= sizeof a->token)
        return err_set(e, "environment variable %s: 1 to %zu characters are accepted", PROGRESS_ENV_TOKEN,
                       sizeof a->token - 1);
    snprintf(a->token, sizeof a->token, "%s", token);
    gethostname(a->host, sizeof a->host - 1);
    a->pid = getpid();
    return 0;
}

cJSON *progress_attach_to_json(const struct progress_attach *a)
{
    cJSON *v = cJSON_CreateObject();

    cJSON_AddNumberToObject(v, "job", (double)a->job);
    cJSON_AddNumberToObject(v, "attempt", (double)a->attempt);
    cJSON_AddStringToObject(v, "token", a->token);
    cJSON_AddNumberToObject(v, "pid", (double)a->pid);
    cJSON_AddStringToObject(v, "host", a->host);
    cJSON_AddNumberToObject(v, "ranks", (double)a->ranks);
    return v;
}

int progress_attach_from_json(const cJSON *v, struct progress_attach *a, struct err *e)
{
    struct progress_attach r;

    if (json_get_int(v, "", "job", 1, max_count, &r.job, e) < 0 ||
        json_get_int(v, "", "attempt", 1, max_count, &r.attempt, e) < 0 ||
        get_text(v, "token", r.token, sizeof r.token, e) < 0 ||
        json_get_int(v, "", "pid", 1, max_count, &r.pid, e) < 0 ||
        get_text(v, "host", r.host, sizeof r.host, e) < 0 ||
        json_get_int(v, "", "ranks", 1, max_count, &r.ranks, e) < 0)
        return -1;
    *a = r;
    return 0;
}

cJSON *progress_hello_to_json(const struct progress_hello *h)
{
    cJSON *v = cJSON_CreateObject();

    cJSON_AddNumberToObject(v, "job", (double)h->job);
    cJSON_AddNumberToObject(v, "attempt", (double)h->attempt);
    cJSON_AddStringToObject(v, "token", h->token);
    cJSON_AddNumberToObject(v, "rank", (double)h->rank);
    cJSON_AddNumberToObject(v, "pid", (double)h->pid);
    cJSON_AddStringToObject(v, "host", h->host);
    return v;
}

int progress_hello_from_json(const cJSON *v, struct progress_hello *h, struct err *e)
{
    struct progress_hello r;

    if (json_get_int(v, "", "job", 1, max_count, &r.job, e) < 0 ||
        json_get_int(v, "", "attempt", 1, max_count, &r.attempt, e) < 0 ||
        get_text(v, "token", r.token, sizeof r.token, e) < 0 ||
        json_get_int(v, "", "rank", 0, max_count, &r.rank, e) < 0 ||
        json_get_int(v, "", "pid", 1, max_count, &r.pid, e) < 0 ||
        get_text(v, "host", r.host, sizeof r.host, e) < 0)
        return -1;
    *h = r;
    return 0;
}

cJSON *progress_beat_to_json(const struct progress_beat *b)
{
    cJSON *v = cJSON_CreateObject();

    cJSON_AddNumberToObject(v, "step", (double)b->step);
    cJSON_AddStringToObject(v, "phase", b->phase);
    if (b->waits_in[0])
        cJSON_AddStringToObject(v, "waits_in", b->waits_in);
    else
        cJSON_AddNullToObject(v, "waits_in");
    cJSON_AddNumberToObject(v, "in_ms", (double)b->in_ms);
    cJSON_AddNumberToObject(v, "collectives", (double)b->collectives);
    cJSON_AddNumberToObject(v, "n_steps", (double)b->n_steps);
    add_number_or_null(v, "step_ms", b->step_ms);
    add_number_or_null(v, "work_ms", b->work_ms);
    return v;
}

/* Null is the empty text. */
static int get_text_or_null(const cJSON *obj, const char *key, char *out, size_t size, struct err *e)
{
    out[0] = 0;
    return cJSON_IsNull(json_find(obj, key)) ? 0 : get_text(obj, key, out, size, e);
}

int progress_beat_from_json(const cJSON *v, struct progress_beat *b, struct err *e)
{
    struct progress_beat r;

    if (json_get_int(v, "", "step", 0, max_count, &r.step, e) < 0 ||
        get_text(v, "phase", r.phase, sizeof r.phase, e) < 0 ||
        get_text_or_null(v, "waits_in", r.waits_in, sizeof r.waits_in, e) < 0 ||
        json_get_int(v, "", "in_ms", 0, max_count, &r.in_ms, e) < 0 ||
        json_get_int(v, "", "collectives", 0, max_count, &r.collectives, e) < 0 ||
        json_get_int(v, "", "n_steps", 0, max_count, &r.n_steps, e) < 0 ||
        get_number_or_null(v, "step_ms", &r.step_ms, e) < 0 ||
        get_number_or_null(v, "work_ms", &r.work_ms, e) < 0)
        return -1;
    *b = r;
    return 0;
}
