/* cmd_verify - bfctl verify: does every number of ranks compute what the first one does?
 *
 * Order: check command line and spec → a scratch directory → each world size from the start; the reference up
 * to the step before the last; each world size the last step from there → compare → print. Each run is one
 * mpirun (ranks.h). The scratch directory goes, unless it was asked for or a run failed.
 *
 *   SCRATCH/start-1/      a run directory: 1 rank, from the start
 *   SCRATCH/before-last/  the reference, stopped before the last step
 *   SCRATCH/last-2/       a copy of it that 2 ranks went on with
 */
#include "cli/child.h"
#include "cli/follow.h"
#include "cli/rank_list.h"
#include "cli/ranks.h"
#include "cli/run_history.h"
#include "cli/spec_arg.h"
#include "cli/verify.h"
#include "common/fsutil.h"
#include "common/json.h"

#include <dirent.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OPT(member) offsetof(struct cli_options, member)

enum { MAX_RANKS = 1024, LOG_LINES = 12, LOG_TEXT = 4096 };

#define DEFAULT_RANKS "1,2,4"

struct session {
    struct verify v;
    char *scratch;
    int signal_fd;
};

/* --- command line and jobs --- */

static int parse_ranks(struct verify *v, const char *text, struct err *e)
{
    int ranks[VERIFY_MAX_WORLDS], n = rank_list_parse(text, MAX_RANKS, ranks, VERIFY_MAX_WORLDS, e);

    if (n < 0)
        return -1;
    if (n < 2)
        return err_set_kind(e, ERR_USAGE, "--ranks: '%s' found, at least two world sizes are accepted", text);
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < i; k++)
            if (ranks[k] == ranks[i])
                return err_set_kind(e, ERR_USAGE, "--ranks: '%s' found, %d is there twice", text, ranks[i]);
        v->worlds[v->n_worlds++].n_ranks = ranks[i];
    }
    return 0;
}

/* -1 with an error; else *t is the number, or -1 when the option was not given. */
static int parse_tolerance(const char *text, bool bitwise, double *t, struct err *e)
{
    char *end;

    *t = -1;
    if (!text)
        return 0;
    if (bitwise)
        return err_set_kind(e, ERR_USAGE,
                            "--tolerance: '%s' found, none is accepted where train.determinism is "
                            "\"bitwise\": every bit must be the same",
                            text);
    *t = strtod(text, &end);
    if (end == text || *end || !isfinite(*t) || *t < 0)
        return err_set_kind(e, ERR_USAGE, "--tolerance: '%s' found, a number of at least 0 is accepted",
                            text);
    return 0;
}

static void set_number(cJSON *spec, const char *section, const char *key, double value)
{
    cJSON *at = json_find(spec, section);

    ASSERT(at); /* a resolved spec has every section */
    cJSON_DeleteItemFromObjectCaseSensitive(at, key);
    cJSON_AddNumberToObject(at, key, value);
}

/* The spec for that many ranks: every loss logged, and nothing done that is not compared. */
static cJSON *make_job(const cJSON *spec, int n_ranks)
{
    const struct {
        const char *section, *key;
        double value;
    } set[] = {
        {"train", "log_every_steps", 1},     {"eval", "every_epochs", 0},
        {"checkpoint", "every_steps", 0},    {"resources", "ranks", n_ranks},
        {"resources", "min_ranks", n_ranks}, {"resources", "max_ranks", n_ranks},
    };
    cJSON *job = cJSON_Duplicate(spec, true);

    for (size_t i = 0; i < sizeof set / sizeof *set; i++)
        set_number(job, set[i].section, set[i].key, set[i].value);
    return job;
}

/* Can the job run on each of the world sizes? */
static int check_jobs(const struct verify *v, struct err *e)
{
    struct jobspec *parsed = xmalloc(sizeof *parsed);
    int rc = 0;

    for (int i = 0; i < v->n_worlds && rc == 0; i++) {
        struct jobspec_errors errs;
        char ranks[32];
        cJSON *job = make_job(v->spec, v->worlds[i].n_ranks);
        if (jobspec_parse(job, parsed, NULL, &errs) < 0)
            rc = err_set_kind(e, ERR_SPEC, "with %s: %s: %s", verify_ranks_text(v->worlds[i].n_ranks, ranks),
                              errs.v[0].pointer, errs.v[0].message);
        jobspec_errors_free(&errs);
        cJSON_Delete(job);
    }
    free(parsed);
    return rc;
}

