/* gpu_ops - where a training step on a GPU spends its time: every operator of a ResNet with the BatchFormer
 * at its real shapes, forward and backward, between CUDA events, beside what the card reaches in a plain
 * sweep and a plain product.
 *
 *     gpu_ops [--arch resnet50] [--batch 256] [--size 224] [--channels 3] [--classes 1000] [--width 1]
 *             [--precision bf16|tf32|fp32] [--repeats 5] [--peak-mib 1024] [--peak-n 8192]
 *
 * Writes one JSON document. Steps are made call by call, so an operator that is shorter than the launches of
 * its kernels is charged those; a recorded step, which the worker makes, is not. GB/s and TFLOP/s count as
 * bench_net.h says: each tensor that an operator reads or writes once, and products only.
 */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "bench/bench_net.h"
#include "worker/backend/cuda/cuda_internal.h"
#include "worker/comm/comm_nccl.h"
#include "worker/engine/program_impl.h"
#include "worker/engine/tuning.h"
#ifdef BF_SIM
#include <mpi.h> /* the simulated NCCL runs over it */
#endif

enum { WARM_STEPS = 2, PEAK_RUNS = 10, MAX_ROWS = 4096, TIMEOUT_MS = 60000, TEXT_BYTES = 1 << 16 };

struct options {
    struct bench_net_cfg net;
    long repeats, peak_mib, peak_n;
};

/* Times of one operator on one shape, in one direction. */
struct row {
    char key[BENCH_KEY_BYTES];
    enum op op;
    bool backward;
    int nodes;
    double ms, bytes, flops; /* of a step */
};

struct bench {
    struct options o;
    enum dtype dtype;
    struct backend *be;
    struct tuning *tuning; /* engines are measured, as the worker does */
    cudaStream_t stream;
    struct comm *host, *comm;
    struct bench_net net;
    cudaEvent_t *marks; /* marks[0] before, marks[i + 1] after the i-th thing that ran */
    int n_marks, max_marks;
    int *node_of; /* of the i-th thing: id, and ~id backward */
    struct row rows[MAX_ROWS];
    int n_rows;
};

static int parse(struct options *o, int argc, char **argv)
{
    const struct bench_arg table[] = {
        BENCH_NET_ARGS(&o->net),
        {"--repeats", ARG_INT, &o->repeats, "steps that are timed"},
        {"--peak-mib", ARG_INT, &o->peak_mib, "size of the sweep that tells the bandwidth"},
        {"--peak-n", ARG_INT, &o->peak_n, "size of the product that tells the rate"},
        {NULL, ARG_FLAG, NULL, NULL}};
    struct err e = ERR_INIT;

    *o = (struct options){.net = bench_net_defaults(), .repeats = 5, .peak_mib = 1024, .peak_n = 8192};
    o->net.arch = "resnet50";
    o->net.precision = "bf16";
    o->net.batch = 256;
    o->net.size = 224;
    o->net.channels = 3;
    o->net.classes = 1000;
    if (bench_args_read(table, argc, argv, &e) == 0)
        return 0;
    fprintf(stderr, "gpu_ops: %s\noptions:\n", e.msg);
    bench_args_help(table);
    return -1;
}

static int mark(void *arg, const struct program *p, int i, bool backward, struct err *e)
{
    struct bench *b = arg;

    (void)p;
    ASSERT(b->n_marks < b->max_marks);
    b->node_of[b->n_marks] = backward ? ~i : i;
    CUDA_TRY(e, cudaEventRecord(b->marks[++b->n_marks], b->stream));
    return 0;
}

