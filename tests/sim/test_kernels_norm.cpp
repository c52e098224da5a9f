/* test_kernels_norm - batch norm and layer norm kernels, run by the emulator, against the equations in fp64
 * and against the slope of the forward equations.
 *
 * Letters: n samples of `pixels` rows, M = n·pixels, C channels.
 */
#include "tests/sim/dev_tensor.h"
#include "worker/backend/cuda/norm.h"

using dev::near;
using dev::Tensor;
using dev::Type;
using dev::Values;

namespace
{
struct Shape {
    int64_t n, pixels;
    int64_t rows() const { return n * pixels; }
};

const Shape SHAPES[] = {{0, 1},  {0, 5},   {1, 1},    {7, 1},    {1, 7},   {5, 49},
                        {3, 13}, {20, 50}, {1000, 1}, {1, 1000}, {2, 3001}};
const int64_t CHANNELS[] = {1, 3, 17, 64, 130, 2048};
const enum dtype TYPES[] = {DTYPE_F32, DTYPE_BF16};

struct cuda_bn_shape bn_shape(Shape s, int64_t C, enum dtype t)
{
    return {s.n, s.pixels, C, t};
}

/* Rounding of a result of this type. */
double ulp(enum dtype t)
{
    return t == DTYPE_BF16 ? 0x1p-8 : 2e-6;
}

/* One kernel, between runs of three. */
void shift_order()
{
    Tensor sums(Type::F64, 2);
    const struct cuda_bn_shape none = {0, 1, 1, DTYPE_F32};

    dev::must(cuda_bn_stats_forward(&none, nullptr, sums.ptr<double>(), nullptr, dev::stream()), "shift");
    near("sums of no rows", sums.values(), {0, 0}, 0, 0);
}

/* ------------------------------------------------------------------ the equations */

/* Σx, Σx². */
Values sums_of(const Values &x, int64_t C)
{
    std::vector<long double> s(2 * C);
    for (size_t i = 0; i < x.size(); i++) {
        s[i % C] += x[i];
        s[C + i % C] += (long double)x[i] * x[i];
    }
    return Values(s.begin(), s.end());
}

struct Bn {
    int64_t C;
    double count, eps;
    bool relu;

    double mean(const Values &sums, int64_t c) const { return sums[c] / count; }
    double var(const Values &sums, int64_t c) const
    {
        return sums[C + c] / count - mean(sums, c) * mean(sums, c);
    }
    double istd(const Values &sums, int64_t c) const { return 1 / std::sqrt(var(sums, c) + eps); }

