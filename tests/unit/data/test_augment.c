/* test_augment - crop, flip and normalisation against a reference written pixel by pixel; golden draws;
 * statistics. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "worker/data/augment.h"

static struct dataset *make_images(int h, int w, int c)
{
    struct dataset *d = dataset_create(3, h, w, c, 2, NULL, NULL);
    size_t n = 3 * dataset_image_bytes(d);
    uint32_t s = 7;

    for (size_t i = 0; i < n; i++) {
        s = 1664525u * s + 1013904223u;
        d->images[i] = (uint8_t)(s >> 24);
    }
    memset(d->labels, 0, 3 * sizeof *d->labels);
    dataset_measure(d);
    return d;
}

static struct augment *make(const struct augment_config *cfg, const struct dataset *d)
{
    struct err e = ERR_INIT;
    struct augment *a = augment_create(cfg, d, &e);

    if (!a)
        fail_msg("%s", e.msg);
    return a;
}

/* What torchvision's pad, crop, flip, ToTensor and Normalize give, in double. */
static double reference(const struct dataset *d, const struct augment_config *cfg, struct augment_draw draw,
                        const uint8_t *image, int y, int x, int ch)
{
    int row = y + draw.top - cfg->crop_padding;
    int col = (draw.flip ? d->w - 1 - x : x) + draw.left - cfg->crop_padding;
    bool inside = row >= 0 && row < d->h && col >= 0 && col < d->w;
    double v = inside ? image[(row * d->w + col) * d->c + ch] / 255.0 : 0;

    return cfg->normalize ? (v - (double)d->mean[ch]) / (double)d->std[ch] : v;
}

static void check_all_draws(const struct dataset *d, const struct augment_config *cfg)
{
    struct augment *a = make(cfg, d);
    size_t values = dataset_image_bytes(d);
    float *out = malloc((values + 1) * sizeof *out);
    const uint8_t *image = d->images + values; /* the one in the middle: a read outside shows */
    int corners = 2 * cfg->crop_padding + 1;

    for (int i = 0; i < corners * corners * 2; i++) {
        struct augment_draw draw = {i / 2 / corners, i / 2 % corners, i & 1};
        out[values] = 1234.5f;
        augment_apply(a, draw, image, out);
        assert_true(out[values] == 1234.5f);
        for (int y = 0; y < d->h; y++)
            for (int x = 0; x < d->w; x++)
                for (int ch = 0; ch < d->c; ch++) {
                    double want = reference(d, cfg, draw, image, y, x, ch);
                    double got = (double)out[(y * d->w + x) * d->c + ch];
                    if (!(fabs(got - want) <= 2e-6 * (1 + fabs(want))))
                        fail_msg("%dx%dx%d top %d left %d flip %d at %d,%d,%d: %.9g, not %.9g", d->h, d->w,
                                 d->c, draw.top, draw.left, draw.flip, y, x, ch, got, want);
                }
    }
    free(out);
    augment_destroy(a);
}

static void test_reference(void **state)
{
    /* The last one goes by in two bands, the second shorter. */
    static const int shapes[][3] = {{5, 7, 3}, {8, 8, 1}, {1, 1, 1}, {3, 2, 4}, {2, 33, 2}, {45, 33, 2}};
    static const int pads[] = {0, 1, 4}; /* 4 is wider than some of the images */

    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct dataset *d = make_images(shapes[i][0], shapes[i][1], shapes[i][2]);
        for (int j = 0; j < 3; j++)
            for (int normalize = 0; normalize < 2; normalize++) {
                struct augment_config cfg = {.crop_padding = pads[j], .flip = true, .normalize = normalize};
                check_all_draws(d, &cfg);
            }
        dataset_destroy(d);
    }
}

static void test_draw_none(void **state)
{
    struct dataset *d = make_images(6, 5, 3);
    struct augment_config cfg = {.crop_padding = 3, .flip = true, .normalize = false};
    struct augment *a = make(&cfg, d);
    float out[90];

    (void)state;
    augment_apply(a, augment_draw_none(a), d->images, out);
    for (int i = 0; i < 90; i++)
        assert_true(out[i] == (float)d->images[i] * (float)(1 / 255.0));
    augment_destroy(a);
    dataset_destroy(d);
}

