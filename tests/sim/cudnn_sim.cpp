/* cudnn_sim - cuDNN's graph ("backend") API for graphs of one convolution: forward, gradient of the data,
 * gradient of the filter; fp32 and bf16 tensors of any strides, sums in fp32, groups by the channels of x and
 * w.
 *
 * Some engines, so that there is something to choose from. Mode A lists them in the order 0 2 1 3 4, by
 * default a convolution takes as many milliseconds as stand in the second column (CUSIM_ENGINE_MS says
 * otherwise), and each rounds in a way of its own:
 *
 *   0   1  nondeterministic: adds the samples of a filter's gradient in another order each time
 *   1   5  adds in order; the only one of the fallback mode
 *   2   3  fp32 only: tensor cores, so TF32: rounds its operands
 *   3   4  adds in 2 parts
 *   4   2  the same engine with another setting of its knob: adds in 3 parts
 *
 * A descriptor is a type and a map from attributes to values. An attribute that a type does not have here
 * ends the process with its number; what cuDNN checks when a descriptor is finalized is checked then.
 */
#include <cstdio>
#include <cstring>
#include <set>
#include <cudnn.h>
#include "tests/sim/cudnn_desc.h"
#include "tests/sim/sim.h"

using cusim::Body;
using cusim::BodyPtr;
using cusim::Conv;
using cusim::ConvTensor;
using cusim::desc_find;
using cusim::desc_get;
using cusim::desc_refuse;
using cusim::die;
using cusim::Lock;
using cusim::Pass;
using cusim::Value;

struct cudnnContext {
    cudaStream_t stream = nullptr;
    unsigned n_shuffles = 0;
};

