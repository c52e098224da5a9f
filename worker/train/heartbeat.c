/* heartbeat - see heartbeat.h.
 *
 * The atomics are read one by one, so a beat may show the phase of one moment and the step of the next; the
 * beat after it is right. Nothing depends on more.
 */
#include "worker/train/heartbeat.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "common/clock.h"
#include "proto/client.h"
#include "proto/progress.h"

enum {
    HELLO_TIMEOUT_MS = 2000,
    RETRY_MS = 1000,
    RETRY_REFUSED_MS = 5000,
    NO_CALL = -1,
    MEAN_OVER = 16, /* steps: what the mean of step times forgets in */
};

/* Where the training thread is. Only that thread writes. */
struct place {
    _Atomic int phase, call; /* enum heart_phase; enum comm_call or NO_CALL */
    _Atomic int64_t step, collectives, since_ns;
    _Atomic int64_t n_steps, step_ns, work_ns; /* means over the last steps */
};

/* A reading of it. */
struct look {
    int phase, call;
    int64_t step, collectives, since_ns, n_steps, step_ns, work_ns;
};

struct heartbeat {
    struct place at;
    /* the training thread's own */
    int64_t begin_ns, enter_ns, waited_ns;
    double mean_step_ns, mean_work_ns;

    pthread_t thread;
    pthread_mutex_t mutex; /* of `stop`; the training thread takes it in heartbeat_stop() only */
    pthread_cond_t stopped;
    bool stop;

    /* the heartbeat thread's own */
    const struct log *log;
    char *address;
    struct progress_hello self;
    struct client *client; /* NULL while there is no link */
    int64_t next_try_ns, sent_ns;
    bool told_away;
    struct look sent;
};

/* --- names --- */

static const char *const phase_names[HEART_N_PHASES] = {
    [HEART_START] = "start",
    [HEART_DATA] = "data",
    [HEART_FORWARD] = "forward",
    [HEART_BACKWARD] = "backward",
    [HEART_VOTE] = "vote",
    [HEART_UPDATE] = "update",
    [HEART_LOG] = "log",
    [HEART_EVALUATE] = "evaluate",
    [HEART_CHECKPOINT] = "checkpoint",
    [HEART_FINISH] = "finish",
    [HEART_END] = PROGRESS_PHASE_END,
};

const char *heartbeat_phase_name(enum heart_phase phase)
{
    return phase_names[phase];
}

const char *heartbeat_wait_name(enum heart_phase phase, enum comm_call call)
{
    static const char *const plain[COMM_N_CALLS] = {
        [COMM_ALL_GATHER] = "all-gather", [COMM_REDUCE_SCATTER] = "reduce-scatter",
        [COMM_ALL_TO_ALL] = "all-to-all", [COMM_ALL_REDUCE] = "all-reduce",
        [COMM_WAIT] = "gradient buckets", [COMM_BROADCAST] = "broadcast",
        [COMM_BARRIER] = "barrier",       [COMM_SYNC] = "work on the device",
    };
    static const struct {
        enum heart_phase phase;
        enum comm_call call;
        const char *name;
    } rows[] = {
        {HEART_FORWARD, COMM_ALL_GATHER, "all-gather of features"},
        {HEART_FORWARD, COMM_ALL_REDUCE, "all-reduce of batch statistics"},
        {HEART_BACKWARD, COMM_REDUCE_SCATTER, "reduce-scatter of the features' gradients"},
        {HEART_BACKWARD, COMM_ALL_REDUCE, "all-reduce of the batch statistics' gradients"},
        {HEART_BACKWARD, COMM_ALL_TO_ALL, "exchange of the gradients' shards"},
        {HEART_BACKWARD, COMM_ALL_GATHER, "gather of the gradients' shards"},
        {HEART_VOTE, COMM_ALL_REDUCE, "vote"},
        {HEART_EVALUATE, COMM_ALL_GATHER, "all-gather of the evaluation's losses"},
        {HEART_EVALUATE, COMM_ALL_REDUCE, "all-reduce of the evaluation's counts"},
        {HEART_START, COMM_ALL_GATHER, "agreement at the start"},
        {HEART_START, COMM_ALL_REDUCE, "agreement at the start"},
        {HEART_START, COMM_BROADCAST, "broadcast of the start"},
        {HEART_CHECKPOINT, COMM_ALL_GATHER, "comparison of the weights"},
        {HEART_CHECKPOINT, COMM_ALL_REDUCE, "agreement on the checkpoint"},
        {HEART_LOG, COMM_ALL_GATHER, "comparison of the weights"},
        {HEART_FINISH, COMM_ALL_REDUCE, "agreement at the end"},
    };

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].phase == phase && rows[i].call == call)
            return rows[i].name;
    return plain[call];
}

