/* dataset - labelled images in memory, and the subsets (splits) that training and evaluation run over.
 *
 * Shape letters: N images, H rows, W columns, C channels. Pixels are uint8, laid out (N, H, W, C). A format
 * is a file that fills a struct dataset_pair (idx.h, synth.h); this module knows no format. A dataset is
 * read-only once it is filled, so every thread may read it. A split borrows its dataset, which must outlive
 * it.
 */
#ifndef DATA_DATASET_H
#define DATA_DATASET_H

#include <stddef.h>
#include <stdint.h>
#include "common/err.h"
#include "common/hash.h"

enum {
    DATASET_MAX_CHANNELS = 4,
    DATASET_MAX_SIDE = 16384,    /* H and W */
    DATASET_MAX_CLASSES = 65536, /* labels are int32; this bounds the tables by class */
};

struct dataset {
    uint8_t *images; /* (N, H, W, C), owned */
    int32_t *labels; /* (N), each in [0, n_classes), owned */
    int32_t n;       /* >= 1 */
    int h, w, c;
    int n_classes;
    /* Per channel, of pixel / 255, over every image of the original training file: never of a subset, and the
     * test part carries the training part's values. std is the population's; 0 for a channel that never
     * changes. */
    float mean[DATASET_MAX_CHANNELS], std[DATASET_MAX_CHANNELS];
};

struct dataset_pair {
    struct dataset *train, *test; /* same H, W, C, n_classes, mean and std */
};

/* The images of a dataset that one purpose uses, as positions in it. */
struct split {
    const struct dataset *dataset; /* borrowed */
    int32_t *indices;              /* (n), each in [0, dataset->n), no two alike; owned */
    int32_t n;
    int32_t *class_counts; /* (dataset->n_classes), how many of them have each label; owned */
};

/* A dataset of checked shape: n, h, w, c, n_classes at least 1 and within the limits above. Labels are
 * uninitialised. `images` (malloc'ed, N*H*W*C bytes) becomes the dataset's; NULL allocates them
 * uninitialised. NULL with a message when a bound is broken or memory is short; `images` then stays the
 * caller's. */
struct dataset *dataset_create(int64_t n, int h, int w, int c, int n_classes, uint8_t *images, struct err *e);

/* NULL is legal. */
void dataset_destroy(struct dataset *d);
void dataset_pair_free(struct dataset_pair *p); /* destroys both and sets them NULL */

/* Bytes of one image: H * W * C. */
size_t dataset_image_bytes(const struct dataset *d);

/* Fills mean and std from all images of d. The sums are whole numbers, so the result depends on no order. */
void dataset_measure(struct dataset *d);

/* Counts of every label into counts (n_classes). */
void dataset_class_counts(const struct dataset *d, int32_t *counts);

/* Checksum of shape, classes, pixels and labels, for receipts: equal exactly when the data are. */
struct hash_hex dataset_hash(const struct dataset *d);

/* A split of n given positions (copied; each must lie in the dataset). Never NULL. */
struct split *split_create(const struct dataset *d, const int32_t *indices, int32_t n);

/* Every image in file order. */
struct split *split_create_all(const struct dataset *d);

/* NULL is legal. The dataset stays. */
void split_destroy(struct split *s);

/* Checksum of the positions in their order. */
struct hash_hex split_hash(const struct split *s);

#endif
