/* augment - one image, uint8 (H, W, C), to float32 (H, W, C): random crop, random flip and normalisation in
 * one pass.
 *
 * out = (pixel / 255 - mean) / std by channel, or pixel / 255 when normalize is off. The crop pads the raw
 * image with zero pixels, as torchvision does, so the border carries what a black pixel normalises to. The
 * flip comes after the crop.
 *
 * What is drawn is a function of (seed, position of the image in its dataset, epoch): never of rank, row or
 * batch. Arithmetic is one subtraction and one multiplication a value, which no compiler can fuse: the same
 * bits everywhere.
 */
#ifndef DATA_AUGMENT_H
#define DATA_AUGMENT_H

#include <stdbool.h>
#include <stdint.h>
#include "common/err.h"
#include "worker/data/dataset.h"

enum { AUGMENT_MAX_PADDING = 1024 };

struct augment_config {
    int crop_padding; /* zero pixels on each side before a random crop of H x W; 0 = off */
    bool flip;        /* mirror left and right with probability 1/2 */
    bool normalize;
};

/* What was drawn for one image. {crop_padding, crop_padding, false} is the image itself. */
struct augment_draw {
    int top, left; /* corner of the crop in the padded image, each in [0, 2 * crop_padding] */
    bool flip;
};

struct augment;

/* Holds tables and scratch of a few image rows: one augment a thread. Fails when normalize is asked for
 * and a channel of the training file is constant, or when crop_padding is out of range. */
struct augment *augment_create(const struct augment_config *cfg, const struct dataset *d, struct err *e);

/* NULL is legal. */
void augment_destroy(struct augment *a);

/* The draw for image `index` of the dataset in `epoch`. */
struct augment_draw augment_draw(const struct augment *a, uint64_t seed, int32_t index, int64_t epoch);

/* The draw that changes nothing: for evaluation. */
struct augment_draw augment_draw_none(const struct augment *a);

/* Writes H*W*C floats. `image` has the shape of the dataset that `a` was made for. */
void augment_apply(struct augment *a, struct augment_draw draw, const uint8_t *image, float *out);

#endif
