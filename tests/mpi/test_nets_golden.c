/* test_nets_golden - one training step of whole networks with the BatchFormer against PyTorch in float64, on
 * every world size of this job: loss, every parameter's gradient, running statistics. Fixtures:
 * tests/golden/make_nets.py.
 *
 * The deviation of a gradient g from the reference g* is estimated from 32 random ±1 projections:
 * sqrt(mean (⟨s,g⟩ - ⟨s,g*⟩)²) / ‖g*‖ has the size of ‖g - g*‖ / ‖g*‖.
 */
#include "tests/mpi/mpi_main.h"
#include "common/json.h"
#include "common/philox.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/engine/program.h"
#include "worker/nn/batchformer.h"
#include "worker/nn/resnet.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEED = 11, N_PROJECTIONS = 32, MAX_RANKS = 8, MAX_BATCH = 24 };

static const double buffer_tolerance = 1e-5;

struct net_case {
    const char *arch;
    int64_t batch, size, channels, classes;
    bool balanced;                             /* balanced softmax with class counts 500, 250, 166, … */
    double loss_tolerance, gradient_tolerance; /* relative; gradients norm-wise per tensor */
    double winograd_tolerance;                 /* of gradients, where convolutions round more coarsely */
};

/* On so few pixels the large-image networks are ill-conditioned in fp32 whoever computes them (a rounding
 * flips a ReLU): PyTorch's own fp32 deviates from its fp64 by up to 3.4e-3 in a gradient of ResNet-18, and
 * by 1.2e-5 in the loss and 1.3e-2 in a gradient of ResNet-50. They are here for their structure; ResNet-20
 * is here for its digits. */
static const struct net_case cases[] = {
    {"resnet20", 24, 28, 1, 10, true, 1e-5, 1e-3, 1e-2},
    {"resnet18", 6, 64, 3, 7, false, 1e-5, 1e-2, 3e-2},
    {"resnet50", 6, 64, 3, 7, false, 1e-4, 5e-2, 1e-1},
    {"cifar-resnet18", 6, 16, 3, 7, false, 1e-5, 1e-2, 3e-2},
};

struct model {
    struct backend *be;
    struct comm *comm;
    struct params *params;
    struct graph *graph;
    struct program *program;
    struct node *images, *labels, *loss;
    int64_t counts[MAX_RANKS];
};

/* The network of the long-tailed task, built by hand. */
static void build(struct model *m, const struct net_case *nc)
{
    struct err e = ERR_INIT;
    struct net net;
    const struct resnet_arch *arch = resnet_find(nc->arch);
    int64_t n = m->graph->rows.local;

    net_init(&net, m->graph, true, &e);
    m->images = net_input(&net, "images", shape4(n, nc->size, nc->size, nc->channels), DTYPE_F32);
    m->labels = net_input(&net, "labels", shape1(n), DTYPE_I32);
    struct node *x = resnet_build(&net, arch, 1, m->images);
    int64_t c = shape_channels(x->shape);
    struct batchformer_cfg cfg = {1, 4, c, 0, true, GATHER_KEYS_VALUES};
    struct node *rows = net_concat_rows(&net, x, batchformer_build(&net, &cfg, x));
    struct init init = {INIT_UNIFORM, 1 / sqrt((double)c)};
    struct node *logits = net_linear(&net, rows, arch->classifier, nc->classes, init, init);
    struct node *prior = NULL;
    if (nc->balanced)
        prior = net_param(&net, "log_prior", PARAM_CONST, shape1(nc->classes), (struct init){INIT_CONST, 0});
    m->loss = net_softmax_xent(&net, logits, net_concat_rows(&net, m->labels, m->labels), prior,
                               2.0 * (double)nc->batch);
    if (net_failed(&net))
        fail_msg("%s", e.msg);
}

static void set_prior(struct model *m, int64_t classes)
{
    struct err e = ERR_INIT;
    float v[16];

    for (int64_t k = 0; k < classes; k++)
        v[k] = logf((float)(500 / (k + 1)));
    assert_int_equal(params_set(m->params, params_find(m->params, "log_prior"), v, &e), 0);
}

