/* child - see child.h. */
#include "cli/child.h"
#include "cli/output.h"
#include "common/clock.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { POLL_MS = 20, KILL_SESSION_MS = 5000, LOG_TAIL_BYTES = 4096 };

int child_start(const char *program, char *const argv[], char *const env[], int in, int log, pid_t *pid,
                struct err *e)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none;

    sigemptyset(&none);
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attr);
    posix_spawn_file_actions_adddup2(&files, in, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&files, log, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&files, log, STDERR_FILENO);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
    int rc = posix_spawn(pid, program, &files, &attr, argv, env);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&files);
    errno = rc;
    return rc ? err_set_errno(e, "starting %s", program) : 0;
}

bool child_reap(pid_t *pid, int *status, int timeout_ms)
{
    int64_t deadline = clock_mono_ns() + (int64_t)timeout_ms * 1000000;

    while (*pid > 0) {
        if (waitpid(*pid, status, WNOHANG) != 0) {
            *pid = 0;
            break;
        }
        if (clock_mono_ns() >= deadline)
            return false;
        nanosleep(&(struct timespec){0, POLL_MS * 1000000L}, NULL);
    }
    return true;
}

/* Is it a living process of that session? /proc/PID/stat: "pid (name) state ppid pgrp session …". */
static bool lives_in_session(const char *pid, pid_t session)
{
    char path[64], text[512], state;
    int found;

    snprintf(path, sizeof path, "/proc/%.20s/stat", pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    const char *after_name = strrchr(text, ')');
    return after_name && sscanf(after_name, ") %c %*d %*d %d", &state, &found) == 2 && found == session &&
           state != 'Z' && state != 'X';
}

void child_kill_session(pid_t leader)
{
    int64_t deadline = clock_mono_ns() + KILL_SESSION_MS * INT64_C(1000000);

    for (int n_left = 1; n_left > 0 && clock_mono_ns() < deadline;) {
        DIR *d = opendir("/proc");
        n_left = 0;
        for (struct dirent *ent; d && (ent = readdir(d));) {
            if (*ent->d_name < '1' || *ent->d_name > '9' || !lives_in_session(ent->d_name, leader))
                continue;
            kill((pid_t)strtol(ent->d_name, NULL, 10), SIGKILL);
            n_left++;
        }
        if (d)
            closedir(d);
        if (n_left)
            nanosleep(&(struct timespec){0, POLL_MS * 1000000L}, NULL);
    }
}

void child_last_lines(const char *log, int n, char *out, size_t cap)
{
    char tail[LOG_TAIL_BYTES + 1];
    FILE *f = fopen(log, "r");
    size_t len = 0, used = 0;

    if (f) {
        if (fseek(f, -LOG_TAIL_BYTES, SEEK_END) < 0)
            rewind(f);
        len = fread(tail, 1, LOG_TAIL_BYTES, f);
        fclose(f);
    }
    while (len && tail[len - 1] == '\n')
        len--;
    tail[len] = 0;
    char *from = tail + len;
    for (int found = 0; from > tail; from--)
        if (from[-1] == '\n' && ++found == n)
            break;
    *out = 0;
    for (char *line = from; line && used + 1 < cap;) {
        char *next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        output_text(out + used, cap - used, line);
        used += strlen(out + used);
        if (next && used + 1 < cap)
            out[used++] = '\n';
        line = next;
    }
    out[used] = 0;
    if (!len)
        output_text(out, cap, "it wrote nothing");
}
