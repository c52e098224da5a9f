/* bench_step_tell - see bench_step_tell.h. */
#include "bench/bench_step_tell.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "bench/bench_run.h"

enum { BAR = 40 };

/* One operator, or all of a kind, in both directions; [1] is backward. */
struct row {
    const char *name, *op;
    int nodes;
    double ms[2], flops[2], bytes[2];
};

/* ---- rows ---- */

static double median_of(double *v, int n)
{
    return n > 0 ? bench_median(v, n) : 0;
}

/* Of the operators that ran, in the order of the graph; returns how many. Sorts what was measured. */
static int node_rows(const struct bench_told *told, struct row *out)
{
    struct bench_times *t = told->times;
    int n = 0;

    for (int i = 0; i < t->n_nodes; i++) {
        const struct node *node = told->net->graph->nodes[i];
        struct row r = {.name = node->name, .op = op_table[node->op].name, .nodes = 1};
        if (node->op == OP_INPUT || node->op == OP_PARAM)
            continue;
        for (int pass = 0; pass < 2; pass++) {
            r.ms[pass] = bench_times_node(t, i, pass);
            if (pass == 0 || node->needs_grad) {
                r.flops[pass] = bench_node_flops(node, pass);
                r.bytes[pass] = bench_node_bytes(node, pass);
            }
        }
        out[n++] = r;
    }
    return n;
}

static double both(const double v[2])
{
    return v[0] + v[1];
}

static int slowest_first(const void *a, const void *b)
{
    const double x = both(((const struct row *)a)->ms), y = both(((const struct row *)b)->ms);

    return x < y ? 1 : x > y ? -1 : 0;
}

/* Rows added up by kind of operator. */
static int kind_rows(const struct row *nodes, int n_nodes, struct row *out)
{
    int n = 0;

    for (int i = 0; i < n_nodes; i++) {
        int k = 0;
        while (k < n && strcmp(out[k].op, nodes[i].op) != 0)
            k++;
        if (k == n)
            out[n++] = (struct row){.op = nodes[i].op};
        out[k].nodes++;
        for (int pass = 0; pass < 2; pass++) {
            out[k].ms[pass] += nodes[i].ms[pass];
            out[k].flops[pass] += nodes[i].flops[pass];
            out[k].bytes[pass] += nodes[i].bytes[pass];
        }
    }
    qsort(out, (size_t)n, sizeof *out, slowest_first);
    return n;
}

struct told_rows {
    struct row *nodes, *kinds;
    int n_nodes, n_kinds;
    double parts_ms[N_BENCH_PARTS];
    double watched_ms, flops; /* of a step */
};

static struct told_rows make_rows(const struct bench_told *told)
{
    const struct bench_times *t = told->times;
    struct told_rows r = {.nodes = xcalloc((size_t)t->n_nodes, sizeof *r.nodes),
                          .kinds = xcalloc((size_t)t->n_nodes, sizeof *r.kinds)};

    r.n_nodes = node_rows(told, r.nodes);
    r.n_kinds = kind_rows(r.nodes, r.n_nodes, r.kinds);
    for (int i = 0; i < N_BENCH_PARTS; i++)
        r.watched_ms += r.parts_ms[i] = median_of(t->parts[i], t->n_watched);
    for (int i = 0; i < r.n_kinds; i++) {
        r.watched_ms += both(r.kinds[i].ms);
        r.flops += both(r.kinds[i].flops);
    }
    return r;
}

/* ---- JSON ---- */

static double rate(double amount, double ms)
{
    return ms > 0 ? amount / ms / 1e6 : 0;
}

