/* test_kernels_attention - softmax, dropout and their gradient over rows of scores (attention.cu), against
 * plain loops in fp64 and the CPU's masks.
 *
 * Letters: h heads, T query rows of a tile, N keys.
 */
#include "tests/sim/kernel_check.h"
#include "worker/backend/cuda/attention.h"
extern "C" {
#include "worker/backend/cpu/cpu_internal.h"
}

using namespace check;

enum { STREAM = 99 };

struct shape_case {
    int64_t h, T, N, ld;
    float p;
    int64_t key0;
    int shift;     /* which arrays are off an aligned address */
    float scale;   /* of the scores */
    bool in_place; /* fp32 only */
};

/* One row in fp64: keep factors, P, P̃, and dS from dP̃. */
struct row_ref {
    std::vector<float> keep;
    std::vector<double> P, dS;
    double max, sum;
};

static struct row_ref row_ref_make(const struct shape_case &c, const Step &step, uint32_t query,
                                   uint32_t head, const float *s, const float *dw)
{
    struct row_ref r = {std::vector<float>((size_t)c.N, 1.0f), std::vector<double>((size_t)c.N),
                        std::vector<double>((size_t)c.N), -INFINITY, 0};
    double dot = 0;

    if (c.p > 0) {
        const struct dropout_site site = dropout_site_make(&step.host, STREAM, c.p);

        dropout_keep(&site, query, head, c.key0, c.N, r.keep.data());
    }
    for (int64_t j = 0; j < c.N; j++)
        r.max = fmax(r.max, s[j]);
    for (int64_t j = 0; j < c.N; j++)
        r.sum += r.P[j] = exp((double)s[j] - r.max);
    for (int64_t j = 0; j < c.N; j++) {
        r.P[j] /= r.sum;
        dot += r.P[j] * r.keep[j] * dw[j];
    }
    for (int64_t j = 0; j < c.N; j++)
        r.dS[j] = r.P[j] * ((double)r.keep[j] * dw[j] - dot);
    return r;
}

/* What a run of both kernels left, and what went in. */
template <class T> struct results {
    std::vector<float> scores, dweights, max, sum;
    std::vector<T> weights, weights_again, dscores;
};

template <class T>
static struct results<T> run(const struct shape_case &c, const struct attention_tile &tile,
                             const struct attention_dropout &drop, Hash *h) {
    const int64_t count = c.h * c.T * c.ld;
    Array<float> scores(count, off(c.shift, 0)), dweights(count, off(c.shift, 1)), max(c.h *tile.n),
        sum(c.h *tile.n);
    Array<T> weights(count, off(c.shift, 2)), dscores(count, off(c.shift, 3));
    struct results<T> r;
    const bool in_place = c.in_place && DTYPE<T> == DTYPE_F32;
    void *w = in_place ? (void *)scores.ptr() : weights.ptr();
    void *d = in_place ? (void *)dweights.ptr() : dscores.ptr();
    auto take = [&](Array<float> &from, Array<T> &other) {
        if constexpr (DTYPE<T> == DTYPE_F32)
            return in_place ? from.get() : other.get();
        else
            return other.get();
    };

    r.scores = scores.fill(1, c.scale);
    r.dweights = dweights.fill(2);
    weights.fill(3);
    dscores.fill(4);
    max.fill(5);
    sum.fill(6);
    CUDA_OK(attention_softmax(&tile, &drop, scores.ptr(), DTYPE<T>, w, max.ptr(), sum.ptr(), nullptr));
    r.weights = take(scores, weights);
    scores.set(r.scores); /* computed again */
    CUDA_OK(attention_softmax_grad(&tile, &drop, scores.ptr(), dweights.ptr(), max.ptr(), sum.ptr(), DTYPE<T>,
                                   w, d, nullptr));
    r.weights_again = take(scores, weights);
    r.dscores = take(dweights, dscores);
    r.max = max.get();
    r.sum = sum.get();
    h->add(r.weights);
    h->add(r.weights_again);
    h->add(r.dscores);
    h->add(r.max);
    h->add(r.sum);
    return r;
}

