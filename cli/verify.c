/* verify - see verify.h.
 *
 * The limits of mode "default"; docs/operations.md has the figures behind them.
 *
 * At equal weights only the order of fp32 sums differs, and what is exact to 1e-6 may grow to some 1e-4 where
 * a sum nearly cancels (a first convolution). A wrong exchange between ranks is off by 1e-1 there.
 *
 * In bf16 the sums are those of fp32, and what is made of them is rounded to 8 bits, so one that lies between
 * two numbers moves by 2^-8: up to 1.4e-2 in a first layer's gradient, where a wrong exchange is off by 1e-1
 * as well.
 *
 * From the start the weights differ by 1e-7 after one step. Then some input of a ReLU lies on the other side
 * of zero, gradients jump, and two runs of a deep net part, each as right as the other. After ten steps
 * nothing is left of the gradient's digits, nor of those of the tensors that began at zero (biases of batch
 * norm: they are a sum of gradients). So the gradient is not judged, the weights are judged as one vector,
 * and the limits are wide: what they find is a run that is led elsewhere, by another order of samples, say.
 */
#include "cli/verify.h"
#include "cli/output.h"
#include "common/json.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *key, *text;
} kinds[VERIFY_KINDS] = {
    [VERIFY_RESUMED] = {"resumed", "resumed"},
    [VERIFY_SAME_WEIGHTS] = {"same_weights", "same weights"},
    [VERIFY_FROM_START] = {"from_start", "from the start"},
};

static const char *const part_keys[VERIFY_PARTS] = {"loss", "gradient", "weights"};

#define SAME_BITS                                                                                            \
    {                                                                                                        \
        VERIFY_SAME_BITS, 0                                                                                  \
    }

static const struct verify_limits bitwise_limits = {
    {[VERIFY_RESUMED] = {SAME_BITS, SAME_BITS, SAME_BITS},
     [VERIFY_SAME_WEIGHTS] = {SAME_BITS, SAME_BITS, {VERIFY_NOT_COMPARED, 0}},
     [VERIFY_FROM_START] = {SAME_BITS, SAME_BITS, SAME_BITS}}};

static const struct verify_limits default_limits = {
    {[VERIFY_RESUMED] = {SAME_BITS, SAME_BITS, SAME_BITS},
     [VERIFY_SAME_WEIGHTS] = {{VERIFY_AT_MOST, 1e-6}, {VERIFY_AT_MOST, 1e-3}, {VERIFY_NOT_COMPARED, 0}},
     [VERIFY_FROM_START] = {{VERIFY_AT_MOST, 2e-2}, {VERIFY_NOT_JUDGED, 0}, {VERIFY_OVERALL_AT_MOST, 2e-2}}}};

static const struct verify_limits bf16_limits = {
    {[VERIFY_RESUMED] = {SAME_BITS, SAME_BITS, SAME_BITS},
     [VERIFY_SAME_WEIGHTS] = {{VERIFY_AT_MOST, 1e-4}, {VERIFY_AT_MOST, 5e-2}, {VERIFY_NOT_COMPARED, 0}},
     [VERIFY_FROM_START] = {{VERIFY_AT_MOST, 5e-2}, {VERIFY_NOT_JUDGED, 0}, {VERIFY_OVERALL_AT_MOST, 5e-2}}}};

/* Values of the spec by which results depend on the number of ranks, by definition. */
static const struct {
    const char *section, *key, *value;
    const char *only_if; /* a key of the section that must be true, or NULL */
    const char *reason;
} dependent[] = {
    {"batchformer", "scope", "local", "enabled",
     "each rank attends over its own rows only, so another number of ranks is another function"},
    {"model", "norm", "batch", NULL,
     "batch norm takes its statistics from each rank's rows, so another number of ranks is another function"},
};

enum { N_DEPENDENT = sizeof dependent / sizeof *dependent };

const char *verify_kind_text(enum verify_kind k)
{
    return kinds[k].text;
}

const char *verify_ranks_text(int n, char out[32])
{
    snprintf(out, 32, "%d %s", n, n == 1 ? "rank" : "ranks");
    return out;
}

/* --- judging --- */

void verify_limits(bool bitwise, bool bf16, double from_start, struct verify_limits *out)
{
    *out = bitwise ? bitwise_limits : bf16 ? bf16_limits : default_limits;
    for (int p = 0; p < VERIFY_PARTS; p++) {
        struct verify_limit *l = &out->v[VERIFY_FROM_START][p];
        if (from_start >= 0 && (l->rule == VERIFY_AT_MOST || l->rule == VERIFY_OVERALL_AT_MOST))
            l->at_most = from_start;
    }
}

