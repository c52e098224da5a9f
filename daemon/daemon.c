/* daemon - see daemon.h.
 *
 * The end, in order: no new starts and no new clients → with `cancel`, wait until nothing runs → commit what
 * is pending → give replies FLUSH_MS to leave → close connections, let go of runs (their processes go on) →
 * close the store → unlock. Every step but the waits happens within one callback (finish), so nothing can
 * slip in between.
 */
#include "daemon/daemon.h"
#include "common/clock.h"
#include "common/fsutil.h"
#include "daemon/actions.h"
#include "daemon/notify.h"
#include "daemon/run_dir.h"
#include "daemon/server.h"
#include "daemon/state_dir.h"
#include "daemon/watch.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FLUSH_MS = 2000 };

/* --- wiring --- */

static void on_applied(void *ctx, struct job *job, const struct job_event *ev)
{
    struct daemon *d = ctx;

    watch_event(d, job, ev);
    actions_applied(d->actions, job, ev);
}

static void tell_status(struct daemon *d)
{
    const int64_t *n = d->jobs.counts;
    const char *trouble = journal_trouble(d->journal);

    if (trouble)
        notify_status(d->notify, "events cannot be written: %s", trouble);
    else
        notify_status(d->notify, "%s%lld queued, %lld running, %lld of %lld slots in use",
                      d->stopping   ? "shutting down: "
                      : d->draining ? "draining: "
                                    : "",
                      (long long)n[JOB_QUEUED], (long long)(n[JOB_STARTING] + n[JOB_RUNNING]),
                      (long long)d->jobs.held_ranks, (long long)d->options->slots);
}

static void on_round_done(void *ctx)
{
    struct daemon *d = ctx;

    watch_pump_all(d);
    actions_round_done(d->actions);
    tell_status(d);
}

static void on_round_failed(void *ctx)
{
    tell_status(ctx);
}

/* A database that was lost or restored from an older copy must not give an id whose run is on disk. */
static int open_store(struct daemon *d, struct err *e)
{
    char *path = fs_join(d->options->state_dir, "state.db");

    mode_t before = umask(077); /* it holds tokens */
    d->store = store_open(path, e);
    umask(before);
    free(path);
    return d->store ? store_skip_ids(d->store, run_dir_max_id(d->options->state_dir), e) : -1;
}

static int open_journal(struct daemon *d, struct err *e)
{
    struct journal_listener listener = {
        .ctx = d, .applied = on_applied, .round_done = on_round_done, .round_failed = on_round_failed};

    d->journal = journal_create(&d->loop, d->store, &d->jobs, &d->log, listener, e);
    return d->journal
               ? 0
               : err_wrap(e,
                          "%s/state.db holds what cannot be: restore it from a copy (batchformerd --check "
                          "lists all that is wrong)",
                          d->options->state_dir);
}

/* Ranks on other hosts reach us over the network only. */
static int check_link(const struct daemon *d, struct err *e)
{
    for (size_t i = 0; i < d->inventory.n; i++)
        if (!d->options->link && strcmp(d->inventory.v[i].name, d->host) != 0)
            return err_set_kind(
                e, ERR_USAGE,
                "--node: %s is another host than this one, which is %s: its ranks need --link "
                "tcp:HOST:PORT to find the coordinator",
                d->inventory.v[i].name, d->host);
    return 0;
}

static int make_launcher(struct daemon *d, struct err *e)
{
    const struct options *o = d->options;

    if (strcmp(o->launcher, "fake") == 0) {
        d->launcher = launch_fake_create(&d->loop, getenv("BATCHFORMER_FAKE"), actions_launch_listener(d), e);
    } else if (check_link(d, e) == 0) {
        struct launch_mpirun_config config = {.loop = &d->loop,
                                              .log = &d->log,
                                              .listener = actions_launch_listener(d),
                                              .mpirun = o->mpirun,
                                              .worker = o->worker,
                                              .address = o->link_address,
                                              .guest_address = o->guest_link_address,
                                              .host = d->host,
                                              .far_address = o->link,
                                              .far_ca = o->link_ca,
                                              .launch_agent = o->launch_agent,
                                              .hang_ms = o->hang_ms};
        d->launcher = launch_mpirun_create(&config);
    }
    return d->launcher ? 0 : -1;
}

