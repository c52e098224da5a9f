/* nccl_work - NCCL's operations over MPI.
 *
 * Collectives begin by an exchange of what each rank is about to do; when ranks differ, the process ends with
 * both. Data goes through host memory, so that MPI never holds on to device memory. Sums are made from all
 * ranks' parts in rank order, in the type itself (bf16: in fp32, rounded once), so they have the same bits on
 * all ranks.
 *
 * NCCLSIM_FAIL=rank:n makes the n-th operation that begins on a rank (from 1) fail there: the communicator's
 * asynchronous error is set, and the operation is not done before the communicator is aborted. The other
 * ranks wait for it, as they would.
 */
#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include "tests/sim/float_sim.h"
#include "tests/sim/nccl_work.h"
#include "tests/sim/sim.h"

namespace cusim
{
namespace
{
enum { HEADER_BYTES = 256, TAG = 77 };

const char *kind_name(Coll k)
{
    static const char *const names[] = {"AllReduce", "Reduce", "AllGather", "ReduceScatter",
                                        "Broadcast", "Send",   "Recv"};
    return names[int(k)];
}

const char *type_name(ncclDataType_t t)
{
    static const char *const names[] = {"int8",   "uint8",   "int32",   "uint32",  "int64",
                                        "uint64", "float16", "float32", "float64", "bfloat16"};
    return t <= ncclBfloat16 ? names[t] : "?";
}

bool reduces(Coll k)
{
    return k == Coll::ALL_REDUCE || k == Coll::REDUCE || k == Coll::REDUCE_SCATTER;
}

bool is_pair(const Action &a)
{
    return a.kind == Coll::SEND || a.kind == Coll::RECV;
}

int as_int(size_t n)
{
    if (n > INT_MAX)
        die("NCCL: %zu bytes at once are not simulated", n);
    return int(n);
}

void try_mpi(int rc, const char *what)
{
    char text[MPI_MAX_ERROR_STRING];
    int n;

    if (rc == MPI_SUCCESS)
        return;
    MPI_Error_string(rc, text, &n);
    die("NCCL: %s: MPI: %s", what, text);
}

template <class T> T combine(T a, T b, ncclRedOp_t op)
{
    return op == ncclSum ? T(a + b) : op == ncclMax ? std::max(a, b) : std::min(a, b);
}

template <class T>
void reduce_as(const char *parts, size_t stride, int n_parts, char *out, size_t n, ncclRedOp_t op)
{
    for (size_t i = 0; i < n; i++) {
        T sum, x;
        memcpy(&sum, parts + i * sizeof sum, sizeof sum);
        for (int r = 1; r < n_parts; r++) {
            memcpy(&x, parts + size_t(r) * stride + i * sizeof x, sizeof x);
            sum = combine(sum, x, op);
        }
        memcpy(out + i * sizeof sum, &sum, sizeof sum);
    }
}

void reduce_bf16(const char *parts, size_t stride, int n_parts, char *out, size_t n, ncclRedOp_t op)
{
    for (size_t i = 0; i < n; i++) {
        float sum, x;
        load_floats(&sum, parts + 2 * i, 1, true);
        for (int r = 1; r < n_parts; r++) {
            load_floats(&x, parts + size_t(r) * stride + 2 * i, 1, true);
            sum = combine(sum, x, op);
        }
        store_floats(out + 2 * i, &sum, 1, true);
    }
}

void reduce(const Action &a, const char *parts, size_t stride, int n_parts, char *out)
{
    switch (a.type) {
    case ncclFloat32:
        return reduce_as<float>(parts, stride, n_parts, out, a.count, a.op);
    case ncclFloat64:
        return reduce_as<double>(parts, stride, n_parts, out, a.count, a.op);
    case ncclInt32:
        return reduce_as<int32_t>(parts, stride, n_parts, out, a.count, a.op);
    case ncclInt64:
        return reduce_as<int64_t>(parts, stride, n_parts, out, a.count, a.op);
    case ncclUint64:
        return reduce_as<uint64_t>(parts, stride, n_parts, out, a.count, a.op);
    case ncclBfloat16:
        return reduce_bf16(parts, stride, n_parts, out, a.count, a.op);
    default:
        die("NCCL: reductions of %s are not simulated", type_name(a.type));
    }
}

/* Whether this rank's next operation is to fail. */
bool injected(int rank)
{
    static long n_begun = 0;
    const char *v = getenv("NCCLSIM_FAIL");
    int fail_rank;
    long number;

    n_begun++;
    return v && sscanf(v, "%d:%ld", &fail_rank, &number) == 2 && fail_rank == rank && number == n_begun;
}
} // namespace

size_t nccl_type_bytes(ncclDataType_t t)
{
    static const size_t bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    if (t > ncclBfloat16)
        die("NCCL: data type %d is not simulated", int(t));
    return bytes[t];
}

std::string nccl_action_text(const Action &a)
{
    std::string s = std::string(kind_name(a.kind)) + "(" + std::to_string(a.count) + " " + type_name(a.type);
    if (reduces(a.kind))
        s += a.op == ncclSum ? " sum" : a.op == ncclMax ? " max" : " min";
    if (a.kind == Coll::BROADCAST || a.kind == Coll::REDUCE || is_pair(a))
        s += (is_pair(a) ? " peer " : " root ") + std::to_string(a.root);
    return s + ")";
}

size_t nccl_send_bytes(const CommState &c, const Action &a)
{
    size_t n = a.count * nccl_type_bytes(a.type);
    if (a.kind == Coll::RECV || (a.kind == Coll::BROADCAST && a.root != c.rank))
        return 0;
    return a.kind == Coll::REDUCE_SCATTER ? n * size_t(c.size) : n;
}

size_t nccl_recv_bytes(const CommState &c, const Action &a)
{
    size_t n = a.count * nccl_type_bytes(a.type);
    if (a.kind == Coll::SEND || (a.kind == Coll::REDUCE && a.root != c.rank))
        return 0;
    return a.kind == Coll::ALL_GATHER ? n * size_t(c.size) : n;
}

NcclWork::NcclWork(std::shared_ptr<CommState> comm, std::vector<Action> actions)
    : comm_(std::move(comm)), actions_(std::move(actions)), number_(++comm_->n_enqueued)
{
    for (const Action &a : actions_)
        if (!is_pair(a))
            text_ += (text_.empty() ? "" : " + ") + nccl_action_text(a);
}

bool NcclWork::ready() const
{
    return comm_->aborted || comm_->n_done + 1 == number_;
}

void NcclWork::post_header()
{
    char mine[HEADER_BYTES] = {};

    snprintf(mine, sizeof mine, "%s", text_.c_str());
    headers_.assign(size_t(comm_->size) * HEADER_BYTES, 0);
    std::vector<char> own(mine, mine + HEADER_BYTES);
    staged_.push_back({own, {}});
    requests_.resize(1);
    try_mpi(PMPI_Iallgather(staged_[0].send.data(), HEADER_BYTES, MPI_BYTE, headers_.data(), HEADER_BYTES,
                            MPI_BYTE, comm_->mpi, &requests_[0]),
            "header");
}

void NcclWork::compare_headers()
{
    for (int r = 1; r < comm_->size; r++) {
        const char *other = headers_.data() + size_t(r) * HEADER_BYTES;
        if (strcmp(headers_.data(), other))
            die("NCCL: ranks do different things: operation %llu of the communicator is %s on rank 0, %s on "
                "rank %d",
                static_cast<unsigned long long>(number_), headers_.data(), other, r);
    }
}

void NcclWork::post_one(const Action &a, Staged &s)
{
    int each = as_int(a.count * nccl_type_bytes(a.type));
    size_t all = size_t(each) * size_t(comm_->size);
    MPI_Request r;
    int rc;

    as_int(all);
    if (nccl_send_bytes(*comm_, a))
        s.send.assign(a.send, a.send + nccl_send_bytes(*comm_, a));
    switch (a.kind) {
    case Coll::ALL_REDUCE:
    case Coll::ALL_GATHER:
        s.recv.resize(all);
        rc = PMPI_Iallgather(s.send.data(), each, MPI_BYTE, s.recv.data(), each, MPI_BYTE, comm_->mpi, &r);
        break;
    case Coll::REDUCE:
        s.recv.resize(a.root == comm_->rank ? all : 0);
        rc = PMPI_Igather(s.send.data(), each, MPI_BYTE, s.recv.data(), each, MPI_BYTE, a.root, comm_->mpi,
                          &r);
        break;
    case Coll::REDUCE_SCATTER:
        s.recv.resize(all);
        rc = PMPI_Ialltoall(s.send.data(), each, MPI_BYTE, s.recv.data(), each, MPI_BYTE, comm_->mpi, &r);
        break;
    case Coll::BROADCAST:
        s.recv.resize(size_t(each));
        if (a.root == comm_->rank)
            s.recv = s.send;
        rc = PMPI_Ibcast(s.recv.data(), each, MPI_BYTE, a.root, comm_->mpi, &r);
        break;
    case Coll::SEND:
        rc = PMPI_Isend(s.send.data(), each, MPI_BYTE, a.root, TAG, comm_->mpi, &r);
        break;
    default:
        s.recv.resize(size_t(each));
        rc = PMPI_Irecv(s.recv.data(), each, MPI_BYTE, a.root, TAG, comm_->mpi, &r);
    }
    try_mpi(rc, kind_name(a.kind));
    requests_.push_back(r);
}

void NcclWork::post_data()
{
    staged_.assign(actions_.size(), {});
    requests_.clear();
    for (size_t i = 0; i < actions_.size(); i++)
        post_one(actions_[i], staged_[i]);
}

void NcclWork::finish_one(const Action &a, Staged &s, size_t i)
{
    size_t each = a.count * nccl_type_bytes(a.type), bytes = nccl_recv_bytes(*comm_, a);

    if (a.kind == Coll::RECV) {
        int got = 0;
        try_mpi(statuses_[i].MPI_ERROR, "Recv (the peer sends more?)");
        MPI_Get_count(&statuses_[i], MPI_BYTE, &got);
        if (size_t(got) != each)
            die("NCCL: rank %d receives %zu bytes from rank %d, which sends %d", comm_->rank, each, a.root,
                got);
    }
    if (!bytes)
        return;
    if (reduces(a.kind))
        reduce(a, s.recv.data(), each, comm_->size, a.recv);
    else
        memcpy(a.recv, s.recv.data(), bytes);
}

bool NcclWork::requests_done()
{
    int done = 0;

    statuses_.assign(requests_.size(), MPI_Status());
    int rc = PMPI_Testall(int(requests_.size()), requests_.data(), &done, statuses_.data());
    if (rc != MPI_ERR_IN_STATUS)
        try_mpi(rc, "progress");
    return done || rc == MPI_ERR_IN_STATUS;
}

bool NcclWork::poll()
{
    if (comm_->aborted && state_ != State::DONE) {
        /* MPI may still write to what was posted: it is given up, not freed. */
        new std::vector<Staged>(std::move(staged_));
        new std::vector<char>(std::move(headers_));
        state_ = State::DONE;
    }
    if (state_ == State::BEGIN) {
        if (injected(comm_->rank)) {
            comm_->async = ncclRemoteError;
            comm_->error = "injected by NCCLSIM_FAIL";
            state_ = State::FAILED;
        } else if (text_.empty()) {
            post_data();
            state_ = State::DATA;
        } else {
            post_header();
            state_ = State::HEADER;
        }
    }
    if (state_ == State::HEADER && requests_done()) {
        compare_headers();
        post_data();
        state_ = State::DATA;
    }
    if (state_ == State::DATA && requests_done()) {
        for (size_t i = 0; i < actions_.size(); i++)
            finish_one(actions_[i], staged_[i], i);
        staged_.clear();
        comm_->n_done++;
        state_ = State::DONE;
    }
    return state_ == State::DONE;
}
} // namespace cusim
