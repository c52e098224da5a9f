/* nccl_work - one NCCL operation, or group of them, as it runs: see nccl_work.cpp. */
#ifndef TESTS_SIM_NCCL_WORK_H
#define TESTS_SIM_NCCL_WORK_H

#include <memory>
#include <string>
#include <vector>
#include <mpi.h>
#include <nccl.h>

namespace cusim
{
enum class Coll { ALL_REDUCE, REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST, SEND, RECV };

struct Action {
    Coll kind;
    const char *send; /* NULL where the rank sends nothing */
    char *recv;       /* NULL where it receives nothing */
    size_t count;     /* elements; of ALL_GATHER and REDUCE_SCATTER a rank's */
    ncclDataType_t type;
    ncclRedOp_t op;
    int root; /* or the peer of SEND and RECV */
};

/* A communicator's state, which operations that are still on queues hold on to. */
struct CommState {
    MPI_Comm mpi = MPI_COMM_NULL;
    int rank = 0, size = 0, device = 0;
    uint64_t n_enqueued = 0, n_done = 0;
    ncclResult_t async = ncclSuccess;
    std::string error;
    bool aborted = false;
};

size_t nccl_type_bytes(ncclDataType_t t);
/* "AllReduce(64 float32 sum)" */
std::string nccl_action_text(const Action &a);
/* What the rank reads of a.send, and writes of a.recv, in bytes. */
size_t nccl_send_bytes(const CommState &c, const Action &a);
size_t nccl_recv_bytes(const CommState &c, const Action &a);

class NcclWork
{
  public:
    NcclWork(std::shared_ptr<CommState> comm, std::vector<Action> actions);
    /* Operations of a communicator run in the order in which they were put on streams. */
    bool ready() const;
    /* Goes on; true when done. */
    bool poll();

  private:
    struct Staged {
        std::vector<char> send, recv;
    };
    enum class State { BEGIN, HEADER, DATA, FAILED, DONE };

    void post_header();
    void compare_headers();
    void post_data();
    void post_one(const Action &a, Staged &s);
    void finish_one(const Action &a, Staged &s, size_t i);
    bool requests_done();

    std::shared_ptr<CommState> comm_;
    std::vector<Action> actions_;
    std::vector<Staged> staged_;
    std::vector<MPI_Request> requests_;
    std::vector<MPI_Status> statuses_;
    std::vector<char> headers_;
    std::string text_;
    uint64_t number_; /* of the communicator's operations, from 1 */
    State state_ = State::BEGIN;
};
} // namespace cusim

#endif
