/* bfctl - the client of batchformer.
 *
 * main() cuts the command line into global options, a command and the rest, finds the command's row, parses
 * the rest by the row's options, runs it, and turns its error into a message and an exit status. With --json
 * a failure is a document too, {"error": …}, so that a script always gets one.
 */
#include "cli/cli.h"
#include "cli/connect.h"
#include "cli/output.h"
#include "common/json.h"

#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OPT(member) offsetof(struct cli_options, member)

enum { MAX_ROWS = 24 };

static const struct conf_option global_rows[] = {
    {"address", 0, CONF_STR, OPT(address), "ADDR", NULL, 0, 0,
     "where the coordinator listens: unix:PATH or tcp:HOST:PORT [$BATCHFORMER_ADDRESS]"},
    {"ca", 0, CONF_STR, OPT(ca), "FILE", NULL, 0, 0,
     "certificates (PEM) that a tcp: coordinator may have its own from [$BATCHFORMER_CA]"},
    {"json", 0, CONF_FLAG, OPT(json), NULL, NULL, 0, 0,
     "one JSON document on stdout, one a line for streams"},
    {"help", 'h', CONF_FLAG, OPT(help), NULL, NULL, 0, 0, "show help and exit"},
    {"version", 0, CONF_FLAG, OPT(version), NULL, NULL, 0, 0, "show the version and exit"},
};

enum { N_GLOBAL = sizeof global_rows / sizeof *global_rows };

/* Commands of the documented interface that come with a later version: refused by name. */
static const struct cli_command later_commands[] = {
    {.name = "top"}, {.name = "eval"}, {.name = "export"}, {.name = "report"}, {0},
};

static const struct cli_command *const tables[] = {
    cmd_run_commands,  cmd_job_commands,      cmd_data_commands,  cmd_daemon_commands, cmd_verify_commands,
    cmd_diff_commands, cmd_estimate_commands, cmd_token_commands, later_commands,
};

enum { N_TABLES = sizeof tables / sizeof *tables, MAX_COMMANDS = 64 };

static const struct cli_command *find_command(const char *name)
{
    for (int t = 0; t < N_TABLES; t++)
        for (const struct cli_command *c = tables[t]; c->name; c++)
            if (strcmp(c->name, name) == 0)
                return c;
    return NULL;
}

static int unknown_command(const char *name, struct err *e)
{
    const char *names[MAX_COMMANDS] = {0};
    size_t n = 0;

    for (int t = 0; t < N_TABLES; t++)
        for (const struct cli_command *c = tables[t]; c->name && c->run && n < MAX_COMMANDS; c++)
            names[n++] = c->name;
    const char *near = conf_nearest(name, names, n);
    return err_set_kind(e, ERR_USAGE, "unknown command '%s'%s%s%s; see bfctl --help", name,
                        near ? "; did you mean '" : "", near ? near : "", near ? "'" : "");
}

/* --- help --- */

static void print_help(void)
{
    printf("usage: bfctl [--address ADDR] [--json] COMMAND\n\ncommands:\n");
    fflush(stdout);
    for (int t = 0; t < N_TABLES; t++)
        for (const struct cli_command *c = tables[t]; c->name; c++) {
            char left[64];
            if (!c->run)
                continue;
            snprintf(left, sizeof left, "%s%s%s", c->name, *c->operands ? " " : "", c->operands);
            printf("  %-24s %s\n", left, c->summary);
        }
    printf("\noptions:\n");
    fflush(stdout);
    conf_print_help(global_rows, N_GLOBAL, STDOUT_FILENO);
    printf("\nbfctl COMMAND --help tells more. Exit status: 0 done; 1 the job or request failed; 2 usage or "
           "invalid\n"
           "spec; 3 no coordinator could be reached; 130 interrupted.\n");
}

static void print_command_help(const struct cli_command *c)
{
    printf("usage: bfctl %s%s%s [options]\n\n%s\n", c->name, *c->operands ? " " : "", c->operands,
           c->summary);
    if (c->details)
        printf("\n%s\n", c->details);
    printf("\noptions:\n");
    fflush(stdout);
    conf_print_help(c->rows, c->n_rows, STDOUT_FILENO);
    conf_print_help(global_rows, N_GLOBAL - 1, STDOUT_FILENO);
}

/* --- helpers of the commands --- */

char *cli_address(const struct cli *cli)
{
    return cli->opts.address ? xstrdup(cli->opts.address) : client_default_address();
}

int cli_job_id(const struct cli *cli, int i, int64_t *id, struct err *e)
{
    const char *text = cli->operands[i];
    char *end;

    long long v = strtoll(text, &end, 10);
    if (*text < '1' || *text > '9' || *end || v > (1LL << 53))
        return err_set_kind(e, ERR_USAGE,
                            "'%s' found, a job id is accepted (a whole number; bfctl list shows them)", text);
    *id = v;
    return 0;
}

