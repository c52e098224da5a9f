/* plans - see plans.h. */
#include "worker/train/plans.h"

#include <stdlib.h>
#include <string.h>
#include "common/fsutil.h"
#include "worker/train/agree.h"

enum { TEXT_MAX_BYTES = 16 << 20 };

static char *file_of(const char *run_dir)
{
    return fs_join(run_dir, "plans.json");
}

static int load(struct tuning *t, const char *run_dir, struct err *e)
{
    char *path = file_of(run_dir);
    int rc = 0;

    if (fs_exists(path) && (rc = tuning_load(t, path, e)) < 0)
        err_wrap(e, "the engines that this run computes with are not known (without the file they are chosen "
                    "anew)");
    free(path);
    return rc;
}

struct tuning *plans_open(struct comm *comm, const char *run_dir, bool resume, const struct log *log,
                          struct err *e)
{
    struct tuning *t = tuning_create(comm->rank == 0, log);
    int rc = comm->rank == 0 && resume ? load(t, run_dir, e) : 0;

    if (agree_outcome_rank0(comm, rc, e) == 0)
        return t;
    tuning_destroy(t);
    return NULL;
}

int plans_share(struct tuning *t, struct comm *comm, struct err *e)
{
    char *text = comm->rank == 0 ? tuning_text(t) : NULL;
    int64_t len = text ? (int64_t)strlen(text) : 0;
    int rc = comm_broadcast(comm, &len, sizeof len, 0, e);

    if (rc == 0 && !text)
        text = xmalloc((size_t)len + 1);
    if (rc == 0)
        rc = comm_broadcast(comm, text, (size_t)len, 0, e);
    if (rc == 0 && comm->rank != 0) {
        struct err ours = ERR_INIT;
        ASSERT(tuning_parse(t, text, (size_t)len, &ours) == 0); /* rank 0 has just written it */
    }
    free(text);
    return rc < 0 ? err_wrap(e, "sharing the choice of engines") : 0;
}

static void tell(const struct tuning *t, int rank, const struct log *log)
{
    const struct tuning_counts n = tuning_counts(t);
    const bool others = tuning_size(t) > n.chosen; /* than were chosen by this process */

    if (rank > 0 && n.missed > 0)
        log_warn(log,
                 "engines: %d as rank 0 chose; for %d, which rank 0 does not know (is this another kind of "
                 "GPU?) or which are not offered here, the library's first",
                 n.found, n.missed);
    else if (rank > 0)
        log_info(log, "engines: %d, all as rank 0 chose", n.found);
    else if (n.found == 0 && n.chosen > 0 && others)
        log_info(
            log,
            "engines: plans.json has none for this kind of GPU, this library and this number of rows: %d "
            "chosen anew, and the run goes on with other bits",
            n.chosen);
    else
        log_info(log, "engines: %d as plans.json says, %d chosen now", n.found, n.chosen);
}

static bool file_says_same(const char *path, const struct tuning *t)
{
    char *there, *text;
    size_t len;

    if (!fs_exists(path) || fs_read_file(path, TEXT_MAX_BYTES, &there, &len, NULL) < 0)
        return false;
    text = tuning_text(t);
    bool same = strcmp(there, text) == 0;
    free(text);
    free(there);
    return same;
}

int plans_close(const struct tuning *t, int rank, const char *run_dir, const struct log *log, struct err *e)
{
    tell(t, rank, log);
    if (rank > 0)
        return 0;
    char *path = file_of(run_dir);
    int rc = file_says_same(path, t) ? 0 : tuning_save(t, path, e);
    free(path);
    return rc;
}
