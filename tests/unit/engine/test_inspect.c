/* test_inspect - the first tensor in time that is not finite is found: parameters, inputs, outputs, gradients
 * and their sums over ranks, each where it happens; and nothing when all is well. */
#include "tests/unit/cm.h"
#include "tests/unit/engine/toy_backend.h"
#include "worker/engine/inspect.h"
#include "worker/engine/program_impl.h"

enum { ROWS = 4, COLS = 3, COUNT = ROWS * COLS, SPOILED = 5 };

static const int64_t counts[2] = {ROWS, 0};

/* A backend whose named operator spoils element SPOILED of one gradient in backward. */
static struct kernel kernels[OP_COUNT];
static struct backend_ops ops;
static struct backend backend = {.ops = &ops};

static int spoiled_square_backward(const struct op_call *c, struct err *e)
{
    toy_square_backward(c, e);
    ((float *)c->din[0])[SPOILED] = -INFINITY;
    return 0;
}

static int spoiled_add_backward(const struct op_call *c, struct err *e)
{
    toy_add_backward(c, e);
    if (c->node->in[1]->op == OP_PARAM)
        ((float *)c->din[1])[SPOILED] = NAN;
    return 0;
}

/* Two ranks whose sums overflow: what the other one adds is more than a float holds. */
static int overflowing_start(struct comm *c, void *buf, size_t n, enum dtype t, struct comm_req *r,
                             struct err *e)
{
    (void)c, (void)t, (void)r, (void)e;
    assert_true(n > SPOILED);
    ((float *)buf)[SPOILED] = INFINITY;
    return 0;
}

static int no_wait(struct comm *c, struct comm_req *r, struct err *e)
{
    (void)c, (void)r, (void)e;
    return 0;
}

static const struct comm_ops overflowing_ops = {.name = "overflowing",
                                                .all_reduce_start = overflowing_start,
                                                .wait = no_wait};

/* loss = Σ (x + w)², as nodes x, labels, w, h, s, loss. */
struct fixture {
    struct params *ps;
    struct graph *g;
    struct comm *comm;
    struct node *x, *labels, *w, *h, *s, *loss;
    struct program *p;
    float fed[COUNT];
    struct err e;
};

static struct node *add(struct fixture *f, enum op op, const char *name, struct node *a, struct node *b)
{
    union op_attr attr = {.xent = {1}};
    struct node *in[2] = {a, b};

    if (op == OP_ACT)
        attr = (union op_attr){0};
    return graph_add(f->g, op, name, in, b ? 2 : 1, &attr, &f->e);
}

static void setup(struct fixture *f, struct comm *comm)
{
    union op_attr in = {.input = {shape2(ROWS, COLS), DTYPE_F32}}, tgt = {.input = {shape1(ROWS), DTYPE_I32}};
    struct row_split rows = {0, comm->size, ROWS, 0, ROWS, counts, 0};

    memcpy(kernels, toy_kernels, sizeof kernels);
    ops = *toy_backend.ops;
    ops.kernels = kernels;
    *f = (struct fixture){.ps = params_create(&backend), .comm = comm};
    f->g = graph_create(f->ps, &rows, true);
    f->x = graph_add(f->g, OP_INPUT, "x", NULL, 0, &in, &f->e);
    f->labels = graph_add(f->g, OP_INPUT, "labels", NULL, 0, &tgt, &f->e);
    f->w = graph_param(f->g,
                       params_declare(f->ps, "w", PARAM_WEIGHT, shape2(ROWS, COLS),
                                      (struct init){INIT_CONST, 2}, &f->e),
                       &f->e);
    assert_non_null(
        params_declare(f->ps, "mean", PARAM_BUFFER, shape1(3), (struct init){INIT_CONST, 0}, &f->e));
    f->h = add(f, OP_ADD, "h", f->x, f->w);
    f->s = add(f, OP_ACT, "s", f->h, NULL);
    f->loss = add(f, OP_SOFTMAX_XENT, "loss", f->s, f->labels);
    struct program_cfg cfg = {&backend, f->comm, f->loss, NULL, 0, 0};
    assert_int_equal(params_finalize(f->ps, 1, &f->e), 0);
    f->p = program_compile(f->g, &cfg, &f->e);
    assert_non_null(f->p);
    for (int i = 0; i < COUNT; i++)
        f->fed[i] = (float)i;
}

