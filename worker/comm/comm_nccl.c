/* comm_nccl - see comm_nccl.h; the only file that knows nccl.h. */
#include "worker/comm/comm_nccl.h"
#include "common/clock.h"
#include "worker/backend/cuda/cuda_util.h"
#include "worker/comm/back_off.h"

#include <nccl.h>
#include <stdlib.h>
#include <string.h>

/* An all-reduce in flight: recorded on the communication stream behind it. */
struct request {
    cudaEvent_t done;
    struct request *next;      /* of all */
    struct request *next_free; /* of those not in flight */
};

struct comm_nccl {
    struct comm base;
    struct comm *host;
    ncclComm_t nccl; /* NULL: aborted */
    cudaStream_t compute, side;
    int timeout_ms;
    bool broken;       /* something failed or was late: it can only be aborted */
    cudaEvent_t ready; /* what the compute stream was given before a request */
    cudaEvent_t probe; /* of the wait in progress */
    int32_t *word;     /* on the device: what a barrier sums */
    struct request *requests, *free_requests;
};

static struct comm_nccl *nccl_of(struct comm *c)
{
    return (struct comm_nccl *)c;
}

/* ------------------------------------------------------------------ failures and waiting */

static int fail(struct comm_nccl *m, ncclResult_t r, bool is_async, const char *what, struct err *e)
{
    const char *last = ncclGetLastError(NULL);
    /* Of what comes later, a failed system call is a connection that broke. */
    const bool peer = r == ncclRemoteError || (is_async && r == ncclSystemError);

    m->broken = true;
    return err_set_kind(e, peer ? ERR_PEER_LOST : ERR_GENERIC, "NCCL: %s: rank %d: %s%s%s", what,
                        m->base.rank, ncclGetErrorString(r), last && *last ? ": " : "", last ? last : "");
}

static int poll_async(struct comm_nccl *m, ncclResult_t *state, const char *what, struct err *e)
{
    if (!m->nccl)
        return err_set_kind(e, ERR_PEER_LOST, "NCCL: %s: the communicator was aborted", what);
    NCCL_TRY(e, ncclCommGetAsyncError(m->nccl, state));
    if (*state != ncclSuccess && *state != ncclInProgress)
        return fail(m, *state, true, what, e);
    return 0;
}

int comm_nccl_poll(struct comm *c, struct err *e)
{
    ncclResult_t state;

    return poll_async(nccl_of(c), &state, "poll", e);
}

static bool late(const struct comm_nccl *m, int64_t start)
{
    return m->timeout_ms >= 0 && clock_mono_ns() - start > m->timeout_ms * 1000000LL;
}

static int fail_late(struct comm_nccl *m, const char *what, struct err *e)
{
    m->broken = true;
    return err_set_kind(e, ERR_PEER_LOST, "%s: rank %d waited %d s and another rank did not come", what,
                        m->base.rank, m->timeout_ms / 1000);
}

/* What a call of NCCL returned, waited for if it goes on behind our back (nonblocking communicators). */
static int settle(struct comm_nccl *m, ncclResult_t r, const char *what, struct err *e)
{
    const int64_t start = clock_mono_ns();

    if (r != ncclSuccess && r != ncclInProgress)
        return fail(m, r, false, what, e);
    for (int n_polls = 0; r == ncclInProgress; n_polls = back_off_next(n_polls)) {
        if (poll_async(m, &r, what, e) < 0)
            return -1;
        if (r == ncclInProgress && late(m, start))
            return fail_late(m, what, e);
        back_off(n_polls);
    }
    return 0;
}

int comm_nccl_wait_stream(struct comm *c, void *stream, const char *what, struct err *e)
{
    struct comm_nccl *m = nccl_of(c);
    const int64_t start = clock_mono_ns();
    ncclResult_t state;

    CUDA_TRY(e, cudaEventRecord(m->probe, stream));
    for (int n_polls = 0;; n_polls = back_off_next(n_polls)) {
        const cudaError_t s = cudaEventQuery(m->probe);

        if (s == cudaSuccess)
            return 0;
        if (s != cudaErrorNotReady)
            CUDA_TRY(e, s);
        (void)cudaGetLastError(); /* else the next launch would be told of it */
        if (n_polls % 256 == 255) {
            if (poll_async(m, &state, what, e) < 0)
                return -1;
            if (late(m, start))
                return fail_late(m, what, e);
        }
        back_off(n_polls);
    }
}

