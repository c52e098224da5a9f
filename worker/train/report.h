/* report - rank 0's link to the coordinator; with heartbeat.c the only file that knows the protocol.
 *
 * The link never holds training up: there is no thread, every call is bounded (a connect to a local socket,
 * one attach of at most REPORT_ATTACH_TIMEOUT_MS, and writes that give up at once when the socket is full),
 * and what cannot be sent now is dropped: metrics.jsonl and result.json have it all. When the coordinator
 * goes away, the run goes on and attaches again when it is back; tries are a second apart, more after one
 * that timed out or was refused. Nobody at the other end is never a reason to stop.
 */
#ifndef TRAIN_REPORT_H
#define TRAIN_REPORT_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>
#include "common/log.h"

enum { REPORT_ATTACH_TIMEOUT_MS = 500, REPORT_PROGRESS_EVERY_MS = 250 };

/* What the coordinator asked for. */
enum { REPORT_STOP = 1, REPORT_CHECKPOINT = 2 };

struct report_progress {
    const char *phase; /* "start" | "train" | "evaluate" | "checkpoint" | "finish" */
    int64_t step, n_steps, epoch, n_epochs;
    double loss, images_per_s, eta_s; /* NaN: unknown */
    int64_t checkpoint_step;          /* -1: none */
};

struct report;

/* True when the environment names a coordinator. */
bool report_wanted(void);

/* Reads the environment and tries to attach. Fails only when the variables that came with the address are
 * missing or malformed. Log and its file outlive the report. */
struct report *report_create(const struct log *log, int world_size, struct err *e);
void report_destroy(struct report *r); /* NULL is legal */

/* Sends at most every REPORT_PROGRESS_EVERY_MS, and whenever the phase changes. Also keeps the link alive:
 * reconnects, takes in commands. */
void report_progress(struct report *r, const struct report_progress *p);

/* One line of metrics.jsonl; values ({name: number}) stays the caller's. */
void report_metrics(struct report *r, const char *kind, int64_t step, int64_t epoch, const cJSON *values);

/* Commands since the last call: REPORT_* bits. */
unsigned report_take_commands(struct report *r);

/* The last word: "succeeded" | "failed" | "stopped". Waits up to timeout_ms for a coordinator that is away.
 * `result` stays the caller's. */
void report_done(struct report *r, const char *status, const char *reason, const cJSON *result,
                 int timeout_ms);

#endif
