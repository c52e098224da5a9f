/* test_ops_exact - what must hold to the bit, or by count: threads, repetition, dropout masks; and the edges:
 * ranks without rows, bad input.
 */
#include "tests/ops/op_run.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/cpu_wino.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/philox.h"

/* More threads than one, where the build has them. */
static struct backend *make_backend_with_threads(int n_threads)
{
#ifdef BF_OPENMP
    return op_run_backend(n_threads);
#else
    struct err e = ERR_INIT;

    if (n_threads > 1)
        CHECK(!cpu_backend_create(&(struct cpu_config){.n_threads = n_threads}, &e) &&
                  strstr(e.msg, "OpenMP"),
              "%d threads without OpenMP", n_threads);
    return op_run_backend(1);
#endif
}

static void check_tensor(const struct op_run *a, const void *x, const void *y, const struct node *n,
                         bool rounding, const char *what, int i)
{
    const int64_t count = shape_count(n->shape);
    const size_t bytes = (size_t)count * dtype_bytes(n->dtype);

    if (rounding)
        CHECK(op_distance(x, y, n->dtype, count) < 1e-6, "%s: %s %d differ by more than rounding",
              a->spec->name, what, i);
    else if (bytes)
        CHECK(memcmp(x, y, bytes) == 0, "%s: %s %d differ", a->spec->name, what, i);
}

static bool by_winograd(const struct op_run *r)
{
    const struct conv_shape s = conv_shape_of(&r->node);

    return r->spec->op == OP_CONV2D && wino_fits(&s);
}

static bool by_product(const struct op_run *r)
{
    return r->spec->op == OP_CONV2D && r->spec->attr.conv.kernel == 1 && r->spec->attr.conv.stride == 1;
}

/* Bitwise, but for oneDNN's convolutions by different numbers of threads (cpu_conv.c). */
static void check_same(const struct op_run *a, const struct op_run *b, bool threads_differ)
{
    const bool rounding = threads_differ && a->spec->op == OP_CONV2D && !by_winograd(a) && !by_product(a);
    const unsigned mask = op_run_grad_mask(a);

    check_tensor(a, a->call.out, b->call.out, &a->node, rounding, "outputs", 0);
    for (int i = 0; i < a->node.n_inputs; i++)
        if (mask >> i & 1)
            check_tensor(a, a->call.din[i], b->call.din[i], a->node.in[i], rounding, "gradients of input", i);
}

static void compare_threads(int threads_a, int threads_b)
{
    for (size_t k = 0; k < n_op_cases; k++) {
        struct backend *be_a = make_backend_with_threads(threads_a), *be_b;
        struct op_run a, b;

        op_run_whole(&a, be_a, &op_cases[k]);
        be_b = make_backend_with_threads(threads_b); /* now the team has this size */
        op_run_whole(&b, be_b, &op_cases[k]);
        check_same(&a, &b, threads_a != threads_b);
        op_run_free(&a);
        op_run_free(&b);
        be_a->ops->destroy(be_a);
        be_b->ops->destroy(be_b);
    }
}

static void test_same_bits_for_any_threads(void **state)
{
    (void)state;
    compare_threads(1, 2);
    compare_threads(1, 5);
}

static void test_same_bits_when_repeated(void **state)
{
    (void)state;
    compare_threads(1, 1);
    compare_threads(2, 2);
}

/* ------------------------------------------------------------------ dropout */

