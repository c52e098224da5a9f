/* cmd_diff - bfctl diff: the first step at which two runs differ, and in what.
 *
 * Receipts say which part of the state differs, at few steps; logged losses say only that something does, at
 * more steps. Each is compared at the steps that both runs have, and the earlier difference is the first one.
 * Runs without a common step are an error: what was not compared must not look like agreement.
 */
#include "cli/cli.h"
#include "cli/output.h"
#include "cli/run_history.h"
#include "cli/spec_arg.h"
#include "cli/spec_diff.h"
#include "common/fsutil.h"
#include "common/json.h"

#include <stdlib.h>
#include <string.h>

enum { SPEC_MAX_BYTES = 1 << 20 };

struct side {
    char *dir;
    cJSON *spec;
    struct run_receipts receipts;
    struct run_losses losses;
};

/* What a comparison of steps found. Steps are 0 where there are none. */
struct found {
    int n_common;
    int64_t agree_up_to, last_common;
    int at[2]; /* indices of the first difference in either run; -1: none */
};

struct diff {
    struct side side[2];
    struct spec_diff spec;
    struct found receipts, losses;
    bool order_left_out; /* the two running hashes of what was fed do not begin at one step */
};

/* --- reading --- */

static bool is_number(const char *text)
{
    return *text && strspn(text, "0123456789") == strlen(text);
}

/* The run directory that operand i names, malloc'ed; NULL with an error. */
static char *find_dir(struct cli *cli, int i, struct err *e)
{
    int64_t id;

    if (!is_number(cli->operands[i]))
        return xstrdup(cli->operands[i]);
    if (cli_job_id(cli, i, &id, e) < 0)
        return NULL;
    cJSON *params = cJSON_CreateObject();
    cJSON_AddNumberToObject(params, "id", (double)id);
    cJSON *job = cli_call(cli, "job.get", params, e);
    if (!job)
        return NULL;
    const cJSON *dir = json_find(json_find(job, "paths"), "run_dir");
    char *found = cJSON_IsString(dir) ? xstrdup(dir->valuestring) : NULL;
    if (!found)
        err_set(e, "job %lld: the coordinator names no run directory", (long long)id);
    cJSON_Delete(job);
    return found;
}

static int read_side(struct cli *cli, int i, struct side *s, struct err *e)
{
    s->dir = find_dir(cli, i, e);
    if (!s->dir)
        return -1;
    char *path = fs_join(s->dir, "job.json");
    s->spec = json_read_file(path, SPEC_MAX_BYTES, e);
    free(path);
    if (!s->spec || run_receipts_read(s->dir, &s->receipts, e) < 0 ||
        run_losses_read(s->dir, &s->losses, e) < 0)
        return -1;
    if (!s->receipts.n && !s->losses.n)
        return err_set(e,
                       "%s holds neither receipts (in result.json or checkpoints/step-…/manifest.json) nor "
                       "logged losses (in metrics.jsonl)",
                       s->dir);
    return 0;
}

static void side_free(struct side *s)
{
    free(s->dir);
    cJSON_Delete(s->spec);
    run_receipts_free(&s->receipts);
    run_losses_free(&s->losses);
}

/* --- comparing --- */

static bool same_receipt(const void *a, const void *b)
{
    const struct run_receipt *x = a, *y = b;

    for (int f = 0; f < RUN_RECEIPT_FIELDS; f++)
        if (strcmp(x->v[f], y->v[f]) != 0)
            return false;
    return true;
}

static bool same_loss(const void *a, const void *b)
{
    const struct run_loss *x = a, *y = b;

    return run_loss_same(x->loss, y->loss);
}

/* Receipts or losses of one run, rising by step. */
struct series {
    const void *v;
    int n;
};

/* Compares at the steps that both have. Items have that size and begin with their step. */
static struct found compare_series(struct series a, struct series b, size_t size,
                                   bool (*same)(const void *, const void *))
{
    struct found f = {.at = {-1, -1}};

    for (int i = 0, k = 0; i < a.n && k < b.n;) {
        const void *x = (const char *)a.v + (size_t)i * size, *y = (const char *)b.v + (size_t)k * size;
        int64_t step = *(const int64_t *)x, other = *(const int64_t *)y;
        if (step == other) {
            f.n_common++;
            f.last_common = step;
            if (f.at[0] < 0 && same(x, y)) {
                f.agree_up_to = step;
            } else if (f.at[0] < 0) {
                f.at[0] = i;
                f.at[1] = k;
            }
        }
        i += step <= other;
        k += other <= step;
    }
    return f;
}

