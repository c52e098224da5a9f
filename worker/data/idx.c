/* idx - see idx.h.
 *
 * A file is: 00 00, type (08 = unsigned byte), number of dimensions, each dimension as 32 bits big-endian,
 * data. The header is not believed: the buffer grows as data arrive, so a header that promises terabytes
 * costs no memory before the file is found to be short.
 */
#include "worker/data/idx.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "common/fsutil.h"
#include "worker/data/source.h"

enum { IDX_TYPE_UBYTE = 0x08, IDX_FIRST_ALLOC = 1 << 24, IDX_N_SPELLINGS = 4 };

static const struct {
    const char *name; /* in the file name */
    int n_dims;
    const char *what; /* for messages */
} kinds[] = {
    [IDX_IMAGES] = {"images", 3, "images"},
    [IDX_LABELS] = {"labels", 1, "labels"},
};

static const struct {
    const char *name;
    const char *what;
} parts[] = {
    [IDX_TRAIN] = {"train", "training"},
    [IDX_TEST] = {"t10k", "test"},
};

char *idx_find(const char *dir, enum idx_part part, enum idx_kind kind, struct err *e)
{
    char names[IDX_N_SPELLINGS][64];
    struct stat st;

    if (stat(dir, &st) < 0) {
        err_set_errno(e, "data directory %s", dir);
        return NULL;
    }
    if (!S_ISDIR(st.st_mode)) {
        err_set(e, "%s is not a directory", dir);
        return NULL;
    }
    for (int i = 0; i < IDX_N_SPELLINGS; i++) {
        snprintf(names[i], sizeof names[i], "%s-%s%cidx%d-ubyte%s", parts[part].name, kinds[kind].name,
                 i & 2 ? '.' : '-', kinds[kind].n_dims, i & 1 ? ".gz" : "");
        char *path = fs_join(dir, names[i]);
        if (fs_exists(path))
            return path;
        free(path);
    }
    err_set(e, "%s has no %s %s: looked for %s, %s, %s, %s", dir, parts[part].what, kinds[kind].what,
            names[0], names[1], names[2], names[3]);
    return NULL;
}

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Reads and checks the header; fills n, h, w of *out and the bytes of the header. */
static int read_header(struct source *s, const char *path, enum idx_kind kind, struct idx_file *out,
                       size_t *bytes, struct err *e)
{
    uint8_t head[4 + 4 * 3];
    int n_dims = kinds[kind].n_dims;
    uint32_t accepted = (uint32_t)IDX_TYPE_UBYTE << 8 | (uint32_t)n_dims;
    uint32_t dims[3] = {0, 1, 1};
    int64_t got = source_read(s, head, 4, e);

    *bytes = 4 + 4 * (size_t)n_dims;
    if (got < 0)
        return err_wrap(e, "%s: header", path);
    if (got == 4 && be32(head) != accepted)
        return err_set(e, "%s: magic 0x%08x found, 0x%08x (unsigned bytes, %d dimension%s: %s) is accepted",
                       path, be32(head), accepted, n_dims, n_dims > 1 ? "s" : "", kinds[kind].what);
    if (got == 4) {
        int64_t more = source_read(s, head + 4, *bytes - 4, e);
        if (more < 0)
            return err_wrap(e, "%s: header", path);
        got += more;
    }
    if ((size_t)got < *bytes)
        return err_set(e, "%s: truncated header: %lld bytes found, %zu expected", path, (long long)got,
                       *bytes);
    for (int i = 0; i < n_dims; i++) {
        uint32_t max = i == 0 ? INT32_MAX : DATASET_MAX_SIDE;
        dims[i] = be32(head + 4 + 4 * i);
        if (dims[i] < 1 || dims[i] > max)
            return err_set(e, "%s: dimension %d of %d: %u found, 1 to %u is accepted", path, i + 1, n_dims,
                           dims[i], max);
    }
    out->n = (int32_t)dims[0];
    out->h = (int)dims[1];
    out->w = (int)dims[2];
    return 0;
}

/* Makes room for more of `want` bytes: doubling, so that a false header cannot claim what the file lacks. */
static int grow(uint8_t **data, size_t *cap, size_t want, struct err *e)
{
    size_t left = want - *cap, step = *cap ? *cap : IDX_FIRST_ALLOC;
    size_t larger = *cap + (step < left ? step : left);
    uint8_t *grown = realloc(*data, larger);

    if (!grown)
        return err_set(e, "out of memory for %zu bytes", larger);
    *data = grown;
    *cap = larger;
    return 0;
}

/* Reads exactly `want` bytes and then the end. Counts in messages include the header, as a listing does. On
 * failure *data may hold something to free. */