static int prepare(const struct cli *cli, const struct spec_arg *arg, struct verify *v, struct err *e)
{
    double tolerance;

    v->spec = arg->resolved;
    v->n_steps = cli->opts.steps;
    v->bitwise = spec_is_bitwise(arg->resolved);
    if (parse_ranks(v, cli->opts.ranks ? cli->opts.ranks : DEFAULT_RANKS, e) < 0 ||
        parse_tolerance(cli->opts.tolerance, v->bitwise, &tolerance, e) < 0)
        return -1;
    verify_limits(v->bitwise, spec_is_bf16(arg->resolved), tolerance, &v->limits);
    return check_jobs(v, e);
}

/* --- run directories --- */

static bool is_empty(const char *dir)
{
    DIR *d = opendir(dir);
    bool empty = d;

    for (struct dirent *ent; d && (ent = readdir(d));)
        empty &= strcmp(ent->d_name, ".") == 0 || strcmp(ent->d_name, "..") == 0;
    if (d)
        closedir(d);
    return empty;
}

/* The scratch directory, malloc'ed; NULL with an error. */
static char *make_scratch(const char *keep, struct err *e)
{
    const char *tmp = getenv("TMPDIR");

    if (keep) {
        if (fs_mkdir_p(keep, e) < 0)
            return NULL;
        if (is_empty(keep))
            return xstrdup(keep);
        err_set_kind(e, ERR_USAGE, "--keep: %s is not empty", keep);
        return NULL;
    }
    char *dir = fs_join(tmp && *tmp ? tmp : "/tmp", "batchformer-verify-XXXXXX");
    if (mkdtemp(dir))
        return dir;
    err_set_errno(e, "making a directory %s", dir);
    free(dir);
    return NULL;
}

static int write_job(const cJSON *spec, int n_ranks, const char *run_dir, struct err *e)
{
    cJSON *job = make_job(spec, n_ranks);
    char *path = fs_join(run_dir, "job.json"), *text = json_text_pretty(job);
    int rc = fs_atomic_replace(path, text, strlen(text), e);

    free(text);
    free(path);
    cJSON_Delete(job);
    return rc;
}

static char *start_dir(const struct session *s, const struct verify_world *w)
{
    return xasprintf("%s/start-%d", s->scratch, w->n_ranks);
}

static char *last_dir(const struct session *s, const struct verify_world *w)
{
    return xasprintf("%s/last-%d", s->scratch, w->n_ranks);
}

static char *dump_in(const char *run_dir)
{
    return fs_join(run_dir, "dump.safetensors");
}

/* --- runs --- */

static void show_log(const char *run_dir)
{
    char text[LOG_TEXT], *log = ranks_log(run_dir);

    child_last_lines(log, LOG_LINES, text, sizeof text);
    fprintf(stderr, "--- the end of %s:\n%s\n---\n", log, text);
    free(log);
}

/* One run in a directory that is there; `what` it does, for messages. */
static int run_in(const struct session *s, const char *dir, int n_ranks, int64_t max_steps, bool resume,
                  bool dumps, const char *what, struct err *e)
{
    char *dump = dump_in(dir), ranks[32];
    struct ranks r = {
        .run_dir = dir, .n = n_ranks, .resume = resume, .max_steps = max_steps, .dump = dumps ? dump : NULL};

    verify_ranks_text(n_ranks, ranks);
    fprintf(stderr, "%s, %s …\n", ranks, what);
    int rc = write_job(s->v.spec, n_ranks, dir, e);
    if (rc == 0) {
        rc = ranks_run(&r, s->signal_fd, e);
        if (rc < 0 && e->kind != ERR_INTERRUPTED) {
            show_log(dir);
            err_wrap(e, "%s, %s", ranks, what);
        }
    }
    free(dump);
    return rc;
}

static int run_from_start(const struct session *s, const struct verify_world *w, struct err *e)
{
    char *dir = start_dir(s, w);
    int rc = fs_mkdir_p(dir, e);

    if (rc == 0)
        rc = run_in(s, dir, w->n_ranks, s->v.n_steps, false, true, "from the start", e);
    free(dir);
    return rc;
}

static int run_before_last(const struct session *s, const char *dir, struct err *e)
{
    char what[64];

    snprintf(what, sizeof what, "up to step %lld", (long long)s->v.n_steps - 1);
    if (fs_mkdir_p(dir, e) < 0)
        return -1;
    return run_in(s, dir, s->v.worlds[0].n_ranks, s->v.n_steps - 1, false, false, what, e);
}

