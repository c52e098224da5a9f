/* test_idx - IDX files: the four spellings, gzip and plain, and every way in which a file can lie. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include "common/fsutil.h"
#include "worker/data/idx.h"
#include "worker/data/source.h"

enum { H = 5, W = 4, N_TRAIN = 6, N_TEST = 3 };

/* Bytes of a file to be. */
struct blob {
    uint8_t b[4096];
    size_t n;
};

static const uint8_t train_labels[N_TRAIN] = {2, 0, 1, 2, 1, 0};
static const uint8_t test_labels[N_TEST] = {1, 2, 0};

static void put32(struct blob *f, uint32_t v)
{
    for (int shift = 24; shift >= 0; shift -= 8)
        f->b[f->n++] = (uint8_t)(v >> shift);
}

static uint8_t pixel(int image, int at)
{
    return (uint8_t)(image * 37 + at * 11);
}

static struct blob images_blob(int n, int h, int w)
{
    struct blob f = {.n = 0};

    put32(&f, 0x803);
    put32(&f, (uint32_t)n);
    put32(&f, (uint32_t)h);
    put32(&f, (uint32_t)w);
    for (int i = 0; i < n; i++)
        for (int at = 0; at < h * w; at++)
            f.b[f.n++] = pixel(i, at);
    return f;
}

static struct blob labels_blob(const uint8_t *labels, int n)
{
    struct blob f = {.n = 0};

    put32(&f, 0x801);
    put32(&f, (uint32_t)n);
    memcpy(f.b + f.n, labels, (size_t)n);
    f.n += (size_t)n;
    return f;
}

static struct blob gzip_blob(const struct blob *in)
{
    struct blob out = {.n = 0};
    z_stream z = {.next_in = (Bytef *)(uintptr_t)in->b, .avail_in = (uInt)in->n};

    assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_out = out.b;
    z.avail_out = sizeof out.b;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    out.n = sizeof out.b - z.avail_out;
    deflateEnd(&z);
    return out;
}

static void write_blob(const char *dir, const char *name, const struct blob *f)
{
    char *path = fs_join(dir, name);
    struct err e = ERR_INIT;

    assert_int_equal(fs_atomic_replace(path, f->b, f->n, &e), 0);
    free(path);
}

/* The four files, well formed, plain and in the usual spelling. */
static void write_good(const char *dir)
{
    struct blob train_i = images_blob(N_TRAIN, H, W), test_i = images_blob(N_TEST, H, W);
    struct blob train_l = labels_blob(train_labels, N_TRAIN), test_l = labels_blob(test_labels, N_TEST);

    write_blob(dir, "train-images-idx3-ubyte", &train_i);
    write_blob(dir, "train-labels-idx1-ubyte", &train_l);
    write_blob(dir, "t10k-images-idx3-ubyte", &test_i);
    write_blob(dir, "t10k-labels-idx1-ubyte", &test_l);
}

static int set_up_dir(void **state)
{
    const char *tmp = getenv("TMPDIR");
    char *dir = xasprintf("%s/bf-test-idx-XXXXXX", tmp ? tmp : "/tmp");

    if (!mkdtemp(dir))
        return -1;
    *state = dir;
    return 0;
}

static int tear_down_dir(void **state)
{
    int rc = fs_remove_tree(*state, NULL);

    free(*state);
    return rc;
}

static void check_good(const char *dir)
{
    struct dataset_pair p;
    struct err e = ERR_INIT;

    if (idx_open(dir, &p, &e) < 0)
        fail_msg("%s", e.msg);
    assert_int_equal(p.train->n, N_TRAIN);
    assert_int_equal(p.test->n, N_TEST);
    assert_int_equal(p.train->h, H);
    assert_int_equal(p.test->w, W);
    assert_int_equal(p.train->c, 1);
    assert_int_equal(p.train->n_classes, 3);
    assert_int_equal(p.test->n_classes, 3);
    for (int i = 0; i < N_TRAIN; i++) {
        assert_int_equal(p.train->labels[i], train_labels[i]);
        for (int at = 0; at < H * W; at++)
            assert_int_equal(p.train->images[i * H * W + at], pixel(i, at));
    }
    assert_memory_equal(p.test->mean, p.train->mean, sizeof p.train->mean);
    assert_memory_equal(p.test->std, p.train->std, sizeof p.train->std);
    dataset_pair_free(&p);
}

static void test_plain(void **state)
{
    write_good(*state);
    check_good(*state);
}

