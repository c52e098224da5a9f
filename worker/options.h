/* options - the command line of batchformer-worker. */
#ifndef WORKER_OPTIONS_H
#define WORKER_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include "common/err.h"
#include "worker/train/dump.h"

struct options {
    char *job, *run_dir, *dump_step; /* owned */
    bool resume, probe, version, help;
    int64_t max_steps; /* 0: none */
    struct dump dump;  /* parsed from dump_step */
};

/* Errors have kind ERR_USAGE. On failure call options_free() all the same. */
int options_parse(struct options *o, int argc, char **argv, struct err *e);
void options_free(struct options *o);

/* --help, on standard output. */
void options_print_help(void);

#endif