static int nccl_sync(struct comm *c, const char *what, struct err *e)
{
    return comm_nccl_wait_stream(c, nccl_of(c)->compute, what, e);
}

/* ------------------------------------------------------------------ collectives on the compute stream */

static int usable(const struct comm_nccl *m, const char *what, struct err *e)
{
    if (m->broken || !m->nccl)
        return err_set_kind(e, ERR_PEER_LOST, "NCCL: %s: rank %d: the communicator is broken", what,
                            m->base.rank);
    return 0;
}

static bool all_equal(const struct comm *c, const int64_t *counts)
{
    for (int r = 1; r < c->size; r++)
        if (counts[r] != counts[0])
            return false;
    return true;
}

/* The first failure of a sequence of calls; a call in progress is none. */
static void keep_first(ncclResult_t *first, ncclResult_t r)
{
    if (*first == ncclSuccess || *first == ncclInProgress)
        *first = r;
}

static bool fine(ncclResult_t r)
{
    return r == ncclSuccess || r == ncclInProgress;
}

static int nccl_all_gather(struct comm *c, const void *local, void *all, const int64_t *counts,
                           size_t row_bytes, struct err *e)
{
    struct comm_nccl *m = nccl_of(c);
    char *at = all;
    ncclResult_t r;

    if (usable(m, "all-gather", e) < 0)
        return -1;
    if (all_equal(c, counts)) {
        if (counts[0] == 0 || row_bytes == 0)
            return 0;
        r = ncclAllGather(local, all, (size_t)counts[0] * row_bytes, ncclInt8, m->nccl, m->compute);
        return settle(m, r, "all-gather", e);
    }
    r = ncclGroupStart();
    for (int i = 0; i < c->size && fine(r); i++) {
        const size_t bytes = (size_t)counts[i] * row_bytes;

        if (bytes)
            r = ncclBroadcast(i == c->rank ? local : at, at, bytes, ncclInt8, i, m->nccl, m->compute);
        at += bytes;
    }
    keep_first(&r, ncclGroupEnd());
    return settle(m, r, "all-gather", e);
}

static int nccl_reduce_scatter(struct comm *c, const float *all, float *local, const int64_t *counts,
                               int64_t width, struct err *e)
{
    struct comm_nccl *m = nccl_of(c);
    ncclResult_t r;

    if (usable(m, "reduce-scatter", e) < 0)
        return -1;
    if (all_equal(c, counts)) {
        if (counts[0] == 0 || width == 0)
            return 0;
        r = ncclReduceScatter(all, local, (size_t)(counts[0] * width), ncclFloat32, ncclSum, m->nccl,
                              m->compute);
        return settle(m, r, "reduce-scatter", e);
    }
    r = ncclGroupStart();
    for (int i = 0; i < c->size && fine(r); i++) {
        const size_t n = (size_t)(counts[i] * width);

        if (n)
            r = ncclReduce(all, i == c->rank ? local : NULL, n, ncclFloat32, ncclSum, i, m->nccl, m->compute);
        all += n;
    }
    keep_first(&r, ncclGroupEnd());
    return settle(m, r, "reduce-scatter", e);
}

static int nccl_all_to_all(struct comm *c, const void *send, const int64_t *send_counts, void *recv,
                           const int64_t *recv_counts, size_t unit_bytes, struct err *e)
{
    struct comm_nccl *m = nccl_of(c);
    const char *from = send;
    char *to = recv;
    ncclResult_t r;

    if (usable(m, "all-to-all", e) < 0)
        return -1;
    r = ncclGroupStart();
    for (int i = 0; i < c->size && fine(r); i++) {
        const size_t out = (size_t)send_counts[i] * unit_bytes, in = (size_t)recv_counts[i] * unit_bytes;

        if (out)
            r = ncclSend(from, out, ncclInt8, i, m->nccl, m->compute);
        if (in && fine(r))
            r = ncclRecv(to, in, ncclInt8, i, m->nccl, m->compute);
        from += out;
        to += in;
    }
    keep_first(&r, ncclGroupEnd());
    return settle(m, r, "all-to-all", e);
}

