/* nccl_sim - NCCL over MPI, a process a rank; how operations run is in nccl_work.cpp.
 *
 * A communicator is made by all ranks of MPI_COMM_WORLD, after MPI_Init (parts of it by ncclCommSplit). As in
 * NCCL, two ranks may not use one device: call cudaSetDevice first (NCCLSIM_SHARE_DEVICE=1 allows it). With a
 * nonblocking configuration every call answers ncclInProgress, and so does the first question about it.
 *
 * MPI_Test and MPI_Barrier of the program under test are replaced: a device goes on while its host waits in
 * MPI, so now and then they let it.
 */
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include "tests/sim/nccl_work.h"
#include "tests/sim/sim.h"

using cusim::Action;
using cusim::Coll;
using cusim::CommState;
using cusim::die;
using cusim::Lock;
using cusim::NcclWork;

struct ncclComm {
    std::shared_ptr<CommState> state;
    bool nonblocking = false;
    int answers_in_progress = 0;
    std::set<void *> registered;
};

namespace
{
struct Pending {
    ncclComm *comm;
    cudaStream_t stream;
    Action action;
};

struct Nccl {
    std::set<ncclComm *> comms;
    int depth = 0;
    std::vector<Pending> group;
    std::string last_error;
};

Nccl &nc()
{
    static Nccl &n = *new Nccl;
    return n;
}

ncclComm *comm_of(ncclComm_t c)
{
    if (!nc().comms.count(c))
        die("NCCL: communicator %p does not exist, or was destroyed or aborted", static_cast<void *>(c));
    return c;
}

ncclResult_t fail(ncclResult_t r, const std::string &why)
{
    nc().last_error = why;
    return r;
}

ncclResult_t answer(ncclComm *c)
{
    if (!c->nonblocking)
        return ncclSuccess;
    c->answers_in_progress = 1;
    return ncclInProgress;
}

/* ---- operations ---- */

void check_overlap(const CommState &c, const Action &a)
{
    size_t in = nccl_send_bytes(c, a), out = nccl_recv_bytes(c, a);
    size_t each = a.count * cusim::nccl_type_bytes(a.type);

    if (!in || !out || a.send + in <= a.recv || a.recv + out <= a.send)
        return;
    bool in_place = a.kind == Coll::ALL_GATHER       ? a.send == a.recv + size_t(c.rank) * each
                    : a.kind == Coll::REDUCE_SCATTER ? a.recv == a.send + size_t(c.rank) * each
                                                     : a.send == a.recv;
    if (!in_place)
        die("NCCL: %s: the buffers overlap, but not as an operation in place", nccl_action_text(a).c_str());
}

void push(ncclComm *c, cudaStream_t stream, const std::vector<Action> &actions)
{
    std::shared_ptr<CommState> state = c->state;
    cusim::Op op;

    op.name = "NCCL";
    for (const Action &a : actions) {
        std::string text = nccl_action_text(a);
        op.name += " " + text;
        cusim::require_device((text + ", sent").c_str(), a.send, nccl_send_bytes(*state, a));
        cusim::require_device((text + ", received").c_str(), a.recv, nccl_recv_bytes(*state, a));
        check_overlap(*state, a);
        op.reads(a.send, nccl_send_bytes(*state, a)).writes(a.recv, nccl_recv_bytes(*state, a));
    }
    op.bind = [state, actions](cusim::Op &o) {
        auto work = std::make_shared<NcclWork>(state, actions);
        o.ready = [work] { return work->ready(); };
        o.poll = [work] { return work->poll(); };
    };
    cusim::stream_push(stream, std::move(op));
}

void push_group()
{
    std::map<ncclComm *, std::vector<Pending>> by_comm;

    for (const Pending &p : nc().group)
        by_comm[p.comm].push_back(p);
    nc().group.clear();
    for (const auto &entry : by_comm) {
        std::vector<Action> actions;
        for (const Pending &p : entry.second) {
            if (p.stream != entry.second[0].stream)
                die("NCCL: a group with several streams is not simulated");
            actions.push_back(p.action);
        }
        push(entry.first, entry.second[0].stream, actions);
    }
}

ncclResult_t submit(Coll kind, const void *send, void *recv, size_t count, ncclDataType_t type,
                    ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream)
{
    Lock lock;
    ncclComm *c = comm_of(comm);
    CommState &s = *c->state;

    if (s.async != ncclSuccess)
        return fail(s.async, s.error);
    if (root < 0 || root >= s.size)
        return fail(ncclInvalidArgument, "root or peer " + std::to_string(root) + " is no rank");
    if (op != ncclSum && op != ncclMax && op != ncclMin)
        die("NCCL: reduction %d is not simulated", int(op));
    Action a = {kind, static_cast<const char *>(send), static_cast<char *>(recv), count, type, op, root};
    if (!nccl_send_bytes(s, a))
        a.send = nullptr;
    if (!nccl_recv_bytes(s, a))
        a.recv = nullptr;
    nc().group.push_back({c, stream, a});
    if (!nc().depth)
        push_group();
    return nc().depth ? ncclSuccess : answer(c);
}

/* ---- communicators ---- */

/* Two ranks on one device: NCCL refuses. */
ncclResult_t check_devices(const CommState &s)
{
    std::vector<int> devices(static_cast<size_t>(s.size));

    PMPI_Allgather(&s.device, 1, MPI_INT, devices.data(), 1, MPI_INT, s.mpi);
    if (getenv("NCCLSIM_SHARE_DEVICE"))
        return ncclSuccess;
    for (int a = 0; a < s.size; a++)
        for (int b = 0; b < a; b++)
            if (devices[size_t(a)] == devices[size_t(b)])
                return fail(ncclInvalidUsage, "Duplicate GPU detected : rank " + std::to_string(b) +
                                                  " and rank " + std::to_string(a) + " both on CUDA device " +
                                                  std::to_string(devices[size_t(a)]));
    return ncclSuccess;
}

ncclResult_t make(ncclComm_t *out, MPI_Comm mpi, ncclConfig_t *config)
{
    ncclComm *c = new ncclComm;

    c->state = std::make_shared<CommState>();
    CommState &s = *c->state;
    s.mpi = mpi;
    MPI_Comm_rank(mpi, &s.rank);
    MPI_Comm_size(mpi, &s.size);
    MPI_Comm_set_errhandler(mpi, MPI_ERRORS_RETURN);
    cudaGetDevice(&s.device);
    ncclResult_t r = check_devices(s);
    if (r != ncclSuccess) {
        MPI_Comm_free(&s.mpi);
        delete c;
        return r;
    }
    c->nonblocking = config && config->blocking == 0;
    nc().comms.insert(c);
    *out = c;
    return answer(c);
}
} // namespace