/* --- the training thread --- */

static void put(_Atomic int64_t *at, int64_t v)
{
    atomic_store_explicit(at, v, memory_order_relaxed);
}

static int64_t get(const _Atomic int64_t *at)
{
    return atomic_load_explicit(at, memory_order_relaxed);
}

enum heart_phase heartbeat_phase(struct heartbeat *h, enum heart_phase phase)
{
    if (!h)
        return phase;
    enum heart_phase before = (enum heart_phase)atomic_load_explicit(&h->at.phase, memory_order_relaxed);
    put(&h->at.since_ns, clock_mono_ns());
    atomic_store_explicit(&h->at.phase, phase, memory_order_relaxed);
    return before;
}

void heartbeat_at_step(struct heartbeat *h, int64_t step)
{
    if (h)
        put(&h->at.step, step);
}

void heartbeat_step_begin(struct heartbeat *h)
{
    if (!h)
        return;
    h->waited_ns = 0;
    h->begin_ns = clock_mono_ns();
}

void heartbeat_step_end(struct heartbeat *h, int64_t step)
{
    if (!h)
        return;
    double ns = (double)(clock_mono_ns() - h->begin_ns), work = ns - (double)h->waited_ns;
    int64_t n = get(&h->at.n_steps) + 1;
    double share = 1.0 / (double)(n < MEAN_OVER ? n : MEAN_OVER);
    h->mean_step_ns += (ns - h->mean_step_ns) * share;
    h->mean_work_ns += (work - h->mean_work_ns) * share;
    put(&h->at.step_ns, (int64_t)h->mean_step_ns);
    put(&h->at.work_ns, (int64_t)h->mean_work_ns);
    put(&h->at.n_steps, n);
    put(&h->at.step, step);
}

static void enter(void *arg, enum comm_call call)
{
    struct heartbeat *h = arg;

    h->enter_ns = clock_mono_ns();
    put(&h->at.since_ns, h->enter_ns);
    atomic_store_explicit(&h->at.call, call, memory_order_relaxed);
}

static void leave(void *arg, enum comm_call call)
{
    struct heartbeat *h = arg;
    int64_t now = clock_mono_ns();

    (void)call;
    h->waited_ns += now - h->enter_ns;
    put(&h->at.since_ns, now);
    put(&h->at.collectives, get(&h->at.collectives) + 1);
    atomic_store_explicit(&h->at.call, NO_CALL, memory_order_relaxed);
}

struct comm_watcher heartbeat_watcher(struct heartbeat *h)
{
    return (struct comm_watcher){enter, leave, h};
}

/* --- the heartbeat thread --- */

static struct look look_at(const struct place *p)
{
    return (struct look){.phase = atomic_load_explicit(&p->phase, memory_order_relaxed),
                         .call = atomic_load_explicit(&p->call, memory_order_relaxed),
                         .step = get(&p->step),
                         .collectives = get(&p->collectives),
                         .since_ns = get(&p->since_ns),
                         .n_steps = get(&p->n_steps),
                         .step_ns = get(&p->step_ns),
                         .work_ns = get(&p->work_ns)};
}

static bool same_place(const struct look *a, const struct look *b)
{
    return a->phase == b->phase && a->call == b->call && a->step == b->step &&
           a->collectives == b->collectives;
}

static void drop_link(struct heartbeat *h, const char *why, int64_t retry_ms)
{
    client_close(h->client);
    h->client = NULL;
    h->next_try_ns = clock_mono_ns() + retry_ms * 1000000;
    if (!h->told_away)
        log_warn(h->log, "no heartbeats to the coordinator, training goes on: %s", why);
    h->told_away = true;
}

static void try_hello(struct heartbeat *h)
{
    struct err e = ERR_INIT;

    h->client = client_connect(h->address, &e);
    if (!h->client) {
        drop_link(h, e.msg, RETRY_MS);
        return;
    }
    cJSON *result =
        client_call(h->client, "worker.hello", progress_hello_to_json(&h->self), HELLO_TIMEOUT_MS, NULL, &e);
    if (!result) {
        drop_link(h, e.msg, e.kind == ERR_REMOTE ? RETRY_REFUSED_MS : RETRY_MS);
        return;
    }
    cJSON_Delete(result);
    h->told_away = false;
    h->sent_ns = 0; /* say at once where we are */
}

