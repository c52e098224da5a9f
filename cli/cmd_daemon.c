/* cmd_daemon - commands about the coordinator itself: info nodes drain shutdown. */
#include "cli/cli.h"
#include "cli/output.h"
#include "common/json.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Values as "key: value" lines, objects indented below their key. */
static void print_members(const cJSON *obj, int indent)
{
    const cJSON *v;

    cJSON_ArrayForEach(v, obj)
    {
        const char *key = v->string ? v->string : "-";
        char text[512];
        if (cJSON_IsObject(v) || (cJSON_IsArray(v) && cJSON_IsObject(v->child))) {
            printf("%*s%s:\n", indent, "", key);
            print_members(v, indent + 2);
        } else if (strcmp(key, "uptime_s") == 0 && cJSON_IsNumber(v)) {
            output_duration(text, sizeof text, v->valuedouble);
            printf("%*suptime: %s\n", indent, "", text);
        } else {
            char *raw = cJSON_IsString(v) ? xstrdup(v->valuestring) : json_text(v);
            output_text(text, sizeof text, raw);
            printf("%*s%s: %s\n", indent, "", key, text);
            free(raw);
        }
    }
}

/* Calls, then prints the result: with --json as it is, else by `print`, or `done` where that is NULL. */
static int simple(struct cli *cli, const char *method, cJSON *params, const char *done, struct err *e)
{
    cJSON *result = cli_call(cli, method, params, e);

    if (!result)
        return -1;
    if (cli->opts.json)
        output_json(result);
    else if (done)
        fprintf(stderr, "%s\n", done);
    else
        print_members(result, 0);
    cJSON_Delete(result);
    return EXIT_DONE;
}

static int cmd_info(struct cli *cli, struct err *e)
{
    return simple(cli, "daemon.info", NULL, NULL, e);
}

static int cmd_drain(struct cli *cli, struct err *e)
{
    return simple(cli, "daemon.drain", NULL, "draining: running jobs go on, no new one starts", e);
}

static int cmd_shutdown(struct cli *cli, struct err *e)
{
    cJSON *params = cJSON_CreateObject();

    cJSON_AddBoolToObject(params, "cancel", cli->opts.cancel);
    return simple(cli, "daemon.shutdown", params,
                  cli->opts.cancel ? "shutting down; running jobs are cancelled"
                                   : "shutting down; running jobs go on and are taken up at the next start",
                  e);
}

static void node_cell(char out[OUTPUT_CELL], const cJSON *node, const char *key)
{
    const cJSON *v = json_find(node, key);

    if (!v) {
        strcpy(out, "-");
        return;
    }
    char *raw = cJSON_IsString(v) ? xstrdup(v->valuestring) : json_text(v);
    output_text(out, OUTPUT_CELL, raw);
    free(raw);
}

static int cmd_nodes(struct cli *cli, struct err *e)
{
    static const char *const keys[] = {"name", "health",    "slots", "slots_free",
                                       "gpus", "gpus_free", "jobs",  "reason"};
    enum { N_KEYS = sizeof keys / sizeof *keys };
    struct output_table t = {
        .n_columns = N_KEYS,
        .titles = {"NODE", "HEALTH", "SLOTS", "FREE", "GPUS", "FREE", "JOBS", "REASON"},
        .right = {false, false, true, true, true, true, false, false},
    };
    cJSON *result = cli_call(cli, "node.list", NULL, e);
    const cJSON *nodes, *node;

    if (!result)
        return -1;
    if (cli->opts.json) {
        output_json(result);
    } else {
        nodes = cJSON_IsArray(result) ? result : json_find(result, "nodes");
        cJSON_ArrayForEach(node, nodes)
        {
            char(*row)[OUTPUT_CELL] = output_table_row(&t);
            for (int i = 0; i < N_KEYS; i++)
                node_cell(row[i], node, keys[i]);
        }
        output_table_print(&t, stdout);
        output_table_free(&t);
    }
    cJSON_Delete(result);
    return EXIT_DONE;
}

static int cmd_node(struct cli *cli, struct err *e)
{
    const char *what = cli->operands[0];
    bool drain = strcmp(what, "drain") == 0;
    cJSON *params = cJSON_CreateObject();

    if (!drain && strcmp(what, "resume") != 0) {
        cJSON_Delete(params);
        return err_set_kind(e, ERR_USAGE, "node: '%s' found, drain or resume is accepted", what);
    }
    cJSON_AddStringToObject(params, "name", cli->operands[1]);
    if (drain && cli->opts.reason)
        cJSON_AddStringToObject(params, "reason", cli->opts.reason);
    return simple(cli, drain ? "node.drain" : "node.resume", params,
                  drain ? "drained: nothing starts there any more; what runs goes on" : "takes work again",
                  e);
}

static const struct conf_option node_rows[] = {
    {"reason", 0, CONF_STR, offsetof(struct cli_options, reason), "TEXT", NULL, 0, 0, "why it is drained"},
};

static const struct conf_option shutdown_rows[] = {
    {"cancel", 0, CONF_FLAG, offsetof(struct cli_options, cancel), NULL, NULL, 0, 0,
     "cancel running jobs first"},
};

const struct cli_command cmd_daemon_commands[] = {
    {"info", "", 0, 0, NULL, 0, "version, uptime, jobs by state and slots of the coordinator", NULL,
     cmd_info},
    {"nodes", "", 0, 0, NULL, 0, "hosts with their slots and jobs", NULL, cmd_nodes},
    {"drain", "", 0, 0, NULL, 0, "start no more jobs; what runs goes on", NULL, cmd_drain},
    {"node", "drain|resume NAME", 2, 2, node_rows, sizeof node_rows / sizeof *node_rows,
     "take a node out of service, or put it back", "What runs there goes on; nothing new starts.", cmd_node},
    {"shutdown", "", 0, 0, shutdown_rows, 1, "stop the coordinator in order",
     "Without --cancel running jobs go on by themselves, and the next coordinator on the same state "
     "directory takes\n"
     "them up again.",
     cmd_shutdown},
    {0},
};
