/* op_pair - a case of the table on the CPU in f32, and the same node on another backend, in f32 or bf16:
 * values and gradients are held beside each other.
 *
 * In bf16 the CPU computes in f32 from inputs that were rounded to bf16, so that only the rounding of results
 * and of what lies between differs.
 */
#ifndef TESTS_OPS_OP_PAIR_H
#define TESTS_OPS_OP_PAIR_H

#include "tests/ops/op_run.h"

struct op_pair {
    struct op_run cpu;
    struct backend *be; /* the other */
    const struct kernel *kernel;
    enum dtype t;  /* of activations */
    bool gathered; /* the gradient of an input is f32, as where its rows were gathered */
    double tolerance;
    struct node node, in_nodes[OP_MAX_INPUTS];
    struct op_prep prep;
    struct op_call call;
};

/* Operators that have an input whose rows may be gathered. */
bool op_takes_gathered(enum op op);

/* A failure of any of these fails the test. tolerance: of the norm of each result; 0: to the bit, results of
 * type bf16 being the CPU's f32, rounded once. */
void op_pair_init(struct op_pair *p, struct backend *cpu, struct backend *be, const struct op_case *spec,
                  enum dtype t, bool gathered, double tolerance);
void op_pair_free(struct op_pair *p);
void op_pair_forward(struct op_pair *p);
/* Gradients as they come, and then once more on top of themselves. */
void op_pair_backward(struct op_pair *p);

/* All of it: be[0] is the CPU, be[1] the other. */
void op_pair_check(struct backend **be, const struct op_case *spec, enum dtype t, bool gathered,
                   double tolerance);

/* To nearest, ties to even; finite numbers. */
uint16_t op_to_bf16(float f);
float op_from_bf16(uint16_t h);

#endif
