/* watch - see watch.h. */
#include "daemon/watch.h"
#include "common/clock.h"
#include "common/json.h"
#include "daemon/conn.h"
#include "daemon/daemon.h"
#include "daemon/server.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK_EVENTS = 128 };

static bool wants(const struct conn *c, const struct job *job)
{
    const struct watch *w = &c->watch;

    return w->active && (!w->job || w->job == job->id) && (w->all_users || job->uid == c->uid);
}

/* --- live --- */

struct line {
    const struct job *job;
    int64_t before, seq; /* event: the newest seq before it, and its own; progress: both are the newest */
    bool droppable;
    char *text;
    size_t len;
};

static void make_line(struct line *l, cJSON *params)
{
    cJSON *doc = rpc_notification("job.event", params);

    l->text = json_text(doc);
    l->len = strlen(l->text);
    cJSON_Delete(doc);
}

static void give(struct conn *c, void *ctx)
{
    const struct line *l = ctx;
    struct watch *w = &c->watch;

    if (!w->active || w->cursor < l->before || w->cursor > l->seq)
        return; /* lags: the pump will get there */
    if (w->cursor == l->seq && !l->droppable)
        return; /* has it */
    if (conn_unsent(c) > CONN_OUT_HIGH_BYTES)
        return; /* an event: the cursor stays, the pump goes on from there; progress: left out */
    w->cursor = l->seq;
    if (wants(c, l->job))
        conn_send_text(c, l->text, l->len);
}

void watch_event(struct daemon *d, const struct job *job, const struct job_event *ev)
{
    struct line l = {.job = job, .before = ev->seq - 1, .seq = ev->seq};

    make_line(&l, job_event_to_client(ev));
    server_each(d->server, give, &l);
    free(l.text);
}

void watch_progress(struct daemon *d, const struct job *job, const struct progress *p)
{
    int64_t seq = journal_last_seq(d->journal);
    struct line l = {.job = job, .before = seq, .seq = seq, .droppable = true};
    cJSON *params = progress_to_json(p);

    cJSON_AddNumberToObject(params, "seq", (double)seq);
    cJSON_AddNumberToObject(params, "id", (double)job->id);
    cJSON_AddNumberToObject(params, "time", (double)clock_wall_ms());
    cJSON_AddStringToObject(params, "type", "progress");
    cJSON_AddStringToObject(params, "state", job_state_name(job->state));
    make_line(&l, params);
    server_each(d->server, give, &l);
    free(l.text);
}

/* --- replay --- */

struct pump {
    struct conn *conn;
    int64_t last;
};

static int pump_event(void *ctx, int64_t seq, int64_t id, int64_t time_ms, const char *data, struct err *e)
{
    struct pump *p = ctx;
    const struct job *job = jobs_find(&p->conn->daemon->jobs, id);
    struct job_event ev = {.seq = seq, .job = id, .time_ms = time_ms};

    p->last = seq;
    if (!job || !wants(p->conn, job))
        return 0;
    cJSON *v = json_parse(data, strlen(data), e);
    int rc = v ? job_event_from_journal(v, &ev, e) : -1;
    if (rc == 0)
        conn_send(p->conn, rpc_notification("job.event", job_event_to_client(&ev)));
    cJSON_Delete(v);
    return rc;
}

void watch_pump(struct conn *c)
{
    struct daemon *d = c->daemon;
    struct watch *w = &c->watch;

    while (w->active && !c->closing && w->cursor < journal_last_seq(d->journal) &&
           conn_unsent(c) <= CONN_OUT_HIGH_BYTES) {
        struct pump p = {.conn = c, .last = w->cursor};
        struct err e = ERR_INIT;
        int64_t n = store_each_event(d->store, w->job, w->cursor, CHUNK_EVENTS, pump_event, &p, &e);
        if (n < 0) {
            log_error(&d->log, "reading events for client %llu: %s", (unsigned long long)c->id, e.msg);
            conn_close(c, "its events cannot be read");
            return;
        }
        w->cursor = n < CHUNK_EVENTS ? journal_last_seq(d->journal) : p.last;
    }
}

static void pump_one(struct conn *c, void *ctx)
{
    (void)ctx;
    watch_pump(c);
}

void watch_pump_all(struct daemon *d)
{
    server_each(d->server, pump_one, NULL);
}