static void teardown(struct fixture *f)
{
    program_destroy(f->p);
    graph_destroy(f->g);
    params_destroy(f->ps);
}

static struct finding find(struct fixture *f)
{
    int32_t labels[ROWS] = {-1, -1, -1, -1}; /* the bits of a NaN; whole numbers are not looked at */
    struct finding out;

    assert_int_equal(program_feed(f->p, f->x, f->fed, sizeof f->fed, &f->e), 0);
    assert_int_equal(program_feed(f->p, f->labels, labels, sizeof labels, &f->e), 0);
    if (program_find_not_finite(f->p, 0, 7, &out, &f->e) < 0)
        fail_msg("%s", f->e.msg);
    assert_null(f->p->watch.after); /* later steps are not looked at */
    return out;
}

static void expect(struct finding got, enum finding_kind kind, int time, const char *name, int64_t element)
{
    assert_int_equal(got.kind, kind);
    assert_int_equal(got.time, time);
    assert_string_equal(got.name, name);
    assert_int_equal(got.element, element);
    assert_int_equal(got.count, COUNT);
    assert_false(isfinite(got.value));
}

/* And the step that was looked at is the step: loss and gradients are there as usual. */
static void test_nothing_is_found_where_all_is_well(void **state)
{
    struct fixture f;
    struct comm *comm = comm_single_create();
    double loss, want = 0;
    float g[COUNT], nan3[3] = {NAN, NAN, NAN};

    (void)state;
    setup(&f, comm);
    assert_int_equal(params_set(f.ps, params_find(f.ps, "mean"), nan3, &f.e),
                     0); /* statistics do not count */
    assert_int_equal(find(&f).kind, FINDING_NONE);
    assert_int_equal(program_read(f.p, f.loss, &loss, sizeof loss, &f.e), 0);
    assert_int_equal(params_get_grad(f.ps, f.w->param, g, &f.e), 0);
    for (int i = 0; i < COUNT; i++) {
        want += (i + 2.0) * (i + 2.0);
        assert_float_equal(g[i], 2 * (i + 2), 0);
    }
    assert_float_equal(loss, want, 0);
    assert_int_equal(f.p->ctx.step, 7);
    teardown(&f);
    comm_destroy(comm);
}

static void test_forward(void **state)
{
    struct fixture f;
    struct comm *comm = comm_single_create();
    float w[COUNT] = {0};

    (void)state;
    setup(&f, comm);
    f.fed[3] = 1e30f; /* its square is beyond fp32 */
    f.fed[4] = -1e30f;
    expect(find(&f), FINDING_VALUE, f.s->id, "s", 3);
    f.fed[7] = NAN;
    expect(find(&f), FINDING_INPUT, -1, "x", 7);
    w[2] = INFINITY;
    assert_int_equal(params_set(f.ps, f.w->param, w, &f.e), 0);
    expect(find(&f), FINDING_PARAM, -2, "w", 2);
    teardown(&f);
    comm_destroy(comm);
}

static void test_backward(void **state)
{
    struct fixture f;
    struct comm *comm = comm_single_create();

    (void)state;
    setup(&f, comm);
    int n = f.g->n_nodes;
    kernels[OP_ADD].backward = spoiled_add_backward;
    expect(find(&f), FINDING_PARAM_GRAD, 2 * n - 1 - f.h->id, "w", SPOILED);
    kernels[OP_ACT].backward = spoiled_square_backward; /* earlier */
    struct finding got = find(&f);
    expect(got, FINDING_GRAD, 2 * n - 1 - f.s->id, "h", SPOILED);
    assert_true(got.value < 0);
    teardown(&f);
    comm_destroy(comm);
}

static void test_sum_over_ranks(void **state)
{
    struct comm comm = {&overflowing_ops, 0, 2};
    struct fixture f;

    (void)state;
    setup(&f, &comm);
    expect(find(&f), FINDING_GRAD_SUM, 2 * f.g->n_nodes, "w", SPOILED);
    teardown(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_is_found_where_all_is_well),
        cmocka_unit_test(test_forward),
        cmocka_unit_test(test_backward),
        cmocka_unit_test(test_sum_over_ranks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
