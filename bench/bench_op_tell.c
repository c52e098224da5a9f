/* bench_op_tell - see bench_op_tell.h. */
#include "bench/bench_op_tell.h"

#include <stdio.h>
#include <stdlib.h>
#include "bench/bench_run.h"

static double rate(double amount, double ms)
{
    return ms > 0 ? amount / ms / 1e6 : 0;
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

/* What bounds a row, and how much of that it reaches; 0: unknown. */
struct bound {
    const char *by; /* "fp32 products", "bf16 products", "L3", "memory" */
    double share;
};

static struct bound bound_of(const struct bench_op_result *r, const struct bench_op_row *row)
{
    const struct bench_peak *p = &r->peak;
    const double flop = rate(row->flops, row->alone_ms), bytes = rate(row->bytes, row->alone_ms);

    if (row->flops > 0 && row->node->dtype == DTYPE_BF16)
        return (struct bound){"bf16 products", ratio(flop, p->bf16_gflop_per_s)};
    if (row->flops > 0)
        return (struct bound){"fp32 products", ratio(flop, p->fp32_gflop_per_s)};
    if (row->bytes <= p->cache_bytes)
        return (struct bound){"L3", ratio(bytes, p->cache_gb_per_s)};
    return (struct bound){"memory", ratio(bytes, p->dram_gb_per_s)};
}

static int slowest_first(const void *a, const void *b)
{
    const double x = ((const struct bench_op_row *)a)->in_step_ms,
                 y = ((const struct bench_op_row *)b)->in_step_ms;

    return x < y ? 1 : x > y ? -1 : 0;
}

struct totals {
    double conv_ms, conv_alone_ms, peer_ms; /* of all convolutions of a step */
};

static struct totals totals_of(const struct bench_op_result *r)
{
    struct totals t = {0, 0, 0};

    for (int i = 0; i < r->n_rows; i++) {
        const struct bench_op_row *row = &r->rows[i];
        if (row->node->op != OP_CONV2D)
            continue;
        t.conv_ms += row->in_step_ms;
        t.conv_alone_ms += row->n_nodes * row->alone_ms;
        t.peer_ms += row->n_nodes * row->peer_ms;
    }
    return t;
}

/* ---- JSON ---- */

static void add_peers(cJSON *to, const struct bench_op_row *row)
{
    static const char *const passes[N_CONV_PASSES] = {"forward", "data", "weights"};
    cJSON *o = cJSON_AddObjectToObject(to, "onednn"), *list;

    cJSON_AddNumberToObject(o, "ms", row->peer_ms);
    list = cJSON_AddArrayToObject(o, "passes");
    for (int i = 0; i < row->n_peers; i++) {
        const struct bench_op_peer *p = &row->peers[i];
        cJSON *pass = cJSON_CreateObject(), *ways;
        cJSON_AddStringToObject(pass, "pass", passes[p->pass]);
        cJSON_AddStringToObject(pass, "best", bench_dn_best(p->ways)->name);
        ways = cJSON_AddObjectToObject(pass, "ms");
        for (int w = 0; w < BENCH_DN_WAYS; w++)
            if (p->ways[w].ms >= 0)
                cJSON_AddNumberToObject(ways, p->ways[w].name, p->ways[w].ms);
        cJSON_AddItemToArray(list, pass);
    }
    cJSON_AddNumberToObject(to, "of_onednn", ratio(row->peer_ms, row->alone_ms));
}

static cJSON *row_doc(const struct bench_op_result *r, const struct bench_op_row *row)
{
    const struct bound bound = bound_of(r, row);
    cJSON *o = cJSON_CreateObject();

    cJSON_AddStringToObject(o, "what", row->key);
    cJSON_AddStringToObject(o, "op", op_table[row->node->op].name);
    cJSON_AddBoolToObject(o, "backward", row->backward);
    cJSON_AddNumberToObject(o, "nodes", row->n_nodes);
    cJSON_AddNumberToObject(o, "in_step_ms", row->in_step_ms);
    cJSON_AddNumberToObject(o, "share", ratio(row->in_step_ms, r->step_ms));
    cJSON_AddNumberToObject(o, "alone_ms", row->alone_ms);
    cJSON_AddNumberToObject(o, "flop", row->flops);
    cJSON_AddNumberToObject(o, "bytes", row->bytes);
    cJSON_AddNumberToObject(o, "gflop_per_s", rate(row->flops, row->alone_ms));
    cJSON_AddNumberToObject(o, "gb_per_s", rate(row->bytes, row->alone_ms));
    cJSON_AddStringToObject(o, "bound", bound.by);
    if (bound.share > 0)
        cJSON_AddNumberToObject(o, "share_of_peak", bound.share);
    if (row->n_peers > 0)
        add_peers(o, row);
    return o;
}

static cJSON *make_doc(const struct bench_op_result *r, const struct bench_net_cfg *cfg)
{
    const struct totals t = totals_of(r);
    cJSON *doc = cJSON_CreateObject(), *o;

    cJSON_AddStringToObject(doc, "program", "bench_op");
    bench_net_tell(doc, cfg);
    cJSON_AddStringToObject(doc, "onednn", bench_dn_version());
    o = cJSON_AddObjectToObject(doc, "peak");
    cJSON_AddNumberToObject(o, "fp32_gflop_per_s", r->peak.fp32_gflop_per_s);
    cJSON_AddNumberToObject(o, "bf16_gflop_per_s", r->peak.bf16_gflop_per_s);
    cJSON_AddNumberToObject(o, "memory_gb_per_s", r->peak.dram_gb_per_s);
    cJSON_AddNumberToObject(o, "l3_gb_per_s", r->peak.cache_gb_per_s);
    cJSON_AddNumberToObject(doc, "operators_ms", r->step_ms);
    cJSON_AddNumberToObject(doc, "convolutions_share", ratio(t.conv_ms, r->step_ms));
    cJSON_AddNumberToObject(doc, "everything_else_share", 1 - ratio(t.conv_ms, r->step_ms));
    if (t.peer_ms > 0) {
        cJSON_AddNumberToObject(doc, "convolutions_of_onednn", ratio(t.peer_ms, t.conv_alone_ms));
        cJSON_AddNumberToObject(doc, "convolutions_of_onednn_in_step", ratio(t.peer_ms, t.conv_ms));
    }
    o = cJSON_AddArrayToObject(doc, "rows");
    for (int i = 0; i < r->n_rows; i++)
        cJSON_AddItemToArray(o, row_doc(r, &r->rows[i]));
    return doc;
}

/* ---- a table ---- */

static void print_row(const struct bench_op_result *r, const struct bench_op_row *row)
{
    const struct bound bound = bound_of(r, row);

    printf("%-76.76s %3d %8.3f %5.1f%% %8.4f %8.1f %7.1f ", row->key, row->n_nodes, row->in_step_ms,
           100 * ratio(row->in_step_ms, r->step_ms), row->alone_ms, rate(row->flops, row->alone_ms),
           rate(row->bytes, row->alone_ms));
    printf("%4.0f%% of %s", 100 * bound.share, bound.by);
    if (row->n_peers > 0) {
        printf(", %.0f%% of oneDNN:", 100 * ratio(row->peer_ms, row->alone_ms));
        for (int i = 0; i < row->n_peers; i++)
            printf(" %s %.4f", bench_dn_best(row->peers[i].ways)->name,
                   bench_dn_best(row->peers[i].ways)->ms);
    }
    putchar('\n');
}

static void print_table(const struct bench_op_result *r, const struct bench_net_cfg *cfg, long threads)
{
    const struct totals t = totals_of(r);

    printf("%s, batch %ld, %s, %ld threads: %.3f ms for all operators of a step\n", cfg->arch, cfg->batch,
           cfg->precision, threads, r->step_ms);
    printf("the machine: %.0f GFLOP/s fp32, %.0f bf16; triad %.0f GB/s from memory, %.0f from L3\n",
           r->peak.fp32_gflop_per_s, r->peak.bf16_gflop_per_s, r->peak.dram_gb_per_s, r->peak.cache_gb_per_s);
    if (t.peer_ms > 0)
        printf("convolutions: %.0f%% of oneDNN %s alone (%.0f%% in the step), goal 85%%\n",
               100 * ratio(t.peer_ms, t.conv_alone_ms), bench_dn_version(),
               100 * ratio(t.peer_ms, t.conv_ms));
    if (t.conv_ms > 0)
        printf("everything else: %.1f%% of the step, goal 20%% at most\n",
               100 * (1 - ratio(t.conv_ms, r->step_ms)));
    printf("\n%-76s %3s %8s %6s %8s %8s %7s\n", "operator", "n", "step ms", "share", "alone ms", "GFLOP/s",
           "GB/s");
    for (int i = 0; i < r->n_rows; i++)
        print_row(r, &r->rows[i]);
}

int bench_op_tell(struct bench_op_result *r, const struct bench_net_cfg *cfg, long threads, bool table,
                  struct err *e)
{
    qsort(r->rows, (size_t)r->n_rows, sizeof *r->rows, slowest_first);
    if (table) {
        print_table(r, cfg, threads);
        return 0;
    }
    cJSON *doc = make_doc(r, cfg);
    cJSON_AddNumberToObject(doc, "threads", (double)threads);
    return bench_print(doc, e);
}
