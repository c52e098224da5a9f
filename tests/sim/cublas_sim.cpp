/* cublas_sim - cuBLASLt's matmul and cuBLAS's gemm, by oneDNN's sgemm.
 *
 * fp32 (TF32 where the compute type or math mode says so: operands are rounded to 10 bits of mantissa) and
 * bf16 operands, fp32 or bf16 results, sums in fp32, strided batches. Epilogues: bias, ReLU with and without
 * its bit mask, the mask applied with and without the bias gradient, bias gradients of either operand. What
 * is not simulated is refused by the heuristics, an attribute that is not by its number.
 *
 * Matrices are column-major. Every operation declares the columns that it touches; the workspace counts as
 * written.
 */
#include <cstring>
#include <cublasLt.h>
#include <cublas_v2.h>
#include "tests/sim/gemm_sim.h"

using cusim::Desc;
using cusim::die;
using cusim::Gemm;
using cusim::has;
using cusim::Lock;
using cusim::Matrix;
using cusim::uses_bias;

namespace
{
enum : uint64_t { ALGO_MAGIC = 0x62666375736d0001 };
constexpr size_t ALGO_WORKSPACE = 64 << 10;

struct Preference {
    uint64_t max_workspace = 0;
};

template <class T> T value(const void *p, size_t bytes)
{
    T v;
    if (bytes != sizeof v)
        die("cuBLASLt: an attribute was given with %zu bytes instead of %zu", bytes, sizeof v);
    memcpy(&v, p, sizeof v);
    return v;
}

Gemm make_gemm(cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
               cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out)
{
    Gemm g = {};
    g.d = *reinterpret_cast<Desc *>(d);
    g.a = *reinterpret_cast<Matrix *>(a);
    g.b = *reinterpret_cast<Matrix *>(b);
    g.c = *reinterpret_cast<Matrix *>(c);
    g.out = *reinterpret_cast<Matrix *>(out);
    g.tf32 = g.d.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    return g;
}
} // namespace

struct cublasLtContext {
    int unused;
};

struct cublasContext {
    cudaStream_t stream = nullptr;
    cublasMath_t math = CUBLAS_DEFAULT_MATH;
    void *workspace = nullptr;
    size_t workspace_bytes = 0;
};

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t *h)
{
    *h = new cublasLtContext;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t h)
{
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void)
{
    return CUBLAS_VERSION;
}

static const char *status_name(cublasStatus_t s)
{
    switch (s) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
        return "CUBLAS_STATUS (not named by the simulator)";
    }
}

const char *cublasLtGetStatusName(cublasStatus_t s)
{
    return status_name(s);
}

const char *cublasLtGetStatusString(cublasStatus_t s)
{
    return status_name(s);
}

const char *cublasGetStatusName(cublasStatus_t s)
{
    return status_name(s);
}

const char *cublasGetStatusString(cublasStatus_t s)
{
    return status_name(s);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t ld)
{
    Matrix *x = new Matrix;
    x->type = type;
    x->rows = int64_t(rows);
    x->cols = int64_t(cols);
    x->ld = ld;
    *l = reinterpret_cast<cublasLtMatrixLayout_t>(x);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    delete reinterpret_cast<Matrix *>(l);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t a,
                                                const void *p, size_t n)
{
    Matrix *x = reinterpret_cast<Matrix *>(l);

    switch (a) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
        x->type = cudaDataType(value<uint32_t>(p, n));
        break;
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
        if (value<int32_t>(p, n) != CUBLASLT_ORDER_COL)
            die("cuBLASLt: only column-major matrices are simulated");
        break;
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
        x->rows = value<int64_t>(p, n);
        break;
    case CUBLASLT_MATRIX_LAYOUT_COLS:
        x->cols = value<int64_t>(p, n);
        break;
    case CUBLASLT_MATRIX_LAYOUT_LD:
        x->ld = value<int64_t>(p, n);
        break;
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
        x->batch = value<int32_t>(p, n);
        break;
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
        x->stride = value<int64_t>(p, n);
        break;
    default:
        die("cuBLASLt: attribute %d of matrix layouts is not simulated", int(a));
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    if (scale != CUDA_R_32F || (compute != CUBLAS_COMPUTE_32F && compute != CUBLAS_COMPUTE_32F_PEDANTIC &&
                                compute != CUBLAS_COMPUTE_32F_FAST_TF32))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    Desc *x = new Desc;
    x->compute = compute;
    *d = reinterpret_cast<cublasLtMatmulDesc_t>(x);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d)
{
    delete reinterpret_cast<Desc *>(d);
    return CUBLAS_STATUS_SUCCESS;
}

