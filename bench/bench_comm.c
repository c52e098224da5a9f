/* bench_comm - collectives between ranks: through worker/comm, and MPI called directly as the peer.
 *
 *     mpirun -n R bench_comm [--least 1024] [--most 67108864] [--factor 4] [--seconds 0.1] [--table]
 *
 * For each size, what one rank holds of the whole: all-reduce of so many bytes; all-gather and reduce-scatter
 * of so many bytes in all, an equal share from or to each rank. Ours and MPI's blocking call in turn, from
 * buffers of the same size, after a barrier each; the time of a call is the slowest rank's, and the row its
 * median, least and most. GB/s is what a rank sends in a ring, in the median's time: 2·(R-1)/R·bytes for
 * all-reduce, (R-1)/R·bytes for the others. "ratio" is MPI's median over ours. The sums are checked.
 *
 * Rank 0 writes one JSON document, or, with --table, a table for people.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "bench/bench_args.h"
#include "bench/bench_run.h"
#include "common/clock.h"

enum { MAX_RUNS = 400, MIN_RUNS = 5, N_KINDS = 3 };

struct options {
    long least, most, factor;
    double seconds;
    bool table;
};

struct bench {
    struct options o;
    struct comm *comm;
    float *from, *to;
    int64_t *counts; /* floats of each rank */
    int *mpi_counts, *displs;
    int n; /* floats in all */
    double v[2][MAX_RUNS];
    cJSON *rows;
};

static int parse(struct options *o, int argc, char **argv)
{
    const struct bench_arg table[] = {{"--least", ARG_INT, &o->least, "bytes"},
                                      {"--most", ARG_INT, &o->most, "bytes"},
                                      {"--factor", ARG_INT, &o->factor, "between sizes, 2 at least"},
                                      {"--seconds", ARG_REAL, &o->seconds, "for each row"},
                                      {"--table", ARG_FLAG, &o->table, "a table for people"},
                                      {NULL, ARG_FLAG, NULL, NULL}};
    struct err e = ERR_INIT;

    *o = (struct options){.least = 1 << 10, .most = 64 << 20, .factor = 4, .seconds = 0.1};
    int rc = bench_args_read(table, argc, argv, &e);
    if (rc == 0 && (o->factor < 2 || o->least < 64 || o->most > 1 << 30))
        rc = err_set(&e,
                     "--factor %ld --least %ld --most %ld found; 2 at least, 64 bytes at least and 1 GiB "
                     "at most are accepted",
                     o->factor, o->least, o->most);
    if (rc == 0)
        return 0;
    fprintf(stderr, "bench_comm: %s\noptions:\n", e.msg);
    bench_args_help(table);
    return -1;
}

/* ---- the collectives, [0] ours and [1] MPI's ---- */

static int mpi_rc(int code, const char *what, struct err *e)
{
    return code == MPI_SUCCESS ? 0 : err_set(e, "%s: MPI error %d", what, code);
}

static int all_reduce(struct bench *b, bool mpi, struct err *e)
{
    if (mpi)
        return mpi_rc(MPI_Allreduce(MPI_IN_PLACE, b->to, b->n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD),
                      "MPI_Allreduce", e);
    return comm_all_reduce(b->comm, b->to, (size_t)b->n, DTYPE_F32, e);
}

static int all_gather(struct bench *b, bool mpi, struct err *e)
{
    const int own = (int)b->counts[b->comm->rank];

    if (mpi)
        return mpi_rc(MPI_Allgatherv(b->from, own, MPI_FLOAT, b->to, b->mpi_counts, b->displs, MPI_FLOAT,
                                     MPI_COMM_WORLD),
                      "MPI_Allgatherv", e);
    return comm_all_gather(b->comm, b->from, b->to, b->counts, sizeof *b->from, e);
}

static int reduce_scatter(struct bench *b, bool mpi, struct err *e)
{
    if (mpi)
        return mpi_rc(MPI_Reduce_scatter(b->from, b->to, b->mpi_counts, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD),
                      "MPI_Reduce_scatter", e);
    return comm_reduce_scatter(b->comm, b->from, b->to, b->counts, 1, e);
}