static int run_last(const struct session *s, const struct verify_world *w, const char *from, struct err *e)
{
    char *dir = last_dir(s, w), what[64];
    int rc = fs_copy_tree(from, dir, e);

    snprintf(what, sizeof what, "step %lld from the same weights", (long long)s->v.n_steps);
    if (rc == 0)
        rc = run_in(s, dir, w->n_ranks, s->v.n_steps, true, true, what, e);
    free(dir);
    return rc;
}

static int run_all(const struct session *s, struct err *e)
{
    const struct verify *v = &s->v;
    int rc = 0;

    for (int i = 0; i < v->n_worlds && rc == 0; i++)
        rc = run_from_start(s, v->worlds + i, e);
    if (rc < 0 || v->n_steps == 1) /* all weights are the same at the start */
        return rc;
    char *before = fs_join(s->scratch, "before-last");
    rc = run_before_last(s, before, e);
    for (int i = 0; i < v->n_worlds && rc == 0; i++)
        rc = run_last(s, v->worlds + i, before, e);
    free(before);
    return rc;
}

/* --- comparing --- */

static int read_curve(const char *dir, int64_t n_steps, struct run_losses *l, struct err *e)
{
    if (run_losses_read(dir, l, e) < 0)
        return -1;
    if (l->n == n_steps && l->v[0].step == 1 && l->v[l->n - 1].step == n_steps)
        return 0;
    err_set(e, "%s/metrics.jsonl: the losses of %d steps found, %lld expected", dir, l->n,
            (long long)n_steps);
    run_losses_free(l);
    return -1;
}

static void compare_curves(const struct run_losses *a, const struct run_losses *b, int64_t from,
                           struct dump_deviation *out)
{
    *out = (struct dump_deviation){0};
    for (int i = (int)from - 1; i < a->n; i++) {
        double x = a->v[i].loss, y = b->v[i].loss, d = fabs(x - y) / fmax(fabs(x), DUMP_COMPARE_FLOOR);
        out->elements++;
        if (run_loss_same(x, y))
            continue;
        out->elements_different++;
        d = isfinite(x) && isfinite(y) ? d : INFINITY;
        if (*out->where && d <= out->worst)
            continue;
        out->worst = d;
        snprintf(out->where, sizeof out->where, "step %lld", (long long)a->v[i].step);
    }
}

/* Compares losses from that step on, and dumps, of two run directories. */
static int compare(const struct session *s, const char *a, const char *b, int64_t from, enum verify_kind k,
                   struct verify_comparison *out, struct err *e)
{
    static const char *const prefixes[VERIFY_PARTS] = {NULL, "grad.", "param."};
    struct run_losses la = {0}, lb = {0};
    char *da = dump_in(a), *db = dump_in(b);
    int rc = read_curve(a, s->v.n_steps, &la, e);

    if (rc == 0)
        rc = read_curve(b, s->v.n_steps, &lb, e);
    if (rc == 0)
        compare_curves(&la, &lb, from, &out->part[VERIFY_LOSS]);
    for (int p = VERIFY_GRADIENT; p < VERIFY_PARTS && rc == 0; p++)
        if (s->v.limits.v[k][p].rule != VERIFY_NOT_COMPARED)
            rc = dump_compare(da, db, prefixes[p], &out->part[p], e);
    out->made = rc == 0;
    run_losses_free(&la);
    run_losses_free(&lb);
    free(da);
    free(db);
    return rc;
}

/* Everything that is compared of one world size. */
static int compare_world(struct session *s, struct verify_world *w, struct err *e)
{
    const struct verify_world *ref = s->v.worlds;
    char *ref_start = start_dir(s, ref), *start = start_dir(s, w);
    char *ref_last = s->v.n_steps == 1 ? xstrdup(ref_start) : last_dir(s, ref);
    char *last = s->v.n_steps == 1 ? xstrdup(start) : last_dir(s, w);
    int rc = 0;

    if (w != ref) {
        rc = compare(s, ref_last, last, s->v.n_steps, VERIFY_SAME_WEIGHTS, &w->kind[VERIFY_SAME_WEIGHTS], e);
        if (rc == 0)
            rc = compare(s, ref_start, start, 1, VERIFY_FROM_START, &w->kind[VERIFY_FROM_START], e);
    } else if (s->v.n_steps > 1) {
        rc = compare(s, ref_start, ref_last, 1, VERIFY_RESUMED, &w->kind[VERIFY_RESUMED], e);
    }
    free(ref_start);
    free(start);
    free(ref_last);
    free(last);
    return rc;
}

