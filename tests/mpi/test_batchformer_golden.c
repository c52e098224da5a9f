/* test_batchformer_golden - the BatchFormer and its two-stream loss against values computed in float64 from
 * the equations (N=6 samples, C=8, 2 heads, K=5 classes, no dropout), for every split of the rows over the
 * ranks of this job and both ways to gather; and the usual mistakes, which must be caught by the same
 * comparison.
 *
 * X is a parameter here (each rank slices its rows), so its gradient comes out like any other.
 */
#include "tests/mpi/mpi_main.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/nn/batchformer.h"
#include "worker/engine/program.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 6, C = 8, K = 5, HEADS = 2, MAX_RANKS = 6 };

static const int32_t labels[N] = {0, 1, 2, 3, 4, 0};

/* How each parameter is filled (32-bit LCG) and what its gradient must be. */
static const struct golden {
    const char *name;
    uint32_t seed;
    double scale, add;
    double grad_norm, grad_sum;
} goldens[] = {
    {"x", 1, 2, 0, .268122402505, .066650611704},
    {"batchformer.self_attn.in_proj_weight", 2, 1, 0, .047282236888, -.005812870293},
    {"batchformer.self_attn.in_proj_bias", 3, .2, 0, .044008045681, .107927955795},
    {"batchformer.self_attn.out_proj.weight", 4, 1, 0, .043980883613, 0},
    {"batchformer.self_attn.out_proj.bias", 5, .2, 0, .112623190881, 0},
    {"batchformer.norm1.weight", 6, .2, 1, .069556184600, -.019111947263},
    {"batchformer.norm1.bias", 7, .2, 0, .065775917216, .020592588963},
    {"batchformer.linear1.weight", 8, 1, 0, .216292485289, .008048837952},
    {"batchformer.linear1.bias", 9, .2, 0, .052027728291, .029741028157},
    {"batchformer.linear2.weight", 10, 1, 0, .137860976280, 0},
    {"batchformer.linear2.bias", 11, .2, 0, .066054021301, 0},
    {"batchformer.norm2.weight", 12, .2, 1, .101692100382, .086260548140},
    {"batchformer.norm2.bias", 13, .2, 0, .053357790206, .052131109985},
    {"fc.weight", 14, 1, 0, .780552826740, 0},
    {"fc.bias", 15, .2, 0, .160671815001, 0},
};

enum { N_GOLDENS = sizeof goldens / sizeof *goldens };

static const double loss_golden = 1.644211448283, balanced_golden = 2.246930514303;
static const double z_norm_golden = 6.811402678106, z_sum_golden = -.435463290786;
static const float z0_golden[C] = {-.790104211287f,  -.291450615092f, .085461850682f,  1.715520132560f,
                                   -1.628209008060f, .054869343528f,  1.053921020281f, -.383382237858f};
static const float dx0_golden[C] = {.074649207861f,  .008997112156f, -.023017466333f, .012529222477f,
                                    -.062331415329f, .071366085527f, -.001409829814f, -.033268825694f};

/* ---- a communicator that makes the usual mistakes ---- */

enum mistake { NONE, NO_REDUCE_SCATTER, MEAN_FOR_SUM };

struct mutant {
    struct comm base;
    struct comm *inner;
    enum mistake mistake;
};

static int mutant_all_gather(struct comm *c, const void *local, void *all, const int64_t *counts,
                             size_t row_bytes, struct err *e)
{
    return comm_all_gather(((struct mutant *)c)->inner, local, all, counts, row_bytes, e);
}

static int mutant_reduce_scatter(struct comm *c, const float *all, float *local, const int64_t *counts,
                                 int64_t width, struct err *e)
{
    struct mutant *m = (struct mutant *)c;
    int64_t first = 0, n = counts[c->rank] * width;

    for (int r = 0; r < c->rank; r++)
        first += counts[r];
    if (m->mistake == NO_REDUCE_SCATTER) {
        if (n)
            memcpy(local, all + first * width, (size_t)n * sizeof *local);
        return 0;
    }
    if (comm_reduce_scatter(m->inner, all, local, counts, width, e) < 0)
        return -1;
    for (int64_t i = 0; m->mistake == MEAN_FOR_SUM && i < n; i++)
        local[i] /= (float)c->size;
    return 0;
}

static int mutant_all_reduce(struct comm *c, void *buf, size_t n, enum dtype t, struct err *e)
{
    return comm_all_reduce(((struct mutant *)c)->inner, buf, n, t, e);
}

