/* state_dir - see state_dir.h. */
#include "daemon/state_dir.h"
#include "common/fsutil.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static int make_private_dir(const char *path, struct err *e)
{
    if (fs_exists(path))
        return fs_mkdir_p(path, e); /* says so if it is a file */
    if (fs_mkdir_p(path, e) < 0)
        return -1;
    return chmod(path, 0700) < 0 ? err_set_errno(e, "chmod of %s", path) : 0;
}

/* The database holds the tokens of attempts, and its directory may be one that others may pass through. Files
 * of before may have another mode than those that are made now (open_store in daemon.c). */
static int make_database_private(const char *dir, struct err *e)
{
    static const char *const names[] = {"state.db", "state.db-wal", "state.db-shm"};
    int rc = 0;

    for (size_t i = 0; i < sizeof names / sizeof *names && rc == 0; i++) {
        char *path = fs_join(dir, names[i]);
        struct stat st;
        if (lstat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_mode & 0077 && chmod(path, 0600) < 0)
            rc = err_set_errno(e, "chmod of %s", path);
        free(path);
    }
    return rc;
}

static int write_pid(int fd, const char *path, struct err *e)
{
    char text[32];
    int n = snprintf(text, sizeof text, "%ld\n", (long)getpid());

    if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)n, 0) != n)
        return err_set_errno(e, "writing %s", path);
    return 0;
}

/* Locks an open lock file and writes our pid into it. */
static int take(int fd, const char *lock, const char *dir, struct err *e)
{
    char pid[32] = "";

    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return write_pid(fd, lock, e);
    if (errno != EWOULDBLOCK)
        return err_set_errno(e, "locking %s", lock);
    ssize_t n = pread(fd, pid, sizeof pid - 1, 0);
    pid[n > 0 ? strcspn(pid, "\n") : 0] = 0;
    return err_set(e, "another batchformerd (pid %s) already works in %s", *pid ? pid : "unknown", dir);
}

int state_dir_lock(const char *path, struct err *e)
{
    if (make_private_dir(path, e) < 0)
        return -1;
    char *lock = fs_join(path, "lock");
    int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    int rc = fd < 0 ? err_set_errno(e, "%s", lock) : take(fd, lock, path, e);

    if (rc == 0)
        rc = make_database_private(path, e);
    free(lock);
    if (rc < 0 && fd >= 0)
        close(fd);
    return rc < 0 ? -1 : fd;
}

int state_dir_lock_to_check(const char *path, int *fd, struct err *e)
{
    char *lock = fs_join(path, "lock");
    int rc = 0;

    *fd = open(lock, O_RDWR | O_CLOEXEC);
    if (*fd >= 0)
        rc = take(*fd, lock, path, e);
    else if (errno != ENOENT || !fs_exists(path))
        rc = err_set_errno(e, "%s", fs_exists(path) ? lock : path);
    if (rc < 0 && *fd >= 0)
        close(*fd);
    free(lock);
    return rc;
}