    /* Before ReLU; res may be empty. */
    Values linear(const Values &x, const Values &sums, const Values &gamma, const Values &beta,
                  const Values &res) const
    {
        Values y(x.size()), scale(C), m(C);
        for (int64_t c = 0; c < C; c++) {
            m[c] = mean(sums, c);
            scale[c] = gamma[c] * istd(sums, c);
        }
        for (size_t i = 0; i < x.size(); i++)
            y[i] = (x[i] - m[i % C]) * scale[i % C] + beta[i % C] + (res.empty() ? 0 : res[i]);
        return y;
    }
    Values apply(const Values &x, const Values &sums, const Values &gamma, const Values &beta,
                 const Values &res) const
    {
        Values y = linear(x, sums, gamma, beta, res);
        for (double &v : y)
            v = relu && v < 0 ? 0 : v;
        return y;
    }
};

Values with(const Values &before, const Values &v, bool add)
{
    Values r = v;
    for (size_t i = 0; add && i < r.size(); i++)
        r[i] += before[i];
    return r;
}

double largest(const Values &v)
{
    double m = 0;
    for (double x : v)
        m = std::fmax(m, std::fabs(x));
    return m;
}

/* ------------------------------------------------------------------ statistics */

void check_stats_forward(Shape s, int64_t C, enum dtype t, double mean)
{
    dev::Random rnd{(uint64_t)(s.n * 7 + s.pixels * 31 + C)};
    const struct cuda_bn_shape shape = bn_shape(s, C, t);
    const Values x = dev::rounded(dev::type_of(t), rnd.values(s.rows() * C, 1, mean)), want = sums_of(x, C);
    Tensor dx(dev::type_of(t), x), sums(Type::F64, 2 * C);
    Tensor scratch(Type::F64, (int64_t)cuda_bn_stats_scratch_bytes(&shape) / 8);
    const double M = (double)s.rows();
    Values got;

    dev::set_label("bn_stats %lldx%lld rows, %lld channels, %s, mean %g", (long long)s.n, (long long)s.pixels,
                   (long long)C, t == DTYPE_BF16 ? "bf16" : "f32", mean);
    dev::same_in_any_order({&sums}, [&] {
        dev::must(cuda_bn_stats_forward(&shape, dx.ptr(), sums.ptr<double>(), scratch.ptr(), dev::stream()),
                  "bn_stats");
    });
    scratch.raw();
    got = sums.values();
    near("sums", got, want, 1e-12, 2e-6 * M * (1 + std::fabs(mean)));
    for (int64_t c = 0; c < C && M > 1; c++) {
        const double m = want[c] / M, var = want[C + c] / M - m * m;
        const double gm = got[c] / M, gvar = got[C + c] / M - gm * gm;

        near("mean", {gm}, {m}, 0, 1e-6);
        near("variance", {gvar}, {var}, 2e-6, 1e-6 + 1e-14 * mean * mean);
    }
}

/* The sums of parts of a batch add up to those of the batch, to the last bits of fp64. */
void check_stats_spread()
{
    const int64_t C = 20, pixels = 100, parts[] = {6, 1, 3, 2};
    dev::Random rnd{5};
    const Values x = rnd.values(6 * pixels * C, 1, 3);
    Values total(2 * C), all;
    int64_t first = 0;

    dev::set_label("bn_stats of parts");
    for (int64_t n : parts) {
        const struct cuda_bn_shape shape = {n, pixels, C, DTYPE_F32};
        Tensor dx(Type::F32, Values(x.begin() + first * pixels * C, x.begin() + (first + n) * pixels * C));
        Tensor sums(Type::F64, 2 * C), scratch(Type::F64, (int64_t)cuda_bn_stats_scratch_bytes(&shape) / 8);

        dev::must(cuda_bn_stats_forward(&shape, dx.ptr(), sums.ptr<double>(), scratch.ptr(), dev::stream()),
                  "bn_stats");
        if (n == 6) {
            all = sums.values();
            continue;
        }
        total = with(total, sums.values(), true);
        first += n;
    }
    near("sums", total, all, 1e-14, 1e-14);
}

void check_stats_backward(Shape s, int64_t C, enum dtype t, double mean, bool add)
{
    dev::Random rnd{(uint64_t)(s.n * 3 + s.pixels * 11 + C)};
    const struct cuda_bn_shape shape = bn_shape(s, C, t);
    const Type type = dev::type_of(t);
    const Values x = dev::rounded(type, rnd.values(s.rows() * C, 1, mean));
    const Values before = dev::rounded(type, rnd.values(s.rows() * C));
    Values dsums = rnd.values(2 * C), want(x.size());

    for (int64_t c = 0; c < C; c++)
        dsums[c] -= 2 * mean * dsums[C + c]; /* nearly cancels */
    for (size_t i = 0; i < x.size(); i++)
        want[i] = dsums[i % C] + 2 * x[i] * dsums[C + i % C];
    Tensor tx(type, x), td(Type::F64, dsums), dx(type, before);
    dev::set_label("bn_stats backward %lldx%lld rows, %lld channels, %s, mean %g", (long long)s.n,
                   (long long)s.pixels, (long long)C, t == DTYPE_BF16 ? "bf16" : "f32", mean);
    dev::same_in_any_order({&dx}, [&] {
        dev::must(cuda_bn_stats_backward(&shape, tx.ptr(), td.ptr<double>(), dx.ptr(), add, dev::stream()),
                  "bn_stats backward");
    });
    near("dx", dx.values(), with(before, want, add), ulp(t), 2e-6);
}

/* ------------------------------------------------------------------ apply */

/* Inputs of bn_apply; the sums are those of other rows too, as after an all-reduce. */
struct ApplyCase {
    Shape s;
    int64_t C;
    enum dtype t;
    bool relu, has_res;
    Bn bn;
    struct cuda_bn_shape shape;
    struct cuda_bn_apply attr;
    Values x, res, gamma, beta, sums;