/* Computed by an independent implementation of Philox4x32-10 and of the draws that augment.c describes. */
static void test_golden_draws(void **state)
{
    static const struct {
        uint64_t seed;
        int32_t index;
        int64_t epoch;
        struct augment_draw draw;
    } rows[] = {
        {0, 0, 0, {5, 3, true}},
        {0, 1, 0, {0, 4, true}},
        {0, 2, 0, {2, 3, true}},
        {0, 3, 0, {0, 7, false}},
        {(1ull << 35) + 1, 59999, (1ll << 32) + 3, {7, 4, false}},
    };
    struct dataset *d = make_images(4, 4, 1);
    struct augment_config cfg = {.crop_padding = 4, .flip = true, .normalize = true};
    struct augment *a = make(&cfg, d);

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct augment_draw got = augment_draw(a, rows[i].seed, rows[i].index, rows[i].epoch);
        assert_int_equal(got.top, rows[i].draw.top);
        assert_int_equal(got.left, rows[i].draw.left);
        assert_int_equal(got.flip, rows[i].draw.flip);
    }
    augment_destroy(a);
    dataset_destroy(d);
}

/* 81 corners x 2, over images and over epochs: chi-square with 161 degrees of freedom below 230 (p = 3e-4;
 * the draws are fixed), flips within 4 standard deviations of one half. */
static void test_statistics(void **state)
{
    struct dataset *d = make_images(4, 4, 1);
    struct augment_config cfg = {.crop_padding = 4, .flip = true, .normalize = true};
    struct augment *a = make(&cfg, d);
    enum { N = 32400 };

    (void)state;
    for (int by_epoch = 0; by_epoch < 2; by_epoch++) {
        int counts[162] = {0}, flips = 0;
        double chi2 = 0;
        for (int i = 0; i < N; i++) {
            struct augment_draw draw = by_epoch ? augment_draw(a, 3, 17, i) : augment_draw(a, 3, i, 17);
            assert_in_range(draw.top, 0, 8);
            assert_in_range(draw.left, 0, 8);
            counts[(draw.top * 9 + draw.left) * 2 + draw.flip]++;
            flips += draw.flip;
        }
        for (int i = 0; i < 162; i++)
            chi2 += (counts[i] - N / 162.0) * (counts[i] - N / 162.0) / (N / 162.0);
        assert_true(chi2 < 230);
        assert_true(abs(flips - N / 2) < 4 * 90); /* sqrt(32400 / 4) = 90 */
    }
    augment_destroy(a);
    dataset_destroy(d);
}

static void test_switched_off(void **state)
{
    struct dataset *d = make_images(4, 4, 1);
    struct augment_config cfg = {.crop_padding = 0, .flip = false, .normalize = true};
    struct augment *a = make(&cfg, d);

    (void)state;
    for (int i = 0; i < 100; i++) {
        struct augment_draw draw = augment_draw(a, 3, i, 0);
        assert_true(draw.top == 0 && draw.left == 0 && !draw.flip);
    }
    augment_destroy(a);
    dataset_destroy(d);
}

static void test_bad(void **state)
{
    struct dataset *d = make_images(4, 4, 3);
    struct augment_config cfg = {.crop_padding = -1};
    struct err e = ERR_INIT;

    (void)state;
    assert_null(augment_create(&cfg, d, &e));
    assert_non_null(strstr(e.msg, "crop_padding: -1 found, 0 to 1024"));
    cfg.crop_padding = 5000;
    assert_null(augment_create(&cfg, d, &e));
    for (int i = 0; i < 3 * 16; i++)
        d->images[i * 3 + 2] = 9;
    dataset_measure(d);
    cfg = (struct augment_config){.normalize = true};
    assert_null(augment_create(&cfg, d, &e));
    assert_non_null(strstr(e.msg, "channel 2 is the same in every training image"));
    cfg.normalize = false;
    augment_destroy(make(&cfg, d));
    augment_destroy(NULL);
    dataset_destroy(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),    cmocka_unit_test(test_draw_none),
        cmocka_unit_test(test_golden_draws), cmocka_unit_test(test_statistics),
        cmocka_unit_test(test_switched_off), cmocka_unit_test(test_bad),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
