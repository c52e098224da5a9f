/* cmd_job - commands about jobs: submit list show watch cancel pause resume requeue checkpoint explain. */
#include "cli/connect.h"
#include "cli/follow.h"
#include "cli/output.h"
#include "cli/result.h"
#include "cli/submit.h"
#include "common/clock.h"
#include "common/json.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define OPT(member) offsetof(struct cli_options, member)

enum { RECONNECT_MS = 30000, SHOW_RANKS = 16 };

/* --- reading a job's record --- */

static const char *text_of(const cJSON *obj, const char *key)
{
    const cJSON *v = json_find(obj, key);

    return cJSON_IsString(v) ? v->valuestring : "";
}

static double number_of(const cJSON *obj, const char *key)
{
    const cJSON *v = json_find(obj, key);

    return cJSON_IsNumber(v) ? v->valuedouble : NAN;
}

/* The newest progress report, if the record has one. */
static bool progress_of(const cJSON *job, struct progress *p)
{
    const cJSON *v = json_find(job, "progress");

    return cJSON_IsObject(v) && progress_from_json(v, p, NULL) == 0;
}

static const char *run_dir_of(const cJSON *job)
{
    const cJSON *paths = json_find(job, "paths");

    return text_of(cJSON_IsObject(paths) ? paths : job, "run_dir");
}

/* --- follow --- */

/* Watches until the end, prints the outcome to `out`. */
static int follow_and_print(struct cli *cli, const char *address, int64_t id, FILE *out, struct err *e)
{
    struct follow cfg = {.address = address,
                         .ca = cli->opts.ca,
                         .id = id,
                         .json = cli->opts.json,
                         .reconnect_ms = RECONNECT_MS};
    struct follow_end end;

    follow_block_signals();
    if (follow_job(&cfg, &end, e) < 0)
        return -1;
    if (*end.state && !cli->opts.json) {
        struct err ignored;
        cJSON *params = cJSON_CreateObject();
        cJSON_AddNumberToObject(params, "id", (double)id);
        cJSON *job = cli_call(cli, "job.get", params, &ignored);
        cJSON *result = job && *run_dir_of(job) ? result_read(run_dir_of(job)) : NULL;
        bool well = strcmp(end.state, "succeeded") == 0;
        fprintf(out, "job %lld %s%s%s\n", (long long)id, end.state, !well && *end.reason ? ": " : "",
                well ? "" : end.reason);
        result_print(out, result, job ? run_dir_of(job) : NULL);
        cJSON_Delete(result);
        cJSON_Delete(job);
    }
    return follow_exit_status(&end);
}

static int cmd_watch(struct cli *cli, struct err *e)
{
    int64_t id = 0;

    if (cli_job_id(cli, 0, &id, e) < 0)
        return -1;
    char *address = cli_address(cli);
    int rc = follow_and_print(cli, address, id, stdout, e);
    free(address);
    return rc;
}

/* --- submit --- */

static void print_ids(const struct cli *cli, int64_t id, int64_t n)
{
    if (cli->opts.json && n == 1)
        printf("{\"id\":%lld}\n", (long long)id);
    for (int64_t i = 0; i < n && cli->opts.json && n > 1; i++)
        printf("%s%lld%s", i ? "," : "{\"ids\":[", (long long)(id + i), i == n - 1 ? "]}\n" : "");
    for (int64_t i = 0; i < n && !cli->opts.json; i++)
        printf("%lld\n", (long long)(id + i));
    fflush(stdout);
}

static int submit_checked(struct cli *cli, const struct spec_arg *arg, struct err *e)
{
    char *address = cli_address(cli);
    struct client *c = connect_to(address, cli->opts.ca, e);
    int64_t id = 0, n = 0;
    int rc = c ? submit_spec(cli, c, arg, cli->opts.idempotency_key, &id, &n, e) : -1;

    client_close(c);
    if (rc == 0)
        print_ids(cli, id, n);
    if (rc == 0 && cli->opts.watch) /* a sweep's jobs one after the other; the worst end is the status */
        for (int64_t i = 0; i < n && rc >= 0 && rc != EXIT_INTERRUPTED; i++) {
            int one = follow_and_print(cli, address, id + i, stderr, e);
            rc = one < 0 || one > rc ? one : rc;
        }
    free(address);
    return rc;
}