extern "C" {

ncclResult_t ncclGetVersion(int *v)
{
    *v = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static int n = 0;

    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "simulated %d", ++n);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int n, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    Lock lock;
    int is_there = 0, world = 0;
    MPI_Comm mpi;

    MPI_Initialized(&is_there);
    if (!is_there)
        die("NCCL is simulated over MPI: call MPI_Init before ncclCommInitRank");
    if (strncmp(id.internal, "simulated ", 10))
        die("ncclCommInitRank: the id does not come from ncclGetUniqueId");
    MPI_Comm_size(MPI_COMM_WORLD, &world);
    if (n != world)
        die("ncclCommInitRank: %d ranks, but only communicators of all %d processes are simulated", n, world);
    PMPI_Comm_split(MPI_COMM_WORLD, 0, rank, &mpi);
    return make(comm, mpi, config);
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int n, ncclUniqueId id, int rank)
{
    return ncclCommInitRankConfig(comm, n, id, rank, nullptr);
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *out, ncclConfig_t *config)
{
    Lock lock;
    MPI_Comm mpi;

    PMPI_Comm_split(comm_of(comm)->state->mpi, color == NCCL_SPLIT_NOCOLOR ? MPI_UNDEFINED : color, key,
                    &mpi);
    *out = nullptr;
    return mpi == MPI_COMM_NULL ? ncclSuccess : make(out, mpi, config);
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    Lock lock;

    return answer(comm_of(comm));
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    Lock lock;
    ncclComm *c = comm_of(comm);
    CommState &s = *c->state;

    if (s.n_done != s.n_enqueued && !s.aborted)
        die("ncclCommDestroy: %llu operations were not waited for",
            static_cast<unsigned long long>(s.n_enqueued - s.n_done));
    if (!c->registered.empty())
        die("ncclCommDestroy: %zu buffers are still registered", c->registered.size());
    nc().comms.erase(c);
    MPI_Comm_free(&s.mpi);
    delete c;
    return ncclSuccess;
}

