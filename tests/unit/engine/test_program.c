/* test_program - the compiler's contracts on a toy backend: acc bits, lives, refusals by name, gradient
 * buckets. */
#include "tests/unit/cm.h"
#include "tests/unit/engine/toy_backend.h"
#include "worker/comm/comm.h"
#include "worker/engine/program_impl.h"

#include <stdio.h>

enum { ROWS = 4, COLS = 3, COUNT = ROWS * COLS };

static const int64_t counts[1] = {ROWS};
static const struct row_split rows = {0, 1, ROWS, 0, ROWS, counts, 0};

struct fixture {
    struct params *ps;
    struct graph *g;
    struct comm *comm;
    struct node *x, *w, *t;
    struct err e;
};

static struct node *add(struct fixture *f, enum op op, const char *name, struct node *a, struct node *b)
{
    union op_attr attr = {.xent = {1}};
    struct node *in[2] = {a, b};

    if (op == OP_ACT || op == OP_DROPOUT)
        attr = (union op_attr){0};
    struct node *n = graph_add(f->g, op, name, in, b ? 2 : 1, &attr, &f->e);
    if (!n)
        fail_msg("%s", f->e.msg);
    return n;
}

static struct fixture setup(void)
{
    struct fixture f = {.ps = params_create(&toy_backend), .comm = comm_single_create()};
    union op_attr in = {.input = {shape2(ROWS, COLS), DTYPE_F32}}, tgt = {.input = {shape1(ROWS), DTYPE_I32}};

    f.g = graph_create(f.ps, &rows, true);
    f.x = graph_add(f.g, OP_INPUT, "x", NULL, 0, &in, &f.e);
    f.t = graph_add(f.g, OP_INPUT, "t", NULL, 0, &tgt, &f.e);
    f.w = graph_param(
        f.g, params_declare(f.ps, "w", PARAM_WEIGHT, shape2(ROWS, COLS), (struct init){INIT_CONST, 2}, &f.e),
        &f.e);
    return f;
}

static void teardown(struct fixture *f)
{
    graph_destroy(f->g);
    params_destroy(f->ps);
    comm_destroy(f->comm);
}

static struct program *compile(struct fixture *f, struct node *loss, struct node **outputs, int n_outputs)
{
    struct program_cfg cfg = {&toy_backend, f->comm, loss, outputs, n_outputs, 0};

    if (!f->ps->final)
        assert_int_equal(params_finalize(f->ps, 1, &f->e), 0);
    return program_compile(f->g, &cfg, &f->e);
}

/* loss = Σ (h + h² + h), h = x + w: h has three consumers, w one, and dh = 1 + 2h + 1. */
static void test_gradient_of_shared_value(void **state)
{
    (void)state;
    struct fixture f = setup();
    struct node *h = add(&f, OP_ADD, "h", f.x, f.w), *s = add(&f, OP_ACT, "s", h, NULL);
    struct node *a = add(&f, OP_ADD, "a", h, s), *b = add(&f, OP_ADD, "b", a, h);
    struct node *loss = add(&f, OP_SOFTMAX_XENT, "loss", b, f.t);
    struct program *p = compile(&f, loss, NULL, 0);
    float x[COUNT], g[COUNT];
    double l;

    assert_non_null(p);
    for (int i = 0; i < COUNT; i++)
        x[i] = (float)i;
    for (int repeat = 0; repeat < 3; repeat++) { /* dead memory is poisoned between steps in debug builds */
        assert_int_equal(program_feed(p, f.x, x, sizeof x, &f.e), 0);
        assert_int_equal(program_forward(p, 0, 0, &f.e), 0);
        assert_int_equal(program_backward(p, &f.e), 0);
        assert_int_equal(program_read(p, loss, &l, sizeof l, &f.e), 0);
        assert_int_equal(params_get_grad(f.ps, f.w->param, g, &f.e), 0);
        double want = 0;
        for (int i = 0; i < COUNT; i++) {
            double v = i + 2;
            want += 2 * v + v * v;
            assert_float_equal(g[i], (float)(2 + 2 * v), 0);
        }
        assert_float_equal(l, want, 0);
    }
    program_destroy(p);
    teardown(&f);
}

