/* test_programs - right programs on one device: kernels, copies, graphs, products and convolutions against
 * plain loops. The settings of sim.h (eager, seeds) must not change what they compute. */
#include <cmath>
#include <cstring>
#include <string>
#include <cublasLt.h>
#include <cublas_v2.h>
#include <cudnn.h>
#include "tests/sim/float_sim.h"
#include "tests/sim/test_check.h"
#include "tests/sim/test_kernels.h"

namespace
{
std::vector<float> values(size_t n, size_t from = 0)
{
    std::vector<float> v(n);
    for (size_t i = 0; i < n; i++)
        v[i] = small_value(from + i);
    return v;
}

bool equal(const std::vector<float> &a, const std::vector<float> &b)
{
    return a.size() == b.size() && !memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

/* ---- kernels ---- */

void test_kernels()
{
    const int n = 1000;
    std::vector<float> x = values(n);
    float *d = to_device(x), *out = static_cast<float *>(device_bytes(3 * sizeof(float)));
    double want = 0;

    for (float v : x)
        want += double(v);
    for (int launch = 0; launch < 6; launch++) { /* forward, backward, random orders of threads */
        int *count = to_device(std::vector<int>{0});
        CHECK(sums_run(d, out, n, count, nullptr) == cudaSuccess);
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
        std::vector<float> parts = to_host(out, 3);
        CHECK(double(parts[0] + parts[1] + parts[2]) == want);
        CHECK(to_host(count, 1)[0] == n);
        cudaFree(count);
    }
    cudaFree(d);
    cudaFree(out);
}

/* ---- streams and graphs ---- */

/* y = 2x on one stream, z = 3y on another, ordered by events both ways; captured, and launched three times.
 */
void test_graph()
{
    const int n = 100;
    const size_t bytes = n * sizeof(float);
    cudaStream_t a, b;
    cudaEvent_t e, e2;
    cudaGraph_t g;
    cudaGraphExec_t x;
    float *in, *out, *dx = static_cast<float *>(device_bytes(bytes)),
                     *dy = static_cast<float *>(device_bytes(bytes));
    float *dz = static_cast<float *>(device_bytes(bytes));
    size_t nodes = 0;

    cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking);
    cudaStreamCreateWithPriority(&b, cudaStreamNonBlocking, -5);
    cudaEventCreateWithFlags(&e, cudaEventDisableTiming);
    cudaEventCreateWithFlags(&e2, cudaEventDisableTiming);
    cudaHostAlloc(reinterpret_cast<void **>(&in), bytes, 0);
    cudaHostAlloc(reinterpret_cast<void **>(&out), bytes, 0);
    CHECK(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    cudaMemcpyAsync(dx, in, bytes, cudaMemcpyHostToDevice, a);
    scale_run(dx, dy, n, 2, a);
    cudaEventRecord(e, a);
    cudaStreamWaitEvent(b, e, 0);
    scale_run(dy, dz, n, 3, b);
    cudaMemcpyAsync(out, dz, bytes, cudaMemcpyDeviceToHost, b);
    cudaEventRecord(e2, b);
    cudaStreamWaitEvent(a, e2, 0);
    CHECK(cudaStreamEndCapture(a, &g) == cudaSuccess);
    CHECK(cudaGraphGetNodes(g, nullptr, &nodes) == cudaSuccess && nodes == 4);
    CHECK(cudaGraphInstantiate(&x, g, 0) == cudaSuccess);
    cudaGraphDestroy(g);
    for (int replay = 0; replay < 3; replay++) {
        for (int i = 0; i < n; i++)
            in[i] = float(i + replay);
        CHECK(cudaGraphLaunch(x, a) == cudaSuccess);
        CHECK(cudaStreamSynchronize(a) == cudaSuccess);
        for (int i = 0; i < n; i++)
            CHECK(out[i] == 6 * float(i + replay));
    }
    /* The host may also ask until it is done. */
    cudaGraphLaunch(x, a);
    cudaEventRecord(e, a);
    while (cudaEventQuery(e) == cudaErrorNotReady)
        ;
    CHECK(cudaStreamQuery(a) == cudaSuccess || cudaStreamQuery(a) == cudaSuccess);
    /* A graph may be destroyed while it runs. */
    out[5] = 0;
    cudaGraphLaunch(x, a);
    CHECK(cudaGraphExecDestroy(x) == cudaSuccess && cudaStreamSynchronize(a) == cudaSuccess &&
          out[5] == 6 * in[5]);
    for (void *p : {dx, dy, dz})
        cudaFree(p);
    cudaFreeHost(in);
    cudaFreeHost(out);
    cudaEventDestroy(e);
    cudaEventDestroy(e2);
    CHECK(cudaStreamDestroy(a) == cudaSuccess && cudaStreamDestroy(b) == cudaSuccess);
}

/* ---- products ---- */

struct Product {
    int m, n, k;
    bool ta, tb;
    uint32_t epilogue;
    bool bf16_in, bf16_out;
    float beta;
};

/* A matrix of small values, in memory as the type demands. */
char *matrix(size_t n, bool bf16, size_t from, std::vector<float> &host)
{
    std::vector<char> bytes(n * (bf16 ? 2 : 4));

    host = values(n, from);
    cusim::store_floats(bytes.data(), host.data(), n, bf16);
    return to_device(bytes);
}

std::vector<float> fetch(const char *p, size_t n, bool bf16)
{
    std::vector<char> bytes = to_host(p, n * (bf16 ? 2 : 4));
    std::vector<float> v(n);
    cusim::load_floats(v.data(), bytes.data(), n, bf16);
    return v;
}

float rounded(float x, bool bf16)
{
    char two[4];
    cusim::store_floats(two, &x, 1, bf16);
    cusim::load_floats(&x, two, 1, bf16);
    return x;
}

struct Lt {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t a, b, c;
};

void lt_describe(Lt &lt, const Product &p, char *bias, char *mask)
{
    cublasOperation_t t = CUBLAS_OP_T;
    cudaDataType in = p.bf16_in ? CUDA_R_16BF : CUDA_R_32F;
    int64_t ld = 128;

    CHECK(cublasLtMatmulDescCreate(&lt.op, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS);
    if (p.ta)
        cublasLtMatmulDescSetAttribute(lt.op, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t);
    if (p.tb)
        cublasLtMatmulDescSetAttribute(lt.op, CUBLASLT_MATMUL_DESC_TRANSB, &t, sizeof t);
    cublasLtMatmulDescSetAttribute(lt.op, CUBLASLT_MATMUL_DESC_EPILOGUE, &p.epilogue, sizeof p.epilogue);
    cublasLtMatmulDescSetAttribute(lt.op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
    if (p.epilogue & 128) {
        cublasLtMatmulDescSetAttribute(lt.op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &mask, sizeof mask);
        cublasLtMatmulDescSetAttribute(lt.op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &ld, sizeof ld);
    }
    int ra = p.ta ? p.k : p.m, rb = p.tb ? p.n : p.k;
    cublasLtMatrixLayoutCreate(&lt.a, in, uint64_t(ra), uint64_t(p.ta ? p.m : p.k), ra);
    cublasLtMatrixLayoutCreate(&lt.b, in, uint64_t(rb), uint64_t(p.tb ? p.k : p.n), rb);
    cublasLtMatrixLayoutCreate(&lt.c, p.bf16_out ? CUDA_R_16BF : CUDA_R_32F, uint64_t(p.m), uint64_t(p.n),
                               p.m);
}

/* given: bytes of workspace at the call; as many as was said before if 0. */
void lt_run(Lt &lt, const char *a, const char *b, char *c, float beta, size_t given = 0)
{
    const uint64_t limit = 1 << 20;
    const float alpha = 2;
    cublasLtMatmulPreference_t pref;
    cublasLtMatmulHeuristicResult_t r;
    int n = 0;
    char *workspace = static_cast<char *>(device_bytes(limit));

    cublasLtMatmulPreferenceCreate(&pref);
    cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &limit,
                                         sizeof limit);
    CHECK(cublasLtMatmulAlgoGetHeuristic(lt.handle, lt.op, lt.a, lt.b, lt.c, lt.c, pref, 1, &r, &n) ==
              CUBLAS_STATUS_SUCCESS &&
          n == 1);
    CHECK(cublasLtMatmul(lt.handle, lt.op, &alpha, a, lt.a, b, lt.b, &beta, c, lt.c, c, lt.c, &r.algo,
                         workspace, given ? given : limit, nullptr) == CUBLAS_STATUS_SUCCESS);
    cudaFree(workspace);
    cublasLtMatmulPreferenceDestroy(pref);
}

/* Plain loops; bias and mask are what the epilogue reads or should write. */
std::vector<float> lt_expect(const Product &p, const std::vector<float> &a, const std::vector<float> &b,
                             const std::vector<float> &c, std::vector<float> &bias, std::vector<char> &mask)
{
    std::vector<float> d(size_t(p.m * p.n)), grad(size_t(p.m > p.n ? p.m : p.n), 0.0f);
    auto at_a = [&](int i, int k) { return a[size_t(p.ta ? i * p.k + k : k * p.m + i)]; };
    auto at_b = [&](int k, int j) { return b[size_t(p.tb ? k * p.n + j : j * p.k + k)]; };
    bool drelu = (p.epilogue & CUBLASLT_EPILOGUE_DRELU) == CUBLASLT_EPILOGUE_DRELU;

    for (int j = 0; j < p.n; j++)
        for (int i = 0; i < p.m; i++) {
            float x = 0;
            for (int k = 0; k < p.k; k++)
                x += at_a(i, k) * at_b(k, j);
            x = 2 * x + (p.beta != 0 ? p.beta * c[size_t(j * p.m + i)] : 0);
            char &byte = mask[size_t(j * 16 + i / 8)];
            if (p.epilogue & CUBLASLT_EPILOGUE_BIAS)
                x += bias[size_t(i)];
            if (drelu)
                x = byte >> (i % 8) & 1 ? x : 0;
            else if (p.epilogue & 128)
                byte = char((byte & ~(1 << (i % 8))) | (x > 0) << (i % 8));
            if (p.epilogue & CUBLASLT_EPILOGUE_RELU)
                x = x > 0 ? x : 0;
            if (p.epilogue == CUBLASLT_EPILOGUE_DRELU_BGRAD)
                grad[size_t(i)] += x;
            d[size_t(j * p.m + i)] = rounded(x, p.bf16_out);
        }
    for (int k = 0; k < p.k; k++) {
        for (int i = 0; i < p.m && p.epilogue == CUBLASLT_EPILOGUE_BGRADA; i++)
            grad[size_t(i)] += at_a(i, k);
        for (int j = 0; j < p.n && p.epilogue == CUBLASLT_EPILOGUE_BGRADB; j++)
            grad[size_t(j)] += at_b(k, j);
    }
    if (p.epilogue == CUBLASLT_EPILOGUE_DRELU_BGRAD || p.epilogue >= CUBLASLT_EPILOGUE_BGRADA) {
        grad.resize(size_t(p.epilogue == CUBLASLT_EPILOGUE_BGRADB ? p.n : p.m));
        for (size_t i = 0; i < grad.size(); i++)
            bias[i] = rounded(grad[i], p.bf16_out);
    }
    return d;
}

void test_product(const Product &p)
{
    std::vector<float> a, b, c, bias;
    size_t n_bias = size_t(p.m > p.n ? p.m : p.n);
    char *da = matrix(size_t(p.m * p.k), p.bf16_in, 1, a), *db = matrix(size_t(p.k * p.n), p.bf16_in, 7, b);
    char *dc = matrix(size_t(p.m * p.n), p.bf16_out, 3, c), *dbias = matrix(n_bias, p.bf16_out, 5, bias);
    std::vector<char> mask(size_t(p.n) * 16, 0x5a);
    char *dmask = to_device(mask);
    Lt lt;

    cublasLtCreate(&lt.handle);
    lt_describe(lt, p, dbias, dmask);
    lt_run(lt, da, db, dc, p.beta);
    std::vector<float> want = lt_expect(p, a, b, c, bias, mask);
    CHECK(equal(fetch(dc, want.size(), p.bf16_out), want));
    CHECK(equal(fetch(dbias, n_bias, p.bf16_out), bias));
    CHECK(to_host(dmask, mask.size()) == mask);
    cublasLtMatmulDescDestroy(lt.op);
    for (cublasLtMatrixLayout_t l : {lt.a, lt.b, lt.c})
        cublasLtMatrixLayoutDestroy(l);
    cublasLtDestroy(lt.handle);
    for (char *q : {da, db, dc, dbias, dmask})
        cudaFree(q);
}

void test_products()
{
    for (uint32_t epilogue :
         {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_RELU,
          CUBLASLT_EPILOGUE_RELU_BIAS, CUBLASLT_EPILOGUE_RELU_AUX_BIAS, CUBLASLT_EPILOGUE_DRELU,
          CUBLASLT_EPILOGUE_DRELU_BGRAD, CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB})
        for (int bits = 0; bits < 4; bits++)
            for (int types = 0; types < 3; types++)
                test_product({5, 9, 7, bool(bits & 1), bool(bits & 2), epilogue, types > 0, types > 1,
                              bits == 1 ? 0.5f : 0.0f});
}

/* C = A·B for two batches, and what TF32 loses. */
void test_gemm_ex()
{
    const float one = 1, zero = 0;
    cublasHandle_t h;
    float *a = to_device(std::vector<float>{1, 2, 3, 4, 1 + 1.0f / 4096, 0, 0, 1});
    float *b = to_device(std::vector<float>{1, 0, 1, 1, 1, 0, 0, 1}), *c = to_device(std::vector<float>(8));

    cublasCreate(&h);
    for (cublasComputeType_t compute : {CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32}) {
        CHECK(cublasGemmStridedBatchedEx(h, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, 2, &one, a, CUDA_R_32F, 2, 4, b,
                                         CUDA_R_32F, 2, 4, &zero, c, CUDA_R_32F, 2, 4, 2, compute,
                                         CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS);
        float x = compute == CUBLAS_COMPUTE_32F ? 1 + 1.0f / 4096 : 1;
        CHECK(to_host(c, 8) == (std::vector<float>{1, 2, 4, 6, x, 0, 0, 1}));
    }
    cublasDestroy(h);
    for (float *p : {a, b, c})
        cudaFree(p);
}
} // namespace

void test_convolutions();
void conv_with_small_workspace();
void conv_with_unknown_attribute();

/* An algorithm that wants more workspace than it is given. */
static void matmul_with_small_workspace()
{
    const Product p = {4, 4, 4, false, false, CUBLASLT_EPILOGUE_DEFAULT, false, false, 0};
    std::vector<float> host;
    char *a = matrix(16, false, 1, host), *c = matrix(16, false, 1, host);
    Lt lt;

    cublasLtCreate(&lt.handle);
    lt_describe(lt, p, nullptr, nullptr);
    lt_run(lt, a, a, c, 0, 1024);
}

static int mistake(const std::string &which)
{
    if (which == "matmul_workspace")
        matmul_with_small_workspace();
    else if (which == "conv_workspace")
        conv_with_small_workspace();
    else if (which == "conv_attribute")
        conv_with_unknown_attribute();
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return in_child([&] { return mistake(argv[1]); });
    test_kernels();
    test_graph();
    test_products();
    test_gemm_ex();
    test_convolutions();
    puts("all programs passed");
    return 0;
}
