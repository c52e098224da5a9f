/* net - building graphs by layers: scopes give parameters their names, a failure sticks until the end.
 *
 * A layer function appends nodes and returns the last one. When something does not fit, the net remembers the
 * first error and every later layer function returns NULL at once, so that a model reads like its
 * description; whoever started the net looks at net_failed() once, at the end.
 *
 * Shapes: n rows of this rank, H×W pixels, C channels.
 */
#ifndef NN_NET_H
#define NN_NET_H

#include "worker/engine/graph.h"

enum { NET_NAME_BYTES = 320, NET_MAX_DEPTH = 8 };

struct net {
    struct graph *graph;
    struct err *err; /* where the first failure is told; not NULL */
    bool failed;
    bool sync_norm;             /* batch norm over the global mini-batch (else per rank) */
    char path[256];             /* scope of the names: "layer1.0" */
    size_t cuts[NET_MAX_DEPTH]; /* length of the path before each net_push() */
    int depth;
    double lr_scale;     /* given to parameters declared from now on; 1 */
    double weight_decay; /* likewise; < 0 = the optimiser's */
};

void net_init(struct net *net, struct graph *g, bool sync_norm, struct err *e);
bool net_failed(const struct net *net);

/* Enters and leaves a scope: names become "SCOPE.name". */
void net_push(struct net *net, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void net_pop(struct net *net);

struct node *net_input(struct net *net, const char *name, struct shape shape, enum dtype dtype);

/* A parameter, buffer or constant under the current scope. */
struct node *net_param(struct net *net, const char *name, enum param_kind kind, struct shape shape,
                       struct init init);

/* Any operator; the node is named after the current scope and `name`. */
struct node *net_op(struct net *net, enum op op, const char *name, struct node *const *in, int n_in,
                    const union op_attr *attr);

/* x (n,H,W,Ci) → (n,Ho,Wo,channels); weight "NAME.weight", no bias; initial values N(0, std²). */
struct node *net_conv2d(struct net *net, struct node *x, const char *name, int64_t channels, int kernel,
                        int stride, int groups, double std);

/* Batch norm, optionally + residual, optionally ReLU. Training: statistics of the mini-batch (global when
 * net->sync_norm), running statistics updated with momentum 0.1, eps 1e-5. Evaluation: running statistics.
 * Parameters NAME.weight (from gamma), NAME.bias, buffers NAME.running_mean, NAME.running_var. */
struct node *net_batchnorm(struct net *net, struct node *x, const char *name, struct node *residual,
                           bool relu, double gamma);

/* x (M,I) → (M,out): weight "NAME.weight" (out,I), bias "NAME.bias" (out). */
struct node *net_linear(struct net *net, struct node *x, const char *name, int64_t out, struct init weight,
                        struct init bias);

/* x (M,C): layer norm with "NAME.weight", "NAME.bias", eps 1e-5. */
struct node *net_layernorm(struct net *net, struct node *x, const char *name);

/* x as type t; x itself where it is that already. */
struct node *net_cast(struct net *net, struct node *x, enum dtype t);

struct node *net_act(struct net *net, struct node *x, enum act_kind kind);
struct node *net_add(struct net *net, struct node *a, struct node *b);

/* No node when p is 0 or the graph is not a training graph. The random stream is the hash of SCOPE.NAME. */
struct node *net_dropout(struct net *net, struct node *x, const char *name, double p);

struct node *net_mean_spatial(struct net *net, struct node *x);
struct node *net_maxpool(struct net *net, struct node *x, int kernel, int stride, int pad);
struct node *net_concat_rows(struct net *net, struct node *a, struct node *b);
struct node *net_slice_rows(struct net *net, struct node *x, const char *name, int64_t from, int64_t to);
struct node *net_all_gather(struct net *net, struct node *x, const char *name);

/* f64 (1): Σ cross entropy / denominator. offset (K) is added to the logits; NULL = none. */
struct node *net_softmax_xent(struct net *net, struct node *logits, struct node *targets, struct node *offset,
                              double denominator);

#endif