static int mutant_start(struct comm *c, void *buf, size_t n, enum dtype t, struct comm_req *r, struct err *e)
{
    return comm_all_reduce_start(((struct mutant *)c)->inner, buf, n, t, r, e);
}

static int mutant_wait(struct comm *c, struct comm_req *r, struct err *e)
{
    return comm_wait(((struct mutant *)c)->inner, r, e);
}

static const struct comm_ops mutant_ops = {.name = "mutant",
                                           .all_gather = mutant_all_gather,
                                           .reduce_scatter = mutant_reduce_scatter,
                                           .all_reduce = mutant_all_reduce,
                                           .all_reduce_start = mutant_start,
                                           .wait = mutant_wait};

/* ---- one forward and backward pass ---- */

struct result {
    double loss, z_norm, z_sum;
    float z[N * C], dx[N * C];
    double grad_norm[N_GOLDENS], grad_sum[N_GOLDENS];
};

/* What the loss is taken of. */
enum rows_of_loss {
    BOTH_STREAMS, /* the mean over all 2N rows */
    NEW_ROW_0,    /* sample 0 behind the module */
    OLD_ROW_0,    /* sample 0 before it */
};

struct setup {
    const int64_t *counts; /* rows of each rank */
    enum rows_of_loss of;
    enum gather_kind gather;
    enum mistake mistake;
    bool local_scope, balanced;
};

static void fill_lcg(float *v, int64_t n, const struct golden *g)
{
    uint32_t s = g->seed;

    for (int64_t i = 0; i < n; i++) {
        s = 1664525u * s + 1013904223u;
        v[i] = (float)(g->scale * ((double)(s / 256) / 16777216.0 - 0.5) + g->add);
    }
}

static void fill_params(struct params *ps)
{
    static const float log_counts[K] = {6.2146081f, 4.6051702f, 3.9120230f, 2.9957323f, 1.6094379f};
    struct err e = ERR_INIT;
    float v[3 * C * C];

    for (int i = 0; i < N_GOLDENS; i++) {
        struct param *p = params_find(ps, goldens[i].name);
        assert_non_null(p);
        fill_lcg(v, shape_count(p->shape), &goldens[i]);
        assert_int_equal(params_set(ps, p, v, &e), 0);
    }
    struct param *prior = params_find(ps, "log_prior");
    if (prior)
        assert_int_equal(params_set(ps, prior, log_counts, &e), 0);
}

struct nodes {
    struct node *z, *targets, *loss;
    struct node *label0; /* NULL when the loss is over both streams */
};

static struct nodes build(struct graph *g, const struct setup *s)
{
    const struct init zero = {INIT_CONST, 0};
    struct err e = ERR_INIT;
    struct nodes out = {0};
    struct net net;

    net_init(&net, g, true, &e);
    struct node *all = net_param(&net, "x", PARAM_WEIGHT, shape2(N, C), zero);
    struct node *x = net_slice_rows(&net, all, "rows", g->rows.first, g->rows.first + g->rows.local);
    struct batchformer_cfg cfg = {1, HEADS, C, 0, !s->local_scope, s->gather};
    out.z = batchformer_build(&net, &cfg, x);
    out.targets = net_input(&net, "labels", shape1(g->rows.local), DTYPE_I32);
    struct node *rows = net_concat_rows(&net, x, out.z);
    struct node *twice = net_concat_rows(&net, out.targets, out.targets);
    double denominator = 2.0 * N;
    if (s->of != BOTH_STREAMS) {
        int64_t n_here = g->rows.first == 0 && g->rows.local > 0; /* who has sample 0 */
        rows = net_slice_rows(&net, s->of == NEW_ROW_0 ? out.z : x, "row0", 0, n_here);
        twice = out.label0 = net_input(&net, "label0", shape1(n_here), DTYPE_I32);
        denominator = 1;
    }
    struct node *logits = net_linear(&net, rows, "fc", K, zero, zero);
    struct node *prior = s->balanced ? net_param(&net, "log_prior", PARAM_CONST, shape1(K), zero) : NULL;
    out.loss = net_softmax_xent(&net, logits, twice, prior, denominator);
    if (net_failed(&net))
        fail_msg("%s", e.msg);
    return out;
}

/* Rows that lie on all ranks, as one array. */
static void gather_rows(struct comm *c, const float *local, float *all, const int64_t *counts)
{
    struct err e = ERR_INIT;

    assert_int_equal(comm_all_gather(c, local, all, counts, C * sizeof(float), &e), 0);
}

