/* private_daemon - see private_daemon.h.
 *
 * The lifeline is a pipe: its read end is the daemon's stdin, its write end is ours alone (close-on-exec).
 * However we die, the kernel closes it, and the daemon then stops its job and exits; so nothing is left
 * behind even by a SIGKILL.
 *
 * A socket's path holds about 107 bytes. Where the state directory is deeper, the socket alone moves to a
 * fresh directory under /tmp that only we may enter.
 */
#include "cli/private_daemon.h"
#include "cli/child.h"
#include "common/clock.h"
#include "common/fsutil.h"
#include "proto/client.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { START_MS = 20000, STOP_MS = 60000, KILL_MS = 5000, POLL_MS = 20 };

struct private_daemon {
    pid_t pid;
    int lifeline;    /* write end; -1 once closed */
    char *address;   /* "unix:…" */
    char *log;       /* path of its stderr */
    char *short_dir; /* holds the socket when the state directory's path is too long; else NULL */
};

static void free_daemon(struct private_daemon *d)
{
    if (d->lifeline >= 0)
        close(d->lifeline);
    if (d->short_dir)
        fs_remove_tree(d->short_dir, NULL);
    free(d->address);
    free(d->log);
    free(d->short_dir);
    free(d);
}

static int choose_address(struct private_daemon *d, const char *state_dir, struct err *e)
{
    struct sockaddr_un sa;

    d->address = xasprintf("unix:%s/batchformer.sock", state_dir);
    if (strlen(d->address) - strlen("unix:") < sizeof sa.sun_path)
        return 0;
    d->short_dir = xstrdup("/tmp/batchformer-XXXXXX");
    if (!mkdtemp(d->short_dir)) {
        free(d->short_dir);
        d->short_dir = NULL;
        return err_set_errno(e, "making a directory for the socket in /tmp");
    }
    free(d->address);
    d->address = xasprintf("unix:%s/batchformer.sock", d->short_dir);
    return 0;
}

static int start_process(struct private_daemon *d, const char *state_dir, int slots, struct err *e)
{
    char *dir = fs_self_dir(), *program = fs_join(dir, "batchformerd"), slots_text[16];
    const char *listen = d->address;
    int lifeline[2] = {-1, -1}, log = -1, rc = -1;

    snprintf(slots_text, sizeof slots_text, "%d", slots);
    if (access(program, X_OK) < 0) {
        err_set(e, "the coordinator batchformerd was not found beside bfctl (%s): %s", program,
                strerror(errno));
        goto out;
    }
    log = open(d->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (log < 0) {
        err_set_errno(e, "%s", d->log);
        goto out;
    }
    if (pipe2(lifeline, O_CLOEXEC) < 0) {
        err_set_errno(e, "pipe");
        goto out;
    }
    const char *const argv[] = {program,   "--state-dir", state_dir,    "--listen", listen,
                                "--slots", slots_text,    "--lifeline", NULL};
    rc = child_start(program, (char *const *)(uintptr_t)argv, environ, lifeline[0], log, &d->pid, e);
    if (rc == 0) {
        d->lifeline = lifeline[1];
        lifeline[1] = -1;
    }
out:
    if (lifeline[0] >= 0)
        close(lifeline[0]);
    if (lifeline[1] >= 0)
        close(lifeline[1]);
    if (log >= 0)
        close(log);
    free(program);
    free(dir);
    return rc;
}

static void sleep_ms(int ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};

    nanosleep(&t, NULL);
}

static int wait_until_it_answers(struct private_daemon *d, struct err *e)
{
    int64_t deadline = clock_mono_ns() + (int64_t)START_MS * 1000000;
    char line[512];

    for (;;) {
        struct err ignored;
        struct client *c = client_connect(d->address, &ignored);
        if (c) {
            cJSON *info = client_call(c, "daemon.info", NULL, START_MS, NULL, e);
            client_close(c);
            cJSON_Delete(info);
            return info ? 0 : err_wrap(e, "the private coordinator does not answer");
        }
        if (child_reap(&d->pid, NULL, 0)) {
            child_last_lines(d->log, 1, line, sizeof line);
            return err_set(e, "the private coordinator did not start: %s (log: %s)", line, d->log);
        }
        if (clock_mono_ns() >= deadline)
            return err_set(e, "the private coordinator did not answer within %d s (log: %s)", START_MS / 1000,
                           d->log);
        sleep_ms(POLL_MS);
    }
}

struct private_daemon *private_daemon_start(const char *state_dir, int slots, struct err *e)
{
    char full[PATH_MAX];

    if (fs_mkdir_p(state_dir, e) < 0)
        return NULL;
    if (!realpath(state_dir, full)) {
        err_set_errno(e, "%s", state_dir);
        return NULL;
    }
    struct private_daemon *d = xcalloc(1, sizeof *d);
    d->lifeline = -1;
    d->log = fs_join(full, "batchformerd.log");
    if (choose_address(d, full, e) < 0 || start_process(d, full, slots, e) < 0) {
        free_daemon(d);
        return NULL;
    }
    if (wait_until_it_answers(d, e) < 0) {
        private_daemon_stop(d, true);
        return NULL;
    }
    return d;
}

const char *private_daemon_address(const struct private_daemon *d)
{
    return d->address;
}

const char *private_daemon_log(const struct private_daemon *d)
{
    return d->log;
}

void private_daemon_stop(struct private_daemon *d, bool wait)
{
    if (!d)
        return;
    close(d->lifeline);
    d->lifeline = -1;
    if (wait && !child_reap(&d->pid, NULL, STOP_MS)) {
        kill(d->pid, SIGTERM);
        if (!child_reap(&d->pid, NULL, KILL_MS)) {
            kill(d->pid, SIGKILL);
            child_reap(&d->pid, NULL, KILL_MS);
        }
    }
    free_daemon(d);
}
