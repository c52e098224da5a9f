/* rendezvous - see rendezvous.h. Files in dir: NAME.blob, and NAME.<rank> for each rank but 0. They are
 * looked for by opening them, which makes network file systems ask their server. */
#include "worker/comm/rendezvous.h"
#include "common/clock.h"
#include "common/fsutil.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, POLL_MS = 20, NAMED_RANKS = 8 };

static int path_of(const struct rendezvous *r, const char *suffix, char out[PATH_BYTES], struct err *e)
{
    const int n = snprintf(out, PATH_BYTES, "%s/%s.%s", r->dir, r->name, suffix);

    return n < PATH_BYTES ? 0 : err_set(e, "rendezvous: the path %s/%s is too long", r->dir, r->name);
}

static int path_of_rank(const struct rendezvous *r, int rank, char out[PATH_BYTES], struct err *e)
{
    char suffix[32];

    snprintf(suffix, sizeof suffix, "%d", rank);
    return path_of(r, suffix, out, e);
}

/* Makes the file appear with its content at once, for its owner alone. */
static int publish(struct rendezvous *r, const char *path, const void *data, size_t bytes, struct err *e)
{
    char temporary[PATH_BYTES + 8];
    struct stat st;
    int fd, rc;

    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    unlink(temporary); /* of an accident; what is made anew has our mode */
    fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set_errno(e, "rendezvous: %s", temporary);
    rc = fs_write_all(fd, data, bytes, e);
    if (rc == 0 && (fsync(fd) < 0 || fstat(fd, &st) < 0))
        rc = err_set_errno(e, "rendezvous: %s", temporary);
    if (close(fd) < 0 && rc == 0)
        rc = err_set_errno(e, "rendezvous: %s", temporary);
    if (rc == 0 && rename(temporary, path) < 0)
        rc = err_set_errno(e, "rendezvous: %s", path);
    if (rc < 0)
        unlink(temporary);
    else
        r->owner = st.st_uid;
    return rc;
}

static int check_private(const struct rendezvous *r, const char *path, int fd, struct err *e)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return err_set_errno(e, "rendezvous: %s", path);
    if (!S_ISREG(st.st_mode) || st.st_uid != r->owner || st.st_mode & 077)
        return err_set(e,
                       "rendezvous: %s has owner %ld and mode %03o; a file of owner %ld that nobody else may "
                       "read is accepted",
                       path, (long)st.st_uid, (unsigned)st.st_mode & 0777, (long)r->owner);
    return 0;
}

/* 1: it is open; 0: not there yet. */
static int try_open(const char *path, int *fd, struct err *e)
{
    *fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (*fd >= 0)
        return 1;
    return errno == ENOENT || errno == ESTALE ? 0 : err_set_errno(e, "rendezvous: %s", path);
}

/* 1: read; 0: it went away. */
static int read_private(const struct rendezvous *r, const char *path, int fd, void *data, size_t bytes,
                        struct err *e)
{
    ssize_t n;

    if (check_private(r, path, fd, e) < 0)
        return -1;
    n = read(fd, data, bytes);
    if (n < 0)
        return errno == ESTALE ? 0 : err_set_errno(e, "rendezvous: %s", path);
    if ((size_t)n != bytes)
        return err_set(e, "rendezvous: %s has %zd bytes, not %zu", path, n, bytes);
    return 1;
}

static bool late(const struct rendezvous *r, int64_t start)
{
    return r->timeout_ms >= 0 && clock_mono_ns() - start > r->timeout_ms * 1000000LL;
}

static void nap(void)
{
    static const struct timespec t = {0, POLL_MS * 1000000L};

    nanosleep(&t, NULL);
}

