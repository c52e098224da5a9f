/* cmd_run - bfctl run: one job, start to end, with a coordinator of its own.
 *
 * Order: check the spec; start the private coordinator; submit; follow until the end (the first interrupt
 * cancels the job, the second leaves at once: the lifeline then ends everything); read the result; stop the
 * coordinator; print. The exit status is the job's.
 */
#include "cli/follow.h"
#include "cli/output.h"
#include "cli/private_daemon.h"
#include "cli/result.h"
#include "cli/submit.h"
#include "common/fsutil.h"
#include "common/json.h"
#include "proto/client.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ${XDG_STATE_HOME:-~/.local/state}/batchformer/run-<time>-<pid> */
static char *default_state_dir(void)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char stamp[32] = "";
    time_t now = time(NULL);
    struct tm tm;

    if (localtime_r(&now, &tm))
        strftime(stamp, sizeof stamp, "%Y%m%d-%H%M%S", &tm);
    if (state && *state)
        return xasprintf("%s/batchformer/run-%s-%ld", state, stamp, (long)getpid());
    return xasprintf("%s/.local/state/batchformer/run-%s-%ld", home && *home ? home : "/tmp", stamp,
                     (long)getpid());
}

/* The job's record. */
static cJSON *get_job(struct client *c, int64_t id, struct err *e)
{
    cJSON *params = cJSON_CreateObject();

    cJSON_AddNumberToObject(params, "id", (double)id);
    return client_call(c, "job.get", params, CLI_CALL_MS, NULL, e);
}

/* What became of the job. */
struct outcome {
    int64_t id;
    struct follow_end end;
    char *run_dir; /* malloc'ed; NULL when unknown */
};

static void find_run_dir(struct outcome *o, struct client *c)
{
    struct err ignored;
    cJSON *job = get_job(c, o->id, &ignored);
    const cJSON *paths = json_find(job, "paths");
    const cJSON *dir = cJSON_IsObject(paths) ? json_find(paths, "run_dir") : json_find(job, "run_dir");

    if (cJSON_IsString(dir))
        o->run_dir = xstrdup(dir->valuestring);
    cJSON_Delete(job);
}

/* Submits and follows. 0, EXIT_USAGE (findings were printed), or -1. */
static int run_job(struct cli *cli, const struct spec_arg *arg, const char *address, struct outcome *o,
                   struct err *e)
{
    struct follow follow = {.address = address, .json = cli->opts.json, .quiet = true, .cancel_first = true};
    struct client *c = client_connect(address, e);

    if (!c)
        return -1;
    int64_t n;
    int rc = submit_spec(cli, c, arg, NULL, &o->id, &n, e);
    if (rc == 0) {
        find_run_dir(o, c);
        if (o->run_dir && !cli->opts.json)
            fprintf(stderr, "bfctl: job %lld in %s\n", (long long)o->id, o->run_dir);
        follow.id = o->id;
        rc = follow_job(&follow, &o->end, e);
    }
    client_close(c);
    return rc;
}

static void print_outcome(const struct cli *cli, const struct spec_arg *arg, const struct outcome *o)
{
    cJSON *result = o->run_dir ? result_read(o->run_dir) : NULL;
    const char *state = *o->end.state ? o->end.state : "interrupted";

    if (cli->opts.json) {
        cJSON *doc = cJSON_CreateObject();
        cJSON_AddNumberToObject(doc, "id", (double)o->id);
        cJSON_AddStringToObject(doc, "name", arg->spec.name);
        cJSON_AddStringToObject(doc, "state", state);
        cJSON_AddStringToObject(doc, "reason", o->end.reason);
        if (o->run_dir)
            cJSON_AddStringToObject(doc, "run_dir", o->run_dir);
        cJSON_AddItemToObject(doc, "result", result ? result : cJSON_CreateNull());
        output_json(doc);
        cJSON_Delete(doc);
        return;
    }
    printf("job %lld (%s) %s%s%s\n", (long long)o->id, arg->spec.name, state,
           strcmp(state, "succeeded") != 0 && *o->end.reason ? ": " : "",
           strcmp(state, "succeeded") != 0 ? o->end.reason : "");
    result_print(stdout, result, o->run_dir);
    cJSON_Delete(result);
}

static int run_checked(struct cli *cli, const struct spec_arg *arg, struct err *e)
{
    char *state_dir = cli->opts.state_dir ? xstrdup(cli->opts.state_dir) : default_state_dir();
    struct outcome o = {0};
    int rc = -1;

    follow_block_signals();
    struct private_daemon *d = private_daemon_start(state_dir, arg->spec.resources.ranks, e);
    if (d) {
        rc = run_job(cli, arg, private_daemon_address(d), &o, e);
        if (rc < 0 &&
            e->kind == ERR_UNREACHABLE) /* kind too: it is not the user's coordinator that is missing */
            err_set(e, "the private coordinator ended unexpectedly; its log is %s", private_daemon_log(d));
        bool leave_at_once = rc == 0 && !*o.end.state; /* a second interrupt; the lifeline does the rest */
        private_daemon_stop(d, !leave_at_once);
    }
    free(state_dir);
    if (rc == 0) {
        print_outcome(cli, arg, &o);
        rc = follow_exit_status(&o.end);
    }
    free(o.run_dir);
    return rc;
}

static int cmd_run(struct cli *cli, struct err *e)
{
    struct spec_arg arg;
    int rc = spec_arg_read(cli, &arg, e);

    if (rc == 0)
        rc = arg.errs.n ? spec_arg_report(cli, &arg) : run_checked(cli, &arg, e);
    spec_arg_free(&arg);
    return rc;
}

static const struct conf_option run_rows[] = {
    CLI_OPTION_SET,
    {"state-dir", 0, CONF_STR, offsetof(struct cli_options, state_dir), "DIR", NULL, 0, 0,
     "where the job store and the run go"},
};

const struct cli_command cmd_run_commands[] = {
    {"run", "SPEC", 1, 1, run_rows, sizeof run_rows / sizeof *run_rows,
     "train one job here and now, with a coordinator of its own",
     "Shows progress on standard error and the result on standard output; the exit status is the job's. The "
     "first\n"
     "interrupt cancels the job, the second leaves at once. State goes to --state-dir, by default\n"
     "${XDG_STATE_HOME:-~/.local/state}/batchformer/run-<time>-<pid>. SPEC may be - for standard input.",
     cmd_run},
    {0},
};