static void add_row(cJSON *to, const struct row *r, double watched_ms)
{
    static const char *const passes[] = {"forward", "backward"};
    cJSON *o = cJSON_CreateObject();

    if (r->name)
        cJSON_AddStringToObject(o, "name", r->name);
    cJSON_AddStringToObject(o, "op", r->op);
    if (!r->name)
        cJSON_AddNumberToObject(o, "nodes", r->nodes);
    cJSON_AddNumberToObject(o, "share", watched_ms > 0 ? both(r->ms) / watched_ms : 0);
    for (int pass = 0; pass < 2; pass++) {
        cJSON *p = cJSON_AddObjectToObject(o, passes[pass]);
        cJSON_AddNumberToObject(p, "ms", r->ms[pass]);
        cJSON_AddNumberToObject(p, "flop", r->flops[pass]);
        cJSON_AddNumberToObject(p, "bytes", r->bytes[pass]);
        cJSON_AddNumberToObject(p, "gflop_per_s", rate(r->flops[pass], r->ms[pass]));
        cJSON_AddNumberToObject(p, "gb_per_s", rate(r->bytes[pass], r->ms[pass]));
    }
    cJSON_AddItemToArray(to, o);
}

static cJSON *spread_of_rates(const struct bench_told *told)
{
    const struct bench_times *t = told->times;
    double *v = xmalloc((size_t)t->n_steps * sizeof *v);

    for (int i = 0; i < t->n_steps; i++)
        v[i] = (double)told->net->cfg.batch / t->step_ms[i] * 1e3;
    cJSON *o = bench_spread(v, t->n_steps, false);
    free(v);
    return o;
}

static cJSON *make_doc(const struct bench_told *told, const struct told_rows *r, const double *peaks)
{
    static const char *const parts[] = {"feed", "sums", "update"};
    const struct bench_times *t = told->times;
    const struct params *ps = told->net->params;
    cJSON *doc = cJSON_CreateObject(), *o;
    int64_t weights = 0;

    for (int i = 0; i < ps->n; i++)
        weights += ps->v[i]->kind == PARAM_WEIGHT ? shape_count(ps->v[i]->shape) : 0;
    cJSON_AddStringToObject(doc, "program", "bench_step");
    bench_net_tell(doc, &told->net->cfg);
    bench_tell_machine(doc, told->comm, told->threads);
    cJSON_AddNumberToObject(doc, "warm_steps", (double)told->warm);
    cJSON_AddItemToObject(doc, "images_per_s", spread_of_rates(told));
    cJSON_AddItemToObject(doc, "step_ms", bench_spread(t->step_ms, t->n_steps, true));
    cJSON_AddItemToObject(doc, "losses", cJSON_CreateDoubleArray(t->losses, t->n_losses));
    cJSON_AddItemToObject(doc, "peak_rss_bytes", cJSON_CreateDoubleArray(peaks, told->comm->size));
    cJSON_AddNumberToObject(doc, "arena_bytes", (double)program_arena_bytes(told->net->program));
    cJSON_AddNumberToObject(doc, "unshared_bytes", (double)program_unshared_bytes(told->net->program));
    cJSON_AddNumberToObject(doc, "parameters", (double)weights);
    cJSON_AddNumberToObject(doc, "flop", r->flops);
    o = cJSON_GetObjectItem(doc, "step_ms");
    cJSON_AddNumberToObject(doc, "gflop_per_s",
                            rate(r->flops, cJSON_GetObjectItem(o, "median")->valuedouble));
    cJSON_AddNumberToObject(doc, "watched_steps", t->n_watched);
    cJSON_AddNumberToObject(doc, "watched_ms", r->watched_ms);
    o = cJSON_AddObjectToObject(doc, "beside_ms");
    for (int i = 0; i < N_BENCH_PARTS; i++)
        cJSON_AddNumberToObject(o, parts[i], r->parts_ms[i]);
    o = cJSON_AddArrayToObject(doc, "kinds");
    for (int i = 0; i < r->n_kinds; i++)
        add_row(o, &r->kinds[i], r->watched_ms);
    o = cJSON_AddArrayToObject(doc, "nodes");
    for (int i = 0; i < r->n_nodes; i++)
        add_row(o, &r->nodes[i], r->watched_ms);
    return doc;
}

/* ---- a table ---- */

