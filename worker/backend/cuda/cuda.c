/* cuda - the table of kernels, memory, copies, and recorded steps.
 *
 * A new operator is a row here and its functions in the file of its family, as in backend/cpu.
 *
 * Host to device goes through two pinned buffers in turn, so that upload() returns when it has copied from
 * the caller's memory and need not wait for the device, unless both buffers are still on their way. What is
 * uploaded ahead takes the same way on a stream of its own, beside the work of the compute stream.
 *
 * Recorded steps: the first time the work is just done (libraries choose and connect), the second time it is
 * recorded as a CUDA graph and launched, from then on it is launched. Work that is recorded asks nothing of
 * the host; what changes from step to step lies in device memory.
 */
#include "worker/backend/cuda/cuda.h"
#include <stdlib.h>
#include <string.h>
#include "worker/backend/cuda/cuda_internal.h"
#include "worker/backend/cuda/elem.h"
#include "worker/backend/cuda/flat.h"

int cuda_plain_prepare(struct backend *be, const struct node *n, struct op_prep *p, struct err *e)
{
    struct cuda_state *st = xcalloc(1, sizeof *st);

    (void)n;
    (void)e;
    st->be = cuda_of(be);
    p->state = st;
    return 0;
}

#define ROW(name) cuda_##name##_op_forward, cuda_##name##_op_backward
#define PLAIN cuda_plain_prepare, free

static const struct kernel kernels[OP_COUNT] = {
    [OP_CONV2D] = {cuda_conv2d_prepare, free, ROW(conv2d)},
    [OP_BN_STATS] = {cuda_bn_stats_prepare, free, ROW(bn_stats)},
    [OP_BN_APPLY] = {cuda_bn_apply_prepare, free, ROW(bn_apply)},
    [OP_BN_INFER] = {cuda_bn_infer_prepare, free, cuda_bn_infer_op_forward, NULL},
    [OP_LAYERNORM] = {cuda_layernorm_prepare, free, ROW(layernorm)},
    [OP_LINEAR] = {cuda_linear_prepare, free, ROW(linear)},
    [OP_ATTENTION] = {cuda_attention_prepare, free, ROW(attention)},
    [OP_CAST] = {PLAIN, ROW(cast)},
    [OP_ACT] = {PLAIN, ROW(act)},
    [OP_ADD] = {PLAIN, ROW(add)},
    [OP_DROPOUT] = {PLAIN, ROW(dropout)},
    [OP_MAXPOOL] = {cuda_maxpool_prepare, free, ROW(maxpool)},
    [OP_MEAN_SPATIAL] = {PLAIN, ROW(mean_spatial)},
    [OP_CONCAT_ROWS] = {PLAIN, ROW(concat_rows)},
    [OP_SLICE_ROWS] = {PLAIN, ROW(slice_rows)},
    [OP_SHORTCUT_PAD] = {PLAIN, ROW(shortcut_pad)},
    [OP_SOFTMAX_XENT] = {cuda_softmax_xent_prepare, free, ROW(softmax_xent)},
};

/* ---- memory and copies ---- */

static void *mem_alloc(struct backend *be, size_t bytes, struct err *e)
{
    void *p = NULL;
    cudaError_t s = cudaMalloc(&p, bytes ? bytes : 1);

    (void)be;
    if (s == cudaSuccess)
        return p;
    cudaGetLastError(); /* it is told here, not by the next call */
    if (s == cudaErrorMemoryAllocation)
        err_set(e, "cuda: out of memory: %zu bytes", bytes);
    else
        err_set(e, "cuda: %zu bytes of memory: %s", bytes, cudaGetErrorString(s));
    return NULL;
}

static void mem_free(struct backend *be, void *p)
{
    (void)be;
    if (p)
        cudaFree(p);
}

static int send(struct cuda_backend *b, void *dst, const void *src, size_t bytes, cudaStream_t stream,
                struct err *e)
{
    for (size_t at = 0; at < bytes; at += STAGING_BYTES) {
        struct staging *s = &b->staging[b->next_staging];
        size_t n = bytes - at < STAGING_BYTES ? bytes - at : STAGING_BYTES;
        CUDA_TRY(e, cudaEventSynchronize(s->sent));
        memcpy(s->host, (const char *)src + at, n);
        CUDA_TRY(e, cudaMemcpyAsync((char *)dst + at, s->host, n, cudaMemcpyHostToDevice, stream));
        CUDA_TRY(e, cudaEventRecord(s->sent, stream));
        b->next_staging = (b->next_staging + 1) % N_STAGING;
    }
    return 0;
}