static void test_spellings(void **state)
{
    static const char *const names[4] = {"train-images-idx3-ubyte", "train-images-idx3-ubyte.gz",
                                         "train-images.idx3-ubyte", "train-images.idx3-ubyte.gz"};
    struct blob plain = images_blob(N_TRAIN, H, W), packed = gzip_blob(&plain);
    char *usual = fs_join(*state, names[0]);

    for (int i = 0; i < 4; i++) {
        write_good(*state);
        unlink(usual);
        write_blob(*state, names[i], i & 1 ? &packed : &plain);
        check_good(*state);
        /* What a file is is told by its bytes: the two must also be read under each other's names. */
        write_blob(*state, names[i], i & 1 ? &plain : &packed);
        check_good(*state);
        char *path = fs_join(*state, names[i]);
        unlink(path);
        free(path);
    }
    free(usual);
}

static void test_gzip_members(void **state)
{
    struct blob plain = images_blob(N_TRAIN, H, W), head = plain, tail = {.n = plain.n - 50}, packed, second;

    head.n = 50;
    memcpy(tail.b, plain.b + 50, tail.n);
    packed = gzip_blob(&head);
    second = gzip_blob(&tail);
    memcpy(packed.b + packed.n, second.b, second.n);
    packed.n += second.n;
    write_good(*state);
    write_blob(*state, "train-images-idx3-ubyte", &packed);
    check_good(*state);
}

/* A gzip stream longer than the reader's buffers, through small and odd reads. */
static void test_source_long(void **state)
{
    enum { LEN = 3000001 };
    struct err e = ERR_INIT;
    char *path = fs_join(*state, "long.gz");
    uint8_t *want = malloc(LEN), *got = malloc(LEN);
    uint32_t s = 1;

    for (int i = 0; i < LEN; i++) {
        s = 1664525u * s + 1013904223u;
        want[i] = (uint8_t)(s >> 24); /* does not compress: several chunks of input */
    }
    gzFile gz = gzopen(path, "wb");
    assert_int_equal(gzwrite(gz, want, LEN), LEN);
    gzclose(gz);
    struct source *src = source_open(path, &e);
    assert_non_null(src);
    for (int64_t at = 0, step = 1; at < LEN; step = step * 3 % 100003) {
        int64_t ask = step < LEN - at ? step : LEN - at;
        assert_int_equal(source_read(src, got + at, (size_t)ask, &e), ask);
        at += ask;
    }
    assert_int_equal(source_read(src, got, 1, &e), 0);
    assert_int_equal(source_read(src, got, 1, &e), 0);
    assert_int_equal(source_count(src), LEN);
    source_close(src);
    assert_memory_equal(got + 1, want + 1, LEN - 1);
    free(want);
    free(got);
    free(path);
}

/* --- damage: each row changes one good file and names what the message must hold --- */

enum damage {
    KEEP,
    CUT_TO,       /* keep `arg` bytes */
    CUT_BY,       /* drop the last `arg` bytes */
    APPEND,       /* `arg` bytes 'x' */
    SET32,        /* big-endian word at `at` becomes `arg` */
    SET8,         /* byte at `at` becomes `arg` */
    FLIP_FROM_END /* byte at size - `at` changes */
};

struct bad {
    const char *file;
    enum damage before; /* on the plain bytes */
    bool gzip;
    enum damage after; /* on the bytes as stored */
    size_t at;
    uint32_t arg;
    const char *says[3];
};

#define TRAIN_I "train-images-idx3-ubyte"
#define TRAIN_L "train-labels-idx1-ubyte"
#define TEST_I "t10k-images-idx3-ubyte"
#define TEST_L "t10k-labels-idx1-ubyte"

