/* cudnn_desc - see cudnn_desc.h. */
#include "tests/sim/cudnn_desc.h"
#include "tests/sim/sim.h"

namespace cusim
{
std::string &desc_last_message()
{
    static std::string &m = *new std::string;
    return m;
}

cudnnStatus_t desc_refuse(cudnnStatus_t s, const std::string &why)
{
    desc_last_message() = why;
    return s;
}

size_t desc_value_bytes(cudnnBackendAttributeType_t t)
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

const std::map<int, cudnnBackendAttributeType_t> &desc_settable(cudnnBackendDescriptorType_t t)
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

const Value *desc_find(const Body &b, int name)
{
    auto it = b.values.find(name);
    return it == b.values.end() ? nullptr : &it->second;
}

static BodyPtr get_desc(const Body &b, int name, cudnnBackendDescriptorType_t type)
{
    const Value *v = desc_find(b, name);
    return v && v->count == 1 && v->descs[0]->type == type ? v->descs[0] : nullptr;
}

/* Alpha or beta, which may be of either type. */
static double get_scale(const Body &b, int name, double otherwise)
{
    const Value *v = desc_find(b, name);
    if (!v)
        return otherwise;
    return v->bytes.size() == sizeof(float) ? double(desc_get<float>(b, name)) : desc_get<double>(b, name);
}

static bool has_count(const Body &b, int name, int64_t n)
{
    const Value *v = desc_find(b, name);
    return v && v->count == n;
}

/* ---- finalizing ---- */

static cudnnStatus_t finalize_tensor(const Body &b)
{
    cudnnDataType_t t = desc_get<cudnnDataType_t>(b, CUDNN_ATTR_TENSOR_DATA_TYPE);

    if (!has_count(b, CUDNN_ATTR_TENSOR_DATA_TYPE, 1) || !has_count(b, CUDNN_ATTR_TENSOR_UNIQUE_ID, 1) ||
        !has_count(b, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, 1))
        return desc_refuse(CUDNN_STATUS_BAD_PARAM, "a tensor without type, id or alignment");
    if (!has_count(b, CUDNN_ATTR_TENSOR_DIMENSIONS, 4) || !has_count(b, CUDNN_ATTR_TENSOR_STRIDES, 4))
        return desc_refuse(CUDNN_STATUS_NOT_SUPPORTED_SHAPE, "only tensors of 4 dimensions are simulated");
    for (int i = 0; i < 4; i++)
        if (desc_get<int64_t>(b, CUDNN_ATTR_TENSOR_DIMENSIONS, 0, i) < 1)
            return desc_refuse(CUDNN_STATUS_BAD_PARAM, "a tensor with a dimension of 0");
    if (t != CUDNN_DATA_FLOAT && t != CUDNN_DATA_BFLOAT16)
        return desc_refuse(CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE, "only float and bfloat16 are simulated");
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t finalize_convolution(const Body &b)
{
    for (int name : {CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS,
                     CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_ATTR_CONVOLUTION_DILATIONS})
        if (!has_count(b, name, 2))
            return desc_refuse(CUDNN_STATUS_BAD_PARAM,
                               "a convolution without paddings, strides or dilations");
    for (int i = 0; i < 2; i++)
        if (desc_get<int64_t>(b, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, 0, i) !=
            desc_get<int64_t>(b, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, 0, i))
            return desc_refuse(CUDNN_STATUS_NOT_SUPPORTED, "only equal paddings on both sides are simulated");
    if (desc_get<int64_t>(b, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS) != 2 ||
        desc_get<cudnnDataType_t>(b, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_DATA_INT8) != CUDNN_DATA_FLOAT ||
        desc_get<cudnnConvolutionMode_t>(b, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_CONVOLUTION) !=
            CUDNN_CROSS_CORRELATION)
        return desc_refuse(CUDNN_STATUS_NOT_SUPPORTED,
                           "only cross-correlations in 2 dimensions, in fp32, are simulated");
    return CUDNN_STATUS_SUCCESS;
}

static ConvTensor tensor_of(const Body &t)
{
    ConvTensor r = {};

    r.id = desc_get<int64_t>(t, CUDNN_ATTR_TENSOR_UNIQUE_ID);
    r.alignment = desc_get<int64_t>(t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT);
    r.bf16 = desc_get<cudnnDataType_t>(t, CUDNN_ATTR_TENSOR_DATA_TYPE) == CUDNN_DATA_BFLOAT16;
    for (int i = 0; i < 4; i++) {
        r.dims[i] = desc_get<int64_t>(t, CUDNN_ATTR_TENSOR_DIMENSIONS, 0, i);
        r.strides[i] = desc_get<int64_t>(t, CUDNN_ATTR_TENSOR_STRIDES, 0, i);
    }
    return r;
}

struct OperationNames {
    Pass pass;
    int x, w, y, conv, alpha, beta;
};

static OperationNames names_of(cudnnBackendDescriptorType_t t)
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

static cudnnStatus_t finalize_operation(Body &b)
{
    OperationNames n = names_of(b.type);
    BodyPtr x = get_desc(b, n.x, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    BodyPtr w = get_desc(b, n.w, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    BodyPtr y = get_desc(b, n.y, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    BodyPtr conv = get_desc(b, n.conv, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);

    if (!x || !w || !y || !conv)
        return desc_refuse(CUDNN_STATUS_BAD_PARAM, "an operation without its tensors or its convolution");
    b.conv.pass = n.pass;
    b.conv.x = tensor_of(*x);
    b.conv.w = tensor_of(*w);
    b.conv.y = tensor_of(*y);
    for (int i = 0; i < 2; i++) {
        b.conv.pad[i] = desc_get<int64_t>(*conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, 0, i);
        b.conv.stride[i] = desc_get<int64_t>(*conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, 0, i);
        b.conv.dilation[i] = desc_get<int64_t>(*conv, CUDNN_ATTR_CONVOLUTION_DILATIONS, 0, i);
    }
    b.conv.alpha = get_scale(b, n.alpha, 1);
    b.conv.beta = get_scale(b, n.beta, 0);
    const char *why = conv_mismatch(b.conv);
    return *why ? desc_refuse(CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH, why) : CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t finalize_graph(Body &b)
{
    const Value *ops = desc_find(b, CUDNN_ATTR_OPERATIONGRAPH_OPS);

    if (!ops || !desc_find(b, CUDNN_ATTR_OPERATIONGRAPH_HANDLE))
        return desc_refuse(CUDNN_STATUS_BAD_PARAM, "a graph without operations or handle");
    if (ops->count != 1)
        return desc_refuse(CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN,
                           "only graphs of one operation are simulated");
    b.conv = ops->descs[0]->conv;
    return CUDNN_STATUS_SUCCESS;
}

static BodyPtr make_config(const Conv &conv, int engine)
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

static cudnnStatus_t finalize_heuristics(Body &b)
{
    BodyPtr graph =
        get_desc(b, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);

    if (!graph || !desc_find(b, CUDNN_ATTR_ENGINEHEUR_MODE))
        return desc_refuse(CUDNN_STATUS_BAD_PARAM, "heuristics without graph or mode");
    b.conv = graph->conv;
    bool fallback =
        desc_get<cudnnBackendHeurMode_t>(b, CUDNN_ATTR_ENGINEHEUR_MODE) == CUDNN_HEUR_MODE_FALLBACK;
    for (int engine : fallback ? std::vector<int>{1} : std::vector<int>{0, 2, 1, 3, 4})
        if (engine != 2 || !b.conv.x.bf16)
            b.offers.push_back(make_config(b.conv, engine));
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t finalize_engine(Body &b)
{
    BodyPtr graph = get_desc(b, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    int64_t index = desc_get<int64_t>(b, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, -1);

    if (!graph || index < 0 || index >= N_ENGINES - 1)
        return desc_refuse(CUDNN_STATUS_BAD_PARAM, "an engine without graph, or a number that none has");
    b.conv = graph->conv;
    b.engine = int(index);
    return b.engine == 2 && b.conv.x.bf16
               ? desc_refuse(CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE, "engine 2 is for fp32")
               : CUDNN_STATUS_SUCCESS;
}

/* A configuration takes its engine over, a plan its configuration. */
static cudnnStatus_t finalize_from(Body &b, int name, cudnnBackendDescriptorType_t type)
{
    BodyPtr from = get_desc(b, name, type);

    if (!from)
        return desc_refuse(CUDNN_STATUS_BAD_PARAM,
                           "a configuration without engine, or a plan without configuration");
    b.conv = from->conv;
    b.engine = from->engine;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t desc_finalize(Body &b)
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
} // namespace cusim
