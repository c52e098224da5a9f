/* rundir - see rundir.h. */
#include "worker/train/rundir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/fsutil.h"
#include "common/json.h"

/* Longer than ranks go on without their mpirun; shorter than the other ranks wait for this one. */
enum { CLAIM_WAIT_MS = 60000, LOCK_POLL_MS = 20 };

static int refuse_other_run(const char *dir, struct err *e)
{
    static const char *const traces[] = {"metrics.jsonl", "model.safetensors", "checkpoints"};

    for (size_t i = 0; i < sizeof traces / sizeof *traces; i++) {
        char *path = fs_join(dir, traces[i]);
        bool there = fs_exists(path);
        free(path);
        if (there)
            return err_set(
                e,
                "run directory %s already holds a run (%s is there): give --resume to go on with it, or "
                "another --run-dir",
                dir, traces[i]);
    }
    return 0;
}

static bool holds_same(const char *path, const cJSON *doc)
{
    cJSON *there = fs_exists(path) ? json_read_file(path, 1 << 20, NULL) : NULL;
    bool same = there && cJSON_Compare(there, doc, 1);

    cJSON_Delete(there);
    return same;
}

int rundir_write_spec(const char *dir, const cJSON *resolved, struct err *e)
{
    char *path = fs_join(dir, "job.json");
    int rc = 0;

    if (!holds_same(path, resolved)) {
        char *text = json_text_pretty(resolved);
        rc = fs_atomic_replace(path, text, strlen(text), e);
        free(text);
    }
    free(path);
    return rc < 0 ? err_wrap(e, "run directory %s", dir) : 0;
}

int rundir_begin(const char *dir, const cJSON *resolved, struct err *e)
{
    char *result = fs_join(dir, "result.json");
    int rc = fs_remove_tree(result, e);

    free(result);
    return rc < 0 ? rc : rundir_write_spec(dir, resolved, e);
}

/* 1: ours now. 0: held by another process. -1: the file system has no locks, and nothing is guarded. */
static int try_lock(int fd)
{
    int rc;

    do
        rc = flock(fd, LOCK_EX | LOCK_NB);
    while (rc < 0 && errno == EINTR);
    return rc == 0 ? 1 : errno == EWOULDBLOCK ? 0 : -1;
}

static void read_holder(int fd, char out[32])
{
    ssize_t n = pread(fd, out, 31, 0);

    out[n > 0 ? n : 0] = 0;
    out[strcspn(out, "\n")] = 0;
}

/* Only for messages: a lock without the number is a lock. */
static void write_holder(int fd)
{
    char text[32];
    int n = snprintf(text, sizeof text, "%ld\n", (long)getpid());

    if (ftruncate(fd, 0) == 0 && pwrite(fd, text, (size_t)n, 0) != n)
        (void)!ftruncate(fd, 0);
}

static int wait_for_lock(int fd, const char *dir, int wait_ms, const struct log *console, struct err *e)
{
    static const struct timespec pause = {0, LOCK_POLL_MS * 1000000};
    int64_t deadline = clock_mono_ns() + (int64_t)wait_ms * 1000000;
    char holder[32];
    bool told = false;

    while (try_lock(fd) == 0) {
        read_holder(fd, holder);
        if (clock_mono_ns() >= deadline)
            return err_set(e, "run directory %s is in use by process %s: two runs cannot share one", dir,
                           holder);
        if (!told)
            log_warn(console, "run directory %s is in use by process %s: waiting up to %d s for its end", dir,
                     holder, wait_ms / 1000);
        told = true;
        nanosleep(&pause, NULL);
    }
    return 0;
}

int rundir_lock(const char *dir, int wait_ms, const struct log *console, struct err *e)
{
    char *path = fs_join(dir, "lock");
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);

    if (fd < 0)
        err_set_errno(e, "%s", path);
    free(path);
    if (fd < 0)
        return -1;
    if (wait_for_lock(fd, dir, wait_ms, console, e) < 0) {
        close(fd);
        return -1;
    }
    write_holder(fd);
    return fd;
}

int rundir_claim(const char *dir, bool resume, const struct log *console, struct err *e)
{
    if (!resume && refuse_other_run(dir, e) < 0)
        return -1;
    char *log = fs_join(dir, "log");
    int rc = fs_mkdir_p(log, e);
    free(log);
    if (rc < 0)
        return err_wrap(e, "run directory %s", dir);
    return rundir_lock(dir, resume ? CLAIM_WAIT_MS : 0, console, e);
}

int rundir_open_log(const char *dir, int rank, struct err *e)
{
    char *log = fs_join(dir, "log");
    char *path = xasprintf("%s/rank-%04d.log", log, rank);
    int fd = -1;

    if (fs_mkdir_p(log, e) == 0 && (fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666)) < 0)
        err_set_errno(e, "%s", path);
    free(log);
    free(path);
    return fd;
}
