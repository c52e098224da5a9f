/* test_kernels_elem - activations, sums, casts and dropout of worker/backend/cuda/elem.cu. */
#include "tests/sim/kernel_check.h"
#include "worker/backend/cuda/elem.h"
extern "C" {
#include "worker/backend/cpu/cpu_internal.h"
}

using namespace check;

static const int64_t SIZES[] = {0, 1, 3, 4, 5, 7, 8, 9, 255, 1024, 2056, 4099};

static double gelu(double x)
{
    return 0.5 * x * (1 + erf(x / sqrt(2.0)));
}

static double gelu_slope(double x)
{
    return 0.5 * (1 + erf(x / sqrt(2.0))) + x * exp(-0.5 * x * x) / sqrt(2 * M_PI);
}

template <class T> static void act_case(enum act_kind kind, int64_t n, int shift, Hash *h)
{
    Array<T> x(n, off(shift, 0)), y(n, off(shift, 1)), dy(n, off(shift, 2)), dx(n, off(shift, 1));
    std::vector<T> vx = x.fill(1, 4), vdy = dy.fill(2), old = dx.fill(3);
    const double rel = ROUNDING<T> + 4e-7;

    CUDA_OK(elem_act(kind, DTYPE<T>, x.ptr(), y.ptr(), n, nullptr));
    std::vector<T> vy = y.get();
    h->add(vy);
    for (int64_t i = 0; i < n; i++) {
        const double v = to_float(vx[i]), want = kind == ACT_RELU ? fmax(v, 0) : gelu(v);

        CHECK(near(to_float(vy[i]), want, rel, 1e-6), "act %d: y[%lld] of %lld is %g, not %g", kind,
              (long long)i, (long long)n, to_float(vy[i]), want);
    }
    for (int acc = 0; acc < 2; acc++) {
        dx.set(old);
        CUDA_OK(elem_act_grad(kind, DTYPE<T>, x.ptr(), dy.ptr(), dx.ptr(), n, acc, nullptr));
        std::vector<T> got = dx.get();
        h->add(got);
        for (int64_t i = 0; i < n; i++) {
            const double v = to_float(vx[i]), slope = kind == ACT_RELU ? v > 0 : gelu_slope(v);
            const double want = slope * to_float(vdy[i]) + (acc ? to_float(old[i]) : 0);

            CHECK(near(to_float(got[i]), want, rel, 1e-6), "act %d acc %d: dx[%lld] is %g, not %g", kind, acc,
                  (long long)i, to_float(got[i]), want);
        }
    }
}

/* Σ dy·(y(x + εr) - y(x - εr))/2ε against Σ dx·r, with GELU in fp64. */
static void act_projection(void)
{
    const int64_t n = 1000;
    const double eps = 1e-4;
    Array<float> x(n), dy(n), dx(n);
    std::vector<float> vx = x.fill(5, 3), vdy = dy.fill(6);
    double want = 0, got = 0;

    CUDA_OK(elem_act_grad(ACT_GELU, DTYPE_F32, x.ptr(), dy.ptr(), dx.ptr(), n, 0, nullptr));
    std::vector<float> vdx = dx.get();
    for (int64_t i = 0; i < n; i++) {
        const double r = uniform(7, i);

        want += vdy[i] * (gelu(vx[i] + eps * r) - gelu(vx[i] - eps * r)) / (2 * eps);
        got += vdx[i] * r;
    }
    CHECK(near(got, want, 1e-5, 1e-5), "gelu: projection of the gradient is %.9g, not %.9g", got, want);
}