/* Forward '#', backward '='; the longest row fills the bar. */
static void print_bar(const double ms[2], double longest)
{
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; longest > 0 && i < (int)(BAR * ms[pass] / longest + 0.5); i++)
            putchar(pass ? '=' : '#');
    putchar('\n');
}

static double longest_of(const struct row *rows, int n)
{
    double most = 0;

    for (int i = 0; i < n; i++)
        most = both(rows[i].ms) > most ? both(rows[i].ms) : most;
    return most;
}

static void print_rows(const char *title, const struct row *rows, int n, double watched_ms)
{
    const double longest = longest_of(rows, n);

    printf("\n%-34s %9s %9s %6s %8s %7s\n", title, "fwd ms", "bwd ms", "share", "GFLOP/s", "GB/s");
    for (int i = 0; i < n; i++) {
        const struct row *r = &rows[i];
        char name[64];
        if (r->name)
            snprintf(name, sizeof name, "%.24s %.9s", r->name, r->op);
        else
            snprintf(name, sizeof name, "%s × %d", r->op, r->nodes);
        printf("%-34s %9.3f %9.3f %5.1f%% %8.1f %7.1f ", name, r->ms[0], r->ms[1],
               watched_ms > 0 ? 100 * both(r->ms) / watched_ms : 0, rate(both(r->flops), both(r->ms)),
               rate(both(r->bytes), both(r->ms)));
        print_bar(r->ms, longest);
    }
}

static double number(const cJSON *doc, const char *object, const char *key)
{
    return cJSON_GetObjectItem(cJSON_GetObjectItem(doc, object), key)->valuedouble;
}

static void print_table(const cJSON *doc, const struct told_rows *r, const struct bench_told *told)
{
    const struct bench_net_cfg *c = &told->net->cfg;

    printf("%s, batch %ld, %s, %d ranks of %ld threads\n", c->arch, c->batch, c->precision, told->comm->size,
           told->threads);
    printf(
        "%.1f images/s (%.1f – %.1f), %.3f ms a step (%.3f – %.3f), %.1f GFLOP/s, %.1f MiB resident at most, "
        "arena %.1f MiB\n",
        number(doc, "images_per_s", "median"), number(doc, "images_per_s", "min"),
        number(doc, "images_per_s", "max"), number(doc, "step_ms", "median"), number(doc, "step_ms", "min"),
        number(doc, "step_ms", "max"), cJSON_GetObjectItem(doc, "gflop_per_s")->valuedouble,
        told->times->peak_rss / 0x1p20, (double)program_arena_bytes(told->net->program) / 0x1p20);
    if (told->times->n_watched == 0)
        return;
    print_rows("operators, # forward = backward", r->kinds, r->n_kinds, r->watched_ms);
    printf("beside them: feed %.3f ms, sums %.3f ms, update %.3f ms\n", r->parts_ms[BENCH_PART_FEED],
           r->parts_ms[BENCH_PART_SUMS], r->parts_ms[BENCH_PART_UPDATE]);
    print_rows("in order", r->nodes, r->n_nodes, r->watched_ms);
}

int bench_step_tell(const struct bench_told *told, bool table, struct err *e)
{
    int64_t *counts = xmalloc((size_t)told->comm->size * sizeof *counts);
    double *peaks = xmalloc((size_t)told->comm->size * sizeof *peaks);

    for (int r = 0; r < told->comm->size; r++)
        counts[r] = 1;
    int rc = comm_all_gather(told->comm, &told->times->peak_rss, peaks, counts, sizeof *peaks, e);
    if (rc == 0 && told->comm->rank == 0) {
        struct told_rows r = make_rows(told);
        cJSON *doc = make_doc(told, &r, peaks);
        if (table) {
            print_table(doc, &r, told);
            cJSON_Delete(doc);
        } else {
            rc = bench_print(doc, e);
        }
        free(r.nodes);
        free(r.kinds);
    }
    free(counts);
    free(peaks);
    return rc;
}
