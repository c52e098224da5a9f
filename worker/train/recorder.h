/* recorder - rank 0's three readers of the same numbers: metrics.jsonl, TensorBoard, the coordinator. */
#ifndef TRAIN_RECORDER_H
#define TRAIN_RECORDER_H

#include "worker/train/metrics.h"
#include "worker/train/report.h"
#include "worker/train/tfevents.h"

enum { RECORD_MAX_VALUES = 24 };

/* One line. */
struct record {
    const char *kind;  /* "step" | "epoch" | "eval" */
    const char *split; /* eval only: "validation" | "test" */
    int64_t step, epoch;
    struct {
        char name[32];
        double value; /* NaN: null in the file, left out elsewhere */
    } values[RECORD_MAX_VALUES];
    int n_values;
};

/* PREFIX and NAME are joined; at most RECORD_MAX_VALUES. */
void record_add(struct record *r, const char *prefix, const char *name, double value);

struct recorder {
    struct metrics metrics;
    struct tfevents tfevents;
    struct report *report; /* borrowed; NULL: no coordinator */
};

/* at_step: the step that the run goes on from (0: a new run). On failure call recorder_close() all the same.
 */
int recorder_open(struct recorder *r, const char *run_dir, int64_t at_step, struct report *report,
                  struct err *e);
int recorder_write(struct recorder *r, const struct record *rec, struct err *e);
int recorder_sync(struct recorder *r, struct err *e);
void recorder_close(struct recorder *r);

#endif