template <class T>
static void check_row(const struct shape_case &c, const struct row_ref &ref, const struct results<T> &r,
                      int64_t at, int64_t stat)
{
    /* exp(s - max) is off by s - max units in the last place. */
    const double rel = ROUNDING<T> + 3e-6 * (1 + c.scale / 16);
    /* dS = P·(…), where the bracket is a difference of numbers up to this size. */
    const double size = c.p < 1 ? 1 / (1 - (double)c.p) : 0;

    CHECK(near(r.max[stat], ref.max, 0, 0), "N %lld: maximum %g, not %g", (long long)c.N, r.max[stat],
          ref.max);
    CHECK(near(r.sum[stat], ref.sum, 1e-5, 0), "N %lld: sum %g, not %g", (long long)c.N, r.sum[stat],
          ref.sum);
    for (int64_t j = 0; j < c.N; j++) {
        const double w = to_float(r.weights[at + j]), want = ref.P[j] * ref.keep[j];

        CHECK(near(w, want, rel, 1e-30), "N %lld p %g: weight %lld is %g, not %g", (long long)c.N, c.p,
              (long long)j, w, want);
        CHECK((w == 0) == (ref.keep[j] == 0) || want < 1e-30, "N %lld p %g: mask of key %lld", (long long)c.N,
              c.p, (long long)j);
        CHECK(near(to_float(r.weights_again[at + j]), want, rel, 1e-30), "N %lld p %g: weight %lld, again",
              (long long)c.N, c.p, (long long)j);
        CHECK(near(to_float(r.dscores[at + j]), ref.dS[j], rel, 2e-6 * size * ref.P[j]),
              "N %lld p %g: dS %lld is %g, not %g", (long long)c.N, c.p, (long long)j,
              to_float(r.dscores[at + j]), ref.dS[j]);
    }
}

template <class T> static void tile_case(const struct shape_case &c, Hash *h)
{
    const int64_t n = c.T + 3, first = 2, query0 = 70001;
    Step step(0xfeedfacecafebeefull, 12345);
    const struct attention_tile tile = {c.h, c.T, c.N, c.ld, n, first};
    const struct attention_dropout drop = {c.p, STREAM, query0, c.key0, step.ptr()};
    const struct results<T> r = run<T>(c, tile, drop, h);

    for (int64_t head = 0; head < c.h; head++) {
        for (int64_t i = 0; i < c.T; i++) {
            const int64_t at = (head * c.T + i) * c.ld;
            const struct row_ref ref = row_ref_make(c, step, (uint32_t)(query0 + first + i), (uint32_t)head,
                                                    &r.scores[at], &r.dweights[at]);

            check_row(c, ref, r, at, head * n + first + i);
            for (int64_t j = c.N; j < c.ld && !c.in_place; j++)
                CHECK(to_float(r.weights[at + j]) == to_float(from_float<T>(uniform(3, at + j))) &&
                          to_float(r.dscores[at + j]) == to_float(from_float<T>(uniform(4, at + j))),
                      "N %lld: written beyond the row", (long long)c.N);
        }
        for (int64_t i = 0; i < n; i++) /* rows of other tiles */
            if (i < first || i >= first + c.T)
                CHECK(r.max[head * n + i] == uniform(5, head * n + i), "statistics of another row");
    }
}

/* f(S) = Σ G∘keep∘softmax(S): (f(S + εR) - f(S - εR))/2ε against Σ dS∘R, where dP̃ = G. */
static void projection_case(int64_t N, Hash *h)
{
    const struct shape_case c = {1, 1, N, N, 0.3f, 0, 0, 3, false};
    const struct attention_tile tile = {1, 1, N, N, 1, 0};
    const double eps = 1e-4;
    Step step(7, 3);
    const struct attention_dropout drop = {c.p, STREAM, 11, 0, step.ptr()};
    const struct results<float> r = run<float>(c, tile, drop, h);
    double f[2], got = 0;

    for (int side = 0; side < 2; side++) {
        std::vector<float> unused((size_t)N);
        struct row_ref keep = row_ref_make(c, step, 11, 0, r.scores.data(), unused.data());
        double sum = 0;

        f[side] = 0;
        for (int64_t j = 0; j < N; j++) {
            const double e = exp(r.scores[j] + (side ? eps : -eps) * uniform(8, j));

            sum += e;
            f[side] += r.dweights[j] * (double)keep.keep[j] * e;
        }
        f[side] /= sum;
    }
    for (int64_t j = 0; j < N; j++)
        got += (double)r.dscores[j] * uniform(8, j);
    CHECK(near(got, (f[1] - f[0]) / (2 * eps), 1e-4, 1e-7), "N %lld: projection of dS is %.9g, not %.9g",
          (long long)N, got, (f[1] - f[0]) / (2 * eps));
}