static void norm_and_sum(const float *v, int64_t n, double *norm, double *sum)
{
    double sq = 0, s = 0;

    for (int64_t i = 0; i < n; i++) {
        sq += (double)v[i] * v[i];
        s += v[i];
    }
    *norm = sqrt(sq);
    *sum = s;
}

static void read_gradients(const struct params *ps, struct result *out)
{
    struct err e = ERR_INIT;
    float v[3 * C * C];

    for (int i = 0; i < N_GOLDENS; i++) {
        const struct param *p = params_find(ps, goldens[i].name);
        assert_int_equal(params_get_grad(ps, p, v, &e), 0);
        norm_and_sum(v, shape_count(p->shape), &out->grad_norm[i], &out->grad_sum[i]);
        if (i == 0)
            memcpy(out->dx, v, sizeof out->dx);
    }
}

static struct result run(struct comm *c, const struct setup *s)
{
    struct err e = ERR_INIT;
    struct result out;
    struct mutant m = {{&mutant_ops, c->rank, c->size}, c, s->mistake};
    struct backend *be = cpu_backend_create(&(struct cpu_config){.n_threads = 1, .winograd = true}, &e);
    struct params *ps = params_create(be);
    struct row_split rows = {c->rank, c->size, N, 0, s->counts[c->rank], s->counts, 0};
    for (int r = 0; r < c->rank; r++)
        rows.first += s->counts[r];
    struct graph *g = graph_create(ps, &rows, true);
    struct nodes nodes = build(g, s);
    assert_int_equal(params_finalize(ps, 0, &e), 0);
    fill_params(ps);
    struct program_cfg cfg = {be, &m.base, nodes.loss, &nodes.z, 1, 256};
    struct program *p = program_compile(g, &cfg, &e);
    if (!p)
        fail_msg("%s", e.msg);
    float z_local[N * C];
    assert_int_equal(program_feed(p, nodes.targets, labels + rows.first, (size_t)rows.local * 4, &e), 0);
    if (nodes.label0)
        assert_int_equal(program_feed(p, nodes.label0, labels, (size_t)nodes.label0->shape.dims[0] * 4, &e),
                         0);
    if (program_forward(p, 0, 0, &e) < 0 || program_backward(p, &e) < 0)
        fail_msg("%s", e.msg);
    assert_int_equal(program_read(p, nodes.loss, &out.loss, sizeof out.loss, &e), 0);
    assert_int_equal(program_read(p, nodes.z, z_local, (size_t)(rows.local * C) * sizeof(float), &e), 0);
    assert_int_equal(comm_all_reduce(c, &out.loss, 1, DTYPE_F64, &e), 0);
    gather_rows(c, z_local, out.z, s->counts);
    norm_and_sum(out.z, N * C, &out.z_norm, &out.z_sum);
    read_gradients(ps, &out);
    program_destroy(p);
    graph_destroy(g);
    params_destroy(ps);
    be->ops->destroy(be);
    return out;
}

/* ---- what is compared ---- */

static double rel(double found, double want)
{
    return fabs(found - want) / fabs(want);
}

static double rel_rows(const float *found, const float *want, int n)
{
    double d = 0, w = 0;

    for (int i = 0; i < n; i++) {
        d += pow((double)found[i] - want[i], 2);
        w += pow(want[i], 2);
    }
    return sqrt(d / w);
}

/* The largest relative deviation from the golden gradients; `worst` names it. */
static double gradient_deviation(const struct result *r, const char **worst)
{
    double max = rel_rows(r->dx, dx0_golden, C);

    *worst = "x[0]";
    for (int i = 0; i < N_GOLDENS; i++) {
        double d = rel(r->grad_norm[i], goldens[i].grad_norm);
        double s = fabs(r->grad_sum[i] - goldens[i].grad_sum) / goldens[i].grad_norm;
        if (fmax(d, s) > max) {
            max = fmax(d, s);
            *worst = goldens[i].name;
        }
    }
    return max;
}

static const double tolerance = 1e-5;

static void check(const struct result *r)
{
    const char *worst;
    double d = gradient_deviation(r, &worst);

    if (rel(r->loss, loss_golden) > tolerance)
        fail_msg("loss %.12f, %.12f is right", r->loss, loss_golden);
    if (rel(r->z_norm, z_norm_golden) > tolerance || fabs(r->z_sum - z_sum_golden) > tolerance ||
        rel_rows(r->z, z0_golden, C) > tolerance)
        fail_msg("output: norm %.9f, %.9f is right", r->z_norm, z_norm_golden);
    if (d > tolerance)
        fail_msg("gradient of %s deviates by %g", worst, d);
}

