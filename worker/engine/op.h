/* op - what an operator *is*: arity, shape rule, what its backward pass reads. How it *runs* is one row a
 * backend (backend.h). A new operator is a member of enum op, a row in op_table.c, and a kernel row in each
 * backend.
 *
 * Shapes: n rows of this rank, N rows of the global mini-batch, C channels, M rows of any kind, K classes.
 *
 * Types: activations (the x, y, q, kv, … below) are f32 or bf16, and an operator's result has the type of its
 * first input; parameters, their gradients and vectors of C or K are always f32, statistics and losses f64.
 */
#ifndef ENGINE_OP_H
#define ENGINE_OP_H

#include <stdbool.h>
#include "common/err.h"
#include "worker/engine/tensor.h"

enum op {
    OP_INPUT,        /* fed before each step; attr.input */
    OP_PARAM,        /* a named parameter or buffer of struct params */
    OP_CONV2D,       /* x (n,H,W,Ci), w (Co,Ci/groups,k,k) → (n,Ho,Wo,Co); no bias */
    OP_BN_STATS,     /* x (n,H,W,C) or (n,C) → f64 (2,C): per channel Σx, Σx² over this rank's rows */
    OP_BN_APPLY,     /* x, stats f64 (2,C), γ, β, running mean, running var [, residual] → as x */
    OP_BN_INFER,     /* x, γ, β, running mean, running var [, residual] → as x; no backward */
    OP_LAYERNORM,    /* x (M,C), γ (C), β (C) → (M,C) */
    OP_LINEAR,       /* x (M,I), w (O,I) [, b (O)] → (M,O): x·wᵀ + b */
    OP_ATTENTION,    /* q (n,C), kv (N,2C): keys in columns 0…C-1, values in C…2C-1 → (n,C) */
    OP_CAST,         /* x → as x, of type attr.cast.dtype (f32 or bf16) */
    OP_ACT,          /* x → as x */
    OP_ADD,          /* a, b of one shape → the same */
    OP_DROPOUT,      /* x (n,…) → as x; element-wise, survivors ×1/(1-p) */
    OP_MAXPOOL,      /* x (n,H,W,C) → (n,Ho,Wo,C) */
    OP_MEAN_SPATIAL, /* x (n,H,W,C) → (n,C) */
    OP_CONCAT_ROWS,  /* a (n1,…), b (n2,…), … → (n1+n2+…,…); any element type */
    OP_SLICE_ROWS,   /* x (M,…) → rows [from, to) */
    OP_SHORTCUT_PAD, /* x (n,H,W,C) → (n,⌈H/s⌉,⌈W/s⌉,C'): every s-th pixel, zero channels around (ResNet
                        option A) */
    OP_SOFTMAX_XENT, /* logits (M,K), targets i32 (M) [, offset (K)] → f64 (1): Σ over rows of ℓ / denominator
                      */
    OP_ALL_GATHER, /* x (n,…) → (N,…) in rank order; backward: reduce-scatter SUM, in f32 whatever x is */
    OP_ALL_REDUCE, /* x → as x, summed over ranks; backward: all-reduce SUM */
    OP_COUNT
};

enum { OP_MAX_INPUTS = 8 };

enum act_kind { ACT_RELU, ACT_GELU };

/* What a node needs beyond its inputs; the member named after the operator. */
union op_attr {
    struct {
        struct shape shape;
        enum dtype dtype;
    } input;
    struct {
        int kernel, stride, pad, groups;
    } conv; /* OP_CONV2D; OP_MAXPOOL without groups */
    struct {
        double count; /* rows behind the statistics: over all ranks when they were all-reduced */
        float eps, momentum;
        bool relu; /* y = max(0, …) after the residual was added */
    } bn;          /* OP_BN_APPLY, OP_BN_INFER (eps, relu) */
    struct {
        float eps;
    } layernorm;
    struct {
        int heads;
        float dropout;    /* on the attention weights */
        uint32_t stream;  /* Philox stream of the dropout */
        int64_t key_row0; /* global sample index of row 0 of kv: 0 when gathered, rows.first when local */
    } attention;
    struct {
        enum dtype dtype;
    } cast;
    struct {
        enum act_kind kind;
    } act;
    struct {
        float p;
        uint32_t stream;
    } dropout;
    struct {
        int64_t from, to;
    } slice;
    struct {
        int stride;
        int64_t channels; /* C' */
    } shortcut;
    struct {
        double denominator; /* global number of rows that the loss is a mean over */
    } xent;
};

/* What a backward kernel reads besides dout: bit i = input i's value, READS_OUT = the node's own value. */
enum { READS_OUT = 1 << 16 };

/* How an operator behaves in micro-shards (shards.h), where kernels run a shard's rows at a time. */
enum {
    OP_SUMS_ROWS = 1,      /* the value is a sum over rows: shards give parts of it */
    OP_WHOLE_FORWARD = 2,  /* runs over all rows of the rank at once: it only copies rows, or it has an effect
                              that must happen once; a row's bits do not depend on the rows beside it */
    OP_WHOLE_BACKWARD = 4, /* likewise */
};

struct node;

struct op_def {
    const char *name;
    int min_inputs, max_inputs;
    unsigned grad_inputs; /* inputs that a gradient can flow to; 0 = the operator has no backward */
    unsigned
        bwd_reads; /* the default; the shape rule may change it on the node (a fused ReLU reads the output) */
    /* Checks the inputs and sets shape and dtype of n; may change n->bwd_reads. The message need not name the
     * node: the graph does. */
    int (*infer)(struct node *n, struct err *e);
    unsigned flags;
};

extern const struct op_def op_table[OP_COUNT];

#endif
