/* run_dir - see run_dir.h. */
#include "daemon/run_dir.h"
#include "common/clock.h"
#include "common/fsutil.h"
#include "common/json.h"
#include "common/step_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_RESULT_BYTES = 16 << 20, TAIL_BYTES = 32768 };

static const char attempt_mark[] = "=== job ";

char *run_dir_path(const char *state_dir, int64_t id)
{
    return xasprintf("%s/runs/%lld", state_dir, (long long)id);
}

char *run_dir_log(const char *run_dir, int64_t rank)
{
    if (rank < 0)
        return xasprintf("%s/log/launcher.log", run_dir);
    return xasprintf("%s/log/rank-%04lld.log", run_dir, (long long)rank);
}

int64_t run_dir_id(const char *name)
{
    static const int64_t max_id = (int64_t)1 << 53; /* what a JSON number holds; more is nobody's id */
    char *end;
    long long id = strtoll(name, &end, 10);

    return end != name && !*end && id > 0 && id < max_id ? id : 0;
}

int64_t run_dir_max_id(const char *state_dir)
{
    char *path = fs_join(state_dir, "runs");
    DIR *d = opendir(path);
    int64_t most = 0;

    for (struct dirent *ent; d && (ent = readdir(d));) {
        int64_t id = run_dir_id(ent->d_name);
        if (id > most)
            most = id;
    }
    if (d)
        closedir(d);
    free(path);
    return most;
}

static int write_spec(const char *run_dir, const char *spec, struct err *e)
{
    char *path = fs_join(run_dir, "job.json");
    cJSON *v = json_parse(spec, strlen(spec), e);
    int rc = -1;

    if (v) {
        char *text = json_text_pretty(v);
        rc = fs_atomic_replace(path, text, strlen(text), e);
        free(text);
        cJSON_Delete(v);
    }
    free(path);
    return rc;
}

static int mark_attempt(const char *run_dir, int64_t id, int64_t attempt, int64_t n_ranks, struct err *e)
{
    char *path = run_dir_log(run_dir, -1), when[32], line[160];
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666), rc;

    clock_iso(clock_wall_ms(), when);
    int n = snprintf(line, sizeof line, "%s%lld, attempt %lld, %lld ranks, %s\n", attempt_mark, (long long)id,
                     (long long)attempt, (long long)n_ranks, when);
    rc = fd < 0 ? err_set_errno(e, "%s", path) : fs_write_all(fd, line, (size_t)n, e);
    if (rc < 0 && fd >= 0)
        err_wrap(e, "%s", path);
    if (fd >= 0)
        close(fd);
    free(path);
    return rc;
}

int run_dir_forget_result(const char *run_dir, struct err *e)
{
    char *path = fs_join(run_dir, "result.json");
    int rc = unlink(path) < 0 && errno != ENOENT ? err_set_errno(e, "removing %s", path) : 0;

    free(path);
    return rc;
}

int run_dir_prepare(const char *run_dir, const char *spec, int64_t id, int64_t attempt, int64_t n_ranks,
                    struct err *e)
{
    char *log = fs_join(run_dir, "log");
    int rc = fs_mkdir_p(log, e);

    free(log);
    if (rc < 0 || write_spec(run_dir, spec, e) < 0 || run_dir_forget_result(run_dir, e) < 0)
        return -1;
    return mark_attempt(run_dir, id, attempt, n_ranks, e);
}

bool run_dir_has_run(const char *run_dir)
{
    static const char *const traces[] = {"metrics.jsonl", "checkpoints", "model.safetensors"};
    bool found = false;

    for (size_t i = 0; i < sizeof traces / sizeof *traces && !found; i++) {
        char *path = fs_join(run_dir, traces[i]);
        found = fs_exists(path);
        free(path);
    }
    return found;
}

int64_t run_dir_checkpoint_step(const char *run_dir)
{
    char *path = fs_join(run_dir, "checkpoints");
    int64_t newest = step_dir_newest(path);

    free(path);
    return newest;
}

int run_dir_result(const char *run_dir, struct run_result *out)
{
    char *path = fs_join(run_dir, "result.json");
    cJSON *v = json_read_file(path, MAX_RESULT_BYTES, NULL);
    const cJSON *status = v ? json_find(v, "status") : NULL, *reason = v ? json_find(v, "reason") : NULL;
    int rc = -1;

    free(path);
    if (cJSON_IsString(status)) {
        snprintf(out->status, sizeof out->status, "%s", status->valuestring);
        out->peer_lost = cJSON_IsTrue(json_find(v, "peer_lost"));
        snprintf(out->reason, sizeof out->reason, "%s", cJSON_IsString(reason) ? reason->valuestring : "");
        rc = 0;
    }
    cJSON_Delete(v);
    return rc;
}

char *run_dir_launcher_tail(const char *run_dir)
{
    char *path = run_dir_log(run_dir, -1), *text = xcalloc(1, TAIL_BYTES + 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;

    free(path);
    if (fd < 0)
        return text;
    if (fstat(fd, &st) == 0) {
        off_t from = st.st_size > TAIL_BYTES ? st.st_size - TAIL_BYTES : 0;
        ssize_t n = pread(fd, text, TAIL_BYTES, from);
        text[n > 0 ? n : 0] = 0;
    }
    close(fd);
    char *mark = NULL;
    for (char *p = text; (p = strstr(p, attempt_mark)); p++)
        if (p == text || p[-1] == '\n')
            mark = p;
    if (mark) {
        char *line_end = strchr(mark, '\n');
        char *rest = line_end ? line_end + 1 : mark + strlen(mark);
        memmove(text, rest, strlen(rest) + 1);
    }
    return text;
}