namespace
{
/* What a cudnnBackendDescriptor_t points to. */
struct Handle {
    BodyPtr body;
};

std::set<void *> &handles()
{
    static std::set<void *> &h = *new std::set<void *>;
    return h;
}

Handle *handle_of(cudnnBackendDescriptor_t d)
{
    if (!handles().count(d))
        die("cuDNN: descriptor %p does not exist, or was destroyed", d);
    return static_cast<Handle *>(d);
}

/* ---- reading ---- */

std::vector<cudnnBackendNumericalNote_t> notes_of(const Body &b)
{
    if (b.engine == 0)
        return {CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC};
    if (b.engine == 2 || b.conv.x.bf16)
        return {CUDNN_NUMERICAL_NOTE_TENSOR_CORE};
    return {};
}

int64_t workspace_of(const Body &b)
{
    static const int64_t bytes[cusim::N_ENGINES] = {1 << 20, 4096, 64 << 10, 128 << 10, 8192};
    return bytes[b.engine];
}

int64_t index_of(const Body &b)
{
    return b.engine == 4 ? 3 : b.engine;
}

double engine_ms(int engine)
{
    double ms[cusim::N_ENGINES] = {1, 5, 3, 4, 2};
    std::string set = cusim::rank_setting("CUSIM_ENGINE_MS");

    if (!set.empty() && sscanf(set.c_str(), "%lf,%lf,%lf,%lf,%lf", &ms[0], &ms[1], &ms[2], &ms[3], &ms[4]) !=
                            cusim::N_ENGINES)
        die("CUSIM_ENGINE_MS is \"%s\", and there are %d engines", set.c_str(), int(cusim::N_ENGINES));
    return ms[engine];
}

template <class T> void give(const std::vector<T> &v, int64_t room, int64_t *n, void *out)
{
    *n = int64_t(v.size());
    for (int64_t i = 0; i < room && i < *n; i++)
        static_cast<T *>(out)[i] = v[size_t(i)];
}

void give_descs(const std::vector<BodyPtr> &v, int64_t room, int64_t *n, void *out)
{
    *n = int64_t(v.size());
    for (int64_t i = 0; i < room && i < *n; i++)
        handle_of(static_cast<cudnnBackendDescriptor_t *>(out)[i])->body = v[size_t(i)];
}

/* ---- running ---- */

struct Pack {
    char *x, *w, *y, *workspace;
};

char *pointer_for(const Body &pack, const ConvTensor &t, const char *what)
{
    const Value *ids = desc_find(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    std::string where = std::string("cudnnBackendExecute, ") + what;

    for (int64_t i = 0; ids && i < ids->count; i++) {
        if (desc_get<int64_t>(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, 0, i) != t.id)
            continue;
        char *p = desc_get<char *>(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, nullptr, i);
        cusim::require_device(where.c_str(), p, t.bytes());
        if (reinterpret_cast<uintptr_t>(p) % uintptr_t(t.alignment))
            die("%s: %p is not aligned to %d bytes, as its descriptor says", where.c_str(), p,
                int(t.alignment));
        return p;
    }
    die("%s: the variant pack has no pointer for id %lld", where.c_str(), static_cast<long long>(t.id));
}

const char *pass_name(Pass p)
{
    return p == Pass::FORWARD ? "forward" : p == Pass::DATA ? "gradient of data" : "gradient of filter";
}
} // namespace

extern "C" {

cudnnStatus_t cudnnCreate(cudnnHandle_t *h)
{
    *h = new cudnnContext;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnDestroy(cudnnHandle_t h)
{
    delete h;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t h, cudaStream_t s)
{
    h->stream = s;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetStream(cudnnHandle_t h, cudaStream_t *s)
{
    *s = h->stream;
    return CUDNN_STATUS_SUCCESS;
}

size_t cudnnGetVersion(void)
{
    return CUDNN_VERSION;
}

const char *cudnnGetErrorString(cudnnStatus_t s)
{
    switch (s) {
    case CUDNN_STATUS_SUCCESS:
        return "CUDNN_STATUS_SUCCESS";
    case CUDNN_STATUS_BAD_PARAM:
        return "CUDNN_STATUS_BAD_PARAM";
    case CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED:
        return "CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED";
    case CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH:
        return "CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH";
    case CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE:
        return "CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE";
    case CUDNN_STATUS_NOT_SUPPORTED:
        return "CUDNN_STATUS_NOT_SUPPORTED";
    default:
        return "CUDNN_STATUS (not named by the simulator)";
    }
}

void cudnnGetLastErrorString(char *out, size_t size)
{
    Lock lock;

    snprintf(out, size, "%s", cusim::desc_last_message().c_str());
    cusim::desc_last_message().clear();
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *d)
{
    Lock lock;

    cusim::desc_settable(type);
    Handle *h = new Handle{std::make_shared<Body>()};
    h->body->type = type;
    handles().insert(h);
    *d = h;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t d)
{
    Lock lock;
    Handle *h = handle_of(d);

    handles().erase(h);
    delete h;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t d)
{
    Lock lock;
    Body &b = *handle_of(d)->body;

    if (b.final)
        return desc_refuse(CUDNN_STATUS_BAD_PARAM, "the descriptor is final already");
    cudnnStatus_t s = cusim::desc_finalize(b);
    b.final = s == CUDNN_STATUS_SUCCESS;
    return s;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t n, const void *p)
{
    Lock lock;
    Body &b = *handle_of(d)->body;
    auto it = cusim::desc_settable(b.type).find(name);

    if (it == cusim::desc_settable(b.type).end())
        die("cuDNN: attribute %d of descriptors of type %d is not simulated", int(name), int(b.type));
    if (b.final)
        return desc_refuse(CUDNN_STATUS_BAD_PARAM, "the descriptor is final");
    if (type != it->second && !(type == CUDNN_TYPE_DOUBLE && it->second == CUDNN_TYPE_FLOAT))
        return desc_refuse(CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE, "the attribute has another type");
    if (n < 1 || !p)
        return desc_refuse(CUDNN_STATUS_BAD_PARAM, "an attribute without values");
    Value v;
    v.count = n;
    if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
        for (int64_t i = 0; i < n; i++) {
            BodyPtr other = handle_of(static_cast<const cudnnBackendDescriptor_t *>(p)[i])->body;
            if (!other->final)
                return desc_refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED,
                                   "a descriptor that is not final is referred to");
            v.descs.push_back(other);
        }
    } else {
        v.bytes.assign(static_cast<const char *>(p), size_t(n) * cusim::desc_value_bytes(type));
    }
    b.values[name] = v;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t, int64_t room, int64_t *n, void *out)
{
    Lock lock;
    BodyPtr b = handle_of(d)->body;
    int64_t ignored;

    n = n ? n : &ignored;
    if (!b->final)
        return desc_refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "the descriptor is not final");
    switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:
    case CUDNN_ATTR_ENGINECFG_KNOB_CHOICES:
        give_descs(b->offers, room, n, out);
        break;
    case CUDNN_ATTR_ENGINECFG_ENGINE:
        give_descs(b->values[name].descs, room, n, out);
        break;
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
        give(notes_of(*b), room, n, out);
        break;
    case CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE:
        *n = 0;
        break;
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
        give(std::vector<int64_t>{index_of(*b)}, room, n, out);
        break;
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
        give(std::vector<int64_t>{workspace_of(*b)}, room, n, out);
        break;
    case CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE:
        give(std::vector<cudnnBackendKnobType_t>{CUDNN_KNOB_TYPE_TILE_SIZE}, room, n, out);
        break;
    case CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE:
        give(std::vector<int64_t>{b->engine + 1}, room, n, out);
        break;
    default:
        die("cuDNN: reading attribute %d of descriptors of type %d is not simulated", int(name),
            int(b->type));
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t h, cudnnBackendDescriptor_t plan_desc,
                                  cudnnBackendDescriptor_t pack_desc)
{
    Lock lock;
    BodyPtr plan = handle_of(plan_desc)->body, pack = handle_of(pack_desc)->body;
    const Conv &c = plan->conv;

    if (!plan->final || !pack->final)
        return desc_refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "the plan or the variant pack is not final");
    size_t bytes = size_t(workspace_of(*plan));
    Pack p = {pointer_for(*pack, c.x, "x"), pointer_for(*pack, c.w, "w"), pointer_for(*pack, c.y, "y"),
              desc_get<char *>(*pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE)};
    cusim::require_device("cudnnBackendExecute, workspace", p.workspace, bytes);
    cusim::Op op;
    op.name = std::string("convolution, ") + pass_name(c.pass);
    auto touch = [&](const ConvTensor &t, const char *at) {
        bool result = &t == &c.result();
        if (!result || c.beta != 0)
            op.reads(at, t.bytes());
        if (result)
            op.writes(at, t.bytes());
    };
    touch(c.x, p.x);
    touch(c.w, p.w);
    touch(c.y, p.y);
    op.writes(p.workspace, bytes);
    int engine = plan->engine;
    op.ms = engine_ms(engine);
    op.run = [c, p, bytes, engine, h] {
        memset(p.workspace, 0xff, bytes);
        conv_run(c, p.x, p.w, p.y,
                 {engine == 2, engine == 0 ? ++h->n_shuffles : 0, engine < 3 ? 1 : engine - 1});
    };
    cusim::stream_push(h->stream, std::move(op));
    return CUDNN_STATUS_SUCCESS;
}
}
