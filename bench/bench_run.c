/* bench_run - see bench_run.h. */
#include "bench/bench_run.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/json.h"
#include "worker/comm/launcher.h"

enum { TIMEOUT_MS = 10 * 60 * 1000 };

struct comm *bench_comm_open(int *argc, char ***argv, struct err *e)
{
    struct launcher l;
    int provided;

    if (launcher_find(&l, e) < 0)
        return NULL;
    if (l.kind == LAUNCHER_NONE)
        return comm_single_create();
    if (l.kind != LAUNCHER_MPI) {
        err_set(e, "ranks of srun without PMIx found; mpirun is accepted");
        return NULL;
    }
    if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
        err_set(e, "MPI_Init_thread failed");
        return NULL;
    }
    return comm_mpi_create(TIMEOUT_MS, e);
}

void bench_comm_close(struct comm *comm)
{
    int up = 0;

    comm_destroy(comm);
    MPI_Initialized(&up);
    if (up)
        MPI_Finalize();
}

static int smallest_first(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y ? 1 : 0;
}

double bench_median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, smallest_first);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

cJSON *bench_spread(const double *v, int n, bool all)
{
    cJSON *o = cJSON_CreateObject();
    double *sorted = xmalloc((size_t)n * sizeof *sorted);

    memcpy(sorted, v, (size_t)n * sizeof *sorted);
    cJSON_AddNumberToObject(o, "median", bench_median(sorted, n));
    cJSON_AddNumberToObject(o, "min", sorted[0]);
    cJSON_AddNumberToObject(o, "max", sorted[n - 1]);
    if (all)
        cJSON_AddItemToObject(o, "all", cJSON_CreateDoubleArray(v, n));
    free(sorted);
    return o;
}

double bench_peak_rss(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    long kib = 0;

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %ld kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return (double)kib * 1024;
}

static void cpu_name(char out[128])
{
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[256];

    strcpy(out, "unknown");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "model name : %127[^\n]", out) == 1)
            break;
    if (f)
        fclose(f);
}

void bench_tell_machine(cJSON *doc, const struct comm *comm, long threads)
{
    char name[128];

    cpu_name(name);
    cJSON_AddStringToObject(doc, "cpu", name);
    cJSON_AddNumberToObject(doc, "cores", (double)sysconf(_SC_NPROCESSORS_ONLN));
    cJSON_AddNumberToObject(doc, "ranks", comm->size);
    cJSON_AddNumberToObject(doc, "threads", (double)threads);
}

int bench_print(cJSON *doc, struct err *e)
{
    char *text = json_text_pretty(doc);
    const int rc = puts(text) < 0 || fflush(stdout) != 0 ? err_set_errno(e, "stdout") : 0;

    free(text);
    cJSON_Delete(doc);
    return rc;
}
