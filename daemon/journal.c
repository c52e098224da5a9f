/* journal - see journal.h.
 *
 * `pending` is a queue. A round takes from its front what it can: an entry whose job is in the round already,
 * or whose job has an entry that stayed behind, stays behind itself, so the events of one job keep their
 * order.
 */
#include "daemon/journal.h"
#include "common/clock.h"
#include "common/fault.h"
#include "common/json.h"
#include "proto/rpc_msg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RETRY_MS = 1000, SAY_AGAIN_MS = 60000, MAX_ROUNDS = 64, MAX_ROUND_EVENTS = 1024 };

struct new_job {
    struct job_event ev;
    char *spec;
};

struct entry {
    struct entry *next;
    struct job_event ev;   /* of a submission: the first job's id alone */
    char *place;           /* what ev.place points to */
    struct new_job *added; /* submissions only */
    int64_t n_added;
    char *key;
    journal_done_fn *done;
    void *ctx;
    bool known; /* a submission whose key was used before: ev.job is the job of then */
};

struct queue {
    struct entry *head, **tail;
    int64_t n;           /* events */
    int64_t n_submitted; /* jobs among them that are new */
};

struct journal {
    uv_prepare_t prepare;
    uv_timer_t retry;
    uv_idle_t spin; /* active while more rounds wait: the loop must not sleep */
    int n_handles;
    uv_loop_t *loop;
    struct store *store;
    struct jobs *jobs;
    const struct log *log;
    struct journal_listener listener;
    struct queue pending;
    int64_t last_seq, n_committed, n_failed;
    bool blocked; /* the disk refused; wait for the timer */
    bool flushing;
    char trouble[1024];         /* "" = the last round was written */
    int64_t n_refused, said_ns; /* since the trouble began; when the log said so last */
    int applied_fault;
};

static int64_t n_events(const struct entry *en)
{
    return en->added ? en->n_added : 1;
}

static void queue_push(struct queue *q, struct entry *en)
{
    en->next = NULL;
    *q->tail = en;
    q->tail = &en->next;
    q->n += n_events(en);
    q->n_submitted += en->n_added;
}

static struct entry *queue_pop(struct queue *q)
{
    struct entry *en = q->head;

    if (!en)
        return NULL;
    q->head = en->next;
    if (!q->head)
        q->tail = &q->head;
    q->n -= n_events(en);
    q->n_submitted -= en->n_added;
    return en;
}

static void queue_init(struct queue *q)
{
    *q = (struct queue){.tail = &q->head};
}

static void entry_free(struct entry *en)
{
    for (int64_t i = 0; i < en->n_added; i++)
        free(en->added[i].spec);
    free(en->added);
    free(en->place);
    free(en->key);
    free(en);
}

static void entry_done(struct entry *en, int code, const char *why)
{
    if (en->done)
        en->done(en->ctx, code, en->ev.job, why);
    entry_free(en);
}

/* --- one round --- */

static bool has_job(const struct queue *q, int64_t job)
{
    for (const struct entry *en = q->head; en; en = en->next)
        if (en->ev.job == job)
            return true;
    return false;
}

/* Is the event possible? Fills in the state that it leads to. */
static bool check(struct journal *j, struct entry *en)
{
    const struct job *job = en->added ? NULL : jobs_find(j->jobs, en->ev.job);
    enum job_state from = job ? job->state : JOB_NEW;

    if (en->added)
        return true;
    en->ev.state = job_next(from, en->ev.type);
    return en->ev.state != JOB_N_STATES;
}

static void refuse(struct journal *j, struct entry *en)
{
    const struct job *job = jobs_find(j->jobs, en->ev.job);
    char why[160];

    snprintf(why, sizeof why, "job %lld is %s: \"%s\" is not possible there", (long long)en->ev.job,
             job ? job_state_name(job->state) : "unknown", job_event_name(en->ev.type));
    if (!en->done)
        log_warn(j->log, "%s: the event is dropped (%s)", why, en->ev.reason);
    entry_done(en, RPC_WRONG_STATE, why);
}

/* Moves what this round can take from `pending` to `round`. Submissions have no id yet and are always taken.
 */
static void collect(struct journal *j, struct queue *round)
{
    struct queue stay;

    queue_init(&stay);
    queue_init(round);
    for (struct entry *en; (en = queue_pop(&j->pending));) {
        bool busy = (round->n && round->n + n_events(en) > MAX_ROUND_EVENTS) ||
                    (!en->added && (has_job(round, en->ev.job) || has_job(&stay, en->ev.job)));
        if (busy)
            queue_push(&stay, en);
        else if (!check(j, en))
            refuse(j, en);
        else
            queue_push(round, en);
    }
    /* refuse() may have appended: those come after what stayed. */
    if (stay.n) {
        *stay.tail = j->pending.head;
        if (!j->pending.head)
            j->pending.tail = stay.tail;
        j->pending.head = stay.head;
        j->pending.n += stay.n;
        j->pending.n_submitted += stay.n_submitted;
    }
}