static int open_all(struct bench *b, struct err *e)
{
    const struct cuda_config cfg = {.allow_tf32 = !strcmp(b->o.net.precision, "tf32"), .deterministic = true};
    static const struct log complaints = {.fd = STDERR_FILENO, .level = LOG_WARN, .component = "gpu_ops"};
    struct comm_nccl_config nc = {.timeout_ms = TIMEOUT_MS};

    b->dtype = strcmp(b->o.net.precision, "bf16") ? DTYPE_F32 : DTYPE_BF16;
    if (!(b->be = cuda_backend_create(&cfg, e)))
        return -1;
    b->be->tuning = b->tuning = tuning_create(true, &complaints);
    b->host = comm_single_create();
    cuda_backend_streams(b->be, &nc.compute_stream, &nc.comm_stream);
    b->stream = nc.compute_stream;
    if (!(b->comm = comm_nccl_create(b->host, &nc, e)) ||
        bench_net_open(&b->net, &b->o.net, b->be, b->comm, 0, e) < 0 || bench_net_feed(&b->net, e) < 0)
        return -1;
    b->max_marks = 2 * b->net.graph->n_nodes;
    b->marks = xcalloc((size_t)b->max_marks + 1, sizeof *b->marks);
    b->node_of = xcalloc((size_t)b->max_marks, sizeof *b->node_of);
    for (int i = 0; i <= b->max_marks; i++)
        CUDA_TRY(e, cudaEventCreate(&b->marks[i]));
    b->net.program->watch = (struct watch){mark, b};
    return 0;
}

/* ---- measuring ---- */

static struct row *row_of(struct bench *b, const struct node *n, bool backward)
{
    char key[BENCH_KEY_BYTES];

    bench_node_key(n, backward, key);
    for (int i = 0; i < b->n_rows; i++)
        if (!strcmp(b->rows[i].key, key))
            return &b->rows[i];
    ASSERT(b->n_rows < MAX_ROWS);
    struct row *r = &b->rows[b->n_rows++];
    *r = (struct row){.op = n->op, .backward = backward};
    memcpy(r->key, key, sizeof key);
    return r;
}

static int step(struct bench *b, uint64_t number, struct err *e)
{
    b->n_marks = 0;
    if (program_begin(b->net.program, 1, number, e) < 0)
        return -1;
    CUDA_TRY(e, cudaEventRecord(b->marks[0], b->stream));
    return program_run(b->net.program, e) < 0 || program_backward(b->net.program, e) < 0 ? -1 : 0;
}

/* Adds a step to the rows. */
static int collect(struct bench *b, bool first, double *step_ms, struct err *e)
{
    float ms;

    CUDA_TRY(e, cudaStreamSynchronize(b->stream));
    for (int i = 0; i < b->n_marks; i++) {
        const bool backward = b->node_of[i] < 0;
        const struct node *n = b->net.graph->nodes[backward ? ~b->node_of[i] : b->node_of[i]];
        struct row *r = row_of(b, n, backward);
        CUDA_TRY(e, cudaEventElapsedTime(&ms, b->marks[i], b->marks[i + 1]));
        r->ms += (double)ms / (double)b->o.repeats;
        *step_ms += (double)ms / (double)b->o.repeats;
        if (first) {
            r->nodes++;
            r->bytes += bench_node_bytes(n, backward);
            r->flops += bench_node_flops(n, backward);
        }
    }
    return 0;
}

static int measure_steps(struct bench *b, double *step_ms, struct err *e)
{
    uint64_t number = 0;

    for (; number < WARM_STEPS; number++)
        if (step(b, number, e) < 0)
            return -1;
    for (int i = 0; i < b->o.repeats; i++)
        if (step(b, number++, e) < 0 || collect(b, i == 0, step_ms, e) < 0)
            return -1;
    return 0;
}