static int64_t last_step(const struct side *s)
{
    int64_t receipt = s->receipts.n ? s->receipts.v[s->receipts.n - 1].step : 0;
    int64_t loss = s->losses.n ? s->losses.v[s->losses.n - 1].step : 0;

    return receipt > loss ? receipt : loss;
}

static int no_common_step(const struct diff *d, struct err *e)
{
    char text[2][160];

    for (int i = 0; i < 2; i++) {
        const struct run_receipts *r = &d->side[i].receipts;
        const struct run_losses *l = &d->side[i].losses;
        int n = snprintf(text[i], sizeof text[i], "%d receipts", r->n);
        if (r->n)
            n += snprintf(text[i] + n, sizeof text[i] - (size_t)n, " (steps %lld to %lld)",
                          (long long)r->v[0].step, (long long)r->v[r->n - 1].step);
        n += snprintf(text[i] + n, sizeof text[i] - (size_t)n, " and %d losses", l->n);
        if (l->n)
            snprintf(text[i] + n, sizeof text[i] - (size_t)n, " (steps %lld to %lld)",
                     (long long)l->v[0].step, (long long)l->v[l->n - 1].step);
    }
    return err_set(e, "nothing was compared, no step is common: %s has %s, %s has %s", d->side[0].dir,
                   text[0], d->side[1].dir, text[1]);
}

static int compare(struct diff *d, struct err *e)
{
    const struct side *a = d->side, *b = d->side + 1;

    spec_diff(a->spec, b->spec, &d->spec);
    d->order_left_out = a->receipts.n && b->receipts.n && a->receipts.order_from != b->receipts.order_from;
    for (int i = 0; d->order_left_out && i < 2; i++)
        for (int k = 0; k < d->side[i].receipts.n; k++)
            d->side[i].receipts.v[k].v[RECEIPT_ORDER][0] = 0;
    d->receipts =
        compare_series((struct series){a->receipts.v, a->receipts.n},
                       (struct series){b->receipts.v, b->receipts.n}, sizeof *a->receipts.v, same_receipt);
    d->losses = compare_series((struct series){a->losses.v, a->losses.n},
                               (struct series){b->losses.v, b->losses.n}, sizeof *a->losses.v, same_loss);
    return d->receipts.n_common + d->losses.n_common > 0 ? 0 : no_common_step(d, e);
}

static const struct run_receipt *first_receipt(const struct diff *d, int side)
{
    int at = d->receipts.at[side];

    return at < 0 ? NULL : d->side[side].receipts.v + at;
}

static const struct run_loss *first_loss(const struct diff *d, int side)
{
    int at = d->losses.at[side];

    return at < 0 ? NULL : d->side[side].losses.v + at;
}

/* Receipts say more, so they count where both differ at the same step. */
static bool loss_is_first(const struct diff *d)
{
    const struct run_receipt *r = first_receipt(d, 0);
    const struct run_loss *l = first_loss(d, 0);

    return l && (!r || l->step < r->step);
}

static bool is_same(const struct diff *d)
{
    return !first_receipt(d, 0) && !first_loss(d, 0);
}

/* --- for people --- */

static void print_value(const cJSON *v)
{
    char brief[64] = "nothing";

    if (v)
        json_brief(v, brief);
    printf("%s", brief);
}

static void print_spec(const struct diff *d)
{
    static const char *const heads[] = {"the specs differ:\n",
                                        "also different, but not in what is computed:\n"};

    for (int aside = 0; aside < 2; aside++) {
        const char *head = heads[aside];
        for (int i = 0; i < d->spec.n; i++) {
            const struct spec_difference *s = d->spec.v + i;
            char pointer[256];
            if (s->aside != (aside == 1))
                continue;
            output_text(pointer, sizeof pointer, s->pointer);
            printf("%s  %s: ", head, pointer);
            print_value(s->a);
            printf(" and ");
            print_value(s->b);
            printf("\n");
            head = "";
        }
    }
}

/* "weights, optimizer state" */
static void fields_text(const struct diff *d, char *out, size_t cap)
{
    const struct run_receipt *a = first_receipt(d, 0), *b = first_receipt(d, 1);

    *out = 0;
    for (int f = 0; f < RUN_RECEIPT_FIELDS; f++) {
        size_t n = strlen(out);
        if (strcmp(a->v[f], b->v[f]) != 0)
            snprintf(out + n, cap - n, "%s%s", n ? ", " : "", run_receipt_text(f));
    }
}

