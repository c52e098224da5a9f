/* host - see host.h. */
#include "worker/train/host.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/hash.h"

/* What tells ranks that share cores from those that do not. */
struct place {
    char host[64];
    cpu_set_t cpus;
};

int host_cores(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof set, &set) < 0 ? 1 : CPU_COUNT(&set);
}

int64_t host_memory_bytes(void)
{
    return (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
}

static int from_env(void)
{
    const char *text = getenv("OMP_NUM_THREADS");
    int n = text ? atoi(text) : 0;

    return n > 0 && n <= 1024 ? n : 0;
}

static int count_sharing(struct comm *comm, int *n, struct err *e)
{
    struct place p = {0};
    struct hash_hex *all = xcalloc((size_t)comm->size, sizeof *all);
    int64_t *counts = xcalloc((size_t)comm->size, sizeof *counts);

    gethostname(p.host, sizeof p.host - 1);
    sched_getaffinity(0, sizeof p.cpus, &p.cpus);
    struct hash_hex own = hash_bytes(&p, sizeof p);
    for (int r = 0; r < comm->size; r++)
        counts[r] = 1;
    int rc = comm_all_gather(comm, &own, all, counts, sizeof own, e);
    *n = 0;
    for (int r = 0; r < comm->size && rc == 0; r++)
        *n += strcmp(all[r].s, own.s) == 0;
    free(all);
    free(counts);
    return rc;
}

int host_threads(struct comm *comm, int wanted, int *n_threads, struct err *e)
{
    int sharing;

    if (count_sharing(comm, &sharing, e) < 0)
        return -1;
    ASSERT(sharing >= 1); /* this rank itself */
    int fair = host_cores() / sharing;
    *n_threads = wanted > 0 ? wanted : from_env() > 0 ? from_env() : fair < 1 ? 1 : fair;
    return 0;
}
