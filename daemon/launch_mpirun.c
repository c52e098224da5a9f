/* launch_mpirun - one attempt is one mpirun in a session of its own.
 *
 * The session makes the attempt independent of the coordinator's life and of its terminal. Open MPI puts each
 * rank into a process group of its own, so a group cannot be killed as one; the session, and the token in
 * every rank's environment, can (proc_signal_family).
 *
 * Order at the end of an attempt: mpirun's end is noticed (as its parent, or by pidfd when it was adopted) →
 * sweep: SIGKILL to whatever is left of it, again until nothing is → on_exit(). So slots are free when they
 * are said to be, and a restart never meets its predecessor.
 *
 * mpirun itself can hang when a rank is killed while it connects: its ranks are gone, it never ends. So an
 * mpirun that has been without any rank for hang_ms is killed, and the end goes its usual way.
 *
 * The token goes by environment only: arguments can be read by every user of the machine. No field of a job
 * is ever an argument or in the environment: the workers find the spec in their run directory.
 *
 * A daemon that is root starts the attempt as the user who submitted the job, with an environment of its own
 * (user_env.h); as root only what root submitted.
 */
#include "common/fsutil.h"
#include "common/mpirun.h"
#include "daemon/as_user.h"
#include "daemon/launch.h"
#include "daemon/mpirun_args.h"
#include "daemon/proc.h"
#include "daemon/run_dir.h"
#include "daemon/spawn.h"
#include "daemon/user_env.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SWEEP_MS = 50, MAX_SWEEPS = 400, LOOKS_A_HANG = 5 };

struct launch_mpirun {
    struct launcher base; /* must be first */
    struct launch_mpirun_config cfg;
    struct child *children;
};

struct child {
    struct child *next;
    struct launch_mpirun *owner; /* NULL once let go of */
    int64_t job, attempt;
    struct job_process process;
    char *token_env;  /* "BATCHFORMER_TOKEN=…" */
    pid_t own;        /* our child, until it was waited for; 0: adopted */
    uv_poll_t watch;  /* of pidfd */
    uv_timer_t sweep; /* before the end: looks for ranks */
    int pidfd;
    bool has_watch, ended, hung;
    int n_handles, n_sweeps;
    int n_alone; /* looks in a row that found mpirun and no rank */
    struct launch_exit exit;
};

/* --- life of a child --- */

static void on_closed(uv_handle_t *h)
{
    struct child *c = h->data;

    if (--c->n_handles > 0)
        return;
    if (c->pidfd >= 0)
        close(c->pidfd);
    free(c->token_env);
    free(c);
}

static void child_close(struct child *c)
{
    if (c->has_watch)
        uv_close((uv_handle_t *)&c->watch, on_closed);
    uv_close((uv_handle_t *)&c->sweep, on_closed);
}

static void add_handle(struct child *c, uv_handle_t *h)
{
    h->data = c;
    c->n_handles++;
}

static struct child *child_create(struct launch_mpirun *l, const struct launch_request *rq)
{
    struct child *c = xcalloc(1, sizeof *c);

    c->owner = l;
    c->job = rq->job;
    c->attempt = rq->attempt;
    c->pidfd = -1;
    c->token_env = xasprintf("%s=%s", PROGRESS_ENV_TOKEN, rq->token);
    uv_timer_init(l->cfg.loop, &c->sweep);
    add_handle(c, (uv_handle_t *)&c->sweep);
    c->next = l->children;
    l->children = c;
    return c;
}

static void child_unlink(struct child *c)
{
    struct child **p = &c->owner->children;

    while (*p != c)
        p = &(*p)->next;
    *p = c->next;
}

static struct child *child_find(struct launch_mpirun *l, int64_t job)
{
    struct child *c = l->children;

    while (c && c->job != job)
        c = c->next;
    return c;
}

static int kill_family(struct child *c)
{
    struct proc_family f = {.leader = c->process, .env = c->token_env};

    return proc_signal_family(&f, SIGKILL);
}

static void on_sweep(uv_timer_t *t)
{
    struct child *c = t->data;
    struct launch_mpirun *l = c->owner;
    int n = kill_family(c);

    if (n && ++c->n_sweeps < MAX_SWEEPS)
        return;
    if (n)
        log_error(l->cfg.log, "job %lld: %d processes of attempt %lld survive SIGKILL", (long long)c->job, n,
                  (long long)c->attempt);
    child_unlink(c);
    c->owner = NULL;
    child_close(c);
    l->cfg.listener.on_exit(l->cfg.listener.ctx, c->job, c->attempt, &c->exit);
}

