/* job_event - events as JSON: one table says which field belongs to which event, how it is called, and
 * whether clients may see it.
 *
 * The journal's form is read back by later versions: a field is never renamed and never changes its meaning;
 * a new one is a new row, and a field that an old journal lacks keeps the value that job_event_init() gives.
 */
#include "common/json.h"
#include "daemon/job.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum field_type { FIELD_INT, FIELD_NUM, FIELD_STR, FIELD_TEXT, FIELD_IDS };

#define BIT(ev) (1u << (ev))
#define REQUESTS                                                                                             \
    (BIT(JOB_EV_CANCEL_REQUESTED) | BIT(JOB_EV_YIELD_REQUESTED) | BIT(JOB_EV_RESUMED) | BIT(JOB_EV_REQUEUED))
#define OFFSET(f) offsetof(struct job_event, f), sizeof(((struct job_event *)0)->f)

struct field {
    const char *name;
    enum field_type type;
    size_t offset, size;
    unsigned events;
    bool secret;
};

static const struct field fields[] = {
    {"name", FIELD_STR, OFFSET(name), BIT(JOB_EV_SUBMITTED), false},
    {"user", FIELD_STR, OFFSET(user), BIT(JOB_EV_SUBMITTED) | REQUESTS, false},
    {"uid", FIELD_INT, OFFSET(uid), BIT(JOB_EV_SUBMITTED), false},
    {"ranks", FIELD_INT, OFFSET(n_ranks), BIT(JOB_EV_SUBMITTED) | BIT(JOB_EV_STARTING), false},
    {"min_ranks", FIELD_INT, OFFSET(min_ranks), BIT(JOB_EV_SUBMITTED), false},
    {"max_ranks", FIELD_INT, OFFSET(max_ranks), BIT(JOB_EV_SUBMITTED), false},
    {"gpus_per_rank", FIELD_INT, OFFSET(gpus_per_rank), BIT(JOB_EV_SUBMITTED), false},
    {"nodes_wanted", FIELD_INT, OFFSET(n_nodes), BIT(JOB_EV_SUBMITTED), false},
    {"array", FIELD_INT, OFFSET(array), BIT(JOB_EV_SUBMITTED), false},
    {"array_index", FIELD_INT, OFFSET(array_index), BIT(JOB_EV_SUBMITTED), false},
    {"after", FIELD_IDS, OFFSET(after), BIT(JOB_EV_SUBMITTED), false},
    {"max_restarts", FIELD_INT, OFFSET(max_restarts), BIT(JOB_EV_SUBMITTED), false},
    {"priority", FIELD_INT, OFFSET(priority), BIT(JOB_EV_SUBMITTED), false},
    {"time_limit_s", FIELD_NUM, OFFSET(time_limit_s), BIT(JOB_EV_SUBMITTED), false},
    {"attempt", FIELD_INT, OFFSET(attempt), BIT(JOB_EV_STARTING) | BIT(JOB_EV_RESTARTING), false},
    {"node", FIELD_STR, OFFSET(node), BIT(JOB_EV_STARTING), false},
    {"place", FIELD_TEXT, OFFSET(place), BIT(JOB_EV_STARTING), false},
    {"token", FIELD_STR, OFFSET(token), BIT(JOB_EV_STARTING), true},
    {"pid", FIELD_INT, OFFSET(process.pid), BIT(JOB_EV_STARTED), false},
    {"start_ticks", FIELD_INT, OFFSET(process.start_ticks), BIT(JOB_EV_STARTED), true},
    {"boot_id", FIELD_STR, OFFSET(process.boot_id), BIT(JOB_EV_STARTED), true},
    {"step", FIELD_INT, OFFSET(step),
     BIT(JOB_EV_CHECKPOINTED) | BIT(JOB_EV_RESTARTING) | BIT(JOB_EV_YIELDED) | BIT(JOB_EV_PAUSED), false},
    {"not_before_ms", FIELD_INT, OFFSET(not_before_ms), BIT(JOB_EV_RESTARTING), false},
    {"to_pause", FIELD_INT, OFFSET(yield_to), BIT(JOB_EV_YIELD_REQUESTED), false},
    {"resize_to", FIELD_INT, OFFSET(resize_to), BIT(JOB_EV_YIELD_REQUESTED), false},
};
enum { N_FIELDS = sizeof fields / sizeof *fields };

void job_event_init(struct job_event *ev, enum job_event_type type, int64_t job, int64_t time_ms,
                    const char *fmt, ...)
{
    va_list ap;

    *ev = (struct job_event){.type = type, .job = job, .time_ms = time_ms, .step = -1};
    va_start(ap, fmt);
    vsnprintf(ev->reason, sizeof ev->reason, fmt, ap);
    va_end(ap);
}

/* The one list: what the job waits for. */
static void add_ids(cJSON *v, const char *name, const struct job_event *ev)
{
    cJSON *ids = cJSON_AddArrayToObject(v, name);

    for (int64_t i = 0; i < ev->n_after; i++)
        cJSON_AddItemToArray(ids, cJSON_CreateNumber((double)ev->after[i]));
}

