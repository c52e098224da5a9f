/* result - result.json: how a run ended. Written once, atomically, when it ends for whatever reason.
 *
 * Throughput and timings are of this process: a resumed run counts what it did itself.
 */
#ifndef TRAIN_RESULT_H
#define TRAIN_RESULT_H

#include <cjson/cJSON.h>
#include <math.h>
#include "worker/train/checkpoint.h"

struct result {
    const char *status; /* "succeeded" | "failed" | "stopped" */
    const char *reason; /* a sentence; NULL when it succeeded */
    bool peer_lost;     /* it failed because another rank was gone or silent: trying again may help */
    const char *name, *task, *data_hash;
    bool batchformer;
    int world_size, threads_per_rank;
    const char *threads_from; /* what decided it: struct host_threads; NULL: it was not decided yet */
    int64_t parameters;       /* trained numbers, module included */
    int64_t steps, n_steps, epochs, n_epochs;
    double loss;                     /* of the last step; NaN: none */
    double images_per_s;             /* training steps alone; NaN: none */
    struct checkpoint_best best;     /* validation */
    const char *primary;             /* name of best.value: "top1" */
    const cJSON *validation;         /* the last one; NULL: none. Borrowed */
    const struct receipts *receipts; /* NULL: none. Borrowed */
    const cJSON *eval;               /* the test set with the final weights; NULL: none. Borrowed */
    struct {
        double start_s; /* from program start to the first step */
        double
            comm_s; /* from program start until the ranks have met; this and the next are parts of start_s */
        double data_s, compile_s;
        double first_step_s;             /* part of train_s */
        double train_s;                  /* steps alone */
        double data_wait_s, comm_wait_s; /* of train_s, what this rank waited for */
        double eval_s, checkpoint_s, total_s;
    } timings; /* NaN: there was none, or it is not known */
};

#define RESULT_NO_TIMINGS                                                                                    \
    {                                                                                                        \
        NAN, NAN, NAN, NAN, NAN, 0, 0, NAN, 0, 0, 0                                                          \
    }

/* The caller owns the document. */
cJSON *result_to_json(const struct result *r);

/* RUN/result.json */
int result_write(const char *run_dir, const cJSON *result, struct err *e);

#endif
