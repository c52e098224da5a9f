/* safetensors - the reader; see safetensors.h. */
#include "common/safetensors.h"

#include <endian.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/arena.h"
#include "common/json.h"

_Static_assert(__BYTE_ORDER == __LITTLE_ENDIAN, "tensor data is copied as it lies in memory");

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {
    [SAFETENSORS_F32] = {"F32", 4},
    [SAFETENSORS_F64] = {"F64", 8},
    [SAFETENSORS_I64] = {"I64", 8},
    [SAFETENSORS_I32] = {"I32", 4},
};

enum { N_DTYPES = sizeof dtypes / sizeof *dtypes };

struct safetensors {
    struct arena arena; /* path and names */
    const char *path;
    int fd;
    uint64_t data_start, data_bytes;
    struct safetensors_entry *v; /* sorted by offset */
    int n;
};

const char *safetensors_path(const struct safetensors *f)
{
    return f->path;
}

int safetensors_count(const struct safetensors *f)
{
    return f->n;
}

const struct safetensors_entry *safetensors_at(const struct safetensors *f, int i)
{
    return &f->v[i];
}

const struct safetensors_entry *safetensors_find(const struct safetensors *f, const char *name)
{
    for (int i = 0; i < f->n; i++)
        if (strcmp(f->v[i].name, name) == 0)
            return &f->v[i];
    return NULL;
}

const char *safetensors_dtype_name(enum safetensors_dtype t)
{
    return dtypes[t].name;
}

size_t safetensors_dtype_bytes(enum safetensors_dtype t)
{
    return dtypes[t].bytes;
}

const char *safetensors_shape_text(const struct safetensors_entry *entry, char out[192])
{
    size_t at = (size_t)snprintf(out, 192, "(");

    for (int i = 0; i < entry->n_dims; i++)
        at += (size_t)snprintf(out + at, 192 - at, "%s%lld", i ? ", " : "", (long long)entry->dims[i]);
    snprintf(out + at, 192 - at, ")");
    return out;
}

static int read_dtype(const cJSON *v, struct safetensors_entry *t, struct err *e)
{
    const char *name;

    if (json_get_str(v, "", "dtype", &name, e) < 0)
        return -1;
    for (int i = 0; i < N_DTYPES; i++)
        if (strcmp(dtypes[i].name, name) == 0) {
            t->dtype = (enum safetensors_dtype)i;
            return 0;
        }
    return err_set(e, "dtype '%.16s' found; F32, F64, I64 and I32 are accepted", name);
}

/* Fills dims and returns the bytes that they stand for in *bytes. */
static int read_shape(const cJSON *v, struct safetensors_entry *t, uint64_t *bytes, struct err *e)
{
    const cJSON *shape = json_find(v, "shape");

    if (!cJSON_IsArray(shape))
        return err_set(e, "'shape' is missing or not an array");
    *bytes = dtypes[t->dtype].bytes;
    for (const cJSON *d = shape->child; d; d = d->next) {
        int64_t dim;
        if (t->n_dims == SAFETENSORS_MAX_DIMS)
            return err_set(e, "more than %d dimensions", SAFETENSORS_MAX_DIMS);
        if (!json_is_int(d, &dim) || dim < 0)
            return err_set(e, "dimension %d is not a whole number >= 0", t->n_dims);
        t->dims[t->n_dims++] = dim;
        if (__builtin_mul_overflow(*bytes, (uint64_t)dim, bytes))
            return err_set(e, "the shape is larger than any file");
    }
    return 0;
}

static int read_offsets(const struct safetensors *f, const cJSON *v, struct safetensors_entry *t,
                        struct err *e)
{
    const cJSON *offs = json_find(v, "data_offsets");
    int64_t from, to;

    if (!cJSON_IsArray(offs) || cJSON_GetArraySize(offs) != 2 || !json_is_int(offs->child, &from) ||
        !json_is_int(offs->child->next, &to))
        return err_set(e, "'data_offsets' is not an array of two whole numbers");
    if (from < 0 || to < from || (uint64_t)to > f->data_bytes)
        return err_set(e, "data_offsets [%lld, %lld] lie outside of the %llu bytes of data", (long long)from,
                       (long long)to, (unsigned long long)f->data_bytes);
    t->offset = (uint64_t)from;
    t->bytes = (uint64_t)(to - from);
    return 0;
}

static int read_entry(struct safetensors *f, const cJSON *v, struct safetensors_entry *t, struct err *e)
{
    uint64_t bytes = 0;

    *t = (struct safetensors_entry){.name = arena_strdup(&f->arena, v->string)};
    if (!cJSON_IsObject(v))
        return err_set(e, "not an object");
    if (read_dtype(v, t, e) < 0 || read_shape(v, t, &bytes, e) < 0 || read_offsets(f, v, t, e) < 0)
        return -1;
    if (bytes != t->bytes) {
        char text[192];
        return err_set(e, "shape %s of %s takes %llu bytes, data_offsets span %llu",
                       safetensors_shape_text(t, text), dtypes[t->dtype].name, (unsigned long long)bytes,
                       (unsigned long long)t->bytes);
    }
    return 0;
}

