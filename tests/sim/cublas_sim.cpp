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
#include <dnnl.h>
#include "tests/sim/float_sim.h"
#include "tests/sim/sim.h"

using cusim::die;
using cusim::Lock;
using cusim::Op;

namespace
{
enum : uint64_t { ALGO_MAGIC = 0x62666375736d0001 };
constexpr size_t ALGO_WORKSPACE = 64 << 10;

struct Matrix {
    cudaDataType type = CUDA_R_32F;
    int64_t rows = 0, cols = 0, ld = 0, stride = 0;
    int batch = 1;
    size_t element() const { return type == CUDA_R_32F ? 4 : 2; }
};

struct Desc {
    cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
    bool ta = false, tb = false;
    uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    char *bias = nullptr, *aux = nullptr;
    int64_t bias_stride = 0, aux_ld = 0, aux_stride = 0;
    int32_t bias_type = -1;
};

struct Preference {
    uint64_t max_workspace = 0;
};

/* D = epilogue(alpha·op(A)·op(B) + beta·C) */
struct Gemm {
    Desc d;
    Matrix a, b, c, out;
    const char *pa, *pb, *pc;
    char *pd;
    float alpha, beta;
    bool tf32;
    int64_t m() const { return out.rows; }
    int64_t n() const { return out.cols; }
    int64_t k() const { return d.ta ? a.rows : a.cols; }
    size_t bias_element() const { return d.bias_type == CUDA_R_32F || out.type == CUDA_R_32F ? 4 : 2; }
};

bool known_type(cudaDataType t)
{
    return t == CUDA_R_32F || t == CUDA_R_16BF;
}

bool has(uint32_t epilogue, uint32_t bit)
{
    return epilogue & bit;
}

bool writes_bias(uint32_t e)
{
    return e == CUBLASLT_EPILOGUE_DRELU_BGRAD || e == CUBLASLT_EPILOGUE_BGRADA ||
           e == CUBLASLT_EPILOGUE_BGRADB;
}

bool uses_bias(uint32_t e)
{
    return writes_bias(e) || has(e, CUBLASLT_EPILOGUE_BIAS);
}

bool known_epilogue(uint32_t e)
{
    switch (e) {
    case CUBLASLT_EPILOGUE_DEFAULT:
    case CUBLASLT_EPILOGUE_RELU:
    case CUBLASLT_EPILOGUE_RELU_AUX:
    case CUBLASLT_EPILOGUE_BIAS:
    case CUBLASLT_EPILOGUE_RELU_BIAS:
    case CUBLASLT_EPILOGUE_RELU_AUX_BIAS:
    case CUBLASLT_EPILOGUE_DRELU:
    case CUBLASLT_EPILOGUE_DRELU_BGRAD:
    case CUBLASLT_EPILOGUE_BGRADA:
    case CUBLASLT_EPILOGUE_BGRADB:
        return true;
    default:
        return false;
    }
}

bool fits(const Matrix &x, int64_t rows, int64_t cols)
{
    return x.rows == rows && x.cols == cols && x.ld >= x.rows;
}

cublasStatus_t check(const Gemm &g)
{
    if (!known_type(g.a.type) || g.a.type != g.b.type || !known_type(g.c.type) || g.c.type != g.out.type ||
        (g.a.type == CUDA_R_32F && g.out.type != CUDA_R_32F) || !known_epilogue(g.d.epilogue))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    int64_t m = g.m(), n = g.n(), k = g.k();
    if (!fits(g.a, g.d.ta ? k : m, g.d.ta ? m : k) || !fits(g.b, g.d.tb ? n : k, g.d.tb ? k : n) ||
        !fits(g.c, m, n) || !fits(g.out, m, n) || g.a.batch != g.b.batch || g.a.batch != g.out.batch ||
        g.a.batch != g.c.batch)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (g.d.aux_ld && (g.d.aux_ld % 128 || g.d.aux_ld < m))
        return CUBLAS_STATUS_INVALID_VALUE;
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- memory ---- */

/* Checks and declares all columns of a matrix. */
void declare(Op &op, const char *what, const Matrix &x, const char *p, bool read, bool write)
{
    size_t e = x.element();

    for (int b = 0; b < x.batch; b++) {
        const char *base = p + int64_t(b) * x.stride * int64_t(e);
        if (x.rows && x.cols)
            cusim::require_device((op.name + ", " + what).c_str(), base,
                                  size_t((x.cols - 1) * x.ld + x.rows) * e);
        bool dense = x.ld == x.rows;
        for (int64_t j = 0; j < (dense ? 1 : x.cols); j++) {
            const char *column = base + j * x.ld * int64_t(e);
            size_t bytes = size_t(dense ? x.rows * x.cols : x.rows) * e;
            if (read)
                op.reads(column, bytes);
            if (write)
                op.writes(column, bytes);
        }
    }
}

void declare_vector(Op &op, const char *what, const char *p, size_t bytes, bool write)
{
    cusim::require_device((op.name + ", " + what).c_str(), p, bytes);
    if (write)
        op.writes(p, bytes);
    else
        op.reads(p, bytes);
}

/* Dense, column-major, fp32. */
std::vector<float> load(const Matrix &x, const char *p, bool tf32)
{
    std::vector<float> v(static_cast<size_t>(x.rows * x.cols));

    for (int64_t j = 0; j < x.cols; j++)
        cusim::load_floats(v.data() + j * x.rows, p + size_t(j * x.ld) * x.element(), size_t(x.rows),
                           x.type == CUDA_R_16BF);
    if (tf32)
        for (float &f : v)
            f = cusim::round_tf32(f);
    return v;
}

void store(const Matrix &x, char *p, const std::vector<float> &v)
{
    for (int64_t j = 0; j < x.cols; j++)
        cusim::store_floats(p + size_t(j * x.ld) * x.element(), v.data() + j * x.rows, size_t(x.rows),
                            x.type == CUDA_R_16BF);
}

/* ---- computing ---- */

/* Σ over k of op(A)'s rows or op(B)'s columns; `rows`: whether the sum runs along columns of x. */
std::vector<float> sums_of(const Matrix &x, const std::vector<float> &v, bool along_rows)
{
    std::vector<float> s(static_cast<size_t>(along_rows ? x.cols : x.rows), 0.0f);

    for (int64_t j = 0; j < x.cols; j++)
        for (int64_t i = 0; i < x.rows; i++)
            s[size_t(along_rows ? j : i)] += v[size_t(j * x.rows + i)];
    return s;
}

void apply_epilogue(const Gemm &g, int batch, std::vector<float> &d)
{
    uint32_t e = g.d.epilogue;
    int64_t m = g.m(), n = g.n();
    char *bias = g.d.bias + batch * g.d.bias_stride * int64_t(g.bias_element());
    std::vector<float> vec(static_cast<size_t>(m), 0.0f);

    if (has(e, CUBLASLT_EPILOGUE_BIAS))
        cusim::load_floats(vec.data(), bias, size_t(m), g.bias_element() == 2);
    bool drelu = e == CUBLASLT_EPILOGUE_DRELU || e == CUBLASLT_EPILOGUE_DRELU_BGRAD;
    bool mask_out = e == CUBLASLT_EPILOGUE_RELU_AUX || e == CUBLASLT_EPILOGUE_RELU_AUX_BIAS;
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < m; i++) {
            float &x = d[size_t(j * m + i)];
            int64_t bit = batch * g.d.aux_stride + j * g.d.aux_ld + i;
            char *byte = g.d.aux + bit / 8;
            if (drelu) {
                x = *byte >> (bit % 8) & 1 ? x : 0.0f;
                vec[size_t(i)] += x;
                continue;
            }
            x += vec[size_t(i)];
            if (mask_out)
                *byte = char((*byte & ~(1 << (bit % 8))) | (x > 0) << (bit % 8));
            if (has(e, CUBLASLT_EPILOGUE_RELU))
                x = x > 0 ? x : 0.0f;
        }
    if (e == CUBLASLT_EPILOGUE_DRELU_BGRAD)
        cusim::store_floats(bias, vec.data(), size_t(m), g.bias_element() == 2);
}

void compute_one(const Gemm &g, int batch)
{
    int64_t m = g.m(), n = g.n(), k = g.k();
    auto at = [&](const char *p, const Matrix &x) { return p + batch * x.stride * int64_t(x.element()); };
    std::vector<float> a = load(g.a, at(g.pa, g.a), g.tf32), b = load(g.b, at(g.pb, g.b), g.tf32);
    std::vector<float> d(static_cast<size_t>(m * n), 0.0f);

    /* Row-major Dᵀ = op(B)ᵀ·op(A)ᵀ. */
    if (k && dnnl_sgemm(g.d.tb ? 'T' : 'N', g.d.ta ? 'T' : 'N', n, m, k, 1.0f, b.data(), g.b.rows, a.data(),
                        g.a.rows, 0.0f, d.data(), m) != dnnl_success)
        die("oneDNN's sgemm failed");
    std::vector<float> c;
    if (g.beta != 0)
        c = load(g.c, at(g.pc, g.c), false);
    for (size_t i = 0; i < d.size(); i++)
        d[i] = g.alpha * d[i] + (g.beta != 0 ? g.beta * c[i] : 0.0f);
    if (g.d.epilogue != CUBLASLT_EPILOGUE_DEFAULT)
        apply_epilogue(g, batch, d);
    store(g.out, const_cast<char *>(at(g.pd, g.out)), d);
    std::vector<float> s;
    if (g.d.epilogue == CUBLASLT_EPILOGUE_BGRADA)
        s = sums_of(g.a, a, g.d.ta);
    if (g.d.epilogue == CUBLASLT_EPILOGUE_BGRADB)
        s = sums_of(g.b, b, !g.d.tb);
    if (!s.empty())
        cusim::store_floats(g.d.bias + batch * g.d.bias_stride * int64_t(g.bias_element()), s.data(),
                            s.size(), g.bias_element() == 2);
}

void enqueue(const Gemm &g, const char *name, void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    Op op;
    size_t n_bias = size_t(g.d.epilogue == CUBLASLT_EPILOGUE_BGRADB ? g.n() : g.m());

    op.name = std::string(name) + " " + std::to_string(g.m()) + "x" + std::to_string(g.n()) + "x" +
              std::to_string(g.k());
    declare(op, "A", g.a, g.pa, true, false);
    declare(op, "B", g.b, g.pb, true, false);
    if (g.beta != 0)
        declare(op, "C", g.c, g.pc, true, false);
    declare(op, "D", g.out, g.pd, false, true);
    for (int b = 0; b < g.out.batch; b++) {
        if (uses_bias(g.d.epilogue))
            declare_vector(op, "bias", g.d.bias + b * g.d.bias_stride * int64_t(g.bias_element()),
                           n_bias * g.bias_element(), writes_bias(g.d.epilogue));
        if (has(g.d.epilogue, 128))
            declare_vector(op, "aux", g.d.aux + b * g.d.aux_stride / 8, size_t(g.d.aux_ld * g.n()) / 8,
                           has(g.d.epilogue, CUBLASLT_EPILOGUE_RELU));
    }
    if (workspace_bytes)
        declare_vector(op, "workspace", static_cast<char *>(workspace), workspace_bytes, true);
    op.run = [g, workspace, workspace_bytes] {
        if (workspace_bytes)
            memset(workspace, 0xff, workspace_bytes);
        for (int b = 0; b < g.out.batch; b++)
            compute_one(g, b);
    };
    cusim::stream_push(stream, std::move(op));
}

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
    cublasStatus_t s = check(make_gemm(d, a, b, c, out));

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
    cublasStatus_t s = check(g);
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
    enqueue(g, "matmul", workspace, needs, stream);
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
    cublasStatus_t s = check(g);
    if (s == CUBLAS_STATUS_SUCCESS && m && n)
        enqueue(g, "gemm", h->workspace, h->workspace_bytes, h->stream);
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
