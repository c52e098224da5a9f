/* trainer_receipt - receipts of a run, and the check that all ranks still hold the same; see receipt.h.
 *
 * Every rank holds all weights and makes the same arithmetic on the same sums, so they are equal to the last
 * bit as long as machines and code are sound. A rank that drifted apart would spoil everyone's gradients from
 * then on, quietly. The check is made at every receipt and before every checkpoint, so no checkpoint ever
 * holds weights that the ranks did not agree on.
 *
 * Fault point: "train.flip_weight.RANK", passed before each comparison, flips a bit of that rank's
 * weights.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/fault.h"
#include "worker/train/agree.h"
#include "worker/train/trainer_impl.h"

/* What one rank holds. */
struct held {
    struct hash_hex weights, optimizer;
};

/* Bit 20 of the first weight: a change of about a tenth. */
static int flip_by_fault(struct trainer *t, struct err *e)
{
    struct backend *be = t->cfg.backend;
    char point[48];
    uint32_t bits;

    snprintf(point, sizeof point, "train.flip_weight.%d", t->cfg.comm->rank);
    if (!fault_hit(point, &t->fault_flip))
        return 0;
    if (be->ops->download(be, &bits, t->params->weights, sizeof bits, e) < 0)
        return -1;
    bits ^= 1u << 20;
    return be->ops->upload(be, t->params->weights, &bits, sizeof bits, e);
}

static int hash_held(struct trainer *t, struct held *out, struct err *e)
{
    if (flip_by_fault(t, e) < 0 || receipt_hash(t->params, PARAM_WEIGHT, &out->weights, e) < 0)
        return -1;
    return receipt_hash_states(t->params, &t->optim->states, &out->optimizer, e);
}

static int say_odd(struct trainer *t, const char *what, struct receipt_odd odd, const struct hash_hex *all,
                   struct err *e)
{
    err_set(
        e,
        "step %lld: rank %d holds another %s than rank %d (%s, %s): a fault of a machine or of the software; "
        "they were equal after step %lld and no checkpoint was written since: without that machine, go on "
        "from the newest one with --resume",
        (long long)t->at.step, odd.rank, what, odd.than, all[odd.rank].s, all[odd.than].s,
        (long long)t->agreed_step);
    return trainer_together(t, -1, e);
}

/* all[r] is what rank r holds; the same on every rank, so all come to the same end. */
static int compare(struct trainer *t, const struct held *all, struct err *e)
{
    int size = t->cfg.comm->size;
    struct hash_hex *one = xcalloc((size_t)size, sizeof *one);
    struct receipt_odd odd;
    int rc = 0;

    for (int r = 0; r < size; r++)
        one[r] = all[r].weights;
    odd = receipt_find_odd(one, size);
    if (odd.rank >= 0) {
        rc = say_odd(t, "set of weights", odd, one, e);
    } else {
        for (int r = 0; r < size; r++)
            one[r] = all[r].optimizer;
        odd = receipt_find_odd(one, size);
        if (odd.rank >= 0)
            rc = say_odd(t, "state of the optimiser", odd, one, e);
    }
    free(one);
    return rc;
}

static int check(struct trainer *t, const struct held *own, struct err *e)
{
    struct comm *comm = t->cfg.comm;
    struct held *all = xcalloc((size_t)comm->size, sizeof *all);
    int rc = agree_gather(comm, own, all, sizeof *all, e);

    if (rc == 0)
        rc = compare(t, all, e);
    if (rc == 0)
        t->agreed_step = t->at.step;
    free(all);
    return rc;
}

int trainer_check_drift(struct trainer *t, struct err *e)
{
    struct held own = {0};

    if (t->agreed_step == t->at.step || t->cfg.comm->size == 1)
        return 0;
    return hash_held(t, &own, e) < 0 ? -1 : check(t, &own, e);
}

int trainer_receipt(struct trainer *t, double loss, struct err *e)
{
    struct receipt r = {.step = t->at.step, .loss = loss};
    struct held own = {0};

    if (!receipts_due(t->at.step, t->n_steps))
        return 0;
    if (hash_held(t, &own, e) < 0 || check(t, &own, e) < 0 ||
        receipt_hash(t->params, PARAM_BUFFER, &r.buffers, e) < 0)
        return -1;
    r.weights = own.weights;
    r.optimizer = own.optimizer;
    receipts_add(&t->at.receipts, &r);
    return 0;
}