/* GB/s of dst += src: two reads and a write. */
static int peak_bandwidth(struct bench *b, double *out, struct err *e)
{
    const size_t bytes = (size_t)b->o.peak_mib << 20, n = bytes / sizeof(float);
    void *x = b->be->ops->mem_alloc(b->be, bytes, e), *y = x ? b->be->ops->mem_alloc(b->be, bytes, e) : NULL;
    float ms = 0;

    if (!y || b->be->ops->zero(b->be, x, bytes, e) < 0 || b->be->ops->zero(b->be, y, bytes, e) < 0)
        return -1;
    for (int i = 0; i <= PEAK_RUNS; i++) {
        if (b->be->ops->accumulate(b->be, y, x, n, DTYPE_F32, e) < 0)
            return -1;
        if (i == 0)
            CUDA_TRY(e, cudaEventRecord(b->marks[0], b->stream));
    }
    CUDA_TRY(e, cudaEventRecord(b->marks[1], b->stream));
    CUDA_TRY(e, cudaStreamSynchronize(b->stream));
    CUDA_TRY(e, cudaEventElapsedTime(&ms, b->marks[0], b->marks[1]));
    *out = 3.0 * (double)bytes * PEAK_RUNS / (double)ms / 1e6;
    b->be->ops->mem_free(b->be, x);
    b->be->ops->mem_free(b->be, y);
    return 0;
}

/* Numbers of ±[1, 2): a product of zeros draws less power than one of numbers, and runs at a higher clock. */
static int send_numbers(struct bench *b, void *dst, int64_t n, struct err *e)
{
    const size_t size = dtype_bytes(b->dtype);
    char *host = xmalloc((size_t)n * size);
    int rc;

    for (int64_t i = 0; i < n; i++) {
        const uint32_t h = (uint32_t)i * 2654435761u ^ (uint32_t)(i >> 13) * 40503u;
        const uint32_t f32 = (h & 0x80000000u) | 0x3f800000u | (h >> 7 & 0x7fffff);
        const uint16_t bf16 = (uint16_t)(f32 >> 16);
        memcpy(host + (size_t)i * size, size == sizeof f32 ? (const void *)&f32 : (const void *)&bf16, size);
    }
    rc = b->be->ops->upload(b->be, dst, host, (size_t)n * size, e);
    free(host);
    return rc;
}

/* TFLOP/s of a square product in the types of the network. */
static int peak_product(struct bench *b, double *out, struct err *e)
{
    const int64_t n = b->o.peak_n;
    const size_t bytes = (size_t)(n * n) * dtype_bytes(b->dtype);
    void *m[3];
    float ms = 0;

    for (int i = 0; i < 3; i++)
        if (!(m[i] = b->be->ops->mem_alloc(b->be, bytes, e)) || send_numbers(b, m[i], n * n, e) < 0)
            return -1;
    struct cuda_gemm g = {.ta = 'N',
                          .tb = 'T',
                          .m = n,
                          .n = n,
                          .k = n,
                          .alpha = 1,
                          .ab_type = b->dtype,
                          .c_type = b->dtype,
                          .a = m[0],
                          .b = m[1],
                          .c = m[2],
                          .lda = n,
                          .ldb = n,
                          .ldc = n};
    for (int i = 0; i <= PEAK_RUNS; i++) {
        if (cuda_gemm_run(cuda_of(b->be)->blas, &g, e) < 0)
            return -1;
        if (i == 0)
            CUDA_TRY(e, cudaEventRecord(b->marks[0], b->stream));
    }
    CUDA_TRY(e, cudaEventRecord(b->marks[1], b->stream));
    CUDA_TRY(e, cudaStreamSynchronize(b->stream));
    CUDA_TRY(e, cudaEventElapsedTime(&ms, b->marks[0], b->marks[1]));
    *out = 2.0 * pow((double)n, 3) * PEAK_RUNS / (double)ms / 1e9;
    for (int i = 0; i < 3; i++)
        b->be->ops->mem_free(b->be, m[i]);
    return 0;
}

/* ---- telling ---- */

static int slowest_first(const void *a, const void *b)
{
    const double x = ((const struct row *)a)->ms, y = ((const struct row *)b)->ms;

    return x < y ? 1 : x > y ? -1 : 0;
}

/* The lines of a text as an array. */
static void add_lines(cJSON *doc, const char *name, char *text)
{
    cJSON *lines = cJSON_AddArrayToObject(doc, name);
    char *rest = NULL;

    for (char *s = strtok_r(text, "\n", &rest); s; s = strtok_r(NULL, "\n", &rest))
        cJSON_AddItemToArray(lines, cJSON_CreateString(s));
}