static int upload_ahead(struct backend *be, const void *src, size_t bytes, struct err *e)
{
    struct cuda_backend *b = cuda_of(be);
    struct ahead *a = &b->ahead;

    a->src = NULL;
    if (bytes > a->capacity) {
        CUDA_TRY(e, cudaEventSynchronize(a->used));
        mem_free(be, a->device);
        a->capacity = 0;
        if (!(a->device = mem_alloc(be, bytes, e)))
            return -1;
        a->capacity = bytes;
    }
    if (bytes == 0)
        return 0;
    CUDA_TRY(e, cudaStreamWaitEvent(a->stream, a->used, 0));
    if (send(b, a->device, src, bytes, a->stream, e) < 0)
        return -1;
    CUDA_TRY(e, cudaEventRecord(a->arrived, a->stream));
    a->src = src;
    a->bytes = bytes;
    return 0;
}

static int upload(struct backend *be, void *dst, const void *src, size_t bytes, struct err *e)
{
    struct cuda_backend *b = cuda_of(be);
    struct ahead *a = &b->ahead;

    if (!a->src || a->src != src || a->bytes != bytes)
        return send(b, dst, src, bytes, b->compute, e);
    a->src = NULL;
    CUDA_TRY(e, cudaStreamWaitEvent(b->compute, a->arrived, 0));
    CUDA_TRY(e, cudaMemcpyAsync(dst, a->device, bytes, cudaMemcpyDeviceToDevice, b->compute));
    CUDA_TRY(e, cudaEventRecord(a->used, b->compute));
    return 0;
}

static int download(struct backend *be, void *dst, const void *src, size_t bytes, struct err *e)
{
    struct cuda_backend *b = cuda_of(be);
    struct staging *s = &b->staging[b->next_staging];

    CUDA_TRY(e, cudaEventSynchronize(s->sent));
    for (size_t at = 0; at < bytes; at += STAGING_BYTES) {
        size_t n = bytes - at < STAGING_BYTES ? bytes - at : STAGING_BYTES;
        CUDA_TRY(e, cudaMemcpyAsync(s->host, (const char *)src + at, n, cudaMemcpyDeviceToHost, b->compute));
        CUDA_TRY(e, cudaStreamSynchronize(b->compute));
        memcpy((char *)dst + at, s->host, n);
    }
    return 0;
}

static int zero(struct backend *be, void *dst, size_t bytes, struct err *e)
{
    if (bytes)
        CUDA_TRY(e, cudaMemsetAsync(dst, 0, bytes, cuda_of(be)->compute));
    return 0;
}

static int copy(struct backend *be, void *dst, const void *src, size_t bytes, struct err *e)
{
    if (bytes)
        CUDA_TRY(e, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, cuda_of(be)->compute));
    return 0;
}

static int accumulate(struct backend *be, void *dst, const void *src, size_t n, enum dtype t, struct err *e)
{
    CUDA_TRY(e, elem_copy_or_add(t, src, dst, (int64_t)n, 1, cuda_of(be)->compute));
    return 0;
}

static int from_f32(struct backend *be, void *dst, enum dtype t, const float *src, size_t n, bool add,
                    struct err *e)
{
    if (t == DTYPE_F32)
        CUDA_TRY(e, elem_copy_or_add(t, src, dst, (int64_t)n, add, cuda_of(be)->compute));
    else
        CUDA_TRY(e, elem_cast(DTYPE_F32, t, src, dst, (int64_t)n, add, cuda_of(be)->compute));
    return 0;
}

static void poison(struct backend *be, void *dst, size_t bytes)
{
    if (bytes)
        elem_fill_nan(dst, bytes, cuda_of(be)->compute);
}

static int set_step(struct backend *be, const struct step_ctx *step, struct err *e)
{
    return upload(be, cuda_of(be)->step, step, sizeof *step, e);
}

/* ---- recorded steps ---- */

struct recording {
    cudaGraphExec_t exec; /* NULL: the work was done once, and is recorded the next time */
};

static int record(struct cuda_backend *b, struct recording *r, int (*work)(void *arg, struct err *e),
                  void *arg, struct err *e)
{
    cudaGraph_t graph = NULL;

    CUDA_TRY(e, cudaStreamBeginCapture(b->compute, cudaStreamCaptureModeThreadLocal));
    int rc = work(arg, e);
    cudaError_t s = cudaStreamEndCapture(b->compute, &graph);
    if (rc == 0 && s == cudaSuccess)
        s = cudaGraphInstantiate(&r->exec, graph, 0);
    if (graph)
        cudaGraphDestroy(graph);
    if (rc == 0 && s != cudaSuccess)
        rc = err_set(e, "CUDA: recording a step: %s", cudaGetErrorString(s));
    return rc;
}

static int replay(struct backend *be, void **recording, int (*work)(void *arg, struct err *e), void *arg,
                  struct err *e)
{
    struct cuda_backend *b = cuda_of(be);
    struct recording *r = *recording;

    if (!b->cfg.graphs || !r) {
        if (b->cfg.graphs)
            *recording = xcalloc(1, sizeof *r);
        return work(arg, e);
    }
    if (!r->exec && record(b, r, work, arg, e) < 0)
        return -1;
    CUDA_TRY(e, cudaGraphLaunch(r->exec, b->compute));
    return 0;
}