static int all_reduce_on(struct comm_nccl *m, cudaStream_t stream, void *buf, size_t n, enum dtype t,
                         struct err *e)
{
    const ncclDataType_t type = t == DTYPE_F64 ? ncclFloat64 : t == DTYPE_I32 ? ncclInt32 : ncclFloat32;

    if (t == DTYPE_BF16)
        return err_set(e, "NCCL: all-reduce of bf16: sums are made in fp32 or wider");
    return settle(m, ncclAllReduce(buf, buf, n, type, ncclSum, m->nccl, stream), "all-reduce", e);
}

static int nccl_all_reduce(struct comm *c, void *buf, size_t n, enum dtype t, struct err *e)
{
    struct comm_nccl *m = nccl_of(c);

    if (usable(m, "all-reduce", e) < 0)
        return -1;
    return n ? all_reduce_on(m, m->compute, buf, n, t, e) : 0;
}

static int nccl_broadcast(struct comm *c, void *buf, size_t bytes, int root, struct err *e)
{
    struct comm_nccl *m = nccl_of(c);

    if (usable(m, "broadcast", e) < 0)
        return -1;
    if (bytes == 0)
        return 0;
    return settle(m, ncclBroadcast(buf, buf, bytes, ncclInt8, root, m->nccl, m->compute), "broadcast", e);
}

static int nccl_barrier(struct comm *c, struct err *e)
{
    return nccl_all_reduce(c, nccl_of(c)->word, 1, DTYPE_I32, e) < 0 ? -1 : nccl_sync(c, "barrier", e);
}

/* ------------------------------------------------------------------ all-reduces in flight */

static int request_record(struct comm_nccl *m, struct request *r, struct err *e)
{
    if (!r->done)
        CUDA_TRY(e, cudaEventCreateWithFlags(&r->done, cudaEventDisableTiming));
    CUDA_TRY(e, cudaEventRecord(r->done, m->side));
    return 0;
}

static struct request *request_get(struct comm_nccl *m)
{
    struct request *r = m->free_requests;

    if (r) {
        m->free_requests = r->next_free;
        return r;
    }
    r = xcalloc(1, sizeof *r);
    r->next = m->requests;
    m->requests = r;
    return r;
}

static int nccl_all_reduce_start(struct comm *c, void *buf, size_t n, enum dtype t, struct comm_req *out,
                                 struct err *e)
{
    struct comm_nccl *m = nccl_of(c);

    out->handle = NULL;
    if (usable(m, "all-reduce", e) < 0)
        return -1;
    if (n == 0)
        return 0;
    CUDA_TRY(e, cudaEventRecord(m->ready, m->compute));
    CUDA_TRY(e, cudaStreamWaitEvent(m->side, m->ready, 0));
    if (all_reduce_on(m, m->side, buf, n, t, e) < 0)
        return -1;
    out->handle = request_get(m);
    return request_record(m, out->handle, e);
}

/* The event may be recorded again at once: who waits for it waits for the record that was the last. */
static int nccl_wait(struct comm *c, struct comm_req *in, struct err *e)
{
    struct comm_nccl *m = nccl_of(c);
    struct request *r = in->handle;

    if (!r)
        return 0;
    in->handle = NULL;
    r->next_free = m->free_requests;
    m->free_requests = r;
    CUDA_TRY(e, cudaStreamWaitEvent(m->compute, r->done, 0));
    return 0;
}

/* ------------------------------------------------------------------ beginning and end */

static void nccl_abort(struct comm *c, int exit_status)
{
    struct comm_nccl *m = nccl_of(c);

    m->broken = true;
    if (m->nccl)
        ncclCommAbort(m->nccl);
    m->nccl = NULL;
    comm_abort(m->host, exit_status);
}

/* A communicator is closed by all ranks together, and only when nothing is on its way; else it is aborted. */
static void close_or_abort(struct comm_nccl *m)
{
    struct err e;

    if (!m->nccl)
        return;
    if (m->broken || comm_nccl_wait_stream(&m->base, m->compute, "end", &e) < 0 ||
        comm_nccl_wait_stream(&m->base, m->side, "end", &e) < 0 ||
        settle(m, ncclCommFinalize(m->nccl), "end", &e) < 0)
        ncclCommAbort(m->nccl);
    else
        ncclCommDestroy(m->nccl);
    m->nccl = NULL;
}