static bool part_within(const struct verify_limit *l, const struct dump_deviation *d)
{
    switch (l->rule) {
    case VERIFY_AT_MOST:
        return d->worst <= l->at_most;
    case VERIFY_OVERALL_AT_MOST:
        return d->overall <= l->at_most;
    case VERIFY_SAME_BITS:
        return d->elements_different == 0;
    default:
        return true;
    }
}

static bool kind_within(const struct verify *v, const struct verify_world *w, enum verify_kind k)
{
    bool within = true;

    for (int p = 0; p < VERIFY_PARTS; p++)
        within &= part_within(&v->limits.v[k][p], &w->kind[k].part[p]);
    return within;
}

static bool world_within(const struct verify *v, const struct verify_world *w)
{
    bool within = true;

    for (int k = 0; k < VERIFY_KINDS; k++)
        within &= !w->kind[k].made || kind_within(v, w, k);
    return within;
}

bool verify_within(const struct verify *v)
{
    bool within = true;

    for (int i = 0; i < v->n_worlds; i++)
        within &= world_within(v, v->worlds + i);
    return within;
}

static bool depends(const struct verify *v, int row)
{
    const cJSON *section = json_find(v->spec, dependent[row].section);
    const cJSON *value = json_find(section, dependent[row].key);

    return cJSON_IsString(value) && strcmp(value->valuestring, dependent[row].value) == 0 &&
           (!dependent[row].only_if || cJSON_IsTrue(json_find(section, dependent[row].only_if)));
}

/* --- for people --- */

static void part_cell(char out[OUTPUT_CELL], const struct verify_limit *l, const struct dump_deviation *d)
{
    char mark[32] = "", text[256];

    if (l->rule == VERIFY_SAME_BITS)
        snprintf(mark, sizeof mark, "%lld differ, ", (long long)d->elements_different);
    if (l->rule == VERIFY_OVERALL_AT_MOST)
        snprintf(mark, sizeof mark, "%.1e all, ", d->overall);
    if (l->rule == VERIFY_NOT_COMPARED)
        snprintf(text, sizeof text, "-");
    else if (d->elements_different == 0)
        snprintf(text, sizeof text, "same bits");
    else
        snprintf(text, sizeof text, "%s%.1e %s", mark, d->worst, d->where);
    output_text(out, OUTPUT_CELL, text); /* a long name is cut */
}

static void print_table(const struct verify *v)
{
    struct output_table t = {.n_columns = 6,
                             .titles = {"RANKS", "COMPARED", "LOSS", "GRADIENT", "WEIGHTS", ""},
                             .right = {true}};

    for (int i = 0; i < v->n_worlds; i++)
        for (int k = 0; k < VERIFY_KINDS; k++) {
            const struct verify_world *w = v->worlds + i;
            if (!w->kind[k].made)
                continue;
            char(*row)[OUTPUT_CELL] = output_table_row(&t);
            snprintf(row[0], OUTPUT_CELL, "%d", w->n_ranks);
            snprintf(row[1], OUTPUT_CELL, "%s", kinds[k].text);
            for (int p = 0; p < VERIFY_PARTS; p++)
                part_cell(row[2 + p], &v->limits.v[k][p], &w->kind[k].part[p]);
            snprintf(row[5], OUTPUT_CELL, "%s", kind_within(v, w, k) ? "ok" : "ABOVE");
        }
    output_table_print(&t, stdout);
    output_table_free(&t);
}

static void print_limits(const struct verify *v)
{
    if (v->bitwise) {
        printf("tolerance: none, every bit must be the same (train.determinism is \"bitwise\")\n");
        return;
    }
    const struct verify_limit(*l)[VERIFY_PARTS] = v->limits.v;
    printf("tolerance: resumed: the same bits; same weights: loss %g, gradient %g; from the start: loss %g, "
           "weights %g (all as one), the gradient is not judged\n",
           l[VERIFY_SAME_WEIGHTS][VERIFY_LOSS].at_most, l[VERIFY_SAME_WEIGHTS][VERIFY_GRADIENT].at_most,
           l[VERIFY_FROM_START][VERIFY_LOSS].at_most, l[VERIFY_FROM_START][VERIFY_WEIGHTS].at_most);
}

void verify_print(const struct verify *v)
{
    const cJSON *name = json_find(v->spec, "name");
    char ranks[32];

    printf("job %s, %lld %s, compared with %s: largest deviation and where it is\n\n",
           cJSON_IsString(name) ? name->valuestring : "", (long long)v->n_steps,
           v->n_steps == 1 ? "step" : "steps", verify_ranks_text(v->worlds[0].n_ranks, ranks));
    print_table(v);
    printf("\n");
    print_limits(v);
    for (int i = 0; i < N_DEPENDENT; i++)
        if (depends(v, i))
            printf("not independent of the number of ranks: %s.%s is \"%s\": %s\n", dependent[i].section,
                   dependent[i].key, dependent[i].value, dependent[i].reason);
    printf("%s\n", verify_within(v) ? "all within tolerance" : "ABOVE tolerance");
}

