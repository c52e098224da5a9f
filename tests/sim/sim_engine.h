/* sim_engine - inside of streams, events and graphs: shared by sim_stream.cpp, which runs them, and
 * cudart_stream.cpp and cudart_graph.cpp, which are the CUDA runtime's functions for them. */
#ifndef TESTS_SIM_SIM_ENGINE_H
#define TESTS_SIM_SIM_ENGINE_H

#include <deque>
#include <random>
#include <set>
#include <thread>
#include "tests/sim/sim.h"

namespace cusim
{
/* One recording of an event. */
struct Record {
    bool done = false, asked = false;
    CUstream_st *stream = nullptr;
    Clock clock;
    double at_ms = 0; /* on the clock of its stream */
};
using RecordPtr = std::shared_ptr<Record>;

enum class What { RUN, RECORD, WAIT };

struct Entry {
    What what;
    Op op;
    RecordPtr record;
    Clock clock;
    bool begun = false;
    double begun_ms = 0;
};

/* In a graph, records have numbers. */
struct Node {
    What what;
    int lane, record;
    Op op;
};
} // namespace cusim

struct CUstream_st {
    unsigned actor = 0;
    std::string name;
    bool blocking = false; /* ordered with the null stream */
    std::deque<cusim::Entry> queue;
    cusim::Clock clock; /* of the last entry */
    double now_ms = 0;  /* what the work so far would have taken; waits for events wait for other streams' */
    CUgraph_st *capture = nullptr;
    int lane = -1;
};

struct CUevent_st {
    bool timing = true;
    cusim::RecordPtr record;
    CUgraph_st *capture = nullptr; /* recorded in this capture … */
    int capture_record = -1;       /* … as this */
};

struct CUgraph_st {
    std::vector<cusim::Node> nodes;
    std::vector<CUstream_st *> lanes;     /* the streams that took part; 0 is the origin */
    std::vector<cusim::Clock> lane_clock; /* by lane: how many nodes of each lane are in its past */
    std::vector<cusim::Clock> records;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::thread::id thread;
    bool open = true;
};

struct CUgraphExec_st {
    std::vector<cusim::Node> nodes;
    int n_records;
    std::vector<std::unique_ptr<CUstream_st>> lanes;
};

namespace cusim
{
struct Engine {
    CUstream_st null_stream;
    std::vector<CUstream_st *> streams; /* all that can hold work, lanes of graphs included */
    std::set<CUevent_st *> events;
    std::set<CUgraph_st *> graphs;
    std::set<CUgraphExec_st *> execs;
    unsigned n_actors = 1; /* 0 is the host */
    Clock host_clock;
    std::mt19937 rng;
    long n_syncs = 0;
    unsigned n_named = 0;

    Engine()
    {
        add(&null_stream, "the null stream");
        rng.seed(cusim::settings().seed);
    }
    void add(CUstream_st *s, const std::string &name)
    {
        s->actor = n_actors++;
        s->name = name;
        streams.push_back(s);
    }
};

Engine &en();
/* Die when there is none. */
CUstream_st *stream_of(cudaStream_t s);
CUevent_st *event_of(cudaEvent_t e);

/* One entry of s, or of what it waits for; false when nothing can be done but wait. */
bool advance(CUstream_st *s, int depth = 0);
bool progress_others();
/* Runs what may run until done() is true; target is what that needs. */
void run_until(CUstream_st *target, const std::function<bool()> &done);
/* What the host waits for is then in the past of all that it puts on streams. */
cudaError_t host_wait(CUstream_st *s, const RecordPtr &r);

void put(CUstream_st *s, Entry e);
RecordPtr put_record(CUstream_st *s);
void put_wait(CUstream_st *s, const RecordPtr &r);
/* The null stream's work begins after all earlier work of blocking streams, and the other way round. */
void order_with_null(CUstream_st *s);
void run_if_eager(CUstream_st *s);
/* In a capture: an entry of the graph; the stream becomes a lane of it. */
void put_node(CUstream_st *s, What what, int record, Op op);
void join_capture(CUstream_st *s, CUgraph_st *g);
} // namespace cusim

#endif