    ApplyCase(Shape s_, int64_t C_, enum dtype t_, bool relu_, bool has_res_, double mean)
        : s(s_), C(C_), t(t_), relu(relu_), has_res(has_res_), shape(bn_shape(s_, C_, t_))
    {
        dev::Random rnd{(uint64_t)(s.n * 5 + s.pixels * 3 + C)};
        const double count = 2.0 * s.rows() + 10;

        attr = {count, 1e-5f, 0.1f, relu};
        bn = {C, count, attr.eps, relu};
        x = dev::rounded(dev::type_of(t), rnd.values(s.rows() * C, 1, mean));
        if (has_res)
            res = dev::rounded(dev::type_of(t), rnd.values(s.rows() * C));
        gamma = dev::rounded(Type::F32, rnd.values(C, 0.5, 1));
        beta = dev::rounded(Type::F32, rnd.values(C));
        sums.resize(2 * C);
        for (int64_t c = 0; c < C; c++) {
            const double m = mean + 0.1 * rnd(), var = 0.5 + 0.2 * rnd();
            sums[c] = count * m;
            sums[C + c] = count * (var + m * m);
        }
        dev::set_label("bn_apply %lldx%lld rows, %lld channels, %s%s%s, mean %g", (long long)s.n,
                       (long long)s.pixels, (long long)C, t == DTYPE_BF16 ? "bf16" : "f32",
                       relu ? ", relu" : "", has_res ? ", residual" : "", mean);
    }
    int64_t scratch() const { return (int64_t)cuda_bn_apply_scratch_bytes(&shape) / 8; }
};

void check_apply_forward(const ApplyCase &k)
{
    dev::Random rnd{9};
    const Type type = dev::type_of(k.t);
    const Values rm = dev::rounded(Type::F32, rnd.values(k.C)),
                 rv = dev::rounded(Type::F32, rnd.values(k.C, 0.5, 1));
    Tensor x(type, k.x), res(type, k.res), sums(Type::F64, k.sums), gamma(Type::F32, k.gamma);
    Tensor beta(Type::F32, k.beta), mean(Type::F32, rm), var(Type::F32, rv), y(type, k.s.rows() * k.C);
    Tensor scratch(Type::F64, k.scratch());
    Values want_mean(k.C), want_var(k.C);

    dev::same_in_any_order({&y, &mean, &var}, [&] {
        dev::must(cuda_bn_apply_forward(&k.shape, &k.attr, x.ptr(), sums.ptr<double>(), gamma.ptr<float>(),
                                        beta.ptr<float>(), mean.ptr<float>(), var.ptr<float>(),
                                        k.has_res ? res.ptr() : nullptr, y.ptr(), scratch.ptr(),
                                        dev::stream()),
                  "bn_apply");
    });
    scratch.raw();
    near("y", y.values(), k.bn.apply(k.x, k.sums, k.gamma, k.beta, k.res), ulp(k.t),
         4e-6 * (1 + largest(k.x)));
    for (int64_t c = 0; c < k.C; c++) {
        want_mean[c] = 0.9 * rm[c] + 0.1 * k.bn.mean(k.sums, c);
        want_var[c] = 0.9 * rv[c] + 0.1 * k.bn.var(k.sums, c) * k.bn.count / (k.bn.count - 1);
    }
    near("running mean", mean.values(), want_mean, 1e-6, 1e-6);
    near("running variance", var.values(), want_var, 1e-6, 1e-6);

    const struct cuda_bn_apply infer = {0, k.attr.eps, 0, k.relu};
    Tensor scratch2(Type::F64, (int64_t)cuda_bn_infer_scratch_bytes(&k.shape) / 8),
        y2(type, k.s.rows() * k.C);
    const Bn by_running = {k.C, 1, k.attr.eps, k.relu};
    Values running(2 * k.C);
    for (int64_t c = 0; c < k.C; c++) {
        running[c] = rm[c];
        running[k.C + c] = rv[c] + rm[c] * rm[c];
    }
    mean.reset();
    var.reset();
    dev::must(cuda_bn_infer_forward(&k.shape, &infer, x.ptr(), gamma.ptr<float>(), beta.ptr<float>(),
                                    mean.ptr<float>(), var.ptr<float>(), k.has_res ? res.ptr() : nullptr,
                                    y2.ptr(), scratch2.ptr(), dev::stream()),
              "bn_infer");
    scratch2.raw();
    near("bn_infer's y", y2.values(), by_running.apply(k.x, running, k.gamma, k.beta, k.res), ulp(k.t),
         4e-6 * (1 + largest(k.x)));
}

/* Gradients in fp64, from y as the forward kernel left it. */
struct ApplyGrads {
    Values dx, dres, dsums, dgamma, dbeta, scale;

