/* bench_dn - what oneDNN alone reaches on a convolution: the fastest of its layouts and algorithms, with
 * weights and activations in whatever layout it likes, no reorder counted.
 */
#ifndef BENCH_BENCH_DN_H
#define BENCH_BENCH_DN_H

#include "common/err.h"
#include "worker/engine/conv.h"
#include "worker/engine/tensor.h"

struct bench_dn;

struct bench_dn *bench_dn_create(struct err *e);
void bench_dn_destroy(struct bench_dn *d); /* NULL is legal */

/* "2.6.3" */
const char *bench_dn_version(void);

/* One way to run a pass; ms < 0: the library does not have it. */
struct bench_dn_way {
    const char *name; /* "blocked direct", "nhwc direct", "blocked Winograd"; static storage */
    double ms;
};

enum { BENCH_DN_WAYS = 4 };

/* Times every way for about `seconds` each and takes the least: other load only adds. dtype is f32 or bf16,
 * gradients of weights are f32. */
int bench_dn_conv(struct bench_dn *d, const struct conv_shape *s, enum conv_pass pass, enum dtype dtype,
                  double seconds, struct bench_dn_way out[BENCH_DN_WAYS], struct err *e);

/* The fastest; NULL: there is none. */
const struct bench_dn_way *bench_dn_best(const struct bench_dn_way ways[BENCH_DN_WAYS]);

#endif
