/* dump_compare - see dump_compare.h. */
#include "cli/dump_compare.h"
#include "common/safetensors.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t bits_of(float v)
{
    uint32_t bits;

    memcpy(&bits, &v, sizeof bits);
    return bits;
}

void dump_sums_add(struct dump_sums *s, const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (bits_of(a[i]) != bits_of(b[i])) {
            double d = (double)a[i] - (double)b[i];
            s->apart += d * d;
            s->elements_different++;
        }
        s->norm += (double)a[i] * (double)a[i];
    }
    s->elements += (int64_t)n;
}

double dump_sums_deviation(const struct dump_sums *s)
{
    if (s->elements_different == 0)
        return 0;
    if (!isfinite(s->norm) || !isfinite(s->apart))
        return INFINITY;
    return sqrt(s->apart) / fmax(sqrt(s->norm), DUMP_COMPARE_FLOOR);
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

/* What a comparison of two files has found so far. */
struct comparison {
    struct dump_sums all;
    struct dump_deviation *out;
};

static void take_tensor(struct comparison *c, const struct dump_sums *s, const char *name)
{
    double deviation = dump_sums_deviation(s);

    if (s->elements_different > 0 && (deviation > c->out->worst || !*c->out->where)) {
        c->out->worst = deviation;
        snprintf(c->out->where, sizeof c->out->where, "%s", name);
    }
    c->all.norm += s->norm;
    c->all.apart += s->apart;
    c->all.elements += s->elements;
    c->all.elements_different += s->elements_different;
}

static int compare_pair(struct comparison *c, const struct safetensors *fa, const struct safetensors_entry *a,
                        const struct safetensors *fb, const struct safetensors_entry *b, const char *name,
                        struct err *e)
{
    float *va = malloc(a->bytes ? a->bytes : 1), *vb = malloc(a->bytes ? a->bytes : 1);
    struct dump_sums s = {0};
    int rc = -1;

    if (!va || !vb) {
        err_set(e, "no memory to compare tensor %s, twice %llu bytes", a->name, (unsigned long long)a->bytes);
    } else if (safetensors_read(fa, a, va, e) == 0 && safetensors_read(fb, b, vb, e) == 0) {
        dump_sums_add(&s, va, vb, a->bytes / sizeof(float));
        take_tensor(c, &s, name);
        rc = 0;
    }
    free(va);
    free(vb);
    return rc;
}

static int compare_all(const struct safetensors *fa, const struct safetensors *fb, const char *prefix,
                       struct dump_deviation *out, struct err *e)
{
    struct comparison c = {.out = out};
    int n_compared = 0;

    for (int i = 0; i < safetensors_count(fa); i++) {
        const struct safetensors_entry *a = safetensors_at(fa, i), *b = safetensors_find(fb, a->name);
        if (!begins_with(a->name, prefix))
            continue;
        if (check_pair(fa, a, fb, b, e) < 0 ||
            compare_pair(&c, fa, a, fb, b, a->name + strlen(prefix), e) < 0)
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
    out->overall = dump_sums_deviation(&c.all);
    out->elements = c.all.elements;
    out->elements_different = c.all.elements_different;
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
