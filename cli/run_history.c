/* run_history - see run_history.h. */
#include "cli/run_history.h"
#include "common/fsutil.h"
#include "common/hash.h"
#include "common/json.h"
#include "common/step_dir.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BYTES = 64 << 20 };

static const struct {
    const char *key, *text;
} fields[RUN_RECEIPT_FIELDS] = {
    [RECEIPT_ORDER] = {"order", "data order"},
    [RECEIPT_LOSS] = {"loss", "loss"},
    [RECEIPT_WEIGHTS] = {"weights", "weights"},
    [RECEIPT_BUFFERS] = {"buffers", "buffers"},
    [RECEIPT_OPTIMIZER] = {"optimizer", "optimizer state"},
};

const char *run_receipt_key(enum run_receipt_field f)
{
    return fields[f].key;
}

const char *run_receipt_text(enum run_receipt_field f)
{
    return fields[f].text;
}

/* --- losses --- */

static void add_loss(struct run_losses *l, int64_t step, double loss)
{
    while (l->n && l->v[l->n - 1].step >= step)
        l->n--;
    if ((l->n & (l->n - 1)) == 0) /* full at each power of two */
        l->v = xrealloc(l->v, (size_t)(l->n ? 2 * l->n : 1) * sizeof *l->v);
    l->v[l->n++] = (struct run_loss){step, loss};
}

static int take_line(const char *line, size_t len, struct run_losses *l, struct err *e)
{
    cJSON *v = json_parse(line, len, e);
    const char *kind;
    int64_t step;
    int rc = v && json_get_str(v, "", "kind", &kind, e) == 0 ? 0 : -1;

    if (rc == 0 && strcmp(kind, "step") == 0) {
        double loss = NAN;
        rc = json_get_int(v, "", "step", 1, INT64_C(1) << 53, &step, e);
        if (rc == 0 && !cJSON_IsNull(json_find(v, "loss")))
            rc = json_get_num(v, "", "loss", &loss, e);
        if (rc == 0)
            add_loss(l, step, loss);
    }
    cJSON_Delete(v);
    return rc;
}

int run_losses_read(const char *run_dir, struct run_losses *out, struct err *e)
{
    char *path = fs_join(run_dir, "metrics.jsonl"), *line = NULL;
    FILE *f = fopen(path, "re");
    size_t cap = 0;
    long n_lines = 0;
    int rc = 0;

    *out = (struct run_losses){0};
    if (!f && errno != ENOENT)
        rc = err_set_errno(e, "%s", path);
    for (ssize_t n; f && rc == 0 && (n = getline(&line, &cap, f)) > 0 && line[n - 1] == '\n';) {
        n_lines++;
        if (take_line(line, (size_t)n, out, e) < 0)
            rc = err_wrap(e, "%s, line %ld", path, n_lines);
    }
    if (f && rc == 0 && ferror(f))
        rc = err_set_errno(e, "reading %s", path);
    if (f)
        fclose(f);
    if (rc < 0)
        run_losses_free(out);
    free(line);
    free(path);
    return rc;
}

void run_losses_free(struct run_losses *l)
{
    free(l->v);
    *l = (struct run_losses){0};
}

bool run_loss_same(double a, double b)
{
    uint64_t x, y;

    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    return x == y || (isnan(a) && isnan(b));
}

/* --- receipts --- */

static bool is_number(const char *text)
{
    char *end;

    (void)strtod(text, &end);
    return end != text && !*end;
}

static int take_receipt(const cJSON *v, const char *at, int64_t above, struct run_receipt *out, struct err *e)
{
    if (!cJSON_IsObject(v))
        return err_set(e, "%s: an object is accepted", at);
    if (json_get_int(v, at, "step", above + 1, INT64_C(1) << 53, &out->step, e) < 0)
        return -1;
    for (int f = 0; f < RUN_RECEIPT_FIELDS; f++) {
        const char *text;
        if (json_get_str(v, at, fields[f].key, &text, e) < 0)
            return -1;
        if (f == RECEIPT_LOSS ? !is_number(text) : !hash_is_hex(text))
            return err_set(e, "%s/%s: \"%.40s\" found, %s accepted", at, fields[f].key, text,
                           f == RECEIPT_LOSS ? "a number as text is" : "32 hex digits are");
        size_t len = strlen(text);
        if (len >= sizeof out->v[f])
            return err_set(e, "%s/%s: %zu characters found, at most %zu are accepted", at, fields[f].key, len,
                           sizeof out->v[f] - 1);
        memcpy(out->v[f], text, len + 1);
    }
    return 0;
}

static int take_receipts(const cJSON *list, struct run_receipts *out, struct err *e)
{
    const cJSON *item;

    if (!cJSON_IsArray(list))
        return err_set(e, "/receipts: an array is accepted");
    out->v = xcalloc((unsigned long)cJSON_GetArraySize(list) + 1, sizeof *out->v);
    cJSON_ArrayForEach(item, list)
    {
        char at[48];
        snprintf(at, sizeof at, "/receipts/%d", out->n);
        if (take_receipt(item, at, out->n ? out->v[out->n - 1].step : 0, out->v + out->n, e) < 0)
            return -1;
        out->n++;
    }
    return 0;
}

void run_receipts_free(struct run_receipts *r)
{
    free(r->v);
    free(r->source);
    r->v = NULL;
    r->n = 0;
    r->source = NULL;
}

/* Takes the receipts of one document, if it is there and has some. */
static int read_document(const char *path, struct run_receipts *out, struct err *e)
{
    *out = (struct run_receipts){0};
    if (!fs_exists(path))
        return 0;
    cJSON *doc = json_read_file(path, MAX_BYTES, e); /* its messages name the file */
    if (!doc)
        return -1;
    const cJSON *list = json_find(doc, "receipts"), *ranks = json_find(doc, "world_size");
    int rc = list ? take_receipts(list, out, e) : 0;
    if (rc == 0 && json_find(doc, "order_from"))
        rc = json_get_int(doc, "", "order_from", 0, INT64_C(1) << 53, &out->order_from, e);
    out->world_size = cJSON_IsNumber(ranks) ? ranks->valueint : 0;
    cJSON_Delete(doc);
    if (rc < 0 || !out->n)
        run_receipts_free(out);
    else
        out->source = xstrdup(path);
    return rc < 0 ? err_wrap(e, "%s", path) : 0;
}

/* RUN/checkpoints/step-…/manifest.json with the highest step; NULL when there is none. */
static char *newest_manifest(const char *run_dir)
{
    char *all = fs_join(run_dir, "checkpoints"), *manifest = NULL;
    int64_t step = step_dir_newest(all);

    if (step >= 0) {
        char *dir = step_dir_path(all, step);
        manifest = fs_join(dir, "manifest.json");
        free(dir);
    }
    free(all);
    return manifest;
}

int run_receipts_read(const char *run_dir, struct run_receipts *out, struct err *e)
{
    char *result = fs_join(run_dir, "result.json"), *manifest = newest_manifest(run_dir);

    int rc = read_document(result, out, e);
    if (rc == 0 && !out->n && manifest)
        rc = read_document(manifest, out, e);
    free(result);
    free(manifest);
    return rc;
}
