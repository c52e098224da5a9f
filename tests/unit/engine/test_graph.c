/* test_graph - shape at birth: what does not fit is refused where it is added, with the node's path. */
#include "tests/unit/cm.h"
#include "tests/unit/engine/toy_backend.h"

static const int64_t counts[2] = {4, 3};
static const struct row_split rows = {0, 2, 7, 0, 4, counts, 0};

struct fixture {
    struct params *ps;
    struct graph *g;
    struct err e;
};

static struct fixture setup(void)
{
    struct fixture f = {.ps = params_create(&toy_backend)};

    f.g = graph_create(f.ps, &rows, true);
    return f;
}

static void teardown(struct fixture *f)
{
    graph_destroy(f->g);
    params_destroy(f->ps);
}

static struct node *input(struct fixture *f, struct shape s, enum dtype t)
{
    return graph_add(f->g, OP_INPUT, "in", NULL, 0, &(union op_attr){.input = {s, t}}, &f->e);
}

static struct node *weight(struct fixture *f, const char *name, struct shape s)
{
    struct init zero = {INIT_CONST, 0};

    return graph_param(f->g, params_declare(f->ps, name, PARAM_WEIGHT, s, zero, &f->e), &f->e);
}

static void expect_error(struct fixture *f, struct node *n, const char *text)
{
    assert_null(n);
    if (!strstr(f->e.msg, text))
        fail_msg("\"%s\" does not say \"%s\"", f->e.msg, text);
}

static void test_shapes(void **state)
{
    (void)state;
    struct fixture f = setup();
    struct node *x = input(&f, shape4(4, 28, 28, 3), DTYPE_F32), *w = weight(&f, "w", shape4(8, 3, 3, 3));
    union op_attr conv = {.conv = {3, 2, 1, 1}};
    struct node *y = graph_add(f.g, OP_CONV2D, "conv", (struct node *[]){x, w}, 2, &conv, &f.e);

    assert_true(shape_equal(y->shape, shape4(4, 14, 14, 8)));
    assert_true(y->needs_grad);
    assert_false(x->needs_grad);
    struct node *s = graph_add(f.g, OP_BN_STATS, "stats", &y, 1, NULL, &f.e);
    assert_true(shape_equal(s->shape, shape2(2, 8)) && s->dtype == DTYPE_F64);
    struct node *p = graph_add(f.g, OP_MEAN_SPATIAL, "pool", &y, 1, NULL, &f.e);
    struct node *all = graph_add(f.g, OP_ALL_GATHER, "gather", &p, 1, NULL, &f.e);
    assert_true(shape_equal(all->shape, shape2(7, 8)));
    union op_attr down = {.shortcut = {2, 20}};
    struct node *z = graph_add(f.g, OP_SHORTCUT_PAD, "down", &y, 1, &down, &f.e);
    assert_true(shape_equal(z->shape, shape4(4, 7, 7, 20)));
    struct node *c = graph_add(f.g, OP_CONCAT_ROWS, "cat", (struct node *[]){p, all}, 2, NULL, &f.e);
    assert_true(shape_equal(c->shape, shape2(11, 8)));
    teardown(&f);
}

static void test_same_param_same_node(void **state)
{
    (void)state;
    struct fixture f = setup();

    assert_ptr_equal(weight(&f, "w", shape1(3)), weight(&f, "w", shape1(3)));
    assert_null(params_declare(f.ps, "w", PARAM_WEIGHT, shape1(4), (struct init){INIT_CONST, 0}, &f.e));
    assert_non_null(strstr(f.e.msg, "parameter w exists with shape (3), here it has (4)"));
    teardown(&f);
}

static void test_refusals(void **state)
{
    (void)state;
    struct fixture f = setup();
    struct node *x = input(&f, shape2(4, 10), DTYPE_F32), *img = input(&f, shape4(4, 5, 5, 6), DTYPE_F32);
    struct node *t = input(&f, shape1(4), DTYPE_I32), *w = weight(&f, "w", shape2(3, 9));
    struct node *w4 = weight(&f, "w4", shape4(8, 6, 7, 7)), *far = input(&f, shape2(5, 10), DTYPE_F32);

    expect_error(&f, graph_add(f.g, OP_LINEAR, "head.fc", (struct node *[]){x, w}, 2, NULL, &f.e),
                 "head.fc (linear): input 1 has shape (3, 9), (3, 10) is accepted");
    expect_error(&f, graph_add(f.g, OP_ADD, "a", (struct node *[]){x, far}, 2, NULL, &f.e),
                 "input 1 has shape (5, 10), (4, 10) is accepted");
    expect_error(&f, graph_add(f.g, OP_ADD, "a", (struct node *[]){x}, 1, NULL, &f.e), "1 inputs, 2 to 2");
    expect_error(&f, graph_add(f.g, OP_ACT, "r", &t, 1, NULL, &f.e),
                 "input 0 is i32, f32 or bf16 is accepted");
    expect_error(&f, graph_add(f.g, OP_MEAN_SPATIAL, "p", &x, 1, NULL, &f.e), "4 dimensions are accepted");
    union op_attr wide = {.conv = {7, 1, 0, 1}}, grouped = {.conv = {7, 1, 3, 4}};
    expect_error(&f, graph_add(f.g, OP_CONV2D, "c", (struct node *[]){img, w4}, 2, &wide, &f.e),
                 "7×7 window does not fit into 5×5 pixels");
    expect_error(&f, graph_add(f.g, OP_CONV2D, "c", (struct node *[]){img, w4}, 2, &grouped, &f.e),
                 "4 groups do not divide 6 input");
    union op_attr heads = {.attention = {.heads = 3}};
    expect_error(&f, graph_add(f.g, OP_ATTENTION, "att", (struct node *[]){x, x}, 2, &heads, &f.e),
                 "3 heads do not divide width 10");
    expect_error(&f, graph_add(f.g, OP_ALL_GATHER, "g", &far, 1, NULL, &f.e),
                 "5 rows, this rank's 4 rows of the mini-batch are accepted");
    union op_attr slice = {.slice = {2, 9}};
    expect_error(&f, graph_add(f.g, OP_SLICE_ROWS, "s", &x, 1, &slice, &f.e), "rows 2 to 9 of 4");
    expect_error(&f, graph_add(f.g, OP_SOFTMAX_XENT, "l", (struct node *[]){x, x}, 2, NULL, &f.e),
                 "input 1 is f32, i32 is accepted");
    teardown(&f);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_same_param_same_node),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