/* --- JSON --- */

static void add_limits(const struct verify *v, cJSON *doc)
{
    cJSON *all = cJSON_AddObjectToObject(doc, "tolerances");

    for (int k = 0; k < VERIFY_KINDS; k++) {
        cJSON *kind = cJSON_AddObjectToObject(all, kinds[k].key);
        for (int p = 0; p < VERIFY_PARTS; p++) {
            const struct verify_limit *l = &v->limits.v[k][p];
            if (l->rule == VERIFY_NOT_JUDGED)
                cJSON_AddNullToObject(kind, part_keys[p]);
            else if (l->rule == VERIFY_AT_MOST)
                json_add_double(cJSON_AddObjectToObject(kind, part_keys[p]), "deviation", l->at_most);
            else if (l->rule == VERIFY_OVERALL_AT_MOST)
                json_add_double(cJSON_AddObjectToObject(kind, part_keys[p]), "overall", l->at_most);
            else if (l->rule == VERIFY_SAME_BITS)
                cJSON_AddNumberToObject(cJSON_AddObjectToObject(kind, part_keys[p]), "elements_different", 0);
        }
    }
}

static void add_part(cJSON *kind, enum verify_part p, const struct dump_deviation *d)
{
    cJSON *part = cJSON_AddObjectToObject(kind, part_keys[p]);
    long long step;

    json_add_double(part, "deviation", d->worst);
    if (p != VERIFY_LOSS)
        json_add_double(part, "overall", d->overall);
    if (p == VERIFY_LOSS && sscanf(d->where, "step %lld", &step) == 1)
        cJSON_AddNumberToObject(part, "step", (double)step);
    else if (*d->where)
        cJSON_AddStringToObject(part, "tensor", d->where);
    else
        cJSON_AddNullToObject(part, p == VERIFY_LOSS ? "step" : "tensor");
    cJSON_AddNumberToObject(part, "elements", (double)d->elements);
    cJSON_AddNumberToObject(part, "elements_different", (double)d->elements_different);
}

static void add_world(const struct verify *v, const struct verify_world *w, cJSON *list)
{
    cJSON *world = cJSON_CreateObject();

    cJSON_AddItemToArray(list, world);
    cJSON_AddNumberToObject(world, "ranks", w->n_ranks);
    for (int k = 0; k < VERIFY_KINDS; k++) {
        if (!w->kind[k].made)
            continue;
        cJSON *kind = cJSON_AddObjectToObject(world, kinds[k].key);
        for (int p = 0; p < VERIFY_PARTS; p++)
            if (v->limits.v[k][p].rule != VERIFY_NOT_COMPARED)
                add_part(kind, p, &w->kind[k].part[p]);
        cJSON_AddStringToObject(kind, "verdict", kind_within(v, w, k) ? "within" : "above");
    }
    cJSON_AddStringToObject(world, "verdict", world_within(v, w) ? "within" : "above");
}

void verify_print_json(const struct verify *v)
{
    cJSON *doc = cJSON_CreateObject();
    const cJSON *name = json_find(v->spec, "name");

    cJSON_AddStringToObject(doc, "name", cJSON_IsString(name) ? name->valuestring : "");
    cJSON_AddNumberToObject(doc, "steps", (double)v->n_steps);
    cJSON_AddNumberToObject(doc, "reference", v->worlds[0].n_ranks);
    cJSON_AddStringToObject(doc, "determinism", v->bitwise ? "bitwise" : "default");
    add_limits(v, doc);
    cJSON *rows = cJSON_AddArrayToObject(doc, "not_world_size_independent");
    for (int i = 0; i < N_DEPENDENT; i++) {
        if (!depends(v, i))
            continue;
        char pointer[64];
        cJSON *row = cJSON_CreateObject();
        snprintf(pointer, sizeof pointer, "/%s/%s", dependent[i].section, dependent[i].key);
        cJSON_AddStringToObject(row, "pointer", pointer);
        cJSON_AddStringToObject(row, "value", dependent[i].value);
        cJSON_AddStringToObject(row, "reason", dependent[i].reason);
        cJSON_AddItemToArray(rows, row);
    }
    cJSON *worlds = cJSON_AddArrayToObject(doc, "world_sizes");
    for (int i = 0; i < v->n_worlds; i++)
        add_world(v, v->worlds + i, worlds);
    cJSON_AddStringToObject(doc, "verdict", verify_within(v) ? "within" : "above");
    output_json(doc);
    cJSON_Delete(doc);
}