static const struct {
    const char *name;
    int (*run)(struct bench *b, bool mpi, struct err *e);
    int sent; /* (R-1)/R of the bytes, so many times */
} kinds[N_KINDS] = {{"all_reduce", all_reduce, 2},
                    {"all_gather", all_gather, 1},
                    {"reduce_scatter", reduce_scatter, 1}};

/* ---- measuring ---- */

static void set_size(struct bench *b, long bytes)
{
    const int size = b->comm->size;

    b->n = (int)(bytes / (long)sizeof(float));
    for (int r = 0, at = 0; r < size; r++) {
        b->counts[r] = (int64_t)b->n * (r + 1) / size - (int64_t)b->n * r / size;
        b->mpi_counts[r] = (int)b->counts[r];
        b->displs[r] = at;
        at += b->mpi_counts[r];
    }
}

/* What each collective makes of ones: a sum is the number of ranks, a copy is 1. */
static int check(struct bench *b, int kind, bool mpi, struct err *e)
{
    const float want = kind == 1 ? 1 : (float)b->comm->size;
    const int64_t n = kind == 2 ? b->counts[b->comm->rank] : b->n;

    for (int i = 0; i < b->n; i++)
        b->from[i] = b->to[i] = 1;
    if (kinds[kind].run(b, mpi, e) < 0)
        return -1;
    for (int64_t i = 0; i < n; i++)
        if (b->to[i] != want)
            return err_set(e, "%s of %s: element %lld is %g, %g is right", kinds[kind].name,
                           mpi ? "MPI" : "worker/comm", (long long)i, (double)b->to[i], (double)want);
    return 0;
}

/* One call in µs, the slowest rank's. The buffer that all-reduce sums in place stays finite: it holds zeros.
 */
static int time_call(struct bench *b, int kind, bool mpi, double *us, struct err *e)
{
    if (comm_barrier(b->comm, e) < 0)
        return -1;
    const int64_t start = clock_mono_ns();
    if (kinds[kind].run(b, mpi, e) < 0)
        return -1;
    *us = (double)(clock_mono_ns() - start) / 1e3;
    return mpi_rc(MPI_Allreduce(MPI_IN_PLACE, us, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD), "MPI_Allreduce",
                  e);
}

/* Ours and MPI's in turn, until the time is over on rank 0. Returns how many, or -1. */
static int time_kind(struct bench *b, int kind, struct err *e)
{
    const int64_t start = clock_mono_ns();
    int n = 0;

    for (int32_t on = 1; on && n < MAX_RUNS; n++) {
        for (int mpi = 0; mpi < 2; mpi++)
            if (time_call(b, kind, mpi, &b->v[mpi][n], e) < 0)
                return -1;
        on = n + 1 < MIN_RUNS || (double)(clock_mono_ns() - start) < b->o.seconds * 1e9;
        if (comm_broadcast(b->comm, &on, sizeof on, 0, e) < 0)
            return -1;
    }
    return n;
}

static void add_row(struct bench *b, int kind, long bytes, int n)
{
    static const char *const sides[] = {"ours", "mpi"};
    const double ranks = b->comm->size, sent = kinds[kind].sent * (ranks - 1) / ranks * (double)bytes;
    double median[2];
    cJSON *row = cJSON_CreateObject();

    cJSON_AddStringToObject(row, "what", kinds[kind].name);
    cJSON_AddNumberToObject(row, "bytes", (double)bytes);
    cJSON_AddNumberToObject(row, "calls", n);
    for (int mpi = 0; mpi < 2; mpi++) {
        cJSON *o = cJSON_AddObjectToObject(row, sides[mpi]);
        cJSON_AddItemToObject(o, "us", bench_spread(b->v[mpi], n, false));
        median[mpi] = cJSON_GetObjectItem(cJSON_GetObjectItem(o, "us"), "median")->valuedouble;
        cJSON_AddNumberToObject(o, "gb_per_s", median[mpi] > 0 ? sent / median[mpi] / 1e3 : 0);
    }
    cJSON_AddNumberToObject(row, "ratio", median[0] > 0 ? median[1] / median[0] : 0);
    cJSON_AddItemToArray(b->rows, row);
}

