/* bench_sched - the scheduler on a simulated machine beside plain FIFO and EASY backfill, and how long one
 * plan takes.
 *
 *     bench_sched [--nodes 10000] [--gpus 8] [--jobs 100000] [--load 1.05] [--seed 1] [--tick-s 30] [--depth
 * 256]
 *                 [--elastic 0.2] [--calls 40] [--out bench/results/sched.json]
 *
 * A workload (bench_sched_load.c) is handed in over virtual time; every tick in which something happened the
 * policy plans once, which is how often a scheduler of this size looks at its queue (Slurm: bf_interval, 30
 * s). The rows:
 *
 *   fifo      in order of submission, the first that does not fit holds back all
 *   easy      by the limits of users, the first that does not fit has a reservation; the others may start
 * where they do not delay it easy-m    EASY, which knows what `model` below knows limits    ours, which knows
 * of run times what EASY knows: the limits that users have set steps     ours, which knows what runs from its
 * own step time, +-5 %, two minutes after its start model     as steps, and what waits from a model of its
 * step time, +-20 % elastic   the same, and a share of the jobs takes from half of its ranks to twice as many
 *
 * Wait is from submission to the first start. Bounded slowdown is max(1, (wait + run) / max(run, 10 s)),
 * where run is from the first start to the end. Utilisation is of all GPUs from the first submission to the
 * last. The time of a plan is that of sched_plan() alone, with the machine full and so many jobs waiting.
 */
#include "bench/bench_sched.h"
#include "common/err.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct policy {
    const char *name;
    void (*plan)(struct sim *s);
    bool measures, predicts, elastic;
};

struct result {
    double utilisation, mean_wait_s, p95_wait_s, mean_slowdown, p95_slowdown, makespan_h;
    double promise_error_s, promise_p95_s; /* of the start that was estimated first; NaN: no estimates */
    double mean_wait_large_s, plan_ms_p50, plan_ms_p99, wall_s, decisions_per_s;
    size_t n_plans;
    int64_t n_yields;
};