cJSON *cli_id_params(const struct cli *cli, struct err *e)
{
    int64_t id = 0;

    if (cli_job_id(cli, 0, &id, e) < 0)
        return NULL;
    cJSON *params = cJSON_CreateObject();
    cJSON_AddNumberToObject(params, "id", (double)id);
    return params;
}

cJSON *cli_call(struct cli *cli, const char *method, cJSON *params, struct err *e)
{
    char *address = cli_address(cli);
    struct client *c = connect_to(address, cli->opts.ca, e);
    cJSON *result = NULL;

    if (c)
        result = client_call(c, method, params, CLI_CALL_MS, NULL, e);
    else
        cJSON_Delete(params);
    client_close(c);
    free(address);
    return result;
}

/* --- dispatch --- */

static int run_command(const struct cli_command *c, struct cli *cli, int argc, char **argv, struct err *e)
{
    struct conf_option rows[MAX_ROWS];
    struct conf_operands operands;
    size_t n = c->n_rows;

    if (!c->run)
        return err_set_kind(e, ERR_USAGE, "%s: not available in this version", c->name);
    ASSERT(n + N_GLOBAL <= MAX_ROWS);
    if (n)
        memcpy(rows, c->rows, n * sizeof *rows);
    memcpy(rows + n, global_rows, sizeof global_rows);
    int rc = conf_from_args(rows, n + N_GLOBAL, &cli->opts, argc, argv, &operands, e);
    if (rc == 0 && cli->opts.help) {
        print_command_help(c);
    } else if (rc == 0 && (operands.n < c->min_operands || operands.n > c->max_operands)) {
        rc = err_set_kind(e, ERR_USAGE, "%s: %d operands found; usage: bfctl %s%s%s", c->name, operands.n,
                          c->name, *c->operands ? " " : "", c->operands);
    } else if (rc == 0) {
        cli->operands = operands.v;
        cli->n_operands = operands.n;
        rc = c->run(cli, e);
    }
    conf_free(c->rows, c->n_rows, &cli->opts);
    return rc;
}

/* Index of the command in argv: the first word that is neither a global option nor its value. */
static int command_index(int argc, char **argv)
{
    int i = 1;

    while (i < argc && argv[i][0] == '-')
        i += strcmp(argv[i], "--address") == 0 || strcmp(argv[i], "--ca") == 0 ? 2 : 1;
    return i < argc ? i : argc;
}

static int dispatch(struct cli *cli, int argc, char **argv, struct err *e)
{
    struct conf_operands none;
    int at = command_index(argc, argv);
    char *name = at < argc ? argv[at] : NULL;

    if (conf_from_args(global_rows, N_GLOBAL, &cli->opts, at, argv, &none, e) < 0)
        return -1;
    if (cli->opts.version) {
        printf("bfctl %s\n", BF_VERSION);
        return EXIT_DONE;
    }
    if (cli->opts.help && !name) {
        print_help();
        return EXIT_DONE;
    }
    if (!name)
        return err_set_kind(e, ERR_USAGE, "a command is missing; see bfctl --help");
    const struct cli_command *c = find_command(name);
    return c ? run_command(c, cli, argc - at, argv + at, e) : unknown_command(name, e);
}

static int exit_status_of(const struct err *e)
{
    switch (e->kind) {
    case ERR_USAGE:
    case ERR_SPEC:
        return EXIT_USAGE;
    case ERR_UNREACHABLE:
        return EXIT_NO_COORDINATOR;
    case ERR_INTERRUPTED:
        return EXIT_INTERRUPTED;
    default:
        return EXIT_JOB_FAILED;
    }
}

static void print_error(const struct cli *cli, const struct err *e)
{
    if (cli->opts.json) {
        cJSON *doc = cJSON_CreateObject(), *error = cJSON_AddObjectToObject(doc, "error");
        cJSON_AddStringToObject(error, "message", e->msg);
        if (e->kind == ERR_REMOTE)
            cJSON_AddNumberToObject(error, "code", e->code);
        output_json(doc);
        cJSON_Delete(doc);
    }
    fprintf(stderr, "bfctl: %s\n", e->msg);
}

int main(int argc, char **argv)
{
    struct cli cli = {.opts = {.tail = -1, .since_step = -1, .steps = 10}};
    struct err e = ERR_INIT;
    int rc = dispatch(&cli, argc, argv, &e);

    if (rc < 0) {
        print_error(&cli, &e);
        rc = exit_status_of(&e);
    }
    conf_free(global_rows, N_GLOBAL, &cli.opts);
    if (fflush(stdout) != 0 && rc == EXIT_DONE)
        rc = EXIT_JOB_FAILED;
    return rc;
}
