/* test_kernels_pixel - max pooling, mean over pixels and the shortcut, run by the emulator, against plain
 * loops.
 *
 * Letters: n samples, H×W and Ho×Wo pixels, C channels, k kernel.
 */
#include "tests/sim/dev_tensor.h"
#include "worker/backend/cuda/pixel.h"

using dev::near;
using dev::Tensor;
using dev::Type;
using dev::Values;

namespace
{
const int64_t CHANNELS[] = {1, 3, 17, 64, 130};
const enum dtype TYPES[] = {DTYPE_F32, DTYPE_BF16};

const char *name_of(enum dtype t)
{
    return t == DTYPE_BF16 ? "bf16" : "f32";
}

double ulp(enum dtype t)
{
    return t == DTYPE_BF16 ? 0x1p-8 : 1e-6;
}

Values with(const Values &before, const Values &v, bool add)
{
    Values r = v;
    for (size_t i = 0; add && i < r.size(); i++)
        r[i] += before[i];
    return r;
}

/* ------------------------------------------------------------------ max pooling */

struct Window {
    int64_t n, H, W;
    int kernel, stride, pad;
};

/* Overlapping and apart, windows beyond the border, pixels that no window covers. */
const Window WINDOWS[] = {{0, 4, 4, 2, 2, 0}, {1, 1, 1, 1, 1, 0}, {1, 1, 1, 3, 1, 1}, {2, 9, 7, 3, 2, 1},
                          {3, 6, 4, 2, 2, 0}, {1, 5, 6, 3, 1, 1}, {2, 8, 5, 2, 3, 1}, {1, 11, 9, 5, 2, 2},
                          {2, 7, 7, 3, 3, 0}, {1, 10, 6, 4, 1, 2}};

struct Pooled {
    Values y, place;
};

Pooled pooled(const struct cuda_pool_shape &s, const Values &x)
{
    Pooled r;
    for (int64_t i = 0; i < s.n * s.Ho * s.Wo * s.C; i++) {
        const int64_t c = i % s.C, ox = i / s.C % s.Wo, oy = i / s.C / s.Wo % s.Ho, n = i / s.C / s.Wo / s.Ho;
        double best = 0;
        int64_t at = -1;

        for (int p = 0; p < s.kernel * s.kernel; p++) {
            const int64_t y = oy * s.stride - s.pad + p / s.kernel, z = ox * s.stride - s.pad + p % s.kernel;
            if (y < 0 || y >= s.H || z < 0 || z >= s.W)
                continue;
            const double v = x[((n * s.H + y) * s.W + z) * s.C + c];
            if (at < 0 || v > best || (std::isnan(v) && !std::isnan(best))) {
                best = v;
                at = p;
            }
        }
        r.y.push_back(best);
        r.place.push_back((double)at);
    }
    return r;
}

/* By scattering, as the kernel does not. */
Values unpooled(const struct cuda_pool_shape &s, const Values &place, const Values &dy, const Values &start)
{
    Values dx = start;
    for (int64_t i = 0; i < s.n * s.Ho * s.Wo * s.C; i++) {
        const int64_t c = i % s.C, ox = i / s.C % s.Wo, oy = i / s.C / s.Wo % s.Ho, n = i / s.C / s.Wo / s.Ho;
        const int64_t p = (int64_t)place[i];
        const int64_t y = oy * s.stride - s.pad + p / s.kernel, z = ox * s.stride - s.pad + p % s.kernel;

        dx[((n * s.H + y) * s.W + z) * s.C + c] += dy[i];
    }
    return dx;
}

void check_maxpool(const Window &w, int64_t C, enum dtype t)
{
    dev::Random rnd{(uint64_t)(w.H * 3 + C)};
    const Type type = dev::type_of(t);
    const struct cuda_pool_shape s = {w.n,
                                      w.H,
                                      w.W,
                                      C,
                                      (w.H + 2 * w.pad - w.kernel) / w.stride + 1,
                                      (w.W + 2 * w.pad - w.kernel) / w.stride + 1,
                                      w.kernel,
                                      w.stride,
                                      w.pad,
                                      t};
    const int64_t n_in = s.n * s.H * s.W * C, n_out = s.n * s.Ho * s.Wo * C;
    Values xv = rnd.values(n_in), zero(n_in);

    for (int64_t i = 0; i < n_in; i++) {
        xv[i] = std::round(xv[i] * 8); /* many are equal */
        if (i % 29 == 5)
            xv[i] = NAN;
        if (i % 31 == 7)
            xv[i] = -INFINITY;
    }
    const Pooled want = pooled(s, xv);
    const Values dyv = dev::rounded(type, rnd.values(n_out)), before = dev::rounded(type, rnd.values(n_in));
    Tensor x(type, xv), y(type, n_out), place(Type::U16, n_out), dy(type, dyv), dx(type, before);

    dev::set_label("maxpool %lldx%lldx%lld, %lld channels, kernel %d, stride %d, pad %d, %s", (long long)s.n,
                   (long long)s.H, (long long)s.W, (long long)C, s.kernel, s.stride, s.pad, name_of(t));
    dev::same_in_any_order({&y, &place}, [&] {
        dev::must(cuda_maxpool_forward(&s, x.ptr(), y.ptr(), place.ptr<uint16_t>(), dev::stream()),
                  "forward");
    });
    near("y", y.values(), want.y, 0, 0);
    near("place", place.values(), want.place, 0, 0);
    for (bool add : {false, true}) {
        dev::same_in_any_order({&dx}, [&] {
            dev::must(cuda_maxpool_backward(&s, dy.ptr(), place.ptr<uint16_t>(), dx.ptr(), add,
                                            dev::stream()),
                      "backward");
        });
        near("dx", dx.values(), unpooled(s, want.place, dyv, add ? before : zero), ulp(t), 2e-6);
    }
}

/* ------------------------------------------------------------------ mean over pixels */

void check_mean(int64_t n, int64_t pixels, int64_t C, enum dtype t)
{
    dev::Random rnd{(uint64_t)(pixels * 3 + C)};
    const Type type = dev::type_of(t);
    const Values xv = dev::rounded(type, rnd.values(n * pixels * C, 1, 0.5));
    const Values dyv = dev::rounded(type, rnd.values(n * C)),
                 before = dev::rounded(type, rnd.values(xv.size()));
    Values want(n * C), grad(xv.size());
    Tensor x(type, xv), y(type, n * C), dy(type, dyv), dx(type, before);

    for (size_t i = 0; i < xv.size(); i++) {
        const int64_t at = (int64_t)i / C / pixels * C + (int64_t)i % C;

        want[at] += xv[i] / pixels;
        grad[i] = dyv[at] / pixels;
    }
    dev::set_label("mean %lldx%lld rows, %lld channels, %s", (long long)n, (long long)pixels, (long long)C,
                   name_of(t));
    dev::same_in_any_order({&y}, [&] {
        dev::must(cuda_mean_spatial_forward(n, pixels, C, t, x.ptr(), y.ptr(), dev::stream()), "forward");
    });
    near("y", y.values(), want, ulp(t), 1e-6);
    for (bool add : {false, true}) {
        dx.reset();
        dev::must(cuda_mean_spatial_backward(n, pixels, C, t, dy.ptr(), dx.ptr(), add, dev::stream()),
                  "backward");
        near("dx", dx.values(), with(before, grad, add), ulp(t), 1e-6);
    }
}

/* ------------------------------------------------------------------ shortcut */

void check_shortcut(const struct cuda_shortcut_shape &s)
{
    dev::Random rnd{(uint64_t)(s.H * 3 + s.C)};
    const Type type = dev::type_of(s.dtype);
    const int64_t Ho = (s.H + s.stride - 1) / s.stride, Wo = (s.W + s.stride - 1) / s.stride;
    const int64_t n_in = s.n * s.H * s.W * s.C, n_out = s.n * Ho * Wo * s.Co, front = (s.Co - s.C) / 2;
    const Values xv = dev::rounded(type, rnd.values(n_in)), dyv = dev::rounded(type, rnd.values(n_out));
    const Values before = dev::rounded(type, rnd.values(n_in));
    Values want(n_out), grad(n_in);
    Tensor x(type, xv), y(type, n_out), dy(type, dyv), dx(type, before);

    for (int64_t i = 0; i < n_out; i++) {
        const int64_t c = i % s.Co - front, ox = i / s.Co % Wo, oy = i / s.Co / Wo % Ho,
                      n = i / s.Co / Wo / Ho;
        const int64_t from = ((n * s.H + oy * s.stride) * s.W + ox * s.stride) * s.C + c;

        if (c < 0 || c >= s.C)
            continue;
        want[i] = xv[from];
        grad[from] += dyv[i];
    }
    dev::set_label("shortcut %lldx%lldx%lldx%lld to %lld channels, stride %d, %s", (long long)s.n,
                   (long long)s.H, (long long)s.W, (long long)s.C, (long long)s.Co, s.stride,
                   name_of(s.dtype));
    dev::must(cuda_shortcut_pad_forward(&s, x.ptr(), y.ptr(), dev::stream()), "forward");
    near("y", y.values(), want, 0, 0);
    for (bool add : {false, true}) {
        dx.reset();
        dev::must(cuda_shortcut_pad_backward(&s, dy.ptr(), dx.ptr(), add, dev::stream()), "backward");
        near("dx", dx.values(), with(before, grad, add), ulp(s.dtype), 1e-6);
    }
}

void check_edges()
{
    Tensor t(Type::F32, 64);
    const struct cuda_pool_shape empty = {1, 4, 4, 4, 4, 4, 3, 1, 2, DTYPE_F32}; /* windows without a pixel */
    const struct cuda_pool_shape beyond = {1, 4, 4, 4, 5, 4, 1, 1, 0, DTYPE_F32};
    const struct cuda_pool_shape large = {1 << 16, 1 << 8, 1 << 8, 64, 1 << 8, 1 << 8, 1, 1, 0, DTYPE_F32};
    const struct cuda_shortcut_shape fewer = {1, 1, 1, 4, 3, 1, DTYPE_F32};

    dev::set_label("edges");
    for (const struct cuda_pool_shape *s : {&empty, &beyond, &large})
        dev::expect(cuda_maxpool_forward(s, t.ptr(), t.ptr(), t.ptr<uint16_t>(), dev::stream()) ==
                        cudaErrorInvalidValue,
                    "a shape of max pooling is not refused");
    dev::expect(cuda_mean_spatial_forward(1, 0, 4, DTYPE_F32, t.ptr(), t.ptr(), dev::stream()) ==
                    cudaErrorInvalidValue,
                "a mean of nothing is not refused");
    dev::expect(cuda_shortcut_pad_forward(&fewer, t.ptr(), t.ptr(), dev::stream()) == cudaErrorInvalidValue,
                "fewer channels are not refused");
    t.raw();
}
} // namespace

int main()
{
    for (enum dtype t : TYPES) {
        for (int64_t C : CHANNELS) {
            for (const Window &w : WINDOWS)
                check_maxpool(w, C, t);
            for (int64_t pixels : {1, 7, 49, 1000})
                for (int64_t n : {0, 1, 5})
                    check_mean(n, pixels, C, t);
            for (int stride : {1, 2, 3}) {
                check_shortcut({2, 5, 7, C, C, stride, t});
                check_shortcut({0, 5, 7, C, 2 * C, stride, t});
                check_shortcut({3, 4, 6, C, 2 * C, stride, t});
                check_shortcut({2, 5, 1, C, C + 7, stride, t});
            }
        }
        check_mean(3, 49, 2048, t);
        check_shortcut({2, 8, 8, 16, 32, 2, t});
        check_shortcut({1, 8, 8, 8, 16, 2, t}); /* in bf16 the old channels begin within a piece */
    }
    check_edges();
    return dev::report("test_kernels_pixel");
}
