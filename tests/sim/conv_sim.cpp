/* conv_sim - convolutions by columns and oneDNN's sgemm, a sample and a group at a time, in fp32.
 *
 * Letters: P pixels of the output, T = R·S·C' taps of a filter (C' channels a group), K' filters a group.
 */
#include <algorithm>
#include <numeric>
#include <random>
#include <vector>
#include <dnnl.h>
#include "tests/sim/conv_sim.h"
#include "tests/sim/float_sim.h"
#include "tests/sim/sim.h"

namespace cusim
{
namespace
{
using Floats = std::vector<float>;

int64_t offset(const ConvTensor &t, int64_t n, int64_t c, int64_t h, int64_t w)
{
    return n * t.strides[0] + c * t.strides[1] + h * t.strides[2] + w * t.strides[3];
}

/* All elements in the order (N,H,W,C), with their offsets in memory. */
template <class F> void each(const ConvTensor &t, F f)
{
    size_t i = 0;

    for (int64_t n = 0; n < t.dims[0]; n++)
        for (int64_t h = 0; h < t.dims[2]; h++)
            for (int64_t w = 0; w < t.dims[3]; w++)
                for (int64_t c = 0; c < t.dims[1]; c++)
                    f(i++, offset(t, n, c, h, w));
}

Floats load(const ConvTensor &t, const char *p, bool tf32)
{
    Floats v(static_cast<size_t>(t.count()));

    each(t, [&](size_t i, int64_t at) {
        load_floats(&v[i], p + at * int64_t(t.element()), 1, t.bf16);
        if (tf32)
            v[i] = round_tf32(v[i]);
    });
    return v;
}

void store(const Conv &c, const ConvTensor &t, char *p, const Floats &v)
{
    each(t, [&](size_t i, int64_t at) {
        char *q = p + at * int64_t(t.element());
        float old = 0;
        if (c.beta != 0)
            load_floats(&old, q, 1, t.bf16);
        float r = float(c.alpha) * v[i] + (c.beta != 0 ? float(c.beta) * old : 0.0f);
        store_floats(q, &r, 1, t.bf16);
    });
}

/* Calls f(column element, index in dense x) for every tap that lies inside of sample n, group g. */
template <class F> void each_tap(const Conv &c, int64_t n, int64_t g, F f)
{
    int64_t C = c.x.dims[1], H = c.x.dims[2], W = c.x.dims[3], Cg = c.w.dims[1];
    int64_t R = c.w.dims[2], S = c.w.dims[3], Ho = c.y.dims[2], Wo = c.y.dims[3];

    for (int64_t p = 0; p < Ho * Wo; p++)
        for (int64_t r = 0; r < R; r++)
            for (int64_t s = 0; s < S; s++) {
                int64_t h = p / Wo * c.stride[0] - c.pad[0] + r * c.dilation[0];
                int64_t w = p % Wo * c.stride[1] - c.pad[1] + s * c.dilation[1];
                if (h < 0 || h >= H || w < 0 || w >= W)
                    continue;
                size_t column = size_t((p * R * S + r * S + s) * Cg),
                       at = size_t(((n * H + h) * W + w) * C + g * Cg);
                for (int64_t i = 0; i < Cg; i++)
                    f(column + size_t(i), at + size_t(i));
            }
}

/* c = a·b + beta·c, the sums over k in so many parts. */
void gemm(int64_t parts, char ta, char tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
          const float *b, int64_t ldb, float beta, float *c, int64_t ldc)
{
    for (int64_t i = 0; m && n && i < parts; i++) {
        int64_t from = k * i / parts, count = k * (i + 1) / parts - from;
        const float *ai = a + from * (ta == 'N' ? 1 : lda), *bi = b + from * (tb == 'N' ? ldb : 1);
        if (!count)
            continue;
        if (dnnl_sgemm(ta, tb, m, n, count, 1.0f, ai, lda, bi, ldb, beta, c, ldc) != dnnl_success)
            die("oneDNN's sgemm failed");
        beta = 1;
    }
}
} // namespace

size_t ConvTensor::bytes() const
{
    int64_t last = 0;

    if (!count())
        return 0;
    for (int i = 0; i < 4; i++)
        last += (dims[i] - 1) * strides[i];
    return size_t(last + 1) * element();
}

const char *conv_mismatch(const Conv &c)
{
    int64_t g = c.w.dims[1] ? c.groups() : 0;

    if (!g || c.x.dims[1] % c.w.dims[1] || c.w.dims[0] % g)
        return "channels and filters do not divide into groups";
    if (c.x.dims[0] != c.y.dims[0])
        return "x and y have different numbers of samples";
    if (c.y.dims[1] != c.w.dims[0])
        return "y has not as many channels as there are filters";
    for (int i = 0; i < 2; i++) {
        int64_t reach = c.dilation[i] * (c.w.dims[2 + i] - 1) + 1;
        if (c.stride[i] < 1 || (c.x.dims[2 + i] + 2 * c.pad[i] - reach) / c.stride[i] + 1 != c.y.dims[2 + i])
            return "the size of y does not follow from x, w, padding and stride";
    }
    return "";
}

void conv_run(const Conv &c, char *px, char *pw, char *py, const ConvWay &way)
{
    int64_t N = c.x.dims[0], K = c.w.dims[0], G = c.groups(), Kg = K / G, P = c.y.dims[2] * c.y.dims[3];
    int64_t T = c.w.dims[1] * c.w.dims[2] * c.w.dims[3];
    Floats x, w, y, columns(static_cast<size_t>(P * T));
    std::vector<int64_t> samples(static_cast<size_t>(N));

    auto get = [&](const ConvTensor &t, const char *p, Floats &v) {
        if (&t == &c.result())
            v.assign(static_cast<size_t>(t.count()), 0.0f);
        else
            v = load(t, p, way.tf32);
    };
    get(c.x, px, x);
    get(c.w, pw, w);
    get(c.y, py, y);
    std::iota(samples.begin(), samples.end(), int64_t(0));
    if (way.shuffle)
        std::shuffle(samples.begin(), samples.end(), std::mt19937(way.shuffle));
    for (int64_t n : samples)
        for (int64_t g = 0; g < G; g++) {
            float *wg = w.data() + g * Kg * T, *yg = y.data() + n * P * K + g * Kg;
            if (c.pass == Pass::DATA) {
                gemm(way.parts, 'N', 'N', P, T, Kg, yg, K, wg, T, 0, columns.data(), T);
                each_tap(c, n, g, [&](size_t i, size_t at) { x[at] += columns[i]; });
                continue;
            }
            std::fill(columns.begin(), columns.end(), 0.0f);
            each_tap(c, n, g, [&](size_t i, size_t at) { columns[i] = x[at]; });
            if (c.pass == Pass::FORWARD)
                gemm(way.parts, 'N', 'T', P, Kg, T, columns.data(), T, wg, T, 0, yg, K);
            else
                gemm(way.parts, 'T', 'N', Kg, T, P, yg, K, columns.data(), T, 1, wg, T);
        }
    if (c.pass == Pass::FORWARD)
        store(c, c.y, py, y);
    else if (c.pass == Pass::DATA)
        store(c, c.x, px, x);
    else
        store(c, c.w, pw, w);
}
} // namespace cusim