/* --- the end --- */

static void finish(struct daemon *d)
{
    if (d->closed)
        return;
    d->closed = true;
    journal_destroy(d->journal);
    server_destroy(d->server);
    actions_destroy(d->actions);
    launcher_destroy(d->launcher);
    notify_destroy(d->notify);
    uv_close((uv_handle_t *)&d->on_term, NULL);
    uv_close((uv_handle_t *)&d->on_int, NULL);
    uv_close((uv_handle_t *)&d->on_hup, NULL);
    uv_close((uv_handle_t *)&d->flush, NULL);
    if (d->has_lifeline)
        uv_close(&d->lifeline.handle, NULL);
}

static void on_flush_timeout(uv_timer_t *t)
{
    finish(t->data);
}

static void on_flush_check(uv_timer_t *t)
{
    struct daemon *d = t->data;

    if (server_is_flushed(d->server))
        finish(d);
    else
        uv_timer_start(&d->flush, on_flush_timeout, FLUSH_MS, 0);
}

/* By a timer, because the caller may stand deep in what is to be closed. One more loop iteration also gives
 * the journal its round. */
void daemon_check_stop(struct daemon *d)
{
    if (!d->stopping || d->closed || uv_is_active((uv_handle_t *)&d->flush))
        return;
    if (d->cancelling && actions_n_runs(d->actions) > 0)
        return;
    uv_timer_start(&d->flush, on_flush_check, 1, 0);
}

void daemon_stop(struct daemon *d, bool cancel, const char *why)
{
    bool again = d->stopping;

    log_info(&d->log, "%s: %s; %s", again ? "not waiting any longer" : "shutting down", why,
             again    ? "leaving at once"
             : cancel ? "cancelling what runs"
                      : "what runs goes on");
    notify_stopping(d->notify);
    d->draining = true;
    d->stopping = true;
    d->cancelling = cancel && !again;
    tell_status(d);
    server_stop_listening(d->server);
    if (d->cancelling)
        actions_cancel_all(d->actions, why);
    daemon_check_stop(d);
}

static void on_signal(uv_signal_t *s, int signo)
{
    struct daemon *d = s->data;

    /* Under a lifeline its holder decides: Ctrl-C in a terminal reaches both of us. */
    if (d->options->lifeline && signo == SIGINT)
        return;
    daemon_stop(d, d->options->lifeline, signo == SIGINT ? "SIGINT" : "SIGTERM");
}

/* --- reload --- */

static void on_change(void *ctx, const char *name, const char *old, const char *new, bool applied)
{
    struct daemon *d = ctx;

    if (applied)
        log_info(&d->log, "reload: %s is %s from now on, it was %s", name, new, old);
    else
        log_warn(&d->log, "reload: %s stays %s until a restart, which will make it %s", name, old, new);
}

static void on_reload(uv_signal_t *s, int signo)
{
    struct daemon *d = s->data;
    struct err e = ERR_INIT;

    (void)signo;
    if (d->stopping)
        return;
    if (!d->options->config) {
        log_info(&d->log, "reload: there is no config file to read again");
        return;
    }
    notify_reloading(d->notify);
    log_info(&d->log, "reload: reading %s again", d->options->config);
    if (options_reload(d->options, on_change, d, &e) < 0)
        log_error(&d->log, "reload: everything stays as it was: %s", e.msg);
    d->log.level = d->options->level;
    d->log.format = d->options->format;
    notify_ready(d->notify);
}

/* --- lifeline --- */

static void on_lifeline_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *b)
{
    struct daemon *d = h->data;

    (void)suggested;
    *b = uv_buf_init(d->lifeline_sink, sizeof d->lifeline_sink);
}

static void on_lifeline_read(uv_stream_t *s, ssize_t n, const uv_buf_t *b)
{
    (void)b;
    if (n >= 0)
        return;
    uv_read_stop(s);
    daemon_stop(s->data, true, "the lifeline has ended");
}