static int cmd_submit(struct cli *cli, struct err *e)
{
    struct spec_arg arg;
    int rc = spec_arg_read_jobs(cli, &arg, e);

    if (rc == 0)
        rc = arg.errs.n ? spec_arg_report(cli, &arg) : submit_checked(cli, &arg, e);
    spec_arg_free(&arg);
    return rc;
}

/* --- list --- */

static cJSON *list_params(const struct cli *cli, int64_t limit, const char *cursor)
{
    cJSON *params = cJSON_CreateObject();

    if (cli->opts.state)
        cJSON_AddStringToObject(params, "state", cli->opts.state);
    if (cli->opts.user)
        cJSON_AddStringToObject(params, "user", cli->opts.user);
    if (limit)
        cJSON_AddNumberToObject(params, "limit", (double)limit);
    if (cursor)
        cJSON_AddRawToObject(params, "cursor", cursor);
    return params;
}

/* All pages, or as many as --limit asks for, as one array. */
static cJSON *list_jobs(struct cli *cli, struct err *e)
{
    cJSON *all = cJSON_CreateArray();
    char *cursor = NULL;

    do {
        int64_t left = cli->opts.limit ? cli->opts.limit - cJSON_GetArraySize(all) : 0;
        cJSON *page = cli_call(cli, "job.list", list_params(cli, left, cursor), e);
        cJSON *jobs = page ? json_find(page, "jobs") : NULL;
        free(cursor);
        cursor = NULL;
        if (!page) {
            cJSON_Delete(all);
            return NULL;
        }
        while (cJSON_IsArray(jobs) && jobs->child)
            cJSON_AddItemToArray(all, cJSON_DetachItemFromArray(jobs, 0));
        const cJSON *next = json_find(page, "cursor");
        bool more =
            next && !cJSON_IsNull(next) && (!cli->opts.limit || cJSON_GetArraySize(all) < cli->opts.limit);
        if (more)
            cursor = json_text(next);
        cJSON_Delete(page);
    } while (cursor);
    return all;
}

static void list_row(struct output_table *t, const cJSON *job)
{
    char(*row)[OUTPUT_CELL] = output_table_row(t);
    struct progress p;
    double submitted_ms = number_of(job, "submitted_ms");

    snprintf(row[0], OUTPUT_CELL, "%.0f", number_of(job, "id"));
    output_text(row[1], OUTPUT_CELL, text_of(job, "name"));
    output_text(row[2], OUTPUT_CELL, text_of(job, "state"));
    if (progress_of(job, &p) && p.n_steps > 0) {
        snprintf(row[3], OUTPUT_CELL, "%lld/%lld %3.0f %%", (long long)p.step, (long long)p.n_steps,
                 floor(100.0 * (double)p.step / (double)p.n_steps));
        if (isfinite(p.loss))
            snprintf(row[4], OUTPUT_CELL, "%.4g", p.loss);
        output_rate(row[5], OUTPUT_CELL, p.images_per_s);
        output_duration(row[6], OUTPUT_CELL, strcmp(text_of(job, "state"), "running") == 0 ? p.eta_s : NAN);
    }
    output_text(row[7], OUTPUT_CELL, text_of(job, "user"));
    output_duration(row[8], OUTPUT_CELL, ((double)clock_wall_ms() - submitted_ms) / 1000);
}

static int cmd_list(struct cli *cli, struct err *e)
{
    struct output_table t = {
        .n_columns = 9,
        .titles = {"ID", "NAME", "STATE", "PROGRESS", "LOSS", "IMAGES/S", "ETA", "USER", "AGE"},
        .right = {true, false, false, true, true, true, true, false, true},
    };
    cJSON *jobs = list_jobs(cli, e);
    const cJSON *job;

    if (!jobs)
        return -1;
    if (cli->opts.json) {
        cJSON *doc = cJSON_CreateObject();
        cJSON_AddItemToObject(doc, "jobs", jobs);
        output_json(doc);
        cJSON_Delete(doc);
        return EXIT_DONE;
    }
    cJSON_ArrayForEach(job, jobs) list_row(&t, job);
    if (t.n_rows)
        output_table_print(&t, stdout);
    else
        fprintf(stderr, "no jobs\n");
    output_table_free(&t);
    cJSON_Delete(jobs);
    return EXIT_DONE;
}

