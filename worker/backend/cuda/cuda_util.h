/* cuda_util - a failed call of a vendor's library becomes a sentence in struct err: what was called, the
 * code's name, where.
 *
 * The macros return -1 from the function that uses them. Who uses one of the last three includes that
 * library's header; this one knows the runtime's only.
 */
#ifndef BACKEND_CUDA_UTIL_H
#define BACKEND_CUDA_UTIL_H

#include <cuda_runtime_api.h>
#include "common/err.h"

#define CUDA_TRY(e, call)                                                                                    \
    do {                                                                                                     \
        cudaError_t status_ = (call);                                                                        \
        if (status_ != cudaSuccess)                                                                          \
            return err_set((e), "CUDA: %s: %s, %s (%s:%d)", #call, cudaGetErrorName(status_),                \
                           cudaGetErrorString(status_), __FILE__, __LINE__);                                 \
    } while (0)

#define CUBLAS_TRY(e, call)                                                                                  \
    do {                                                                                                     \
        cublasStatus_t status_ = (call);                                                                     \
        if (status_ != CUBLAS_STATUS_SUCCESS)                                                                \
            return err_set((e), "cuBLAS: %s: %s (%s:%d)", #call, cublasLtGetStatusName(status_), __FILE__,   \
                           __LINE__);                                                                        \
    } while (0)

#define CUDNN_TRY(e, call)                                                                                   \
    do {                                                                                                     \
        cudnnStatus_t status_ = (call);                                                                      \
        if (status_ != CUDNN_STATUS_SUCCESS)                                                                 \
            return err_set((e), "cuDNN: %s: %s (%s:%d)", #call, cudnnGetErrorString(status_), __FILE__,      \
                           __LINE__);                                                                        \
    } while (0)

#define NCCL_TRY(e, call)                                                                                    \
    do {                                                                                                     \
        ncclResult_t status_ = (call);                                                                       \
        if (status_ != ncclSuccess && status_ != ncclInProgress)                                             \
            return err_set_kind((e), status_ == ncclRemoteError ? ERR_PEER_LOST : ERR_GENERIC,               \
                                "NCCL: %s: %s (%s:%d)", #call, ncclGetErrorString(status_), __FILE__,        \
                                __LINE__);                                                                   \
    } while (0)

#endif