static void nan_cases(void)
{
    const float in[] = {NAN, -INFINITY, INFINITY, -0.0f, 1, -1};
    Array<float> x(6), y(6), ones(6);

    x.set(std::vector<float>(in, in + 6));
    ones.set(std::vector<float>(6, 1));
    CUDA_OK(elem_act(ACT_RELU, DTYPE_F32, x.ptr(), y.ptr(), 6, nullptr));
    std::vector<float> v = y.get();
    CHECK(std::isnan(v[0]) && v[1] == 0 && v[2] == INFINITY && v[3] == 0 && v[4] == 1 && v[5] == 0, "relu");
    CUDA_OK(elem_act_grad(ACT_RELU, DTYPE_F32, x.ptr(), ones.ptr(), y.ptr(), 6, 0, nullptr));
    v = y.get();
    CHECK(v[0] == 0 && v[1] == 0 && v[2] == 1 && v[3] == 0 && v[4] == 1 && v[5] == 0, "slope of relu");
    CUDA_OK(elem_act(ACT_GELU, DTYPE_F32, x.ptr(), y.ptr(), 6, nullptr));
    CHECK(std::isnan(y.get()[0]), "gelu of NaN");
    CUDA_OK(elem_fill_nan(y.ptr(), 5 * sizeof(float), nullptr));
    v = y.get();
    CHECK(std::isnan(v[0]) && std::isnan(v[4]) && !std::isnan(v[5]), "fill with NaN");
}

template <class T> static void sum_case(int64_t n, int shift, Hash *h)
{
    Array<T> a(n, off(shift, 0)), b(n, off(shift, 2)), y(n, off(shift, 1));
    std::vector<T> va = a.fill(1, 100), vb = b.fill(2, 100), got;

    if constexpr (sizeof(T) != 8 && !std::is_same_v<T, int32_t>) {
        CUDA_OK(elem_add(DTYPE<T>, a.ptr(), b.ptr(), y.ptr(), n, nullptr));
        got = y.get();
        h->add(got);
        for (int64_t i = 0; i < n; i++) {
            const T want = from_float<T>(to_float(va[i]) + to_float(vb[i]));

            CHECK(!memcmp(&got[i], &want, sizeof want), "add: element %lld of %lld", (long long)i,
                  (long long)n);
        }
        CUDA_OK(elem_scale(DTYPE<T>, y.ptr(), n, 0.3f, nullptr));
        for (int64_t i = 0; i < n; i++) {
            const T want = from_float<T>(to_float(got[i]) * 0.3f), is = y.get()[i];

            CHECK(!memcmp(&is, &want, sizeof want), "scale: element %lld of %lld", (long long)i,
                  (long long)n);
            if (i > 20)
                break;
        }
    }
    for (int acc = 0; acc < 2; acc++) {
        y.set(vb);
        CUDA_OK(elem_copy_or_add(DTYPE<T>, a.ptr(), y.ptr(), n, acc, nullptr));
        got = y.get();
        h->add(got);
        for (int64_t i = 0; i < n; i++) {
            T want = va[i];

            if constexpr (std::is_same_v<T, bf16>)
                want = acc ? from_float<T>(to_float(va[i]) + to_float(vb[i])) : want;
            else
                want = acc ? va[i] + vb[i] : want;
            CHECK(!memcmp(&got[i], &want, sizeof want), "copy or add, acc %d: element %lld", acc,
                  (long long)i);
        }
    }
}

template <class S, class D> static void cast_case(int64_t n, int shift, Hash *h)
{
    Array<S> x(n, off(shift, 0));
    Array<D> y(n, off(shift, 1));
    std::vector<S> vx = x.fill(1, 3);
    std::vector<D> old = y.fill(2);

    for (int acc = 0; acc < 2; acc++) {
        y.set(old);
        CUDA_OK(elem_cast(DTYPE<S>, DTYPE<D>, x.ptr(), y.ptr(), n, acc, nullptr));
        std::vector<D> got = y.get();
        h->add(got);
        for (int64_t i = 0; i < n; i++) {
            const D want = from_float<D>(to_float(vx[i]) + (acc ? to_float(old[i]) : 0));

            CHECK(!memcmp(&got[i], &want, sizeof want), "cast, acc %d: element %lld", acc, (long long)i);
        }
    }
}