static void replay_free(struct backend *be, void *recording)
{
    struct recording *r = recording;

    (void)be;
    if (r && r->exec)
        cudaGraphExecDestroy(r->exec);
    free(r);
}

/* ---- birth and death ---- */

static int ahead_open(struct cuda_backend *b, int priority, struct err *e)
{
    struct ahead *a = &b->ahead;

    CUDA_TRY(e, cudaStreamCreateWithPriority(&a->stream, cudaStreamNonBlocking, priority));
    CUDA_TRY(e, cudaEventCreateWithFlags(&a->arrived, cudaEventDisableTiming));
    CUDA_TRY(e, cudaEventCreateWithFlags(&a->used, cudaEventDisableTiming));
    CUDA_TRY(e, cudaEventRecord(a->used, b->compute)); /* nothing was brought */
    return 0;
}

static void ahead_close(struct cuda_backend *b)
{
    struct ahead *a = &b->ahead;

    if (a->stream) {
        cudaStreamSynchronize(a->stream);
        cudaStreamDestroy(a->stream);
    }
    if (a->arrived)
        cudaEventDestroy(a->arrived);
    if (a->used)
        cudaEventDestroy(a->used);
    mem_free(&b->base, a->device);
}

static void destroy(struct backend *be)
{
    struct cuda_backend *b = cuda_of(be);

    if (!b)
        return;
    if (b->compute)
        cudaStreamSynchronize(b->compute);
    ahead_close(b);
    cuda_dnn_destroy(b->dnn);
    cuda_blas_destroy(b->blas);
    for (int i = 0; i < N_STAGING; i++) {
        if (b->staging[i].sent)
            cudaEventDestroy(b->staging[i].sent);
        if (b->staging[i].host)
            cudaFreeHost(b->staging[i].host);
    }
    mem_free(be, b->step);
    mem_free(be, b->partials);
    mem_free(be, b->sum);
    if (b->comm)
        cudaStreamDestroy(b->comm);
    if (b->compute)
        cudaStreamDestroy(b->compute);
    free(b);
}

static const struct backend_ops ops = {
    .name = "cuda",
    .bf16 = true,
    .kernels = kernels,
    .flat = &cuda_flat_ops,
    .mem_alloc = mem_alloc,
    .mem_free = mem_free,
    .upload = upload,
    .upload_ahead = upload_ahead,
    .download = download,
    .zero = zero,
    .copy = copy,
    .accumulate = accumulate,
    .from_f32 = from_f32,
    .poison = poison,
    .set_step = set_step,
    .replay = replay,
    .replay_free = replay_free,
    .destroy = destroy,
};

static int open_device(struct cuda_backend *b, struct err *e)
{
    int n = cuda_device_count(e), least, greatest;

    if (n == 0)
        return -1;
    if (b->cfg.device < 0 || b->cfg.device >= n)
        return err_set(e, "GPU %d is asked for, this process sees %d", b->cfg.device, n);
    CUDA_TRY(e, cudaSetDevice(b->cfg.device));
    CUDA_TRY(e, cudaDeviceGetStreamPriorityRange(&least, &greatest));
    CUDA_TRY(e, cudaStreamCreateWithPriority(&b->compute, cudaStreamNonBlocking, least));
    /* A collective that is ready goes first: others wait for it. */
    CUDA_TRY(e, cudaStreamCreateWithPriority(&b->comm, cudaStreamNonBlocking, greatest));
    for (int i = 0; i < N_STAGING; i++) {
        CUDA_TRY(e, cudaHostAlloc((void **)&b->staging[i].host, STAGING_BYTES, cudaHostAllocDefault));
        CUDA_TRY(e, cudaEventCreateWithFlags(&b->staging[i].sent, cudaEventDisableTiming));
        CUDA_TRY(e, cudaEventRecord(b->staging[i].sent, b->compute)); /* nothing is on its way */
    }
    if (ahead_open(b, least, e) < 0)
        return -1;
    b->step = mem_alloc(&b->base, sizeof *b->step, e);
    b->partials = mem_alloc(&b->base, FLAT_PARTIALS * sizeof(double), e);
    b->sum = mem_alloc(&b->base, sizeof(double), e);
    if (!b->step || !b->partials || !b->sum)
        return -1;
    b->dnn = cuda_dnn_create(b->compute, e);
    b->blas = b->dnn ? cuda_blas_create(b->compute, b->cfg.allow_tf32, e) : NULL;
    return b->blas ? 0 : -1;
}

struct backend *cuda_backend_create(const struct cuda_config *cfg, struct err *e)
{
    struct cuda_backend *b = xcalloc(1, sizeof *b);

    b->base.ops = &ops;
    b->cfg = *cfg;
    if (open_device(b, e) < 0) {
        destroy(&b->base);
        return NULL;
    }
    return &b->base;
}

void cuda_backend_streams(struct backend *be, void **compute, void **comm)
{
    *compute = cuda_of(be)->compute;
    *comm = cuda_of(be)->comm;
}
