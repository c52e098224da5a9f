/* cmd_data - commands about what a job reads and writes: validate logs metrics. */
#include "cli/connect.h"
#include "cli/follow.h"
#include "cli/output.h"
#include "cli/spec_arg.h"
#include "common/json.h"

#include <math.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OPT(member) offsetof(struct cli_options, member)

enum { PLOT_COLUMNS = 64, PLOT_ROWS = 12 };

/* --- validate --- */

static int cmd_validate(struct cli *cli, struct err *e)
{
    struct spec_arg arg;
    int rc = spec_arg_read_jobs(cli, &arg, e);

    if (rc == 0 && arg.errs.n) {
        rc = spec_arg_report(cli, &arg);
    } else if (rc == 0 && cli->opts.json) {
        cJSON *doc = cJSON_CreateObject();
        cJSON_AddTrueToObject(doc, "valid");
        cJSON_AddArrayToObject(doc, "errors");
        cJSON_AddItemReferenceToObject(doc, arg.n_jobs > 1 ? "specs" : "spec", arg.resolved);
        output_json(doc);
        cJSON_Delete(doc);
    } else if (rc == 0) {
        if (arg.n_jobs > 1)
            fprintf(stderr, "%s: valid, a sweep of %d jobs\n", cli->operands[0], arg.n_jobs);
        else
            fprintf(stderr, "%s: valid\n", cli->operands[0]);
    }
    spec_arg_free(&arg);
    return rc;
}

/* --- logs --- */

/* A log entry is a line of text, or {rank, line}. */
static void print_log(const struct cli *cli, const cJSON *entry)
{
    const cJSON *rank = json_find(entry, "rank"), *line = json_find(entry, "line");
    const cJSON *text = cJSON_IsString(entry) ? entry : line;

    if (cli->opts.json) {
        output_json(entry);
        return;
    }
    if (!cJSON_IsString(text))
        return;
    size_t cap = strlen(text->valuestring) + 1;
    char *clean = xmalloc(cap);
    output_text(clean, cap, text->valuestring);
    if (cJSON_IsNumber(rank) && !cli->opts.rank)
        printf("[%.0f] %s\n", rank->valuedouble, clean);
    else
        printf("%s\n", clean);
    free(clean);
    fflush(stdout);
}

/* --rank: a number, or "launcher" for what mpirun and the ranks printed themselves. NULL when it is neither.
 */
static cJSON *rank_param(const char *text, struct err *e)
{
    char *end;
    long v = strtol(text, &end, 10);

    if (strcmp(text, "launcher") == 0)
        return cJSON_CreateString(text);
    if (*text >= '0' && *text <= '9' && !*end && v <= 65535)
        return cJSON_CreateNumber((double)v);
    err_set_kind(e, ERR_USAGE, "--rank: '%s' found, a whole number from 0 to 65535 or 'launcher' is accepted",
                 text);
    return NULL;
}

/* NULL with an error when an option is wrong. */
static cJSON *logs_params(const struct cli *cli, int64_t id, struct err *e)
{
    cJSON *params, *rank = cli->opts.rank ? rank_param(cli->opts.rank, e) : NULL;

    if (cli->opts.rank && !rank)
        return NULL;
    params = cJSON_CreateObject();

    cJSON_AddNumberToObject(params, "id", (double)id);
    if (rank)
        cJSON_AddItemToObject(params, "rank", rank);
    if (cli->opts.tail >= 0)
        cJSON_AddNumberToObject(params, "tail", (double)cli->opts.tail);
    if (cli->opts.follow)
        cJSON_AddTrueToObject(params, "follow");
    return params;
}

/* Prints what comes in until the job's log is complete, the coordinator ends or a signal comes. */
static int follow_logs(const struct cli *cli, struct client *c, struct err *e)
{
    int sig_fd = follow_signal_fd(e), rc = -1;

    if (sig_fd < 0)
        return -1;
    for (;;) {
        struct pollfd fds[2] = {{.fd = client_fd(c), .events = POLLIN}, {.fd = sig_fd, .events = POLLIN}};
        e->msg[0] = 0;
        cJSON *note = client_next(c, 0, e);
        const cJSON *params = note ? json_find(note, "params") : NULL;
        bool end = cJSON_IsTrue(json_find(params, "end"));
        if (note && !end)
            print_log(cli, params);
        cJSON_Delete(note);
        if (end) {
            rc = EXIT_DONE;
            break;
        }
        if (!note && e->msg[0])
            break;
        if (poll(fds, 2, note ? 0 : -1) > 0 && fds[1].revents) {
            rc = EXIT_INTERRUPTED;
            break;
        }
    }
    close(sig_fd);
    return rc;
}

/* Takes ownership of params. */
static int show_logs(const struct cli *cli, struct client *c, cJSON *params, struct err *e)
{
    cJSON *result = client_call(c, "job.logs", params, CLI_CALL_MS, NULL, e);
    const cJSON *lines = result ? json_find(result, "lines") : NULL, *line;
    int rc = result ? EXIT_DONE : -1;

    if (result && cli->opts.json && !cli->opts.follow)
        output_json(result);
    else
        cJSON_ArrayForEach(line, lines) print_log(cli, line);
    if (result && cli->opts.follow)
        rc = follow_logs(cli, c, e);
    cJSON_Delete(result);
    return rc;
}

static int cmd_logs(struct cli *cli, struct err *e)
{
    int64_t id = 0;
    cJSON *params = cli_job_id(cli, 0, &id, e) == 0 ? logs_params(cli, id, e) : NULL;

    if (!params)
        return -1;
    if (cli->opts.follow)
        follow_block_signals();
    char *address = cli_address(cli);
    struct client *c = connect_to(address, cli->opts.ca, e);
    int rc = -1;
    if (c)
        rc = show_logs(cli, c, params, e);
    else
        cJSON_Delete(params);
    client_close(c);
    free(address);
    return rc;
}

