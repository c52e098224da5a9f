/* cores - see cores.h. */
#include "worker/train/cores.h"

#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/err.h"

int cores_count(const struct cores *c)
{
    int n = 0;

    for (int i = 0; i < CORES_MAX_CPUS / 64; i++)
        n += __builtin_popcountll(c->bits[i]);
    return n;
}

void cores_allowed_cpus(struct cores *cpus)
{
    cpu_set_t *set = CPU_ALLOC(CORES_MAX_CPUS);
    size_t bytes = CPU_ALLOC_SIZE(CORES_MAX_CPUS);

    *cpus = (struct cores){{0}};
    if (!set || sched_getaffinity(0, bytes, set) < 0)
        cores_add(cpus, 0);
    else
        for (int i = 0; i < CORES_MAX_CPUS; i++)
            if (CPU_ISSET_S(i, bytes, set))
                cores_add(cpus, i);
    CPU_FREE(set);
}

/* The first line of DIR/NAME; false where there is none. */
static bool read_line(const char *dir, const char *name, char *line, int cap)
{
    char *path = xasprintf("%s/%s", dir, name);
    FILE *f = fopen(path, "re");
    bool got = f && fgets(line, cap, f);

    if (f)
        fclose(f);
    free(path);
    return got;
}

/* The lowest CPU of i's core: a list of siblings begins with it ("3,67", "6-7"). */
static int core_of_cpu(const char *sys, int i)
{
    char *name = xasprintf("cpu%d/topology/thread_siblings_list", i), line[256], *end;
    long first = -1;

    if (read_line(sys, name, line, sizeof line)) {
        first = strtol(line, &end, 10);
        if (end == line)
            first = -1;
    }
    free(name);
    return first >= 0 && first <= i ? (int)first : i;
}

void cores_of_cpus(const char *sys, const struct cores *cpus, struct cores *out)
{
    *out = (struct cores){{0}};
    for (int i = 0; i < CORES_MAX_CPUS; i++)
        if (cores_has(cpus, i))
            cores_add(out, core_of_cpu(sys, i));
}

/* Of one control group, version 2 ("max 100000", "150000 100000") or 1; 0 where it sets no limit. */
static double quota_of(const char *dir)
{
    char line[128];
    double quota = 0, period = 0;

    if (read_line(dir, "cpu.max", line, sizeof line))
        return sscanf(line, "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0 ? quota / period : 0;
    if (read_line(dir, "cpu.cfs_quota_us", line, sizeof line))
        quota = atof(line);
    if (quota > 0 && read_line(dir, "cpu.cfs_period_us", line, sizeof line))
        period = atof(line);
    return quota > 0 && period > 0 ? quota / period : 0;
}

/* Of a group and those that it lies in. A path that is another name space's is not there; what is above it
 * is.
 */
static double quota_up(const char *mount, const char *path)
{
    char *dir = xasprintf("%s%s", mount, path), *slash;
    double least = 0;

    for (;;) {
        double q = quota_of(dir);
        if (q > 0 && (least == 0 || q < least))
            least = q;
        if (strlen(dir) <= strlen(mount) || !(slash = strrchr(dir, '/')))
            break;
        *slash = 0;
    }
    free(dir);
    return least;
}

static bool lists_cpu(const char *controllers)
{
    for (const char *p = controllers; *p; p += strcspn(p, ","), p += *p == ',')
        if (strcspn(p, ",") == 3 && strncmp(p, "cpu", 3) == 0)
            return true;
    return false;
}

/* Lines are NUMBER:CONTROLLERS:PATH; version 2 is number 0 and lists none. */
double cores_quota(const char *proc, const char *mount)
{
    FILE *f = fopen(proc, "re");
    char line[PATH_MAX];
    double least = 0;

    while (f && fgets(line, sizeof line, f)) {
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = 0;
        controllers++;
        path[strcspn(path, "\n")] = 0;
        if (*controllers && !lists_cpu(controllers))
            continue;
        char *at = *controllers ? xasprintf("%s/%s", mount, controllers) : xstrdup(mount);
        double q = quota_up(at, path);
        if (q > 0 && (least == 0 || q < least))
            least = q;
        free(at);
    }
    if (f)
        fclose(f);
    return least;
}

int cores_share(const struct cores *all, int n, int own, double quota)
{
    const double rounding = 1e-6; /* three thirds of a core are one */
    double share = 0;

    for (int i = 0; i < CORES_MAX_CPUS; i++) {
        int users = 0;
        if (!cores_has(&all[own], i))
            continue;
        for (int r = 0; r < n; r++)
            users += cores_has(&all[r], i);
        share += 1.0 / users;
    }
    if (quota > 0 && share > quota / n)
        share = quota / n;
    return share < 1 ? 1 : (int)(share + rounding);
}
