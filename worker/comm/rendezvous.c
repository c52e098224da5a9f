/* rendezvous - see rendezvous.h. Files in dir: NAME.blob, and NAME.<rank> for each rank but 0. They are
 * looked for by opening them, which makes network file systems ask their server. */
#include "worker/comm/rendezvous.h"
#include "common/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

static int env_int(const char *name, int *out, struct err *e)
{
    const char *text = getenv(name);
    char *end;
    long v;

    if (!text || !*text)
        return err_set(e, "%s is not set: is this a Slurm job step?", name);
    v = strtol(text, &end, 10);
    if (*end || v < 0 || v > 1 << 24)
        return err_set(e, "%s=%s is not a number of ranks", name, text);
    *out = (int)v;
    return 0;
}

int rendezvous_from_slurm(struct rendezvous *r, char name_out[128], struct err *e)
{
    const char *job = getenv("SLURM_JOB_ID"), *step = getenv("SLURM_STEP_ID");
    const char *restart = getenv("SLURM_RESTART_COUNT");

    if (env_int("SLURM_PROCID", &r->rank, e) < 0 || env_int("SLURM_NTASKS", &r->size, e) < 0)
        return -1;
    if (!job)
        return err_set(e, "SLURM_JOB_ID is not set: is this a Slurm job step?");
    if (r->rank >= r->size)
        return err_set(e, "SLURM_PROCID=%d of SLURM_NTASKS=%d", r->rank, r->size);
    if (snprintf(name_out, 128, "nccl-%s.%s.%s", job, step ? step : "0", restart ? restart : "0") >= 128 ||
        strchr(name_out, '/'))
        return err_set(e, "SLURM_JOB_ID=%s is not a job's number", job);
    r->name = name_out;
    return 0;
}

/* Makes the file appear with its content at once. */
static int publish(const char *path, const void *data, size_t bytes, struct err *e)
{
    char temporary[PATH_BYTES + 8];
    FILE *f;
    bool ok;

    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    f = fopen(temporary, "wb");
    if (!f)
        return err_set_errno(e, "rendezvous: %s", temporary);
    ok = fwrite(data, 1, bytes, f) == bytes && fflush(f) == 0 && fsync(fileno(f)) == 0;
    ok = fclose(f) == 0 && ok;
    if (!ok || rename(temporary, path) < 0) {
        err_set_errno(e, "rendezvous: %s", path);
        unlink(temporary);
        return -1;
    }
    return 0;
}

/* 1: read; 0: not there yet. */
static int try_read(const char *path, void *data, size_t bytes, struct err *e)
{
    FILE *f = fopen(path, "rb");
    size_t n;

    if (!f)
        return errno == ENOENT || errno == ESTALE ? 0 : err_set_errno(e, "rendezvous: %s", path);
    n = fread(data, 1, bytes, f);
    fclose(f);
    return n == bytes ? 1 : err_set(e, "rendezvous: %s has %zu bytes, not %zu", path, n, bytes);
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
        char path[PATH_BYTES], c;

        if (here[i])
            continue;
        if (path_of_rank(r, i, path, e) < 0)
            return -1;
        switch (try_read(path, &c, 1, e)) {
        case 1:
            here[i] = true;
            break;
        case 0:
            missing++;
            break;
        default:
            return -1;
        }
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
    return err_set_kind(e, ERR_PEER_LOST, "rendezvous in %s: %d of %d ranks did not come within %d s: %s%s",
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

static int share_root(const struct rendezvous *r, const void *blob, size_t bytes, struct err *e)
{
    bool *here = xcalloc((size_t)r->size, sizeof *here);
    int rc = wait_for_all(r, here, e);
    char path[PATH_BYTES];

    free(here);
    if (rc < 0 || path_of(r, "blob", path, e) < 0 || publish(path, blob, bytes, e) < 0)
        return -1;
    for (int i = 1; i < r->size; i++)
        if (path_of_rank(r, i, path, NULL) == 0)
            unlink(path);
    return 0;
}

static int wait_for_blob(const struct rendezvous *r, const char *path, void *blob, size_t bytes,
                         struct err *e)
{
    const int64_t start = clock_mono_ns();

    for (;;) {
        int rc = try_read(path, blob, bytes, e);

        if (rc)
            return rc < 0 ? -1 : 0;
        if (late(r, start))
            return err_set_kind(e, ERR_PEER_LOST,
                                "rendezvous in %s: rank %d waited %d s for rank 0 to see all %d ranks",
                                r->dir, r->rank, r->timeout_ms / 1000, r->size);
        nap();
    }
}

static int share_other(const struct rendezvous *r, void *blob, size_t bytes, struct err *e)
{
    char own[PATH_BYTES], path[PATH_BYTES];
    int rc;

    if (path_of_rank(r, r->rank, own, e) < 0 || path_of(r, "blob", path, e) < 0 ||
        publish(own, "x", 1, e) < 0)
        return -1;
    rc = wait_for_blob(r, path, blob, bytes, e);
    if (rc < 0)
        unlink(own); /* rank 0 removes those it has seen */
    return rc;
}

int rendezvous_share(const struct rendezvous *r, void *blob, size_t bytes, struct err *e)
{
    return r->rank == 0 ? share_root(r, blob, bytes, e) : share_other(r, blob, bytes, e);
}

void rendezvous_clean(const struct rendezvous *r)
{
    char path[PATH_BYTES];

    if (r->rank == 0 && path_of(r, "blob", path, NULL) == 0)
        unlink(path);
}
