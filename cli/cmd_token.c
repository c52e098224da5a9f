/* cmd_token - tokens by which people come in from other machines: token create, list, revoke. */
#include "cli/cli.h"
#include "cli/output.h"
#include "common/json.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define OPT(member) offsetof(struct cli_options, member)

static const char *text_of(const cJSON *obj, const char *key)
{
    const cJSON *v = json_find(obj, key);

    return cJSON_IsString(v) ? v->valuestring : "";
}

/* "2026-11-24 05:38", or what stands for no time. */
static void time_text(char *out, size_t size, const cJSON *obj, const char *key, const char *none)
{
    const cJSON *v = json_find(obj, key);
    time_t t = cJSON_IsNumber(v) ? (time_t)(v->valuedouble / 1000) : 0;
    struct tm tm;

    if (!cJSON_IsNumber(v) || !localtime_r(&t, &tm) || !strftime(out, size, "%Y-%m-%d %H:%M", &tm))
        snprintf(out, size, "%s", none);
}

/* "90s" "45m" "12h" "30d" "8w", or "never", which is 0. */
static int parse_duration(const char *text, int64_t *out, struct err *e)
{
    static const struct {
        char unit;
        int64_t seconds;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}, {'w', 7 * 86400}};
    char *end;
    long long n = strtoll(text, &end, 10);

    *out = 0;
    if (strcmp(text, "never") == 0)
        return 0;
    for (size_t i = 0; i < sizeof units / sizeof *units && end != text; i++)
        if (n > 0 && n <= 1000000000 && end[0] == units[i].unit && !end[1]) {
            *out = n * units[i].seconds;
            return 0;
        }
    return err_set_kind(e, ERR_USAGE,
                        "--expires: '%s' found, a number and s, m, h, d or w is accepted (30d), or never",
                        text);
}

static int create(struct cli *cli, struct err *e)
{
    cJSON *params = cJSON_CreateObject();
    int64_t expires_s;
    char when[32];

    if (cli->opts.expires && parse_duration(cli->opts.expires, &expires_s, e) < 0) {
        cJSON_Delete(params);
        return -1;
    }
    if (cli->opts.expires)
        cJSON_AddNumberToObject(params, "expires_s", (double)expires_s);
    if (cli->opts.user)
        cJSON_AddStringToObject(params, "user", cli->opts.user);
    if (cli->opts.role)
        cJSON_AddStringToObject(params, "role", cli->opts.role);
    if (cli->opts.note)
        cJSON_AddStringToObject(params, "note", cli->opts.note);
    cJSON *result = cli_call(cli, "token.create", params, e);
    if (!result)
        return -1;
    if (cli->opts.json) {
        output_json(result);
    } else {
        char user[OUTPUT_CELL];
        time_text(when, sizeof when, result, "expires", "never");
        output_text(user, sizeof user, text_of(result, "user"));
        fprintf(stderr, "token %.0f for %s, role %s, expires %s; it is not shown again:\n",
                json_find(result, "id") ? json_find(result, "id")->valuedouble : 0, user,
                text_of(result, "role"), when);
        printf("%s\n", text_of(result, "token"));
    }
    cJSON_Delete(result);
    return EXIT_DONE;
}

/* All pages, as one array. */
static cJSON *list_tokens(struct cli *cli, struct err *e)
{
    cJSON *all = cJSON_CreateArray(), *page;
    double cursor = 0;

    do {
        cJSON *params = cJSON_CreateObject();
        cJSON_AddNumberToObject(params, "cursor", cursor);
        page = cli_call(cli, "token.list", params, e);
        if (!page) {
            cJSON_Delete(all);
            return NULL;
        }
        cJSON *tokens = json_find(page, "tokens");
        while (cJSON_IsArray(tokens) && tokens->child)
            cJSON_AddItemToArray(all, cJSON_DetachItemFromArray(tokens, 0));
        const cJSON *next = json_find(page, "cursor");
        cursor = cJSON_IsNumber(next) ? next->valuedouble : 0;
        cJSON_Delete(page);
    } while (cursor > 0);
    return all;
}