/* Masks are the CPU's, bit for bit. */
template <class T> static void dropout_case(int64_t rows, int64_t width, float p, int shift, Hash *h)
{
    const int64_t n = rows * width, first = 1000003;
    Array<T> x(n, off(shift, 0)), y(n, off(shift, 1));
    std::vector<T> vx = x.fill(1), old = y.fill(2);
    Step step(0x123456789abcdef0ull, 4000000123ull);
    const struct elem_dropout_args d = {rows, width, first, p, 42, step.ptr()};
    const struct dropout_site site = dropout_site_make(&step.host, 42, p);
    std::vector<float> keep((size_t)width + 1);

    for (int64_t i = 0; i < n; i += 5)
        vx[i] = from_float<T>(NAN); /* what is dropped is 0 whatever it was */
    x.set(vx);
    for (int acc = 0; acc < 2; acc++) {
        y.set(old);
        CUDA_OK(elem_dropout(&d, DTYPE<T>, x.ptr(), y.ptr(), acc, nullptr));
        std::vector<T> got = y.get();
        h->add(got);
        for (int64_t i = 0; i < n; i++) {
            if (i % width == 0)
                dropout_keep(&site, (uint32_t)(first + i / width), 0, 0, width, keep.data());
            const float k = keep[i % width], v = k > 0 ? to_float(vx[i]) * k : 0.0f;
            const T want = from_float<T>(acc ? to_float(old[i]) + v : v);

            /* A GPU adds with one rounding: only what is not added to is the same to the last bit. */
            const bool same = !memcmp(&got[i], &want, sizeof want);
            CHECK(same || (acc && near(to_float(got[i]), to_float(want), 2 * ROUNDING<T>, 1e-6)) ||
                      (std::isnan(to_float(got[i])) && std::isnan(to_float(want))),
                  "dropout p %g (%lld,%lld) acc %d: element %lld is %g, not %g", p, (long long)rows,
                  (long long)width, acc, (long long)i, to_float(got[i]), to_float(want));
        }
    }
}

static void refusals(void)
{
    float x = 0;

    CHECK(elem_act(ACT_RELU, DTYPE_I32, &x, &x, 1, nullptr) == cudaErrorInvalidValue, "relu of integers");
    CHECK(elem_add(DTYPE_F32, &x, &x, &x, -1, nullptr) == cudaErrorInvalidValue, "-1 elements");
    CHECK(elem_cast(DTYPE_F32, DTYPE_F32, &x, &x, 1, 0, nullptr) == cudaErrorInvalidValue, "no cast");
}

template <class T> static void cases_of(Hash *h)
{
    static const int64_t WIDTHS[] = {1, 3, 4, 5, 8, 63, 64, 257};

    for (int64_t n : SIZES) {
        for (int shift : {(int)ALIGNED, (int)ALL_OFF, 1, 2, 4}) {
            act_case<T>(ACT_RELU, n, shift, h);
            act_case<T>(ACT_GELU, n, shift, h);
            sum_case<T>(n, shift, h);
        }
    }
    for (int64_t width : WIDTHS) {
        dropout_case<T>(7, width, 0.5f, 0, h);
        dropout_case<T>(3, width, 0.1f, 1, h);
        dropout_case<T>(3, width, 0.1f, 2, h);
    }
    dropout_case<T>(0, 8, 0.5f, 0, h);
    dropout_case<T>(5, 24, 0, 0, h);
    dropout_case<T>(5, 24, 1, 0, h);
}

static void cases(Hash *h)
{
    cases_of<float>(h);
    cases_of<bf16>(h);
    for (int64_t n : SIZES) {
        for (int shift : {(int)ALIGNED, (int)ALL_OFF, 1, 2, 4}) {
            sum_case<double>(n, shift, h);
            sum_case<int32_t>(n, shift, h);
            cast_case<float, bf16>(n, shift, h);
            cast_case<bf16, float>(n, shift, h);
        }
    }
    act_projection();
    nan_cases();
    refusals();
}

static void one_launch(void)
{
    Array<float> x(1);

    x.fill(1);
    CUDA_OK(elem_scale(DTYPE_F32, x.ptr(), 1, 2, nullptr));
}

int main()
{
    return run_passes("elem", cases, one_launch);
}
