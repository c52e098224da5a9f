/* test_kernels_loss - softmax cross-entropy of loss.cu against plain loops in fp64.
 *
 * Letters: M rows, K classes.
 */
#include "tests/sim/kernel_check.h"
#include "worker/backend/cuda/loss.h"

using namespace check;

struct loss_case {
    int64_t M, K;
    bool offset;
    int shift;   /* which arrays are off an aligned address */
    float scale; /* of the logits */
};

template <class T> struct data {
    explicit data(const struct loss_case &c)
        : z(c.M * c.K, off(c.shift, 0)), y(c.M), offset(c.K), vz(z.fill(1, c.scale)), vo(offset.fill(2, 3)),
          vy((size_t)c.M)
    {
        for (int64_t i = 0; i < c.M; i++)
            vy[i] = (int32_t)((i * 7919 + 3) % c.K);
        y.set(vy);
        if (!c.offset)
            vo.assign((size_t)c.K, 0.0f);
        rows = {
            c.M, c.K, DTYPE<T>, z.ptr(), y.ptr(), c.offset ? offset.ptr() : nullptr, 2.0 * (double)c.M + 1};
    }
    Array<T> z;
    Array<int32_t> y;
    Array<float> offset;
    std::vector<T> vz;
    std::vector<float> vo;
    std::vector<int32_t> vy;
    struct loss_rows rows;
};

/* Probabilities of a row; returns its loss. u (K) is added to the logits, eps times. */
template <class T>
static double row_ref(const struct data<T> &d, int64_t row, double eps, std::vector<double> *p)
{
    const int64_t K = d.rows.K;
    double max = -INFINITY, sum = 0;

    p->resize((size_t)K);
    for (int64_t j = 0; j < K; j++) {
        (*p)[j] = (double)to_float(d.vz[row * K + j]) + d.vo[j] + eps * uniform(9, row * K + j);
        max = fmax(max, (*p)[j]);
    }
    const double at = (*p)[d.vy[row]];
    for (int64_t j = 0; j < K; j++)
        sum += (*p)[j] = exp((*p)[j] - max);
    for (int64_t j = 0; j < K; j++)
        (*p)[j] /= sum;
    return log(sum) + max - at;
}

/* The loss of all rows, ε along the random direction. */
template <class T> static double loss_ref(const struct data<T> &d, double eps)
{
    std::vector<double> p;
    double sum = 0;

    for (int64_t i = 0; i < d.rows.M; i++)
        sum += row_ref(d, i, eps, &p);
    return sum / d.rows.denominator;
}

template <class T>
static void grad_case(const struct loss_case &c, struct data<T> &d, Array<float> &stat, int acc, Hash *h)
{
    const double dloss = -1.75, eps = 1e-4, rel = ROUNDING<T> + 1e-6 * (1 + c.scale);
    Array<T> dz(c.M * c.K, off(c.shift, 1));
    Array<double> upstream(1);
    std::vector<T> old = dz.fill(4);
    std::vector<double> p;
    double projection = 0;

    upstream.set({dloss});
    CUDA_OK(loss_softmax_xent_grad(&d.rows, stat.ptr(), upstream.ptr(), dz.ptr(), acc, nullptr));
    std::vector<T> got = dz.get();
    h->add(got);
    for (int64_t i = 0; i < c.M; i++) {
        row_ref(d, i, 0, &p);
        for (int64_t j = 0; j < c.K; j++) {
            const double grad = (p[j] - (j == d.vy[i])) * dloss / d.rows.denominator;
            const double want = grad + (acc ? to_float(old[i * c.K + j]) : 0),
                         is = to_float(got[i * c.K + j]);

            CHECK(near(is, want, rel, 1e-6 / d.rows.denominator + (acc ? 1e-7 : 0)),
                  "(%lld,%lld) acc %d: dz[%lld,%lld] is %g, not %g", (long long)c.M, (long long)c.K, acc,
                  (long long)i, (long long)j, is, want);
            projection += is * uniform(9, i * c.K + j);
        }
    }
    if (acc || DTYPE<T> == DTYPE_BF16)
        return;
    const double want = dloss * (loss_ref(d, eps) - loss_ref(d, -eps)) / (2 * eps);
    CHECK(near(projection, want, 1e-4, 1e-6), "(%lld,%lld): projection of the gradient is %.9g, not %.9g",
          (long long)c.M, (long long)c.K, projection, want);
}