static int by_offset(const void *pa, const void *pb)
{
    const struct safetensors_entry *a = pa, *b = pb;

    if (a->offset != b->offset)
        return a->offset < b->offset ? -1 : 1;
    return a->bytes < b->bytes ? -1 : a->bytes > b->bytes; /* empty tensors first */
}

/* Sorted spans tile the data exactly. */
static int check_tiling(const struct safetensors *f, struct err *e)
{
    uint64_t at = 0;

    for (int i = 0; i < f->n; i++) {
        const struct safetensors_entry *t = &f->v[i];
        if (t->offset != at)
            return err_set(e, "tensor %.200s starts at byte %llu of the data, %s byte %llu", t->name,
                           (unsigned long long)t->offset,
                           t->offset < at ? "inside another tensor that ends at" : "after a gap from",
                           (unsigned long long)at);
        at += t->bytes;
    }
    if (at != f->data_bytes)
        return err_set(e, "%llu bytes of data, the tensors take %llu", (unsigned long long)f->data_bytes,
                       (unsigned long long)at);
    return 0;
}

static int check_metadata(const cJSON *v, struct err *e)
{
    if (!cJSON_IsObject(v))
        return err_set(e, "'__metadata__' is not an object");
    for (const cJSON *c = v->child; c; c = c->next)
        if (!cJSON_IsString(c))
            return err_set(e, "'__metadata__': the value of '%.64s' is not a string", c->string);
    return 0;
}

static int read_table(struct safetensors *f, const cJSON *header, struct err *e)
{
    if (!cJSON_IsObject(header))
        return err_set(e, "the header is not a JSON object");
    f->v = xcalloc((size_t)cJSON_GetArraySize(header) + 1, sizeof *f->v);
    for (const cJSON *v = header->child; v; v = v->next) {
        if (strcmp(v->string, "__metadata__") == 0) {
            if (check_metadata(v, e) < 0)
                return -1;
        } else if (read_entry(f, v, &f->v[f->n++], e) < 0) {
            return err_wrap(e, "tensor %.200s", v->string);
        }
    }
    qsort(f->v, (size_t)f->n, sizeof *f->v, by_offset);
    return check_tiling(f, e);
}

/* Reads exactly n bytes at a file offset. */
static int read_at(const struct safetensors *f, uint64_t offset, void *out, size_t n, struct err *e)
{
    char *p = out;

    while (n) {
        ssize_t got = pread(f->fd, p, n, (off_t)offset);
        if (got < 0)
            return err_set_errno(e, "%s", f->path);
        if (got == 0)
            return err_set(e, "%s: the file ends at byte %llu", f->path, (unsigned long long)offset);
        p += got;
        offset += (uint64_t)got;
        n -= (size_t)got;
    }
    return 0;
}

static int parse_header(struct safetensors *f, uint64_t len, struct err *e)
{
    char *text = malloc(len + 1);

    if (!text)
        return err_set(e, "no memory for a header of %llu bytes", (unsigned long long)len);
    cJSON *header = NULL;
    int rc = read_at(f, 8, text, len, e);
    if (rc == 0 && !(header = json_parse(text, len, e)))
        rc = err_wrap(e, "header");
    if (rc == 0)
        rc = read_table(f, header, e);
    cJSON_Delete(header);
    free(text);
    return rc;
}

static int load(struct safetensors *f, struct err *e)
{
    struct stat st;
    uint64_t len;

    if (fstat(f->fd, &st) < 0 || !S_ISREG(st.st_mode))
        return err_set(e, "not a regular file");
    uint64_t size = (uint64_t)st.st_size;
    if (size < 8)
        return err_set(e, "%llu bytes, not even a header length", (unsigned long long)size);
    if (read_at(f, 0, &len, 8, e) < 0)
        return -1;
    len = le64toh(len);
    if (len > SAFETENSORS_MAX_HEADER_BYTES)
        return err_set(e, "header of %llu bytes, at most %d are accepted (is this a safetensors file?)",
                       (unsigned long long)len, SAFETENSORS_MAX_HEADER_BYTES);
    if (len > size - 8)
        return err_set(e, "header of %llu bytes in a file of %llu", (unsigned long long)len,
                       (unsigned long long)size);
    f->data_start = 8 + len;
    f->data_bytes = size - f->data_start;
    return parse_header(f, len, e);
}

struct safetensors *safetensors_open(const char *path, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        err_set_errno(e, "%s", path);
        return NULL;
    }
    struct safetensors *f = xcalloc(1, sizeof *f);
    f->fd = fd;
    f->path = arena_strdup(&f->arena, path);
    if (load(f, e) < 0) {
        err_wrap(e, "%s", path);
        safetensors_close(f);
        return NULL;
    }
    return f;
}

void safetensors_close(struct safetensors *f)
{
    if (!f)
        return;
    close(f->fd);
    free(f->v);
    arena_free(&f->arena);
    free(f);
}

int safetensors_read(const struct safetensors *f, const struct safetensors_entry *entry, void *out,
                     struct err *e)
{
    if (read_at(f, f->data_start + entry->offset, out, entry->bytes, e) < 0)
        return err_wrap(e, "tensor %.200s", entry->name);
    return 0;
}