/* Softmax of huge scores, -inf among them, and rows with NaN; in registers and in loops. */
static void extreme_case(int64_t N)
{
    const struct attention_tile tile = {1, 2, N, N, 2, 0};
    const struct attention_dropout none = {0, 0, 0, 0, nullptr};
    Array<float> s(2 * N), max(2), sum(2);
    std::vector<float> v((size_t)(2 * N), -INFINITY);

    v[1] = v[N - 1] = 3e38f;
    v[N + 1] = NAN;
    v[N + 2] = 1;
    s.set(v);
    CUDA_OK(attention_softmax(&tile, &none, s.ptr(), DTYPE_F32, s.ptr(), max.ptr(), sum.ptr(), nullptr));
    v = s.get();
    for (int64_t j = 0; j < N; j++) {
        CHECK(v[j] == (j == 1 || j == N - 1 ? 0.5f : 0.0f), "N %lld: weight %lld is %g", (long long)N,
              (long long)j, v[j]);
        CHECK(std::isnan(v[N + j]), "N %lld: weight %lld of a row with NaN", (long long)N, (long long)j);
    }
}

static void refusals(void)
{
    const struct attention_dropout none = {0, 0, 0, 0, nullptr};
    const struct attention_tile no_keys = {1, 1, 0, 0, 1, 0}, no_rows = {4, 0, 5, 5, 0, 0};
    const struct attention_tile beyond = {1, 2, 5, 5, 2, 1}, narrow = {1, 1, 5, 4, 1, 0};
    float x;

    for (const struct attention_tile *t : {&no_keys, &beyond, &narrow})
        CHECK(attention_softmax(t, &none, &x, DTYPE_F32, &x, &x, &x, nullptr) == cudaErrorInvalidValue,
              "accepted %lld keys", (long long)t->keys);
    CHECK(attention_softmax(&no_rows, &none, nullptr, DTYPE_F32, nullptr, nullptr, nullptr, nullptr) ==
              cudaSuccess,
          "no rows");
}

static void cases(Hash *h)
{
    static const int64_t KEYS[] = {1,    2,    3,    4,    5,    31,   63,   127,   128,   129,
                                   200,  256,  257,  511,  512,  513,  1000, 1024,  1025,  2047,
                                   2048, 2049, 4096, 4097, 5000, 8192, 8193, 16384, 16385, 20001};

    for (int64_t N : KEYS) {
        const int64_t whole = (N + 3) / 4 * 4, T = N < 600 ? 5 : 1, heads = N < 3000 ? 3 : 1;

        tile_case<float>({heads, T, N, N, 0, 0, 0, 4, true}, h);
        tile_case<float>({heads, T, N, whole + 4, 0.5f, 4, 0, 8, false}, h);
        tile_case<bf16>({heads, T, N, whole, 0.5f, 8, 0, 4, false}, h);
        tile_case<float>({heads, T, N, N, 0.1f, 4001, ALL_OFF, 30, true}, h);
        tile_case<bf16>({heads, T, N, N + 1, 0.1f, 6, 0, 4, false}, h);
    }
    for (int array = 0; array < 4; array++) {
        tile_case<float>({2, 3, 40, 40, 0.5f, 0, 1 << array, 4, false}, h);
        tile_case<bf16>({2, 3, 40, 40, 0.5f, 0, 1 << array, 4, false}, h);
    }
    tile_case<float>({2, 3, 50, 50, 1, 3, 0, 1, false}, h);
    tile_case<bf16>({2, 0, 50, 50, 0.5f, 0, 0, 1, false}, h);
    for (int64_t N : {1, 10, 900, 3000, 17000})
        projection_case(N, h);
    for (int64_t N : {5, 700, 3000, 17000})
        extreme_case(N);
    refusals();
}

static void one_launch(void)
{
    const struct attention_tile tile = {1, 1, 1, 1, 1, 0};
    const struct attention_dropout none = {0, 0, 0, 0, nullptr};
    Array<float> x(1), max(1), sum(1);

    x.fill(1);
    CUDA_OK(attention_softmax(&tile, &none, x.ptr(), DTYPE_F32, x.ptr(), max.ptr(), sum.ptr(), nullptr));
}

int main()
{
    return run_passes("attention", cases, one_launch);
}
