/* cudnn_sim - cuDNN's graph ("backend") API for graphs of one convolution: forward, gradient of the data,
 * gradient of the filter; fp32 and bf16 tensors of any strides, sums in fp32, groups by the channels of x and
 * w.
 *
 * Three engines, so that there is something to choose from:
 *
 *   0   first in mode A; nondeterministic: adds the samples of a filter's gradient in another order each time
 *   1   deterministic, exact; the only one of the fallback mode
 *   2   fp32 only, listed second: tensor cores, so TF32: rounds its operands
 *
 * A descriptor is a type and a map from attributes to values. An attribute that a type does not have here
 * ends the process with its number; what cuDNN checks when a descriptor is finalized is checked then.
 */
#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <cudnn.h>
#include "tests/sim/conv_sim.h"
#include "tests/sim/sim.h"

using cusim::Conv;
using cusim::ConvTensor;
using cusim::die;
using cusim::Lock;
using cusim::Pass;

struct cudnnContext {
    cudaStream_t stream = nullptr;
    unsigned n_shuffles = 0;
};

namespace
{
enum { N_ENGINES = 3 };

struct Body;
using BodyPtr = std::shared_ptr<Body>;

/* A value of an attribute: bytes, or other descriptors. */
struct Value {
    int64_t count = 0;
    std::string bytes;
    std::vector<BodyPtr> descs;
};

struct Body {
    cudnnBackendDescriptorType_t type;
    bool final = false;
    std::map<int, Value> values;
    Conv conv = {};              /* operations, and what is made from them */
    int engine = -1;             /* engines, configurations, plans */
    std::vector<BodyPtr> offers; /* heuristics: configurations; configurations: knobs */
};

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

std::string &last_message()
{
    static std::string &m = *new std::string;
    return m;
}

cudnnStatus_t refuse(cudnnStatus_t s, const std::string &why)
{
    last_message() = why;
    return s;
}

size_t size_of(cudnnBackendAttributeType_t t)
{
    switch (t) {
    case CUDNN_TYPE_BOOLEAN:
        return 1;
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
        return 8;
    case CUDNN_TYPE_DATA_TYPE:
    case CUDNN_TYPE_FLOAT:
    case CUDNN_TYPE_CONVOLUTION_MODE:
    case CUDNN_TYPE_HEUR_MODE:
    case CUDNN_TYPE_KNOB_TYPE:
    case CUDNN_TYPE_NUMERICAL_NOTE:
    case CUDNN_TYPE_BEHAVIOR_NOTE:
        return 4;
    default:
        die("cuDNN: attribute type %d is not simulated", int(t));
    }
}

/* Attributes that may be set, with their types; alpha and beta may also be doubles. */
const std::map<int, cudnnBackendAttributeType_t> &settable(cudnnBackendDescriptorType_t t)
{
    using Table = std::map<int, cudnnBackendAttributeType_t>;
    const cudnnBackendAttributeType_t desc = CUDNN_TYPE_BACKEND_DESCRIPTOR, i64 = CUDNN_TYPE_INT64;
    auto operation = [=](int first) {
        /* alpha, beta, convolution, then three tensors: in this order in all three passes. */
        return Table{{first, CUDNN_TYPE_FLOAT}, {first + 1, CUDNN_TYPE_FLOAT},
                     {first + 2, desc},         {first + 3, desc},
                     {first + 4, desc},         {first + 5, desc}};
    };
    static const std::map<int, Table> tables = {
        {CUDNN_BACKEND_TENSOR_DESCRIPTOR,
         {{CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, i64},
          {CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE},
          {CUDNN_ATTR_TENSOR_DIMENSIONS, i64},
          {CUDNN_ATTR_TENSOR_STRIDES, i64},
          {CUDNN_ATTR_TENSOR_UNIQUE_ID, i64},
          {CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN}}},
        {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR,
         {{CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, i64},
          {CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE},
          {CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE},
          {CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, i64},
          {CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, i64},
          {CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, i64},
          {CUDNN_ATTR_CONVOLUTION_DILATIONS, i64}}},
        {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
         operation(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA)},
        {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
         operation(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA)},
        {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
         operation(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA)},
        {CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR,
         {{CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE}, {CUDNN_ATTR_OPERATIONGRAPH_OPS, desc}}},
        {CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR,
         {{CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE}, {CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, desc}}},
        {CUDNN_BACKEND_ENGINE_DESCRIPTOR,
         {{CUDNN_ATTR_ENGINE_OPERATION_GRAPH, desc}, {CUDNN_ATTR_ENGINE_GLOBAL_INDEX, i64}}},
        {CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, {{CUDNN_ATTR_ENGINECFG_ENGINE, desc}}},
        {CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR,
         {{CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE},
          {CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, desc}}},
        {CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR,
         {{CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, i64},
          {CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR},
          {CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR}}},
        {CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, {}},
    };
    auto it = tables.find(t);
    if (it == tables.end())
        die("cuDNN: descriptor type %d is not simulated", int(t));
    return it->second;
}

/* ---- values ---- */

const Value *find(const Body &b, int name)
{
    auto it = b.values.find(name);
    return it == b.values.end() ? nullptr : &it->second;
}

/* Element i of an attribute; the default when it was not set. */
template <class T> T get(const Body &b, int name, T otherwise = T(), int64_t i = 0)
{
    const Value *v = find(b, name);
    T r = otherwise;
    if (v && i < v->count)
        memcpy(&r, v->bytes.data() + size_t(i) * sizeof r, sizeof r);
    return r;
}

BodyPtr get_desc(const Body &b, int name, cudnnBackendDescriptorType_t type)
{
    const Value *v = find(b, name);
    return v && v->count == 1 && v->descs[0]->type == type ? v->descs[0] : nullptr;
}

/* Alpha or beta, which may be of either type. */
double get_scale(const Body &b, int name, double otherwise)
{
    const Value *v = find(b, name);
    if (!v)
        return otherwise;
    return v->bytes.size() == sizeof(float) ? double(get<float>(b, name)) : get<double>(b, name);
}

bool has_count(const Body &b, int name, int64_t n)
{
    const Value *v = find(b, name);
    return v && v->count == n;
}

/* ---- finalizing ---- */

cudnnStatus_t finalize_tensor(const Body &b)
{
    cudnnDataType_t t = get<cudnnDataType_t>(b, CUDNN_ATTR_TENSOR_DATA_TYPE);

    if (!has_count(b, CUDNN_ATTR_TENSOR_DATA_TYPE, 1) || !has_count(b, CUDNN_ATTR_TENSOR_UNIQUE_ID, 1) ||
        !has_count(b, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, 1))
        return refuse(CUDNN_STATUS_BAD_PARAM, "a tensor without type, id or alignment");
    if (!has_count(b, CUDNN_ATTR_TENSOR_DIMENSIONS, 4) || !has_count(b, CUDNN_ATTR_TENSOR_STRIDES, 4))
        return refuse(CUDNN_STATUS_NOT_SUPPORTED_SHAPE, "only tensors of 4 dimensions are simulated");
    for (int i = 0; i < 4; i++)
        if (get<int64_t>(b, CUDNN_ATTR_TENSOR_DIMENSIONS, 0, i) < 1)
            return refuse(CUDNN_STATUS_BAD_PARAM, "a tensor with a dimension of 0");
    if (t != CUDNN_DATA_FLOAT && t != CUDNN_DATA_BFLOAT16)
        return refuse(CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE, "only float and bfloat16 are simulated");
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t finalize_convolution(const Body &b)
{
    for (int name : {CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS,
                     CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_ATTR_CONVOLUTION_DILATIONS})
        if (!has_count(b, name, 2))
            return refuse(CUDNN_STATUS_BAD_PARAM, "a convolution without paddings, strides or dilations");
    for (int i = 0; i < 2; i++)
        if (get<int64_t>(b, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, 0, i) !=
            get<int64_t>(b, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, 0, i))
            return refuse(CUDNN_STATUS_NOT_SUPPORTED, "only equal paddings on both sides are simulated");
    if (get<int64_t>(b, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS) != 2 ||
        get<cudnnDataType_t>(b, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_DATA_INT8) != CUDNN_DATA_FLOAT ||
        get<cudnnConvolutionMode_t>(b, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_CONVOLUTION) !=
            CUDNN_CROSS_CORRELATION)
        return refuse(CUDNN_STATUS_NOT_SUPPORTED,
                      "only cross-correlations in 2 dimensions, in fp32, are simulated");
    return CUDNN_STATUS_SUCCESS;
}

ConvTensor tensor_of(const Body &t)
{
    ConvTensor r = {};

    r.id = get<int64_t>(t, CUDNN_ATTR_TENSOR_UNIQUE_ID);
    r.alignment = get<int64_t>(t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT);
    r.bf16 = get<cudnnDataType_t>(t, CUDNN_ATTR_TENSOR_DATA_TYPE) == CUDNN_DATA_BFLOAT16;
    for (int i = 0; i < 4; i++) {
        r.dims[i] = get<int64_t>(t, CUDNN_ATTR_TENSOR_DIMENSIONS, 0, i);
        r.strides[i] = get<int64_t>(t, CUDNN_ATTR_TENSOR_STRIDES, 0, i);
    }
    return r;
}

struct OperationNames {
    Pass pass;
    int x, w, y, conv, alpha, beta;
};

OperationNames names_of(cudnnBackendDescriptorType_t t)
{
    if (t == CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR)
        return {Pass::FORWARD,
                CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA};
    if (t == CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR)
        return {Pass::DATA,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA};
    return {Pass::FILTER,
            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA};
}

cudnnStatus_t finalize_operation(Body &b)
{
    OperationNames n = names_of(b.type);
    BodyPtr x = get_desc(b, n.x, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    BodyPtr w = get_desc(b, n.w, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    BodyPtr y = get_desc(b, n.y, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    BodyPtr conv = get_desc(b, n.conv, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);

    if (!x || !w || !y || !conv)
        return refuse(CUDNN_STATUS_BAD_PARAM, "an operation without its tensors or its convolution");
    b.conv.pass = n.pass;
    b.conv.x = tensor_of(*x);
    b.conv.w = tensor_of(*w);
    b.conv.y = tensor_of(*y);
    for (int i = 0; i < 2; i++) {
        b.conv.pad[i] = get<int64_t>(*conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, 0, i);
        b.conv.stride[i] = get<int64_t>(*conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, 0, i);
        b.conv.dilation[i] = get<int64_t>(*conv, CUDNN_ATTR_CONVOLUTION_DILATIONS, 0, i);
    }
    b.conv.alpha = get_scale(b, n.alpha, 1);
    b.conv.beta = get_scale(b, n.beta, 0);
    const char *why = conv_mismatch(b.conv);
    return *why ? refuse(CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH, why) : CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t finalize_graph(Body &b)
{
    const Value *ops = find(b, CUDNN_ATTR_OPERATIONGRAPH_OPS);

    if (!ops || !find(b, CUDNN_ATTR_OPERATIONGRAPH_HANDLE))
        return refuse(CUDNN_STATUS_BAD_PARAM, "a graph without operations or handle");
    if (ops->count != 1)
        return refuse(CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN, "only graphs of one operation are simulated");
    b.conv = ops->descs[0]->conv;
    return CUDNN_STATUS_SUCCESS;
}

BodyPtr make_config(const Conv &conv, int engine)
{
    BodyPtr e = std::make_shared<Body>(), c = std::make_shared<Body>(), knob = std::make_shared<Body>();

    e->type = CUDNN_BACKEND_ENGINE_DESCRIPTOR;
    c->type = CUDNN_BACKEND_ENGINECFG_DESCRIPTOR;
    knob->type = CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR;
    e->final = c->final = knob->final = true;
    e->conv = c->conv = conv;
    e->engine = c->engine = engine;
    knob->engine = engine;
    c->values[CUDNN_ATTR_ENGINECFG_ENGINE] = {1, "", {e}};
    c->offers.push_back(knob);
    return c;
}

cudnnStatus_t finalize_heuristics(Body &b)
{
    BodyPtr graph =
        get_desc(b, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);

    if (!graph || !find(b, CUDNN_ATTR_ENGINEHEUR_MODE))
        return refuse(CUDNN_STATUS_BAD_PARAM, "heuristics without graph or mode");
    b.conv = graph->conv;
    if (get<cudnnBackendHeurMode_t>(b, CUDNN_ATTR_ENGINEHEUR_MODE) != CUDNN_HEUR_MODE_FALLBACK) {
        b.offers.push_back(make_config(b.conv, 0));
        if (!b.conv.x.bf16)
            b.offers.push_back(make_config(b.conv, 2));
    }
    b.offers.push_back(make_config(b.conv, 1));
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t finalize_engine(Body &b)
{
    BodyPtr graph = get_desc(b, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    int64_t index = get<int64_t>(b, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, -1);

    if (!graph || index < 0 || index >= N_ENGINES)
        return refuse(CUDNN_STATUS_BAD_PARAM, "an engine without graph, or a number that none has");
    b.conv = graph->conv;
    b.engine = int(index);
    return b.engine == 2 && b.conv.x.bf16
               ? refuse(CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE, "engine 2 is for fp32")
               : CUDNN_STATUS_SUCCESS;
}

/* A configuration takes its engine over, a plan its configuration. */
cudnnStatus_t finalize_from(Body &b, int name, cudnnBackendDescriptorType_t type)
{
    BodyPtr from = get_desc(b, name, type);

    if (!from)
        return refuse(CUDNN_STATUS_BAD_PARAM,
                      "a configuration without engine, or a plan without configuration");
    b.conv = from->conv;
    b.engine = from->engine;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t finalize(Body &b)
{
    switch (b.type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR:
        return finalize_tensor(b);
    case CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR:
        return finalize_convolution(b);
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR:
        return finalize_operation(b);
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
        return finalize_graph(b);
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR:
        return finalize_heuristics(b);
    case CUDNN_BACKEND_ENGINE_DESCRIPTOR:
        return finalize_engine(b);
    case CUDNN_BACKEND_ENGINECFG_DESCRIPTOR:
        return finalize_from(b, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
        return finalize_from(b, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    default:
        return CUDNN_STATUS_SUCCESS;
    }
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
    static const int64_t bytes[N_ENGINES] = {1 << 20, 4096, 64 << 10};
    return bytes[b.engine];
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
    const Value *ids = find(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    std::string where = std::string("cudnnBackendExecute, ") + what;

    for (int64_t i = 0; ids && i < ids->count; i++) {
        if (get<int64_t>(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, 0, i) != t.id)
            continue;
        char *p = get<char *>(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, nullptr, i);
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

    snprintf(out, size, "%s", last_message().c_str());
    last_message().clear();
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *d)
{
    Lock lock;

    settable(type);
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
        return refuse(CUDNN_STATUS_BAD_PARAM, "the descriptor is final already");
    cudnnStatus_t s = finalize(b);
    b.final = s == CUDNN_STATUS_SUCCESS;
    return s;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t n, const void *p)
{
    Lock lock;
    Body &b = *handle_of(d)->body;
    auto it = settable(b.type).find(name);

    if (it == settable(b.type).end())
        die("cuDNN: attribute %d of descriptors of type %d is not simulated", int(name), int(b.type));
    if (b.final)
        return refuse(CUDNN_STATUS_BAD_PARAM, "the descriptor is final");
    if (type != it->second && !(type == CUDNN_TYPE_DOUBLE && it->second == CUDNN_TYPE_FLOAT))
        return refuse(CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE, "the attribute has another type");
    if (n < 1 || !p)
        return refuse(CUDNN_STATUS_BAD_PARAM, "an attribute without values");
    Value v;
    v.count = n;
    if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
        for (int64_t i = 0; i < n; i++) {
            BodyPtr other = handle_of(static_cast<const cudnnBackendDescriptor_t *>(p)[i])->body;
            if (!other->final)
                return refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED,
                              "a descriptor that is not final is referred to");
            v.descs.push_back(other);
        }
    } else {
        v.bytes.assign(static_cast<const char *>(p), size_t(n) * size_of(type));
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
        return refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "the descriptor is not final");
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
        give(std::vector<int64_t>{b->engine}, room, n, out);
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
        return refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "the plan or the variant pack is not final");
    size_t bytes = size_t(workspace_of(*plan));
    Pack p = {pointer_for(*pack, c.x, "x"), pointer_for(*pack, c.w, "w"), pointer_for(*pack, c.y, "y"),
              get<char *>(*pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE)};
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
    op.run = [c, p, bytes, engine, h] {
        memset(p.workspace, 0xff, bytes);
        conv_run(c, p.x, p.w, p.y, engine == 2, engine == 0 ? ++h->n_shuffles : 0);
    };
    cusim::stream_push(h->stream, std::move(op));
    return CUDNN_STATUS_SUCCESS;
}
}
