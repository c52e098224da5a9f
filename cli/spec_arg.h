/* spec_arg - the SPEC operand and --set: reads, overrides, makes paths absolute, checks. */
#ifndef CLI_SPEC_ARG_H
#define CLI_SPEC_ARG_H

#include "cli/cli.h"
#include "proto/jobspec.h"

/* A spec ready to submit. */
struct spec_arg {
    cJSON *doc;          /* as written, with --set applied and paths absolute; NULL when it is no JSON */
    cJSON *resolved;     /* NULL when there are findings; of a sweep an array */
    struct jobspec spec; /* undefined when there are findings, and for a sweep */
    int n_jobs;          /* that the document makes */
    struct jobspec_errors errs; /* empty when the spec is valid */
};

/* Reads the file named by operand 0 ("-": standard input). -1 only when there is no document at all:
 * unreadable file, bad JSON, bad --set. Findings are in arg->errs. The caller frees arg after either result.
 */
int spec_arg_read(const struct cli *cli, struct spec_arg *arg, struct err *e);

/* The same for commands that take a sweep as well: several jobs in one document. */
int spec_arg_read_jobs(const struct cli *cli, struct spec_arg *arg, struct err *e);
void spec_arg_free(struct spec_arg *arg);

/* Does train.determinism ask for the same bits on any number of ranks? `spec` may lack anything. */
bool spec_is_bitwise(const cJSON *spec);

/* Is train.precision "bf16"? Likewise. */
bool spec_is_bf16(const cJSON *spec);

/* Prints the findings, one a line, to stderr; with --json {"valid": false, "errors": […]} to stdout. Returns
 * EXIT_USAGE. */
int spec_arg_report(const struct cli *cli, const struct spec_arg *arg);

/* The same for the errors that a coordinator sent back: an array of {pointer, message}. */
int spec_arg_report_json(const struct cli *cli, const cJSON *errors);

#endif