/* The two algorithms compute the same convolution. Many channels and many samples, where sums are long. */
static void test_winograd_rounds_little(void **state)
{
    static const int64_t shapes[][4] = {
        {40, 16, 16, 16}, {4, 9, 32, 48}, {2, 14, 256, 128}, {1, 6, 512, 272}};
    struct err e = ERR_INIT;

    (void)state;
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
        const int64_t n = shapes[k][0], size = shapes[k][1], ci = shapes[k][2], co = shapes[k][3];
        const struct op_case spec = {.name = "winograd",
                                     .op = OP_CONV2D,
                                     .attr.conv = {3, 1, 1, 1},
                                     .n_inputs = 2,
                                     .in = {{FILL_UNIT, shape4(n, size, size, ci)},
                                            {FILL_UNIT, shape4(co, ci, 3, 3)}}};
        struct backend *direct = cpu_backend_create(&(struct cpu_config){.n_threads = 1}, &e);
        struct backend *winograd = op_run_backend(1);
        struct op_run a, b;

        op_run_whole(&a, winograd, &spec);
        op_run_whole(&b, direct, &spec);
        CHECK(by_winograd(&a), "shape %zu is not for Winograd", k);
        CHECK(memcmp(a.call.out, b.call.out, (size_t)op_run_count(&a, -1) * sizeof(float)) != 0,
              "shape %zu: one algorithm took the place of the other", k);
        CHECK(op_distance(a.call.out, b.call.out, DTYPE_F32, op_run_count(&a, -1)) < 2e-6, "shape %zu: out",
              k);
        CHECK(op_distance(a.call.din[0], b.call.din[0], DTYPE_F32, op_run_count(&a, 0)) < 2e-6,
              "shape %zu: dx", k);
        CHECK(op_distance(a.call.din[1], b.call.din[1], DTYPE_F32, op_run_count(&a, 1)) < 1e-5,
              "shape %zu: dw", k);
        op_run_free(&a);
        op_run_free(&b);
        direct->ops->destroy(direct);
        winograd->ops->destroy(winograd);
    }
}

/* A sample's result and gradient do not know of the samples beside it. */
static void test_winograd_by_sample(void **state)
{
    const struct op_case spec = {.name = "winograd",
                                 .op = OP_CONV2D,
                                 .attr.conv = {3, 1, 1, 1},
                                 .n_inputs = 2,
                                 .in = {{FILL_UNIT, shape4(7, 9, 9, 32)}, {FILL_UNIT, shape4(32, 32, 3, 3)}}};
    struct op_case one = spec;
    struct backend *be = op_run_backend(1);
    const size_t bytes = 9 * 9 * 32 * sizeof(float);
    struct op_run all, r;

    (void)state;
    one.in[0].shape.dims[0] = 1;
    op_run_whole(&all, be, &spec);
    op_run_init(&r, be, &one, 1);
    op_run_want(&r, 1);
    for (int i = 0; i < 7; i++) {
        memcpy(r.call.in[0], (char *)all.call.in[0] + i * bytes, bytes);
        memcpy(r.call.in[1], all.call.in[1], 32 * 32 * 9 * sizeof(float));
        memcpy((void *)(uintptr_t)r.call.dout, (const char *)all.call.dout + i * bytes, bytes);
        assert_int_equal(r.kernel->forward(&r.call, NULL), 0);
        assert_int_equal(r.kernel->backward(&r.call, NULL), 0);
        assert_memory_equal(r.call.out, (char *)all.call.out + i * bytes, bytes);
        assert_memory_equal(r.call.din[0], (char *)all.call.din[0] + i * bytes, bytes);
    }
    op_run_free(&r);
    op_run_free(&all);
    be->ops->destroy(be);
}

static void test_dropout_rate(void **state)
{
    const double rates[] = {0.05, 0.5, 0.9};
    struct backend *be = op_run_backend(1);

    (void)state;
    for (size_t k = 0; k < 3; k++) {
        const struct op_case spec = {.name = "dropout",
                                     .op = OP_DROPOUT,
                                     .attr.dropout = {(float)rates[k], 5},
                                     .n_inputs = 1,
                                     .in = {{FILL_ONE, shape2(400, 101)}}};
        struct op_run r;
        double p = (double)(float)rates[k], n, dropped = 0;

        op_run_init(&r, be, &spec, 1);
        op_run_forward(&r);
        n = (double)op_run_count(&r, -1);
        for (int64_t i = 0; i < (int64_t)n; i++) {
            float x = ((float *)r.call.in[0])[i], y = ((float *)r.call.out)[i];

            dropped += y == 0;
            CHECK(y == 0 || fabs(y - x / (1 - p)) < 1e-5 * y, "survivor %g of %g at rate %g", (double)y,
                  (double)x, p);
        }
        CHECK(fabs(dropped - n * p) < 4 * sqrt(n * p * (1 - p)), "%g of %g dropped at rate %g", dropped, n,
              p);
        op_run_free(&r);
    }
    be->ops->destroy(be);
    (void)state;
}

