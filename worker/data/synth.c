/* synth - see synth.h.
 *
 * Draws: the pattern of class k, channel ch takes block (cell, k, ch, 0) of stream "synth.pattern"; the
 * noise of image i takes block (byte / 4, i, part, 0) of stream "synth.noise", four bytes a block. The noise
 * of a pixel is the sum of four uniform bytes, centred and halved: near normal, standard deviation 74, about
 * twice the pattern's.
 */
#include "worker/data/synth.h"

#include <stdlib.h>
#include <string.h>
#include "common/philox.h"

enum { GRID = 4, GREY = 128, PATTERN_STEP = 40 };

static int check_config(const struct synth_config *cfg, struct err *e)
{
    if (cfg->classes < 2 || cfg->classes > DATASET_MAX_CLASSES)
        return err_set(e, "classes: %d found, 2 to %d is accepted", cfg->classes, DATASET_MAX_CLASSES);
    if (cfg->h < 1 || cfg->h > DATASET_MAX_SIDE || cfg->w < 1 || cfg->w > DATASET_MAX_SIDE)
        return err_set(e, "image size: %d x %d found, 1 to %d each is accepted", cfg->h, cfg->w,
                       DATASET_MAX_SIDE);
    if (cfg->c < 1 || cfg->c > DATASET_MAX_CHANNELS)
        return err_set(e, "channels: %d found, 1 to %d is accepted", cfg->c, DATASET_MAX_CHANNELS);
    int64_t most = INT32_MAX / cfg->classes;
    if (cfg->train_per_class < 1 || cfg->train_per_class > most)
        return err_set(e, "training images per class: %lld found, 1 to %lld is accepted",
                       (long long)cfg->train_per_class, (long long)most);
    if (cfg->test_per_class < 1 || cfg->test_per_class > most)
        return err_set(e, "test images per class: %lld found, 1 to %lld is accepted",
                       (long long)cfg->test_per_class, (long long)most);
    return 0;
}

/* Patterns of all classes (K, H, W, C) as offsets to grey: blocks of +-PATTERN_STEP. */
static int8_t *make_patterns(const struct synth_config *cfg, struct err *e)
{
    size_t image = (size_t)cfg->h * (size_t)cfg->w * (size_t)cfg->c;
    int8_t *patterns = malloc((size_t)cfg->classes * image), *p = patterns;
    struct philox_key key = philox_make_key(cfg->seed, philox_stream("synth.pattern"));

    if (!p) {
        err_set(e, "out of memory for the patterns of %d classes", cfg->classes);
        return NULL;
    }
    for (int k = 0; k < cfg->classes; k++) {
        uint8_t sign[DATASET_MAX_CHANNELS][GRID * GRID];
        for (int ch = 0; ch < cfg->c; ch++)
            for (int cell = 0; cell < GRID * GRID; cell++)
                sign[ch][cell] = philox(key, (uint32_t)cell, (uint32_t)k, (uint32_t)ch, 0).v[0] & 1;
        for (int y = 0; y < cfg->h; y++)
            for (int x = 0; x < cfg->w; x++)
                for (int ch = 0; ch < cfg->c; ch++)
                    *p++ =
                        sign[ch][y * GRID / cfg->h * GRID + x * GRID / cfg->w] ? PATTERN_STEP : -PATTERN_STEP;
    }
    return patterns;
}

static int noise_of(uint32_t u)
{
    int sum = (int)(u & 255) + (int)(u >> 8 & 255) + (int)(u >> 16 & 255) + (int)(u >> 24);

    return (sum - 510) / 2;
}

static void draw_image(uint8_t *out, const int8_t *pattern, size_t bytes, struct philox_key key,
                       uint32_t image, uint32_t part)
{
    for (size_t b = 0; b < bytes; b += 4) {
        struct philox_block r = philox(key, (uint32_t)(b / 4), image, part, 0);
        for (size_t j = 0; j < 4 && b + j < bytes; j++) {
            int v = GREY + pattern[b + j] + noise_of(r.v[j]);
            out[b + j] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
        }
    }
}

static struct dataset *make_part(const struct synth_config *cfg, int64_t per_class, uint32_t part,
                                 const int8_t *patterns, struct err *e)
{
    struct dataset *d =
        dataset_create(per_class * cfg->classes, cfg->h, cfg->w, cfg->c, cfg->classes, NULL, e);
    struct philox_key key = philox_make_key(cfg->seed, philox_stream("synth.noise"));

    if (!d)
        return NULL;
    size_t bytes = dataset_image_bytes(d);
    for (int32_t i = 0; i < d->n; i++) {
        d->labels[i] = i % cfg->classes;
        draw_image(d->images + (size_t)i * bytes, patterns + (size_t)d->labels[i] * bytes, bytes, key,
                   (uint32_t)i, part);
    }
    return d;
}

int synth_open(const struct synth_config *cfg, struct dataset_pair *out, struct err *e)
{
    struct dataset_pair pair = {NULL, NULL};
    int8_t *patterns = check_config(cfg, e) == 0 ? make_patterns(cfg, e) : NULL;

    pair.train = patterns ? make_part(cfg, cfg->train_per_class, 0, patterns, e) : NULL;
    pair.test = pair.train ? make_part(cfg, cfg->test_per_class, 1, patterns, e) : NULL;
    free(patterns);
    if (!pair.test) {
        dataset_pair_free(&pair);
        return err_wrap(e, "synthetic data");
    }
    dataset_measure(pair.train);
    memcpy(pair.test->mean, pair.train->mean, sizeof pair.test->mean);
    memcpy(pair.test->std, pair.train->std, sizeof pair.test->std);
    *out = pair;
    return 0;
}