/* --- show --- */

static void show_time(const char *label, double ms)
{
    char iso[32];

    if (!isfinite(ms) || ms <= 0)
        return;
    clock_iso((int64_t)ms, iso);
    printf("%-12s %s\n", label, iso);
}

static void show_text(const char *label, const char *text)
{
    char clean[1024];

    if (!*text)
        return;
    output_text(clean, sizeof clean, text);
    printf("%-12s %s\n", label, clean);
}

static void show_json(const char *label, const cJSON *v)
{
    if (!v || cJSON_IsNull(v) || (!v->child && (cJSON_IsObject(v) || cJSON_IsArray(v))))
        return;
    char *text = cJSON_IsString(v) ? xstrdup(v->valuestring) : json_text(v);
    show_text(label, text);
    free(text);
}

static int odd(const cJSON *rank)
{
    return strcmp(text_of(rank, "state"), "ok") != 0;
}

/* Those that are not well first, then the slower ones, then in order of ranks. */
static int by_trouble(const void *a, const void *b)
{
    const cJSON *x = *(const cJSON *const *)a, *y = *(const cJSON *const *)b;
    double rx = number_of(x, "ratio"), ry = number_of(y, "ratio");

    if (odd(x) != odd(y))
        return odd(y) - odd(x);
    if (isfinite(rx) && isfinite(ry) && rx != ry)
        return rx < ry ? 1 : -1;
    if (isfinite(rx) != isfinite(ry))
        return isfinite(rx) ? -1 : 1;
    return number_of(x, "rank") < number_of(y, "rank") ? -1 : 1;
}

static void fill_rank(char (*row)[OUTPUT_CELL], const cJSON *rank)
{
    double ratio = number_of(rank, "ratio"), step = number_of(rank, "step");
    const char *waits_in = text_of(rank, "waits_in");

    snprintf(row[0], OUTPUT_CELL, "%.0f", number_of(rank, "rank"));
    output_text(row[1], OUTPUT_CELL, text_of(rank, "host"));
    output_text(row[2], OUTPUT_CELL, text_of(rank, "state"));
    if (isfinite(step))
        snprintf(row[3], OUTPUT_CELL, "%.0f", step);
    output_duration(row[4], OUTPUT_CELL, number_of(rank, "step_ms") / 1000);
    output_duration(row[5], OUTPUT_CELL, number_of(rank, "work_ms") / 1000);
    if (isfinite(ratio))
        snprintf(row[6], OUTPUT_CELL, "%.2f", ratio);
    output_duration(row[7], OUTPUT_CELL, number_of(rank, "age_s"));
    output_text(row[8], OUTPUT_CELL, *waits_in ? waits_in : text_of(rank, "phase"));
}

/* Who holds the others up: the first SHOW_RANKS of the ranks by trouble. */
static void show_ranks(const cJSON *ranks)
{
    struct output_table t = {.n_columns = 9,
                             .titles = {"RANK", "HOST", "STATE", "STEP", "STEP TIME", "OWN WORK", "TO MEDIAN",
                                        "HEARD", "IN"},
                             .right = {true, false, false, true, true, true, true, true, false}};
    int n = cJSON_GetArraySize(ranks), k = 0;
    const cJSON **order, *v;

    if (n == 0)
        return;
    order = xcalloc((size_t)n, sizeof *order);
    cJSON_ArrayForEach(v, ranks) order[k++] = v;
    qsort(order, (size_t)n, sizeof *order, by_trouble);
    for (int i = 0; i < n && i < SHOW_RANKS; i++)
        fill_rank(output_table_row(&t), order[i]);
    printf("ranks\n");
    output_table_print(&t, stdout);
    if (n > SHOW_RANKS)
        printf("and %d more; --json has %s\n", n - SHOW_RANKS, n < 512 ? "all" : "512 of them");
    output_table_free(&t);
    free(order);
}