/* Splits of 6 rows for each world size; the list ends with zeros. */
static const struct {
    int size;
    int64_t counts[MAX_RANKS];
} splits[] = {
    {1, {6}},       {2, {3, 3}},    {2, {4, 2}},    {2, {6, 0}},
    {3, {2, 2, 2}}, {3, {3, 2, 1}}, {3, {0, 5, 1}}, {6, {1, 1, 1, 1, 1, 1}},
};

static struct comm *world(void)
{
    struct err e = ERR_INIT;
    struct comm *c = comm_mpi_create(TEST_TIMEOUT_MS, &e);

    assert_non_null(c);
    return c;
}

static void test_golden(void **state)
{
    (void)state;
    struct comm *c = world();
    int n_checked = 0;

    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) {
        if (splits[i].size != c->size)
            continue;
        for (int gather = 0; gather < 2; gather++) {
            struct setup s = {.counts = splits[i].counts,
                              .gather = gather ? GATHER_ROWS : GATHER_KEYS_VALUES};
            struct result r = run(c, &s);
            check(&r);
            n_checked++;
        }
    }
    assert_true(n_checked > 0);
    comm_destroy(c);
}

static const int64_t *even_split(int size)
{
    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++)
        if (splits[i].size == size)
            return splits[i].counts;
    return NULL;
}

static void test_balanced_softmax(void **state)
{
    (void)state;
    struct comm *c = world();
    struct setup s = {.counts = even_split(c->size), .balanced = true};
    struct result r = run(c, &s);

    assert_true(rel(r.loss, balanced_golden) < tolerance);
    comm_destroy(c);
}

/* The loss of one sample behind the module reaches every other sample, wherever it lies; before the module,
 * none. */
static void test_gradient_crosses_samples(void **state)
{
    (void)state;
    static const double want[2][N] = {
        {.927747335860, .059312756107, .040459997323, .038895751890, .049852161960, .041041748136},
        {.604493946434, 0, 0, 0, 0, 0},
    };
    struct comm *c = world();

    for (int old = 0; old < 2; old++) {
        struct setup s = {.counts = even_split(c->size), .of = old ? OLD_ROW_0 : NEW_ROW_0};
        struct result r = run(c, &s);
        for (int j = 0; j < N; j++) {
            double norm, sum;
            norm_and_sum(r.dx + j * C, C, &norm, &sum);
            if (!(fabs(norm - want[old][j]) <= tolerance * fmax(want[old][j], 1e-3)))
                fail_msg("stream %d: the gradient of sample %d has norm %.9f, %.9f is right", old, j, norm,
                         want[old][j]);
        }
    }
    comm_destroy(c);
}

/* The mistakes leave the loss as it is and the gradient wrong: a test that looks at the loss sees nothing. */
static void test_mistakes_are_caught(void **state)
{
    (void)state;
    struct comm *c = world();
    static const enum mistake mistakes[] = {NO_REDUCE_SCATTER, MEAN_FOR_SUM};

    for (int i = 0; c->size > 1 && i < 2; i++)
        for (int gather = 0; gather < 2; gather++) {
            struct setup s = {.counts = even_split(c->size),
                              .mistake = mistakes[i],
                              .gather = (enum gather_kind)gather};
            struct result r = run(c, &s);
            const char *worst;
            assert_true(rel(r.loss, loss_golden) < tolerance);
            assert_true(gradient_deviation(&r, &worst) > 1000 * tolerance);
        }
    comm_destroy(c);
}

/* What per-rank attention computes is another function, with its own golden losses. */
static void test_local_scope_differs(void **state)
{
    (void)state;
    struct comm *c = world();
    struct setup s = {.counts = even_split(c->size), .local_scope = true};
    struct result r = run(c, &s);
    const char *worst;

    if (c->size == 1) {
        check(&r);
    } else {
        if (c->size == 2)
            assert_true(rel(r.loss, 1.665083781723) < tolerance);
        if (c->size == 3)
            assert_true(rel(r.loss, 1.632801312802) < tolerance);
        assert_true(rel(r.loss, loss_golden) > 100 * tolerance);
        assert_true(gradient_deviation(&r, &worst) > 1000 * tolerance);
    }
    comm_destroy(c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_golden),
    cmocka_unit_test(test_balanced_softmax),
    cmocka_unit_test(test_gradient_crosses_samples),
    cmocka_unit_test(test_mistakes_are_caught),
    cmocka_unit_test(test_local_scope_differs),
};

MPI_TEST_MAIN(tests)
