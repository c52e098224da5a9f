/* cudart_stream - the CUDA runtime's functions for streams and events. */
#include <algorithm>
#include "tests/sim/sim_engine.h"

using cusim::die;
using cusim::en;
using cusim::event_of;
using cusim::Lock;
using cusim::Op;
using cusim::stream_of;
using cusim::What;

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
    for (const cusim::Entry &e : s->queue)
        if (e.what == What::RUN)
            die("cudaStreamDestroy of %s, on which \"%s\" was not waited for", s->name.c_str(),
                e.op.name.c_str());
    cusim::run_until(s, [s] { return s->queue.empty(); }); /* events that others may wait for */
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
    return cusim::host_wait(s, cusim::put_record(s));
}

/* The first question finds work not ready, further ones make it go on. */
static cudaError_t query(CUstream_st *s, const cusim::RecordPtr &r)
{
    if (!r->done && r->asked) {
        cusim::Running running;
        while (!r->done && (cusim::advance(s) || cusim::progress_others()))
            ;
    }
    r->asked = true;
    if (!r->done)
        return cudaErrorNotReady;
    cusim::clock_join(en().host_clock, r->clock);
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
        cusim::put_record(s);
    cusim::RecordPtr last = s->queue.back().record;
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
        cudaError_t e = cusim::host_wait(s, cusim::put_record(s));
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
        cusim::put_node(s, What::RECORD, e->capture_record, {});
        return cudaSuccess;
    }
    cusim::order_with_null(s);
    e->capture = nullptr;
    e->record = cusim::put_record(s);
    cusim::run_if_eager(s);
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
            cusim::join_capture(s, e->capture);
        cusim::put_node(s, What::WAIT, e->capture_record, {});
        return cudaSuccess;
    }
    if (!e->record)
        die("%s waits for an event that was never recorded: it would wait for nothing", s->name.c_str());
    if (s->capture)
        die("%s, which is captured, waits for an event that was recorded outside of the capture",
            s->name.c_str());
    cusim::put_wait(s, e->record);
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

    return cusim::host_wait(e->record->stream, e->record);
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
}
