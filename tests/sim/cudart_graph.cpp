/* cudart_graph - the CUDA runtime's functions for captures and graphs. */
#include <algorithm>
#include "tests/sim/sim_engine.h"

using cusim::die;
using cusim::en;
using cusim::Lock;
using cusim::Op;
using cusim::stream_of;
using cusim::What;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    Lock lock;
    CUstream_st *s = stream_of(stream);

    if (s == &en().null_stream)
        die("cudaStreamBeginCapture of the null stream");
    if (s->capture)
        die("cudaStreamBeginCapture of %s, which is captured already", s->name.c_str());
    CUgraph_st *g = new CUgraph_st;
    g->mode = mode;
    g->thread = std::this_thread::get_id();
    en().graphs.insert(g);
    cusim::join_capture(s, g);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    Lock lock;
    CUstream_st *s = stream_of(stream);
    CUgraph_st *g = s->capture;

    if (!g || s->lane != 0)
        die("cudaStreamEndCapture of %s, on which no capture was begun", s->name.c_str());
    if (g->mode != cudaStreamCaptureModeRelaxed && g->thread != std::this_thread::get_id())
        die("cudaStreamEndCapture in another thread than cudaStreamBeginCapture");
    for (size_t l = 1; l < g->lanes.size(); l++)
        if (cusim::clock_of(g->lane_clock[0], unsigned(l)) < cusim::clock_of(g->lane_clock[l], unsigned(l)))
            die("cudaStreamEndCapture: the last work on %s was not joined to %s by an event",
                g->lanes[l]->name.c_str(), s->name.c_str());
    for (CUstream_st *lane : g->lanes) {
        lane->capture = nullptr;
        lane->lane = -1;
    }
    g->open = false;
    *graph = g;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status)
{
    Lock lock;

    *status = stream_of(stream)->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

static CUgraph_st *graph_of(cudaGraph_t g)
{
    if (!en().graphs.count(g))
        die("graph %p does not exist, or was destroyed", static_cast<void *>(g));
    if (g->open)
        die("graph %p is still being captured", static_cast<void *>(g));
    return g;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n)
{
    Lock lock;
    CUgraph_st *g = graph_of(graph);

    if (nodes)
        die("cudaGraphGetNodes: only the number of nodes is simulated");
    *n = size_t(std::count_if(g->nodes.begin(), g->nodes.end(),
                              [](const cusim::Node &x) { return x.what == What::RUN; }));
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    Lock lock;
    CUgraph_st *g = graph_of(graph);

    cusim::forbid_in_capture("cudaGraphInstantiate");
    CUgraphExec_st *x = new CUgraphExec_st{g->nodes, int(g->records.size()), {}};
    for (size_t l = 0; l < g->lanes.size(); l++) {
        x->lanes.push_back(std::make_unique<CUstream_st>());
        en().add(x->lanes.back().get(), "lane " + std::to_string(l) + " of a graph");
    }
    en().execs.insert(x);
    *exec = x;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    return cudaGraphInstantiate(exec, graph, flags);
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t)
{
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t stream)
{
    Lock lock;
    CUstream_st *s = stream_of(stream);

    if (!en().execs.count(x))
        die("graph exec %p does not exist, or was destroyed", static_cast<void *>(x));
    if (s->capture)
        die("cudaGraphLaunch into a capture is not simulated");
    cusim::order_with_null(s);
    cusim::RecordPtr begin = cusim::put_record(s);
    for (auto &lane : x->lanes)
        cusim::put_wait(lane.get(), begin);
    std::vector<cusim::RecordPtr> records(static_cast<size_t>(x->n_records));
    for (const cusim::Node &n : x->nodes) {
        CUstream_st *lane = x->lanes[size_t(n.lane)].get();
        if (n.what == What::RECORD) {
            records[size_t(n.record)] = cusim::put_record(lane);
        } else if (n.what == What::WAIT) {
            cusim::put_wait(lane, records[size_t(n.record)]);
        } else {
            Op op = n.op;
            if (op.bind)
                op.bind(op);
            cusim::put(lane, {What::RUN, std::move(op), nullptr, {}});
        }
    }
    for (auto &lane : x->lanes)
        cusim::put_wait(s, cusim::put_record(lane.get()));
    cusim::run_if_eager(s);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    Lock lock;

    en().graphs.erase(graph_of(graph));
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x)
{
    Lock lock;
    std::vector<CUstream_st *> &all = en().streams;

    if (!en().execs.erase(x))
        die("cudaGraphExecDestroy of %p: no such graph exec, or destroyed twice", static_cast<void *>(x));
    for (auto &lane : x->lanes) { /* CUDA, too, keeps it until it has run */
        cusim::run_until(lane.get(), [&lane] { return lane->queue.empty(); });
        all.erase(std::find(all.begin(), all.end(), lane.get()));
    }
    delete x;
    return cudaSuccess;
}
}
