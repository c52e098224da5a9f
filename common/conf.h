/* conf - one table of options drives command line, environment, config file and --help.
 *
 * An option is a row. Sources, the later wins: default, config file ({"state_dir": "…"}: JSON, keys are the
 * option names with '_' for '-'), environment variable, command line. Unknown options name the nearest known
 * one.
 */
#ifndef COMMON_CONF_H
#define COMMON_CONF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/err.h"

enum conf_type {
    CONF_FLAG, /* bool; no argument */
    CONF_STR,  /* char *, malloc'ed by conf; NULL when unset */
    CONF_INT,  /* int64_t within [min, max] */
    CONF_LIST, /* struct conf_list; the option may be given several times */
};

struct conf_list {
    char **items;
    size_t n_items;
};

struct conf_option {
    const char *name; /* "state-dir" */
    char letter;      /* 'f', or 0 */
    enum conf_type type;
    size_t offset;    /* of the field in the options struct */
    const char *arg;  /* "DIR", shown in --help */
    const char *env;  /* environment variable, or NULL */
    int64_t min, max; /* CONF_INT */
    const char *help; /* one line */
};

/* What is left after the options: operands, borrowed from argv. "--" ends the options. */
struct conf_operands {
    char **v;
    int n;
};

/* Reads the environment of the rows that name a variable. */
int conf_from_env(const struct conf_option *rows, size_t n_rows, void *opts, struct err *e);

/* Reads a JSON config file. */
int conf_from_file(const struct conf_option *rows, size_t n_rows, void *opts, const char *path,
                   struct err *e);

/* Parses argv[1..]; options and operands may mix. `operands->v` is filled in place of argv (same order).
 * Errors have kind ERR_USAGE. */
int conf_from_args(const struct conf_option *rows, size_t n_rows, void *opts, int argc, char **argv,
                   struct conf_operands *operands, struct err *e);

/* Prints the option rows of --help. */
void conf_print_help(const struct conf_option *rows, size_t n_rows, int fd);

/* The value of a row as text: "true", "15000", "a string", "[a, b]"; "none" for a string that is not set. */
void conf_value_text(const struct conf_option *row, const void *opts, char *out, size_t size);

/* Is the row's value the same in both? */
bool conf_value_equal(const struct conf_option *row, const void *a, const void *b);

/* Exchanges the row's value between the two. */
void conf_value_swap(const struct conf_option *row, void *a, void *b);

/* Frees what the rows own. */
void conf_free(const struct conf_option *rows, size_t n_rows, void *opts);

/* The candidate nearest to `word` by edit distance, or NULL when none is near. */
const char *conf_nearest(const char *word, const char *const *candidates, size_t n);

#endif
