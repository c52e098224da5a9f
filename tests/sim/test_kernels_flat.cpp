/* test_kernels_flat - norms, the vote and optimisers of flat.cu against plain loops in fp64. */
#include "tests/sim/kernel_check.h"
#include "worker/backend/cuda/flat.h"
#include "worker/engine/backend.h"

using namespace check;

static const int64_t SIZES[] = {0, 1, 5, 1000, 8192, 30001};

static struct step_scalars scalars(double lr, double max_norm, double grad_norm)
{
    struct step_scalars s = {};

    s.lr = lr;
    s.max_grad_norm = max_norm;
    s.grad_norm = grad_norm;
    return s;
}

/* min(1, max_norm/(grad_norm + 1e-6)); 0 is no limit. */
static double clip_of(const struct step_scalars &s)
{
    return s.max_grad_norm > 0 ? fmin(1, s.max_grad_norm / (s.grad_norm + 1e-6)) : 1;
}

/* Weights, gradients, two states and a bf16 copy, as they were and as they are. */
struct state {
    state(int64_t n, int shift)
        : w(n, off(shift, 0)), g(n, off(shift, 1)), m(n, off(shift, 2)), v(n, off(shift, 3)),
          half(n, off(shift, 4)), w0(w.fill(1)), g0(g.fill(2, 3)), m0(m.fill(3)), v0((size_t)n)
    {
        for (int64_t i = 0; i < n; i++)
            v0[i] = fabsf(uniform(4, i)); /* a sum of squares */
        v.set(v0);
        half.fill(5);
    }
    struct flat_range range(double lr_scale) { return {w.ptr(), g.ptr(), half.ptr(), w.size(), lr_scale}; }
    void add(Hash *h)
    {
        h->add(w.get());
        h->add(g.get());
        h->add(m.get());
        h->add(v.get());
        h->add(half.get());
    }
    /* Nothing but the bf16 copy was touched; nor was that. */
    void check_untouched(const char *what)
    {
        CHECK(w.get() == w0 && g.get() == g0 && m.get() == m0 && v.get() == v0, "%s: updated", what);
        for (int64_t i = 0; i < half.size(); i++)
            CHECK(half.get()[i].bits == from_float<bf16>(uniform(5, i)).bits, "%s: bf16 copy updated", what);
    }
    /* w is `want`, and the copy is w rounded. */
    void check_weights(const char *what, const std::vector<double> &want)
    {
        const std::vector<float> is = w.get();
        const std::vector<bf16> copy = half.get();

        for (size_t i = 0; i < is.size(); i++) {
            CHECK(near(is[i], want[i], 1e-6, 1e-6), "%s: w[%zu] of %zu is %.9g, not %.9g", what, i, is.size(),
                  is[i], want[i]);
            CHECK(copy[i].bits == from_float<bf16>(is[i]).bits, "%s: bf16 copy of w[%zu]", what, i);
        }
    }
    Array<float> w, g, m, v;
    Array<bf16> half;
    const std::vector<float> w0, g0, m0;
    std::vector<float> v0;
};

static void check_near(const char *what, const std::vector<float> &got, const std::vector<double> &want)
{
    for (size_t i = 0; i < got.size(); i++)
        CHECK(near(got[i], want[i], 1e-6, 1e-6), "%s: element %zu of %zu is %.9g, not %.9g", what, i,
              got.size(), got[i], want[i]);
}

static void sgd_case(int64_t n, int shift, bool nesterov, bool keep_grad, double max_norm, Hash *h)
{
    struct state s(n, shift);
    Array<struct step_scalars> dev(1);
    const struct step_scalars host = scalars(0.1, max_norm, 4);
    const struct flat_sgd_args a = {0.9f, 0.01f, nesterov, keep_grad};
    const struct flat_range r = s.range(0.5);
    std::vector<double> w((size_t)n), g((size_t)n), m((size_t)n);

    dev.set({host});
    CUDA_OK(flat_sgd(&r, s.m.ptr(), &a, dev.ptr(), nullptr));
    s.add(h);
    for (int64_t i = 0; i < n; i++) {
        const double grad = clip_of(host) * s.g0[i] + 0.01 * s.w0[i];

        m[i] = 0.9 * s.m0[i] + grad;
        g[i] = keep_grad ? grad : s.g0[i];
        w[i] = s.w0[i] - 0.05 * (nesterov ? grad + 0.9 * m[i] : m[i]);
    }
    s.check_weights("sgd", w);
    check_near("momentum of sgd", s.m.get(), m);
    check_near("gradient of sgd", s.g.get(), g);
}

