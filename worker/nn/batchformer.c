/* batchformer - see batchformer.h.
 *
 * One encoder layer, with N rows of the mini-batch as the sequence, n of them here:
 *
 *   Q = X Wqᵀ + bq (n rows),  [K|V] = X Wkvᵀ + bkv, gathered to N rows
 *   U = X + drop(Attention(Q, K, V) Woᵀ + bo),  H = LN1(U)
 *   Z = LN2(H + drop(drop(relu(H W1ᵀ + b1)) W2ᵀ + b2))
 *
 * Everything but the gather is row-local. The gather's backward is a reduce-scatter with SUM (ops_comm.c), so
 * every sample receives the gradient of every other sample's loss, whichever rank holds it. Gathering X
 * instead of K|V computes the same function; the projections' weight gradients are then sums over all N rows
 * of this rank's share of dK|dV, which the gradient all-reduce completes.
 */
#include "worker/nn/batchformer.h"
#include "common/philox.h"

#include <math.h>
#include <stdio.h>

/* Xavier uniform of the whole 3C×C matrix, and torch.nn.Linear's default U(±1/√fan-in). */
static struct init init_in_proj(int64_t c)
{
    return (struct init){INIT_UNIFORM, sqrt(6.0 / (double)(4 * c))};
}

static struct init init_linear(int64_t fan_in)
{
    return (struct init){INIT_UNIFORM, 1 / sqrt((double)fan_in)};
}

static const struct init init_zero = {INIT_CONST, 0};

/* Rows [from, to) of the input projection, applied to x. */
static struct node *project(struct net *net, struct node *x, struct node *w, struct node *b, const char *name,
                            int64_t from, int64_t to)
{
    char wn[32], bn[32];

    snprintf(wn, sizeof wn, "%s_weight", name);
    snprintf(bn, sizeof bn, "%s_bias", name);
    struct node *ws = net_slice_rows(net, w, wn, from, to), *bs = net_slice_rows(net, b, bn, from, to);
    return net_op(net, OP_LINEAR, name, (struct node *[]){x, ws, bs}, 3, NULL);
}

static struct node *self_attention(struct net *net, const struct batchformer_cfg *cfg, struct node *x)
{
    if (net_failed(net))
        return NULL;
    int64_t c = shape_channels(x->shape);
    const struct graph *g = net->graph;
    net_push(net, "self_attn");
    struct node *w = net_param(net, "in_proj_weight", PARAM_WEIGHT, shape2(3 * c, c), init_in_proj(c));
    struct node *b = net_param(net, "in_proj_bias", PARAM_WEIGHT, shape1(3 * c), init_zero);
    struct node *q = project(net, x, w, b, "q", 0, c), *kv;
    if (!cfg->global)
        kv = project(net, x, w, b, "kv", c, 3 * c);
    else if (cfg->gather == GATHER_ROWS)
        kv = project(net, net_all_gather(net, x, "gather"), w, b, "kv", c, 3 * c);
    else
        kv = net_all_gather(net, project(net, x, w, b, "kv", c, 3 * c), "gather");
    union op_attr attr = {.attention = {.heads = cfg->heads,
                                        .dropout = g->training ? (float)cfg->dropout : 0,
                                        .stream = philox_stream(net->path),
                                        .key_row0 = cfg->global ? 0 : g->rows.first}};
    struct node *o = net_op(net, OP_ATTENTION, "attention", (struct node *[]){q, kv}, 2, &attr);
    o = net_linear(net, o, "out_proj", c, init_linear(c), init_zero);
    net_pop(net);
    return o;
}

static struct node *encoder_layer(struct net *net, const struct batchformer_cfg *cfg, struct node *x)
{
    struct node *t = net_dropout(net, self_attention(net, cfg, x), "dropout1", cfg->dropout);
    struct node *h = net_layernorm(net, net_add(net, x, t), "norm1");
    if (net_failed(net))
        return NULL;
    int64_t c = shape_channels(x->shape);
    struct node *f = net_linear(net, h, "linear1", cfg->ffn, init_linear(c), init_linear(c));
    f = net_dropout(net, net_act(net, f, ACT_RELU), "dropout", cfg->dropout);
    f = net_linear(net, f, "linear2", c, init_linear(cfg->ffn), init_linear(cfg->ffn));
    f = net_dropout(net, f, "dropout2", cfg->dropout);
    return net_layernorm(net, net_add(net, h, f), "norm2");
}

struct node *batchformer_build(struct net *net, const struct batchformer_cfg *cfg, struct node *x)
{
    net_push(net, "batchformer");
    for (int i = 0; i < cfg->layers; i++) {
        if (cfg->layers > 1)
            net_push(net, "layers.%d", i);
        x = encoder_layer(net, cfg, x);
        if (cfg->layers > 1)
            net_pop(net);
    }
    net_pop(net);
    return x;
}