static void begin_sweep(struct child *c, struct launch_exit how)
{
    if (c->ended)
        return;
    c->ended = true;
    c->exit = how;
    c->exit.hung = c->hung;
    uv_timer_start(&c->sweep, on_sweep, 0, SWEEP_MS);
}

static void on_look(uv_timer_t *t)
{
    struct child *c = t->data;
    struct proc_family f = {.leader = c->process, .env = c->token_env};

    c->n_alone = proc_signal_family(&f, 0) == 1 ? c->n_alone + 1 : 0;
    if (c->n_alone < LOOKS_A_HANG)
        return;
    log_warn(c->owner->cfg.log,
             "job %lld: mpirun has been without a rank for %lld ms: SIGKILL to attempt %lld",
             (long long)c->job, (long long)c->owner->cfg.hang_ms, (long long)c->attempt);
    c->hung = true;
    kill_family(c); /* again at the next looks, until its end is noticed */
}

static void look_for_ranks(struct child *c)
{
    uint64_t every_ms = (uint64_t)c->owner->cfg.hang_ms / (LOOKS_A_HANG - 1);

    uv_timer_start(&c->sweep, on_look, every_ms, every_ms);
}

static struct launch_exit wait_for_own(struct child *c)
{
    int status;

    if (!c->own || waitpid(c->own, &status, 0) != c->own)
        return (struct launch_exit){.known = false};
    c->own = 0;
    if (WIFSIGNALED(status))
        return (struct launch_exit){.known = true, .signal = WTERMSIG(status)};
    return (struct launch_exit){.known = true, .status = WEXITSTATUS(status)};
}

static void on_pidfd(uv_poll_t *p, int status, int events)
{
    struct child *c = p->data;

    (void)status;
    (void)events;
    uv_poll_stop(p);
    if (c->owner)
        begin_sweep(c, wait_for_own(c));
}

/* Takes the descriptor; -1 when it cannot be watched. */
static int watch_pidfd(struct child *c, int pidfd)
{
    c->pidfd = pidfd;
    if (pidfd < 0 || uv_poll_init(c->owner->cfg.loop, &c->watch, pidfd) != 0)
        return -1;
    add_handle(c, (uv_handle_t *)&c->watch);
    c->has_watch = true;
    uv_poll_start(&c->watch, UV_READABLE, on_pidfd);
    look_for_ranks(c);
    return 0;
}

/* --- command line and environment --- */

static char *find_mpirun(const struct launch_mpirun *l, struct err *e)
{
    char *path = l->cfg.mpirun ? xstrdup(l->cfg.mpirun) : mpirun_find();

    if (!path)
        err_set(e, "mpirun was not found in $PATH: install Open MPI, or name it with --mpirun");
    return path;
}

/* `as`: NULL for ourselves. */
static char **make_env(const struct launch_mpirun *l, const struct launch_request *rq,
                       const struct identity *as)
{
    enum { N_OURS = 6 };
    bool far = !place_is_on(rq->place, l->cfg.host);
    const char *address = far ? l->cfg.far_address : as ? l->cfg.guest_address : l->cfg.address;
    char *ours[N_OURS] = {xasprintf("%s=%s", PROGRESS_ENV_ADDRESS, address),
                          xasprintf("%s=%lld", PROGRESS_ENV_JOB, (long long)rq->job),
                          xasprintf("%s=%lld", PROGRESS_ENV_ATTEMPT, (long long)rq->attempt),
                          xasprintf("%s=%s", PROGRESS_ENV_TOKEN, rq->token),
                          xasprintf("%s=%s", MPIRUN_SPIN_NAME, mpirun_spin_count()),
                          far && l->cfg.far_ca ? xasprintf("BATCHFORMER_CA=%s", l->cfg.far_ca) : NULL};
    const char *const *set = (const char *const *)ours;
    int n = ours[N_OURS - 1] ? N_OURS : N_OURS - 1;
    char **env = as ? user_env(as, set, n) : mpirun_env(set, n);

    for (int i = 0; i < N_OURS; i++)
        free(ours[i]);
    return env;
}

/* --- the interface --- */

/* Under root: the user whose job it is. *as is NULL where it runs as ourselves. */
static int find_user(const struct launch_mpirun *l, const struct launch_request *rq, struct identity *room,
                     const struct identity **as, struct err *e)
{
    *as = NULL;
    if (geteuid() != 0 || rq->uid == 0)
        return 0;
    if (!l->cfg.guest_address)
        return err_set(e, "this coordinator starts root's jobs only: it has no socket that workers of other "
                          "users can reach (the path of its state directory is too long, or it is a private "
                          "one)");
    if (identity_load(rq->uid, room, e) < 0)
        return -1;
    *as = room;
    return 0;
}

