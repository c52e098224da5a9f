/* launch_fake - jobs that are nothing but timers, for tests of everything around them.
 *
 * Behaviour is a list "key=value,…":
 *   run_ms=N    how long a job runs (default 50)
 *   steps=N     how many steps it reports on the way (default 10)
 *   fail=1      ends with a stated failure at the last step
 *   lose=N      the first N attempts lose a rank half-way
 *   start=0     cannot be started
 *   survive=1   goes on without the coordinator
 * A fake run lives in the coordinator's memory: after a restart of the coordinator it is gone, like a job on
 * a machine that was switched off. With survive=1 it is there again, as far as it has come by the clock, or
 * has ended meanwhile and left its result, like a job whose machine stayed on. Every start and end leaves a
 * line (fake_trace.h).
 */
#include "daemon/launch.h"
#include "common/clock.h"
#include "daemon/fake_trace.h"

#include <stdlib.h>
#include <string.h>

struct launch_fake {
    struct launcher base; /* must be first */
    uv_loop_t *loop;
    struct launch_listener listener;
    int64_t run_ms, steps, fail, lose, start, survive;
    struct fake_run *runs;
};

struct fake_run {
    struct fake_run *next;
    struct launch_fake *owner; /* NULL once let go of */
    uv_timer_t timer;
    int64_t job, attempt, step, checkpoint_step;
    bool attached, gone, stopping;
    bool leaves; /* its end is decided and is `how`; it is said when it could be written down */
    const char *how, *status, *reason;
    struct launch_exit exit;
    char *run_dir;
};

static void on_closed(uv_handle_t *h)
{
    struct fake_run *r = h->data;

    free(r->run_dir);
    free(r);
}

static void run_release(struct fake_run *r)
{
    struct fake_run **p = &r->owner->runs;

    while (*p != r)
        p = &(*p)->next;
    *p = r->next;
    r->owner = NULL;
    uv_close((uv_handle_t *)&r->timer, on_closed);
}

/* Says its end, once its traces are on disk: a full one makes it try again at its next tick. */
static void run_end(struct fake_run *r)
{
    struct launch_listener to = r->owner->listener;
    int64_t job = r->job, attempt = r->attempt;
    struct launch_exit how = r->exit;

    if (r->owner->survive && r->status && fake_trace_result(r->run_dir, r->status, r->reason, NULL) < 0)
        return;
    if (r->how && fake_trace_end(r->run_dir, attempt, r->how, NULL) < 0)
        return;
    if (r->status && how.known)
        to.on_done(to.ctx, job, attempt, r->status, r->reason);
    run_release(r);
    to.on_exit(to.ctx, job, attempt, &how);
}

static void leave(struct fake_run *r, const char *how, struct launch_exit exit)
{
    r->leaves = true;
    r->how = how;
    r->exit = exit;
    run_end(r);
}

static void say_done(struct fake_run *r, const char *status, const char *reason, int exit_status)
{
    r->status = status;
    r->reason = reason;
    leave(r, status, (struct launch_exit){.known = true, .status = exit_status});
}

static void report(struct fake_run *r)
{
    const struct launch_fake *l = r->owner;
    struct progress p = {.phase = "train",
                         .step = r->step,
                         .n_steps = l->steps,
                         .n_epochs = 1,
                         .epoch = r->step == l->steps,
                         .loss = 1.0 / (double)(r->step + 1),
                         .images_per_s = 1000,
                         .eta_s = (double)(l->run_ms * (l->steps - r->step)) / (double)l->steps / 1000,
                         .checkpoint_step = r->checkpoint_step};

    l->listener.on_progress(l->listener.ctx, r->job, r->attempt, &p);
}

static bool is_lost(const struct fake_run *r)
{
    return r->attempt <= r->owner->lose && r->step >= (r->owner->steps + 1) / 2;
}

static void on_tick(uv_timer_t *t)
{
    struct fake_run *r = t->data;
    const struct launch_fake *l = r->owner;

    if (r->leaves) {
        run_end(r);
    } else if (r->gone) {
        leave(r, "killed", r->exit);
    } else if (r->stopping) {
        say_done(r, "stopped", "stopped on request", 130);
    } else if (!r->attached) {
        r->attached = true;
        l->listener.on_attached(l->listener.ctx, r->job, r->attempt, "fake");
    } else if (r->step < l->steps) {
        r->step++;
        report(r);
        if (is_lost(r))
            leave(r, "lost", (struct launch_exit){.known = true, .status = 4});
    } else if (l->fail) {
        say_done(r, "failed", "told to fail", 1);
    } else {
        say_done(r, "succeeded", "", 0);
    }
}

static struct fake_run *run_create(struct launch_fake *l, const struct launch_request *rq)
{
    struct fake_run *r = xcalloc(1, sizeof *r);
    uint64_t every = (uint64_t)(l->run_ms / (l->steps + 1));

    r->owner = l;
    r->job = rq->job;
    r->attempt = rq->attempt;
    r->run_dir = xstrdup(rq->run_dir);
    r->checkpoint_step = -1;
    r->next = l->runs;
    l->runs = r;
    uv_timer_init(l->loop, &r->timer);
    r->timer.data = r;
    uv_timer_start(&r->timer, on_tick, 0, every ? every : 1);
    return r;
}

/* Something that tells attempts apart, as a pid does. */
static void identify(const struct launch_request *rq, struct job_process *process)
{
    *process = (struct job_process){.pid = rq->job, .start_ticks = rq->attempt, .boot_id = "fake"};
}