/* "receipts agree up to step 32" */
static void print_agreement(const char *what, const struct found *f)
{
    if (!f->n_common)
        printf("%s: none are common", what);
    else if (f->agree_up_to)
        printf("%s agree up to step %lld", what, (long long)f->agree_up_to);
    else
        printf("%s: the first common ones differ", what);
}

static void print_same(const struct diff *d)
{
    const struct found *r = &d->receipts, *l = &d->losses;

    if (r->n_common && l->n_common)
        printf("no difference: %d receipts up to step %lld and %d logged losses up to step %lld agree\n",
               r->n_common, (long long)r->last_common, l->n_common, (long long)l->last_common);
    else if (r->n_common)
        printf("no difference: %d receipts up to step %lld agree; no logged losses are common\n", r->n_common,
               (long long)r->last_common);
    else
        printf("no difference: %d logged losses up to step %lld agree; no receipts are common\n", l->n_common,
               (long long)l->last_common);
}

static void print_different(const struct diff *d)
{
    char fields[128];

    if (first_receipt(d, 0))
        fields_text(d, fields, sizeof fields);
    if (!loss_is_first(d)) {
        printf("first difference: step %lld: %s\n", (long long)first_receipt(d, 0)->step, fields);
        print_agreement("receipts", &d->receipts);
        printf("; ");
        print_agreement("logged losses", &d->losses);
        printf("\n");
        return;
    }
    printf("first difference: step %lld: loss %.17g and %.17g\n", (long long)first_loss(d, 0)->step,
           first_loss(d, 0)->loss, first_loss(d, 1)->loss);
    print_agreement("logged losses", &d->losses);
    printf("; ");
    print_agreement("receipts", &d->receipts);
    if (first_receipt(d, 0))
        printf("; at step %lld they differ in %s", (long long)first_receipt(d, 0)->step, fields);
    printf("\n");
}

/* What a reader must know to judge a difference. */
static void print_remarks(const struct diff *d)
{
    const struct run_receipts *a = &d->side[0].receipts, *b = &d->side[1].receipts;

    if (d->order_left_out)
        printf(
            "data order is not compared: its record begins after step %lld in %s and after step %lld in %s\n",
            (long long)a->order_from, d->side[0].dir, (long long)b->order_from, d->side[1].dir);
    if (!is_same(d) && a->world_size && b->world_size && a->world_size != b->world_size &&
        !(spec_is_bitwise(d->side[0].spec) && spec_is_bitwise(d->side[1].spec)))
        printf("%d and %d ranks round differently unless train.determinism is \"bitwise\": bfctl verify "
               "tells whether more than rounding differs\n",
               a->world_size, b->world_size);
}

static void print_text(const struct diff *d)
{
    int64_t a = last_step(d->side), b = last_step(d->side + 1);

    print_spec(d);
    if (is_same(d))
        print_same(d);
    else
        print_different(d);
    print_remarks(d);
    if (a != b)
        printf("%s has steps up to %lld, %s up to %lld: nothing is said of what only one of them has\n",
               d->side[0].dir, (long long)a, d->side[1].dir, (long long)b);
}

/* --- JSON --- */

static void add_step(cJSON *obj, const char *key, int64_t step)
{
    if (step)
        cJSON_AddNumberToObject(obj, key, (double)step);
    else
        cJSON_AddNullToObject(obj, key);
}

static void add_side(cJSON *list, const struct side *s)
{
    cJSON *run = cJSON_CreateObject();

    cJSON_AddItemToArray(list, run);
    cJSON_AddStringToObject(run, "run_dir", s->dir);
    cJSON_AddNumberToObject(run, "receipts", s->receipts.n);
    if (s->receipts.source)
        cJSON_AddStringToObject(run, "receipts_from", s->receipts.source);
    cJSON_AddNumberToObject(run, "losses", s->losses.n);
    cJSON_AddNumberToObject(run, "last_step", (double)last_step(s));
}

static void add_spec(cJSON *doc, const struct diff *d)
{
    cJSON *spec = cJSON_AddArrayToObject(doc, "spec"), *asides = cJSON_AddArrayToObject(doc, "spec_aside");

    for (int i = 0; i < d->spec.n; i++) {
        const struct spec_difference *s = d->spec.v + i;
        cJSON *row = cJSON_CreateObject();
        cJSON_AddStringToObject(row, "pointer", s->pointer);
        if (s->a)
            cJSON_AddItemToObject(row, "a", cJSON_Duplicate(s->a, true));
        if (s->b)
            cJSON_AddItemToObject(row, "b", cJSON_Duplicate(s->b, true));
        cJSON_AddItemToArray(s->aside ? asides : spec, row);
    }
}

