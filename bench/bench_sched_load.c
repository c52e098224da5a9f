/* bench_sched_load - a workload with the shape of GPU clusters that train: most jobs take one GPU, gangs are
 * powers of two and few large ones make up most of the GPU time, run times are log-normal over four decades.
 *
 * The shape is that of the Philly trace (Jeon et al., "Analysis of Large-Scale Multi-Tenant GPU Clusters for
 * DNN Training Workloads", USENIX ATC 2019) and of Helios (Hu et al., SC 2021); the figures below are ours,
 * with gangs of up to a twentieth of 80,000 GPUs. Arrivals are Poisson with two waves of +-50 %; limits are
 * drawn from [1, 5] times the run time (the f-model of Mu'alem and Feitelson, IEEE TPDS 2001).
 */
#include "bench/bench_sched.h"
#include "common/err.h"

#include <math.h>
#include <stdlib.h>

static const double median_run_s = 900, sigma = 1.6, min_run_s = 30, max_run_s = 8 * 3600;
static const struct {
    int32_t gpus;
    double share;
} sizes[] = {{1, .60},    {2, .08},    {4, .09},    {8, .13},     {16, .035},    {32, .025},   {64, .016},
             {128, .010}, {256, .007}, {512, .004}, {1024, .002}, {2048, .0008}, {4096, .0002}};

double random_unit(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return ((double)(*seed >> 11) + 0.5) / 9007199254740992.0;
}

static double random_normal(uint64_t *seed)
{
    double u = random_unit(seed), v = random_unit(seed);

    return sqrt(-2 * log(u)) * cos(2 * M_PI * v);
}

static int32_t random_size(uint64_t *seed, int64_t most)
{
    double u = random_unit(seed);
    size_t i = 0, n = sizeof sizes / sizeof *sizes;

    while (i + 1 < n && u >= sizes[i].share)
        u -= sizes[i++].share;
    while (i > 0 && sizes[i].gpus > most / 2) /* on a small machine */
        i--;
    return sizes[i].gpus;
}

static void draw(struct load_job *j, const struct options *o, uint64_t *seed)
{
    double run_s = median_run_s * exp(sigma * random_normal(seed));

    run_s = run_s < min_run_s ? min_run_s : run_s > max_run_s ? max_run_s : run_s;
    j->ranks = random_size(seed, o->nodes * o->gpus);
    j->run_ms = (int64_t)(run_s * 1000);
    j->limit_ms = (int64_t)((double)j->run_ms * (1 + 4 * random_unit(seed)));
    j->measured = 0.95 + 0.1 * random_unit(seed);
    j->predicted = 0.8 + 0.4 * random_unit(seed);
    j->elastic = j->ranks > 1 && random_unit(seed) < o->elastic;
}

void load_make(struct load *l, const struct options *o)
{
    uint64_t seed = (uint64_t)o->seed;
    double t = 0, gap;

    *l = (struct load){.n = (size_t)o->jobs};
    l->jobs = xcalloc(l->n, sizeof *l->jobs);
    for (size_t i = 0; i < l->n; i++) {
        struct load_job *j = &l->jobs[i];
        draw(j, o, &seed);
        l->gpu_hours += j->ranks * (double)j->run_ms / 3.6e6;
        l->mean_ranks += (double)j->ranks / (double)l->n;
        l->mean_run_s += (double)j->run_ms / 1000 / (double)l->n;
    }
    l->span_ms = (int64_t)(l->gpu_hours * 3.6e6 / (double)(o->nodes * o->gpus) / o->load);
    gap = (double)l->span_ms / (double)l->n;
    for (size_t i = 0; i < l->n; i++) {
        double rate = 1 + 0.5 * sin(4 * M_PI * t / (double)l->span_ms);
        t += -log(random_unit(&seed)) * gap / rate;
        l->jobs[i].submit_ms = (int64_t)t;
    }
    l->span_ms = l->jobs[l->n - 1].submit_ms;
}
