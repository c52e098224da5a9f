/* resnet - residual networks from one table: torchvision's ResNet-18/50 for large images, and 18 with a stem
 * for small ones (names as torchvision's state_dict), and the CIFAR family ResNet-6n+2 (He et al. 2016, §4.2;
 * option-A shortcuts; names as commonly used for it: conv1, bn1, layer1.0.conv1, …, linear). */
#ifndef NN_RESNET_H
#define NN_RESNET_H

#include "worker/nn/net.h"

struct resnet_arch {
    const char *name;       /* "resnet20" */
    bool small;             /* for small images: a 3×3 stem without max pooling */
    bool pads;              /* CIFAR family: option-A shortcuts; else projections */
    bool bottleneck;        /* 1×1, 3×3, 1×1 with expansion 4 */
    int blocks[4];          /* per stage; 0 ends the list */
    int64_t channels;       /* of the first stage, before `width` */
    const char *classifier; /* the usual name of the last layer: "fc", "linear" */
};

/* NULL when there is no such architecture. */
const struct resnet_arch *resnet_find(const char *name);

/* x (n,H,W,Ci) → pooled features (n,C). `width` multiplies all channel counts. */
struct node *resnet_build(struct net *net, const struct resnet_arch *arch, double width, struct node *x);

#endif