static int persist_event(struct journal *j, struct job_event *ev, struct err *e)
{
    cJSON *v = job_event_to_journal(ev);
    char *text = json_text(v);
    int rc = store_add_event(j->store, ev->job, ev->time_ms, text, &ev->seq, e);

    free(text);
    cJSON_Delete(v);
    return rc;
}

static int persist_jobs(struct journal *j, struct entry *en, struct err *e)
{
    for (int64_t i = 0; i < en->n_added; i++) {
        struct job_event *ev = &en->added[i].ev;
        if (store_add_job(j->store, ev->uid, i ? NULL : en->key, en->added[i].spec, &ev->job, e) < 0)
            return -1;
        ev->state = JOB_QUEUED;
        if (en->n_added > 1) {
            ev->array = en->added[0].ev.job;
            ev->array_index = i;
        }
        if (persist_event(j, ev, e) < 0)
            return -1;
    }
    en->ev.job = en->added[0].ev.job;
    return 0;
}

static int persist_entry(struct journal *j, struct entry *en, struct err *e)
{
    if (!en->added)
        return persist_event(j, &en->ev, e);
    int found = en->key ? store_find_key(j->store, en->added[0].ev.uid, en->key, &en->ev.job, e) : 0;
    en->known = found > 0;
    return found ? (found < 0 ? -1 : 0) : persist_jobs(j, en, e);
}

static int persist(struct journal *j, struct queue *round, struct err *e)
{
    if (store_begin(j->store, e) < 0)
        return -1;
    for (struct entry *en = round->head; en; en = en->next) {
        en->known = false;
        if (persist_entry(j, en, e) < 0) {
            store_rollback(j->store);
            return -1;
        }
    }
    return store_commit(j->store, e);
}

static void apply_event(struct journal *j, const struct job_event *ev)
{
    struct err e = ERR_INIT;
    struct job *job = jobs_apply(j->jobs, ev, &e);

    ASSERT(job); /* checked before it was persisted */
    j->last_seq = ev->seq;
    j->listener.applied(j->listener.ctx, job, ev);
    (void)fault_hit("journal.applied", &j->applied_fault); /* to die before the answer */
}

static void apply(struct journal *j, struct queue *round)
{
    for (struct entry *en; (en = queue_pop(round));) {
        for (int64_t i = 0; i < n_events(en) && !en->known; i++)
            apply_event(j, en->added ? &en->added[i].ev : &en->ev);
        entry_done(en, 0, NULL);
    }
}

/* The disk said no: clients are told, reports of what has happened wait. */
static void fail_round(struct journal *j, struct queue *round, const struct err *e)
{
    struct queue keep;

    queue_init(&keep);
    for (struct entry *en; (en = queue_pop(round));) {
        if (en->added)
            en->ev.job = 0;
        if (en->done)
            entry_done(en, RPC_OVERLOADED, e->msg);
        else
            queue_push(&keep, en);
    }
    while (j->pending.head)
        queue_push(&keep, queue_pop(&j->pending));
    j->pending = keep;
    if (!keep.head)
        j->pending.tail = &j->pending.head;
}

static void on_retry(uv_timer_t *t)
{
    struct journal *j = t->data;

    j->blocked = false;
}

static void note_trouble(struct journal *j, int64_t n_events, const struct err *e)
{
    int64_t now = clock_mono_ns();

    if (!*j->trouble || now - j->said_ns > (int64_t)SAY_AGAIN_MS * 1000000) {
        log_error(j->log, "%lld events cannot be written: %s", (long long)n_events, e->msg);
        j->said_ns = now;
    }
    j->n_refused++;
    snprintf(j->trouble, sizeof j->trouble, "%s", e->msg);
    if (j->listener.round_failed)
        j->listener.round_failed(j->listener.ctx);
}

static void note_success(struct journal *j)
{
    if (!*j->trouble)
        return;
    log_info(j->log, "events can be written again; the disk has refused %lld times", (long long)j->n_refused);
    j->trouble[0] = 0;
    j->n_refused = 0;
}

static bool one_round(struct journal *j)
{
    struct queue round;
    struct err e = ERR_INIT;

    collect(j, &round);
    if (!round.n)
        return false;
    if (persist(j, &round, &e) < 0) {
        j->n_failed++;
        note_trouble(j, round.n, &e);
        fail_round(j, &round, &e);
        if (j->pending.n) {
            j->blocked = true;
            uv_timer_start(&j->retry, on_retry, RETRY_MS, 0);
        }
        return false;
    }
    j->n_committed++;
    note_success(j);
    apply(j, &round);
    j->listener.round_done(j->listener.ctx);
    return true;
}

/* While the disk refuses, clients that ask meanwhile are not kept waiting for the timer. */
static bool has_requests(const struct journal *j)
{
    for (const struct entry *en = j->pending.head; en; en = en->next)
        if (en->done)
            return true;
    return false;
}

