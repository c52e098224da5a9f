/* rundir - see rundir.h. */
#include "worker/train/rundir.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include "common/fsutil.h"
#include "common/json.h"

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

int rundir_claim(const char *dir, bool resume, struct err *e)
{
    if (!resume && refuse_other_run(dir, e) < 0)
        return -1;
    char *log = fs_join(dir, "log");
    int rc = fs_mkdir_p(log, e);
    free(log);
    return rc < 0 ? err_wrap(e, "run directory %s", dir) : 0;
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