/* 16 + 6 * 20 = 136 bytes of training images, 8 + 6 = 14 of labels. */
static const struct bad bads[] = {
    {TRAIN_I, CUT_BY, false, KEEP, 0, 1, {TRAIN_I, "truncated: 135 bytes found", "136 expected"}},
    {TRAIN_I, CUT_TO, false, KEEP, 0, 0, {TRAIN_I, "truncated header: 0 bytes found", "16 expected"}},
    {TRAIN_I, CUT_TO, false, KEEP, 0, 3, {TRAIN_I, "truncated header: 3 bytes found", "16 expected"}},
    {TRAIN_I, CUT_TO, false, KEEP, 0, 13, {TRAIN_I, "truncated header: 13 bytes found", "16 expected"}},
    {TRAIN_I, CUT_TO, false, KEEP, 0, 16, {TRAIN_I, "truncated: 16 bytes found", "136 expected"}},
    {TRAIN_L, CUT_TO, false, KEEP, 0, 7, {TRAIN_L, "truncated header: 7 bytes found", "8 expected"}},
    {TRAIN_L, CUT_BY, false, KEEP, 0, 2, {TRAIN_L, "truncated: 12 bytes found", "14 expected"}},
    {TRAIN_I, APPEND, false, KEEP, 0, 1, {TRAIN_I, "trailing data: 137 bytes found", "136 expected"}},
    {TEST_L, APPEND, false, KEEP, 0, 3, {TEST_L, "trailing data: 14 bytes found", "11 expected"}},
    {TRAIN_I, CUT_BY, true, KEEP, 0, 1, {TRAIN_I, "truncated: 135 bytes found", "136 expected"}},
    {TRAIN_I, APPEND, true, KEEP, 0, 1, {TRAIN_I, "trailing data: 137 bytes found", "136 expected"}},
    {TRAIN_I, KEEP, true, CUT_BY, 0, 4, {TRAIN_I, "136 bytes found, 136 expected", "truncated gzip data"}},
    {TRAIN_I, KEEP, true, CUT_TO, 0, 60, {TRAIN_I, "bytes found, 136 expected", "truncated gzip data"}},
    {TRAIN_I, KEEP, true, CUT_TO, 0, 2, {TRAIN_I, "header", "truncated gzip data"}},
    {TRAIN_I, KEEP, true, APPEND, 0, 20, {TRAIN_I, "136 bytes found", "damaged gzip data"}},
    {TRAIN_I, KEEP, true, FLIP_FROM_END, 6, 0, {TRAIN_I, "damaged gzip data", "incorrect data check"}},
    {TRAIN_I, SET32, false, KEEP, 0, 0x801, {TRAIN_I, "magic 0x00000801 found", "0x00000803"}},
    {TRAIN_L, SET32, false, KEEP, 0, 0x803, {TRAIN_L, "magic 0x00000803 found", "0x00000801"}},
    {TRAIN_I, SET32, true, KEEP, 0, 0xd03, {TRAIN_I, "magic 0x00000d03 found", "0x00000803"}},
    {TRAIN_I, SET8, false, KEEP, 0, 'P', {TRAIN_I, "magic 0x50000803 found", "0x00000803"}},
    {TRAIN_I, SET32, false, KEEP, 4, 7, {TRAIN_I, "truncated: 136 bytes found", "156 expected"}},
    {TRAIN_I, SET32, false, KEEP, 4, 5, {TRAIN_I, "trailing data: 136 bytes found", "116 expected"}},
    {TRAIN_I, SET32, false, KEEP, 4, 0, {TRAIN_I, "dimension 1 of 3: 0 found", "1 to 2147483647"}},
    {TRAIN_I, SET32, false, KEEP, 4, 0xffffffff, {TRAIN_I, "dimension 1 of 3: 4294967295 found", ""}},
    {TRAIN_I, SET32, false, KEEP, 4, 0x7fffffff, {TRAIN_I, "136 bytes found", "42949672956 expected"}},
    {TRAIN_I, SET32, false, KEEP, 8, 0, {TRAIN_I, "dimension 2 of 3: 0 found", "1 to 16384"}},
    {TRAIN_I, SET32, false, KEEP, 12, 70000, {TRAIN_I, "dimension 3 of 3: 70000 found", "1 to 16384"}},
    {TRAIN_I, SET32, true, KEEP, 8, 16384, {TRAIN_I, "truncated: 136 bytes found", "393232 expected"}},
    {TEST_I, KEEP, false, CUT_BY, 0, 1, {TEST_I, "truncated: 75 bytes found", "76 expected"}},
    {TEST_L, SET8, false, KEEP, 9, 3, {TEST_L, "label 3 found at image 1", "0 to 2"}},
    {TEST_L, SET8, true, KEEP, 10, 255, {TEST_L, "label 255 found at image 2", "0 to 2"}},
};

static void damage(struct blob *f, enum damage how, size_t at, uint32_t arg)
{
    switch (how) {
    case KEEP:
        break;
    case CUT_TO:
        f->n = arg;
        break;
    case CUT_BY:
        f->n -= arg;
        break;
    case APPEND:
        memset(f->b + f->n, 'x', arg);
        f->n += arg;
        break;
    case SET32: {
        struct blob word = {.n = 0};
        put32(&word, arg);
        memcpy(f->b + at, word.b, 4);
        break;
    }
    case SET8:
        f->b[at] = (uint8_t)arg;
        break;
    case FLIP_FROM_END:
        f->b[f->n - at] ^= 0x55;
        break;
    }
}

static struct blob good_blob(const char *file)
{
    if (strcmp(file, TRAIN_I) == 0)
        return images_blob(N_TRAIN, H, W);
    if (strcmp(file, TEST_I) == 0)
        return images_blob(N_TEST, H, W);
    if (strcmp(file, TRAIN_L) == 0)
        return labels_blob(train_labels, N_TRAIN);
    return labels_blob(test_labels, N_TEST);
}

