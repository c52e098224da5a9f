/* sim_stream - streams, events and captured graphs.
 *
 * A stream is a queue. Nothing runs until something waits for it (lazy); then only what that needs, or, with
 * CUSIM_SEED, anything that may run, drawn at random, until the awaited is done. Operations that wait for
 * other ranks (NCCL's) are begun and polled, so that other streams go on meanwhile.
 *
 * A capture writes the same entries into a graph, with a lane for each stream that takes part. The launch of
 * a graph puts them on streams of the graph's own, one a lane: begun after what lies on the launching stream,
 * which goes on after all of them. So the branches of a graph are as independent of each other as streams
 * are.
 */
#include <algorithm>
#include <chrono>
#include <deque>
#include <random>
#include <set>
#include <thread>
#include "tests/sim/sim.h"

using cusim::Clock;
using cusim::clock_join;
using cusim::die;
using cusim::Lock;
using cusim::Op;

namespace
{
/* One recording of an event. */
struct Record {
    bool done = false, asked = false;
    CUstream_st *stream = nullptr;
    Clock clock;
    double at_ms = 0;
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
} // namespace

struct CUstream_st {
    unsigned actor = 0;
    std::string name;
    bool blocking = false; /* ordered with the null stream */
    std::deque<Entry> queue;
    Clock clock; /* of the last entry */
    CUgraph_st *capture = nullptr;
    int lane = -1;
};

struct CUevent_st {
    bool timing = true;
    RecordPtr record;
    CUgraph_st *capture = nullptr; /* recorded in this capture … */
    int capture_record = -1;       /* … as this */
};

struct CUgraph_st {
    std::vector<Node> nodes;
    std::vector<CUstream_st *> lanes; /* the streams that took part; 0 is the origin */
    std::vector<Clock> lane_clock;    /* by lane: how many nodes of each lane are in its past */
    std::vector<Clock> records;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::thread::id thread;
    bool open = true;
};

struct CUgraphExec_st {
    std::vector<Node> nodes;
    int n_records;
    std::vector<std::unique_ptr<CUstream_st>> lanes;
};

namespace
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

Engine &en()
{
    static Engine &e = *new Engine;
    return e;
}

double now_ms()
{
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

CUstream_st *stream_of(cudaStream_t s)
{
    if (!s || s == cudaStreamLegacy)
        return &en().null_stream;
    if (std::find(en().streams.begin(), en().streams.end(), s) == en().streams.end())
        die("stream %p does not exist, or was destroyed", static_cast<void *>(s));
    return s;
}

CUevent_st *event_of(cudaEvent_t e)
{
    if (!en().events.count(e))
        die("event %p does not exist, or was destroyed", static_cast<void *>(e));
    return e;
}

/* ---- running ---- */

void finish(CUstream_st *s)
{
    Entry e = std::move(s->queue.front());

    s->queue.pop_front();
    if (e.op.is_kernel)
        e.op.ranges = cusim::shadow_ranges();
    cusim::order_check(e.op.name, s->actor, e.clock, e.op.ranges);
}

/* One entry of s, or of what it waits for; false when nothing can be done but wait. */
bool advance(CUstream_st *s, int depth = 0)
{
    if (s->queue.empty())
        return false;
    Entry &e = s->queue.front();
    if (e.what == What::WAIT) {
        if (e.record->done) {
            s->queue.pop_front();
            return true;
        }
        if (depth > 1000)
            die("streams wait for each other in a circle");
        return advance(e.record->stream, depth + 1);
    }
    if (e.what == What::RECORD) {
        e.record->done = true;
        e.record->at_ms = now_ms();
        s->queue.pop_front();
        return true;
    }
    if (!e.begun) {
        if (e.op.ready && !e.op.ready())
            return false;
        e.begun = true;
        e.begun_ms = now_ms();
        if (e.op.run)
            e.op.run();
    }
    if (e.op.poll && !e.op.poll()) {
        if (now_ms() - e.begun_ms > 1e3 * cusim::settings().timeout_s)
            die("\"%s\" on %s has waited for other ranks for %g s", e.op.name.c_str(), s->name.c_str(),
                cusim::settings().timeout_s);
        return false;
    }
    finish(s);
    return true;
}

bool in_flight()
{
    for (CUstream_st *s : en().streams)
        if (!s->queue.empty() && s->queue.front().begun)
            return true;
    return false;
}

/* One step towards `target`; with a seed, a step of any stream. */
bool step(CUstream_st *target)
{
    if (!cusim::settings().random)
        return advance(target);
    CUstream_st *s = en().streams[en().rng() % en().streams.size()];
    return advance(s) || advance(target);
}

bool progress_others()
{
    bool any = false;

    for (size_t i = 0; i < en().streams.size(); i++)
        any |= advance(en().streams[i]);
    return any;
}

template <class Done> void run_until(CUstream_st *target, Done done)
{
    cusim::Running running;
    double stuck_since = 0;

    while (!done()) {
        if (step(target)) {
            stuck_since = 0;
            continue;
        }
        if (!in_flight()) {
            if (!progress_others())
                die("deadlock: %s waits for something that never comes", target->name.c_str());
            continue;
        }
        /* For other ranks. What they wait for may lie on another stream here. */
        if (!stuck_since)
            stuck_since = now_ms();
        if (now_ms() - stuck_since > 2 && progress_others())
            continue;
        cusim::lock_yield();
    }
}

/* ---- putting work on queues ---- */

void put(CUstream_st *s, Entry e)
{
    clock_join(s->clock, en().host_clock);
    if (e.what == What::WAIT)
        clock_join(s->clock, e.record->clock);
    if (s->clock.size() <= s->actor)
        s->clock.resize(s->actor + 1);
    s->clock[s->actor]++;
    e.clock = s->clock;
    if (e.what == What::RECORD) {
        e.record->stream = s;
        e.record->clock = s->clock;
    }
    s->queue.push_back(std::move(e));
}

RecordPtr put_record(CUstream_st *s)
{
    RecordPtr r = std::make_shared<Record>();
    put(s, {What::RECORD, {}, r, {}});
    return r;
}

void put_wait(CUstream_st *s, const RecordPtr &r)
{
    put(s, {What::WAIT, {}, r, {}});
}

/* The null stream's work begins after all earlier work of blocking streams, and the other way round. */
void order_with_null(CUstream_st *s)
{
    if (s != &en().null_stream) {
        if (s->blocking && !en().null_stream.queue.empty())
            put_wait(s, put_record(&en().null_stream));
        return;
    }
    for (CUstream_st *o : std::vector<CUstream_st *>(en().streams)) {
        if (!o->blocking)
            continue;
        if (o->capture)
            die("work on the null stream while the blocking stream %s is captured", o->name.c_str());
        put_wait(s, put_record(o));
    }
}

void run_if_eager(CUstream_st *s)
{
    if (cusim::settings().eager) {
        cusim::Running running;
        while (advance(s))
            ;
    }
}

CUgraph_st *capture_of_this_thread()
{
    for (CUgraph_st *g : en().graphs)
        if (g->open && (g->mode == cudaStreamCaptureModeGlobal || g->thread == std::this_thread::get_id()))
            return g;
    return nullptr;
}

void put_node(CUstream_st *s, What what, int record, Op op)
{
    CUgraph_st *g = s->capture;
    Clock &c = g->lane_clock[size_t(s->lane)];

    if (what == What::WAIT)
        cusim::clock_join(c, g->records[size_t(record)]);
    if (c.size() <= size_t(s->lane))
        c.resize(size_t(s->lane) + 1);
    c[size_t(s->lane)]++;
    if (what == What::RECORD)
        g->records.push_back(c);
    g->nodes.push_back({what, s->lane, record, std::move(op)});
}

void join_capture(CUstream_st *s, CUgraph_st *g)
{
    s->capture = g;
    s->lane = int(g->lanes.size());
    g->lanes.push_back(s);
    g->lane_clock.emplace_back();
}

cudaError_t host_wait(CUstream_st *s, const RecordPtr &r)
{
    run_until(s, [&] { return r->done; });
    clock_join(en().host_clock, r->clock);
    if (++en().n_syncs == cusim::settings().fail_sync)
        return cusim::set_error(cudaErrorLaunchFailure);
    return cudaSuccess;
}
} // namespace

namespace cusim
{
Op &Op::reads(const void *p, size_t bytes)
{
    uintptr_t a = reinterpret_cast<uintptr_t>(p);
    if (bytes)
        ranges.push_back({a, a + bytes, false});
    return *this;
}

Op &Op::writes(const void *p, size_t bytes)
{
    uintptr_t a = reinterpret_cast<uintptr_t>(p);
    if (bytes)
        ranges.push_back({a, a + bytes, true});
    return *this;
}

void stream_push(cudaStream_t stream, Op op)
{
    CUstream_st *s = stream_of(stream);

    if (s->capture)
        return put_node(s, What::RUN, -1, std::move(op));
    order_with_null(s);
    if (op.bind)
        op.bind(op);
    put(s, {What::RUN, std::move(op), nullptr, {}});
    run_if_eager(s);
}

bool stream_captures(cudaStream_t s)
{
    return stream_of(s)->capture != nullptr;
}

void forbid_in_capture(const char *caller)
{
    CUgraph_st *g = capture_of_this_thread();
    if (g && g->mode != cudaStreamCaptureModeRelaxed)
        die("%s during a capture", caller);
}

bool progress_all()
{
    Lock lock;
    Running running;
    return progress_others();
}
} // namespace cusim

/* ---- the CUDA runtime's functions ---- */

extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int)
{
    Lock lock;

    *s = new CUstream_st;
    (*s)->blocking = !(flags & cudaStreamNonBlocking);
    en().add(*s, "stream " + std::to_string(++en().n_named));
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    return cudaStreamCreateWithPriority(s, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *s)
{
    return cudaStreamCreateWithPriority(s, cudaStreamDefault, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    Lock lock;
    CUstream_st *s = stream_of(stream);
    std::vector<CUstream_st *> &all = en().streams;

    if (s == &en().null_stream)
        die("cudaStreamDestroy of the null stream");
    if (s->capture)
        die("cudaStreamDestroy of %s, which is captured", s->name.c_str());
    for (const Entry &e : s->queue)
        if (e.what == What::RUN)
            die("cudaStreamDestroy of %s, on which \"%s\" was not waited for", s->name.c_str(),
                e.op.name.c_str());
    run_until(s, [s] { return s->queue.empty(); }); /* events that others may wait for */
    all.erase(std::find(all.begin(), all.end(), s));
    delete s;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    Lock lock;
    CUstream_st *s = stream_of(stream);

    if (s->capture)
        die("cudaStreamSynchronize of %s, which is captured", s->name.c_str());
    cusim::forbid_in_capture("cudaStreamSynchronize");
    return host_wait(s, put_record(s));
}

/* The first question finds work not ready, further ones make it go on. */
static cudaError_t query(CUstream_st *s, const RecordPtr &r)
{
    if (!r->done && r->asked) {
        cusim::Running running;
        while (!r->done && (advance(s) || progress_others()))
            ;
    }
    r->asked = true;
    if (!r->done)
        return cudaErrorNotReady;
    clock_join(en().host_clock, r->clock);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    Lock lock;
    CUstream_st *s = stream_of(stream);

    if (s->capture)
        die("cudaStreamQuery of %s, which is captured", s->name.c_str());
    cusim::forbid_in_capture("cudaStreamQuery");
    if (s->queue.empty() || s->queue.back().what != What::RECORD)
        put_record(s);
    RecordPtr last = s->queue.back().record;
    return query(s, last);
}

cudaError_t cudaDeviceSynchronize(void)
{
    Lock lock;
    cudaError_t worst = cudaSuccess;

    for (CUgraph_st *g : en().graphs)
        if (g->open)
            die("cudaDeviceSynchronize during a capture");
    for (CUstream_st *s : std::vector<CUstream_st *>(en().streams)) {
        cudaError_t e = host_wait(s, put_record(s));
        worst = e != cudaSuccess ? e : worst;
    }
    return worst;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    Lock lock;

    *e = new CUevent_st;
    (*e)->timing = !(flags & cudaEventDisableTiming);
    en().events.insert(*e);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *e)
{
    return cudaEventCreateWithFlags(e, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    Lock lock;

    en().events.erase(event_of(event));
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    Lock lock;
    CUevent_st *e = event_of(event);
    CUstream_st *s = stream_of(stream);

    if (s->capture) {
        e->capture = s->capture;
        e->capture_record = int(s->capture->records.size());
        e->record = nullptr;
        put_node(s, What::RECORD, e->capture_record, {});
        return cudaSuccess;
    }
    order_with_null(s);
    e->capture = nullptr;
    e->record = put_record(s);
    run_if_eager(s);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    Lock lock;
    CUevent_st *e = event_of(event);
    CUstream_st *s = stream_of(stream);

    if (e->capture) {
        if (!en().graphs.count(e->capture) || !e->capture->open)
            die("%s waits for an event that was last recorded in a capture which has ended", s->name.c_str());
        if (s->capture && s->capture != e->capture)
            die("%s waits for an event of another capture", s->name.c_str());
        if (!s->capture)
            join_capture(s, e->capture);
        put_node(s, What::WAIT, e->capture_record, {});
        return cudaSuccess;
    }
    if (!e->record)
        die("%s waits for an event that was never recorded: it would wait for nothing", s->name.c_str());
    if (s->capture)
        die("%s, which is captured, waits for an event that was recorded outside of the capture",
            s->name.c_str());
    put_wait(s, e->record);
    return cudaSuccess;
}

static CUevent_st *event_for_host(cudaEvent_t event, const char *caller)
{
    CUevent_st *e = event_of(event);

    cusim::forbid_in_capture(caller);
    if (e->capture)
        die("%s of an event that was last recorded in a capture", caller);
    if (!e->record)
        die("%s of an event that was never recorded", caller);
    return e;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    Lock lock;
    CUevent_st *e = event_for_host(event, "cudaEventSynchronize");

    return host_wait(e->record->stream, e->record);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    Lock lock;
    CUevent_st *e = event_for_host(event, "cudaEventQuery");

    return query(e->record->stream, e->record);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    Lock lock;
    CUevent_st *a = event_for_host(from, "cudaEventElapsedTime"),
               *b = event_for_host(to, "cudaEventElapsedTime");

    if (!a->timing || !b->timing)
        die("cudaEventElapsedTime of an event made with cudaEventDisableTiming");
    if (!a->record->done || !b->record->done)
        return cudaErrorNotReady;
    *ms = float(b->record->at_ms - a->record->at_ms);
    return cudaSuccess;
}

/* ---- capture and graphs ---- */

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
    join_capture(s, g);
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
    *n = size_t(
        std::count_if(g->nodes.begin(), g->nodes.end(), [](const Node &x) { return x.what == What::RUN; }));
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
    order_with_null(s);
    RecordPtr begin = put_record(s);
    for (auto &lane : x->lanes)
        put_wait(lane.get(), begin);
    std::vector<RecordPtr> records(static_cast<size_t>(x->n_records));
    for (const Node &n : x->nodes) {
        CUstream_st *lane = x->lanes[size_t(n.lane)].get();
        if (n.what == What::RECORD) {
            records[size_t(n.record)] = put_record(lane);
        } else if (n.what == What::WAIT) {
            put_wait(lane, records[size_t(n.record)]);
        } else {
            Op op = n.op;
            if (op.bind)
                op.bind(op);
            put(lane, {What::RUN, std::move(op), nullptr, {}});
        }
    }
    for (auto &lane : x->lanes)
        put_wait(s, put_record(lane.get()));
    run_if_eager(s);
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
    for (auto &lane : x->lanes) {
        for (const Entry &e : lane->queue)
            if (e.what == What::RUN)
                die("cudaGraphExecDestroy while \"%s\" was not waited for", e.op.name.c_str());
        all.erase(std::find(all.begin(), all.end(), lane.get()));
    }
    delete x;
    return cudaSuccess;
}
}
