/* gemm_sim - matrix products by oneDNN's sgemm, their epilogues, and what of memory they touch. */
#include <cstring>
#include <dnnl.h>
#include "tests/sim/float_sim.h"
#include "tests/sim/gemm_sim.h"

namespace cusim
{
static bool known_type(cudaDataType t)
{
    return t == CUDA_R_32F || t == CUDA_R_16BF;
}

static bool writes_bias(uint32_t e)
{
    return e == CUBLASLT_EPILOGUE_DRELU_BGRAD || e == CUBLASLT_EPILOGUE_BGRADA ||
           e == CUBLASLT_EPILOGUE_BGRADB;
}

bool uses_bias(uint32_t e)
{
    return writes_bias(e) || has(e, CUBLASLT_EPILOGUE_BIAS);
}

static bool known_epilogue(uint32_t e)
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

static bool fits(const Matrix &x, int64_t rows, int64_t cols)
{
    return x.rows == rows && x.cols == cols && x.ld >= x.rows;
}

cublasStatus_t gemm_check(const Gemm &g)
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
static void declare(Op &op, const char *what, const Matrix &x, const char *p, bool read, bool write)
{
    size_t e = x.element();

    for (int b = 0; b < x.batch; b++) {
        const char *base = p + int64_t(b) * x.stride * int64_t(e);
        if (x.rows && x.cols)
            require_device((op.name + ", " + what).c_str(), base, size_t((x.cols - 1) * x.ld + x.rows) * e);
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

static void declare_vector(Op &op, const char *what, const char *p, size_t bytes, bool write)
{
    require_device((op.name + ", " + what).c_str(), p, bytes);
    if (write)
        op.writes(p, bytes);
    else
        op.reads(p, bytes);
}

/* Dense, column-major, fp32. */
static std::vector<float> load(const Matrix &x, const char *p, bool tf32)
{
    std::vector<float> v(static_cast<size_t>(x.rows * x.cols));

    for (int64_t j = 0; j < x.cols; j++)
        load_floats(v.data() + j * x.rows, p + size_t(j * x.ld) * x.element(), size_t(x.rows),
                    x.type == CUDA_R_16BF);
    if (tf32)
        for (float &f : v)
            f = round_tf32(f);
    return v;
}

static void store(const Matrix &x, char *p, const std::vector<float> &v)
{
    for (int64_t j = 0; j < x.cols; j++)
        store_floats(p + size_t(j * x.ld) * x.element(), v.data() + j * x.rows, size_t(x.rows),
                     x.type == CUDA_R_16BF);
}

/* ---- computing ---- */

/* Σ over k of op(A)'s rows or op(B)'s columns; `rows`: whether the sum runs along columns of x. */
static std::vector<float> sums_of(const Matrix &x, const std::vector<float> &v, bool along_rows)
{
    std::vector<float> s(static_cast<size_t>(along_rows ? x.cols : x.rows), 0.0f);

    for (int64_t j = 0; j < x.cols; j++)
        for (int64_t i = 0; i < x.rows; i++)
            s[size_t(along_rows ? j : i)] += v[size_t(j * x.rows + i)];
    return s;
}

static void apply_epilogue(const Gemm &g, int batch, std::vector<float> &d)
{
    uint32_t e = g.d.epilogue;
    int64_t m = g.m(), n = g.n();
    char *bias = g.d.bias + batch * g.d.bias_stride * int64_t(g.bias_element());
    std::vector<float> vec(static_cast<size_t>(m), 0.0f);

    if (has(e, CUBLASLT_EPILOGUE_BIAS))
        load_floats(vec.data(), bias, size_t(m), g.bias_element() == 2);
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
        store_floats(bias, vec.data(), size_t(m), g.bias_element() == 2);
}

static void compute_one(const Gemm &g, int batch)
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
        store_floats(g.d.bias + batch * g.d.bias_stride * int64_t(g.bias_element()), s.data(), s.size(),
                     g.bias_element() == 2);
}

void gemm_enqueue(const Gemm &g, const char *name, void *workspace, size_t workspace_bytes,
                  cudaStream_t stream)
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
    stream_push(stream, std::move(op));
}
} // namespace cusim
