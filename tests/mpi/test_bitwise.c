/* test_bitwise - networks in micro-shards: the ranks of this job hold, bit for bit, what one rank without a
 * launcher computes on the whole mini-batch: loss, gradients, running statistics; with dropout on. And it is
 * the function of the default mode: gradients agree with that to what fp32 allows. And a gradient that is not
 * finite is found on the rank that made it, whichever of its shards that was.
 */
#include "tests/mpi/mpi_main.h"
#include "common/cut.h"
#include "common/philox.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/engine/inspect.h"
#include "worker/engine/program.h"
#include "worker/nn/batchformer.h"
#include "worker/nn/resnet.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANKS = 8, CLASSES = 5, CHANNELS = 2, N_STEPS = 2 };

struct net_case {
    const char *arch;
    double width;
    int64_t batch, size;
    int32_t n_shards;
    int layers; /* of the module; 0: without it */
    bool prior; /* balanced softmax */
};

static const struct net_case cases[] = {
    {"resnet8", 0.25, 24, 12, 16, 1, false}, /* shards of one and of two rows */
    {"resnet8", 0.25, 33, 9, 7, 2, true},    /* odd sizes; two layers */
    {"resnet8", 0.25, 16, 12, 16, 0, false}, /* a row a shard */
    {"resnet18", 0.125, 12, 32, 6, 1, true}, /* strided stem, max pooling, projections */
};

struct model {
    struct comm *comm;
    struct backend *be;
    struct params *params;
    struct graph *graph;
    struct program *program;
    struct node *images, *labels, *loss;
    int64_t counts[MAX_RANKS];
};

static void set_rows(struct model *m, struct row_split *rows, const struct net_case *nc, int32_t n_shards)
{
    int size = m->comm->size;
    int64_t shards = nc->n_shards, first[MAX_RANKS + 1];

    for (int r = 0; r <= size; r++) /* the same rows in both modes */
        first[r] = cut_first(nc->batch, shards, cut_first(shards, size, r));
    for (int r = 0; r < size; r++)
        m->counts[r] = first[r + 1] - first[r];
    *rows = (struct row_split){.rank = m->comm->rank,
                               .size = size,
                               .total = nc->batch,
                               .first = first[m->comm->rank],
                               .local = m->counts[m->comm->rank],
                               .counts = m->counts,
                               .n_shards = n_shards};
}

static struct node *build_rows(struct net *net, const struct net_case *nc, struct node *x,
                               const struct batchformer_cfg *cfg)
{
    return nc->layers ? net_concat_rows(net, x, batchformer_build(net, cfg, x)) : x;
}

static void build(struct model *m, const struct net_case *nc)
{
    struct err e = ERR_INIT;
    struct net net;
    int64_t n = m->graph->rows.local;

    net_init(&net, m->graph, true, &e);
    m->images = net_input(&net, "images", shape4(n, nc->size, nc->size, CHANNELS), DTYPE_F32);
    m->labels = net_input(&net, "labels", shape1(n), DTYPE_I32);
    struct node *x = resnet_build(&net, resnet_find(nc->arch), nc->width, m->images);
    struct batchformer_cfg cfg = {nc->layers, 4, shape_channels(x->shape), 0.3, true, GATHER_KEYS_VALUES};
    struct init init = {INIT_UNIFORM, 0.3};
    struct node *logits = net_linear(&net, build_rows(&net, nc, x, &cfg), "fc", CLASSES, init, init);
    struct node *prior = NULL, *labels = m->labels;
    if (nc->prior)
        prior = net_param(&net, "prior", PARAM_CONST, shape1(CLASSES), (struct init){INIT_UNIFORM, 1});
    if (nc->layers)
        labels = net_concat_rows(&net, labels, labels);
    m->loss = net_softmax_xent(&net, logits, labels, prior, (double)(nc->layers ? 2 : 1) * (double)nc->batch);
    if (net_failed(&net))
        fail_msg("%s", e.msg);
}

/* The model takes the backend. */
static void start_on(struct model *m, struct backend *be, struct comm *comm, const struct net_case *nc,
                     int32_t n_shards)
{
    struct err e = ERR_INIT;
    struct row_split rows;

    *m = (struct model){.comm = comm, .be = be};
    set_rows(m, &rows, nc, n_shards);
    m->params = params_create(m->be);
    m->graph = graph_create(m->params, &rows, true);
    build(m, nc);
    assert_int_equal(params_finalize(m->params, 7, &e), 0);
    struct program_cfg cfg = {m->be, comm, m->loss, NULL, 0, 4096};
    if (!(m->program = program_compile(m->graph, &cfg, &e)))
        fail_msg("%s", e.msg);
}

static void start(struct model *m, struct comm *comm, const struct net_case *nc, int32_t n_shards)
{
    start_on(m, cpu_backend_create(&(struct cpu_config){.n_threads = 1, .winograd = true}, NULL), comm, nc,
             n_shards);
}

static void stop(struct model *m)
{
    program_destroy(m->program);
    graph_destroy(m->graph);
    params_destroy(m->params);
    m->be->ops->destroy(m->be);
}

