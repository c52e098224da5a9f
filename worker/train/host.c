/* host - see host.h. */
#include "worker/train/host.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/hash.h"
#include "worker/train/agree.h"

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

/* Of all ranks whose place has the hash of this one's: how many there are, and how many have a lower number.
 */
static int count_same(struct comm *comm, const void *place, size_t bytes, int *n, int *n_lower, struct err *e)
{
    struct hash_hex *all = xcalloc((size_t)comm->size, sizeof *all), own = hash_bytes(place, bytes);
    int rc = agree_gather(comm, &own, all, sizeof own, e);

    *n = *n_lower = 0;
    for (int r = 0; r < comm->size && rc == 0; r++) {
        *n += strcmp(all[r].s, own.s) == 0;
        *n_lower += r < comm->rank && strcmp(all[r].s, own.s) == 0;
    }
    free(all);
    return rc;
}

static int count_sharing(struct comm *comm, int *n, struct err *e)
{
    struct place p = {0};
    int n_lower;

    gethostname(p.host, sizeof p.host - 1);
    sched_getaffinity(0, sizeof p.cpus, &p.cpus);
    return count_same(comm, &p, sizeof p, n, &n_lower, e);
}

int host_local_rank(struct comm *comm, int *local, int *n_here, struct err *e)
{
    char host[64] = "";

    gethostname(host, sizeof host - 1);
    return count_same(comm, host, sizeof host, n_here, local, e);
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
