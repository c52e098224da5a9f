/* batchformer - a transformer encoder layer over the batch dimension (Hou, Yu, Tao: "BatchFormer: Learning to
 * Explore Sample Relationships for Robust Representation Learning", CVPR 2022, §3.2). */
#ifndef NN_BATCHFORMER_H
#define NN_BATCHFORMER_H

#include "worker/nn/net.h"

enum gather_kind {
    GATHER_KEYS_VALUES, /* project local rows, gather K|V: 2C floats a row */
    GATHER_ROWS,        /* gather X, project all N rows on every rank: C floats a row */
};

struct batchformer_cfg {
    int layers, heads;
    int64_t ffn; /* width of the feed-forward layer */
    double dropout;
    bool global; /* attend over the global mini-batch; else over this rank's rows */
    enum gather_kind gather;
};

/* x (n,C) → (n,C): post-norm encoder layers (as torch.nn.TransformerEncoderLayer: self-attention, add & norm,
 * ReLU feed-forward, add & norm) in which the N samples of the mini-batch are the sequence. Parameters
 * "batchformer.self_attn.in_proj_weight" …; with more layers "batchformer.layers.0.self_attn…". */
struct node *batchformer_build(struct net *net, const struct batchformer_cfg *cfg, struct node *x);

#endif
