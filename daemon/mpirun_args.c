/* mpirun_args - see mpirun_args.h. */
#include "daemon/mpirun_args.h"
#include "common/fsutil.h"
#include "common/mpirun.h"

#include <stdlib.h>
#include <string.h>

struct args {
    char **v;
    size_t n, cap;
};

/* Takes the text over. */
static void add(struct args *a, char *text)
{
    if (a->n + 2 > a->cap) {
        a->cap = a->cap ? 2 * a->cap : 64;
        a->v = xrealloc(a->v, a->cap * sizeof *a->v);
    }
    a->v[a->n++] = text;
    a->v[a->n] = NULL;
}

static void add_words(struct args *a, const char *const *words, size_t n)
{
    for (size_t i = 0; i < n; i++)
        add(a, xstrdup(words[i]));
}

/* Of one context. */
static void add_environment(struct args *a, bool passes_ca, uint64_t gpus)
{
    static const char *const passed[] = {"-x", PROGRESS_ENV_ADDRESS, "-x", PROGRESS_ENV_JOB,
                                         "-x", PROGRESS_ENV_ATTEMPT, "-x", PROGRESS_ENV_TOKEN,
                                         "-x", MPIRUN_SPIN_NAME};

    add_words(a, passed, sizeof passed / sizeof *passed);
    if (passes_ca)
        add_words(a, (const char *const[]){"-x", "BATCHFORMER_CA"}, 2);
    if (gpus) {
        char *list = place_gpu_list(gpus, ',');
        add(a, xstrdup("-x"));
        add(a, xasprintf("CUDA_VISIBLE_DEVICES=%s", list));
        free(list);
    }
}

static void add_program(struct args *a, const char *worker, const struct launch_request *rq, int64_t n_ranks)
{
    add(a, xstrdup("-n"));
    add(a, xasprintf("%lld", (long long)n_ranks));
    add(a, xstrdup(worker));
    add(a, xstrdup("--job"));
    add(a, fs_join(rq->run_dir, "job.json"));
    add(a, xstrdup("--run-dir"));
    add(a, xstrdup(rq->run_dir));
    if (rq->resume)
        add(a, xstrdup("--resume"));
}

static void add_hosts(struct args *a, const struct place_piece *v, int64_t n)
{
    size_t cap = 1;
    char *list;

    for (int64_t i = 0; i < n; i++)
        cap += strlen(v[i].node) + 24;
    list = xcalloc(cap, 1);
    for (int64_t i = 0; i < n; i++)
        snprintf(list + strlen(list), cap - strlen(list), "%s%s:%lld", i ? "," : "", v[i].node,
                 (long long)v[i].ranks);
    add(a, xstrdup("--host"));
    add(a, list);
}

char **mpirun_args(const struct mpirun_programs *programs, const struct launch_request *rq)
{
    /* --oversubscribe: slots are ours to count. */
    static const char *const fixed[] = {"--oversubscribe", "--bind-to", "none"};
    const struct place *p = rq->place;
    bool here = place_is_on(p, programs->host), gpus = false;
    struct args a = {0};

    for (int64_t i = 0; i < p->n; i++)
        gpus = gpus || p->v[i].gpus;
    add(&a, xstrdup(programs->mpirun));
    add_words(&a, fixed, sizeof fixed / sizeof *fixed);
    if (!here && programs->launch_agent) {
        add_words(&a, (const char *const[]){"--mca", "plm_rsh_agent"}, 2);
        add(&a, xstrdup(programs->launch_agent));
    }
    for (int64_t i = 0; i < (gpus ? p->n : 1); i++) {
        if (i)
            add(&a, xstrdup(":"));
        add_environment(&a, !here && programs->passes_ca, gpus ? p->v[i].gpus : 0);
        if (!here)
            add_hosts(&a, &p->v[i], gpus ? 1 : p->n);
        add_program(&a, programs->worker, rq, gpus ? p->v[i].ranks : rq->n_ranks);
    }
    return a.v;
}
