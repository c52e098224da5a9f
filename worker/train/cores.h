/* cores - which processor cores a process may compute on, and its fair part of them.
 *
 * What counts is cores, not the two or more CPUs (hyperthreads) that a core may show as: kernels here keep a
 * core's arithmetic units busy with one thread. A core is named by the lowest number among its CPUs.
 */
#ifndef TRAIN_CORES_H
#define TRAIN_CORES_H

#include <stdbool.h>
#include <stdint.h>

enum { CORES_MAX_CPUS = 8192 };

struct cores {
    uint64_t bits[CORES_MAX_CPUS / 64];
};

static inline void cores_add(struct cores *c, int i)
{
    c->bits[i / 64] |= UINT64_C(1) << i % 64;
}

static inline bool cores_has(const struct cores *c, int i)
{
    return c->bits[i / 64] >> i % 64 & 1;
}

int cores_count(const struct cores *c);

/* The cores of those CPUs. `sys` is where the system says which CPUs are one core:
 * /sys/devices/system/cpu; where it says nothing, each is its own. */
void cores_of_cpus(const char *sys, const struct cores *cpus, struct cores *out);

/* The CPUs that this process may run on (its affinity: cpusets, taskset, what a launcher bound it to). */
void cores_allowed_cpus(struct cores *cpus);

/* Cores' worth of time that the control groups of a process allow, of all limits on the way up the smallest;
 * 0 where there is none. `proc` is its list (/proc/self/cgroup), `mount` where they are (/sys/fs/cgroup). */
double cores_quota(const char *proc, const char *mount);

/* all (n), of the ranks of one host → the part of rank `own`: of each core that it may use an equal part with
 * every other rank that may use it, at least one core, rounded down. quota (of them all together) as above.
 */
int cores_share(const struct cores *all, int n, int own, double quota);

#endif
