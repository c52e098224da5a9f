/* dump - everything about one step, for comparing runs: --dump-step N:FILE.
 *
 * Steps count from 1. FILE becomes a safetensors file of fp32 tensors: `loss` (a scalar, of the mini-batch of
 * step N), `grad.NAME` (the gradient of the global loss in step N, before clipping, weight decay and
 * optimiser) and `param.NAME` (after step N). Rank 0 only; it costs a copy of the gradients and nothing in
 * other steps.
 */
#ifndef TRAIN_DUMP_H
#define TRAIN_DUMP_H

#include "worker/engine/params.h"

struct dump {
    int64_t step; /* 0: no dump is wanted */
    const char *path;
    float *grads; /* host copy of ps->grads, from dump_take_grads() to dump_write() */
};

/* Reads "N:FILE", N >= 1; FILE is borrowed from text. Kind ERR_USAGE. */
int dump_parse(const char *text, struct dump *d, struct err *e);

int dump_take_grads(struct dump *d, const struct params *ps, struct err *e);

/* Writes the file (whole or not at all) and frees the copy. */
int dump_write(struct dump *d, const struct params *ps, double loss, struct err *e);

void dump_free(struct dump *d);

#endif
