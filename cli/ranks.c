/* ranks - see ranks.h.
 *
 * Open MPI puts each rank into a process group of its own, so a group cannot be killed as one; but mpirun
 * that gets SIGTERM ends its ranks, and ranks whose mpirun is killed end by themselves.
 */
#include "cli/ranks.h"
#include "cli/child.h"
#include "cli/output.h"
#include "common/fsutil.h"
#include "common/json.h"
#include "common/mpirun.h"
#include "proto/progress.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TERM_MS = 5000, KILL_MS = 5000, MAX_ARGS = 32, WORKER_USAGE = 2, REASON_MAX_BYTES = 64 << 20 };

char *ranks_log(const char *run_dir)
{
    return fs_join(run_dir, "log/launcher.log");
}

bool ranks_signalled(int signal_fd)
{
    struct signalfd_siginfo info;

    return read(signal_fd, &info, sizeof info) == (ssize_t)sizeof info;
}

static char **make_args(const struct ranks *r, const char *mpirun, const char *worker)
{
    /* As the coordinator starts it: without binding, so that few ranks have all cores for their threads. */
    static const char *const fixed[] = {"--oversubscribe", "--bind-to", "none", "-n"};
    char **v = xcalloc(MAX_ARGS, sizeof *v);
    int n = 0;

    v[n++] = xstrdup(mpirun);
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        v[n++] = xstrdup(fixed[i]);
    v[n++] = xasprintf("%d", r->n);
    v[n++] = xstrdup(worker);
    v[n++] = xstrdup("--job");
    v[n++] = fs_join(r->run_dir, "job.json");
    v[n++] = xstrdup("--run-dir");
    v[n++] = xstrdup(r->run_dir);
    v[n++] = xstrdup("--max-steps");
    v[n++] = xasprintf("%lld", (long long)r->max_steps);
    if (r->resume)
        v[n++] = xstrdup("--resume");
    if (r->dump) {
        v[n++] = xstrdup("--dump-step");
        v[n++] = xasprintf("%lld:%s", (long long)r->max_steps, r->dump);
    }
    return v;
}

/* Our own programs and mpirun, or an error that says which is missing. */
static int find_programs(char **mpirun, char **worker, struct err *e)
{
    char *dir = fs_self_dir();

    *worker = fs_join(dir, "batchformer-worker");
    *mpirun = mpirun_find();
    free(dir);
    if (access(*worker, X_OK) < 0)
        return err_set(e, "batchformer-worker was not found beside bfctl (%s): %s", *worker, strerror(errno));
    return *mpirun ? 0 : err_set(e, "mpirun was not found in $PATH: install Open MPI");
}

static int start(const struct ranks *r, pid_t *pid, struct err *e)
{
    /* What a coordinator tells its workers: these have none. */
    static const char *const no_link[] = {PROGRESS_ENV_ADDRESS, PROGRESS_ENV_JOB, PROGRESS_ENV_ATTEMPT,
                                          PROGRESS_ENV_TOKEN};
    char *mpirun, *worker, *log_path = ranks_log(r->run_dir), *log_dir = fs_join(r->run_dir, "log");
    int rc = find_programs(&mpirun, &worker, e), in = -1, log = -1;

    if (rc == 0)
        rc = fs_mkdir_p(log_dir, e);
    if (rc == 0 && (in = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
        rc = err_set_errno(e, "/dev/null");
    if (rc == 0 && (log = open(log_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) < 0)
        rc = err_set_errno(e, "%s", log_path);
    if (rc == 0) {
        char **args = make_args(r, mpirun, worker);
        char **env = mpirun_env(no_link, sizeof no_link / sizeof *no_link);
        rc = child_start(mpirun, args, env, in, log, pid, e);
        mpirun_free(args);
        mpirun_free(env);
    }
    if (in >= 0)
        close(in);
    if (log >= 0)
        close(log);
    free(mpirun);
    free(worker);
    free(log_path);
    free(log_dir);
    return rc;
}

/* Waits for the end of mpirun without reaping it. */
static bool has_ended(int pidfd, int timeout_ms)
{
    struct pollfd fd = {.fd = pidfd, .events = POLLIN};

    return poll(&fd, 1, timeout_ms) > 0;
}

static void stop(pid_t pid, int pidfd)
{
    kill(-pid, SIGTERM);
    if (has_ended(pidfd, TERM_MS))
        return;
    kill(-pid, SIGKILL);
    has_ended(pidfd, KILL_MS);
}

/* Why the worker says it failed; mpirun's exit status when it could not say. */
static void find_reason(const char *run_dir, int exit_status, char *out, size_t cap)
{
    char *result = fs_join(run_dir, "result.json");
    cJSON *doc = fs_exists(result) ? json_read_file(result, REASON_MAX_BYTES, NULL) : NULL;
    const cJSON *status = json_find(doc, "status"), *reason = json_find(doc, "reason");

    if (cJSON_IsString(status) && strcmp(status->valuestring, "failed") == 0 && cJSON_IsString(reason))
        output_text(out, cap, reason->valuestring);
    else
        snprintf(out, cap, "mpirun ended with status %d", exit_status);
    cJSON_Delete(doc);
    free(result);
}

static int judge(const struct ranks *r, int status, struct err *e)
{
    char reason[512];

    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (WIFSIGNALED(status))
        return err_set(e, "mpirun was killed by signal %d (%s)", WTERMSIG(status),
                       strsignal(WTERMSIG(status)));
    find_reason(r->run_dir, WEXITSTATUS(status), reason, sizeof reason);
    return err_set_kind(e, WEXITSTATUS(status) == WORKER_USAGE ? ERR_USAGE : ERR_GENERIC, "%s", reason);
}

int ranks_run(const struct ranks *r, int signal_fd, struct err *e)
{
    pid_t pid = 0;
    int status = 0;

    if (ranks_signalled(signal_fd))
        return err_set_kind(e, ERR_INTERRUPTED, "interrupted");
    if (start(r, &pid, e) < 0)
        return -1;
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0) {
        err_set_errno(e, "pidfd_open");
        kill(-pid, SIGKILL);
        child_kill_session(pid);
        child_reap(&pid, NULL, KILL_MS);
        return -1;
    }
    struct pollfd fds[2] = {{.fd = pidfd, .events = POLLIN}, {.fd = signal_fd, .events = POLLIN}};
    bool interrupted = false;
    while (!interrupted && !fds[0].revents) {
        poll(fds, 2, -1);
        interrupted = ranks_signalled(signal_fd);
    }
    if (interrupted)
        stop(pid, pidfd);
    close(pidfd);
    child_kill_session(pid);
    bool reaped = child_reap(&pid, &status, KILL_MS);
    if (!reaped && !interrupted)
        return err_set(e, "mpirun ended, and its exit status cannot be had");
    return interrupted ? err_set_kind(e, ERR_INTERRUPTED, "interrupted") : judge(r, status, e);
}
