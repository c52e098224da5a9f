/* test_conv - convolutions through cuDNN's graph API against plain loops: three passes, groups, strides, fp32
 * and bf16; and what the three engines tell about themselves. Part of test_programs. */
#include <cmath>
#include <cudnn.h>
#include "tests/sim/float_sim.h"
#include "tests/sim/test_check.h"

void test_convolutions();
void conv_with_small_workspace();
void conv_with_unknown_attribute();

namespace
{
enum { ID_X = 'x', ID_W = 'w', ID_Y = 'y' };

struct Shape {
    int64_t n, ci, h, w, co, kernel, pad, stride, groups;
    int64_t ho() const { return (h + 2 * pad - kernel) / stride + 1; }
    int64_t wo() const { return (w + 2 * pad - kernel) / stride + 1; }
    int64_t cg() const { return ci / groups; }
};

using Desc = cudnnBackendDescriptor_t;

#define TRY(x) CHECK((x) == CUDNN_STATUS_SUCCESS)

Desc create(cudnnBackendDescriptorType_t t)
{
    Desc d;
    TRY(cudnnBackendCreateDescriptor(t, &d));
    return d;
}

void set(Desc d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t t, int64_t n, const void *v)
{
    TRY(cudnnBackendSetAttribute(d, name, t, n, v));
}

Desc tensor(int64_t id, std::vector<int64_t> dims, bool bf16)
{
    Desc d = create(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    std::vector<int64_t> strides = {dims[1] * dims[2] * dims[3], 1, dims[3] * dims[1], dims[1]};
    cudnnDataType_t type = bf16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
    int64_t alignment = 16;

    set(d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims.data());
    set(d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides.data());
    set(d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    TRY(cudnnBackendFinalize(d));
    return d;
}

Desc convolution(const Shape &s)
{
    Desc d = create(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    int64_t dims = 2, pad[2] = {s.pad, s.pad}, stride[2] = {s.stride, s.stride}, one[2] = {1, 1};
    cudnnDataType_t type = CUDNN_DATA_FLOAT;
    cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;

    set(d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &dims);
    set(d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(d, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(d, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, pad);
    set(d, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, pad);
    set(d, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride);
    set(d, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, one);
    TRY(cudnnBackendFinalize(d));
    return d;
}

/* pass 0: forward, 1: gradient of x, 2: gradient of w. Alpha, beta, convolution and tensors have consecutive
 * numbers in each pass, but not in one order. */
Desc graph(cudnnHandle_t h, const Shape &s, int pass, bool bf16)
{
    static const cudnnBackendDescriptorType_t types[] = {
        CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
        CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
        CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR};
    static const cudnnBackendAttributeName_t names[3][4] = {
        {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC},
        {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
         CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC},
        {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
         CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
         CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC}};
    Desc parts[4] = {tensor(ID_X, {s.n, s.ci, s.h, s.w}, bf16),
                     tensor(ID_W, {s.co, s.cg(), s.kernel, s.kernel}, bf16 && pass != 2),
                     tensor(ID_Y, {s.n, s.co, s.ho(), s.wo()}, bf16), convolution(s)};
    Desc op = create(types[pass]), g = create(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);

    for (int i = 0; i < 4; i++)
        set(op, names[pass][i], CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &parts[i]);
    TRY(cudnnBackendFinalize(op));
    set(g, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &h);
    set(g, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &op);
    TRY(cudnnBackendFinalize(g));
    for (Desc d : parts)
        cudnnBackendDestroyDescriptor(d);
    cudnnBackendDestroyDescriptor(op);
    return g;
}

bool is_nondeterministic(Desc config)
{
    Desc engine = create(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    int64_t n = 0;
    bool is = false;

    TRY(cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n,
                                 &engine));
    TRY(cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                 CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &n, notes));
    for (int64_t i = 0; i < n; i++)
        is |= notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
    cudnnBackendDestroyDescriptor(engine);
    return is;
}

enum { N_EXACT = 3 };

/* One of the last N_EXACT of mode A: deterministic, without TF32. */
Desc plan(cudnnHandle_t h, Desc g, int which, int64_t *workspace)
{
    Desc heur = create(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR), configs[8],
         p = create(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    int64_t n = 0;

    for (Desc &c : configs)
        c = create(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    set(heur, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &g);
    set(heur, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    TRY(cudnnBackendFinalize(heur));
    TRY(cudnnBackendGetAttribute(heur, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 8, &n,
                                 configs));
    CHECK((n == 4 || n == 5) && is_nondeterministic(configs[0]));
    Desc config = configs[n - N_EXACT + which];
    CHECK(!is_nondeterministic(config));
    set(p, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &h);
    set(p, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &config);
    TRY(cudnnBackendFinalize(p));
    TRY(cudnnBackendGetAttribute(p, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n,
                                 workspace));
    CHECK(*workspace > 0);
    for (Desc c : configs)
        cudnnBackendDestroyDescriptor(c);
    cudnnBackendDestroyDescriptor(heur);
    return p;
}

/* On the device, NHWC, in its type. */
struct Buffer {
    std::vector<float> host;
    char *device;
    bool bf16;

    Buffer(int64_t n, bool b, size_t from) : host(size_t(n)), bf16(b)
    {
        std::vector<char> bytes(host.size() * (bf16 ? 2 : 4));
        for (size_t i = 0; i < host.size(); i++)
            host[i] = small_value(from + i);
        cusim::store_floats(bytes.data(), host.data(), host.size(), bf16);
        device = to_device(bytes);
    }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer() { cudaFree(device); }
    std::vector<float> fetch() const
    {
        std::vector<char> bytes = to_host(device, host.size() * (bf16 ? 2 : 4));
        std::vector<float> v(host.size());
        cusim::load_floats(v.data(), bytes.data(), v.size(), bf16);
        return v;
    }
};

/* Adds each product of a pixel and a tap to where the pass wants it. */
void expect(const Shape &s, int pass, std::vector<float> &x, std::vector<float> &w, std::vector<float> &y)
{
    int64_t kg = s.co / s.groups, cg = s.cg(), ho = s.ho(), wo = s.wo();

    (pass == 0 ? y : pass == 1 ? x : w).assign((pass == 0 ? y : pass == 1 ? x : w).size(), 0.0f);
    for (int64_t n = 0; n < s.n; n++)
        for (int64_t p = 0; p < ho * wo; p++)
            for (int64_t k = 0; k < s.co; k++)
                for (int64_t t = 0; t < s.kernel * s.kernel * cg; t++) {
                    int64_t c = t % cg, u = t / cg % s.kernel, r = t / cg / s.kernel;
                    int64_t h = p / wo * s.stride - s.pad + r, v = p % wo * s.stride - s.pad + u;
                    if (h < 0 || h >= s.h || v < 0 || v >= s.w)
                        continue;
                    float &fx = x[size_t(((n * s.h + h) * s.w + v) * s.ci + k / kg * cg + c)];
                    float &fw = w[size_t(k * s.kernel * s.kernel * cg + t)],
                          &fy = y[size_t((n * ho * wo + p) * s.co + k)];
                    if (pass == 0)
                        fy += fx * fw;
                    else if (pass == 1)
                        fx += fy * fw;
                    else
                        fw += fx * fy;
                }
}

void test_pass(cudnnHandle_t h, const Shape &s, int pass, bool bf16, int which = 0, int64_t missing = 0)
{
    Buffer x(s.n * s.h * s.w * s.ci, bf16, 1), w(s.co * s.kernel * s.kernel * s.cg(), bf16 && pass != 2, 2);
    Buffer y(s.n * s.ho() * s.wo() * s.co, bf16, 3);
    int64_t bytes = 0, ids[3] = {ID_X, ID_W, ID_Y};
    Desc g = graph(h, s, pass, bf16), p = plan(h, g, which, &bytes),
         pack = create(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    void *workspace = device_bytes(size_t(bytes - missing)), *pointers[3] = {x.device, w.device, y.device};

    set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 3, ids);
    set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 3, pointers);
    set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    TRY(cudnnBackendFinalize(pack));
    TRY(cudnnBackendExecute(h, p, pack));
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    expect(s, pass, x.host, w.host, y.host);
    const Buffer &result = pass == 0 ? y : pass == 1 ? x : w;
    std::vector<float> got = result.fetch();
    for (size_t i = 0; i < got.size(); i++) /* the sums are exact, the result is rounded */
        CHECK(std::fabs(got[i] - result.host[i]) <=
              (result.bf16 ? 0.005f * std::fabs(result.host[i]) : 0.0f));
    cudaFree(workspace);
    for (Desc d : {g, p, pack})
        cudnnBackendDestroyDescriptor(d);
}
} // namespace

void test_convolutions()
{
    static const Shape shapes[] = {{2, 4, 5, 6, 6, 3, 1, 1, 1},
                                   {3, 8, 7, 7, 4, 3, 1, 2, 2},
                                   {2, 6, 4, 4, 5, 1, 0, 2, 1}};
    cudnnHandle_t h;

    TRY(cudnnCreate(&h));
    for (const Shape &s : shapes)
        for (int pass = 0; pass < 3; pass++)
            for (bool bf16 : {false, true})
                for (int which = 0; which < N_EXACT; which++)
                    test_pass(h, s, pass, bf16, which);
    TRY(cudnnDestroy(h));
}

void conv_with_small_workspace()
{
    cudnnHandle_t h;

    TRY(cudnnCreate(&h));
    test_pass(h, {2, 4, 5, 6, 6, 3, 1, 1, 1}, 0, false, 0, 1024);
}

void conv_with_unknown_attribute()
{
    int64_t one = 1;

    set(create(CUDNN_BACKEND_TENSOR_DESCRIPTOR), CUDNN_ATTR_TENSOR_VECTOR_COUNT, CUDNN_TYPE_INT64, 1, &one);
}