static int read_ids(const cJSON *ids, const char *name, struct job_event *ev, struct err *e)
{
    const cJSON *id;

    if (!cJSON_IsArray(ids) || cJSON_GetArraySize(ids) > JOB_MAX_AFTER)
        return err_set(e, "/%s: at most %d ids are accepted", name, JOB_MAX_AFTER);
    cJSON_ArrayForEach(id, ids)
    {
        if (!cJSON_IsNumber(id))
            return err_set(e, "/%s: something found that is no id", name);
        ev->after[ev->n_after++] = (int64_t)id->valuedouble;
    }
    return 0;
}

static void add_fields(cJSON *v, const struct job_event *ev, bool with_secrets)
{
    for (int i = 0; i < N_FIELDS; i++) {
        const struct field *f = &fields[i];
        const char *p = (const char *)ev + f->offset;
        if (!(f->events & BIT(ev->type)) || (f->secret && !with_secrets))
            continue;
        if (f->type == FIELD_STR)
            cJSON_AddStringToObject(v, f->name, p);
        else if (f->type == FIELD_TEXT && *(const char *const *)p)
            cJSON_AddStringToObject(v, f->name, *(const char *const *)p);
        else if (f->type == FIELD_INT)
            cJSON_AddNumberToObject(v, f->name, (double)*(const int64_t *)p);
        else if (f->type == FIELD_IDS)
            add_ids(v, f->name, ev);
        else if (f->type == FIELD_NUM)
            cJSON_AddNumberToObject(v, f->name, *(const double *)p);
    }
    if (ev->has_progress)
        cJSON_AddItemToObject(v, "progress", progress_to_json(&ev->progress));
}

cJSON *job_event_to_journal(const struct job_event *ev)
{
    cJSON *v = cJSON_CreateObject();

    cJSON_AddStringToObject(v, "type", job_event_name(ev->type));
    cJSON_AddStringToObject(v, "state", job_state_name(ev->state));
    cJSON_AddStringToObject(v, "reason", ev->reason);
    add_fields(v, ev, true);
    return v;
}

cJSON *job_event_to_client(const struct job_event *ev)
{
    cJSON *v = cJSON_CreateObject();

    cJSON_AddNumberToObject(v, "seq", (double)ev->seq);
    cJSON_AddNumberToObject(v, "id", (double)ev->job);
    cJSON_AddNumberToObject(v, "time", (double)ev->time_ms);
    cJSON_AddStringToObject(v, "type", job_event_name(ev->type));
    cJSON_AddStringToObject(v, "state", job_state_name(ev->state));
    cJSON_AddStringToObject(v, "reason", ev->reason);
    add_fields(v, ev, false);
    return v;
}

static int type_parse(const char *name, enum job_event_type *out, struct err *e)
{
    for (int t = 0; t < JOB_N_EVENTS; t++)
        if (strcmp(name, job_event_name((enum job_event_type)t)) == 0) {
            *out = (enum job_event_type)t;
            return 0;
        }
    return err_set(e, "/type: unknown event \"%s\"; a newer version may have written it", name);
}

static int read_field(const cJSON *v, const cJSON *member, const struct field *f, struct job_event *ev,
                      struct err *e)
{
    static const int64_t max = (int64_t)1 << 53;
    char *p = (char *)ev + f->offset;
    const char *s;

    if (f->type == FIELD_INT)
        return json_is_int(member, (int64_t *)p) ? 0
                                                 : json_get_int(v, "", f->name, -max, max, (int64_t *)p, e);
    if (f->type == FIELD_IDS)
        return read_ids(member, f->name, ev, e);
    if (f->type == FIELD_NUM)
        return json_get_num(v, "", f->name, (double *)p, e);
    if (json_get_str(v, "", f->name, &s, e) < 0)
        return -1;
    if (f->type == FIELD_TEXT) {
        *(const char **)p = s;
        return 0;
    }
    snprintf(p, f->size, "%s", s);
    return 0;
}

/* Members mostly stand in the table's order, because they were written so: each is looked for behind the one
 * before first. A start reads every event there is. */
static int read_fields(const cJSON *v, struct job_event *ev, struct err *e)
{
    const cJSON *next = v->child;

    for (int i = 0; i < N_FIELDS; i++) {
        const struct field *f = &fields[i];
        if (!(f->events & BIT(ev->type)))
            continue;
        const cJSON *member = next && strcmp(next->string, f->name) == 0 ? next : json_find(v, f->name);
        if (!member)
            continue;
        if (read_field(v, member, f, ev, e) < 0)
            return -1;
        next = member->next;
    }
    return 0;
}

int job_event_from_journal(const cJSON *v, struct job_event *ev, struct err *e)
{
    const char *type, *state, *reason;
    struct job_event r;

    job_event_init(&r, JOB_EV_SUBMITTED, ev->job, ev->time_ms, "%s", "");
    r.seq = ev->seq;
    if (json_get_str(v, "", "type", &type, e) < 0 || json_get_str(v, "", "state", &state, e) < 0 ||
        json_get_str(v, "", "reason", &reason, e) < 0 || type_parse(type, &r.type, e) < 0 ||
        job_state_parse(state, &r.state, e) < 0)
        return -1;
    snprintf(r.reason, sizeof r.reason, "%s", reason);
    if (read_fields(v, &r, e) < 0)
        return -1;
    if (json_find(v, "progress")) {
        if (progress_from_json(json_find(v, "progress"), &r.progress, e) < 0)
            return err_wrap(e, "/progress");
        r.has_progress = true;
    }
    *ev = r;
    return 0;
}
