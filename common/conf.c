/* conf - see conf.h. */
#include "common/conf.h"
#include "common/json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static size_t min3(size_t a, size_t b, size_t c)
{
    return a < b ? (a < c ? a : c) : (b < c ? b : c);
}

/* Levenshtein distance of words shorter than 64; longer ones are never near anything. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t na = strlen(a), nb = strlen(b), row[65];

    if (na > 63 || nb > 63)
        return 64;
    for (size_t j = 0; j <= nb; j++)
        row[j] = j;
    for (size_t i = 1; i <= na; i++) {
        size_t diag = row[0];
        row[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            size_t up = row[j];
            row[j] = min3(up + 1, row[j - 1] + 1, diag + (a[i - 1] != b[j - 1]));
            diag = up;
        }
    }
    return row[nb];
}

const char *conf_nearest(const char *word, const char *const *candidates, size_t n)
{
    const char *best = NULL;
    size_t best_d = strlen(word) / 2 + 2;

    for (size_t i = 0; i < n; i++) {
        size_t d = edit_distance(word, candidates[i]);
        if (d < best_d) {
            best_d = d;
            best = candidates[i];
        }
    }
    return best;
}

static int set_int(const struct conf_option *o, int64_t *field, const char *text, struct err *e)
{
    char *end;

    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (errno || end == text || *end || v < o->min || v > o->max)
        return err_set_kind(e, ERR_USAGE, "--%s: '%s' found, a whole number from %lld to %lld is accepted",
                            o->name, text, (long long)o->min, (long long)o->max);
    *field = v;
    return 0;
}

static int set_option(const struct conf_option *o, void *opts, const char *text, struct err *e)
{
    void *field = (char *)opts + o->offset;

    switch (o->type) {
    case CONF_FLAG:
        *(bool *)field = true;
        return 0;
    case CONF_STR:
        free(*(char **)field);
        *(char **)field = xstrdup(text);
        return 0;
    case CONF_INT:
        return set_int(o, field, text, e);
    case CONF_LIST: {
        struct conf_list *l = field;
        l->items = xrealloc(l->items, (l->n_items + 1) * sizeof *l->items);
        l->items[l->n_items++] = xstrdup(text);
        return 0;
    }
    }
    return 0;
}

int conf_from_env(const struct conf_option *rows, size_t n_rows, void *opts, struct err *e)
{
    for (size_t i = 0; i < n_rows; i++) {
        const char *v = rows[i].env ? getenv(rows[i].env) : NULL;
        if (v && *v && set_option(&rows[i], opts, v, e) < 0)
            return err_wrap(e, "environment variable %s", rows[i].env);
    }
    return 0;
}

static const struct conf_option *find_key(const struct conf_option *rows, size_t n_rows, const char *key)
{
    for (size_t i = 0; i < n_rows; i++) {
        const char *a = rows[i].name, *b = key;
        while (*a && (*a == *b || (*a == '-' && *b == '_'))) {
            a++;
            b++;
        }
        if (!*a && !*b)
            return &rows[i];
    }
    return NULL;
}

static int from_json_value(const struct conf_option *o, void *opts, const cJSON *v, struct err *e)
{
    char text[32], brief[64];
    int64_t i;

    json_brief(v, brief);
    if (o->type == CONF_FLAG && cJSON_IsBool(v)) {
        *(bool *)((char *)opts + o->offset) = cJSON_IsTrue(v);
        return 0;
    }
    if (o->type == CONF_INT && json_is_int(v, &i)) {
        snprintf(text, sizeof text, "%lld", (long long)i);
        return set_option(o, opts, text, e);
    }
    if (o->type == CONF_STR && cJSON_IsString(v))
        return set_option(o, opts, v->valuestring, e);
    if (o->type == CONF_LIST && cJSON_IsArray(v)) {
        for (const cJSON *c = v->child; c; c = c->next)
            if (!cJSON_IsString(c))
                return err_set(e, "/%s: %s found, an array of strings is accepted", v->string, brief);
            else if (set_option(o, opts, c->valuestring, e) < 0)
                return -1;
        return 0;
    }
    static const char *const accepted[] = {"true or false", "a string", "a whole number",
                                           "an array of strings"};
    return err_set(e, "/%s: %s found, %s is accepted", v->string, brief, accepted[o->type]);
}

int conf_from_file(const struct conf_option *rows, size_t n_rows, void *opts, const char *path, struct err *e)
{
    cJSON *doc = json_read_file(path, 1 << 20, e);
    int rc = 0;

    if (!doc)
        return -1;
    if (!cJSON_IsObject(doc))
        rc = err_set(e, "%s: an object is accepted", path);
    for (const cJSON *v = rc == 0 ? doc->child : NULL; v && rc == 0; v = v->next) {
        const struct conf_option *o = find_key(rows, n_rows, v->string);
        if (!o)
            rc = err_set(e, "unknown key \"%s\"", v->string);
        else
            rc = from_json_value(o, opts, v, e);
        if (rc < 0)
            err_wrap(e, "%s", path);
    }
    cJSON_Delete(doc);
    return rc;
}

static int unknown_option(const struct conf_option *rows, size_t n_rows, const char *arg, struct err *e)
{
    const char **names = xcalloc(n_rows, sizeof *names);

    for (size_t i = 0; i < n_rows; i++)
        names[i] = rows[i].name;
    char word[64];
    snprintf(word, sizeof word, "%s", arg + strspn(arg, "-"));
    word[strcspn(word, "=")] = 0;
    const char *near = conf_nearest(word, names, n_rows);
    free(names);
    return err_set_kind(e, ERR_USAGE, "unknown option '%s'%s%s", arg, near ? "; did you mean --" : "",
                        near ? near : "");
}

static const struct conf_option *match(const struct conf_option *rows, size_t n_rows, const char *arg,
                                       const char **value)
{
    *value = NULL;
    for (size_t i = 0; i < n_rows; i++) {
        size_t n = strlen(rows[i].name);
        if (arg[1] == '-' && strncmp(arg + 2, rows[i].name, n) == 0 &&
            (arg[2 + n] == 0 || arg[2 + n] == '=')) {
            *value = arg[2 + n] == '=' ? arg + 3 + n : NULL;
            return &rows[i];
        }
        if (arg[1] != '-' && rows[i].letter && arg[1] == rows[i].letter && arg[2] == 0)
            return &rows[i];
    }
    return NULL;
}

int conf_from_args(const struct conf_option *rows, size_t n_rows, void *opts, int argc, char **argv,
                   struct conf_operands *operands, struct err *e)
{
    bool only_operands = false;

    operands->v = argv + 1;
    operands->n = 0;
    for (int i = 1; i < argc; i++) {
        char *arg = argv[i];
        if (only_operands || arg[0] != '-' || arg[1] == 0) {
            operands->v[operands->n++] = arg;
            continue;
        }
        if (strcmp(arg, "--") == 0) {
            only_operands = true;
            continue;
        }
        const char *value;
        const struct conf_option *o = match(rows, n_rows, arg, &value);
        if (!o)
            return unknown_option(rows, n_rows, arg, e);
        if (o->type == CONF_FLAG && value)
            return err_set_kind(e, ERR_USAGE, "--%s takes no value", o->name);
        if (o->type != CONF_FLAG && !value) {
            if (i + 1 == argc)
                return err_set_kind(e, ERR_USAGE, "--%s needs a value: %s", o->name, o->arg);
            value = argv[++i];
        }
        if (set_option(o, opts, value, e) < 0)
            return -1;
    }
    return 0;
}

void conf_print_help(const struct conf_option *rows, size_t n_rows, int fd)
{
    for (size_t i = 0; i < n_rows; i++) {
        char left[64], letter[8] = "    ";
        if (rows[i].letter)
            snprintf(letter, sizeof letter, "-%c, ", rows[i].letter);
        snprintf(left, sizeof left, "%s--%s%s%s", letter, rows[i].name, rows[i].arg ? " " : "",
                 rows[i].arg ? rows[i].arg : "");
        dprintf(fd, "  %-36s %s%s%s%s\n", left, rows[i].help, rows[i].env ? " [$" : "",
                rows[i].env ? rows[i].env : "", rows[i].env ? "]" : "");
    }
}

/* --- values --- */