static void feed(struct model *m, const struct net_case *nc)
{
    struct err e = ERR_INIT;
    const struct row_split *rows = &m->graph->rows;
    int64_t per_image = nc->size * nc->size * nc->channels, n = rows->local * per_image;
    float *x = malloc((size_t)n * sizeof *x + 1);
    int32_t y[MAX_BATCH];
    struct philox_key key = philox_make_key(SEED, philox_stream("images"));

    for (int64_t i = 0; i < n; i++) {
        int64_t g = rows->first * per_image + i;
        x[i] = philox_unit(philox(key, (uint32_t)(g / 4), 0, 0, 0).v[g % 4]) * 2 - 1;
    }
    for (int64_t i = 0; i < rows->local; i++)
        y[i] = (int32_t)((rows->first + i) % nc->classes);
    assert_int_equal(program_feed(m->program, m->images, x, (size_t)n * sizeof *x, &e), 0);
    assert_int_equal(program_feed(m->program, m->labels, y, (size_t)rows->local * sizeof *y, &e), 0);
    free(x);
}

static void start(struct model *m, struct comm *comm, const struct net_case *nc, bool winograd)
{
    struct err e = ERR_INIT;
    *m = (struct model){.comm = comm,
                        .be = cpu_backend_create(&(struct cpu_config){.n_threads = 1, .winograd = winograd},
                                                 &e)};
    struct row_split rows = {.rank = comm->rank, .size = comm->size, .total = nc->batch};

    for (int r = 0; r < comm->size; r++)
        m->counts[r] = nc->batch * (r + 1) / comm->size - nc->batch * r / comm->size;
    rows.first = nc->batch * comm->rank / comm->size;
    rows.local = m->counts[comm->rank];
    rows.counts = m->counts;
    m->params = params_create(m->be);
    m->graph = graph_create(m->params, &rows, true);
}

static void stop(struct model *m)
{
    program_destroy(m->program);
    graph_destroy(m->graph);
    params_destroy(m->params);
    m->be->ops->destroy(m->be);
}

static double projected_deviation(const char *name, const float *g, int64_t n, const cJSON *want)
{
    struct philox_key key;
    double proj[N_PROJECTIONS] = {0}, sq = 0;
    char stream[300];

    snprintf(stream, sizeof stream, "sign.%s", name);
    key = philox_make_key(SEED, philox_stream(stream));
    for (int64_t i = 0; i < n; i++) {
        uint32_t w = philox(key, (uint32_t)(i / 4), 0, 0, 0).v[i % 4];
        for (int k = 0; k < N_PROJECTIONS; k++)
            proj[k] += (w >> k & 1) ? -(double)g[i] : (double)g[i];
    }
    const cJSON *p = json_find(want, "proj")->child;
    for (int k = 0; k < N_PROJECTIONS; k++, p = p->next)
        sq += pow(proj[k] - p->valuedouble, 2);
    return sqrt(sq / N_PROJECTIONS);
}

/* A gradient that is zero in exact arithmetic (a bias before a softmax over keys) has no relative deviation:
 * it is held against the largest gradient's norm instead. */
static void check_gradients(struct model *m, double tolerance, const cJSON *grads)
{
    struct err e = ERR_INIT;
    double max_norm = 0;
    int n_checked = 0;

    for (const cJSON *g = grads->child; g; g = g->next)
        max_norm = fmax(max_norm, json_find(g, "norm")->valuedouble);
    for (const cJSON *g = grads->child; g; g = g->next) {
        const struct param *p = params_find(m->params, g->string);
        if (!p || p->kind != PARAM_WEIGHT)
            fail_msg("no parameter %s", g->string);
        int64_t n = shape_count(p->shape);
        float *v = malloc((size_t)n * sizeof *v);
        assert_int_equal(params_get_grad(m->params, p, v, &e), 0);
        double norm = fmax(json_find(g, "norm")->valuedouble, 1e-6 * max_norm);
        double d = projected_deviation(p->name, v, n, g) / norm;
        if (!(d <= tolerance))
            fail_msg("gradient of %s deviates by %g (norm %g)", p->name, d, norm);
        free(v);
        n_checked++;
    }
    int n_weights = 0;
    for (int i = 0; i < m->params->n; i++)
        n_weights += m->params->v[i]->kind == PARAM_WEIGHT;
    assert_int_equal(n_checked, n_weights);
}