/* Can the program be run, by whoever is to run it? */
static int check_program(const char *path, const char *what, const struct identity *as, struct err *e)
{
    struct as_user scope = {0};
    int rc;

    if (as && as_user_enter(&scope, as, e) < 0)
        return -1;
    rc = faccessat(AT_FDCWD, path, X_OK, AT_EACCESS);
    int why = errno;
    as_user_leave(&scope);
    if (rc == 0)
        return 0;
    return err_set(e, "%s cannot be run as %s%s%s: %s", what, path, as ? " by user " : "", as ? as->name : "",
                   strerror(why));
}

static int spawn(struct launch_mpirun *l, const struct launch_request *rq, const struct identity *as,
                 pid_t *pid, struct err *e)
{
    int log_fd = run_dir_open_log(rq->run_dir, e), rc = -1;
    char *mpirun = log_fd < 0 ? NULL : find_mpirun(l, e);

    if (mpirun && check_program(mpirun, "mpirun", as, e) == 0 &&
        check_program(l->cfg.worker, "the worker", as, e) == 0) {
        const struct mpirun_programs programs = {mpirun, l->cfg.worker, l->cfg.host, l->cfg.launch_agent,
                                                 l->cfg.far_ca != NULL};
        char **args = mpirun_args(&programs, rq), **env = make_env(l, rq, as);
        struct spawn s = {
            .file = mpirun, .args = args, .env = env, .cwd = rq->run_dir, .out_fd = log_fd, .as = as};
        rc = spawn_start(&s, pid, e);
        mpirun_free(args);
        mpirun_free(env);
    }
    free(mpirun);
    if (log_fd >= 0)
        close(log_fd);
    return rc;
}

static int start(struct launcher *base, const struct launch_request *rq, struct job_process *process,
                 struct err *e)
{
    struct launch_mpirun *l = (struct launch_mpirun *)base;
    struct identity room = {0};
    const struct identity *as;
    pid_t pid;
    int rc = find_user(l, rq, &room, &as, e) < 0 ? -1 : spawn(l, rq, as, &pid, e);

    identity_free(&room);
    if (rc < 0)
        return -1;
    struct child *c = child_create(l, rq);
    c->own = pid;
    /* One that has ended already has no identity; its exit status is on its way. */
    if (proc_identify(pid, &c->process) < 0)
        c->process = (struct job_process){.pid = pid};
    *process = c->process;
    if (watch_pidfd(c, (int)syscall(SYS_pidfd_open, pid, 0)) < 0)
        begin_sweep(c, (struct launch_exit){.known = false}); /* what cannot be watched does not run */
    return 0;
}

static void adopt(struct launcher *base, const struct launch_request *rq, const struct job_process *process)
{
    struct launch_mpirun *l = (struct launch_mpirun *)base;
    struct child *c = child_create(l, rq);

    c->process = *process;
    if (watch_pidfd(c, process->pid ? proc_open(process) : -1) < 0)
        begin_sweep(c, (struct launch_exit){.known = false});
}

static enum launch_found find(struct launcher *base, const struct launch_request *rq,
                              struct job_process *process)
{
    char *env = xasprintf("%s=%s", PROGRESS_ENV_TOKEN, rq->token);
    struct proc_family f = {.env = env};
    enum launch_found found = LAUNCH_GONE;

    (void)base;
    if (proc_find_leader(env, process) == 0)
        found = LAUNCH_FOUND;
    else if (proc_signal_family(&f, 0) > 0)
        found = LAUNCH_ORPHANS;
    free(env);
    return found;
}

static void send_signal(struct launcher *base, int64_t job, int signo)
{
    struct child *c = child_find((struct launch_mpirun *)base, job);

    if (!c)
        return;
    if (signo == SIGKILL)
        kill_family(c);
    else if (c->pidfd >= 0)
        syscall(SYS_pidfd_send_signal, c->pidfd, signo, NULL, 0);
}

static void destroy(struct launcher *base)
{
    struct launch_mpirun *l = (struct launch_mpirun *)base;

    while (l->children) {
        struct child *c = l->children;
        l->children = c->next;
        if (c->ended)
            kill_family(c);
        c->owner = NULL;
        child_close(c);
    }
    free(l);
}

static const struct launcher_ops ops = {
    .name = "mpirun",
    .start = start,
    .adopt = adopt,
    .find = find,
    .signal = send_signal,
    .destroy = destroy,
};

struct launcher *launch_mpirun_create(const struct launch_mpirun_config *config)
{
    struct launch_mpirun *l = xcalloc(1, sizeof *l);

    l->base.ops = &ops;
    l->cfg = *config;
    return &l->base;
}