    ApplyGrads(const ApplyCase &k, const Values &y, const Values &dy)
        : dx(dy.size()), dres(dy.size()), dsums(2 * k.C), dgamma(k.C), dbeta(k.C)
    {
        for (size_t i = 0; i < dy.size(); i++) {
            const int64_t c = (int64_t)i % k.C;
            const double g = k.relu && !(y[i] > 0) ? 0 : dy[i], istd = k.bn.istd(k.sums, c);

            dres[i] = g;
            dx[i] = g * k.gamma[c] * istd;
            dgamma[c] += g * (k.x[i] - k.bn.mean(k.sums, c)) * istd;
            dbeta[c] += g;
        }
        for (int64_t c = 0; c < k.C; c++) {
            const double istd = k.bn.istd(k.sums, c), m = k.bn.mean(k.sums, c);
            const double dvar = -0.5 * k.gamma[c] * istd * istd * dgamma[c];

            dsums[c] = (-k.gamma[c] * istd * dbeta[c] - 2 * m * dvar) / k.bn.count;
            dsums[k.C + c] = dvar / k.bn.count;
        }
    }
};

/* What of the gradients is wanted; bit i of acc: added to. */
void check_apply_backward(const ApplyCase &k, bool wants_dx, bool wants_params, unsigned acc)
{
    dev::Random rnd{11};
    const Type type = dev::type_of(k.t);
    const int64_t count = k.s.rows() * k.C;
    const Values dyv = dev::rounded(type, rnd.values(count));
    const Values y = dev::rounded(type, k.bn.apply(k.x, k.sums, k.gamma, k.beta, k.res));
    const Values bx = dev::rounded(type, rnd.values(count)), br = dev::rounded(type, rnd.values(count));
    const Values bs = rnd.values(2 * k.C), bg = dev::rounded(Type::F32, rnd.values(k.C)),
                 bb = dev::rounded(Type::F32, rnd.values(k.C));
    const ApplyGrads want(k, y, dyv);
    Tensor x(type, k.x), ty(type, y), dy(type, dyv), sums(Type::F64, k.sums), gamma(Type::F32, k.gamma);
    Tensor dx(type, bx), dres(type, br), dsums(Type::F64, bs), dgamma(Type::F32, bg), dbeta(Type::F32, bb);
    Tensor scratch(Type::F64, k.scratch());
    struct cuda_bn_grad g = {};

    g.x = x.ptr();
    g.y = k.relu ? ty.ptr() : nullptr;
    g.dy = dy.ptr();
    g.sums = sums.ptr<double>();
    g.gamma = gamma.ptr<float>();
    g.dx = wants_dx ? dx.ptr() : nullptr;
    g.dres = k.has_res ? dres.ptr() : nullptr;
    g.dsums = wants_params ? dsums.ptr<double>() : nullptr;
    g.dgamma = wants_params ? dgamma.ptr<float>() : nullptr;
    g.dbeta = wants_params ? dbeta.ptr<float>() : nullptr;
    g.add_dx = acc & 1;
    g.add_dsums = acc & 2;
    g.add_dgamma = acc & 4;
    g.add_dbeta = acc & 8;
    g.add_dres = acc & 64;
    dev::same_in_any_order(
        {&dx, &dres, &dsums, &dgamma, &dbeta},
        [&] {
            dev::must(cuda_bn_apply_backward(&k.shape, &k.attr, &g, scratch.ptr(), dev::stream()),
                      "bn_apply backward");
        },
        shift_order);
    scratch.raw();
    const double small = 1e-6 * (1 + k.s.rows()), large = small * (1 + std::fabs(largest(k.x)));
    near("dx", dx.values(), wants_dx ? with(bx, want.dx, acc & 1) : bx, ulp(k.t), 1e-6);
    near("dres", dres.values(), k.has_res ? with(br, want.dres, acc & 64) : br, ulp(k.t), 1e-6);
    near("dgamma", dgamma.values(), wants_params ? with(bg, want.dgamma, acc & 4) : bg, 1e-6, large);
    near("dbeta", dbeta.values(), wants_params ? with(bb, want.dbeta, acc & 8) : bb, 1e-6, small);
    near("dsums", dsums.values(), wants_params ? with(bs, want.dsums, acc & 2) : bs, 1e-6,
         2e-6 * (1 + largest(k.x)) * (1 + largest(k.x)));
}

/* The three operators in a row, as a network has them: the gradient of Σ w·y along random directions. */
void check_whole_slope(Shape s, int64_t C, bool has_res, double mean)
{
    ApplyCase k(s, C, DTYPE_F32, true, has_res, mean);
    dev::Random rnd{21};
    const int64_t count = s.rows() * C;
    const Values w = dev::rounded(Type::F32, rnd.values(count));

    k.attr.count = k.bn.count = (double)s.rows();
    k.sums = sums_of(k.x, C);
    const Values linear = k.bn.linear(k.x, k.sums, k.gamma, k.beta, k.res);
    const Values y = k.bn.apply(k.x, k.sums, k.gamma, k.beta, k.res);
    /* The slope is taken with the ReLU's mask as it is, so that no kink is stepped over. */
    auto loss = [&](const Values &x, const Values &gamma, const Values &beta, const Values &res) {
        const Values v = k.bn.linear(x, sums_of(x, C), gamma, beta, res);
        double sum = 0;
        for (int64_t i = 0; i < count; i++)
            sum += linear[i] > 0 ? w[i] * v[i] : 0;
        return sum;
    };
    Tensor x(Type::F32, k.x), ty(Type::F32, y), dy(Type::F32, w), sums(Type::F64, 2 * C),
        gamma(Type::F32, k.gamma);
    Tensor dx(Type::F32, count), dres(Type::F32, count), dsums(Type::F64, 2 * C), dgamma(Type::F32, C),
        dbeta(Type::F32, C), scratch(Type::F64, k.scratch());
    struct cuda_bn_grad g = {};

    g.x = x.ptr();
    g.y = ty.ptr();
    g.dy = dy.ptr();
    g.sums = sums.ptr<double>();
    g.gamma = gamma.ptr<float>();
    g.dx = dx.ptr();
    g.dres = has_res ? dres.ptr() : nullptr;
    g.dsums = dsums.ptr<double>();
    g.dgamma = dgamma.ptr<float>();
    g.dbeta = dbeta.ptr<float>();
    dev::must(cuda_bn_stats_forward(&k.shape, x.ptr(), sums.ptr<double>(), scratch.ptr(), dev::stream()),
              "stats");
    dev::must(cuda_bn_apply_backward(&k.shape, &k.attr, &g, scratch.ptr(), dev::stream()), "apply");
    dev::must(cuda_bn_stats_backward(&k.shape, x.ptr(), dsums.ptr<double>(), dx.ptr(), true, dev::stream()),
              "stats backward");
    const Values d = rnd.values(count), dc = rnd.values(C);
    const double scale = 1e-5 * std::sqrt((double)count);
    near("slope in x", {dev::dot(dx.values(), d)},
         {dev::slope([&](const Values &v) { return loss(v, k.gamma, k.beta, k.res); }, k.x, d, 1e-4)}, 1e-4,
         scale);
    near("slope in gamma", {dev::dot(dgamma.values(), dc)},
         {dev::slope([&](const Values &v) { return loss(k.x, v, k.beta, k.res); }, k.gamma, dc, 1e-4)}, 1e-4,
         scale);
    near("slope in beta", {dev::dot(dbeta.values(), dc)},
         {dev::slope([&](const Values &v) { return loss(k.x, k.gamma, v, k.res); }, k.beta, dc, 1e-4)}, 1e-4,
         scale);
    if (has_res)
        near("slope in the residual", {dev::dot(dres.values(), d)},
             {dev::slope([&](const Values &v) { return loss(k.x, k.gamma, k.beta, v); }, k.res, d, 1e-4)},
             1e-4, scale);
}

/* ------------------------------------------------------------------ layer norm */

Values layernorm(const Values &x, const Values &gamma, const Values &beta, int64_t C, double eps)
{
    Values y(x.size());
    for (size_t r = 0; r < x.size(); r += C) {
        double m = 0, v = 0;
        for (int64_t c = 0; c < C; c++)
            m += x[r + c] / C;
        for (int64_t c = 0; c < C; c++)
            v += (x[r + c] - m) * (x[r + c] - m) / C;
        for (int64_t c = 0; c < C; c++)
            y[r + c] = (x[r + c] - m) / std::sqrt(v + eps) * gamma[c] + beta[c];
    }
    return y;
}

struct LayernormGrads {
    Values dx, dgamma, dbeta;