static void feed(struct model *m, const struct net_case *nc)
{
    struct err e = ERR_INIT;
    const struct row_split *rows = &m->graph->rows;
    int64_t per_image = nc->size * nc->size * CHANNELS, n = rows->local * per_image;
    float *x = malloc((size_t)n * sizeof *x);
    int32_t y[64];
    struct philox_key key = philox_make_key(3, philox_stream("images"));

    for (int64_t i = 0; i < n; i++) {
        int64_t g = rows->first * per_image + i;
        x[i] = philox_unit(philox(key, (uint32_t)(g / 4), 0, 0, 0).v[g % 4]) * 2 - 1;
    }
    for (int64_t i = 0; i < rows->local; i++)
        y[i] = (int32_t)((rows->first + i) % CLASSES);
    assert_int_equal(program_feed(m->program, m->images, x, (size_t)n * sizeof *x, &e), 0);
    assert_int_equal(program_feed(m->program, m->labels, y, (size_t)rows->local * sizeof *y, &e), 0);
    free(x);
}

/* The global loss of a step; gradients and running statistics are then in the model. */
static double step(struct model *m, const struct net_case *nc, uint64_t number)
{
    struct err e = ERR_INIT;
    double loss = 0;

    feed(m, nc);
    if (program_forward(m->program, 5, number, &e) < 0 || program_backward(m->program, &e) < 0)
        fail_msg("%s", e.msg);
    if (program_loss_share(m->program)) /* host and device are one here */
        loss = *program_loss_share(m->program);
    assert_int_equal(comm_all_reduce(m->comm, &loss, 1, DTYPE_F64, &e), 0);
    return loss;
}

static void check_bits(const struct model *a, const struct model *b)
{
    for (int i = 0; i < a->params->n; i++) {
        const struct param *p = a->params->v[i], *q = b->params->v[i];
        size_t bytes = (size_t)shape_count(p->shape) * sizeof(float);
        assert_string_equal(p->name, q->name);
        if (p->kind == PARAM_WEIGHT && memcmp(p->grad, q->grad, bytes) != 0)
            fail_msg("gradient of %s has other bits on %d ranks", p->name, b->comm->size);
        if (memcmp(p->value, q->value, bytes) != 0)
            fail_msg("%s has other bits on %d ranks", p->name, b->comm->size);
    }
}

/* ‖a - b‖ / ‖a‖ over all gradients together. */
static double gradient_deviation(const struct model *a, const struct model *b)
{
    double d = 0, w = 0;

    for (size_t i = 0; i < a->params->n_weights; i++) {
        d += pow((double)a->params->grads[i] - b->params->grads[i], 2);
        w += pow(a->params->grads[i], 2);
    }
    return sqrt(d / w);
}

static struct comm *world(void)
{
    struct err e = ERR_INIT;
    struct comm *c = comm_mpi_create(TEST_TIMEOUT_MS, &e);

    assert_non_null(c);
    return c;
}

static void test_any_ranks_have_the_bits_of_one(void **state)
{
    (void)state;
    struct comm *many_comm = world(), *one_comm = comm_single_create();

    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct model one, many;
        start(&one, one_comm, &cases[k], cases[k].n_shards);
        start(&many, many_comm, &cases[k], cases[k].n_shards);
        for (uint64_t s = 0; s < N_STEPS; s++) { /* the second finds running statistics and memory in use */
            double a = step(&one, &cases[k], s), b = step(&many, &cases[k], s);
            if (a != b)
                fail_msg("case %zu: the loss is %.17g on one rank, %.17g on %d", k, a, b, many_comm->size);
            check_bits(&one, &many);
        }
        stop(&one);
        stop(&many);
    }
    comm_destroy(one_comm);
    comm_destroy(many_comm);
}

static void test_it_is_the_function_of_the_default_mode(void **state)
{
    (void)state;
    struct comm *comm = world();

    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct model plain, sharded;
        start(&plain, comm, &cases[k], 0);
        start(&sharded, comm, &cases[k], cases[k].n_shards);
        double a = step(&plain, &cases[k], 0), b = step(&sharded, &cases[k], 0);
        assert_true(fabs(a - b) <= 1e-5 * fabs(a));
        double d = gradient_deviation(&plain, &sharded);
        if (!(d <= 1e-3)) /* a ReLU that flips at a rounding counts */
            fail_msg("case %zu: gradients deviate by %g", k, d);
        stop(&plain);
        stop(&sharded);
    }
    comm_destroy(comm);
}

/* ---- what is not finite ---- */

static int calls_to_go; /* until the classifier's gradient is spoiled; 0: never */
static int (*linear_backward)(const struct op_call *c, struct err *e);

static int spoiling_backward(const struct op_call *c, struct err *e)
{
    int rc = linear_backward(c, e);

    if (strcmp(c->node->name, "fc") == 0 && calls_to_go && --calls_to_go == 0)
        *(float *)c->din[1] = INFINITY;
    return rc;
}

