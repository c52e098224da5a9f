/* check - see check.h.
 *
 * Works with whatever schema the file has, and goes on after a fault as far as that makes sense: of a job
 * whose history breaks off, the first event that does not fit is told and the later ones are passed over.
 */
#include "daemon/check.h"
#include "common/fsutil.h"
#include "common/json.h"
#include "daemon/jobs.h"
#include "daemon/run_dir.h"
#include "daemon/state_dir.h"
#include "daemon/store.h"
#include "proto/jobspec.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TOLD = 100 };

#define RESTORE "restore state.db from a copy"

struct check {
    FILE *out;
    const char *state_dir;
    struct store *store;
    struct jobs jobs;
    int64_t *broken; /* jobs whose history breaks off, in the order of finding */
    size_t n_broken, cap_broken;
    int64_t n_faults, n_events, n_jobs, n_dirs, last_id;
};

static void fault(struct check *c, const char *todo, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void fault(struct check *c, const char *todo, const char *fmt, ...)
{
    va_list ap;

    if (++c->n_faults > MAX_TOLD)
        return;
    fprintf(c->out, "fault: ");
    va_start(ap, fmt);
    vfprintf(c->out, fmt, ap);
    va_end(ap);
    fprintf(c->out, "%s%s\n", todo ? ": " : "", todo ? todo : "");
}

/* --- the database --- */

static void on_store_fault(void *ctx, const char *what)
{
    fault(ctx, RESTORE, "%s", what);
}

/* --- events --- */

static bool is_broken(const struct check *c, int64_t job)
{
    for (size_t i = c->n_broken; i > 0; i--)
        if (c->broken[i - 1] == job)
            return true;
    return false;
}

static void set_broken(struct check *c, int64_t job)
{
    if (c->n_broken == c->cap_broken) {
        c->cap_broken = c->cap_broken ? c->cap_broken * 2 : 16;
        c->broken = xrealloc(c->broken, c->cap_broken * sizeof *c->broken);
    }
    c->broken[c->n_broken++] = job;
}

/* The job after the event; NULL when the event cannot be read or is not possible. */
static const struct job *apply(struct check *c, struct job_event *ev, const char *data, struct err *e)
{
    cJSON *v = json_parse(data, strlen(data), e);
    int rc = v ? job_event_from_journal(v, ev, e) : -1;

    const struct job *job = rc < 0 ? NULL : jobs_apply(&c->jobs, ev, e);
    cJSON_Delete(v);
    return job;
}

static int on_event(void *ctx, int64_t seq, int64_t id, int64_t time_ms, const char *data, struct err *e)
{
    struct check *c = ctx;
    struct job_event ev = {.seq = seq, .job = id, .time_ms = time_ms};
    struct err why = ERR_INIT;

    (void)e;
    c->n_events++;
    if (is_broken(c, id))
        return 0;
    const struct job *job = apply(c, &ev, data, &why);
    if (!job) {
        set_broken(c, id);
        fault(c, RESTORE "; the coordinator does not start with it", "event %lld of job %lld: %s",
              (long long)seq, (long long)id, why.msg);
    } else if (job->state != ev.state) {
        fault(c, RESTORE, "event %lld of job %lld: it says that the job is %s then, but it is %s",
              (long long)seq, (long long)id, job_state_name(ev.state), job_state_name(job->state));
    }
    return 0;
}

/* --- jobs --- */

static int parse_spec(const char *text, struct err *e)
{
    struct jobspec_errors errors = {0};
    struct jobspec *spec = xcalloc(1, sizeof *spec);
    cJSON *doc = json_parse(text, strlen(text), e), *resolved = NULL;
    int rc = doc ? jobspec_parse(doc, spec, &resolved, &errors) : -1;

    if (doc && rc < 0) {
        cJSON *all = jobspec_errors_to_json(&errors), *first = cJSON_GetArrayItem(all, 0);
        err_set(e, "%s: %s", cJSON_GetStringValue(json_find(first, "pointer")),
                cJSON_GetStringValue(json_find(first, "message")));
        cJSON_Delete(all);
    }
    jobspec_errors_free(&errors);
    cJSON_Delete(resolved);
    cJSON_Delete(doc);
    free(spec);
    return rc;
}

static int on_job(void *ctx, int64_t id, int64_t uid, const char *spec, struct err *e)
{
    struct check *c = ctx;
    const struct job *job = jobs_find(&c->jobs, id);
    struct err why = ERR_INIT;

    (void)e;
    c->n_jobs++;
    if (parse_spec(spec, &why) < 0)
        fault(c, RESTORE " or cancel the job", "the spec of job %lld: %s", (long long)id, why.msg);
    if (is_broken(c, id))
        return 0;
    if (!job)
        fault(c, RESTORE, "job %lld has no event", (long long)id);
    else if (job->uid != uid)
        fault(c, RESTORE, "job %lld belongs to user %lld, and its first event to user %lld", (long long)id,
              (long long)uid, (long long)job->uid);
    return 0;
}

/* --- run directories --- */

static void look_at_dir(struct check *c, int64_t id)
{
    c->n_dirs++;
    if (id > c->last_id)
        fault(c,
              "the database is older than the runs; put a newer copy back, or start the coordinator, which "
              "steps "
              "over the number, and move the directory away",
              "%s/runs/%lld belongs to no job", c->state_dir, (long long)id);
}

static void look_at_dirs(struct check *c)
{
    char *path = fs_join(c->state_dir, "runs");
    DIR *d = opendir(path);

    for (struct dirent *ent; d && (ent = readdir(d));) {
        int64_t id = run_dir_id(ent->d_name);
        if (id)
            look_at_dir(c, id);
    }
    if (d)
        closedir(d);
    free(path);
    for (size_t i = 0; i < c->jobs.n_active; i++) {
        const struct job *job = c->jobs.active[i];
        char *dir = run_dir_path(c->state_dir, job->id);
        if (job->checkpoint_step >= 0 && !fs_exists(dir))
            fault(c, "put it back, or the job begins anew",
                  "%s is missing, and job %lld had a checkpoint at step %lld", dir, (long long)job->id,
                  (long long)job->checkpoint_step);
        free(dir);
    }
}

/* --- all of it --- */

static int look(struct check *c, struct err *e)
{
    if (store_check(c->store, on_store_fault, c, e) < 0 || store_last_id(c->store, &c->last_id, e) < 0 ||
        store_each_event(c->store, 0, 0, -1, on_event, c, e) < 0 ||
        store_each_job(c->store, on_job, c, e) < 0)
        return -1;
    look_at_dirs(c);
    return 0;
}

static void summarize(const struct check *c)
{
    if (c->n_faults > MAX_TOLD)
        fprintf(c->out, "and %lld more\n", (long long)c->n_faults - MAX_TOLD);
    fprintf(c->out,
            "%s: schema %d, %lld jobs of which %zu have not ended, %lld events, %lld run directories: ",
            c->state_dir, store_version(c->store), (long long)c->n_jobs, c->jobs.n_active,
            (long long)c->n_events, (long long)c->n_dirs);
    if (c->n_faults)
        fprintf(c->out, "%lld fault%s\n", (long long)c->n_faults, c->n_faults == 1 ? "" : "s");
    else
        fprintf(c->out, "no fault\n");
}

/* Damage that ends the look is a fault like others. */
static int64_t check_database(struct check *c, struct err *e)
{
    char *path = fs_join(c->state_dir, "state.db");
    struct err parts = ERR_INIT;
    int64_t rc = -1;

    if (store_check_parts(path, &parts) < 0)
        fault(c, NULL, "%s", parts.msg);
    if (fs_exists(path)) {
        c->store = store_open_to_check(path, e);
        if (c->store && (rc = look(c, e)) == 0) {
            summarize(c);
            rc = c->n_faults;
        }
    } else if (!c->n_faults) {
        err_set(e, "%s does not exist: there is nothing to check", path);
    }
    store_close(c->store);
    free(path);
    return rc;
}

int64_t check_state(const char *state_dir, FILE *out, struct err *e)
{
    struct check c = {.out = out, .state_dir = state_dir};
    int fd;

    if (state_dir_lock_to_check(state_dir, &fd, e) < 0)
        return -1;
    int64_t rc = check_database(&c, e);
    if (fd >= 0)
        close(fd);
    jobs_free(&c.jobs);
    free(c.broken);
    return rc;
}