    LayernormGrads(const Values &x, const Values &gamma, const Values &dy, int64_t C, double eps)
        : dx(x.size()), dgamma(C), dbeta(C)
    {
        for (size_t r = 0; r < x.size(); r += C) {
            double m = 0, v = 0, sg = 0, sgx = 0;
            for (int64_t c = 0; c < C; c++)
                m += x[r + c] / C;
            for (int64_t c = 0; c < C; c++)
                v += (x[r + c] - m) * (x[r + c] - m) / C;
            const double istd = 1 / std::sqrt(v + eps);
            for (int64_t c = 0; c < C; c++) {
                const double xh = (x[r + c] - m) * istd, g = dy[r + c] * gamma[c];
                sg += g / C;
                sgx += g * xh / C;
                dgamma[c] += dy[r + c] * xh;
                dbeta[c] += dy[r + c];
            }
            for (int64_t c = 0; c < C; c++)
                dx[r + c] = istd * (dy[r + c] * gamma[c] - sg - (x[r + c] - m) * istd * sgx);
        }
    }
};

/* `shift` floats before the parameters: they need not lie on 16 bytes. */
void check_layernorm(int64_t M, int64_t C, enum dtype t, double mean, unsigned acc, int shift)
{
    dev::Random rnd{(uint64_t)(M * 3 + C)};
    const Type type = dev::type_of(t);
    const float eps = 1e-5f;
    const Values xv = dev::rounded(type, rnd.values(M * C, 1, mean)),
                 dyv = dev::rounded(type, rnd.values(M * C));
    const Values gv = dev::rounded(Type::F32, rnd.values(C + shift, 0.5, 1)),
                 bv = dev::rounded(Type::F32, rnd.values(C + shift));
    const Values gamma_v(gv.begin() + shift, gv.end()), beta_v(bv.begin() + shift, bv.end());
    const Values bx = dev::rounded(type, rnd.values(M * C)), bg = dev::rounded(Type::F32, rnd.values(C)),
                 bb = dev::rounded(Type::F32, rnd.values(C));
    Tensor x(type, xv), dy(type, dyv), gamma(Type::F32, gv), beta(Type::F32, bv), y(type, M * C),
        stat(Type::F32, 2 * M);
    Tensor dx(type, bx), dgamma(Type::F32, bg), dbeta(Type::F32, bb);
    Tensor scratch(Type::F64, (int64_t)cuda_layernorm_backward_scratch_bytes(M, C, t) / 8);

    dev::set_label("layernorm %lld x %lld, %s, mean %g", (long long)M, (long long)C,
                   t == DTYPE_BF16 ? "bf16" : "f32", mean);
    dev::same_in_any_order({&y, &stat}, [&] {
        dev::must(cuda_layernorm_forward(M, C, t, eps, x.ptr(), gamma.ptr<float>() + shift,
                                         beta.ptr<float>() + shift, y.ptr(), stat.ptr<float>(),
                                         dev::stream()),
                  "layernorm");
    });
    near("y", y.values(), layernorm(xv, gamma_v, beta_v, C, eps), ulp(t), 1e-5 * (1 + std::fabs(mean)));
    dev::same_in_any_order(
        {&dx, &dgamma, &dbeta},
        [&] {
            dev::must(cuda_layernorm_backward(M, C, t, x.ptr(), gamma.ptr<float>() + shift, stat.ptr<float>(),
                                              dy.ptr(), dx.ptr(), dgamma.ptr<float>(), dbeta.ptr<float>(),
                                              acc & 1, acc & 2, acc & 4, scratch.ptr(), dev::stream()),
                      "layernorm backward");
        },
        shift_order);
    scratch.raw();
    const LayernormGrads want(xv, gamma_v, dyv, C, eps);
    /* Few channels may lie close together: 1/std, up to 1/√eps, multiplies every rounding. */
    const double small = (C < 8 ? 1e-3 : 1e-5) * (1 + std::fabs(mean));
    near("dx", dx.values(), with(bx, want.dx, acc & 1), ulp(t), small);
    near("dgamma", dgamma.values(), with(bg, want.dgamma, acc & 2), 1e-5, small * (1 + M));
    near("dbeta", dbeta.values(), with(bb, want.dbeta, acc & 4), 1e-6, 1e-6);

    if (t != DTYPE_F32 || acc || M == 0 || C == 1)
        return;
    const Values d = rnd.values(M * C);
    near("slope in x", {dev::dot(dx.values(), d)},
         {dev::slope([&](const Values &v) { return dev::dot(layernorm(v, gamma_v, beta_v, C, eps), dyv); },
                     xv, d, 1e-5)},
         1e-4, 1e-4 * (1 + std::fabs(mean)) * std::sqrt((double)M * C));
}

/* Gradients that nobody wants; sizes that are refused. */
void check_edges()
{
    const struct cuda_bn_shape bad = {-1, 1, 4, DTYPE_F32}, type = {1, 1, 4, DTYPE_F64},
                               rows = {1 << 20, 1 << 20, 4, DTYPE_F32}, good = {4, 1, 4, DTYPE_F32};
    Tensor t(Type::F32, 64);

    dev::set_label("edges");
    for (const struct cuda_bn_shape *s : {&bad, &type, &rows})
        dev::expect(cuda_bn_stats_backward(s, t.ptr(), t.ptr<double>(), t.ptr(), false, dev::stream()) ==
                        cudaErrorInvalidValue,
                    "a shape is not refused");
    dev::expect(cuda_bn_stats_backward(&good, t.ptr<float>() + 1, t.ptr<double>(), t.ptr(), false,
                                       dev::stream()) == cudaErrorInvalidValue,
                "a pointer that is not aligned is not refused");
    dev::must(cuda_layernorm_backward(4, 4, DTYPE_F32, t.ptr(), t.ptr<float>(), t.ptr<float>(), t.ptr(),
                                      nullptr, nullptr, nullptr, false, false, false, nullptr, dev::stream()),
              "layernorm without gradients");
    t.raw();
}
} // namespace