static void check_buffers(struct model *m, const cJSON *buffers)
{
    struct err e = ERR_INIT;

    for (const cJSON *b = buffers->child; b; b = b->next) {
        const struct param *p = params_find(m->params, b->string);
        if (!p || p->kind != PARAM_BUFFER)
            fail_msg("no buffer %s", b->string);
        int64_t n = shape_count(p->shape);
        float *v = malloc((size_t)n * sizeof *v);
        double sq = 0, sum = 0, norm = json_find(b, "norm")->valuedouble;
        assert_int_equal(params_get(m->params, p, v, &e), 0);
        for (int64_t i = 0; i < n; i++) {
            sq += (double)v[i] * v[i];
            sum += v[i];
        }
        free(v);
        if (!(fabs(sqrt(sq) - norm) <= buffer_tolerance * norm) ||
            !(fabs(sum - json_find(b, "sum")->valuedouble) <= 10 * buffer_tolerance * norm * sqrt((double)n)))
            fail_msg("%s: norm %.9g, %.9g is right", p->name, sqrt(sq), norm);
    }
}

static void check_net_by(const struct net_case *nc, bool winograd)
{
    struct err e = ERR_INIT;
    struct comm *comm = comm_mpi_create(TEST_TIMEOUT_MS, &e);
    struct model m;
    char path[512];

    start(&m, comm, nc, winograd);
    snprintf(path, sizeof path, "%s/net_%s.json", TEST_DATA_DIR, nc->arch);
    cJSON *want = json_read_file(path, 1 << 24, &e);
    if (!want)
        fail_msg("%s", e.msg);
    build(&m, nc);
    assert_int_equal(params_finalize(m.params, SEED, &e), 0);
    if (nc->balanced)
        set_prior(&m, nc->classes);
    m.program = program_compile(m.graph, &(struct program_cfg){m.be, comm, m.loss, NULL, 0, 1 << 20}, &e);
    if (!m.program)
        fail_msg("%s", e.msg);
    feed(&m, nc);
    if (program_forward(m.program, SEED, 0, &e) < 0 || program_backward(m.program, &e) < 0)
        fail_msg("%s", e.msg);
    double loss, loss_want = json_find(want, "loss")->valuedouble;
    assert_int_equal(program_read(m.program, m.loss, &loss, sizeof loss, &e), 0);
    assert_int_equal(comm_all_reduce(comm, &loss, 1, DTYPE_F64, &e), 0);
    if (!(fabs(loss - loss_want) <= nc->loss_tolerance * loss_want))
        fail_msg("loss %.9f, %.9f is right", loss, loss_want);
    check_gradients(&m, winograd ? nc->winograd_tolerance : nc->gradient_tolerance, json_find(want, "grads"));
    check_buffers(&m, json_find(want, "buffers"));
    cJSON_Delete(want);
    stop(&m);
    comm_destroy(comm);
}

static void check_net(const struct net_case *nc)
{
    check_net_by(nc, false);
    check_net_by(nc, true);
}

/* Names and shapes of ResNet-18 and -50 are torchvision's, all of them. */
static void test_torchvision_names(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct comm *comm = comm_single_create();
    cJSON *all = json_read_file(TEST_DATA_DIR "/torchvision_names.json", 1 << 20, &e);

    assert_non_null(all);
    for (const cJSON *arch = all->child; arch; arch = arch->next) {
        struct net_case nc = {arch->string, 1, 64, 3, 1000, false, 0, 0, 0};
        struct model m;
        start(&m, comm, &nc, false);
        build(&m, &nc);
        int n_names = 0, n_params = 0;
        for (const cJSON *want = arch->child; want; want = want->next, n_names++) {
            const struct param *p = params_find(m.params, want->string);
            if (!p || p->shape.n_dims != cJSON_GetArraySize(want))
                fail_msg("%s: no %s of that shape", arch->string, want->string);
            for (int i = 0; i < p->shape.n_dims; i++)
                assert_int_equal(p->shape.dims[i], cJSON_GetArrayItem(want, i)->valueint);
        }
        for (int i = 0; i < m.params->n; i++)
            n_params += strncmp(m.params->v[i]->name, "batchformer.", 12) != 0;
        assert_int_equal(n_params, n_names);
        stop(&m);
    }
    cJSON_Delete(all);
    comm_destroy(comm);
}

static void test_resnet20(void **state)
{
    (void)state;
    check_net(&cases[0]);
}

static void test_resnet18(void **state)
{
    (void)state;
    check_net(&cases[1]);
}

static void test_resnet50(void **state)
{
    (void)state;
    check_net(&cases[2]);
}

static void test_cifar_resnet18(void **state)
{
    (void)state;
    check_net(&cases[3]);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_torchvision_names), cmocka_unit_test(test_resnet20),
    cmocka_unit_test(test_resnet18),          cmocka_unit_test(test_resnet50),
    cmocka_unit_test(test_cifar_resnet18),
};

MPI_TEST_MAIN(tests)
