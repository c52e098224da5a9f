/* bench_args - options of the programs that measure: a table of names and where their values go.
 *
 * "--name VALUE" for numbers and texts, "--name" alone for flags. Numbers are positive unless the row says
 * that 0 counts, too.
 */
#ifndef BENCH_BENCH_ARGS_H
#define BENCH_BENCH_ARGS_H

#include "common/err.h"

enum bench_arg_kind { ARG_INT, ARG_INT0, ARG_REAL, ARG_REAL0, ARG_TEXT, ARG_FLAG };

struct bench_arg {
    const char *name; /* "--batch"; NULL ends a table */
    enum bench_arg_kind kind;
    void *value; /* long *, double *, const char ** or bool * */
    const char *help;
};

/* Reads argv[1…] into the table's values. -1 names the option, what was found and what is accepted. */
int bench_args_read(const struct bench_arg *table, int argc, char **argv, struct err *e);

/* One line an option, to stderr. */
void bench_args_help(const struct bench_arg *table);

#endif
