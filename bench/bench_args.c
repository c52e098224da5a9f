/* bench_args - see bench_args.h. */
#include "bench/bench_args.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct bench_arg *find(const struct bench_arg *table, const char *name)
{
    for (const struct bench_arg *a = table; a->name; a++)
        if (strcmp(a->name, name) == 0)
            return a;
    return NULL;
}

static int read_int(const struct bench_arg *a, const char *text, struct err *e)
{
    const long least = a->kind == ARG_INT0 ? 0 : 1;
    char *end;

    errno = 0;
    const long v = strtol(text, &end, 10);
    if (errno || end == text || *end || v < least)
        return err_set(e, "%s: \"%s\" found, a whole number from %ld on is accepted", a->name, text, least);
    *(long *)a->value = v;
    return 0;
}

static int read_real(const struct bench_arg *a, const char *text, struct err *e)
{
    char *end;
    const double v = strtod(text, &end);

    if (end == text || *end || !isfinite(v) || v < 0 || (v == 0 && a->kind == ARG_REAL))
        return err_set(e, "%s: \"%s\" found, a number %s is accepted", a->name, text,
                       a->kind == ARG_REAL0 ? "from 0 on" : "above 0");
    *(double *)a->value = v;
    return 0;
}

static int read_value(const struct bench_arg *a, const char *text, struct err *e)
{
    if (!text)
        return err_set(e, "%s: no value found", a->name);
    if (a->kind == ARG_TEXT) {
        *(const char **)a->value = text;
        return 0;
    }
    return a->kind == ARG_INT || a->kind == ARG_INT0 ? read_int(a, text, e) : read_real(a, text, e);
}

int bench_args_read(const struct bench_arg *table, int argc, char **argv, struct err *e)
{
    for (int i = 1; i < argc; i++) {
        const struct bench_arg *a = find(table, argv[i]);
        if (!a)
            return err_set(e, "\"%s\" found, which is no option", argv[i]);
        if (a->kind == ARG_FLAG)
            *(bool *)a->value = true;
        else if (read_value(a, i + 1 < argc ? argv[++i] : NULL, e) < 0)
            return -1;
    }
    return 0;
}

void bench_args_help(const struct bench_arg *table)
{
    for (const struct bench_arg *a = table; a->name; a++)
        fprintf(stderr, "  %-14s %s\n", a->name, a->help);
}