static void list_row(struct output_table *t, const cJSON *token)
{
    char(*row)[OUTPUT_CELL] = output_table_row(t);
    const cJSON *id = json_find(token, "id");

    snprintf(row[0], OUTPUT_CELL, "%.0f", cJSON_IsNumber(id) ? id->valuedouble : 0);
    output_text(row[1], OUTPUT_CELL, text_of(token, "user"));
    output_text(row[2], OUTPUT_CELL, text_of(token, "role"));
    if (cJSON_IsTrue(json_find(token, "expired")))
        snprintf(row[3], OUTPUT_CELL, "expired");
    else
        time_text(row[3], OUTPUT_CELL, token, "expires", "never");
    time_text(row[4], OUTPUT_CELL, token, "used", "-");
    output_text(row[5], OUTPUT_CELL, text_of(token, "by"));
    output_text(row[6], OUTPUT_CELL, text_of(token, "note"));
}

static int list(struct cli *cli, struct err *e)
{
    struct output_table t = {
        .n_columns = 7,
        .titles = {"ID", "USER", "ROLE", "EXPIRES", "LAST USED", "BY", "NOTE"},
        .right = {true, false, false, false, false, false, false},
    };
    cJSON *all = list_tokens(cli, e);
    const cJSON *token;

    if (!all)
        return -1;
    if (cli->opts.json) {
        cJSON *doc = cJSON_CreateObject();
        cJSON_AddItemToObject(doc, "tokens", all);
        output_json(doc);
        cJSON_Delete(doc);
        return EXIT_DONE;
    }
    cJSON_ArrayForEach(token, all) list_row(&t, token);
    output_table_print(&t, stdout);
    output_table_free(&t);
    cJSON_Delete(all);
    return EXIT_DONE;
}

static int revoke_one(struct cli *cli, struct err *e)
{
    char *end;
    long long id = strtoll(cli->operands[1], &end, 10);

    if (end == cli->operands[1] || *end || id < 1)
        return err_set_kind(e, ERR_USAGE,
                            "'%s' found, a token's id is accepted (bfctl token list shows them)",
                            cli->operands[1]);
    cJSON *params = cJSON_CreateObject();
    cJSON_AddNumberToObject(params, "id", (double)id);
    cJSON *result = cli_call(cli, "token.revoke", params, e);
    if (!result)
        return -1;
    const cJSON *n = json_find(result, "connections");
    if (cli->opts.json)
        output_json(result);
    else
        fprintf(stderr, "token %lld is revoked; connections ended: %.0f\n", id,
                cJSON_IsNumber(n) ? n->valuedouble : 0);
    cJSON_Delete(result);
    return EXIT_DONE;
}

static int cmd_token(struct cli *cli, struct err *e)
{
    static const struct {
        const char *name;
        int n_operands;
        int (*run)(struct cli *cli, struct err *e);
    } verbs[] = {{"create", 1, create}, {"list", 1, list}, {"revoke", 2, revoke_one}};
    const char *verb = cli->operands[0];

    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
        if (strcmp(verb, verbs[i].name) != 0)
            continue;
        if (cli->n_operands != verbs[i].n_operands)
            return err_set_kind(e, ERR_USAGE, "token %s: %d operands found; usage: bfctl token %s%s", verb,
                                cli->n_operands - 1, verb, verbs[i].n_operands > 1 ? " ID" : "");
        return verbs[i].run(cli, e);
    }
    return err_set_kind(e, ERR_USAGE, "token: '%s' found, create, list or revoke is accepted", verb);
}

static const struct conf_option token_rows[] = {
    {"user", 0, CONF_STR, OPT(user), "USER", NULL, 0, 0, "create: whose jobs it submits (default: yours)"},
    {"role", 0, CONF_STR, OPT(role), "ROLE", NULL, 0, 0,
     "create: viewer, user, operator or admin (default: user)"},
    {"expires", 0, CONF_STR, OPT(expires), "TIME", NULL, 0, 0,
     "create: after so long, as 12h or 30d, or never (default: 30d)"},
    {"note", 0, CONF_STR, OPT(note), "TEXT", NULL, 0, 0, "create: what it is for"},
};

const struct cli_command cmd_token_commands[] = {
    {"token", "create|list|revoke [ID]", 1, 2, token_rows, sizeof token_rows / sizeof *token_rows,
     "make, list or revoke tokens for clients on other machines",
     "create prints the token alone on standard output, this once; the coordinator keeps its hash only. "
     "revoke "
     "ends the\n"
     "token's connections at once. All three are for administrators.",
     cmd_token},
    {0},
};