static void adam_case(int64_t n, int shift, double update, double beta1, bool decoupled, Hash *h)
{
    struct state s(n, shift);
    Array<struct step_scalars> dev(1);
    struct step_scalars host = scalars(0.01, 2, 4);
    const struct adam_args a = {2, beta1, 0.999, 1e-8f, 0.05f, decoupled};
    const struct flat_range r = s.range(2);
    const double lr = 0.02;
    std::vector<double> w((size_t)n), m((size_t)n), v((size_t)n);

    host.update = update;
    dev.set({host});
    CUDA_OK(flat_adam(&r, s.m.ptr(), s.v.ptr(), &a, dev.ptr(), nullptr));
    s.add(h);
    for (int64_t i = 0; i < n; i++) {
        const double g = clip_of(host) * s.g0[i] + (decoupled ? 0 : 0.05 * s.w0[i]);

        m[i] = beta1 * s.m0[i] + (1 - beta1) * g;
        v[i] = 0.999 * s.v0[i] + 0.001 * g * g;
        w[i] = s.w0[i] * (decoupled ? 1 - lr * 0.05 : 1) -
               lr / (1 - pow(beta1, update)) * m[i] / (sqrt(v[i]) / sqrt(1 - pow(0.999, update)) + 1e-8);
    }
    s.check_weights("adam", w);
    check_near("first moment", s.m.get(), m);
    check_near("second moment", s.v.get(), v);
    CHECK(s.g.get() == s.g0, "adam: gradients changed");
}

static double norm(const std::vector<float> &x, int64_t first, int64_t n)
{
    double sum = 0;

    for (int64_t i = first; i < first + n; i++)
        sum += (double)x[i] * x[i];
    return sqrt(sum);
}

/* Tensors with gaps between them, short and of several chunks, one of zeros. */
static void lars_case(int shift, bool nesterov, Hash *h)
{
    std::vector<struct flat_tensor> tensors = {
        {0, 5, 0, 0, 1, 0.01f, 0},
        {16, 1000, 0, 0, 1, 0.01f, 1},
        {1021, 0, 0, 0, 1, 0, 1},
        {1024, FLAT_CHUNK, 0, 0, 2, 0, 1},
        {1024 + FLAT_CHUNK + 3, 2 * FLAT_CHUNK + 77, 0, 0, 1, 0.02f, 1},
        {60000, 64, 0, 0, 1, 0.01f, 1},
    };
    const int64_t n = 60100, n_tensors = (int64_t)tensors.size();
    const int64_t n_chunks = flat_chunks(tensors.data(), n_tensors, nullptr);
    std::vector<struct flat_chunk> chunks((size_t)n_chunks);
    struct state s(n, shift);
    Array<struct flat_tensor> dev_tensors(n_tensors);
    Array<struct flat_chunk> dev_chunks(n_chunks);
    Array<struct step_scalars> dev(1);
    Array<double> partials(2 * n_chunks);
    Array<float> trust(n_tensors);
    const struct step_scalars host = scalars(0.1, 2, 4);
    std::vector<float> w0 = s.w0;
    std::vector<double> w(w0.begin(), w0.end()), m(s.m0.begin(), s.m0.end());

    CHECK(n_chunks == 7 && flat_chunks(tensors.data(), n_tensors, chunks.data()) == 7, "%lld chunks",
          (long long)n_chunks);
    for (int64_t i = 60000; i < 60064; i++)
        w[i] = w0[i] = 0; /* as after a start at zero */
    s.w.set(w0);
    dev_tensors.set(tensors);
    dev_chunks.set(chunks);
    dev.set({host});
    const struct flat_range r = s.range(1);
    const struct lars_args a = {dev_tensors.ptr(), dev_chunks.ptr(), n_tensors, n_chunks, partials.ptr(),
                                trust.ptr(),       0.001,            1e-9,      0.9f,     nesterov};
    CUDA_OK(flat_lars(&r, s.m.ptr(), &a, dev.ptr(), nullptr));
    s.add(h);
    const std::vector<bf16> half = s.half.get();
    const std::vector<float> is = s.w.get();
    std::vector<char> inside((size_t)n);
    for (const struct flat_tensor &t : tensors) {
        const double ww = norm(w0, t.first, t.count), gg = clip_of(host) * norm(s.g0, t.first, t.count);
        const double ratio =
            t.adapts && ww > 0 && gg > 0 ? 0.001 * ww / (gg + t.weight_decay * ww + 1e-9) : 1;

        for (int64_t i = t.first; i < t.first + t.count; i++) {
            const double g = ratio * (clip_of(host) * s.g0[i] + t.weight_decay * w0[i]);

            inside[i] = 1;
            m[i] = 0.9 * s.m0[i] + g;
            w[i] -= 0.1 * t.lr_scale * (nesterov ? g + 0.9 * m[i] : m[i]);
        }
    }
    check_near("lars", s.w.get(), w);
    check_near("momentum of lars", s.m.get(), m);
    for (int64_t i = 0; i < n; i++) /* between tensors nothing is copied */
        CHECK(half[i].bits == from_float<bf16>(inside[i] ? is[i] : uniform(5, i)).bits,
              "lars: bf16 copy of w[%lld]", (long long)i);
    CHECK(s.g.get() == s.g0, "lars: gradients changed");
}

