/* metrics - metrics.jsonl: one JSON object a line, each written with one write(2).
 *
 *   {"kind":"step","step":20,"epoch":0,"loss":2.1,"lr":0.1,"images_per_s":910.2,"time":"…Z"}
 *   {"kind":"epoch","step":50,"epoch":1,"epoch_loss":2.2,"images_per_s":905.7,"time":"…Z"}
 *   {"kind":"eval","step":50,"epoch":1,"split":"validation","val_top1":0.31,…,"time":"…Z"}
 *
 * step: optimiser steps done when the line was written; epoch: epochs finished by then. Numbers are printed
 * so that reading them gives the same bits; a value that is not defined is null.
 *
 * The file of a resumed run has every line once: opening cuts off what lies beyond the step that the run goes
 * on from, a torn last line, and the test set's evaluation, which the end of the run repeats.
 */
#ifndef TRAIN_METRICS_H
#define TRAIN_METRICS_H

#include <cjson/cJSON.h>
#include <stdint.h>
#include "common/err.h"

struct metrics {
    int fd;
    char *path;
};

/* Opens for appending, after keeping only lines of steps <= keep_step (0 in a new run). */
int metrics_open(struct metrics *m, const char *path, int64_t keep_step, struct err *e);
int metrics_write(struct metrics *m, const cJSON *line, struct err *e);
int metrics_sync(struct metrics *m, struct err *e); /* to disk */
void metrics_close(struct metrics *m);              /* also after a failed open */

#endif
