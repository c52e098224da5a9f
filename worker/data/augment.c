/* augment - see augment.h.
 *
 * The image goes by in bands of whole rows. A band is first put together as bytes (a memset and a memcpy a
 * row, reversed when flipped), then converted in one straight loop with the channel's numbers repeated along
 * it: converting row by row would leave vector units idle on rows of 28 pixels.
 *
 * Draws: key (seed, stream "data.augment"), counter (image, low and high half of the epoch, 0); words 0 and
 * 1 are the crop's corner, word 2 the flip.
 */
#include "worker/data/augment.h"

#include <stdlib.h>
#include <string.h>
#include "common/philox.h"

/* Values a band has at least, where the image has as many: fits the first-level cache with its tables. */
enum { BAND_VALUES = 2048 };

struct augment {
    struct augment_config cfg;
    int h, w, c;
    uint32_t stream;
    int band_rows; /* B */
    float *shift;  /* (B, W, C): 255 * mean of the value's channel */
    float *scale;  /* (B, W, C): 1 / (255 * std) */
    uint8_t *band; /* (B, W, C): scratch */
};

static int check_config(const struct augment_config *cfg, const struct dataset *d, struct err *e)
{
    if (cfg->crop_padding < 0 || cfg->crop_padding > AUGMENT_MAX_PADDING)
        return err_set(e, "crop_padding: %d found, 0 to %d is accepted", cfg->crop_padding,
                       AUGMENT_MAX_PADDING);
    for (int ch = 0; cfg->normalize && ch < d->c; ch++)
        if (!(d->std[ch] > 0))
            return err_set(
                e,
                "channel %d is the same in every training image (standard deviation %g), which cannot be "
                "normalized: switch normalize off",
                ch, (double)d->std[ch]);
    return 0;
}

struct augment *augment_create(const struct augment_config *cfg, const struct dataset *d, struct err *e)
{
    if (check_config(cfg, d, e) < 0)
        return NULL;
    size_t row = (size_t)d->w * (size_t)d->c, rows = (BAND_VALUES + row - 1) / row;
    struct augment *a = xcalloc(1, sizeof *a);
    a->band_rows = rows < (size_t)d->h ? (int)rows : d->h;
    size_t values = row * (size_t)a->band_rows;
    a->cfg = *cfg;
    a->h = d->h;
    a->w = d->w;
    a->c = d->c;
    a->stream = philox_stream("data.augment");
    a->shift = xmalloc(values * sizeof *a->shift);
    a->scale = xmalloc(values * sizeof *a->scale);
    a->band = xmalloc(values);
    for (size_t i = 0; i < values; i++) {
        size_t ch = i % (size_t)d->c;
        a->shift[i] = cfg->normalize ? (float)(255.0 * (double)d->mean[ch]) : 0;
        a->scale[i] = (float)(1.0 / (255.0 * (cfg->normalize ? (double)d->std[ch] : 1.0)));
    }
    return a;
}

void augment_destroy(struct augment *a)
{
    if (!a)
        return;
    free(a->shift);
    free(a->scale);
    free(a->band);
    free(a);
}

struct augment_draw augment_draw(const struct augment *a, uint64_t seed, int32_t index, int64_t epoch)
{
    struct philox_block r = philox(philox_make_key(seed, a->stream), (uint32_t)index, (uint32_t)epoch,
                                   (uint32_t)(epoch >> 32), 0);
    uint32_t corners = 2 * (uint32_t)a->cfg.crop_padding + 1;

    return (struct augment_draw){
        .top = (int)philox_below(r.v[0], corners),
        .left = (int)philox_below(r.v[1], corners),
        .flip = a->cfg.flip && (r.v[2] & 1),
    };
}

struct augment_draw augment_draw_none(const struct augment *a)
{
    return (struct augment_draw){.top = a->cfg.crop_padding, .left = a->cfg.crop_padding, .flip = false};
}

static inline void reverse(uint8_t *restrict out, const uint8_t *restrict in, int n, int c)
{
    for (int i = 0; i < n; i++)
        for (int ch = 0; ch < c; ch++)
            out[i * c + ch] = in[(n - 1 - i) * c + ch];
}

/* The common numbers of channels as constants, so that the compiler unrolls and vectorises. */
static void reverse_pixels(uint8_t *restrict out, const uint8_t *restrict in, int n, int c)
{
    if (c == 1)
        reverse(out, in, n, 1);
    else if (c == 3)
        reverse(out, in, n, 3);
    else
        reverse(out, in, n, c);
}

/* Writes the W pixels of image row `row` that begin at column `left` to line; what lies outside is zero. */
static void gather_row(const struct augment *a, const uint8_t *image, int row, int left, bool flip,
                       uint8_t *line)
{
    int from = left < 0 ? -left : 0;        /* first pixel of the line inside the image */
    int to = left > 0 ? a->w - left : a->w; /* one past the last */
    size_t c = (size_t)a->c, bytes = (size_t)a->w * c;

    if (row < 0 || row >= a->h || from >= to) {
        memset(line, 0, bytes);
        return;
    }
    const uint8_t *in = image + (size_t)row * bytes + (size_t)(from + left) * c;
    if (from > 0 || to < a->w)
        memset(line, 0, bytes);
    if (flip)
        reverse_pixels(line + (size_t)(a->w - to) * c, in, to - from, a->c);
    else
        memcpy(line + (size_t)from * c, in, (size_t)(to - from) * c);
}

static void convert(const uint8_t *restrict in, const float *restrict shift, const float *restrict scale,
                    size_t n, float *restrict out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = ((float)in[i] - shift[i]) * scale[i];
}

void augment_apply(struct augment *a, struct augment_draw draw, const uint8_t *image, float *out)
{
    int top = draw.top - a->cfg.crop_padding, left = draw.left - a->cfg.crop_padding;
    size_t row = (size_t)a->w * (size_t)a->c;

    for (int y = 0; y < a->h; y += a->band_rows) {
        int rows = a->h - y < a->band_rows ? a->h - y : a->band_rows;
        for (int i = 0; i < rows; i++)
            gather_row(a, image, top + y + i, left, draw.flip, a->band + (size_t)i * row);
        convert(a->band, a->shift, a->scale, (size_t)rows * row, out + (size_t)y * row);
    }
}