static void ema_case(int64_t n, int shift, Hash *h)
{
    struct state s(n, shift);
    Array<struct step_scalars> dev(1);
    std::vector<double> want((size_t)n);

    dev.set({scalars(1, 0, 0)});
    CUDA_OK(flat_ema(s.m.ptr(), s.w.ptr(), n, 0.99, dev.ptr(), nullptr));
    s.add(h);
    for (int64_t i = 0; i < n; i++)
        want[i] = 0.99 * s.m0[i] + 0.01 * s.w0[i];
    check_near("ema", s.m.get(), want);
    CHECK(s.w.get() == s.w0, "ema: weights changed");
}

/* No update happens when the vote is against it, whoever found it. */
static void skip_case(double loss_not_finite, double grad_not_finite)
{
    const int64_t n = 1001;
    struct state s(n, 0);
    Array<struct step_scalars> dev(1);
    struct step_scalars host = scalars(0.1, 1, NAN);
    const struct flat_sgd_args sgd = {0.9f, 0, 0, 1};
    const struct adam_args adam = {1, 0.9, 0.999, 1e-8f, 0, true};
    const struct flat_range r = s.range(1);
    std::vector<struct flat_tensor> tensors = {{0, n, 0, 1, 1, 0, 1}};
    struct flat_chunk chunk;
    Array<struct flat_tensor> dev_tensors(1);
    Array<struct flat_chunk> dev_chunks(1);
    Array<double> partials(2);
    Array<float> trust(1);

    host.loss_not_finite = loss_not_finite;
    host.grad_not_finite = grad_not_finite;
    dev.set({host});
    flat_chunks(tensors.data(), 1, &chunk);
    dev_tensors.set(tensors);
    dev_chunks.set({chunk});
    const struct lars_args lars = {dev_tensors.ptr(), dev_chunks.ptr(), 1, 1,    partials.ptr(),
                                   trust.ptr(),       0.001,            0, 0.9f, false};
    CUDA_OK(flat_sgd(&r, s.m.ptr(), &sgd, dev.ptr(), nullptr));
    CUDA_OK(flat_adam(&r, s.m.ptr(), s.v.ptr(), &adam, dev.ptr(), nullptr));
    CUDA_OK(flat_lars(&r, s.m.ptr(), &lars, dev.ptr(), nullptr));
    CUDA_OK(flat_ema(s.m.ptr(), s.w.ptr(), n, 0.9, dev.ptr(), nullptr));
    s.check_untouched("not finite");
}

static void sumsq_case(int64_t n, int shift, Hash *h)
{
    Array<float> x(n, shift);
    Array<double> partials(FLAT_PARTIALS), sum(1);
    Array<struct step_scalars> dev(1);
    std::vector<float> v = x.fill(1, 1e18f); /* squares beyond fp32 */
    double want = 0;

    for (float f : v)
        want += (double)f * f;
    CUDA_OK(flat_sumsq(x.ptr(), n, partials.ptr(), sum.ptr(), nullptr));
    h->add(sum.get());
    CHECK(near(sum.get()[0], want, 1e-11, 0), "sum of %lld squares is %.17g, not %.17g", (long long)n,
          sum.get()[0], want);
    for (int kind = 0; kind < 3 && n > 0; kind++) {
        struct step_scalars s = scalars(0.5, 3, -1);

        s.loss = 7;
        s.grad_not_finite = 9;
        dev.set({s});
        v[n - 1] = kind == 0 ? v[n - 1] : kind == 1 ? NAN : -INFINITY;
        x.set(v);
        CUDA_OK(flat_grad_norm(x.ptr(), n, partials.ptr(), dev.ptr(), nullptr));
        s = dev.get()[0];
        CHECK(s.grad_not_finite == (kind > 0) && s.lr == 0.5 && s.max_grad_norm == 3 && s.loss == 7,
              "vote of %d", kind);
        CHECK(kind > 0 || near(s.grad_norm, sqrt(want), 1e-11, 0), "norm %g", s.grad_norm);
    }
}

