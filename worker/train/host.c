/* host - see host.h. */
#include "worker/train/host.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/hash.h"
#include "worker/train/agree.h"
#include "worker/train/cores.h"

enum { HOST_NAME_BYTES = 64 };

/* What tells ranks that share cores from those that do not. */
struct place {
    char host[HOST_NAME_BYTES];
    struct cores cores;
};

static void own_cores(struct cores *out)
{
    struct cores cpus;

    cores_allowed_cpus(&cpus);
    cores_of_cpus("/sys/devices/system/cpu", &cpus, out);
}

int host_cores(void)
{
    struct cores c;

    own_cores(&c);
    return cores_count(&c);
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

int host_local_rank(struct comm *comm, int *local, int *n_here, struct err *e)
{
    struct hash_hex *all = xcalloc((size_t)comm->size, sizeof *all), own;
    char host[HOST_NAME_BYTES] = "";

    gethostname(host, sizeof host - 1);
    own = hash_bytes(host, sizeof host);
    int rc = agree_gather(comm, &own, all, sizeof own, e);
    *n_here = *local = 0;
    for (int r = 0; r < comm->size && rc == 0; r++) {
        *n_here += strcmp(all[r].s, own.s) == 0;
        *local += r < comm->rank && strcmp(all[r].s, own.s) == 0;
    }
    free(all);
    return rc;
}

static bool meet(const struct cores *a, const struct cores *b)
{
    for (int i = 0; i < CORES_MAX_CPUS / 64; i++)
        if (a->bits[i] & b->bits[i])
            return true;
    return false;
}

/* This rank's part of what all (size) say of themselves. */
static int fair_part(const struct place *all, int size, int rank, int *sharing)
{
    struct cores *here = xcalloc((size_t)size, sizeof *here);
    int n = 0, own = 0;

    *sharing = 0;
    for (int r = 0; r < size; r++) {
        if (strcmp(all[r].host, all[rank].host) != 0)
            continue;
        *sharing += meet(&all[r].cores, &all[rank].cores);
        if (r == rank)
            own = n;
        here[n++] = all[r].cores;
    }
    int part = cores_share(here, n, own, cores_quota("/proc/self/cgroup", "/sys/fs/cgroup"));
    free(here);
    return part;
}

int host_threads(struct comm *comm, int wanted, struct host_threads *out, struct err *e)
{
    struct place *all = xcalloc((size_t)comm->size, sizeof *all), own = {0};
    int asked = from_env();

    gethostname(own.host, sizeof own.host - 1);
    own_cores(&own.cores);
    int rc = agree_gather(comm, &own, all, sizeof own, e);
    if (rc == 0) {
        int part = fair_part(all, comm->size, comm->rank, &out->sharing);
        out->cores = cores_count(&own.cores);
        out->n = wanted > 0 ? wanted : asked > 0 ? asked : part;
        out->from = wanted > 0 ? "threads_per_rank" : asked > 0 ? "OMP_NUM_THREADS" : "cores";
    }
    free(all);
    return rc;
}
