/* kernel_check - what the tests of single kernels share: arrays in device memory with guards around them,
 * random numbers, comparison with a reference in fp64.
 *
 * Only the CUDA runtime is used, so the same tests run on a GPU when they are linked with nvcc's objects.
 */
#ifndef TESTS_SIM_KERNEL_CHECK_H
#define TESTS_SIM_KERNEL_CHECK_H

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#include <cuda_runtime_api.h>
#include "common/philox.h"
#include "worker/engine/backend.h"

namespace check
{
[[noreturn]] inline void fail(const char *file, int line, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "%s:%d: ", file, line);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(1);
}

/* Fails with a sentence. */
#define CHECK(cond, ...)                                                                                     \
    do {                                                                                                     \
        if (!(cond))                                                                                         \
            check::fail(__FILE__, __LINE__, __VA_ARGS__);                                                    \
    } while (0)

#define CUDA_OK(call) CHECK((call) == cudaSuccess, "%s failed", #call)

/* bf16 by its bits: this code knows nothing of CUDA's type. */
struct bf16 {
    uint16_t bits;
};

inline float to_float(float v)
{
    return v;
}
inline double to_float(double v)
{
    return v;
}
inline float to_float(bf16 v)
{
    uint32_t u = (uint32_t)v.bits << 16;
    float f;

    memcpy(&f, &u, sizeof f);
    return f;
}

template <class T> T from_float(float v);
template <> inline float from_float<float>(float v)
{
    return v;
}
template <> inline double from_float<double>(float v)
{
    return v;
}
template <> inline int32_t from_float<int32_t>(float v)
{
    return (int32_t)v;
}
template <> inline bf16 from_float<bf16>(float v)
{
    uint32_t u;

    memcpy(&u, &v, sizeof u);
    if (v != v)
        return {0x7fff};
    return {(uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

template <class T> constexpr enum dtype DTYPE = DTYPE_F32;
template <> inline constexpr enum dtype DTYPE<bf16> = DTYPE_BF16;
template <> inline constexpr enum dtype DTYPE<double> = DTYPE_F64;
template <> inline constexpr enum dtype DTYPE<int32_t> = DTYPE_I32;

/* Half a unit in the last place, relative. */
template <class T> constexpr double ROUNDING = 0x1p-24;
template <> inline constexpr double ROUNDING<bf16> = 0x1p-8;

/* Uniform in [-1, 1), a function of (stream, i). */
inline float uniform(uint32_t stream, int64_t i)
{
    struct philox_block b = philox({stream, 77}, (uint32_t)(i / 4), (uint32_t)(i >> 34), 0, 0);

    return 2 * philox_unit(b.v[i % 4]) - 1;
}

/* n elements of device memory, `shift` elements past an aligned address. A guard that nobody may change lies
 * before them; one lies behind them when shift is not 0, else the block of memory ends there, where the
 * simulator also sees a read. */
template <class T> class Array
{
  public:
    explicit Array(int64_t n, int shift = 0)
        : n_(n), at_(GUARD / (int)sizeof(T) + shift), behind_(shift ? at_ : 0)
    {
        const size_t bytes = (size_t)(n + at_ + behind_) * sizeof(T);

        CUDA_OK(cudaMalloc((void **)&base_, bytes));
        std::vector<char> all(bytes, 0x5a);
        CUDA_OK(cudaMemcpy(base_, all.data(), bytes, cudaMemcpyHostToDevice));
    }
    Array(const Array &) = delete;
    Array &operator=(const Array &) = delete;
    ~Array()
    {
        std::vector<unsigned char> all((size_t)(n_ + at_ + behind_) * sizeof(T));

        read(all.data(), base_, all.size());
        for (size_t i = 0; i < all.size(); i++)
            CHECK((i >= at_ * sizeof(T) && i < (size_t)(at_ + n_) * sizeof(T)) || all[i] == 0x5a,
                  "written outside of an array of %lld elements, at byte %lld", (long long)n_,
                  (long long)i - (long long)(at_ * sizeof(T)));
        cudaFree(base_);
    }

    T *ptr() { return base_ + at_; }
    int64_t size() const { return n_; }

    void set(const std::vector<T> &v)
    {
        CHECK((int64_t)v.size() == n_, "set %zu of %lld", v.size(), (long long)n_);
        if (n_)
            CUDA_OK(cudaMemcpy(ptr(), v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    }
    std::vector<T> get()
    {
        std::vector<T> v((size_t)n_);

        read(v.data(), ptr(), v.size() * sizeof(T));
        return v;
    }
    /* scale·uniform; returns what was set. */
    std::vector<T> fill(uint32_t stream, float scale = 1)
    {
        std::vector<T> v((size_t)n_);

        for (int64_t i = 0; i < n_; i++)
            v[(size_t)i] = from_float<T>(scale * uniform(stream, i));
        set(v);
        return v;
    }

  private:
    static constexpr int GUARD = 256; /* bytes, on both sides */

    static void read(void *dst, const void *src, size_t bytes)
    {
        if (bytes)
            CUDA_OK(cudaMemcpy(dst, src, bytes, cudaMemcpyDeviceToHost));
    }

    int64_t n_;
    unsigned at_, behind_; /* elements before and behind */
    T *base_ = nullptr;
};

/* Which arrays of a case are one element off an aligned address, a bit each: none, all, or one of them. */
enum { ALIGNED = 0, ALL_OFF = 0xff };
inline int off(int bits, int array)
{
    return bits >> array & 1;
}

/* What a step draws by, in device memory. */
class Step
{
  public:
    Step(uint64_t seed, uint64_t step) : host{seed, step}, mem(1) { mem.set({host}); }
    const struct step_ctx *ptr() { return mem.ptr(); }
    const struct step_ctx host;

  private:
    Array<struct step_ctx> mem;
};

/* |got - want| within rel·|want| + abs; NaN is right where NaN is wanted. */
inline bool near(double got, double want, double rel, double abs)
{
    if (std::isnan(want) || std::isnan(got))
        return std::isnan(want) && std::isnan(got);
    if (std::isinf(want))
        return got == want;
    return fabs(got - want) <= rel * fabs(want) + abs;
}

/* FNV-1a, to compare whole passes. */
class Hash
{
  public:
    template <class T> void add(const std::vector<T> &v)
    {
        const unsigned char *p = (const unsigned char *)v.data();

        for (size_t i = 0; i < v.size() * sizeof(T); i++)
            h = (h ^ p[i]) * 1099511628211ull;
    }
    uint64_t h = 14695981039346656037ull;
};

/* Runs a file's cases several times. The emulator changes the order of threads from launch to launch, and a
 * pass with an odd number of launches before it sees other orders than the one before: the bits must be the
 * same. */
inline int run_passes(const char *name, void (*cases)(Hash *), void (*one_launch)(void))
{
    uint64_t first = 0;

    for (int pass = 0; pass < 3; pass++) {
        Hash h;

        cases(&h);
        if (pass == 0)
            first = h.h;
        CHECK(h.h == first, "%s: pass %d gave other bits", name, pass);
        one_launch();
    }
    printf("%s: ok\n", name);
    return 0;
}
} // namespace check

#endif
