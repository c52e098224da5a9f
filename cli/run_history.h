/* run_history - what a run directory tells about the numbers of its run, step by step.
 *
 * Losses: the lines of kind "step" in metrics.jsonl, written so that reading them gives the same bits.
 * Receipts: hashes of everything that a step leaves behind, at fixed steps. They are in result.json and in
 * each checkpoint's manifest; the result is newer. Both rise by step.
 */
#ifndef CLI_RUN_HISTORY_H
#define CLI_RUN_HISTORY_H

#include <stdbool.h>
#include <stdint.h>
#include "common/err.h"

struct run_loss {
    int64_t step;
    double loss; /* NaN: the line says null */
};

struct run_losses {
    struct run_loss *v;
    int n;
};

/* In the order of cause and effect: what differs first in this list is nearest to the cause. */
enum run_receipt_field {
    RECEIPT_ORDER,
    RECEIPT_LOSS,
    RECEIPT_WEIGHTS,
    RECEIPT_BUFFERS,
    RECEIPT_OPTIMIZER,
    RUN_RECEIPT_FIELDS,
};

struct run_receipt {
    int64_t step;
    char v[RUN_RECEIPT_FIELDS][33]; /* text; equal text is equal bits */
};

struct run_receipts {
    struct run_receipt *v;
    int n;
    int64_t order_from; /* the running hash of what was fed begins after this step; 0: from the start */
    int world_size;     /* ranks of the run when it wrote them; 0: not said */
    char *source;       /* the file that they are from; NULL: there are none */
};

/* The member of a receipt, and what people call it. */
const char *run_receipt_key(enum run_receipt_field f);
const char *run_receipt_text(enum run_receipt_field f);

/* A file that is not there holds none; a damaged one is an error that names it. A torn last line of metrics
 * (the run is being written) is passed over; of a step that is there again, the later line counts. */
int run_losses_read(const char *run_dir, struct run_losses *out, struct err *e);
void run_losses_free(struct run_losses *l);

/* The same bits, or both not a number. */
bool run_loss_same(double a, double b);

int run_receipts_read(const char *run_dir, struct run_receipts *out, struct err *e);
void run_receipts_free(struct run_receipts *r);

#endif
