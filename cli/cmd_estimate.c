/* cmd_estimate - bfctl estimate: what a step of a job takes on numbers of ranks of a machine, on paper. */
#include "cli/output.h"
#include "cli/rank_list.h"
#include "cli/spec_arg.h"
#include "proto/estimate.h"

#include <stddef.h>
#include <stdlib.h>

#define OPT(member) offsetof(struct cli_options, member)

/* As far as the mini-batch has rows for them. */
#define DEFAULT_RANKS "1,8,64,512,4096"

enum { MAX_WORLDS = 32, MAX_ROWS = 1 << 20 };

static const double mib = 1024.0 * 1024.0;

/* --rows-per-rank makes the mini-batch grow with the ranks. */
static int estimate_world(const struct cli *cli, struct jobspec *spec, int ranks, struct estimate *est,
                          struct err *e)
{
    struct estimate_query q = {.spec = spec, .ranks = ranks};
    int64_t rows = cli->opts.rows;

    if (!(q.machine = estimate_machine_find(cli->opts.machine, spec, e)))
        return -1;
    if (rows > (1 << 30) / ranks)
        return err_set_kind(e, ERR_USAGE, "--rows-per-rank: %lld rows on %d ranks are too many",
                            (long long)rows, ranks);
    if (rows)
        spec->train.batch_size = rows * ranks;
    return estimate_job(&q, est, e);
}

static void print_head(const struct estimate *est)
{
    const struct paper_shape *in = &est->input;

    printf("%.0f parameters, %.0f of them in the module; images %.0f x %.0f x %.0f, %.0f classes%s\n",
           est->parameters, est->module_parameters, in->height, in->width, in->channels, in->classes,
           est->input_assumed ? " (assumed: the spec does not say)" : "");
    printf("%s: %s%s\n\n", est->machine->name, est->machine->description,
           est->machine->measured ? "" : " - published figures, nothing measured");
}

static void add_row(struct output_table *t, const struct estimate *est)
{
    char(*row)[OUTPUT_CELL] = output_table_row(t);
    double compute = est->seconds.compute[0] + est->seconds.compute[1] + est->seconds.update;
    double sent = est->bytes.gather + est->bytes.scatter + est->bytes.gradients + est->bytes.norm;
    double memory =
        est->memory.weights + est->memory.gradients + est->memory.optimizer + est->memory.activations;
    double work = 0;
    int i = 0;

    for (int part = 0; part < PAPER_PARTS; part++)
        work += est->flops[part][0] + est->flops[part][1];
    snprintf(row[i++], OUTPUT_CELL, "%d", est->ranks);
    snprintf(row[i++], OUTPUT_CELL, "%lld", (long long)est->total_rows);
    snprintf(row[i++], OUTPUT_CELL, "%.4g", work / 1e9);
    snprintf(row[i++], OUTPUT_CELL, "%.2f", compute * 1e3);
    snprintf(row[i++], OUTPUT_CELL, "%.2f", (est->seconds.gather + est->seconds.scatter) * 1e3);
    snprintf(row[i++], OUTPUT_CELL, "%.2f", est->seconds.norm * 1e3);
    snprintf(row[i++], OUTPUT_CELL, "%.2f", est->seconds.gradients_exposed * 1e3);
    snprintf(row[i++], OUTPUT_CELL, "%.2f", est->seconds.total * 1e3);
    snprintf(row[i++], OUTPUT_CELL, "%.0f", est->images_per_s);
    snprintf(row[i++], OUTPUT_CELL, "%.1f", est->efficiency * 100);
    snprintf(row[i++], OUTPUT_CELL, "%.1f", sent / mib);
    snprintf(row[i++], OUTPUT_CELL, "%.1f", memory / mib);
}

static void print_gather(const struct estimate *est)
{
    if (est->gather.exists)
        printf(
            "gather on %d ranks: kv %.2f ms, features %.2f ms (with repeated projections); this job uses %s; "
            "features are\ncheaper below width %.0f\n",
            est->ranks, est->gather.kv_s * 1e3, est->gather.features_s * 1e3,
            est->gather.features ? "features" : "kv", est->gather.cross_width);
}