template <class T> static void run_case(const struct loss_case &c, Hash *h)
{
    struct data<T> d(c);
    Array<float> stat(2 * c.M);
    Array<double> row_loss(c.M), loss(1);
    Array<int32_t> bad(1);

    stat.fill(5);
    row_loss.fill(6);
    CUDA_OK(loss_softmax_xent(&d.rows, stat.ptr(), row_loss.ptr(), loss.ptr(), bad.ptr(), nullptr));
    const std::vector<double> got = loss.get();
    h->add(got);
    h->add(stat.get());
    CHECK(near(got[0], loss_ref(d, 0), 1e-6, 1e-6), "(%lld,%lld): loss %.9g, not %.9g", (long long)c.M,
          (long long)c.K, got[0], loss_ref(d, 0));
    CHECK(bad.get()[0] == -1, "row %d has a bad target", bad.get()[0]);
    for (int acc = 0; acc < 2; acc++)
        grad_case(c, d, stat, acc, h);
}

/* Targets out of range: named, never used as an index. */
static void bad_target_case(int64_t M, int64_t K, int64_t row, int32_t target)
{
    struct data<float> d({M, K, true, 0, 1});
    Array<float> stat(2 * M), dz(M * K);
    Array<double> row_loss(M), loss(1), upstream(1);
    Array<int32_t> bad(1);

    d.vy[row] = target;
    if (row + 2 < M)
        d.vy[row + 2] = -1;
    d.y.set(d.vy);
    upstream.set({1});
    CUDA_OK(loss_softmax_xent(&d.rows, stat.ptr(), row_loss.ptr(), loss.ptr(), bad.ptr(), nullptr));
    CUDA_OK(loss_softmax_xent_grad(&d.rows, stat.ptr(), upstream.ptr(), dz.ptr(), 0, nullptr));
    CHECK(bad.get()[0] == row, "first bad row %d, not %lld", bad.get()[0], (long long)row);
    CHECK(std::isnan(loss.get()[0]), "a bad target gave the loss %g", loss.get()[0]);
    for (float v : dz.get())
        CHECK(std::isfinite(v), "gradient of a row with a bad target");
    CUDA_OK(loss_softmax_xent(&d.rows, stat.ptr(), row_loss.ptr(), loss.ptr(), nullptr, nullptr));
    CHECK(std::isnan(loss.get()[0]), "without a flag");
}

static void refusals(void)
{
    struct loss_rows r = {1, 0, DTYPE_F32, nullptr, nullptr, nullptr, 1};

    CHECK(loss_softmax_xent(&r, nullptr, nullptr, nullptr, nullptr, nullptr) == cudaErrorInvalidValue,
          "0 classes");
    r.K = 1;
    r.t = DTYPE_F64;
    CHECK(loss_softmax_xent(&r, nullptr, nullptr, nullptr, nullptr, nullptr) == cudaErrorInvalidValue,
          "logits in fp64");
}

static void cases(Hash *h)
{
    static const int64_t ROWS[] = {0, 1, 2, 5, 33}, CLASSES[] = {1, 2, 3, 8, 10, 100, 511, 512, 513, 1000};

    for (int64_t M : ROWS) {
        for (int64_t K : CLASSES) {
            for (int k = 0; k < 3; k++) {
                run_case<float>({M, K, k == 0, k, 10}, h);
                run_case<bf16>({M, K, k == 1, k, 6}, h);
            }
        }
    }
    run_case<float>({1300, 10, true, 0, 5}, h);
    for (int64_t K : {3, 600}) {
        bad_target_case(5, K, 0, (int32_t)K);
        bad_target_case(5, K, 4, -1);
        bad_target_case(5, K, 2, INT32_MIN);
        bad_target_case(700, K, 555, INT32_MAX);
    }
    refusals();
}

static void one_launch(void)
{
    struct loss_rows r = {0, 1, DTYPE_F32, nullptr, nullptr, nullptr, 1};
    Array<double> loss(1);

    CUDA_OK(loss_softmax_xent(&r, nullptr, nullptr, loss.ptr(), nullptr, nullptr));
}

int main()
{
    return run_passes("loss", cases, one_launch);
}