/* The mask is the one that backend.h and philox.h promise, element by element. */
static void test_dropout_draws(void **state)
{
    const struct op_case spec = {.name = "dropout",
                                 .op = OP_DROPOUT,
                                 .attr.dropout = {0.3f, 5},
                                 .n_inputs = 1,
                                 .in = {{FILL_ONE, shape4(3, 5, 5, 7)}},
                                 .first = 1000,
                                 .total = 2000};
    struct backend *be = op_run_backend(1);
    struct op_run r;

    (void)state;
    op_run_init(&r, be, &spec, 1);
    op_run_forward(&r);
    for (int64_t i = 0; i < op_run_count(&r, -1); i++) {
        uint32_t row = (uint32_t)(1000 + i / 175), at = (uint32_t)(i % 175);
        struct philox_block b =
            philox(philox_make_key(r.step.seed, 5), at / 4, row, (uint32_t)r.step.step, 0);

        CHECK((((float *)r.call.out)[i] == 0) == (b.v[at % 4] < philox_threshold(0.3f)), "element %lld",
              (long long)i);
    }
    op_run_free(&r);
    be->ops->destroy(be);
}

/* Steps, seeds and streams each draw masks of their own. */
static void test_dropout_differs(void **state)
{
    const struct op_case spec = {.name = "dropout",
                                 .op = OP_DROPOUT,
                                 .attr.dropout = {0.5f, 5},
                                 .n_inputs = 1,
                                 .in = {{FILL_ONE, shape2(10, 100)}}};
    struct backend *be = op_run_backend(1);
    struct op_run r[4];

    (void)state;
    for (int k = 0; k < 4; k++) {
        op_run_init(&r[k], be, &spec, 1);
        r[k].step.step += k == 1;
        r[k].step.seed += k == 2;
        r[k].node.attr.dropout.stream += k == 3;
        op_run_forward(&r[k]);
    }
    for (int k = 1; k < 4; k++)
        assert_memory_not_equal(r[0].call.out, r[k].call.out, 1000 * sizeof(float));
    for (int k = 0; k < 4; k++)
        op_run_free(&r[k]);
    be->ops->destroy(be);
}

/* ------------------------------------------------------------------ edges */

/* A rank without rows: every operator over rows runs, and what it defines (gradients of parameters, sums, the
 * loss) is zero. */
static void test_no_rows(void **state)
{
    struct backend *be = make_backend_with_threads(2);

    (void)state;
    for (size_t k = 0; k < n_op_cases; k++) {
        struct op_case spec = op_cases[k];
        struct op_run r;

        if (spec.op == OP_CONCAT_ROWS || spec.op == OP_SLICE_ROWS || spec.op == OP_ADD)
            continue; /* below */
        spec.in[0].shape.dims[0] = 0;
        if (spec.op == OP_SOFTMAX_XENT)
            spec.in[1].shape.dims[0] = 0;
        if (spec.op == OP_BN_APPLY && spec.n_inputs > 6)
            spec.in[6].shape.dims[0] = 0;
        op_run_whole(&r, be, &spec);
        for (int64_t j = 0; j < op_run_count(&r, -1); j++)
            CHECK(op_value(r.call.out, r.node.dtype, j) == 0, "%s: not zero without rows", spec.name);
        for (int i = 0; i < r.node.n_inputs; i++)
            for (int64_t j = 0; (op_run_grad_mask(&r) >> i & 1) && r.call.din[i] && j < op_run_count(&r, i);
                 j++)
                CHECK(op_value(r.call.din[i], r.node.in[i]->dtype, j) == 0,
                      "%s: gradient of input %d not zero without rows", spec.name, i);
        op_run_free(&r);
    }
    be->ops->destroy(be);
}

static void test_no_rows_of_copies(void **state)
{
    const struct op_case specs[] = {
        {.name = "add",
         .op = OP_ADD,
         .n_inputs = 2,
         .in = {{FILL_UNIT, shape2(0, 3)}, {FILL_UNIT, shape2(0, 3)}}},
        {.name = "slice_rows", .op = OP_SLICE_ROWS, .n_inputs = 1, .in = {{FILL_UNIT, shape2(0, 3)}}},
        {.name = "concat_rows, one empty",
         .op = OP_CONCAT_ROWS,
         .n_inputs = 2,
         .in = {{FILL_UNIT, shape2(0, 3)}, {FILL_UNIT, shape2(2, 3)}}},
        {.name = "concat_rows, both empty",
         .op = OP_CONCAT_ROWS,
         .n_inputs = 2,
         .in = {{FILL_UNIT, shape2(0, 3)}, {FILL_UNIT, shape2(0, 3)}}},
    };
    struct backend *be = op_run_backend(1);

    (void)state;
    for (size_t k = 0; k < sizeof(specs) / sizeof(specs[0]); k++) {
        struct op_run r;

        op_run_whole(&r, be, &specs[k]);
        op_run_free(&r);
    }
    be->ops->destroy(be);
}