static bool transposed(int32_t op)
{
    return op != CUBLAS_OP_N;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a,
                                              const void *p, size_t n)
{
    Desc *x = reinterpret_cast<Desc *>(d);

    switch (a) {
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
        if (value<int32_t>(p, n) != CUBLASLT_POINTER_MODE_HOST)
            die("cuBLASLt: only alpha and beta in host memory are simulated");
        break;
    case CUBLASLT_MATMUL_DESC_TRANSA:
        x->ta = transposed(value<int32_t>(p, n));
        break;
    case CUBLASLT_MATMUL_DESC_TRANSB:
        x->tb = transposed(value<int32_t>(p, n));
        break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        x->epilogue = value<uint32_t>(p, n);
        break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        x->bias = value<char *>(p, n);
        break;
    case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE:
        x->bias_stride = value<int64_t>(p, n);
        break;
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        x->bias_type = value<int32_t>(p, n);
        break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
        x->aux = value<char *>(p, n);
        break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
        x->aux_ld = value<int64_t>(p, n);
        break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE:
        x->aux_stride = value<int64_t>(p, n);
        break;
    default:
        die("cuBLASLt: attribute %d of matmul descriptors is not simulated", int(a));
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p)
{
    *p = reinterpret_cast<cublasLtMatmulPreference_t>(new Preference);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    delete reinterpret_cast<Preference *>(p);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t pref,
                                                    cublasLtMatmulPreferenceAttributes_t a, const void *p,
                                                    size_t n)
{
    Preference *x = reinterpret_cast<Preference *>(pref);

    switch (a) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        x->max_workspace = value<uint64_t>(p, n);
        break;
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE:
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        value<uint32_t>(p, n);
        break;
    default:
        die("cuBLASLt: attribute %d of preferences is not simulated", int(a));
    }
    return CUBLAS_STATUS_SUCCESS;
}

/* One algorithm. It wants a workspace when it may have one. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out,
                                              cublasLtMatmulPreference_t pref, int want,
                                              cublasLtMatmulHeuristicResult_t results[], int *n)
{
    uint64_t limit = reinterpret_cast<Preference *>(pref)->max_workspace;
    cublasStatus_t s = cusim::gemm_check(make_gemm(d, a, b, c, out));

    *n = 0;
    if (s != CUBLAS_STATUS_SUCCESS || want < 1)
        return s;
    memset(&results[0], 0, sizeof results[0]);
    results[0].workspaceSize = limit >= ALGO_WORKSPACE ? ALGO_WORKSPACE : 0;
    results[0].algo.data[0] = ALGO_MAGIC;
    results[0].algo.data[1] = results[0].workspaceSize;
    results[0].state = CUBLAS_STATUS_SUCCESS;
    results[0].wavesCount = 1;
    *n = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *,
                                                    cublasLtMatmulAlgoConfigAttributes_t a, void *p, size_t n,
                                                    size_t *written)
{
    int32_t v = a == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? 1 : 0;

    if (n < sizeof v)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(p, &v, sizeof v);
    if (written)
        *written = sizeof v;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void *alpha, const void *pa,
                              cublasLtMatrixLayout_t a, const void *pb, cublasLtMatrixLayout_t b,
                              const void *beta, const void *pc, cublasLtMatrixLayout_t c, void *pd,
                              cublasLtMatrixLayout_t out, const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream)
{
    Lock lock;
    Gemm g = make_gemm(d, a, b, c, out);
    cublasStatus_t s = cusim::gemm_check(g);
    size_t needs = 0;

    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    if (algo) {
        if (algo->data[0] != ALGO_MAGIC)
            die("cublasLtMatmul: the algorithm does not come from the heuristics");
        needs = algo->data[1];
    }
    if (workspace_bytes < needs)
        die("cublasLtMatmul: a workspace of %zu bytes is too small for the algorithm, which wants %zu",
            workspace_bytes, needs);
    if (uses_bias(g.d.epilogue) && !g.d.bias)
        die("cublasLtMatmul: epilogue %u without a bias pointer", g.d.epilogue);
    if (has(g.d.epilogue, 128) && (!g.d.aux || !g.d.aux_ld))
        die("cublasLtMatmul: epilogue %u without an auxiliary buffer and its leading dimension",
            g.d.epilogue);
    g.alpha = *static_cast<const float *>(alpha);
    g.beta = *static_cast<const float *>(beta);
    g.pa = static_cast<const char *>(pa);
    g.pb = static_cast<const char *>(pb);
    g.pc = static_cast<const char *>(pc);
    g.pd = static_cast<char *>(pd);
    cusim::gemm_enqueue(g, "matmul", workspace, needs, stream);
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- cuBLAS ---- */