/* --- metrics --- */

struct series {
    double *x, *y;
    int n;
};

/* [[step, value], …]; a null value is a gap. */
static struct series series_of(const cJSON *points)
{
    int cap = cJSON_GetArraySize(points);
    struct series s = {xcalloc((size_t)cap + 1, sizeof(double)), xcalloc((size_t)cap + 1, sizeof(double)), 0};
    const cJSON *point;

    cJSON_ArrayForEach(point, points)
    {
        const cJSON *x = cJSON_IsArray(point) ? point->child : NULL, *y = x ? x->next : NULL;
        if (!cJSON_IsNumber(x) || !cJSON_IsNumber(y))
            continue;
        s.x[s.n] = x->valuedouble;
        s.y[s.n++] = y->valuedouble;
    }
    return s;
}

static void metrics_row(struct output_table *t, const char *name, const struct series *s)
{
    char(*row)[OUTPUT_CELL] = output_table_row(t);
    double lo = INFINITY, hi = -INFINITY;

    for (int i = 0; i < s->n; i++) {
        lo = fmin(lo, s->y[i]);
        hi = fmax(hi, s->y[i]);
    }
    output_text(row[0], OUTPUT_CELL, name);
    snprintf(row[1], OUTPUT_CELL, "%d", s->n);
    if (s->n == 0)
        return;
    snprintf(row[2], OUTPUT_CELL, "%.0f", s->x[s->n - 1]);
    snprintf(row[3], OUTPUT_CELL, "%.6g", s->y[0]);
    snprintf(row[4], OUTPUT_CELL, "%.6g", s->y[s->n - 1]);
    snprintf(row[5], OUTPUT_CELL, "%.6g", lo);
    snprintf(row[6], OUTPUT_CELL, "%.6g", hi);
}

static void print_metrics(const struct cli *cli, const cJSON *all)
{
    struct output_table t = {
        .n_columns = 7,
        .titles = {"METRIC", "POINTS", "STEP", "FIRST", "LAST", "MIN", "MAX"},
        .right = {false, true, true, true, true, true, true},
    };
    const cJSON *points;

    cJSON_ArrayForEach(points, all)
    {
        struct series s = series_of(points);
        char name[OUTPUT_CELL];
        output_text(name, sizeof name, points->string ? points->string : "?");
        if (!cli->opts.plot)
            metrics_row(&t, name, &s);
        else if (s.n)
            output_plot(stdout, name, s.x, s.y, s.n, PLOT_COLUMNS, PLOT_ROWS);
        free(s.x);
        free(s.y);
    }
    if (!cli->opts.plot && t.n_rows)
        output_table_print(&t, stdout);
    if (!all || !all->child)
        fprintf(stderr, "no metrics yet\n");
    output_table_free(&t);
}

static int cmd_metrics(struct cli *cli, struct err *e)
{
    cJSON *params = cli_id_params(cli, e);

    if (!params)
        return -1;
    if (cli->opts.names.n_items) {
        cJSON *names = cJSON_AddArrayToObject(params, "names");
        for (size_t i = 0; i < cli->opts.names.n_items; i++)
            cJSON_AddItemToArray(names, cJSON_CreateString(cli->opts.names.items[i]));
    }
    if (cli->opts.since_step >= 0)
        cJSON_AddNumberToObject(params, "since_step", (double)cli->opts.since_step);
    cJSON *result = cli_call(cli, "job.metrics", params, e);
    if (!result)
        return -1;
    if (cli->opts.json)
        output_json(result);
    else
        print_metrics(cli, json_find(result, "series"));
    cJSON_Delete(result);
    return EXIT_DONE;
}

/* --- table --- */

static const struct conf_option validate_rows[] = {CLI_OPTION_SET};

static const struct conf_option logs_rows[] = {
    {"follow", 'f', CONF_FLAG, OPT(follow), NULL, NULL, 0, 0, "go on with new lines until the job ends"},
    {"rank", 0, CONF_STR, OPT(rank), "R", NULL, 0, 0, "only this rank's log, or the launcher's"},
    {"tail", 0, CONF_INT, OPT(tail), "N", NULL, 0, 1000000, "only the last N lines"},
};

static const struct conf_option metrics_rows[] = {
    {"name", 0, CONF_LIST, OPT(names), "NAME", NULL, 0, 0, "only this metric; may be repeated"},
    {"since-step", 0, CONF_INT, OPT(since_step), "N", NULL, 0, INT64_MAX, "only from this step on"},
    {"plot", 0, CONF_FLAG, OPT(plot), NULL, NULL, 0, 0, "draw each metric over the steps"},
};

const struct cli_command cmd_data_commands[] = {
    {"validate", "SPEC", 1, 1, validate_rows, sizeof validate_rows / sizeof *validate_rows,
     "check a job spec without a coordinator",
     "Reports all findings at once, each with a JSON Pointer. With --json {\"valid\", \"errors\", \"spec\"}, "
     "the spec\n"
     "with every default filled in.",
     cmd_validate},
    {"logs", "ID", 1, 1, logs_rows, sizeof logs_rows / sizeof *logs_rows, "log lines of a job's ranks", NULL,
     cmd_logs},
    {"metrics", "ID", 1, 1, metrics_rows, sizeof metrics_rows / sizeof *metrics_rows,
     "what a job measured over its steps", NULL, cmd_metrics},
    {0},
};
