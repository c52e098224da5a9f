/* cuemu - the CUDA language for g++: what a .cu file sees when it is compiled as C++ with BF_SIM.
 *
 * A kernel is an ordinary function. The threads of a block are fibers of one OS thread (cuemu.cpp); they
 * change over at barriers and warp operations only, in an order that is forward in one launch, backward in
 * the next and random in the third. Blocks run one after the other, also backward in every second launch.
 * Types and the conversions of bf16 are CUDA's own (vector_types.h, cuda_bf16.h: they work in host code).
 *
 * Always caught, with a sentence and abort(): a barrier that not all threads reach, or reach different ones;
 * a warp operation that names lanes which have exited, do not exist or do another operation; a value taken
 * from a lane outside of the mask; a deadlock. The dynamic shared memory is poisoned (0xff: NaN) before each
 * block and ends at a page that may not be touched.
 *
 * Caught where the .cu file is compiled with -fsanitize=thread, whose calls before every load and store
 * kernel_shadow.cpp answers: races between threads of a block in shared memory, races between blocks in
 * device memory, reads of shared memory that nobody wrote, accesses outside of allocations. Not caught
 * anywhere: races in device memory between threads of one block (unless an order changes the result), how the
 * memory model orders blocks, occupancy, time.
 *
 * Atomic operations on float and double do not compile: their sums depend on chance.
 */
#ifndef TESTS_SIM_CUEMU_H
#define TESTS_SIM_CUEMU_H

#ifdef __CUDACC__
#error "cuemu.h is for g++ only"
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <cuda_bf16.h>
#include "tests/sim/kernel_shadow.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __forceinline__
#define __global__ static
#define __device__
#define __host__
#define __constant__ static
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
/* In thread-local storage, because that is how kernel_shadow.cpp tells it from other static data. */
#define __shared__ static thread_local

namespace cuemu
{
enum class Warp { SHUFFLE, SYNC, BALLOT, ALL, ANY };
enum class Barrier { PLAIN, COUNT, AND, OR };

struct Builtins {
    uint3 thread;
    uint3 block;
    dim3 block_dim, grid_dim;
    unsigned lane; /* in the warp */
};

/* Of the thread that runs. */
extern Builtins now;

int barrier(Barrier kind, int line, int predicate);
/* Gives `bits` to the other lanes of the mask and waits for all of them. */
void warp_meet(Warp kind, unsigned mask, uint64_t bits);
/* What a lane of this warp gave at the last meeting; it must have been in the mask. */
uint64_t warp_value(unsigned mask, unsigned lane);
unsigned warp_vote(Warp kind, unsigned mask, int predicate);
void *dynamic_shared();
[[noreturn]] void die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

int atomic_add_i32(int *p, int v);
unsigned atomic_add_u32(unsigned *p, unsigned v);
unsigned long long atomic_add_u64(unsigned long long *p, unsigned long long v);
int atomic_max_i32(int *p, int v);
unsigned atomic_or_u32(unsigned *p, unsigned v);

/* Runs a grid now; the runtime double calls this. */
void run_grid(const char *name, dim3 grid, dim3 block, size_t smem_bytes, const std::function<void()> &body);
/* Puts it on a stream: the runtime double's (sim_stream.cpp). */
void enqueue(const char *name, dim3 grid, dim3 block, size_t smem_bytes, cudaStream_t stream,
             std::function<void()> body);

template <class... P> struct Call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
};

/* Arguments are converted and copied at the launch, as CUDA does. */
template <class... P, class... A>
void launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem_bytes,
            cudaStream_t stream, A... args)
{
    static_assert(sizeof...(P) == sizeof...(A), "the kernel has another number of parameters");
    Call<P...> call{kernel, std::tuple<P...>(static_cast<P>(args)...)};

    enqueue(name, grid, block, smem_bytes, stream, [call] {
        shadow_arguments(&call, sizeof call);
        std::apply(call.kernel, call.arguments);
    });
}

template <class T> uint64_t to_bits(T v)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof v);
    return bits;
}

template <class T> T from_bits(uint64_t bits)
{
    T v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* Every lane computes where it takes from: `lane`, or itself when that lies outside of its segment. */
template <class T> T shuffle(unsigned mask, T v, unsigned lane)
{
    warp_meet(Warp::SHUFFLE, mask, to_bits(v));
    return from_bits<T>(warp_value(mask, lane));
}
} // namespace cuemu

#define threadIdx (cuemu::now.thread)
#define blockIdx (cuemu::now.block)
#define blockDim (cuemu::now.block_dim)
#define gridDim (cuemu::now.grid_dim)
constexpr int warpSize = 32;

