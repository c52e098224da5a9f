/* submit - sends a checked spec to a coordinator. */
#ifndef CLI_SUBMIT_H
#define CLI_SUBMIT_H

#include <stdint.h>
#include "cli/spec_arg.h"

struct client;

/* Submits arg->doc; key may be NULL. Returns 0 with *id, and in *n how many jobs there are, whose ids follow
 * each other; -1 with an error, or EXIT_USAGE (> 0) after it has
 * printed the findings of a coordinator that is stricter than this program. */
int submit_spec(struct cli *cli, struct client *c, const struct spec_arg *arg, const char *key, int64_t *id,
                int64_t *n, struct err *e);

#endif