static int hold_lifeline(struct daemon *d, struct err *e)
{
    uv_handle_type type = uv_guess_handle(STDIN_FILENO);
    int rc;

    if (type == UV_TTY)
        rc = uv_tty_init(&d->loop, &d->lifeline.tty, STDIN_FILENO, 1);
    else if (type == UV_NAMED_PIPE)
        rc = uv_pipe_init(&d->loop, &d->lifeline.pipe, 0);
    else
        return err_set_kind(e, ERR_USAGE,
                            "--lifeline: standard input must be a pipe, a socket or a terminal");
    if (rc < 0)
        return err_set(e, "--lifeline: %s", uv_strerror(rc));
    d->has_lifeline = true;
    d->lifeline.handle.data = d;
    if (type == UV_NAMED_PIPE && (rc = uv_pipe_open(&d->lifeline.pipe, STDIN_FILENO)) < 0)
        return err_set(e, "--lifeline: %s", uv_strerror(rc));
    rc = uv_read_start(&d->lifeline.stream, on_lifeline_alloc, on_lifeline_read);
    return rc < 0 ? err_set(e, "--lifeline: %s", uv_strerror(rc)) : 0;
}

/* --- life --- */

static void init_handles(struct daemon *d)
{
    uv_signal_init(&d->loop, &d->on_term);
    uv_signal_init(&d->loop, &d->on_int);
    uv_signal_init(&d->loop, &d->on_hup);
    uv_timer_init(&d->loop, &d->flush);
    d->on_term.data = d->on_int.data = d->on_hup.data = d->flush.data = d;
    uv_signal_start(&d->on_term, on_signal, SIGTERM);
    uv_signal_start(&d->on_int, on_signal, SIGINT);
    uv_signal_start(&d->on_hup, on_reload, SIGHUP);
}

/* The variables are taken out of the environment, for jobs are not the service. Neither is a private
 * coordinator the service that its holder runs in. */
static void init_notify(struct daemon *d)
{
    static const char *const names[] = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"};
    enum { N = sizeof names / sizeof *names };
    char *v[N];

    for (int i = 0; i < N; i++) {
        const char *value = getenv(names[i]);
        v[i] = value && *value && !d->options->lifeline ? xstrdup(value) : NULL;
        unsetenv(names[i]);
    }
    d->notify = notify_create(&(struct notify_config){&d->loop, &d->log, v[0], v[1], v[2]});
    for (int i = 0; i < N; i++)
        free(v[i]);
}

static int start(struct daemon *d, struct err *e)
{
    if (open_store(d, e) < 0 || inventory_init(&d->inventory, d->options, d->host, d->store, e) < 0 ||
        open_journal(d, e) < 0 || make_launcher(d, e) < 0)
        return -1;
    d->actions = actions_create(d);
    d->server = server_create(d, e);
    if (!d->server || (d->options->lifeline && hold_lifeline(d, e) < 0))
        return -1;
    log_info(&d->log,
             "batchformerd %s: state in %s, %zu jobs of which %zu have not ended, %lld slots on %zu nodes, "
             "launcher %s",
             BF_VERSION, d->options->state_dir, d->jobs.n, d->jobs.n_active,
             (long long)inventory_slots(&d->inventory), d->inventory.n, d->launcher->ops->name);
    actions_take_up(d->actions);
    notify_ready(d->notify);
    tell_status(d);
    return 0;
}

int daemon_run(struct options *o, struct err *e)
{
    struct daemon d = {
        .options = o,
        .log = {.fd = STDERR_FILENO, .level = o->level, .format = o->format, .component = "batchformerd"},
        .lock_fd = -1,
        .started_ns = clock_mono_ns()};
    int rc;

    if (gethostname(d.host, sizeof d.host - 1) < 0)
        strcpy(d.host, "localhost");
    signal(SIGPIPE, SIG_IGN); /* a client that is gone is an error code, not the end */
    d.lock_fd = state_dir_lock(o->state_dir, e);
    if (d.lock_fd < 0)
        return -1;
    uv_loop_init(&d.loop);
    init_handles(&d);
    init_notify(&d);
    d.specs = spec_cache_create();
    rc = start(&d, e);
    if (rc < 0)
        finish(&d);
    uv_run(&d.loop, UV_RUN_DEFAULT);
    ASSERT(uv_loop_close(&d.loop) == 0);
    jobs_free(&d.jobs);
    spec_cache_destroy(d.specs);
    inventory_free(&d.inventory);
    store_close(d.store);
    close(d.lock_fd);
    if (rc == 0)
        log_info(&d.log, "ended in order");
    return rc;
}