/* Which engines and algorithms the libraries chose. */
static void tell_choices(struct bench *b, cJSON *doc)
{
    char *text = tuning_text(b->tuning);
    cJSON *table = cJSON_Parse(text);

    cJSON_AddItemToObject(doc, "convolutions",
                          cJSON_DetachItemFromObject(table, "plans")); /* {key: engine} */
    cJSON_Delete(table);
    free(text);
    text = xmalloc(TEXT_BYTES);
    cuda_blas_text(cuda_of(b->be)->blas, text, TEXT_BYTES);
    add_lines(doc, "products", text);
    free(text);
}

static void tell(struct bench *b, double step_ms, double gb_s, double tflop_s)
{
    cJSON *doc = cJSON_CreateObject(), *rows;

    bench_net_tell(doc, &b->o.net);
    cJSON_AddItemToObject(doc, "gpu", cuda_probe_device(0));
    cuda_probe_versions(doc);
    cJSON_AddNumberToObject(doc, "peak_gb_per_s", gb_s);
    cJSON_AddNumberToObject(doc, "peak_tflop_per_s", tflop_s);
    cJSON_AddNumberToObject(doc, "arena_bytes", (double)program_arena_bytes(b->net.program));
    cJSON_AddNumberToObject(doc, "step_ms", step_ms); /* forward and backward */
    rows = cJSON_AddArrayToObject(doc, "rows");
    qsort(b->rows, (size_t)b->n_rows, sizeof b->rows[0], slowest_first);
    for (int i = 0; i < b->n_rows; i++) {
        const struct row *r = &b->rows[i];
        cJSON *o = cJSON_CreateObject();
        cJSON_AddStringToObject(o, "what", r->key);
        cJSON_AddStringToObject(o, "op", op_table[r->op].name);
        cJSON_AddBoolToObject(o, "backward", r->backward);
        cJSON_AddNumberToObject(o, "nodes", r->nodes);
        cJSON_AddNumberToObject(o, "ms", r->ms);
        cJSON_AddNumberToObject(o, "share", step_ms > 0 ? r->ms / step_ms : 0);
        cJSON_AddNumberToObject(o, "gb_per_s", r->ms > 0 ? r->bytes / r->ms / 1e6 : 0);
        cJSON_AddNumberToObject(o, "tflop_per_s", r->ms > 0 ? r->flops / r->ms / 1e9 : 0);
        cJSON_AddItemToArray(rows, o);
    }
    tell_choices(b, doc);
    char *text = cJSON_Print(doc);
    puts(text);
    free(text);
    cJSON_Delete(doc);
}

static void close_all(struct bench *b)
{
    for (int i = 0; b->marks && i <= b->max_marks; i++)
        if (b->marks[i])
            cudaEventDestroy(b->marks[i]);
    free(b->marks);
    free(b->node_of);
    bench_net_close(&b->net);
    if (b->comm && b->comm != b->host)
        comm_destroy(b->comm);
    if (b->host)
        comm_destroy(b->host);
    if (b->be)
        b->be->ops->destroy(b->be);
    tuning_destroy(b->tuning);
}

int main(int argc, char **argv)
{
    static struct bench b;
    struct err e = ERR_INIT;
    double step_ms = 0, gb_s = 0, tflop_s = 0;

    if (parse(&b.o, argc, argv) < 0)
        return 2;
    if (cuda_device_count(&e) == 0) {
        fprintf(stderr, "gpu_ops: skipped: %s\n", e.msg);
        return 77;
    }
#ifdef BF_SIM
    MPI_Init(&argc, &argv);
#endif
    int rc = open_all(&b, &e) < 0 || measure_steps(&b, &step_ms, &e) < 0 ||
             peak_bandwidth(&b, &gb_s, &e) < 0 || peak_product(&b, &tflop_s, &e) < 0;
    if (rc)
        fprintf(stderr, "gpu_ops: %s\n", e.msg);
    else
        tell(&b, step_ms, gb_s, tflop_s);
    close_all(&b);
#ifdef BF_SIM
    MPI_Finalize();
#endif
    return rc;
}