/* What is on its way never happens; its streams go on. */
ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    Lock lock;
    ncclComm *c = comm_of(comm);

    c->state->aborted = true;
    nc().comms.erase(c);
    delete c;
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *r)
{
    Lock lock;
    ncclComm *c = comm_of(comm);

    *r = c->state->async;
    if (*r == ncclSuccess && c->answers_in_progress-- > 0)
        *r = ncclInProgress;
    else
        c->answers_in_progress = 0;
    if (*r != ncclSuccess && *r != ncclInProgress)
        nc().last_error = c->state->error;
    return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int *n)
{
    Lock lock;

    *n = comm_of(comm)->state->size;
    return ncclSuccess;
}

ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank)
{
    Lock lock;

    *rank = comm_of(comm)->state->rank;
    return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int *device)
{
    Lock lock;

    *device = comm_of(comm)->state->device;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t r)
{
    static const char *const text[] = {"no error",
                                       "unhandled cuda error",
                                       "unhandled system error",
                                       "internal error",
                                       "invalid argument",
                                       "invalid usage",
                                       "remote process exited or there was a network error",
                                       "NCCL operation in progress"};
    return r >= 0 && r <= ncclInProgress ? text[r] : "unknown result code";
}

const char *ncclGetLastError(ncclComm_t)
{
    return nc().last_error.c_str();
}

ncclResult_t ncclMemAlloc(void **p, size_t bytes)
{
    return cudaMalloc(p, bytes) == cudaSuccess ? ncclSuccess : fail(ncclUnhandledCudaError, "out of memory");
}

ncclResult_t ncclMemFree(void *p)
{
    return cudaFree(p) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t ncclCommRegister(const ncclComm_t comm, void *p, size_t bytes, void **handle)
{
    Lock lock;

    cusim::require_device("ncclCommRegister", p, bytes);
    *handle = malloc(1);
    comm_of(comm)->registered.insert(*handle);
    return ncclSuccess;
}

ncclResult_t ncclCommDeregister(const ncclComm_t comm, void *handle)
{
    Lock lock;

    if (!comm_of(comm)->registered.erase(handle))
        die("ncclCommDeregister of a handle that is not registered");
    free(handle);
    return ncclSuccess;
}

/* ---- operations ---- */

ncclResult_t ncclGroupStart(void)
{
    Lock lock;

    nc().depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    Lock lock;

    if (nc().depth < 1)
        die("ncclGroupEnd without ncclGroupStart");
    if (--nc().depth || nc().group.empty())
        return ncclSuccess;
    ncclComm *first = nc().group[0].comm;
    push_group();
    return answer(first);
}

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t n, ncclDataType_t t, ncclRedOp_t op,
                           ncclComm_t c, cudaStream_t s)
{
    return submit(Coll::ALL_REDUCE, send, recv, n, t, op, 0, c, s);
}

ncclResult_t ncclReduce(const void *send, void *recv, size_t n, ncclDataType_t t, ncclRedOp_t op, int root,
                        ncclComm_t c, cudaStream_t s)
{
    return submit(Coll::REDUCE, send, recv, n, t, op, root, c, s);
}

ncclResult_t ncclAllGather(const void *send, void *recv, size_t n, ncclDataType_t t, ncclComm_t c,
                           cudaStream_t s)
{
    return submit(Coll::ALL_GATHER, send, recv, n, t, ncclSum, 0, c, s);
}

ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t n, ncclDataType_t t, ncclRedOp_t op,
                               ncclComm_t c, cudaStream_t s)
{
    return submit(Coll::REDUCE_SCATTER, send, recv, n, t, op, 0, c, s);
}

ncclResult_t ncclBroadcast(const void *send, void *recv, size_t n, ncclDataType_t t, int root, ncclComm_t c,
                           cudaStream_t s)
{
    return submit(Coll::BROADCAST, send, recv, n, t, ncclSum, root, c, s);
}

ncclResult_t ncclSend(const void *send, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t s)
{
    return submit(Coll::SEND, send, nullptr, n, t, ncclSum, peer, c, s);
}

ncclResult_t ncclRecv(void *recv, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t s)
{
    return submit(Coll::RECV, nullptr, recv, n, t, ncclSum, peer, c, s);
}

/* ---- the host in MPI ---- */

int MPI_Test(MPI_Request *r, int *flag, MPI_Status *status)
{
    static unsigned n_waits = 0;
    int rc = PMPI_Test(r, flag, status);

    if (rc == MPI_SUCCESS && !*flag && ++n_waits % 32 == 0)
        cusim::progress_all();
    return rc;
}

int MPI_Barrier(MPI_Comm comm)
{
    MPI_Request r;
    int done = 0, rc = PMPI_Ibarrier(comm, &r);

    while (rc == MPI_SUCCESS && !done)
        rc = MPI_Test(&r, &done, MPI_STATUS_IGNORE);
    return rc;
}
}