cublasStatus_t cublasCreate_v2(cublasHandle_t *h)
{
    *h = new cublasContext;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t h)
{
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetVersion_v2(cublasHandle_t, int *v)
{
    *v = CUBLAS_VERSION;
    return CUBLAS_STATUS_SUCCESS;
}

/* Forgets the workspace, as cuBLAS does. */
cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t s)
{
    h->stream = s;
    h->workspace = nullptr;
    h->workspace_bytes = 0;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t h, void *p, size_t bytes)
{
    Lock lock;

    cusim::require_device("cublasSetWorkspace", p, bytes);
    h->workspace = p;
    h->workspace_bytes = bytes;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t h, cublasMath_t m)
{
    h->math = m;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m,
                                          int n, int k, const void *alpha, const void *a, cudaDataType at,
                                          int lda, long long sa, const void *b, cudaDataType bt, int ldb,
                                          long long sb, const void *beta, void *c, cudaDataType ct, int ldc,
                                          long long sc, int batch, cublasComputeType_t compute,
                                          cublasGemmAlgo_t)
{
    Lock lock;
    Gemm g = {};

    g.d.ta = transposed(ta);
    g.d.tb = transposed(tb);
    g.d.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    auto matrix = [batch](cudaDataType t, int64_t rows, int64_t cols, int64_t ld, int64_t stride) {
        Matrix x;
        x.type = t;
        x.rows = rows;
        x.cols = cols;
        x.ld = ld;
        x.stride = stride;
        x.batch = batch;
        return x;
    };
    g.a = matrix(at, g.d.ta ? k : m, g.d.ta ? m : k, lda, sa);
    g.b = matrix(bt, g.d.tb ? n : k, g.d.tb ? k : n, ldb, sb);
    g.c = g.out = matrix(ct, m, n, ldc, sc);
    g.alpha = *static_cast<const float *>(alpha);
    g.beta = *static_cast<const float *>(beta);
    g.pa = static_cast<const char *>(a);
    g.pb = static_cast<const char *>(b);
    g.pc = g.pd = static_cast<char *>(c);
    g.tf32 = at == CUDA_R_32F &&
             (compute == CUBLAS_COMPUTE_32F_FAST_TF32 || h->math == CUBLAS_TF32_TENSOR_OP_MATH);
    cublasStatus_t s = cusim::gemm_check(g);
    if (s == CUBLAS_STATUS_SUCCESS && m && n)
        cusim::gemm_enqueue(g, "gemm", h->workspace, h->workspace_bytes, h->stream);
    return s;
}

cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                            const void *alpha, const void *a, cudaDataType at, int lda, const void *b,
                            cudaDataType bt, int ldb, const void *beta, void *c, cudaDataType ct, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algo)
{
    return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, a, at, lda, 0, b, bt, ldb, 0, beta, c, ct,
                                      ldc, 0, 1, compute, algo);
}
}
