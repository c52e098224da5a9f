/* dn - the thin wrapper of oneDNN: dn.c is the only file that includes its header, so what changed between
 * its versions 2 and 3 is settled in one place.
 *
 * Convolutions are direct and NHWC, their activations f32 or bf16; weights are plain (Co, Ci/groups, k, k)
 * and f32, in and out. oneDNN wants weights in layouts of its own, different for forward and for each
 * backward, and of the activations' type: they are reordered in every call, through scratch. Products are
 * added up in f32, and so the gradient of the weights comes out. Primitives and memory objects are made once;
 * a call only sets addresses.
 */
#ifndef BACKEND_CPU_DN_H
#define BACKEND_CPU_DN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/err.h"
#include "worker/engine/conv.h"
#include "worker/engine/tensor.h"

struct dn;
struct dn_conv;

struct dn *dn_create(struct err *e);
void dn_destroy(struct dn *d); /* after all its convolutions */

/* Whether oneDNN convolves bf16 on this CPU, forward and backward: it is asked for what a step needs. Version
 * 2.6 does from AVX-512 on, with AVX512-BF16 or without, and below that not at all, not even slowly. */
bool dn_has_bf16(struct dn *d);

/* The CPU's vector instructions as oneDNN sees them, for messages: "AVX2". */
const char *dn_isa(void);

/* n, ho, wo >= 1. t: of the activations. `passes` is a set of 1u << enum conv_pass; calling a pass that is
 * not in it is our bug. */
struct dn_conv *dn_conv_create(struct dn *d, const struct conv_shape *s, enum dtype t, unsigned passes,
                               struct err *e);
void dn_conv_destroy(struct dn_conv *c);

/* Bytes that each call needs at `scratch`, aligned to 64. */
size_t dn_conv_scratch_bytes(const struct dn_conv *c);

int dn_conv_forward(struct dn_conv *c, const void *x, const float *w, void *y, void *scratch, struct err *e);
/* dx is defined. */
int dn_conv_backward_data(struct dn_conv *c, const void *dy, const float *w, void *dx, void *scratch,
                          struct err *e);
/* *dw is set to the gradient, plain: somewhere in scratch. */
int dn_conv_backward_weights(struct dn_conv *c, const void *x, const void *dy, void *scratch,
                             const float **dw, struct err *e);

#endif