/* The facts with names of their own first, then whatever else the record holds, the spec last. */
static void show_job(const cJSON *job)
{
    static const char *const named[] = {"id",       "name",     "state",        "reason",
                                        "user",     "progress", "submitted_ms", "started_ms",
                                        "ended_ms", "spec",     "per_rank"};
    struct progress p;
    char line[256];
    const cJSON *v;

    show_json("job", json_find(job, "id"));
    show_text("name", text_of(job, "name"));
    show_text("state", text_of(job, "state"));
    show_text("reason", text_of(job, "reason"));
    show_text("user", text_of(job, "user"));
    show_time("submitted", number_of(job, "submitted_ms"));
    show_time("started", number_of(job, "started_ms"));
    show_time("ended", number_of(job, "ended_ms"));
    if (progress_of(job, &p)) {
        output_progress_text(&p, 0, line, sizeof line);
        show_text("progress", line + strspn(line, " "));
    }
    cJSON_ArrayForEach(v, job)
    {
        bool shown = false;
        for (size_t i = 0; i < sizeof named / sizeof *named && !shown; i++)
            shown = v->string && strcmp(v->string, named[i]) == 0;
        if (!shown && v->string)
            show_json(v->string, v);
    }
    show_ranks(json_find(job, "per_rank"));
    if (json_find(job, "spec")) {
        char *spec = json_text_pretty(json_find(job, "spec"));
        printf("spec\n%s\n", spec);
        free(spec);
    }
}

static int cmd_show(struct cli *cli, struct err *e)
{
    cJSON *params = cli_id_params(cli, e);
    cJSON *job = params ? cli_call(cli, "job.get", params, e) : NULL;

    if (!job)
        return -1;
    if (cli->opts.json)
        output_json(job);
    else
        show_job(job);
    cJSON_Delete(job);
    return EXIT_DONE;
}

/* --- one request about one job --- */

/* Prints the result's `key` (a sentence or a state). A job that runs on until its ranks have stopped is
 * called "cancelling", which is no state. */
static int ask(struct cli *cli, const char *method, const char *key, struct err *e)
{
    cJSON *params = cli_id_params(cli, e);
    cJSON *result = params ? cli_call(cli, method, params, e) : NULL;
    char text[1024];

    if (!result)
        return -1;
    if (cli->opts.json) {
        output_json(result);
    } else {
        bool cancelling = cJSON_IsTrue(json_find(result, "cancelling"));
        output_text(text, sizeof text, text_of(result, key));
        printf("%s\n", cancelling && strcmp(text, "cancelled") != 0 ? "cancelling" : text);
    }
    cJSON_Delete(result);
    return EXIT_DONE;
}

/* The first job of the array that the job is in; 0 when it is in none, with an error. */
static int64_t array_of(struct cli *cli, int64_t id, struct err *e)
{
    cJSON *params = cJSON_CreateObject();
    int64_t first = 0;

    cJSON_AddNumberToObject(params, "id", (double)id);
    cJSON *job = cli_call(cli, "job.get", params, e);
    if (job && json_get_int(json_find(job, "array"), "/array", "id", 1, (int64_t)1 << 53, &first, NULL) < 0)
        err_set(e, "job %lld is in no array", (long long)id);
    cJSON_Delete(job);
    return first;
}

static int ask_one(struct cli *cli, const char *method, int64_t id)
{
    struct err e = ERR_INIT;
    cJSON *params = cJSON_CreateObject();

    cJSON_AddNumberToObject(params, "id", (double)id);
    cJSON *result = cli_call(cli, method, params, &e);
    if (!result)
        fprintf(stderr, "bfctl: %s\n", e.msg);
    else if (cli->opts.json)
        output_json(result);
    else
        printf("%lld %s\n", (long long)id,
               cJSON_IsTrue(json_find(result, "cancelling")) ? "cancelling" : text_of(result, "state"));
    cJSON_Delete(result);
    return result ? EXIT_DONE : EXIT_JOB_FAILED;
}

/* The request for every job of the array, a line each; one that cannot be done is told and does not stop the
 * rest. The last comes first, so that none starts in place of one before it that is stopped. */
