/* receipt - what a run can show for itself: hashes of data order and state at fixed steps, so that two runs
 * can be compared without either's data or weights.
 *
 *   {"step": 64, "order": "<32 hex>", "loss": "<%.17g>", "weights": …, "buffers": …, "optimizer": …}
 *
 * - step: every period-th and the last one. The period is the smallest power of two that makes at most 64 of
 *   them, so runs of different lengths have steps in common.
 * - order: of everything that was fed up to this step, order_s = hash(order_{s-1} ‖ digest of step s), where
 * the digest (task.h, batch_digest) is summed over the ranks. The same for any number of ranks.
 * - loss: of the global mini-batch of this step, as text that gives the same bits when read.
 * - weights: all trained tensors after the step.
 * - buffers: running statistics, rank 0's.
 * - optimizer: what it keeps of each weight (optim.h), state after state.
 *
 * Tensors come in order of declaration, each as its name, a zero byte, and its elements (fp32,
 * little-endian); padding and layout in memory do not count.
 *
 * Receipts and the running order go through checkpoints: a resumed run has those of one that was never
 * stopped.
 */
#ifndef TRAIN_RECEIPT_H
#define TRAIN_RECEIPT_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>
#include "common/hash.h"
#include "worker/engine/params.h"

enum { RECEIPTS_REGULAR = 64, RECEIPTS_MAX = RECEIPTS_REGULAR + 1 };

struct receipt {
    int64_t step;
    double loss;
    struct hash_hex order, weights, buffers, optimizer;
};

/* Plain data: it is broadcast as it is. */
struct receipts {
    struct hash_hex order; /* after the last step that was made */
    int64_t from; /* the step after which `order` begins: 0, unless an older version made steps before */
    int n;
    struct receipt v[RECEIPTS_MAX]; /* rising by step */
};

/* Of a run whose first `from` steps left no receipts. */
void receipts_init(struct receipts *r, int64_t from);

/* Smallest power of two P with n_steps <= RECEIPTS_REGULAR * P. */
int64_t receipts_period(int64_t n_steps);
bool receipts_due(int64_t step, int64_t n_steps);

/* Drops what a run of n_steps would not have: after train.epochs was raised, steps between the new ones. */
void receipts_keep_due(struct receipts *r, int64_t n_steps);

/* Takes the next step's data into the running order. */
void receipts_feed(struct receipts *r, uint64_t digest);

/* Appends; its order is the running one. */
void receipts_add(struct receipts *r, const struct receipt *one);

/* Hash of the tensors of one kind. */
int receipt_hash(const struct params *ps, enum param_kind kind, struct hash_hex *out, struct err *e);

/* Hash of the states, one after the other as if each held the weights. */
struct optim_states; /* optim.h */
int receipt_hash_states(const struct params *ps, const struct optim_states *states, struct hash_hex *out,
                        struct err *e);

/* A rank that holds something else than most do (equal numbers: than the one with the lowest rank). */
struct receipt_odd {
    int rank, than; /* -1: all hold the same; `than` is the lowest rank of the others */
};

/* all: `size` hashes, in rank order. */
struct receipt_odd receipt_find_odd(const struct hash_hex *all, int size);

/* The array "receipts". */
cJSON *receipts_to_json(const struct receipts *r);

/* Reads a manifest's members "receipts", "order" and "order_from". */
int receipts_from_json(struct receipts *r, const cJSON *manifest, struct err *e);

#endif