static int start(struct launcher *base, const struct launch_request *rq, struct job_process *process,
                 struct err *e)
{
    struct launch_fake *l = (struct launch_fake *)base;

    *process = (struct job_process){0};
    if (!l->start)
        return err_set(e, "the fake launcher was told not to start anything");
    if (fake_trace_start(rq->run_dir, rq->attempt, rq->token, e) < 0)
        return -1;
    if (l->survive)
        identify(rq, process);
    run_create(l, rq);
    return 0;
}

/* Does the trace tell of this very attempt? */
static bool is_of(const struct fake_trace *trace, const struct launch_request *rq)
{
    return trace->started && trace->attempt == rq->attempt && strcmp(trace->token, rq->token) == 0;
}

/* What became of a run that went on without us. */
static void catch_up(struct fake_run *r, const struct fake_trace *trace)
{
    const struct launch_fake *l = r->owner;
    int64_t ms = clock_wall_ms() - trace->start_ms;

    r->step = ms >= l->run_ms ? l->steps : ms > 0 ? ms * l->steps / l->run_ms : 0;
    if (is_lost(r)) {
        r->how = "lost";
    } else if (ms >= l->run_ms) {
        r->how = r->status = l->fail ? "failed" : "succeeded";
        r->reason = l->fail ? "told to fail" : "";
    }
    r->leaves = r->how != NULL;
}

static void adopt(struct launcher *base, const struct launch_request *rq, const struct job_process *process)
{
    struct launch_fake *l = (struct launch_fake *)base;
    struct fake_run *r = run_create(l, rq);
    struct fake_trace trace;

    (void)process;
    fake_trace_read(rq->run_dir, &trace);
    if (!is_of(&trace, rq) || trace.ended) {
        r->leaves = true; /* nothing is left of it, and its end was written down, if it ever began */
    } else if (l->survive) {
        catch_up(r, &trace);
    } else {
        r->leaves = true;
        r->how = "gone";
    }
}

static enum launch_found find(struct launcher *base, const struct launch_request *rq,
                              struct job_process *process)
{
    struct launch_fake *l = (struct launch_fake *)base;
    struct fake_trace trace;

    if (!l->survive)
        return LAUNCH_ORPHANS; /* whatever there was is gone: adopt() says so */
    fake_trace_read(rq->run_dir, &trace);
    if (!is_of(&trace, rq) || trace.ended)
        return LAUNCH_GONE;
    identify(rq, process);
    return LAUNCH_FOUND;
}

static struct fake_run *run_find(struct launch_fake *l, int64_t job)
{
    struct fake_run *r = l->runs;

    while (r && r->job != job)
        r = r->next;
    return r;
}

/* Its next tick comes at once. */
static void hurry(struct fake_run *r)
{
    uint64_t every = uv_timer_get_repeat(&r->timer);

    uv_timer_start(&r->timer, on_tick, 0, every);
}

static bool command(struct launcher *base, int64_t job, const char *what)
{
    struct fake_run *r = run_find((struct launch_fake *)base, job);

    if (!r || !r->attached)
        return false;
    if (strcmp(what, "stop") == 0)
        r->stopping = true;
    else
        r->checkpoint_step = r->step;
    hurry(r);
    return true;
}

static void send_signal(struct launcher *base, int64_t job, int signo)
{
    struct fake_run *r = run_find((struct launch_fake *)base, job);

    if (!r || r->leaves)
        return;
    r->gone = true;
    r->exit = (struct launch_exit){.known = true, .status = 128 + signo};
    hurry(r);
}

static void destroy(struct launcher *base)
{
    struct launch_fake *l = (struct launch_fake *)base;

    while (l->runs)
        run_release(l->runs);
    free(l);
}

static const struct launcher_ops ops = {
    .name = "fake",
    .start = start,
    .adopt = adopt,
    .find = find,
    .command = command,
    .signal = send_signal,
    .destroy = destroy,
};

static int parse_behaviour(struct launch_fake *l, const char *text, struct err *e)
{
    const struct {
        const char *name;
        int64_t *field, min;
    } keys[] = {{"run_ms", &l->run_ms, 0}, {"steps", &l->steps, 1}, {"fail", &l->fail, 0},
                {"lose", &l->lose, 0},     {"start", &l->start, 0}, {"survive", &l->survive, 0}};

    while (*text) {
        size_t n = strcspn(text, ","), k = 0, len = strcspn(text, "=");
        while (k < sizeof keys / sizeof *keys &&
               (strlen(keys[k].name) != len || strncmp(text, keys[k].name, len) != 0))
            k++;
        char *end = NULL;
        long long v = len < n ? strtoll(text + len + 1, &end, 10) : 0;
        if (k == sizeof keys / sizeof *keys || !end || end != text + n || v < keys[k].min || v > 1000000000)
            return err_set(
                e,
                "fake launcher: '%.*s' found, accepted are run_ms=N, steps=N, fail=0|1, lose=N, start=0|1, "
                "survive=0|1",
                (int)n, text);
        *keys[k].field = v;
        text += n + (text[n] == ',');
    }
    return 0;
}

struct launcher *launch_fake_create(uv_loop_t *loop, const char *behaviour, struct launch_listener listener,
                                    struct err *e)
{
    struct launch_fake *l = xcalloc(1, sizeof *l);

    *l = (struct launch_fake){.base.ops = &ops, .loop = loop, .listener = listener};
    l->run_ms = 50;
    l->steps = 10;
    l->start = 1;
    if (parse_behaviour(l, behaviour ? behaviour : "", e) < 0) {
        free(l);
        return NULL;
    }
    return &l->base;
}