static double clock_s(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double quantile(double *v, size_t n, double q)
{
    if (!n)
        return NAN;
    qsort(v, n, sizeof *v, compare_double);
    return v[(size_t)(q * (double)(n - 1) + 0.5)];
}

/* --- a whole workload --- */

static void measure(const struct sim *s, struct result *r)
{
    size_t n = s->load->n, large = 0, promised = 0;
    double *wait = xcalloc(n, sizeof *wait), *slowdown = xcalloc(n, sizeof *slowdown),
           *error = xcalloc(n, sizeof *error);

    for (size_t i = 0; i < n; i++) {
        const struct sim_job *j = &s->jobs[i];
        double run = (double)(j->end_ms - j->first_start_ms) / 1000;
        wait[i] = (double)(j->first_start_ms - s->load->jobs[i].submit_ms) / 1000;
        slowdown[i] = fmax(1, (wait[i] + run) / fmax(run, 10));
        r->mean_wait_s += wait[i] / (double)n;
        r->mean_slowdown += slowdown[i] / (double)n;
        r->makespan_h = fmax(r->makespan_h, (double)j->end_ms / 3.6e6);
        if (j->promised_ms >= 0)
            error[promised++] = fabs((double)(j->first_start_ms - j->promised_ms)) / 1000;
        if (s->load->jobs[i].ranks >= 256) {
            r->mean_wait_large_s += wait[i];
            large++;
        }
    }
    r->mean_wait_large_s /= large ? (double)large : 1;
    r->utilisation = s->used_ms / ((double)s->load->span_ms * (double)(s->o->nodes * s->o->gpus));
    r->p95_wait_s = quantile(wait, n, 0.95);
    r->p95_slowdown = quantile(slowdown, n, 0.95);
    r->promise_error_s = quantile(error, promised, 0.5);
    r->promise_p95_s = quantile(error, promised, 0.95);
    r->n_yields = s->n_yields;
    free(error);
    free(wait);
    free(slowdown);
}

static void run_policy(const struct options *o, const struct load *l, const struct policy *policy,
                       struct result *r)
{
    struct sim *s = sim_create(o, l);
    double begin = clock_s(), planning = 0, *ms = NULL;
    size_t cap = 0;

    *r = (struct result){0};
    s->measures = policy->measures;
    s->predicts = policy->predicts;
    s->elastic = policy->elastic;
    s->set.resize = policy->elastic;
    while (!sim_is_over(s)) {
        int64_t tick = o->tick_s * SECOND, next = sim_next(s);
        ASSERT(next < INT64_MAX || policy->elastic); /* else nobody starts any more */
        int64_t t = next < INT64_MAX ? (next / tick + 1) * tick : s->now + tick;
        sim_advance(s, t);
        double start = clock_s();
        policy->plan(s);
        if (r->n_plans == cap)
            ms = xrealloc(ms, (cap = cap ? 2 * cap : 1024) * sizeof *ms);
        ms[r->n_plans] = (clock_s() - start) * 1000;
        planning += ms[r->n_plans++] / 1000;
    }
    measure(s, r);
    r->wall_s = clock_s() - begin;
    r->decisions_per_s = (double)(s->n_starts + s->n_yields) / planning;
    r->plan_ms_p50 = quantile(ms, r->n_plans, 0.5);
    r->plan_ms_p99 = quantile(ms, r->n_plans, 0.99);
    free(ms);
    sim_destroy(s);
}

/* --- one plan at a given depth of the queue --- */

struct timing {
    size_t depth, n;
    double p50_ms, p99_ms, starts_per_plan;
};

/* The machine is full of jobs of all ages; from then on a tick passes between plans, and `depth` jobs wait at
 * each. */
static void time_plans(const struct options *o, const struct load *l, size_t depth, struct timing *out)
{
    struct sim *s = sim_create(o, l);
    double *ms = xcalloc((size_t)o->calls, sizeof *ms);

    *out = (struct timing){.depth = depth};
    s->measures = true;
    while (!s->n_queue) {
        sim_submit(s);
        base_fifo(s);
        sim_advance(s, s->now + SECOND / 2);
    }
    for (long call = -2; call < o->calls; call++) { /* the first two fill what is still free */
        while (s->n_queue < depth && s->n_new < l->n)
            sim_submit(s);
        ASSERT(s->n_queue >= depth);
        struct sched_input in = sim_input(s);
        int64_t starts = s->n_starts;
        double begin = clock_s();
        struct sched_plan *p = sched_plan(&in);
        if (call >= 0)
            ms[out->n++] = (clock_s() - begin) * 1000;
        sim_carry_out(s, p);
        out->starts_per_plan += call >= 0 ? (double)(s->n_starts - starts) / (double)o->calls : 0;
        sim_advance(s, s->now + o->tick_s * SECOND);
    }
    out->p50_ms = quantile(ms, out->n, 0.5);
    out->p99_ms = quantile(ms, out->n, 0.99);
    free(ms);
    sim_destroy(s);
}

static void time_depths(const struct options *o, struct timing *timings, const size_t *depths, size_t n)
{
    struct options longer = *o;
    struct load l;

    /* To fill the machine, to wait, and to take the place of what starts. */
    longer.jobs = (long)depths[n - 1] + 8 * o->nodes * o->gpus / 4;
    load_make(&l, &longer);
    for (size_t i = 0; i < l.n; i++)
        l.jobs[i].submit_ms = INT64_MAX / 8; /* when the bench wants them */
    for (size_t i = 0; i < n; i++)
        time_plans(o, &l, depths[i], &timings[i]);
    free(l.jobs);
}

/* --- output --- */

static void add_result(cJSON *rows, const struct policy *policy, const struct result *r)
{
    cJSON *v = cJSON_CreateObject();

    cJSON_AddStringToObject(v, "policy", policy->name);
    cJSON_AddNumberToObject(v, "utilisation", r->utilisation);
    cJSON_AddNumberToObject(v, "mean_wait_s", r->mean_wait_s);
    cJSON_AddNumberToObject(v, "p95_wait_s", r->p95_wait_s);
    cJSON_AddNumberToObject(v, "mean_wait_of_256_ranks_and_more_s", r->mean_wait_large_s);
    cJSON_AddNumberToObject(v, "mean_bounded_slowdown", r->mean_slowdown);
    cJSON_AddNumberToObject(v, "p95_bounded_slowdown", r->p95_slowdown);
    cJSON_AddNumberToObject(v, "makespan_h", r->makespan_h);
    if (!isnan(r->promise_error_s)) {
        cJSON_AddNumberToObject(v, "median_error_of_estimated_start_s", r->promise_error_s);
        cJSON_AddNumberToObject(v, "p95_error_of_estimated_start_s", r->promise_p95_s);
    }
    cJSON_AddNumberToObject(v, "yields", (double)r->n_yields);
    cJSON_AddNumberToObject(v, "plans", (double)r->n_plans);
    cJSON_AddNumberToObject(v, "plan_p50_ms", r->plan_ms_p50);
    cJSON_AddNumberToObject(v, "plan_p99_ms", r->plan_ms_p99);
    cJSON_AddNumberToObject(v, "decisions_per_s", r->decisions_per_s);
    cJSON_AddNumberToObject(v, "wall_s", r->wall_s);
    cJSON_AddItemToArray(rows, v);
    printf("%-8s %6.3f %9.0f %9.0f %9.0f %9.2f %9.2f %7.2f %7.0f %7.0f %7lld %6zu %8.2f %8.2f %8.0f %6.1f\n",
           policy->name, r->utilisation, r->mean_wait_s, r->p95_wait_s, r->mean_wait_large_s,
           r->mean_slowdown, r->p95_slowdown, r->makespan_h, r->promise_error_s, r->promise_p95_s,
           (long long)r->n_yields, r->n_plans, r->plan_ms_p50, r->plan_ms_p99, r->decisions_per_s, r->wall_s);
    fflush(stdout);
}

static void add_timing(cJSON *rows, const struct timing *t)
{
    cJSON *v = cJSON_CreateObject();

    cJSON_AddNumberToObject(v, "waiting", (double)t->depth);
    cJSON_AddNumberToObject(v, "plan_p50_ms", t->p50_ms);
    cJSON_AddNumberToObject(v, "plan_p99_ms", t->p99_ms);
    cJSON_AddNumberToObject(v, "starts_per_plan", t->starts_per_plan);
    cJSON_AddNumberToObject(v, "plans", (double)t->n);
    cJSON_AddItemToArray(rows, v);
    printf("%8zu %10.2f %10.2f %10.1f\n", t->depth, t->p50_ms, t->p99_ms, t->starts_per_plan);
    fflush(stdout);
}

static void cpu_name(char *out, size_t size)
{
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[256];

    snprintf(out, size, "unknown");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "model name", 10) && strchr(line, ':')) {
            snprintf(out, size, "%.*s", (int)strcspn(strchr(line, ':') + 2, "\n"), strchr(line, ':') + 2);
            break;
        }
    if (f)
        fclose(f);
}