static int ask_array(struct cli *cli, const char *method, struct err *e)
{
    struct err ignored = ERR_INIT;
    int64_t id = 0, first, last;
    int rc = EXIT_DONE;

    if (cli_job_id(cli, 0, &id, e) < 0 || !(first = array_of(cli, id, e)))
        return -1;
    for (last = id; array_of(cli, last + 1, &ignored) == first;)
        last++;
    for (id = last; id >= first; id--)
        if (ask_one(cli, method, id) != EXIT_DONE)
            rc = EXIT_JOB_FAILED;
    return rc;
}

static int steer(struct cli *cli, const char *method, struct err *e)
{
    return cli->opts.array ? ask_array(cli, method, e) : ask(cli, method, "state", e);
}

static int cmd_cancel(struct cli *cli, struct err *e)
{
    return steer(cli, "job.cancel", e);
}

static int cmd_pause(struct cli *cli, struct err *e)
{
    return steer(cli, "job.pause", e);
}

static int cmd_resume(struct cli *cli, struct err *e)
{
    return steer(cli, "job.resume", e);
}

static int cmd_requeue(struct cli *cli, struct err *e)
{
    return steer(cli, "job.requeue", e);
}

static int cmd_checkpoint(struct cli *cli, struct err *e)
{
    return ask(cli, "job.checkpoint", "state", e);
}

static int cmd_explain(struct cli *cli, struct err *e)
{
    return ask(cli, "job.explain", "text", e);
}

/* --- table --- */

static const struct conf_option submit_rows[] = {
    CLI_OPTION_SET,
    {"watch", 0, CONF_FLAG, OPT(watch), NULL, NULL, 0, 0, "then watch it; the exit status becomes the job's"},
    {"idempotency-key", 0, CONF_STR, OPT(idempotency_key), "KEY", NULL, 0, 0,
     "submitting again with the same key gives the same job"},
};

static const struct conf_option steer_rows[] = {
    {"array", 0, CONF_FLAG, OPT(array), NULL, NULL, 0, 0, "every job of the array that it is in"},
};

static const struct conf_option list_rows[] = {
    {"state", 0, CONF_STR, OPT(state), "STATE", NULL, 0, 0, "only jobs in this state"},
    {"user", 0, CONF_STR, OPT(user), "USER", NULL, 0, 0, "only jobs of this user"},
    {"limit", 0, CONF_INT, OPT(limit), "N", NULL, 1, 1000000, "at most N jobs"},
};

const struct cli_command cmd_job_commands[] = {
    {"submit", "SPEC", 1, 1, submit_rows, sizeof submit_rows / sizeof *submit_rows,
     "put a job in the queue and print its id",
     "The id alone goes to standard output, once the job is safe on the coordinator's disk; of a sweep an id "
     "a "
     "line.\n"
     "Relative paths "
     "of the\n"
     "spec count from its file's directory, those given by --set from the current one. SPEC may be - for "
     "standard\n"
     "input.",
     cmd_submit},
    {"list", "", 0, 0, list_rows, sizeof list_rows / sizeof *list_rows, "jobs with state and progress", NULL,
     cmd_list},
    {"show", "ID", 1, 1, NULL, 0, "everything that is known about a job", NULL, cmd_show},
    {"watch", "ID", 1, 1, NULL, 0, "follow a job until it ends; exit with its status",
     "Shows every transition from the job's first on, also when it has ended already, and goes on after a "
     "restart of\n"
     "the coordinator. Interrupting leaves the job alone. With --json one event a line.",
     cmd_watch},
    {"cancel", "ID", 1, 1, steer_rows, 1, "stop a job", NULL, cmd_cancel},
    {"pause", "ID", 1, 1, steer_rows, 1, "have a job give its slots back and wait until it is resumed",
     "A running job writes a checkpoint first and goes on from there when it is resumed.", cmd_pause},
    {"resume", "ID", 1, 1, steer_rows, 1, "put a paused job back into the queue", NULL, cmd_resume},
    {"requeue", "ID", 1, 1, steer_rows, 1, "have a job wait in the queue again, running, failed or cancelled",
     "It goes on from its newest checkpoint. A job that has ended has all its restarts again.", cmd_requeue},
    {"checkpoint", "ID", 1, 1, NULL, 0, "have a running job write a checkpoint now", NULL, cmd_checkpoint},
    {"explain", "ID", 1, 1, NULL, 0, "one sentence: why the job is where it is", NULL, cmd_explain},
    {0},
};
