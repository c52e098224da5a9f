/* dump_compare - how far apart the tensors of two safetensors files are.
 *
 * The deviation of b from a is ‖a-b‖ / ‖a‖ over a tensor, in double precision. The norm below the line is
 * taken as at least DUMP_COMPARE_FLOOR, which lies far below any gradient or weight that trains: two tensors
 * of zeros are equal, what the reference holds at exactly zero and the other does not is far apart (and not
 * a division by zero), and noise below the floor counts as little. What is not a number is infinitely far
 * away, unless the bits are the same.
 */
#ifndef CLI_DUMP_COMPARE_H
#define CLI_DUMP_COMPARE_H

#include <stddef.h>
#include <stdint.h>
#include "common/err.h"

#define DUMP_COMPARE_FLOOR 1e-12

struct dump_deviation {
    double worst;                         /* the largest of all tensors; INFINITY where it is not a number */
    double overall;                       /* of all tensors as one */
    char where[128];                      /* the tensor that is worst; "" when no bit differs */
    int64_t elements, elements_different; /* different: not the same bits */
};

/* Sums over values that were compared. */
struct dump_sums {
    double norm, apart; /* squares of a, and of the differences */
    int64_t elements, elements_different;
};

/* Adds n values. */
void dump_sums_add(struct dump_sums *s, const float *a, const float *b, size_t n);
double dump_sums_deviation(const struct dump_sums *s);

/* Compares the fp32 tensors whose names begin with `prefix` ("grad."), which both files must hold, and in the
 * same shapes; at least one. `where` leaves the prefix out. */
int dump_compare(const char *path_a, const char *path_b, const char *prefix, struct dump_deviation *out,
                 struct err *e);

#endif