/* Sets here[rank] for those whose file is there; the number of the others, or -1. */
static int count_missing(const struct rendezvous *r, bool *here, struct err *e)
{
    int missing = 0;

    for (int i = 1; i < r->size; i++) {
        char path[PATH_BYTES];
        int fd, rc;

        if (here[i])
            continue;
        rc = path_of_rank(r, i, path, e);
        if (rc < 0 || (rc = try_open(path, &fd, e)) < 0)
            return -1;
        if (rc)
            close(fd);
        here[i] = rc;
        missing += !rc;
    }
    return missing;
}

static int fail_missing(const struct rendezvous *r, const bool *here, int missing, struct err *e)
{
    char list[NAMED_RANKS * 12] = "";
    size_t at = 0;
    int named = 0;

    for (int i = 1; i < r->size && named < NAMED_RANKS; i++)
        if (!here[i])
            at += (size_t)snprintf(list + at, sizeof list - at, "%s%d", named++ ? ", " : "", i);
    return err_set_kind(e, ERR_PEER_LOST,
                        "rendezvous in %s: %d of %d ranks did not come within %d s: %s%s (is the directory "
                        "shared by all hosts?)",
                        r->dir, missing, r->size, r->timeout_ms / 1000, list, missing > named ? ", …" : "");
}

static int wait_for_all(const struct rendezvous *r, bool *here, struct err *e)
{
    const int64_t start = clock_mono_ns();

    for (;;) {
        int missing = count_missing(r, here, e);

        if (missing <= 0)
            return missing;
        if (late(r, start))
            return fail_missing(r, here, missing, e);
        nap();
    }
}

static int share_root(struct rendezvous *r, const void *blob, size_t bytes, struct err *e)
{
    bool *here = xcalloc((size_t)r->size, sizeof *here);
    char path[PATH_BYTES];
    int rc = path_of(r, "blob", path, e);

    if (rc == 0) {
        unlink(path); /* of an earlier meeting of this name that was killed */
        rc = wait_for_all(r, here, e);
    }
    free(here);
    if (rc < 0 || publish(r, path, blob, bytes, e) < 0)
        return -1;
    for (int i = 1; i < r->size; i++)
        if (path_of_rank(r, i, path, NULL) == 0)
            unlink(path);
    return 0;
}

static int wait_for_blob(const struct rendezvous *r, void *blob, size_t bytes, struct err *e)
{
    const int64_t start = clock_mono_ns();

    for (;;) {
        int rc = rendezvous_look(r, blob, bytes, e);

        if (rc)
            return rc < 0 ? -1 : 0;
        if (late(r, start))
            return err_set_kind(e, ERR_PEER_LOST,
                                "rendezvous in %s: rank %d waited %d s for rank 0 to see all %d ranks (is "
                                "the directory shared by all hosts?)",
                                r->dir, r->rank, r->timeout_ms / 1000, r->size);
        nap();
    }
}

static int share_other(struct rendezvous *r, void *blob, size_t bytes, struct err *e)
{
    char own[PATH_BYTES];
    int rc;

    if (path_of_rank(r, r->rank, own, e) < 0 || publish(r, own, "x", 1, e) < 0)
        return -1;
    rc = wait_for_blob(r, blob, bytes, e);
    if (rc < 0)
        unlink(own); /* rank 0 removes those it has seen */
    return rc;
}

int rendezvous_share(struct rendezvous *r, void *blob, size_t bytes, struct err *e)
{
    return r->rank == 0 ? share_root(r, blob, bytes, e) : share_other(r, blob, bytes, e);
}

int rendezvous_look(const struct rendezvous *r, void *blob, size_t bytes, struct err *e)
{
    char path[PATH_BYTES];
    int fd, rc = path_of(r, "blob", path, e);

    if (rc < 0 || (rc = try_open(path, &fd, e)) <= 0)
        return rc;
    rc = read_private(r, path, fd, blob, bytes, e);
    close(fd);
    return rc;
}

void rendezvous_clean(const struct rendezvous *r)
{
    char path[PATH_BYTES];

    if ((r->rank == 0 ? path_of(r, "blob", path, NULL) : path_of_rank(r, r->rank, path, NULL)) == 0)
        unlink(path);
}
