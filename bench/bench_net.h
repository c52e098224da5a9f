/* bench_net - the network that the programs here measure: what the long-tailed task trains, on data that is
 * made up.
 *
 * Architectures are those of worker/nn/resnet.c, with the BatchFormer behind the pooled features or without,
 * one classifier on both streams, cross entropy. "layer" is the BatchFormer alone: its N × C features are a
 * parameter, so that their gradient is wanted, too; a classifier behind it makes a loss. It has one rank.
 */
#ifndef BENCH_BENCH_NET_H
#define BENCH_BENCH_NET_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include "bench/bench_args.h"
#include "worker/comm/comm.h"
#include "worker/engine/program.h"

struct bench_net_cfg {
    const char *arch, *precision;               /* "fp32", "tf32", "bf16" */
    long batch, size, channels, classes, heads; /* batch: global */
    long features;                              /* "layer": C */
    long batchformer;                           /* 0: without */
    double width, dropout;
};

/* ResNet-20 on 28² with the module, batch 128, fp32. */
struct bench_net_cfg bench_net_defaults(void);

/* Rows for a table of bench_args.h; * means the address of a struct bench_net_cfg. */
#define BENCH_NET_ARGS(c)                                                                                    \
    {"--arch", ARG_TEXT, &(c)->arch,                                                                         \
     "resnet8, resnet20, resnet32, cifar-resnet18, resnet18, resnet50, layer"},                              \
        {"--precision", ARG_TEXT, &(c)->precision, "fp32, bf16"},                                            \
        {"--batch", ARG_INT, &(c)->batch, "rows of the global mini-batch"},                                  \
        {"--size", ARG_INT, &(c)->size, "height and width of the images"},                                   \
        {"--channels", ARG_INT, &(c)->channels, "of the images"},                                            \
        {"--classes", ARG_INT, &(c)->classes, "of the labels"},                                              \
        {"--heads", ARG_INT, &(c)->heads, "of the attention"},                                               \
        {"--features", ARG_INT, &(c)->features, "C of --arch layer"},                                        \
        {"--batchformer", ARG_INT0, &(c)->batchformer, "0: without"},                                        \
        {"--width", ARG_REAL, &(c)->width, "factor of the channels"},                                        \
    {                                                                                                        \
        "--dropout", ARG_REAL0, &(c)->dropout, "of the module"                                               \
    }

struct bench_net {
    struct bench_net_cfg cfg;
    struct backend *backend; /* borrowed */
    struct comm *comm;       /* borrowed: the device's */
    struct params *params;
    struct graph *graph;
    struct program *program;
    struct node *images, *labels, *loss; /* images: NULL in "layer" */
    int64_t *counts;
    float *pixels; /* host memory, this rank's rows */
    int32_t *classes;
};

/* Builds, draws and compiles; nothing is run. bucket_bytes as in struct program_cfg. */
int bench_net_open(struct bench_net *b, const struct bench_net_cfg *cfg, struct backend *be,
                   struct comm *comm, size_t bucket_bytes, struct err *e);
void bench_net_close(struct bench_net *b);

/* Gives the program its mini-batch: the same global one for every number of ranks. */
int bench_net_feed(struct bench_net *b, struct err *e);

/* The case, as members of a document. */
void bench_net_tell(cJSON *doc, const struct bench_net_cfg *c);

/* Products (FLOP) and the bytes that an operator cannot do without: each tensor that it reads or writes,
 * once. */
double bench_node_flops(const struct node *n, bool backward);
double bench_node_bytes(const struct node *n, bool backward);

enum { BENCH_KEY_BYTES = 320 };

/* What distinguishes one operator from another: "conv2d 3x3/1 (128, 28, 28, 16) -> (128, 28, 28, 16)
 * backward".
 */
void bench_node_key(const struct node *n, bool backward, char key[BENCH_KEY_BYTES]);

#endif
