/* run_dir - see run_dir.h. */
#include "daemon/run_dir.h"
#include "common/clock.h"
#include "common/fsutil.h"
#include "common/json.h"
#include "common/step_dir.h"
#include "daemon/as_user.h"

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

/* --- files in it --- */

/* A regular file, or -1: opening anything else may wait, or do something. */
static int open_file(const char *run_dir, const char *path, int flags, struct err *e)
{
    struct as_user as;
    struct stat st;

    if (as_user_enter_owner(&as, run_dir, e) < 0)
        return -1;
    int fd = open(path, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0666);
    int why = errno;
    as_user_leave(&as);
    errno = why;
    if (fd < 0)
        return err_set_errno(e, "%s", path);
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
        return fd;
    close(fd);
    return err_set(e, "%s is not a file", path);
}

int run_dir_open(const char *run_dir, const char *path, struct err *e)
{
    return open_file(run_dir, path, O_RDONLY, e);
}

int run_dir_open_log(const char *run_dir, struct err *e)
{
    char *path = run_dir_log(run_dir, -1);
    int fd = open_file(run_dir, path, O_WRONLY | O_CREAT | O_APPEND, e);

    free(path);
    return fd;
}

static int mark_attempt(const char *run_dir, const struct run_dir_attempt *at, struct err *e)
{
    char when[32], line[160];
    int fd = run_dir_open_log(run_dir, e);

    if (fd < 0)
        return -1;
    clock_iso(clock_wall_ms(), when);
    int n = snprintf(line, sizeof line, "%s%lld, attempt %lld, %lld ranks, %s\n", attempt_mark,
                     (long long)at->job, (long long)at->attempt, (long long)at->n_ranks, when);
    int rc = fs_write_all(fd, line, (size_t)n, e);
    if (rc < 0)
        err_wrap(e, "%s", run_dir);
    close(fd);
    return rc;
}

static int forget_result(const char *run_dir, struct err *e)
{
    char *path = fs_join(run_dir, "result.json");
    int rc = unlink(path) < 0 && errno != ENOENT ? err_set_errno(e, "removing %s", path) : 0;

    free(path);
    return rc;
}

int run_dir_forget_result(const char *run_dir, struct err *e)
{
    struct as_user as;

    if (as_user_enter_owner(&as, run_dir, e) < 0)
        return -1;
    int rc = forget_result(run_dir, e);
    as_user_leave(&as);
    return rc;
}

/* --- making it --- */

/* Lets others pass through a directory of ours, and takes the rights `closed` away. */
static int open_up(const char *dir, mode_t closed, struct err *e)
{
    struct stat st;

    if (lstat(dir, &st) < 0)
        return err_set_errno(e, "%s", dir);
    mode_t now = st.st_mode & 07777, want = (now | 0011) & ~closed;
    if (now == want || st.st_uid != 0)
        return 0;
    return chmod(dir, want) < 0 ? err_set_errno(e, "chmod of %s", dir) : 0;
}

static char *parent_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    return strndup(path, slash ? (size_t)(slash - path) : 0);
}

/* The two directories above are the state directory's own; those above that are the administrator's to open.
 */
static int open_way(const char *run_dir, const char *user, struct err *e)
{
    char *runs = parent_of(run_dir), *state = parent_of(runs);
    struct as_user as;
    int rc = -1;

    if (open_up(runs, 0066, e) == 0 && open_up(state, 0, e) == 0 &&
        as_user_enter_owner(&as, run_dir, e) == 0) {
        rc = faccessat(AT_FDCWD, run_dir, X_OK | W_OK, AT_EACCESS);
        int why = errno;
        as_user_leave(&as);
        if (rc < 0)
            err_set(e, "user %s cannot work in %s: %s; may he enter the directories above it?", user, run_dir,
                    strerror(why));
    }
    free(runs);
    free(state);
    return rc;
}

/* A directory that was made and not given away before a crash is empty. */
static int make_dir_for(const char *run_dir, const struct identity *who, struct err *e)
{
    struct stat st;

    if (mkdir(run_dir, 0700) < 0) {
        if (errno != EEXIST || lstat(run_dir, &st) < 0)
            return err_set_errno(e, "creating directory %s", run_dir);
        if (S_ISDIR(st.st_mode) && st.st_uid == who->uid)
            return 0;
        if (!S_ISDIR(st.st_mode) || st.st_uid != 0 || rmdir(run_dir) < 0 || mkdir(run_dir, 0700) < 0)
            return err_set(e, "%s is not a directory of user %s, whose job it is (of user %lu)", run_dir,
                           who->name, (unsigned long)st.st_uid);
    }
    if (lchown(run_dir, who->uid, who->gid) < 0)
        return err_set_errno(e, "chown of %s", run_dir);
    return 0;
}

static int make_dir(const char *run_dir, int64_t uid, struct err *e)
{
    struct identity who;
    char *runs;
    int rc;

    if (geteuid() != 0)
        return fs_mkdir_p(run_dir, e);
    if (identity_load(uid, &who, e) < 0)
        return -1;
    runs = parent_of(run_dir);
    rc = fs_mkdir_p(runs, e) < 0 || make_dir_for(run_dir, &who, e) < 0 ? -1 : 0;
    if (rc == 0 && who.uid != 0)
        rc = open_way(run_dir, who.name, e);
    free(runs);
    identity_free(&who);
    return rc;
}

/* What the owner himself could have made there. */
static int fill_dir(const char *run_dir, const char *spec, struct err *e)
{
    char *log = fs_join(run_dir, "log");
    struct stat st;
    int rc = 0;

    if (mkdir(log, 0777) < 0 && errno != EEXIST)
        rc = err_set_errno(e, "creating directory %s", log);
    else if (lstat(log, &st) < 0 || !S_ISDIR(st.st_mode))
        rc = err_set(e, "%s exists and is not a directory", log);
    free(log);
    return rc < 0 || write_spec(run_dir, spec, e) < 0 || forget_result(run_dir, e) < 0 ? -1 : 0;
}

int run_dir_prepare(const char *run_dir, const char *spec, const struct run_dir_attempt *at, struct err *e)
{
    struct as_user as;

    if (make_dir(run_dir, at->uid, e) < 0 || as_user_enter_owner(&as, run_dir, e) < 0)
        return -1;
    int rc = fill_dir(run_dir, spec, e);
    as_user_leave(&as);
    return rc < 0 ? -1 : mark_attempt(run_dir, at, e);
}

/* --- what an attempt has left there --- */

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
    struct as_user as;
    int64_t newest = -1;

    if (as_user_enter_owner(&as, run_dir, NULL) == 0) {
        newest = step_dir_newest(path);
        as_user_leave(&as);
    }
    free(path);
    return newest;
}

static cJSON *read_json(const char *run_dir, const char *name, size_t max_bytes)
{
    char *path = fs_join(run_dir, name), *text;
    int fd = run_dir_open(run_dir, path, NULL);
    size_t len;
    cJSON *v = NULL;

    if (fd >= 0 && fs_read_fd(fd, path, max_bytes, &text, &len, NULL) == 0) {
        v = json_parse(text, len, NULL);
        free(text);
    }
    free(path);
    return v;
}

int run_dir_result(const char *run_dir, struct run_result *out)
{
    cJSON *v = read_json(run_dir, "result.json", MAX_RESULT_BYTES);
    const cJSON *status = v ? json_find(v, "status") : NULL, *reason = v ? json_find(v, "reason") : NULL;
    int rc = -1;

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
    int fd = run_dir_open(run_dir, path, NULL);
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