static int measure(struct bench *b, struct err *e)
{
    for (int kind = 0; kind < N_KINDS; kind++) {
        for (long bytes = b->o.least; bytes <= b->o.most; bytes *= b->o.factor) {
            set_size(b, bytes);
            if (check(b, kind, false, e) < 0 || check(b, kind, true, e) < 0)
                return -1;
            memset(b->from, 0, (size_t)bytes);
            memset(b->to, 0, (size_t)bytes);
            const int n = time_kind(b, kind, e);
            if (n < 0)
                return -1;
            add_row(b, kind, bytes, n);
        }
    }
    return 0;
}

/* ---- telling ---- */

static double number(const cJSON *row, const char *side, const char *a, const char *b)
{
    const cJSON *o = cJSON_GetObjectItem(cJSON_GetObjectItem(row, side), a);

    return (b ? cJSON_GetObjectItem(o, b) : o)->valuedouble;
}

static void print_table(const struct bench *b)
{
    const cJSON *row;

    printf("%d ranks; µs: median (least – most)\n%-15s %10s %28s %8s %28s %8s %6s\n", b->comm->size,
           "collective", "bytes", "ours, µs", "GB/s", "MPI, µs", "GB/s", "ratio");
    cJSON_ArrayForEach(row, b->rows)
    {
        printf("%-15s %10.0f", cJSON_GetObjectItem(row, "what")->valuestring,
               cJSON_GetObjectItem(row, "bytes")->valuedouble);
        for (int mpi = 0; mpi < 2; mpi++) {
            const char *s = mpi ? "mpi" : "ours";
            printf(" %9.1f (%7.1f – %8.1f) %7.2f", number(row, s, "us", "median"),
                   number(row, s, "us", "min"), number(row, s, "us", "max"),
                   number(row, s, "gb_per_s", NULL));
        }
        printf(" %6.2f\n", cJSON_GetObjectItem(row, "ratio")->valuedouble);
    }
}

static int tell(struct bench *b, struct err *e)
{
    cJSON *doc = cJSON_CreateObject();

    if (b->comm->rank > 0 || b->o.table) {
        if (b->comm->rank == 0)
            print_table(b);
        cJSON_Delete(doc);
        cJSON_Delete(b->rows);
        return 0;
    }
    cJSON_AddStringToObject(doc, "program", "bench_comm");
    bench_tell_machine(doc, b->comm, 1);
    cJSON_AddItemToObject(doc, "rows", b->rows);
    return bench_print(doc, e);
}

static int run(struct bench *b, struct err *e)
{
    const size_t size = (size_t)b->comm->size;
    int rc = 0;

    b->counts = xcalloc(size, sizeof *b->counts);
    b->mpi_counts = xcalloc(size, sizeof *b->mpi_counts);
    b->displs = xcalloc(size, sizeof *b->displs);
    b->from = malloc((size_t)b->o.most);
    b->to = malloc((size_t)b->o.most);
    b->rows = cJSON_CreateArray();
    if (!b->from || !b->to)
        rc = err_set(e, "out of memory: twice %ld bytes", b->o.most);
    if (rc == 0)
        rc = measure(b, e) < 0 ? -1 : tell(b, e);
    free(b->counts);
    free(b->mpi_counts);
    free(b->displs);
    free(b->from);
    free(b->to);
    return rc;
}

int main(int argc, char **argv)
{
    static struct bench b;
    struct err e = ERR_INIT;
    int rc = -1;

    if (parse(&b.o, argc, argv) < 0)
        return 2;
    b.comm = bench_comm_open(&argc, &argv, &e);
    if (b.comm && strcmp(b.comm->ops->name, "mpi") != 0)
        err_set(&e, "no launcher of MPI found; mpirun -n R bench_comm is accepted");
    else if (b.comm)
        rc = run(&b, &e);
    if (rc < 0) {
        fprintf(stderr, "bench_comm: %s\n", e.msg);
        if (b.comm && b.comm->size > 1)
            comm_abort(b.comm, 1);
    }
    bench_comm_close(b.comm);
    return rc < 0;
}
