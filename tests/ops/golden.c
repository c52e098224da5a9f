/* golden - see golden.h. */
#include "tests/ops/golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/fsutil.h"

enum { FILE_MAX_BYTES = 1 << 20 };

/* What is left of the file. */
struct cursor {
    const char *p;
    size_t left;
};

static int take(struct cursor *c, void *out, size_t n, struct err *e)
{
    if (c->left < n)
        return err_set(e, "%zu bytes are missing", n - c->left);
    memcpy(out, c->p, n);
    c->p += n;
    c->left -= n;
    return 0;
}

static int read_tensor(struct cursor *c, struct golden_tensor *t, struct err *e)
{
    uint32_t length = 0, type = 0, n_dims = 0;

    if (take(c, &length, 4, e) < 0)
        return -1;
    if (length > 100)
        return err_set(e, "a name of %u bytes; accepted: 100", length);
    t->name = xcalloc(length + 1, 1);
    if (take(c, t->name, length, e) < 0 || take(c, &type, 4, e) < 0 || take(c, &n_dims, 4, e) < 0)
        return -1;
    if (type > DTYPE_I32 || n_dims < 1 || n_dims > SHAPE_MAX_DIMS)
        return err_set(e, "%s: type %u, %u dimensions", t->name, type, n_dims);
    t->dtype = (enum dtype)type;
    t->shape.n_dims = (int)n_dims;
    if (take(c, t->shape.dims, n_dims * sizeof(int64_t), e) < 0)
        return -1;
    size_t bytes = (size_t)shape_count(t->shape) * dtype_bytes(t->dtype);
    if (bytes > FILE_MAX_BYTES)
        return err_set(e, "%s: %zu bytes", t->name, bytes);
    t->data = xmalloc(bytes + 1);
    return take(c, t->data, bytes, e);
}

static int parse(struct golden *g, struct cursor *c, struct err *e)
{
    char magic[8] = "";
    uint32_t n = 0;

    if (take(c, magic, 8, e) < 0 || take(c, &n, 4, e) < 0)
        return -1;
    if (memcmp(magic, "BFGOLD1\n", 8) != 0 || n > 10000)
        return err_set(e, "not a fixture");
    g->v = xcalloc(n, sizeof(*g->v));
    g->n = (int)n;
    for (int i = 0; i < g->n; i++)
        if (read_tensor(c, &g->v[i], e) < 0)
            return -1;
    return c->left ? err_set(e, "%zu bytes too many", c->left) : 0;
}

int golden_read(struct golden *g, const char *path, struct err *e)
{
    struct cursor c;
    char *text;
    int rc;

    *g = (struct golden){0};
    if (fs_read_file(path, FILE_MAX_BYTES, &text, &c.left, e) < 0)
        return -1;
    c.p = text;
    rc = parse(g, &c, e);
    free(text);
    return rc < 0 ? err_wrap(e, "%s", path) : 0;
}

void golden_free(struct golden *g)
{
    for (int i = 0; i < g->n; i++) {
        free(g->v[i].name);
        free(g->v[i].data);
    }
    free(g->v);
}

const struct golden_tensor *golden_find(const struct golden *g, const char *name, const char *key)
{
    char full[128];

    snprintf(full, sizeof(full), "%s.%s", name, key);
    for (int i = 0; i < g->n; i++)
        if (strcmp(g->v[i].name, full) == 0)
            return &g->v[i];
    return NULL;
}