static void vote_case(double loss, bool counts)
{
    Array<double> dev_loss(1);
    Array<struct step_scalars> dev(1);
    struct step_scalars s = scalars(0.5, 3, 2);

    s.grad_not_finite = 1;
    s.update = s.stop = s.checkpoint = s.digest[2] = 55;
    dev_loss.set({loss});
    dev.set({s});
    CUDA_OK(flat_vote(counts ? dev_loss.ptr() : nullptr, dev.ptr(), nullptr));
    s = dev.get()[0];
    CHECK(near(s.loss, counts ? loss : 0, 0, 0) && s.loss_not_finite == (counts && !std::isfinite(loss)),
          "share of the loss");
    CHECK(s.lr == 0.5 && s.max_grad_norm == 3 && s.grad_norm == 2 && s.grad_not_finite == 1 && s.stop == 55 &&
              s.checkpoint == 55 && s.update == 55 && s.digest[2] == 55,
          "what is not of the loss");
    CHECK(offsetof(struct step_scalars, digest) + sizeof s.digest - offsetof(struct step_scalars, loss) ==
              STEP_VOTE_COUNT * sizeof(double),
          "the vote is %d doubles", STEP_VOTE_COUNT);
}

static void scale_case(int64_t n, int shift)
{
    Array<float> x(n, shift);
    std::vector<float> v = x.fill(1);

    CUDA_OK(flat_scale(x.ptr(), n, 0.3f, nullptr));
    for (float &f : v)
        f *= 0.3f;
    CHECK(x.get() == v, "scale of %lld", (long long)n);
    CUDA_OK(flat_zero(x.ptr(), (size_t)n * sizeof(float), nullptr));
    CHECK(x.get() == std::vector<float>((size_t)n), "zero of %lld", (long long)n);
}

static void cases(Hash *h)
{
    for (int64_t n : SIZES) {
        uint64_t bits[2];

        for (int shift = 0; shift < 2; shift++) {
            Hash sum;

            sgd_case(n, shift ? ALL_OFF : ALIGNED, false, true, 0, h);
            sgd_case(n, shift ? ALL_OFF : ALIGNED, true, false, 1, h);
            sgd_case(n, shift ? ALL_OFF : ALIGNED, true, true, 100, h);
            adam_case(n, shift ? ALL_OFF : ALIGNED, 1, 0.9, true, h);
            adam_case(n, shift ? ALL_OFF : ALIGNED, 100000, 0, true, h);
            adam_case(n, shift ? ALL_OFF : ALIGNED, 3, 0.9, false, h);
            ema_case(n, shift ? ALL_OFF : ALIGNED, h);
            scale_case(n, shift);
            sumsq_case(n, shift, &sum);
            bits[shift] = sum.h;
        }
        CHECK(bits[0] == bits[1], "sum of %lld squares: other bits off an aligned address", (long long)n);
    }
    sumsq_case(9000001, 0, h); /* more steps than partial sums */
    for (int array = 0; array < 5; array++) {
        sgd_case(1000, 1 << array, false, true, 0, h);
        adam_case(1000, 1 << array, 6, 0.9, array & 1, h);
        ema_case(1000, 1 << array, h);
        lars_case(1 << array, array & 1, h);
    }
    for (bool nesterov : {false, true})
        lars_case(nesterov ? ALL_OFF : ALIGNED, nesterov, h);
    skip_case(1, 0);
    skip_case(0, 3);
    skip_case(0, NAN);
    for (double loss : {1.5, (double)NAN, (double)INFINITY}) {
        vote_case(loss, true);
        vote_case(loss, false);
    }
}

static void one_launch(void)
{
    Array<float> x(1);

    x.fill(1);
    CUDA_OK(flat_scale(x.ptr(), 1, 2, nullptr));
}

int main()
{
    return run_passes("flat", cases, one_launch);
}