/* Rank 0 spoils its last shard alone, whose sum is not the first that a rank holds when it holds several. */
static void test_a_gradient_is_found_in_any_shard(void **state)
{
    (void)state;
    const struct net_case *nc = &cases[1];
    struct comm *comm = world();
    struct err e = ERR_INIT;
    struct backend *be = cpu_backend_create(&(struct cpu_config){.n_threads = 1, .winograd = true}, &e);
    const struct backend_ops *plain = be->ops;
    struct kernel kernels[OP_COUNT];
    struct backend_ops ops = *plain;
    struct finding found;
    struct model m;

    memcpy(kernels, plain->kernels, sizeof kernels);
    linear_backward = kernels[OP_LINEAR].backward;
    kernels[OP_LINEAR].backward = spoiling_backward;
    ops.kernels = kernels;
    be->ops = &ops;
    start_on(&m, be, comm, nc, nc->n_shards);
    feed(&m, nc);
    calls_to_go =
        comm->rank == 0 ? 2 * (int)cut_first(nc->n_shards, comm->size, 1) : 0; /* two streams a shard */
    assert_int_equal(program_find_not_finite(m.program, 5, 0, &found, &e), 0);
    assert_int_equal(calls_to_go, 0);
    assert_int_equal(found.kind, comm->rank == 0 ? FINDING_PARAM_GRAD : FINDING_GRAD_SUM);
    assert_string_equal(found.name, "fc.weight");
    assert_int_equal(found.element, 0);
    be->ops = plain;
    stop(&m);
    comm_destroy(comm);
}

/* ---- what is refused ---- */

enum wrong { LOCAL_SCOPE, LOCAL_NORM, GATHERED_FEATURES, WEIGHT_TWICE };

static const struct {
    enum wrong wrong;
    const char *says;
} refusals[] = {
    {LOCAL_SCOPE, "attends to one rank's rows alone"},
    {LOCAL_NORM, "uses statistics of one rank alone"},
    {GATHERED_FEATURES, "computes with gathered rows on every rank"},
    {WEIGHT_TWICE, "weight is used by a and by b"},
};

static void build_wrong(struct model *m, enum wrong wrong)
{
    struct err e = ERR_INIT;
    struct net net;
    int64_t n = m->graph->rows.local;

    net_init(&net, m->graph, wrong != LOCAL_NORM, &e);
    struct node *x = net_input(&net, "x", shape2(n, 8), DTYPE_F32);
    m->labels = net_input(&net, "labels", shape1(n), DTYPE_I32);
    struct batchformer_cfg cfg = {
        1, 2, 8, 0, wrong != LOCAL_SCOPE, wrong == GATHERED_FEATURES ? GATHER_ROWS : GATHER_KEYS_VALUES};
    if (wrong == LOCAL_NORM) {
        x = net_batchnorm(&net, x, "bn", NULL, true, 1);
    } else if (wrong == WEIGHT_TWICE) {
        struct node *w =
            net_param(&net, "weight", PARAM_WEIGHT, shape2(8, 8), (struct init){INIT_UNIFORM, 1});
        x = net_op(&net, OP_LINEAR, "a", (struct node *[]){x, w}, 2, NULL);
        x = net_op(&net, OP_LINEAR, "b", (struct node *[]){x, w}, 2, NULL);
    } else {
        x = batchformer_build(&net, &cfg, x);
    }
    m->loss = net_softmax_xent(&net, x, m->labels, NULL, 8);
    if (net_failed(&net))
        fail_msg("%s", e.msg);
}

static void test_what_cannot_be_is_refused_by_name(void **state)
{
    (void)state;
    static const struct net_case nc = {.batch = 8, .n_shards = 8};
    struct comm *comm = world();

    for (size_t k = 0; k < sizeof refusals / sizeof *refusals; k++) {
        struct err e = ERR_INIT;
        struct model m = {.comm = comm,
                          .be =
                              cpu_backend_create(&(struct cpu_config){.n_threads = 1, .winograd = true}, &e)};
        struct row_split rows;
        set_rows(&m, &rows, &nc, nc.n_shards);
        m.params = params_create(m.be);
        m.graph = graph_create(m.params, &rows, true);
        build_wrong(&m, refusals[k].wrong);
        assert_int_equal(params_finalize(m.params, 7, &e), 0);
        struct program_cfg cfg = {m.be, comm, m.loss, NULL, 0, 0};
        assert_null(program_compile(m.graph, &cfg, &e));
        if (!strstr(e.msg, refusals[k].says))
            fail_msg("'%s' found, '%s' expected", e.msg, refusals[k].says);
        graph_destroy(m.graph);
        params_destroy(m.params);
        m.be->ops->destroy(m.be);
    }
    comm_destroy(comm);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_any_ranks_have_the_bits_of_one),
    cmocka_unit_test(test_it_is_the_function_of_the_default_mode),
    cmocka_unit_test(test_a_gradient_is_found_in_any_shard),
    cmocka_unit_test(test_what_cannot_be_is_refused_by_name),
};

MPI_TEST_MAIN(tests)
