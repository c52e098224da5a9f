/* dataset - see dataset.h. */
#include "worker/data/dataset.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int check_bound(const char *what, int64_t found, int64_t max, struct err *e)
{
    if (found < 1 || found > max)
        return err_set(e, "%s: %lld found, 1 to %lld is accepted", what, (long long)found, (long long)max);
    return 0;
}

struct dataset *dataset_create(int64_t n, int h, int w, int c, int n_classes, uint8_t *images, struct err *e)
{
    if (check_bound("images", n, INT32_MAX, e) < 0 || check_bound("height", h, DATASET_MAX_SIDE, e) < 0 ||
        check_bound("width", w, DATASET_MAX_SIDE, e) < 0 ||
        check_bound("channels", c, DATASET_MAX_CHANNELS, e) < 0 ||
        check_bound("classes", n_classes, DATASET_MAX_CLASSES, e) < 0)
        return NULL;

    /* At most 2^31 * 2^14 * 2^14 * 2^2 = 2^61: no overflow. Fallible, because a data set may be larger than
     * RAM. */
    size_t bytes = (size_t)n * (size_t)h * (size_t)w * (size_t)c;
    struct dataset *d = xcalloc(1, sizeof *d);
    d->n = (int32_t)n;
    d->h = h;
    d->w = w;
    d->c = c;
    d->n_classes = n_classes;
    d->images = images ? images : malloc(bytes);
    d->labels = malloc((size_t)n * sizeof *d->labels);
    if (!d->images || !d->labels) {
        err_set(e, "out of memory for %lld images of %d x %d x %d (%zu bytes)", (long long)n, h, w, c, bytes);
        if (images)
            d->images = NULL; /* stays the caller's */
        dataset_destroy(d);
        return NULL;
    }
    return d;
}

void dataset_destroy(struct dataset *d)
{
    if (!d)
        return;
    free(d->images);
    free(d->labels);
    free(d);
}

void dataset_pair_free(struct dataset_pair *p)
{
    dataset_destroy(p->train);
    dataset_destroy(p->test);
    p->train = p->test = NULL;
}

size_t dataset_image_bytes(const struct dataset *d)
{
    return (size_t)d->h * (size_t)d->w * (size_t)d->c;
}

/* Sums of every stride-th of n values. Blocks keep within 32 bits, which vectors add faster than 64. */
static inline void add_up(const uint8_t *p, size_t n, int stride, uint64_t *sum, uint64_t *sum_sq)
{
    enum { BLOCK = 1 << 16 }; /* 2^16 · 255^2 < 2^32 */

    for (size_t at = 0; at < n; at += BLOCK) {
        size_t end = n - at < BLOCK ? n : at + BLOCK;
        uint32_t s = 0, sq = 0;
        for (size_t i = at; i < end; i++) {
            uint32_t v = p[i * (size_t)stride];
            s += v;
            sq += v * v;
        }
        *sum += s;
        *sum_sq += sq;
    }
}

void dataset_measure(struct dataset *d)
{
    size_t n_pixels = (size_t)d->n * (size_t)d->h * (size_t)d->w;

    for (int ch = 0; ch < d->c; ch++) {
        /* A 64-bit sum of squares holds 2^48 pixels of 255^2. */
        uint64_t sum = 0, sum_sq = 0;
        if (d->c == 1) /* a constant stride, so that the loop vectorises */
            add_up(d->images, n_pixels, 1, &sum, &sum_sq);
        else
            add_up(d->images + ch, n_pixels, d->c, &sum, &sum_sq);
        /* n^2 * variance as a whole number: exactly 0 for a constant channel, and no cancellation. */
        unsigned __int128 spread = (unsigned __int128)n_pixels * sum_sq - (unsigned __int128)sum * sum;
        d->mean[ch] = (float)((double)sum / (double)n_pixels / 255);
        d->std[ch] = (float)(sqrt((double)spread) / (double)n_pixels / 255);
    }
}

void dataset_class_counts(const struct dataset *d, int32_t *counts)
{
    memset(counts, 0, (size_t)d->n_classes * sizeof *counts);
    for (int32_t i = 0; i < d->n; i++)
        counts[d->labels[i]]++;
}

struct hash_hex dataset_hash(const struct dataset *d)
{
    struct hash_hex images = hash_bytes(d->images, (size_t)d->n * dataset_image_bytes(d));
    struct hash_hex labels = hash_bytes(d->labels, (size_t)d->n * sizeof *d->labels);
    char text[256];
    int len = snprintf(text, sizeof text, "%d %d %d %d %d %s %s", d->n, d->h, d->w, d->c, d->n_classes,
                       images.s, labels.s);

    return hash_bytes(text, (size_t)len);
}

struct split *split_create(const struct dataset *d, const int32_t *indices, int32_t n)
{
    struct split *s = xcalloc(1, sizeof *s);

    s->dataset = d;
    s->n = n;
    s->indices = xmalloc((size_t)n * sizeof *indices + 1); /* + 1: an empty split is legal */
    s->class_counts = xcalloc((size_t)d->n_classes, sizeof *s->class_counts);
    for (int32_t i = 0; i < n; i++) {
        ASSERT(indices[i] >= 0 && indices[i] < d->n);
        s->indices[i] = indices[i];
        s->class_counts[d->labels[indices[i]]]++;
    }
    return s;
}

struct split *split_create_all(const struct dataset *d)
{
    int32_t *all = xmalloc((size_t)d->n * sizeof *all);

    for (int32_t i = 0; i < d->n; i++)
        all[i] = i;
    struct split *s = split_create(d, all, d->n);
    free(all);
    return s;
}

void split_destroy(struct split *s)
{
    if (!s)
        return;
    free(s->indices);
    free(s->class_counts);
    free(s);
}

struct hash_hex split_hash(const struct split *s)
{
    return hash_bytes(s->indices, (size_t)s->n * sizeof *s->indices);
}
