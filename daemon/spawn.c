/* spawn - see spawn.h.
 *
 * Between fork and exec the child makes system calls only: other threads (of the C library's look-ups) may
 * have held any lock. What fails there is told through a pipe that the exec closes: its end without a word is
 * success. All signals are blocked over the fork, so that none runs the parent's handlers in the child.
 */
#include "daemon/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { USERS_UMASK = 027 };

/* What the child could not do. */
struct word {
    char what[16];
    int why;
};

static void fail(int to, const char *what, int why)
{
    struct word w = {.why = why};

    strncpy(w.what, what, sizeof w.what - 1);
    if (write(to, &w, sizeof w) < 0) {
        /* Then the parent sees a program that has ended at once. */
    }
    _exit(127);
}

static void reset_signals(void)
{
    sigset_t none;

    for (int n = 1; n < NSIG; n++)
        signal(n, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Root may set all three ids of each kind; afterwards nothing leads back. */
static void become(const struct identity *who, int to)
{
    uid_t r, e, s;
    gid_t rg, eg, sg;

    if (setgroups((size_t)who->n_groups, who->groups) < 0)
        fail(to, "setgroups", errno);
    if (setresgid(who->gid, who->gid, who->gid) < 0)
        fail(to, "setgid", errno);
    if (setresuid(who->uid, who->uid, who->uid) < 0)
        fail(to, "setuid", errno);
    if (getresuid(&r, &e, &s) < 0 || r != who->uid || e != who->uid || s != who->uid ||
        getresgid(&rg, &eg, &sg) < 0 || rg != who->gid || eg != who->gid || sg != who->gid ||
        getgroups(0, NULL) != who->n_groups)
        fail(to, "becoming user", EPERM);
    if (who->uid != 0 && (setuid(0) == 0 || setgid(0) == 0 || seteuid(0) == 0))
        fail(to, "staying user", EPERM);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        fail(to, "no_new_privs", errno);
    umask(USERS_UMASK);
}

static void child(const struct spawn *s, int to)
{
    int null = open("/dev/null", O_RDONLY);

    setsid();
    if (null < 0 || dup2(null, 0) < 0 || dup2(s->out_fd, 1) < 0 || dup2(s->out_fd, 2) < 0)
        fail(to, "redirecting", errno);
    if (close_range(3, UINT_MAX, CLOSE_RANGE_CLOEXEC) < 0)
        fail(to, "close_range", errno);
    if (s->as)
        become(s->as, to);
    if (chdir(s->cwd) < 0)
        fail(to, "chdir", errno);
    reset_signals();
    execve(s->file, s->args, s->env);
    fail(to, "exec", errno);
}

/* Waits for the child's word; NULL what: it said nothing. */
static bool listen_to(int from, struct word *w)
{
    ssize_t n;

    do
        n = read(from, w, sizeof *w);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof *w;
}

int spawn_start(const struct spawn *s, pid_t *pid, struct err *e)
{
    sigset_t all, before;
    struct word w;
    int pair[2];

    if (pipe2(pair, O_CLOEXEC) < 0)
        return err_set_errno(e, "pipe");
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    pid_t it = fork();
    if (it == 0)
        child(s, pair[1]);
    int why = errno;
    sigprocmask(SIG_SETMASK, &before, NULL);
    close(pair[1]);
    bool failed = it > 0 && listen_to(pair[0], &w);
    close(pair[0]);
    if (it < 0)
        return err_set(e, "fork: %s", strerror(why));
    if (failed) {
        waitpid(it, NULL, 0);
        if (s->as)
            return err_set(e, "starting %s as user %s: %.15s: %s", s->file, s->as->name, w.what,
                           strerror(w.why));
        return err_set(e, "starting %s: %.15s: %s", s->file, w.what, strerror(w.why));
    }
    *pid = it;
    return 0;
}
