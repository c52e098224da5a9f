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
#include "tests/sim/sim_engine.h"

namespace cusim
{
Engine &en()
{
    static Engine &e = *new Engine;
    return e;
}

static double now_ms()
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

static void finish(CUstream_st *s)
{
    Entry e = std::move(s->queue.front());

    s->queue.pop_front();
    s->now_ms += e.op.ms;
    if (e.op.is_kernel)
        e.op.ranges = shadow_ranges();
    order_check(e.op.name, s->actor, e.clock, e.op.ranges);
}

bool advance(CUstream_st *s, int depth)
{
    if (s->queue.empty())
        return false;
    Entry &e = s->queue.front();
    if (e.what == What::WAIT) {
        if (e.record->done) {
            s->now_ms = std::max(s->now_ms, e.record->at_ms);
            s->queue.pop_front();
            return true;
        }
        if (depth > 1000)
            die("streams wait for each other in a circle");
        return advance(e.record->stream, depth + 1);
    }
    if (e.what == What::RECORD) {
        e.record->done = true;
        e.record->at_ms = s->now_ms;
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
        if (now_ms() - e.begun_ms > 1e3 * settings().timeout_s)
            die("\"%s\" on %s has waited for other ranks for %g s", e.op.name.c_str(), s->name.c_str(),
                settings().timeout_s);
        return false;
    }
    finish(s);
    return true;
}

static bool in_flight()
{
    for (CUstream_st *s : en().streams)
        if (!s->queue.empty() && s->queue.front().begun)
            return true;
    return false;
}

/* One step towards `target`; with a seed, a step of any stream. */
static bool step(CUstream_st *target)
{
    if (!settings().random)
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

void run_until(CUstream_st *target, const std::function<bool()> &done)
{
    Running running;
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
        lock_yield();
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
    if (settings().eager) {
        Running running;
        while (advance(s))
            ;
    }
}

static CUgraph_st *capture_of_this_thread()
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
        clock_join(c, g->records[size_t(record)]);
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
    if (++en().n_syncs == settings().fail_sync)
        return set_error(cudaErrorLaunchFailure);
    return cudaSuccess;
}
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
