/* result - what a finished run's result.json says, for people. */
#ifndef CLI_RESULT_H
#define CLI_RESULT_H

#include <cjson/cJSON.h>
#include <stdio.h>

/* RUN/result.json, or NULL when it is not there (or not readable from here). The caller owns it. */
cJSON *result_read(const char *run_dir);

/* Prints accuracies with how their groups were made, with or without BatchFormer, throughput, wall time,
 * world size and where the run lies. Facts that the document lacks are left out; result may be NULL. */
void result_print(FILE *out, const cJSON *result, const char *run_dir);

#endif
