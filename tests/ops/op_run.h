/* op_run - one operator with its buffers, run without a graph or a program: what the operator tests are made
 * of.
 *
 * Everything a kernel may write is filled with NaN before it runs, and before backward so is everything that
 * the node does not declare to be read then: an element left undefined, or read against the contract, shows.
 */
#ifndef TESTS_OPS_OP_RUN_H
#define TESTS_OPS_OP_RUN_H

#include "worker/engine/backend.h"

/* How an input is filled. */
enum fill {
    FILL_UNIT,     /* uniform in [-1, 1] */
    FILL_APART,    /* ±[0.4, 1.4]: away from the kink of a ReLU */
    FILL_SMALL,    /* uniform in [-0.1, 0.1] */
    FILL_ONE,      /* uniform in [0.7, 1.3] */
    FILL_SUMS,     /* f64 (2,C): sums over bn.count rows of mean [-0.1, 0.1] and variance [0.9, 1.1] */
    FILL_DISTINCT, /* values at least 0.05 apart, shuffled */
    FILL_TARGETS,  /* i32 below the width of input 0 */
};

struct op_input {
    enum fill fill;
    struct shape shape;
};

struct op_case {
    const char *name;
    enum op op;
    union op_attr attr;
    int n_inputs;
    struct op_input in[OP_MAX_INPUTS];
    double step;          /* of the central difference; 0 = 1e-2 */
    int64_t first, total; /* the rank's slice; total 0: all rows are here */
};

struct op_run {
    const struct op_case *spec;
    struct backend *be;
    const struct kernel *kernel;
    struct node node, in_nodes[OP_MAX_INPUTS];
    struct op_prep prep;
    struct op_call call;
    struct step_ctx step;
    struct row_split rows;
    int64_t counts[1];
    void *in_copy[OP_MAX_INPUTS]; /* what the inputs were before backward poisoned them */
    void *out_copy;
};

/* Infers the shape, prepares, allocates and fills the inputs by Philox from seed. A failure fails the test.
 */
void op_run_init(struct op_run *r, struct backend *be, const struct op_case *spec, uint64_t seed);
void op_run_free(struct op_run *r);

/* Both fail the test when the kernel fails. */
void op_run_forward(struct op_run *r);
/* Gradients of input i go to call.din[i] where set; see op_run_want(). */
void op_run_backward(struct op_run *r);

/* Allocates din for exactly the inputs in mask, NaN-filled, acc = 0. */
void op_run_want(struct op_run *r, unsigned mask);

/* Fills dout with uniform [-1, 1]. */
void op_run_fill_dout(struct op_run *r, uint64_t seed);

/* Elements of input i, or of the output for i = -1; as double whatever the type. */
int64_t op_run_count(const struct op_run *r, int i);
double op_value(const void *p, enum dtype t, int64_t k);
void op_set_value(void *p, enum dtype t, int64_t k, double v);

/* The three together: seed 1, dout from seed 2, gradients of all inputs that can have one. */
void op_run_whole(struct op_run *r, struct backend *be, const struct op_case *spec);

/* The CPU's, Winograd's convolutions allowed. A failure fails the test. */
struct backend *op_run_backend(int n_threads);

/* Inputs that a gradient can flow to. */
unsigned op_run_grad_mask(const struct op_run *r);

/* Uniform in [-1, 1] from (seed, stream, k). */
double op_uniform(uint64_t seed, uint32_t stream, int64_t k);

/* ‖a - b‖ / max(‖b‖, tiny) over n elements of type t. NaN when anything is. */
double op_distance(const void *a, const void *b, enum dtype t, int64_t n);

/* The shared table of cases: each operator in several shapes and attributes. */
extern const struct op_case op_cases[];
extern const size_t n_op_cases;

/* A message that stands in for cmocka's when a table-driven check fails. */
#define CHECK(cond, ...)                                                                                     \
    do {                                                                                                     \
        if (!(cond))                                                                                         \
            op_check_failed(__FILE__, __LINE__, __VA_ARGS__);                                                \
    } while (0)
void op_check_failed(const char *file, int line, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#endif
