/* dev_tensor - device tensors for tests of kernels: filled from doubles, read back as doubles, with guards on
 * both sides that nobody may write; comparisons that say what differed.
 */
#ifndef TESTS_SIM_DEV_TENSOR_H
#define TESTS_SIM_DEV_TENSOR_H

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>
#include <cuda_runtime_api.h>
#include <cuda_bf16.h>
extern "C" {
#include "worker/engine/tensor.h"
}

namespace dev
{
using Values = std::vector<double>;

inline int &n_failed()
{
    static int n = 0;
    return n;
}

/* What is being checked, for messages. */
inline std::string &label()
{
    static std::string s;
    return s;
}

__attribute__((format(printf, 1, 2))) inline void set_label(const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    label() = text;
}

__attribute__((format(printf, 1, 2))) inline void fail(const char *fmt, ...)
{
    va_list ap;

    if (n_failed()++ > 20)
        return;
    fprintf(stderr, "%s: ", label().c_str());
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

inline void expect(bool ok, const char *what)
{
    if (!ok)
        fail("%s", what);
}

inline void must(cudaError_t e, const char *what)
{
    if (e == cudaSuccess)
        return;
    fprintf(stderr, "%s: %s returned error %d\n", label().c_str(), what, (int)e);
    exit(1);
}

inline cudaStream_t &stream()
{
    static cudaStream_t s = nullptr;

    if (!s)
        must(cudaStreamCreate(&s), "cudaStreamCreate");
    return s;
}

inline void wait()
{
    must(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
}

/* Uniform in [-1, 1). */
struct Random {
    uint64_t state;

    double operator()()
    {
        uint64_t z = state += 0x9E3779B97F4A7C15u;

        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return (double)(int64_t)(z ^ (z >> 31)) * 0x1p-63;
    }
    Values values(int64_t n, double scale = 1, double shift = 0)
    {
        Values v(n);
        for (double &x : v)
            x = (*this)() * scale + shift;
        return v;
    }
};

enum class Type { F32, F64, BF16, U16 };

inline Type type_of(enum dtype t)
{
    return t == DTYPE_BF16 ? Type::BF16 : t == DTYPE_F64 ? Type::F64 : Type::F32;
}

inline size_t bytes_of(Type t)
{
    return t == Type::F64 ? 8 : t == Type::F32 ? 4 : 2;
}

inline void encode(Type t, double v, unsigned char *p)
{
    const float f = (float)v;
    const __nv_bfloat16 b = __float2bfloat16_rn(f);
    const uint16_t u = (uint16_t)v;

    if (t == Type::F64)
        memcpy(p, &v, 8);
    else if (t == Type::F32)
        memcpy(p, &f, 4);
    else
        memcpy(p, t == Type::BF16 ? (const void *)&b : &u, 2);
}

inline double decode(Type t, const unsigned char *p)
{
    double d;
    float f;
    __nv_bfloat16 b;
    uint16_t u;

    if (t == Type::F64) {
        memcpy(&d, p, 8);
        return d;
    }
    if (t == Type::F32) {
        memcpy(&f, p, 4);
        return f;
    }
    memcpy(&b, p, 2);
    memcpy(&u, p, 2);
    return t == Type::BF16 ? (double)__bfloat162float(b) : (double)u;
}

/* As they are in this element type. */
inline Values rounded(Type t, const Values &v)
{
    Values r(v.size());
    unsigned char b[8];

    for (size_t i = 0; i < v.size(); i++) {
        encode(t, v[i], b);
        r[i] = decode(t, b);
    }
    return r;
}

class Tensor
{
  public:
    /* Filled with NaN (f32, f64, bf16) or 0xFFFF. */
    Tensor(Type t, int64_t n) : type(t), count(n), host(bytes() + 2 * GUARD, 0xFF) { upload(); }
    Tensor(Type t, const Values &v) : type(t), count((int64_t)v.size()), host(bytes() + 2 * GUARD, 0xFF)
    {
        for (int64_t i = 0; i < count; i++)
            encode(type, v[i], &host[GUARD + i * bytes_of(type)]);
        upload();
    }
    ~Tensor() { must(cudaFree(base), "cudaFree"); }
    Tensor(const Tensor &) = delete;
    Tensor &operator=(const Tensor &) = delete;

    template <class T = void> T *ptr() const { return (T *)((char *)base + GUARD); }

    std::vector<unsigned char> raw() const
    {
        std::vector<unsigned char> b(host.size());

        wait();
        must(cudaMemcpy(b.data(), base, b.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
        for (size_t i = 0; i < GUARD; i++)
            if (b[i] != 0xFF || b[b.size() - 1 - i] != 0xFF) {
                fail("written outside of a tensor");
                break;
            }
        return b;
    }
    Values values() const
    {
        const std::vector<unsigned char> b = raw();
        Values v(count);

        for (int64_t i = 0; i < count; i++)
            v[i] = decode(type, &b[GUARD + i * bytes_of(type)]);
        return v;
    }
    /* Back to what it was made with. */
    void reset() { must(cudaMemcpy(base, host.data(), host.size(), cudaMemcpyHostToDevice), "cudaMemcpy"); }

  private:
    static constexpr size_t GUARD = 256;
    size_t bytes() const { return (size_t)count * bytes_of(type); }
    void upload()
    {
        must(cudaMalloc(&base, host.size()), "cudaMalloc");
        reset();
    }

    Type type;
    int64_t count;
    std::vector<unsigned char> host;
    void *base = nullptr;
};

/* |got - want| <= rel·|want| + abs, NaN for NaN, infinity for infinity. */
inline void near(const char *what, const Values &got, const Values &want, double rel, double abs)
{
    if (got.size() != want.size())
        return fail("%s has %zu elements, not %zu", what, got.size(), want.size());
    for (size_t i = 0; i < got.size(); i++) {
        if (got[i] == want[i] || (std::isnan(want[i]) && std::isnan(got[i])))
            continue;
        if (!(std::fabs(got[i] - want[i]) <= rel * std::fabs(want[i]) + abs))
            return fail("%s[%zu] is %.9g, should be %.9g", what, i, got[i], want[i]);
    }
}

inline double dot(const Values &a, const Values &b)
{
    double s = 0;

    for (size_t i = 0; i < a.size(); i++)
        s += a[i] * b[i];
    return s;
}

/* The derivative of f at x in direction d, by central differences in fp64. */
inline double slope(const std::function<double(const Values &)> &f, const Values &x, const Values &d,
                    double h)
{
    Values a = x, b = x;

    for (size_t i = 0; i < x.size(); i++) {
        a[i] += h * d[i];
        b[i] -= h * d[i];
    }
    return (f(a) - f(b)) / (2 * h);
}

/* run() three times. The emulator runs the threads of one launch forward, of the next backward, of the third
 * at random, so each kernel of run() sees each order, unless their number is a multiple of 3: then between()
 * is to launch another. What `outputs` hold must be the same bits each time. */
inline void same_in_any_order(const std::vector<Tensor *> &outputs, const std::function<void()> &run,
                              const std::function<void()> &between = nullptr)
{
    std::vector<std::vector<unsigned char>> first;

    for (int i = 0; i < 3; i++) {
        for (Tensor *t : outputs)
            t->reset();
        run();
        for (size_t k = 0; k < outputs.size(); k++) {
            if (i == 0)
                first.push_back(outputs[k]->raw());
            else if (first[k] != outputs[k]->raw())
                fail("output %zu depends on the order of threads", k);
        }
        if (between)
            between();
    }
}

inline int report(const char *name)
{
    printf("%s: %s\n", name, n_failed() ? "FAILED" : "passed");
    return n_failed() ? 1 : 0;
}
} // namespace dev

#endif