static void print_table(const struct estimate *v, int n)
{
    struct output_table t = {
        .n_columns = 12,
        .titles = {"RANKS", "BATCH", "GFLOP", "COMPUTE", "GATHER", "NORM", "GRADS", "STEP ms", "IMAGES/S",
                   "EFF %", "SENT MiB", "MEM MiB"},
        .right = {true, true, true, true, true, true, true, true, true, true, true, true},
    };

    print_head(&v[0]);
    for (int i = 0; i < n; i++)
        add_row(&t, &v[i]);
    output_table_print(&t, stdout);
    printf("\n");
    print_gather(&v[n - 1]);
    output_table_free(&t);
}

static void print_json(const struct estimate *v, int n)
{
    cJSON *doc = cJSON_CreateObject(), *all = cJSON_AddArrayToObject(doc, "estimates");

    for (int i = 0; i < n; i++)
        cJSON_AddItemToArray(all, estimate_to_json(&v[i]));
    output_json(doc);
    cJSON_Delete(doc);
}

static int estimate_all(const struct cli *cli, struct jobspec *spec, struct err *e)
{
    const char *text = cli->opts.ranks ? cli->opts.ranks : DEFAULT_RANKS;
    int ranks[MAX_WORLDS], n_worlds = rank_list_parse(text, ESTIMATE_MAX_RANKS, ranks, MAX_WORLDS, e);

    if (n_worlds < 0)
        return -1;
    struct estimate *v = xcalloc(MAX_WORLDS, sizeof *v);
    int n = 0, rc = 0;
    for (int i = 0; rc == 0 && i < n_worlds; i++) {
        if (!cli->opts.ranks && !cli->opts.rows && ranks[i] > spec->train.batch_size)
            continue;
        rc = estimate_world(cli, spec, ranks[i], &v[n++], e);
    }
    if (rc == 0 && cli->opts.json)
        print_json(v, n);
    else if (rc == 0)
        print_table(v, n);
    free(v);
    return rc;
}

static int cmd_estimate(struct cli *cli, struct err *e)
{
    struct spec_arg arg;
    int rc = spec_arg_read(cli, &arg, e);

    if (rc == 0)
        rc = arg.errs.n ? spec_arg_report(cli, &arg) : estimate_all(cli, &arg.spec, e);
    spec_arg_free(&arg);
    return rc;
}

static const struct conf_option estimate_rows[] = {
    CLI_OPTION_SET,
    {"ranks", 0, CONF_STR, OPT(ranks), "LIST", NULL, 0, 0, "numbers of ranks [" DEFAULT_RANKS "]"},
    {"rows-per-rank", 0, CONF_INT, OPT(rows), "N", NULL, 1, MAX_ROWS,
     "let the mini-batch grow with the ranks: N rows on each"},
    {"machine", 0, CONF_STR, OPT(machine), "NAME", NULL, 0, 0,
     "cpu-core, h100-nvlink or h100-400g [what the job asks for]"},
};

const struct cli_command cmd_estimate_commands[] = {
    {"estimate", "SPEC", 1, 1, estimate_rows, sizeof estimate_rows / sizeof *estimate_rows,
     "what a step takes on numbers of ranks, on paper",
     "Computes, without running anything, the work, memory and bytes of a training step and, from constants "
     "of "
     "a\n"
     "machine, its time. All figures are those of one rank; times are in milliseconds:\n"
     "  COMPUTE  operators and update      GATHER  keys and values, and their gradients\n"
     "  NORM     batch norm's sums         GRADS   the part of their all-reduce that backward does not hide\n"
     "  EFF      against the same job on one rank, had it the memory\n"
     "docs/scaling.md has the formulas and says where the constants come from.",
     cmd_estimate},
    {0},
};
