/* gemm_sim - a matrix product as cuBLAS and cuBLASLt describe it. Matrices are column-major. */
#ifndef TESTS_SIM_GEMM_SIM_H
#define TESTS_SIM_GEMM_SIM_H

#include <cublasLt.h>
#include "tests/sim/sim.h"

namespace cusim
{
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

/* An epilogue with this bit. */
inline bool has(uint32_t epilogue, uint32_t bit)
{
    return epilogue & bit;
}
/* Whether an epilogue reads or writes a bias vector. */
bool uses_bias(uint32_t epilogue);
/* Whether it is simulated, and its shapes belong together. */
cublasStatus_t gemm_check(const Gemm &g);
/* Puts it on the stream. Checks and declares all that it touches, the workspace as written. */
void gemm_enqueue(const Gemm &g, const char *name, void *workspace, size_t workspace_bytes,
                  cudaStream_t stream);
} // namespace cusim

#endif