static cJSON *document(const struct options *o, const struct load *l, char **argv, int argc)
{
    cJSON *v = cJSON_CreateObject(), *w;
    char text[256], date[16];
    time_t now = time(NULL);
    size_t n = 0;

    for (int i = 0; i < argc && n < sizeof text; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%s", i ? " " : "", i ? argv[i] : "bench_sched");
    cJSON_AddStringToObject(v, "command", text);
    strftime(date, sizeof date, "%Y-%m-%d", gmtime(&now));
    cJSON_AddStringToObject(v, "date", date);
    cpu_name(text, sizeof text);
    cJSON_AddStringToObject(v, "cpu", text);
    cJSON_AddNumberToObject(v, "cores", (double)sysconf(_SC_NPROCESSORS_ONLN));
    w = cJSON_AddObjectToObject(v, "workload");
    cJSON_AddNumberToObject(w, "nodes", (double)o->nodes);
    cJSON_AddNumberToObject(w, "gpus_per_node", (double)o->gpus);
    cJSON_AddNumberToObject(w, "jobs", (double)l->n);
    cJSON_AddNumberToObject(w, "seed", (double)o->seed);
    cJSON_AddNumberToObject(w, "offered_load", o->load);
    cJSON_AddNumberToObject(w, "span_h", (double)l->span_ms / 3.6e6);
    cJSON_AddNumberToObject(w, "mean_ranks", l->mean_ranks);
    cJSON_AddNumberToObject(w, "mean_run_s", l->mean_run_s);
    cJSON_AddNumberToObject(w, "tick_s", (double)o->tick_s);
    cJSON_AddNumberToObject(w, "max_reservations", (double)o->depth);
    cJSON_AddNumberToObject(w, "elastic_share", o->elastic);
    return v;
}

static int write_document(const cJSON *v, const char *path)
{
    char *text = cJSON_Print(v);
    FILE *f = fopen(path, "w");
    int bad = !text || !f;

    for (const char *c = bad ? "" : text; *c; c++) /* two spaces, as in the other files of results */
        if (*c == '\t')
            fputs(c[-1] == ':' ? " " : "  ", f);
        else
            fputc(*c, f);
    if (!bad)
        bad = fputc('\n', f) == EOF;
    if (f && fclose(f))
        bad = 1;
    if (bad)
        fprintf(stderr, "bench_sched: %s could not be written\n", path);
    cJSON_free(text);
    return bad;
}

/* --- the command --- */

static bool parse(struct options *o, int argc, char **argv)
{
    struct {
        const char *name;
        long *whole, least;
        double *real;
    } options[] = {{"--nodes", &o->nodes, 1, NULL},    {"--gpus", &o->gpus, 1, NULL},
                   {"--jobs", &o->jobs, 2, NULL},      {"--seed", &o->seed, 0, NULL},
                   {"--tick-s", &o->tick_s, 1, NULL},  {"--depth", &o->depth, 0, NULL},
                   {"--calls", &o->calls, 1, NULL},    {"--load", NULL, 0, &o->load},
                   {"--elastic", NULL, 0, &o->elastic}};
    size_t n = sizeof options / sizeof *options;

    for (int i = 1; i < argc; i += 2) {
        char *end = "?";
        size_t k = 0;
        if (i + 1 == argc)
            return false;
        if (!strcmp(argv[i], "--out")) {
            o->out = argv[i + 1];
            continue;
        }
        while (k < n && strcmp(argv[i], options[k].name))
            k++;
        if (k == n)
            return false;
        if (options[k].whole) {
            *options[k].whole = strtol(argv[i + 1], &end, 10);
            if (*end || *options[k].whole < options[k].least || *options[k].whole > 10000000)
                return false;
        } else {
            *options[k].real = strtod(argv[i + 1], &end);
            if (*end || !(*options[k].real >= 0 && *options[k].real <= 10))
                return false;
        }
    }
    return o->load > 0 && o->elastic <= 1;
}

int main(int argc, char **argv)
{
    static const struct policy policies[] = {
        {"fifo", base_fifo, false, false, false}, {"easy", base_easy, false, false, false},
        {"easy-m", base_easy, true, true, false}, {"limits", sim_plan, false, false, false},
        {"steps", sim_plan, true, false, false},  {"model", sim_plan, true, true, false},
        {"elastic", sim_plan, true, true, true}};
    static const size_t depths[] = {100, 1000, 10000, 100000};
    enum { N_POLICIES = sizeof policies / sizeof *policies, N_DEPTHS = sizeof depths / sizeof *depths };
    struct options o = {10000, 8, 100000, 1, 30, 256, 40, 1.05, 0.2, "bench/results/sched.json"};
    struct timing timings[N_DEPTHS];
    struct load l;

    if (!parse(&o, argc, argv)) {
        fprintf(stderr,
                "usage: bench_sched [--nodes N] [--gpus N] [--jobs N] [--load X] [--seed N] [--tick-s N] "
                "[--depth N] [--elastic X] [--calls N] [--out FILE]\n");
        return 2;
    }
    load_make(&l, &o);
    cJSON *doc = document(&o, &l, argv, argc), *rows = cJSON_AddArrayToObject(doc, "rows");
    printf("%ld nodes x %ld GPUs, %zu jobs over %.1f h, %.1f ranks for %.0f s on average, load %.2f\n\n",
           o.nodes, o.gpus, l.n, (double)l.span_ms / 3.6e6, l.mean_ranks, l.mean_run_s, o.load);
    printf("%-8s %6s %9s %9s %9s %9s %9s %7s %7s %7s %7s %6s %8s %8s %8s %6s\n", "policy", "util", "wait s",
           "p95", ">=256", "slowdown", "p95", "span h", "error s", "p95", "yields", "plans", "p50 ms",
           "p99 ms", "dec/s", "wall s");
    for (size_t i = 0; i < N_POLICIES; i++) {
        struct result r;
        run_policy(&o, &l, &policies[i], &r);
        add_result(rows, &policies[i], &r);
    }
    time_depths(&o, timings, depths, N_DEPTHS);
    rows = cJSON_AddArrayToObject(doc, "plans_by_depth");
    printf("\n%8s %10s %10s %10s\n", "waiting", "p50 ms", "p99 ms", "starts");
    for (size_t i = 0; i < N_DEPTHS; i++)
        add_timing(rows, &timings[i]);
    int rc = write_document(doc, o.out);
    cJSON_Delete(doc);
    free(l.jobs);
    return rc;
}