/* Of h's three writers the one that runs first (the highest node) defines, the others add; parameters always
 * add. */
static void test_acc_bits(void **state)
{
    (void)state;
    struct fixture f = setup();
    struct node *h = add(&f, OP_ADD, "h", f.x, f.w), *s = add(&f, OP_ACT, "s", h, NULL);
    struct node *a = add(&f, OP_ADD, "a", h, s), *b = add(&f, OP_ADD, "b", a, h);
    struct node *loss = add(&f, OP_SOFTMAX_XENT, "loss", b, f.t);
    struct program *p = compile(&f, loss, NULL, 0);

    assert_non_null(p);
    assert_int_equal(p->steps[b->id].call.acc, 0);
    assert_int_equal(p->steps[a->id].call.acc, 1);
    assert_int_equal(p->steps[s->id].call.acc, 1);
    assert_int_equal(p->steps[h->id].call.acc, 2); /* input 1 is the parameter */
    assert_null(p->steps[h->id].call.din[0]);      /* inputs have no gradient */
    program_destroy(p);
    teardown(&f);
}

/* A chain of k squares in a forward-only program needs two buffers, whatever k; an output stays alive. */
static void test_memory_is_shared(void **state)
{
    (void)state;
    struct fixture f = setup();
    struct node *first = add(&f, OP_ADD, "h", f.x, f.w), *h = first;

    for (int i = 0; i < 20; i++)
        h = add(&f, OP_ACT, "s", h, NULL);
    struct program *p = compile(&f, NULL, &h, 1);
    assert_non_null(p);
    size_t one = align_up(COUNT * sizeof(float));
    assert_true(program_arena_bytes(p) <= 3 * one);
    assert_true(program_unshared_bytes(p) >= 21 * one);
    program_destroy(p);
    struct node *outs[2] = {h, first};
    p = compile(&f, NULL, outs, 2);
    float x[COUNT] = {0}, v[COUNT];
    assert_int_equal(program_feed(p, f.x, x, sizeof x, &f.e), 0);
    assert_int_equal(program_forward(p, 0, 0, &f.e), 0);
    assert_int_equal(program_read(p, first, v, sizeof v, &f.e), 0);
    assert_float_equal(v[0], 2, 0);
    program_destroy(p);
    teardown(&f);
}

static void test_refusals(void **state)
{
    (void)state;
    struct fixture f = setup();
    struct node *h = add(&f, OP_ADD, "block.h", f.x, f.w), *d = add(&f, OP_DROPOUT, "block.drop", h, NULL);
    struct node *loss = add(&f, OP_SOFTMAX_XENT, "loss", d, f.t);

    assert_null(compile(&f, loss, NULL, 0));
    assert_string_equal(f.e.msg, "block.drop: operator dropout has no backward on backend toy");
    struct program *p = compile(&f, NULL, &loss, 1); /* forward alone is possible */
    assert_non_null(p);
    program_destroy(p);
    struct node *n = graph_add(f.g, OP_CONCAT_ROWS, "head.cat", &h, 1, NULL, &f.e);
    assert_non_null(n);
    assert_null(compile(&f, NULL, &n, 1));
    assert_string_equal(f.e.msg, "head.cat: backend toy has no kernel for operator concat_rows");
    teardown(&f);
}