/* Labels go through concat_rows too. */
static void test_concat_of_integers(void **state)
{
    const struct op_case spec = {.name = "concat_rows",
                                 .op = OP_CONCAT_ROWS,
                                 .n_inputs = 2,
                                 .in = {{FILL_TARGETS, shape1(3)}, {FILL_TARGETS, shape1(2)}}};
    struct backend *be = op_run_backend(1);
    struct op_run r;

    (void)state;
    op_run_init(&r, be, &spec, 1);
    for (int i = 0; i < 5; i++)
        ((int32_t *)r.call.in[i / 3])[i % 3] = 100 + i;
    op_run_forward(&r);
    for (int i = 0; i < 5; i++)
        assert_int_equal(((int32_t *)r.call.out)[i], 100 + i);
    op_run_free(&r);
    be->ops->destroy(be);
}

static void expect_error(struct op_run *r, const char *part)
{
    struct err e = ERR_INIT;

    assert_int_equal(r->kernel->forward(&r->call, &e), -1);
    CHECK(strstr(e.msg, part), "%s: \"%s\" does not say \"%s\"", r->spec->name, e.msg, part);
}

static void test_bad_input(void **state)
{
    const struct op_case xent = {.name = "xent",
                                 .op = OP_SOFTMAX_XENT,
                                 .attr.xent = {4},
                                 .n_inputs = 2,
                                 .in = {{FILL_UNIT, shape2(4, 10)}, {FILL_TARGETS, shape1(4)}}};
    struct op_case drop = {.name = "dropout",
                           .op = OP_DROPOUT,
                           .attr.dropout = {0.5f, 1},
                           .n_inputs = 1,
                           .in = {{FILL_UNIT, shape2(4, 10)}}};
    struct backend *be = op_run_backend(1);
    struct err e = ERR_INIT;
    struct op_run r;

    (void)state;
    op_run_init(&r, be, &xent, 1);
    ((int32_t *)r.call.in[1])[2] = 10;
    expect_error(&r, "target of row 2 is 10; accepted: 0 to 9");
    ((int32_t *)r.call.in[1])[2] = -1;
    expect_error(&r, "target of row 2 is -1; accepted: 0 to 9");
    op_run_free(&r);
    op_run_init(&r, be, &drop, 1);
    r.rows.local = 3;
    expect_error(&r, "4 rows; the rank has 3");
    op_run_free(&r);
    be->ops->destroy(be);
    assert_null(cpu_backend_create(&(struct cpu_config){.n_threads = 0}, &e));
    assert_non_null(strstr(e.msg, "0 threads"));
}

/* NaN in, NaN out: a broken activation must reach the loss and be noticed there. */
static void test_nan_passes_through(void **state)
{
    struct backend *be = op_run_backend(1);

    (void)state;
    for (size_t k = 0; k < n_op_cases; k++) {
        const struct op_case *spec = &op_cases[k];
        bool seen = false;
        struct op_run r;

        if (spec->op == OP_DROPOUT || spec->op == OP_SLICE_ROWS || spec->op == OP_SHORTCUT_PAD ||
            (spec->op == OP_CONV2D && spec->attr.conv.stride > spec->attr.conv.kernel))
            continue; /* these may leave an element out */
        op_run_init(&r, be, spec, 1);
        ((float *)r.call.in[0])[0] = NAN;
        op_run_forward(&r);
        for (int64_t j = 0; j < op_run_count(&r, -1); j++)
            seen |= isnan(op_value(r.call.out, r.node.dtype, j));
        CHECK(seen, "%s: a NaN is lost", spec->name);
        op_run_free(&r);
    }
    be->ops->destroy(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits_for_any_threads),
        cmocka_unit_test(test_same_bits_when_repeated),
        cmocka_unit_test(test_winograd_rounds_little),
        cmocka_unit_test(test_winograd_by_sample),
        cmocka_unit_test(test_dropout_rate),
        cmocka_unit_test(test_dropout_draws),
        cmocka_unit_test(test_dropout_differs),
        cmocka_unit_test(test_no_rows),
        cmocka_unit_test(test_no_rows_of_copies),
        cmocka_unit_test(test_concat_of_integers),
        cmocka_unit_test(test_bad_input),
        cmocka_unit_test(test_nan_passes_through),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
