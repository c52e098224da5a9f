/* proc - see proc.h. */
#include "daemon/proc.h"
#include "common/buf.h"
#include "common/fsutil.h"

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_ENVIRON_BYTES = 4 << 20, EXEC_LOOKS = 50, EXEC_LOOK_US = 1000 };

struct stat_line {
    char state;
    int64_t session, start_ticks;
    uint64_t memory_bytes;       /* virtual; 0: a thread of the kernel */
    uint64_t env_start, env_end; /* addresses of its environment; 0: none yet, or not ours to see */
};

/* The fields of /proc/PID/stat that matter. The name in parentheses may itself hold blanks and parentheses.
 */
static int read_stat(int64_t pid, struct stat_line *out)
{
    char path[64], *text, *p;
    size_t len;
    long long session, start;
    unsigned long long memory, env_start, env_end;

    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    if (fs_read_file(path, 65536, &text, &len, NULL) < 0)
        return -1;
    p = strrchr(text, ')');
    int n =
        p ? sscanf(
                p + 1,
                " %c %*d %*d %lld %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %lld" /* 22 */
                " %llu %*d %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*d"                 /* 38 */
                " %*d %*u %*u %*u %*u %*d %*u %*u %*u %*u %*u %llu %llu",
                &out->state, &session, &start, &memory, &env_start, &env_end)
          : 0;
    free(text);
    if (n != 6)
        return -1;
    out->session = session;
    out->start_ticks = start;
    out->memory_bytes = memory;
    out->env_start = env_start;
    out->env_end = env_end;
    return out->state == 'Z' || out->state == 'X' ? -1 : 0;
}

static void read_boot_id(char out[JOB_BOOT_ID_BYTES])
{
    char *text;
    size_t len;

    out[0] = 0;
    if (fs_read_file("/proc/sys/kernel/random/boot_id", 4096, &text, &len, NULL) < 0)
        return;
    snprintf(out, JOB_BOOT_ID_BYTES, "%.*s", (int)strcspn(text, "\n"), text);
    free(text);
}

int proc_identify(int64_t pid, struct job_process *out)
{
    struct stat_line st;

    if (pid <= 0 || read_stat(pid, &st) < 0)
        return -1;
    *out = (struct job_process){.pid = pid, .start_ticks = st.start_ticks};
    read_boot_id(out->boot_id);
    return 0;
}

bool proc_alive(const struct job_process *p)
{
    struct job_process now;

    return proc_identify(p->pid, &now) == 0 && now.start_ticks == p->start_ticks &&
           strcmp(now.boot_id, p->boot_id) == 0;
}

char proc_state(const struct job_process *p)
{
    struct stat_line st;

    if (!proc_alive(p) || read_stat(p->pid, &st) < 0 || st.start_ticks != p->start_ticks)
        return 0;
    return st.state;
}

int proc_open(const struct job_process *p)
{
    int fd = (int)syscall(SYS_pidfd_open, (pid_t)p->pid, 0);

    if (fd >= 0 && !proc_alive(p)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* While a program is put in place of another its environment is empty, for a moment even by its addresses.
 * Only what is so at the same address twice has none; a thread of the kernel, which has no memory, never has.
 */
static bool has_no_environ(int64_t pid, uint64_t *empty_at)
{
    struct stat_line st;

    if (read_stat(pid, &st) < 0 || st.memory_bytes == 0)
        return true;
    if (!st.env_start || st.env_start != st.env_end)
        return false;
    bool again = *empty_at == st.env_start;
    *empty_at = st.env_start;
    return again;
}

static bool environ_has(int64_t pid, const char *env)
{
    char path[64], *text;
    size_t len = 0, n = strlen(env);
    uint64_t empty_at = 0;
    bool found = false;

    snprintf(path, sizeof path, "/proc/%lld/environ", (long long)pid);
    for (int look = 0; look < EXEC_LOOKS; look++) {
        if (fs_read_file(path, MAX_ENVIRON_BYTES, &text, &len, NULL) < 0)
            return false;
        for (size_t at = 0; at < len && !found; at += strlen(text + at) + 1)
            found = strncmp(text + at, env, n) == 0 && text[at + n] == 0;
        free(text);
        if (len > 0 || has_no_environ(pid, &empty_at))
            return found;
        usleep(EXEC_LOOK_US);
    }
    return false;
}

typedef bool visit_fn(void *ctx, int64_t pid, const struct stat_line *st);

/* Calls fn for every living process until it returns true. */
static void each_process(visit_fn *fn, void *ctx)
{
    DIR *d = opendir("/proc");
    struct dirent *ent;
    struct stat_line st;

    if (!d)
        return;
    while ((ent = readdir(d))) {
        if (!isdigit((unsigned char)ent->d_name[0]))
            continue;
        int64_t pid = strtoll(ent->d_name, NULL, 10);
        if (read_stat(pid, &st) == 0 && fn(ctx, pid, &st))
            break;
    }
    closedir(d);
}

struct hunt {
    const struct proc_family *family;
    bool session_is_ours;
    int signo, n;
    struct job_process *found;
};

static bool belongs(const struct hunt *h, int64_t pid, const struct stat_line *st)
{
    const struct job_process *leader = &h->family->leader;

    if (pid == getpid())
        return false;
    if (h->session_is_ours && st->session == leader->pid && st->start_ticks >= leader->start_ticks)
        return true;
    return h->family->env && environ_has(pid, h->family->env);
}

static bool signal_member(void *ctx, int64_t pid, const struct stat_line *st)
{
    struct hunt *h = ctx;
    struct stat_line now;

    if (!belongs(h, pid, st))
        return false;
    h->n++;
    if (!h->signo)
        return false;
    int fd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
    if (fd < 0)
        return false;
    if (read_stat(pid, &now) == 0 && now.start_ticks == st->start_ticks)
        syscall(SYS_pidfd_send_signal, fd, h->signo, NULL, 0);
    close(fd);
    return false;
}

/* A session keeps its number while it has members. If the leader's pid belongs to another process now, the
 * session of that number is another one too; likewise after a reboot. */
static bool session_is_ours(const struct job_process *leader)
{
    struct stat_line st;
    char boot_id[JOB_BOOT_ID_BYTES];

    if (!leader->pid)
        return false;
    read_boot_id(boot_id);
    if (strcmp(boot_id, leader->boot_id) != 0)
        return false;
    return read_stat(leader->pid, &st) < 0 || st.start_ticks == leader->start_ticks;
}

int proc_signal_family(const struct proc_family *f, int signo)
{
    struct hunt h = {.family = f, .session_is_ours = session_is_ours(&f->leader), .signo = signo};

    each_process(signal_member, &h);
    return h.n;
}

static bool look_for_leader(void *ctx, int64_t pid, const struct stat_line *st)
{
    struct hunt *h = ctx;

    if (st->session != pid || pid == getpid() || !environ_has(pid, h->family->env))
        return false;
    if (!h->n || st->start_ticks < h->found->start_ticks)
        h->n = proc_identify(pid, h->found) == 0;
    return false;
}

int proc_find_leader(const char *env, struct job_process *out)
{
    struct proc_family f = {.env = env};
    struct hunt h = {.family = &f, .found = out};

    each_process(look_for_leader, &h);
    return h.n ? 0 : -1;
}