/* Buckets tile the gradient buffer in order, and each is final after the lowest node that feeds it. */
static void test_buckets(void **state)
{
    (void)state;
    struct fixture f = setup();
    struct node *h = f.x;

    for (int i = 0; i < 6; i++) {
        char name[16];
        snprintf(name, sizeof name, "w%d", i);
        struct init one = {INIT_CONST, 1};
        struct param *prm = params_declare(f.ps, name, PARAM_WEIGHT, shape2(ROWS, COLS), one, &f.e);
        h = add(&f, OP_ADD, name, h, graph_param(f.g, prm, &f.e));
    }
    struct node *loss = add(&f, OP_SOFTMAX_XENT, "loss", h, f.t);
    assert_int_equal(params_finalize(f.ps, 1, &f.e), 0);
    struct program_cfg cfg = {&toy_backend, f.comm, loss, NULL, 0, 100};
    struct program *p = program_compile(f.g, &cfg, &f.e);
    assert_non_null(p);
    size_t at = 0;
    for (int b = 0; b < p->n_buckets; b++) {
        assert_int_equal(p->buckets[b].first, at);
        at += p->buckets[b].count;
        if (b)
            assert_true(p->buckets[b].node_id <= p->buckets[b - 1].node_id || b == p->n_buckets - 1);
    }
    assert_int_equal(at, f.ps->n_weights);
    assert_true(p->n_buckets > 2);
    program_destroy(p);
    teardown(&f);
}

static struct node *slice(struct fixture *f, struct node *w, int64_t from, int64_t to)
{
    const union op_attr attr = {.slice = {from, to}};
    struct node *n = graph_add(f->g, OP_SLICE_ROWS, "slice", &w, 1, &attr, &f->e);

    assert_non_null(n);
    return n;
}

/* Rows of a parameter that begin at an aligned address are used where they lie, though the toy has no kernel
 * for slices; rows that do not are a copy, and refused here. Two users of one row add up. */
static void test_rows_of_a_parameter(void **state)
{
    (void)state;
    struct fixture f = setup();
    struct param *prm =
        params_declare(f.ps, "rows", PARAM_WEIGHT, shape2(20, COLS), (struct init){INIT_CONST, 5}, &f.e);
    struct node *w = graph_param(f.g, prm, &f.e), *last = slice(&f, w, 16, 20), *same = slice(&f, w, 16, 20);
    struct node *h = add(&f, OP_ADD, "h", add(&f, OP_ADD, "a", f.x, last), add(&f, OP_ACT, "s", same, NULL));
    struct node *loss = add(&f, OP_SOFTMAX_XENT, "loss", h, f.t);
    struct program *p = compile(&f, loss, NULL, 0);
    float x[COUNT] = {0}, g[20 * COLS];
    double l;

    assert_non_null(p);
    assert_ptr_equal(p->steps[last->id].call.out, prm->value + 16 * COLS);
    assert_ptr_equal(p->steps[last->id].call.dout, prm->grad + 16 * COLS);
    for (int repeat = 0; repeat < 2; repeat++) {
        assert_int_equal(program_feed(p, f.x, x, sizeof x, &f.e), 0);
        assert_int_equal(program_forward(p, 0, 0, &f.e), 0);
        assert_int_equal(program_backward(p, &f.e), 0);
        assert_int_equal(program_read(p, loss, &l, sizeof l, &f.e), 0);
        assert_float_equal(l, COUNT * (5 + 25), 0);
        assert_int_equal(params_get_grad(f.ps, prm, g, &f.e), 0);
        for (int i = 0; i < 20 * COLS; i++)
            assert_float_equal(g[i], i < 16 * COLS ? 0 : 1 + 2 * 5, 0);
    }
    program_destroy(p);
    h = add(&f, OP_ADD, "h2", f.x, slice(&f, w, 1, 5));
    assert_null(compile(&f, add(&f, OP_SOFTMAX_XENT, "loss2", h, f.t), NULL, 0));
    assert_non_null(strstr(f.e.msg, "no kernel for operator slice_rows"));
    teardown(&f);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradient_of_shared_value),
        cmocka_unit_test(test_acc_bits),
        cmocka_unit_test(test_memory_is_shared),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_buckets),
        cmocka_unit_test(test_rows_of_a_parameter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