static void nccl_destroy(struct comm *c)
{
    struct comm_nccl *m = nccl_of(c);

    close_or_abort(m);
    while (m->requests) {
        struct request *r = m->requests;

        m->requests = r->next;
        if (r->done)
            cudaEventDestroy(r->done);
        free(r);
    }
    if (m->ready)
        cudaEventDestroy(m->ready);
    if (m->probe)
        cudaEventDestroy(m->probe);
    if (m->word)
        cudaFree(m->word);
    free(m);
}

static const struct comm_ops nccl_ops = {
    .name = "nccl",
    .all_gather = nccl_all_gather,
    .reduce_scatter = nccl_reduce_scatter,
    .all_to_all = nccl_all_to_all,
    .all_reduce = nccl_all_reduce,
    .all_reduce_start = nccl_all_reduce_start,
    .wait = nccl_wait,
    .broadcast = nccl_broadcast,
    .barrier = nccl_barrier,
    .sync = nccl_sync,
    .abort = nccl_abort,
    .destroy = nccl_destroy,
};

/* What rank 0 tells the others. */
struct invitation {
    int32_t ok; /* 0: rank 0 has no id to give */
    ncclUniqueId id;
};

static int device_init(struct comm_nccl *m, struct err *e)
{
    CUDA_TRY(e, cudaEventCreateWithFlags(&m->ready, cudaEventDisableTiming));
    CUDA_TRY(e, cudaEventCreateWithFlags(&m->probe, cudaEventDisableTiming));
    CUDA_TRY(e, cudaMalloc((void **)&m->word, sizeof *m->word));
    CUDA_TRY(e, cudaMemsetAsync(m->word, 0, sizeof *m->word, m->compute));
    return 0;
}

/* All that a rank can do alone; on rank 0 also the invitation. */
static int prepare(struct comm_nccl *m, const struct comm_nccl_config *cfg, struct invitation *i,
                   struct err *e)
{
    memset(i, 0, sizeof *i);
    m->base.ops = &nccl_ops;
    m->compute = cfg->compute_stream;
    m->side = cfg->comm_stream;
    m->timeout_ms = cfg->timeout_ms;
    if (device_init(m, e) < 0)
        return -1;
    if (m->base.rank > 0)
        return 0;
    NCCL_TRY(e, ncclGetUniqueId(&i->id));
    i->ok = 1;
    return 0;
}

/* All ranks are there and have the invitation. */
static int join(struct comm_nccl *m, const struct invitation *i, const struct comm_nccl_config *cfg,
                struct err *e)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclResult_t r;

    if (!i->ok)
        return err_set(e, "NCCL: rank 0 could not start it");
    config.blocking = !cfg->nonblocking;
    r = ncclCommInitRankConfig(&m->nccl, m->base.size, i->id, m->base.rank, &config);
    return settle(m, r, "start", e);
}

/* A rank that failed still tells the others: they would wait for it in NCCL, which may know no timeout. */
static int meet_on_host(struct comm_nccl *m, int rc, struct invitation *i, struct err *e)
{
    int32_t n_failed = rc < 0;

    if (comm_broadcast(m->host, i, sizeof *i, 0, rc < 0 ? NULL : e) < 0 ||
        comm_all_reduce(m->host, &n_failed, 1, DTYPE_I32, rc < 0 ? NULL : e) < 0 || rc < 0)
        return -1;
    if (n_failed)
        return err_set(e, "NCCL: %d of %d ranks could not start it", (int)n_failed, m->base.size);
    return 0;
}

struct comm *comm_nccl_create(struct comm *host, const struct comm_nccl_config *cfg, struct err *e)
{
    struct comm_nccl *m = xcalloc(1, sizeof *m);
    struct invitation i;

    m->base.rank = host->rank;
    m->base.size = host->size;
    m->host = host;
    if (meet_on_host(m, prepare(m, cfg, &i, e), &i, e) == 0 && join(m, &i, cfg, e) == 0)
        return &m->base;
    nccl_destroy(&m->base);
    return NULL;
}

int comm_nccl_version(void)
{
    int version = 0;

    return ncclGetVersion(&version) == ncclSuccess ? version : 0;
}