static cJSON *add_found(cJSON *doc, const char *key, const struct found *f, int64_t first)
{
    cJSON *obj = cJSON_AddObjectToObject(doc, key);

    cJSON_AddNumberToObject(obj, "compared", f->n_common);
    add_step(obj, "last_compared", f->last_common);
    add_step(obj, "agree_up_to", f->agree_up_to);
    add_step(obj, "first_difference", first);
    return obj;
}

static void add_receipts(cJSON *doc, const struct diff *d)
{
    const struct run_receipt *a = first_receipt(d, 0), *b = first_receipt(d, 1);
    cJSON *obj = add_found(doc, "receipts", &d->receipts, a ? a->step : 0);
    cJSON *fields = cJSON_AddObjectToObject(obj, "differ");

    for (int f = 0; a && f < RUN_RECEIPT_FIELDS; f++)
        if (strcmp(a->v[f], b->v[f]) != 0) {
            cJSON *pair = cJSON_AddObjectToObject(fields, run_receipt_key(f));
            cJSON_AddStringToObject(pair, "a", a->v[f]);
            cJSON_AddStringToObject(pair, "b", b->v[f]);
        }
}

static void add_losses(cJSON *doc, const struct diff *d)
{
    const struct run_loss *a = first_loss(d, 0), *b = first_loss(d, 1);
    cJSON *obj = add_found(doc, "losses", &d->losses, a ? a->step : 0);

    if (a) {
        cJSON *pair = cJSON_AddObjectToObject(obj, "differ");
        json_add_double(pair, "a", a->loss);
        json_add_double(pair, "b", b->loss);
    }
}

static void add_first(cJSON *doc, const struct diff *d)
{
    if (is_same(d)) {
        cJSON_AddNullToObject(doc, "first_difference");
        return;
    }
    const struct run_receipt *a = first_receipt(d, 0), *b = first_receipt(d, 1);
    bool loss = loss_is_first(d);
    cJSON *first = cJSON_AddObjectToObject(doc, "first_difference");
    cJSON_AddNumberToObject(first, "step", (double)(loss ? first_loss(d, 0)->step : a->step));
    cJSON_AddStringToObject(first, "source", loss ? "losses" : "receipts");
    cJSON *in = cJSON_AddArrayToObject(first, "in");
    for (int f = 0; f < RUN_RECEIPT_FIELDS; f++)
        if (loss ? f == RECEIPT_LOSS : strcmp(a->v[f], b->v[f]) != 0)
            cJSON_AddItemToArray(in, cJSON_CreateString(run_receipt_key(f)));
}

static void print_json(const struct diff *d)
{
    cJSON *doc = cJSON_CreateObject(), *runs = cJSON_AddArrayToObject(doc, "runs");

    for (int i = 0; i < 2; i++)
        add_side(runs, d->side + i);
    add_spec(doc, d);
    add_receipts(doc, d);
    add_losses(doc, d);
    add_first(doc, d);
    cJSON_AddBoolToObject(doc, "order_compared", !d->order_left_out);
    cJSON_AddBoolToObject(doc, "same", is_same(d));
    output_json(doc);
    cJSON_Delete(doc);
}

/* --- the command --- */

static int cmd_diff(struct cli *cli, struct err *e)
{
    struct diff d = {0};
    int rc = 0;

    for (int i = 0; i < 2 && rc == 0; i++)
        rc = read_side(cli, i, d.side + i, e);
    if (rc == 0)
        rc = compare(&d, e);
    if (rc == 0) {
        if (cli->opts.json)
            print_json(&d);
        else
            print_text(&d);
        rc = is_same(&d) ? EXIT_DONE : EXIT_JOB_FAILED;
    }
    spec_diff_free(&d.spec);
    for (int i = 0; i < 2; i++)
        side_free(d.side + i);
    return rc;
}

const struct cli_command cmd_diff_commands[] = {
    {"diff", "RUN_A RUN_B", 2, 2, NULL, 0, "the first step at which two runs differ, and in what",
     "A run is a run directory, or a job's id, whose run directory the coordinator then tells (write ./5 for "
     "a\n"
     "directory of that name). Compared are the receipts (hashes of sample order, weights, buffers and\n"
     "optimizer state at some steps, from result.json or the newest checkpoint) and the logged losses, bit "
     "by\n"
     "bit, at the steps that both runs have; the keys by which the specs differ come first. Exit status: 0 "
     "no\n"
     "difference, 1 a difference, or nothing could be compared.",
     cmd_diff},
    {0},
};