int main()
{
    for (enum dtype t : TYPES) {
        for (Shape s : SHAPES) {
            for (int64_t C : CHANNELS) {
                const bool odd = (s.n + s.pixels + C) % 2;
                const double large = t == DTYPE_BF16 ? 8 : 1000;

                if (s.rows() * C > 140000)
                    continue;
                check_stats_forward(s, C, t, 0);
                check_stats_forward(s, C, t, large);
                check_stats_backward(s, C, t, odd ? large : 0, odd);
                check_stats_backward(s, C, t, odd ? 0 : large, !odd);
                check_apply_forward(ApplyCase(s, C, t, odd, !odd, 0));
                check_apply_forward(ApplyCase(s, C, t, true, odd, 0.5));
                check_apply_forward(ApplyCase(s, C, t, false, false, odd ? large : 0));
                check_apply_backward(ApplyCase(s, C, t, true, true, 0), true, true, odd ? 0 : 79);
                check_apply_backward(ApplyCase(s, C, t, odd, !odd, 0.5), true, true, odd ? 65 : 14);
                check_apply_backward(ApplyCase(s, C, t, !odd, odd, 0), odd, !odd, odd ? 79 : 0);
            }
        }
        for (int64_t C : {1, 3, 17, 64, 130, 2048, 4096, 5000}) {
            for (int64_t M : {0, 1, 7, 33, 1000}) {
                if (M * C > 140000)
                    continue;
                check_layernorm(M, C, t, 0, 0, 0);
                check_layernorm(M, C, t, 3, 7, 1);
                check_layernorm(M, C, t, 0, 2, 4);
            }
        }
    }
    check_stats_forward({20, 50}, 2048, DTYPE_BF16, 8);
    check_apply_backward(ApplyCase({20, 50}, 2048, DTYPE_F32, true, true, 0), true, true, 0);
    check_layernorm(1000, 2048, DTYPE_F32, 0, 7, 0);
    check_stats_spread();
    check_whole_slope({5, 49}, 17, true, 0);
    check_whole_slope({7, 1}, 64, false, 0.5);
    check_whole_slope({3, 333}, 8, true, 20);
    check_edges();
    return dev::report("test_kernels_norm");
}