static void on_idle(uv_idle_t *idle)
{
    (void)idle;
}

static void flush(struct journal *j)
{
    int n_rounds = 0;

    if (j->flushing)
        return;
    j->flushing = true;
    while (j->pending.n && (!j->blocked || has_requests(j)) && n_rounds < MAX_ROUNDS) {
        if (!one_round(j))
            break;
        n_rounds++;
    }
    j->flushing = false;
    if (j->pending.n && !j->blocked)
        uv_idle_start(&j->spin, on_idle);
    else
        uv_idle_stop(&j->spin);
}

static void on_prepare(uv_prepare_t *p)
{
    flush(p->data);
}

/* --- replay --- */

static int replay_event(void *ctx, int64_t seq, int64_t id, int64_t time_ms, const char *data, struct err *e)
{
    struct journal *j = ctx;
    struct job_event ev = {.seq = seq, .job = id, .time_ms = time_ms};
    cJSON *v = json_parse(data, strlen(data), e);
    int rc = v ? job_event_from_journal(v, &ev, e) : -1;

    bool applied = rc == 0 && jobs_apply(j->jobs, &ev, e);
    cJSON_Delete(v);
    if (!applied)
        return err_wrap(e, "event %lld of job %lld in the journal", (long long)seq, (long long)id);
    j->last_seq = seq;
    return 0;
}

static void add_handle(struct journal *j, uv_handle_t *h)
{
    h->data = j;
    j->n_handles++;
}

struct journal *journal_create(uv_loop_t *loop, struct store *store, struct jobs *jobs, const struct log *log,
                               struct journal_listener listener, struct err *e)
{
    struct journal *j = xcalloc(1, sizeof *j);

    *j = (struct journal){.loop = loop, .store = store, .jobs = jobs, .log = log, .listener = listener};
    queue_init(&j->pending);
    if (store_each_event(store, 0, 0, -1, replay_event, j, e) < 0) {
        free(j);
        return NULL;
    }
    uv_prepare_init(loop, &j->prepare);
    uv_timer_init(loop, &j->retry);
    uv_idle_init(loop, &j->spin);
    add_handle(j, (uv_handle_t *)&j->prepare);
    add_handle(j, (uv_handle_t *)&j->retry);
    add_handle(j, (uv_handle_t *)&j->spin);
    uv_prepare_start(&j->prepare, on_prepare);
    return j;
}

static void on_closed(uv_handle_t *h)
{
    struct journal *j = h->data;

    if (--j->n_handles == 0)
        free(j);
}

void journal_destroy(struct journal *j)
{
    if (!j)
        return;
    j->blocked = false;
    flush(j);
    for (struct entry *en; (en = queue_pop(&j->pending));) {
        if (!en->done)
            log_error(j->log, "job %lld: event lost at shutdown: %s", (long long)en->ev.job, en->ev.reason);
        entry_done(en, RPC_OVERLOADED, "the coordinator is shutting down");
    }
    uv_close((uv_handle_t *)&j->prepare, on_closed);
    uv_close((uv_handle_t *)&j->retry, on_closed);
    uv_close((uv_handle_t *)&j->spin, on_closed);
}

/* --- appending --- */

void journal_append(struct journal *j, const struct job_event *ev, journal_done_fn *done, void *ctx)
{
    struct entry *en = xcalloc(1, sizeof *en);

    en->ev = *ev;
    en->ev.place = en->place = ev->place ? xstrdup(ev->place) : NULL;
    en->done = done;
    en->ctx = ctx;
    queue_push(&j->pending, en);
}

void journal_submit(struct journal *j, const struct journal_job *jobs, int64_t n, const char *key,
                    journal_done_fn *done, void *ctx)
{
    struct entry *en = xcalloc(1, sizeof *en);

    en->added = xcalloc((size_t)n, sizeof *en->added);
    en->n_added = n;
    for (int64_t i = 0; i < n; i++)
        en->added[i] = (struct new_job){jobs[i].ev, xstrdup(jobs[i].spec)};
    en->key = key ? xstrdup(key) : NULL;
    en->done = done;
    en->ctx = ctx;
    queue_push(&j->pending, en);
}

int64_t journal_n_submitting(const struct journal *j, int64_t uid)
{
    int64_t n = 0;

    if (uid < 0)
        return j->pending.n_submitted;
    for (const struct entry *en = j->pending.head; en; en = en->next)
        if (en->n_added && en->added[0].ev.uid == uid)
            n += en->n_added;
    return n;
}

int64_t journal_last_seq(const struct journal *j)
{
    return j->last_seq;
}

const char *journal_trouble(const struct journal *j)
{
    return *j->trouble ? j->trouble : NULL;
}

void journal_counts(const struct journal *j, int64_t *committed, int64_t *failed)
{
    *committed = j->n_committed;
    *failed = j->n_failed;
}
