/* dump_compare - see dump_compare.h. */
#include "cli/dump_compare.h"
#include "common/safetensors.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

double dump_compare_values(const float *a, const float *b, size_t n, int64_t *elements_different)
{
    double norm = 0, apart = 0;
    int64_t different = 0;

    for (size_t i = 0; i < n; i++) {
        if (memcmp(a + i, b + i, sizeof *a) != 0) {
            double d = (double)a[i] - (double)b[i];
            apart += d * d;
            different++;
        }
        norm += (double)a[i] * (double)a[i];
    }
    *elements_different = different;
    if (different == 0)
        return 0;
    if (!isfinite(norm) || !isfinite(apart))
        return INFINITY;
    return sqrt(apart) / fmax(sqrt(norm), DUMP_COMPARE_FLOOR);
}

static bool begins_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

static bool same_shape(const struct safetensors_entry *a, const struct safetensors_entry *b)
{
    return a->n_dims == b->n_dims && memcmp(a->dims, b->dims, (size_t)a->n_dims * sizeof *a->dims) == 0;
}

/* What makes a pair of entries incomparable: 0 when nothing does. */
static int check_pair(const struct safetensors *fa, const struct safetensors_entry *a,
                      const struct safetensors *fb, const struct safetensors_entry *b, struct err *e)
{
    char shape_a[192], shape_b[192];

    if (!b)
        return err_set(e, "tensor %s is in %s and not in %s", a->name, safetensors_path(fa),
                       safetensors_path(fb));
    if (a->dtype != SAFETENSORS_F32 || b->dtype != SAFETENSORS_F32)
        return err_set(e, "tensor %s is %s in %s and %s in %s, F32 is accepted", a->name,
                       safetensors_dtype_name(a->dtype), safetensors_path(fa),
                       safetensors_dtype_name(b->dtype), safetensors_path(fb));
    if (!same_shape(a, b))
        return err_set(e, "tensor %s is %s in %s and %s in %s", a->name, safetensors_shape_text(a, shape_a),
                       safetensors_path(fa), safetensors_shape_text(b, shape_b), safetensors_path(fb));
    return 0;
}

static int compare_pair(const struct safetensors *fa, const struct safetensors_entry *a,
                        const struct safetensors *fb, const struct safetensors_entry *b, const char *name,
                        struct dump_deviation *out, struct err *e)
{
    float *va = malloc(a->bytes ? a->bytes : 1), *vb = malloc(a->bytes ? a->bytes : 1);
    size_t n = a->bytes / sizeof(float);
    int rc = va && vb ? 0 : err_set(e, "no memory to compare tensor %s, twice %zu bytes", a->name, n * 4);

    if (rc == 0 && safetensors_read(fa, a, va, e) == 0 && safetensors_read(fb, b, vb, e) == 0) {
        int64_t different;
        double deviation = dump_compare_values(va, vb, n, &different);
        if (different > 0 && (deviation > out->worst || !*out->where)) {
            out->worst = deviation;
            snprintf(out->where, sizeof out->where, "%s", name);
        }
        out->elements += (int64_t)n;
        out->elements_different += different;
    } else {
        rc = -1;
    }
    free(va);
    free(vb);
    return rc;
}

static int compare_all(const struct safetensors *fa, const struct safetensors *fb, const char *prefix,
                       struct dump_deviation *out, struct err *e)
{
    int n_compared = 0;

    for (int i = 0; i < safetensors_count(fa); i++) {
        const struct safetensors_entry *a = safetensors_at(fa, i), *b = safetensors_find(fb, a->name);
        if (!begins_with(a->name, prefix))
            continue;
        if (check_pair(fa, a, fb, b, e) < 0 ||
            compare_pair(fa, a, fb, b, a->name + strlen(prefix), out, e) < 0)
            return -1;
        n_compared++;
    }
    for (int i = 0; i < safetensors_count(fb); i++) {
        const struct safetensors_entry *b = safetensors_at(fb, i);
        if (begins_with(b->name, prefix) && !safetensors_find(fa, b->name))
            return check_pair(fb, b, fa, NULL, e);
    }
    if (n_compared == 0)
        return err_set(e, "%s and %s: no tensor's name begins with \"%s\"", safetensors_path(fa),
                       safetensors_path(fb), prefix);
    return 0;
}

int dump_compare(const char *path_a, const char *path_b, const char *prefix, struct dump_deviation *out,
                 struct err *e)
{
    struct safetensors *a = safetensors_open(path_a, e), *b = a ? safetensors_open(path_b, e) : NULL;

    *out = (struct dump_deviation){0};
    int rc = b ? compare_all(a, b, prefix, out, e) : -1;
    safetensors_close(a);
    safetensors_close(b);
    return rc;
}
