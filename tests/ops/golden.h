/* golden - reads the fixtures that tests/golden/make_ops.py writes; the format is described there. */
#ifndef TESTS_OPS_GOLDEN_H
#define TESTS_OPS_GOLDEN_H

#include "common/err.h"
#include "worker/engine/tensor.h"

struct golden_tensor {
    char *name;
    enum dtype dtype;
    struct shape shape;
    void *data;
};

struct golden {
    struct golden_tensor *v;
    int n;
};

/* Reads a whole file. */
int golden_read(struct golden *g, const char *path, struct err *e);
void golden_free(struct golden *g);

/* The tensor "CASE.KEY", or NULL. */
const struct golden_tensor *golden_find(const struct golden *g, const char *name, const char *key);

#endif