static int read_body(struct source *s, size_t header, size_t want, uint8_t **data, struct err *e)
{
    size_t cap = 0, len = 0;
    int64_t got = 1;
    uint8_t rest[4096];

    while (len < want && got > 0) {
        if (len == cap && grow(data, &cap, want, e) < 0)
            return -1;
        got = source_read(s, *data + len, cap - len, e);
        len += got > 0 ? (size_t)got : 0;
    }
    while (got > 0) /* to the very end: the check sum of gzip data comes last */
        got = source_read(s, rest, sizeof rest, e);
    if (got < 0)
        return err_wrap(e, "%llu bytes found, %zu expected from the header",
                        (unsigned long long)source_count(s), header + want);
    if (source_count(s) != header + want)
        return err_set(e, "%s: %llu bytes found, %zu expected from the header",
                       len < want ? "truncated" : "trailing data", (unsigned long long)source_count(s),
                       header + want);
    return 0;
}

int idx_read(const char *path, enum idx_kind kind, struct idx_file *out, struct err *e)
{
    struct idx_file f = {0};
    size_t header;
    struct source *s = source_open(path, e);

    if (!s)
        return -1;
    int rc = read_header(s, path, kind, &f, &header, e);
    if (rc == 0 && read_body(s, header, (size_t)f.n * (size_t)f.h * (size_t)f.w, &f.bytes, e) < 0)
        rc = err_wrap(e, "%s", path);
    source_close(s);
    if (rc == 0)
        *out = f;
    else
        idx_file_free(&f);
    return rc;
}

void idx_file_free(struct idx_file *f)
{
    free(f->bytes);
    f->bytes = NULL;
}

/* The two files of a part, with their paths for messages. */
struct part_files {
    char *images_path, *labels_path;
    struct idx_file images, labels;
};

static void part_free(struct part_files *p)
{
    free(p->images_path);
    free(p->labels_path);
    idx_file_free(&p->images);
    idx_file_free(&p->labels);
}

static int part_read(const char *dir, enum idx_part part, struct part_files *p, struct err *e)
{
    memset(p, 0, sizeof *p);
    p->images_path = idx_find(dir, part, IDX_IMAGES, e);
    p->labels_path = p->images_path ? idx_find(dir, part, IDX_LABELS, e) : NULL;
    if (!p->labels_path || idx_read(p->images_path, IDX_IMAGES, &p->images, e) < 0 ||
        idx_read(p->labels_path, IDX_LABELS, &p->labels, e) < 0)
        return -1;
    if (p->images.n != p->labels.n)
        return err_set(e, "%s has %d images, but %s has %d labels", p->images_path, p->images.n,
                       p->labels_path, p->labels.n);
    return 0;
}

/* Moves the files of a part into a dataset. */
static struct dataset *part_to_dataset(struct part_files *p, int n_classes, struct err *e)
{
    for (int32_t i = 0; i < p->labels.n; i++) {
        if (p->labels.bytes[i] >= n_classes) {
            err_set(e, "%s: label %d found at image %d, 0 to %d (as in the training file) is accepted",
                    p->labels_path, p->labels.bytes[i], i, n_classes - 1);
            return NULL;
        }
    }
    struct dataset *d =
        dataset_create(p->images.n, p->images.h, p->images.w, 1, n_classes, p->images.bytes, e);
    if (!d)
        return NULL;
    p->images.bytes = NULL; /* the dataset's now */
    for (int32_t i = 0; i < d->n; i++)
        d->labels[i] = p->labels.bytes[i];
    return d;
}

int idx_open(const char *dir, struct dataset_pair *out, struct err *e)
{
    struct part_files train, test = {0};
    struct dataset_pair pair = {NULL, NULL};
    int n_classes = 0, rc = -1;

    if (part_read(dir, IDX_TRAIN, &train, e) < 0 || part_read(dir, IDX_TEST, &test, e) < 0)
        goto done;
    if (train.images.h != test.images.h || train.images.w != test.images.w) {
        err_set(e, "%s has images of %d x %d, but %s of %d x %d", train.images_path, train.images.h,
                train.images.w, test.images_path, test.images.h, test.images.w);
        goto done;
    }
    for (int32_t i = 0; i < train.labels.n; i++)
        if (train.labels.bytes[i] >= n_classes)
            n_classes = train.labels.bytes[i] + 1;
    pair.train = part_to_dataset(&train, n_classes, e);
    pair.test = pair.train ? part_to_dataset(&test, n_classes, e) : NULL;
    if (!pair.test)
        goto done;
    dataset_measure(pair.train);
    memcpy(pair.test->mean, pair.train->mean, sizeof pair.test->mean);
    memcpy(pair.test->std, pair.train->std, sizeof pair.test->std);
    *out = pair;
    rc = 0;
done:
    if (rc < 0)
        dataset_pair_free(&pair);
    part_free(&train);
    part_free(&test);
    return rc;
}
