/* backend - where tensors live and how operators run: one struct of functions a device kind.
 *
 * A kernel row has up to four functions. prepare() runs once when a graph is compiled: it builds whatever the
 * node needs (a convolution primitive, say) and says how much memory it wants; forward() and backward() then
 * run without allocating, looking anything up by name or computing shapes. A missing forward or (where a
 * gradient is needed) backward is found by the compiler and refused by name; there is no fallback.
 *
 * Backward contract. dout is the gradient of the loss with respect to the node's value. For each input i with
 * din[i] != NULL the kernel *adds* to din[i] when bit i of acc is set, and else *defines every element* of
 * it.
 *
 * Determinism contract. No float atomics; reductions in an order that depends on shapes only, never on the
 * number of threads: the same spec and world size give the same bits.
 */
#ifndef ENGINE_BACKEND_H
#define ENGINE_BACKEND_H

#include "worker/comm/comm.h"
#include "worker/engine/flat.h"
#include "worker/engine/graph.h"

/* What random draws are keyed by, set before each step. */
struct step_ctx {
    uint64_t seed;
    uint64_t step; /* optimiser step, from 0 */
};

/* A node, ready to run. Pointers are device pointers, fixed when the graph is compiled. */
struct op_call {
    const struct node *node;
    void *state; /* from prepare(), or NULL */
    void *in[OP_MAX_INPUTS];
    void *out;
    void *aux;     /* prep.aux_bytes, kept from this node's forward to its backward; NULL when 0 */
    void *scratch; /* the larger scratch of all nodes, valid during one call only */
    void *din[OP_MAX_INPUTS];
    const void *dout;
    unsigned acc;
    const struct step_ctx *step;
    const struct row_split *rows;
    struct comm *comm;
};

/* Filled in by prepare(); zeroed before. */
struct op_prep {
    void *state;
    size_t aux_bytes, scratch_bytes;
};

struct kernel {
    int (*prepare)(struct backend *be, const struct node *n, struct op_prep *p,
                   struct err *e); /* may be NULL */
    void (*release)(void *state);  /* may be NULL */
    int (*forward)(const struct op_call *c, struct err *e);
    int (*backward)(const struct op_call *c, struct err *e);
};

struct backend_ops {
    const char *name;             /* "cpu" */
    bool bf16;                    /* its kernels take bf16 activations */
    const struct kernel *kernels; /* [OP_COUNT]; OP_INPUT, OP_PARAM and the collectives have no row here */
    const struct flat_ops *flat;
    /* At least bytes, aligned to TENSOR_ALIGN_BYTES, not initialised. */
    void *(*mem_alloc)(struct backend *be, size_t bytes, struct err *e);
    void (*mem_free)(struct backend *be, void *p);
    int (*upload)(struct backend *be, void *dst, const void *src, size_t bytes, struct err *e);
    /* Begins to bring src to the device beside the work given so far; one range at a time. A later upload()
     * of the same range then leaves the host free at once, so the range must not change until then, or until
     * upload_ahead() of nothing (NULL, 0) has forgotten it. NULL: the backend has no use for it. */
    int (*upload_ahead)(struct backend *be, const void *src, size_t bytes, struct err *e);
    int (*download)(struct backend *be, void *dst, const void *src, size_t bytes, struct err *e);
    int (*zero)(struct backend *be, void *dst, size_t bytes, struct err *e);
    /* Inside the device: dst = src, dst += src (n elements), and, for debug builds, dst = NaN. */
    int (*copy)(struct backend *be, void *dst, const void *src, size_t bytes, struct err *e);
    int (*accumulate)(struct backend *be, void *dst, const void *src, size_t n, enum dtype t, struct err *e);
    /* dst (n elements of type t) = src, or += src; where gradients of many ranks, summed in f32, become a
     * gradient of another type. NULL where bf16 is false. */
    int (*from_f32)(struct backend *be, void *dst, enum dtype t, const float *src, size_t n, bool add,
                    struct err *e);
    void (*poison)(struct backend *be, void *dst, size_t bytes);
    /* Before each step, where kernels cannot read *step on the host; NULL: they can. */
    int (*set_step)(struct backend *be, const struct step_ctx *step, struct err *e);
    /* Does `work`, a fixed sequence of calls on the device. A backend that can records it the second time and
     * replays it from then on; *recording begins as NULL and belongs to the backend. NULL: work is just done.
     */
    int (*replay)(struct backend *be, void **recording, int (*work)(void *arg, struct err *e), void *arg,
                  struct err *e);
    void (*replay_free)(struct backend *be, void *recording); /* NULL as recording is legal */
    void (*destroy)(struct backend *be);
};

struct tuning;

/* Concrete backends embed this first. */
struct backend {
    const struct backend_ops *ops;
    /* Which engines of its libraries prepare() is to take (tuning.h); borrowed, set before anything is
     * compiled. NULL: each library's own first choice. */
    struct tuning *tuning;
};

#endif