/* Takes in, and drops, what the coordinator says: by this it shows that the link has broken. */
static void drain(struct heartbeat *h)
{
    struct err e = ERR_INIT;
    cJSON *note;

    while ((note = client_next(h->client, 0, &e)))
        cJSON_Delete(note);
    if (e.msg[0])
        drop_link(h, e.msg, RETRY_MS);
}

static void send_beat(struct heartbeat *h, const struct look *v, int64_t now)
{
    struct progress_beat b = {.step = v->step,
                              .collectives = v->collectives,
                              .in_ms = now > v->since_ns ? (now - v->since_ns) / 1000000 : 0,
                              .n_steps = v->n_steps,
                              .step_ms = v->n_steps ? (double)v->step_ns / 1e6 : NAN,
                              .work_ms = v->n_steps ? (double)v->work_ns / 1e6 : NAN};
    struct err e = ERR_INIT;

    snprintf(b.phase, sizeof b.phase, "%s", heartbeat_phase_name((enum heart_phase)v->phase));
    if (v->call != NO_CALL)
        snprintf(b.waits_in, sizeof b.waits_in, "%s",
                 heartbeat_wait_name((enum heart_phase)v->phase, (enum comm_call)v->call));
    if (client_notify(h->client, "worker.beat", progress_beat_to_json(&b), 0, &e) < 0) {
        if (e.kind == ERR_UNREACHABLE)
            drop_link(h, e.msg, RETRY_MS);
        return; /* a coordinator that does not read now gets a newer one later */
    }
    h->sent = *v;
    h->sent_ns = now;
}

/* One look. `last` is what the look before saw. */
static void beat(struct heartbeat *h, struct look *last)
{
    int64_t now = clock_mono_ns();
    struct look v = look_at(&h->at);

    if (!h->client && now >= h->next_try_ns)
        try_hello(h);
    if (h->client)
        drain(h);
    if (h->client && (now - h->sent_ns >= (int64_t)HEARTBEAT_EVERY_MS * 1000000 ||
                      (same_place(&v, last) && !same_place(&v, &h->sent))))
        send_beat(h, &v, now);
    *last = v;
}

static void *run(void *arg)
{
    struct heartbeat *h = arg;
    struct look last = {0};
    bool stop = false;

    while (!stop) {
        struct timespec until;
        beat(h, &last);
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += HEARTBEAT_LOOK_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_mutex_lock(&h->mutex);
        while (!h->stop && pthread_cond_timedwait(&h->stopped, &h->mutex, &until) == 0)
            continue;
        stop = h->stop;
        pthread_mutex_unlock(&h->mutex);
    }
    last = look_at(&h->at);
    if (h->client)
        send_beat(h, &last, clock_mono_ns());
    return NULL;
}

/* --- life --- */

static void release(struct heartbeat *h)
{
    client_close(h->client);
    pthread_cond_destroy(&h->stopped);
    pthread_mutex_destroy(&h->mutex);
    free(h->address);
    free(h);
}

static int read_env(struct heartbeat *h, struct err *e)
{
    struct progress_attach a = {0};

    if (progress_attach_from_env(&a, e) < 0)
        return -1;
    h->address = xstrdup(getenv(PROGRESS_ENV_ADDRESS));
    h->self.job = a.job;
    h->self.attempt = a.attempt;
    h->self.pid = a.pid;
    memcpy(h->self.token, a.token, sizeof h->self.token);
    memcpy(h->self.host, a.host, sizeof h->self.host);
    return 0;
}

struct heartbeat *heartbeat_start(const struct log *log, int rank, struct err *e)
{
    struct heartbeat *h = xcalloc(1, sizeof *h);
    pthread_condattr_t attr;

    h->log = log;
    h->self.rank = rank;
    atomic_init(&h->at.phase, HEART_START);
    atomic_init(&h->at.call, NO_CALL);
    put(&h->at.since_ns, clock_mono_ns());
    pthread_mutex_init(&h->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&h->stopped, &attr);
    pthread_condattr_destroy(&attr);
    int rc = read_env(h, e);
    if (rc == 0 && (rc = pthread_create(&h->thread, NULL, run, h)) != 0)
        rc = err_set(e, "the heartbeat's thread could not be started: %s", strerror(rc));
    if (rc < 0) {
        release(h);
        return NULL;
    }
    return h;
}

void heartbeat_stop(struct heartbeat *h)
{
    if (!h)
        return;
    heartbeat_phase(h, HEART_END);
    pthread_mutex_lock(&h->mutex);
    h->stop = true;
    pthread_cond_signal(&h->stopped);
    pthread_mutex_unlock(&h->mutex);
    pthread_join(h->thread, NULL);
    release(h);
}