#define BF_LAUNCH(kernel, grid, block, smem_bytes, stream, ...)                                              \
    cuemu::launch(#kernel, kernel, grid, block, smem_bytes, stream, __VA_ARGS__)
#define BF_DYNAMIC_SHARED(type, name) type *name = static_cast<type *>(cuemu::dynamic_shared())

#define __syncthreads() ((void)cuemu::barrier(cuemu::Barrier::PLAIN, __LINE__, 0))
#define __syncthreads_count(p) cuemu::barrier(cuemu::Barrier::COUNT, __LINE__, (p) != 0)
#define __syncthreads_and(p) cuemu::barrier(cuemu::Barrier::AND, __LINE__, (p) != 0)
#define __syncthreads_or(p) cuemu::barrier(cuemu::Barrier::OR, __LINE__, (p) != 0)

inline void __syncwarp(unsigned mask = 0xffffffffu)
{
    cuemu::warp_meet(cuemu::Warp::SYNC, mask, 0);
}
inline unsigned __ballot_sync(unsigned mask, int p)
{
    return cuemu::warp_vote(cuemu::Warp::BALLOT, mask, p);
}
inline int __all_sync(unsigned mask, int p)
{
    return cuemu::warp_vote(cuemu::Warp::ALL, mask, p) == mask;
}
inline int __any_sync(unsigned mask, int p)
{
    return cuemu::warp_vote(cuemu::Warp::ANY, mask, p) != 0;
}

template <class T> T __shfl_sync(unsigned mask, T v, int lane, int width = 32)
{
    unsigned first = cuemu::now.lane & ~unsigned(width - 1);
    return cuemu::shuffle(mask, v, first + (unsigned(lane) & unsigned(width - 1)));
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32)
{
    unsigned at = cuemu::now.lane & unsigned(width - 1);
    return cuemu::shuffle(mask, v, at >= by ? cuemu::now.lane - by : cuemu::now.lane);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32)
{
    unsigned at = cuemu::now.lane & unsigned(width - 1);
    return cuemu::shuffle(mask, v, at + by < unsigned(width) ? cuemu::now.lane + by : cuemu::now.lane);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int by, int width = 32)
{
    unsigned lane = cuemu::now.lane ^ unsigned(by), end = (cuemu::now.lane & ~unsigned(width - 1)) + width;
    return cuemu::shuffle(mask, v, lane < end ? lane : cuemu::now.lane);
}

inline int atomicAdd(int *p, int v)
{
    return cuemu::atomic_add_i32(p, v);
}
inline unsigned atomicAdd(unsigned *p, unsigned v)
{
    return cuemu::atomic_add_u32(p, v);
}
inline unsigned long long atomicAdd(unsigned long long *p, unsigned long long v)
{
    return cuemu::atomic_add_u64(p, v);
}
inline int atomicMax(int *p, int v)
{
    return cuemu::atomic_max_i32(p, v);
}
inline unsigned atomicOr(unsigned *p, unsigned v)
{
    return cuemu::atomic_or_u32(p, v);
}
float atomicAdd(float *p, float v) = delete;
double atomicAdd(double *p, double v) = delete;

template <class T> T __ldg(const T *p)
{
    return *p;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

inline float __expf(float x)
{
    return expf(x);
}
inline float __logf(float x)
{
    return logf(x);
}
inline float __fdividef(float a, float b)
{
    return a / b;
}
inline float rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}
inline double rsqrt(double x)
{
    return 1.0 / sqrt(x);
}
inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
inline double __fma_rn(double a, double b, double c)
{
    return fma(a, b, c);
}
/* Never contracted into a multiply-add: the barrier hides the value from the optimiser. */
inline float __fmul_rn(float a, float b)
{
    float r = a * b;
    __asm__("" : "+x"(r));
    return r;
}
inline float __fadd_rn(float a, float b)
{
    __asm__("" : "+x"(a));
    return a + b;
}
inline double __dmul_rn(double a, double b)
{
    double r = a * b;
    __asm__("" : "+x"(r));
    return r;
}
inline double __dadd_rn(double a, double b)
{
    __asm__("" : "+x"(a));
    return a + b;
}
inline int __float_as_int(float x)
{
    return int(cuemu::to_bits(x));
}
inline unsigned __float_as_uint(float x)
{
    return unsigned(cuemu::to_bits(x));
}
inline float __int_as_float(int x)
{
    return cuemu::from_bits<float>(cuemu::to_bits(x));
}
inline float __uint_as_float(unsigned x)
{
    return cuemu::from_bits<float>(x);
}
inline unsigned __umulhi(unsigned a, unsigned b)
{
    return unsigned((uint64_t(a) * b) >> 32);
}
inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
inline int __clz(int x)
{
    return x ? __builtin_clz(unsigned(x)) : 32;
}
inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

/* CUDA has these for all arithmetic types in the global namespace. */
template <class A, class B> std::common_type_t<A, B> min(A a, B b)
{
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>)
        return std::fmin(T(a), T(b));
    else
        return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B> std::common_type_t<A, B> max(A a, B b)
{
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>)
        return std::fmax(T(a), T(b));
    else
        return T(a) < T(b) ? T(b) : T(a);
}
using std::isfinite;
using std::isinf;
using std::isnan;

#endif