static void list_text(const struct conf_list *l, char *out, size_t size)
{
    size_t at = (size_t)snprintf(out, size, "[");

    for (size_t i = 0; i < l->n_items && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%s", i ? ", " : "", l->items[i]);
    if (at < size)
        snprintf(out + at, size - at, "]");
}

void conf_value_text(const struct conf_option *row, const void *opts, char *out, size_t size)
{
    const void *field = (const char *)opts + row->offset;
    const char *s;

    switch (row->type) {
    case CONF_FLAG:
        snprintf(out, size, "%s", *(const bool *)field ? "true" : "false");
        break;
    case CONF_STR:
        s = *(char *const *)field;
        snprintf(out, size, "%s", s ? s : "none");
        break;
    case CONF_INT:
        snprintf(out, size, "%lld", (long long)*(const int64_t *)field);
        break;
    case CONF_LIST:
        list_text(field, out, size);
        break;
    }
}

static bool list_equal(const struct conf_list *a, const struct conf_list *b)
{
    if (a->n_items != b->n_items)
        return false;
    for (size_t i = 0; i < a->n_items; i++)
        if (strcmp(a->items[i], b->items[i]) != 0)
            return false;
    return true;
}

bool conf_value_equal(const struct conf_option *row, const void *a, const void *b)
{
    const void *x = (const char *)a + row->offset, *y = (const char *)b + row->offset;
    const char *s, *t;

    switch (row->type) {
    case CONF_FLAG:
        return *(const bool *)x == *(const bool *)y;
    case CONF_STR:
        s = *(char *const *)x;
        t = *(char *const *)y;
        return s && t ? strcmp(s, t) == 0 : s == t;
    case CONF_INT:
        return *(const int64_t *)x == *(const int64_t *)y;
    case CONF_LIST:
        return list_equal(x, y);
    }
    return true;
}

void conf_value_swap(const struct conf_option *row, void *a, void *b)
{
    static const size_t sizes[] = {[CONF_FLAG] = sizeof(bool),
                                   [CONF_STR] = sizeof(char *),
                                   [CONF_INT] = sizeof(int64_t),
                                   [CONF_LIST] = sizeof(struct conf_list)};
    char old[sizeof(struct conf_list)];
    size_t n = sizes[row->type];

    memcpy(old, (char *)a + row->offset, n);
    memcpy((char *)a + row->offset, (char *)b + row->offset, n);
    memcpy((char *)b + row->offset, old, n);
}

void conf_free(const struct conf_option *rows, size_t n_rows, void *opts)
{
    for (size_t i = 0; i < n_rows; i++) {
        void *field = (char *)opts + rows[i].offset;
        if (rows[i].type == CONF_STR) {
            free(*(char **)field);
            *(char **)field = NULL;
        } else if (rows[i].type == CONF_LIST) {
            struct conf_list *l = field;
            for (size_t k = 0; k < l->n_items; k++)
                free(l->items[k]);
            free(l->items);
            *l = (struct conf_list){0};
        }
    }
}