static void test_damage(void **state)
{
    for (size_t i = 0; i < sizeof bads / sizeof *bads; i++) {
        const struct bad *b = &bads[i];
        struct dataset_pair p = {NULL, NULL};
        struct err e = ERR_INIT;
        struct blob f = good_blob(b->file);

        damage(&f, b->before, b->at, b->arg);
        if (b->gzip)
            f = gzip_blob(&f);
        damage(&f, b->after, b->at, b->arg);
        write_good(*state);
        write_blob(*state, b->file, &f);
        if (idx_open(*state, &p, &e) == 0)
            fail_msg("row %zu (%s) was read", i, b->file);
        assert_null(p.train);
        for (int k = 0; k < 3; k++)
            if (!strstr(e.msg, b->says[k]))
                fail_msg("row %zu: \"%s\" is not in: %s", i, b->says[k], e.msg);
        assert_true(strstr(e.msg, *state) == e.msg); /* begins with the path */
    }
}

/* Every truncation of a gzip file is an error, wherever it falls; and so is every flipped bit of its data. */
static void test_gzip_every_cut(void **state)
{
    struct blob plain = images_blob(N_TRAIN, H, W), whole = gzip_blob(&plain);
    char *path = fs_join(*state, "f.gz");
    struct idx_file f;
    struct err e = ERR_INIT;

    for (size_t n = 0; n <= whole.n; n++) {
        struct blob cut = whole;
        cut.n = n;
        write_blob(*state, "f.gz", &cut);
        int rc = idx_read(path, IDX_IMAGES, &f, &e);
        assert_int_equal(rc, n == whole.n ? 0 : -1);
        if (rc == 0)
            idx_file_free(&f);
    }
    for (size_t at = 10; at < whole.n; at++) { /* the ten header bytes hold a time and such */
        struct blob flipped = whole;
        flipped.b[at] ^= 1;
        write_blob(*state, "f.gz", &flipped);
        assert_int_equal(idx_read(path, IDX_IMAGES, &f, &e), -1);
    }
    free(path);
}

static void test_disagreement(void **state)
{
    struct dataset_pair p;
    struct err e = ERR_INIT;
    struct blob five = images_blob(5, H, W), wide = images_blob(N_TEST, H, W + 1);

    write_good(*state);
    write_blob(*state, TRAIN_I, &five);
    assert_int_equal(idx_open(*state, &p, &e), -1);
    assert_non_null(strstr(e.msg, "has 5 images, but"));
    assert_non_null(strstr(e.msg, TRAIN_L " has 6 labels"));
    write_good(*state);
    write_blob(*state, TEST_I, &wide);
    assert_int_equal(idx_open(*state, &p, &e), -1);
    assert_non_null(strstr(e.msg, "has images of 5 x 4"));
    assert_non_null(strstr(e.msg, TEST_I " of 5 x 5"));
}

static void test_missing(void **state)
{
    static const char *const files[4] = {TRAIN_I, TRAIN_L, TEST_I, TEST_L};
    static const char *const says[4] = {"no training images", "no training labels", "no test images",
                                        "no test labels"};
    struct dataset_pair p;
    struct err e = ERR_INIT;

    for (int i = 0; i < 4; i++) {
        char *path = fs_join(*state, files[i]);
        write_good(*state);
        unlink(path);
        assert_int_equal(idx_open(*state, &p, &e), -1);
        assert_non_null(strstr(e.msg, says[i]));
        assert_non_null(strstr(e.msg, files[i]));
        free(path);
    }
    assert_non_null(strstr(e.msg, "t10k-labels-idx1-ubyte, t10k-labels-idx1-ubyte.gz, "
                                  "t10k-labels.idx1-ubyte, t10k-labels.idx1-ubyte.gz"));
    char *none = fs_join(*state, "nowhere"), *file = fs_join(*state, TRAIN_I);
    assert_int_equal(idx_open(none, &p, &e), -1);
    assert_non_null(strstr(e.msg, "nowhere: No such file"));
    assert_int_equal(idx_open(file, &p, &e), -1);
    assert_non_null(strstr(e.msg, "is not a directory"));
    unlink(file);
    assert_int_equal(mkdir(file, 0777), 0);
    assert_int_equal(idx_open(*state, &p, &e), -1);
    assert_non_null(strstr(e.msg, TRAIN_I " is not a regular file"));
    free(none);
    free(file);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, set_up_dir, tear_down_dir)
    const struct CMUnitTest tests[] = {
        T(test_plain),  T(test_spellings),      T(test_gzip_members), T(test_source_long),
        T(test_damage), T(test_gzip_every_cut), T(test_disagreement), T(test_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
