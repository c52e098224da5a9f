/* params - the named tensors of a model, shared by its graphs.
 *
 * Trainable weights lie in one flat fp32 buffer, in *backward order* (the last layer first), their gradients
 * in a second buffer of the same layout: zeroing, all-reducing, clipping and the optimiser are sweeps over
 * ranges, and the gradient of a range becomes final in the order of the range. Buffers (running statistics)
 * and constants (class priors) lie in a third. Every tensor starts at a multiple of 16 floats; the padding
 * stays zero.
 *
 * Life: params_declare() while the training graph is built → params_finalize() allocates and initialises →
 * later graphs find the same parameters by name.
 */
#ifndef ENGINE_PARAMS_H
#define ENGINE_PARAMS_H

#include <stdbool.h>
#include "common/arena.h"
#include "common/err.h"
#include "worker/engine/tensor.h"

struct backend;

enum param_kind {
    PARAM_WEIGHT, /* trained; saved */
    PARAM_BUFFER, /* written by the forward pass (running statistics); saved */
    PARAM_CONST,  /* set by the task from its data; not saved */
};

/* How the initial value is drawn. Draws are Philox keyed by (seed, hash of the name, element): the same
 * whatever else the model contains, so a baseline and a BatchFormer run start from the same backbone. */
enum init_kind {
    INIT_CONST,   /* a everywhere */
    INIT_UNIFORM, /* U(-a, a) */
    INIT_NORMAL,  /* N(0, a²) */
};

struct init {
    enum init_kind kind;
    double a;
};

struct param {
    const char *name; /* "layer1.0.conv1.weight" */
    enum param_kind kind;
    struct shape shape;
    struct init init;
    double lr_scale;     /* × the scheduled learning rate */
    double weight_decay; /* < 0: the optimiser's */
    int idx;             /* order of declaration */
    size_t offset;       /* floats from the start of its buffer */
    float *value;        /* device pointers, valid after params_finalize() */
    float *grad;         /* PARAM_WEIGHT only */
};

struct params {
    struct arena arena;
    struct param **v;
    int n, cap;
    bool final;
    struct backend *backend; /* borrowed */
    float *weights, *grads;  /* n_weights floats each */
    float *buffers;          /* n_buffers floats */
    size_t n_weights, n_buffers;
};

struct params *params_create(struct backend *backend);
void params_destroy(struct params *ps);

/* Finds by name or declares. A second declaration must agree in kind and shape; after params_finalize() an
 * unknown name is an error. */
struct param *params_declare(struct params *ps, const char *name, enum param_kind kind, struct shape shape,
                             struct init init, struct err *e);
struct param *params_find(const struct params *ps, const char *name);

/* Lays out, allocates and draws the initial values. */
int params_finalize(struct params *ps, uint64_t seed, struct err *e);

/* Copies one tensor to / from host memory (fp32, shape_count(p->shape) elements). */
int params_get(const struct params *ps, const struct param *p, float *host, struct err *e);
int params_set(const struct params *ps, const struct param *p, const float *host, struct err *e);
int params_get_grad(const struct params *ps, const struct param *p, float *host, struct err *e);

/* The initial value of element i of a tensor, as params_finalize() draws it. */
float init_value(struct init init, uint64_t seed, const char *name, int64_t i);

#endif