/* --- the command --- */

static int run_and_compare(struct session *s, struct err *e)
{
    int rc = run_all(s, e);

    for (int i = 0; i < s->v.n_worlds && rc == 0; i++)
        rc = compare_world(s, s->v.worlds + i, e);
    return rc;
}

/* Removes the scratch directory, or says where it is. */
static int leave_scratch(const struct session *s, bool keep, struct err *e)
{
    if (!keep)
        return fs_remove_tree(s->scratch, e);
    fprintf(stderr, "bfctl: the runs are kept in %s\n", s->scratch);
    return 0;
}

static int verify_checked(const struct cli *cli, const struct spec_arg *arg, struct err *e)
{
    struct session s = {0};
    struct err later = ERR_INIT;

    if (prepare(cli, arg, &s.v, e) < 0)
        return -1;
    follow_block_signals();
    s.signal_fd = follow_signal_fd(e);
    if (s.signal_fd < 0)
        return -1;
    int rc = -1;
    s.scratch = make_scratch(cli->opts.keep, e);
    if (s.scratch) {
        rc = run_and_compare(&s, e);
        bool failed = rc < 0 && e->kind != ERR_INTERRUPTED;
        if (leave_scratch(&s, failed || cli->opts.keep, &later) < 0)
            fprintf(stderr, "bfctl: %s\n", later.msg);
    }
    free(s.scratch);
    close(s.signal_fd);
    if (rc < 0)
        return -1;
    if (cli->opts.json)
        verify_print_json(&s.v);
    else
        verify_print(&s.v);
    return verify_within(&s.v) ? EXIT_DONE : EXIT_JOB_FAILED;
}

static int cmd_verify(struct cli *cli, struct err *e)
{
    struct spec_arg arg;
    int rc = spec_arg_read(cli, &arg, e);

    if (rc == 0)
        rc = arg.errs.n ? spec_arg_report(cli, &arg) : verify_checked(cli, &arg, e);
    spec_arg_free(&arg);
    return rc;
}

static const struct conf_option verify_rows[] = {
    CLI_OPTION_SET,
    {"ranks", 0, CONF_STR, OPT(ranks), "LIST", NULL, 0, 0,
     "world sizes; the first is the reference [" DEFAULT_RANKS "]"},
    {"steps", 0, CONF_INT, OPT(steps), "N", NULL, 1, INT64_C(1000000), "steps to make [10]"},
    {"tolerance", 0, CONF_STR, OPT(tolerance), "T", NULL, 0, 0,
     "what loss and weights may deviate by from the start"},
    {"keep", 0, CONF_STR, OPT(keep), "DIR", NULL, 0, 0, "keep the runs in DIR, new or empty"},
};

const struct cli_command cmd_verify_commands[] = {
    {"verify", "SPEC", 1, 1, verify_rows, sizeof verify_rows / sizeof *verify_rows,
     "train some steps at several numbers of ranks and compare",
     "Each world size trains the same job in a scratch directory below $TMPDIR, by mpirun, without a "
     "coordinator,\n"
     "and is compared with the first of the list:\n"
     "  resumed         the reference, stopped before the last step and gone on with, has the same bits\n"
     "  same weights    every world size makes the last step from the reference's weights before it\n"
     "  from the start  every world size makes all steps on its own\n"
     "The deviation of a tensor is the norm of the difference by the norm of the reference; the worst is "
     "shown.\n"
     "At the same weights the loss may deviate by 1e-6 and the gradient by 1e-3 (in bf16 1e-4 and 5e-2); a "
     "wrong\n"
     "exchange between ranks is off by 0.1 there, so this is the sharp comparison. From the start the runs "
     "of a deep net part "
     "within few\n"
     "steps, for a ReLU whose input is close to zero is on in one and off in the other: the gradient is "
     "shown and\n"
     "not judged, loss and weights (all as one vector) may deviate by 2e-2 (5e-2), which fits up to 20 steps "
     "at a "
     "high\n"
     "learning rate; give --tolerance for more. Where train.determinism is \"bitwise\" every bit must be "
     "the\n"
     "same. Exit status: 0 all within tolerance; 1 above, or a run failed; 2 usage, an invalid spec, or "
     "more\n"
     "steps than the job has.",
     cmd_verify},
    {0},
};
