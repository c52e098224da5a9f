/* test_ops_bf16 - the CPU's kernels for bf16 activations beside those for f32, on the shared table of cases.
 *
 * Arithmetic is the same and in f32, so every result must be that of the f32 kernel, rounded once, to the
 * bit; convolutions alone, which are oneDNN's, are compared within a bound. Skipped where the CPU has no
 * bf16.
 */
#include "tests/ops/op_pair.h"
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/cpu/cpu_dtype.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SKIPPED = 77 };

static const double CONV_TOLERANCE = 0x1p-8;

static int most_threads(int n)
{
#ifdef BF_OPENMP
    return n;
#else
    (void)n;
    return 1;
#endif
}

/* ------------------------------------------------------------------ rounding */

static uint16_t rounded(float f, bool by_integers)
{
    v16 v = {f};
    v16h h;

    if (by_integers)
        v16_to_bf16_by_integers(&h, &v);
    else
        v16_to_bf16(&h, &v);
    return h[0];
}

static float float_of(uint32_t bits)
{
    float f;

    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Every upper half, with lower halves around every border of rounding. */
static void test_one_rounding(void **state)
{
    const uint32_t lower[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};

    (void)state;
    for (uint32_t top = 0; top < 1u << 16; top++)
        for (size_t k = 0; k < sizeof lower / sizeof *lower; k++) {
            const float f = float_of(top << 16 | lower[k]);
            const uint16_t a = rounded(f, false), b = rounded(f, true);

            CHECK(a == b, "%08x becomes %04x by the instruction and %04x by integers", top << 16 | lower[k],
                  a, b);
            if (isnan(f))
                CHECK(isnan(op_from_bf16(b)) && (b & 0x40), "%08x becomes %04x, no quiet NaN", top << 16, b);
            else if (fabsf(f) < 0x1p-126f)
                CHECK(b == (top & 0x8000), "%08x becomes %04x, not zero", top << 16 | lower[k], b);
            else
                CHECK(b == op_to_bf16(f), "%08x becomes %04x", top << 16 | lower[k], b);
        }
}

/* ------------------------------------------------------------------ operators */

/* bn_stats is said to be a sum in fp64 of f32 blocks: the same for the same values, so to the bit as well. */
static double tolerance_of(enum op op)
{
    return op == OP_CONV2D ? CONV_TOLERANCE : 0;
}

static void test_rounded_once(void **state)
{
    struct backend *be[2] = {op_run_backend(1), op_run_backend(1)};

    (void)state;
    for (size_t i = 0; i < n_op_cases; i++) {
        op_pair_check(be, &op_cases[i], DTYPE_BF16, false, tolerance_of(op_cases[i].op));
        if (op_takes_gathered(op_cases[i].op))
            op_pair_check(be, &op_cases[i], DTYPE_BF16, true, tolerance_of(op_cases[i].op));
    }
    be[0]->ops->destroy(be[0]);
    be[1]->ops->destroy(be[1]);
}

/* The rounding of a result is its last operation, whatever the number of threads that share the work. */
static void test_any_threads(void **state)
{
    struct backend *be[2] = {op_run_backend(1), op_run_backend(most_threads(5))};

    (void)state;
    for (size_t i = 0; i < n_op_cases; i++)
        if (op_cases[i].op != OP_CONV2D)
            op_pair_check(be, &op_cases[i], DTYPE_BF16, false, 0);
    be[0]->ops->destroy(be[0]);
    be[1]->ops->destroy(be[1]);
}

/* A rank without rows: every operator over rows runs, and what it sums up is zero. */
static void test_no_rows(void **state)
{
    struct backend *be[2] = {op_run_backend(1), op_run_backend(most_threads(2))};

    (void)state;
    for (size_t i = 0; i < n_op_cases; i++) {
        struct op_case spec = op_cases[i];

        if (spec.op == OP_CONCAT_ROWS || spec.op == OP_SLICE_ROWS || spec.op == OP_ADD)
            continue; /* they ask more of their inputs */
        spec.in[0].shape.dims[0] = 0;
        if (spec.op == OP_SOFTMAX_XENT)
            spec.in[1].shape.dims[0] = 0;
        if (spec.op == OP_BN_APPLY && spec.n_inputs > 6)
            spec.in[6].shape.dims[0] = 0;
        op_pair_check(be, &spec, DTYPE_BF16, false, 0);
    }
    be[0]->ops->destroy(be[0]);
    be[1]->ops->destroy(be[1]);
}

static void test_nan_passes_through(void **state)
{
    struct backend *be = op_run_backend(1);
    const uint16_t nan = 0x7fc0;

    (void)state;
    for (size_t i = 0; i < n_op_cases; i++) {
        const struct op_case *spec = &op_cases[i];
        struct err e = ERR_INIT;
        struct op_pair p;
        bool seen = false;

        if (spec->op == OP_DROPOUT || spec->op == OP_SLICE_ROWS || spec->op == OP_SHORTCUT_PAD ||
            (spec->op == OP_CONV2D && spec->attr.conv.stride > spec->attr.conv.kernel))
            continue; /* these may leave an element out */
        op_pair_init(&p, be, be, spec, DTYPE_BF16, false, 0);
        memcpy(p.call.in[0], &nan, sizeof nan);
        CHECK(p.kernel->forward(&p.call, &e) == 0, "%s: %s", spec->name, e.msg);
        for (int64_t k = 0; k < shape_count(p.node.shape); k++)
            seen |= p.node.dtype == DTYPE_BF16 ? isnan(op_from_bf16(((uint16_t *)p.call.out)[k]))
                                               : isnan(op_value(p.call.out, p.node.dtype, k));
        CHECK(seen, "%s: a NaN is lost", spec->name);
        op_pair_free(&p);
    }
    be->ops->destroy(be);
}

/* ------------------------------------------------------------------ casts and sums of the backend */

static void test_from_f32(void **state)
{
    enum { N = 10007 };
    struct backend *be = op_run_backend(most_threads(3));
    uint16_t *h = xcalloc(N, sizeof *h), *g = xcalloc(N, sizeof *g);
    float *f = xcalloc(N, sizeof *f);

    (void)state;
    for (int i = 0; i < N; i++)
        f[i] = (float)op_uniform(3, 1, i);
    for (int added = 0; added < 2; added++) {
        assert_int_equal(be->ops->from_f32(be, h, DTYPE_BF16, f, N, added, NULL), 0);
        for (int i = 0; i < N; i++) {
            const float once = op_from_bf16(op_to_bf16(f[i]));
            assert_int_equal(h[i], op_to_bf16(added ? once + f[i] : f[i]));
        }
    }
    memcpy(g, h, N * sizeof *g);
    assert_int_equal(be->ops->accumulate(be, g, h, N, DTYPE_BF16, NULL), 0);
    for (int i = 0; i < N; i++)
        assert_true(op_from_bf16(g[i]) == 2 * op_from_bf16(h[i]));
    assert_int_equal(be->ops->from_f32(be, f, DTYPE_F32, f, N, true, NULL), 0);
    for (int i = 0; i < N; i++)
        assert_true(f[i] == 2 * (float)op_uniform(3, 1, i));
    free(f);
    free(g);
    free(h);
    be->ops->destroy(be);
}

/* From f32 and back. The gradient's type is its own: of gathered rows f32, though their values are bf16. */
static void test_cast(void **state)
{
    enum { N = 77 };
    struct backend *be = op_run_backend(1);
    const struct kernel *k = &be->ops->kernels[OP_CAST];
    uint16_t h[N];
    float f[N], g[N];

    (void)state;
    for (int i = 0; i < N; i++)
        f[i] = (float)op_uniform(4, 1, i);
    struct node x = {.shape = shape1(N), .dtype = DTYPE_F32, .grad_dtype = DTYPE_F32};
    struct node y = {.in = {&x}, .n_inputs = 1, .shape = shape1(N), .dtype = DTYPE_BF16};
    for (int gathered = 0; gathered < 2; gathered++) {
        struct op_call c = {.node = &y, .in = {f}, .out = h, .din = {g}};

        y.grad_dtype = gathered ? DTYPE_F32 : DTYPE_BF16;
        assert_int_equal(k->forward(&c, NULL), 0);
        for (int i = 0; i < N; i++)
            assert_int_equal(h[i], op_to_bf16(f[i]));
        c.dout = gathered ? (void *)f : (void *)h;
        for (c.acc = 0; c.acc < 2; c.acc++) {
            assert_int_equal(k->backward(&c, NULL), 0);
            for (int i = 0; i < N; i++)
                assert_true(g[i] == (float)(c.acc + 1) * (gathered ? f[i] : op_from_bf16(h[i])));
        }
    }
    struct op_call back = {.node = &x, .in = {h}, .out = g};
    x.in[0] = &y;
    assert_int_equal(k->forward(&back, NULL), 0);
    for (int i = 0; i < N; i++)
        assert_true(g[i] == op_from_bf16(h[i]));
    be->ops->destroy(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_rounding),
        cmocka_unit_test(test_rounded_once),
        cmocka_unit_test(test_any_threads),
        cmocka_unit_test(test_no_rows),
        cmocka_unit_test(test_nan_passes_through),
        cmocka_unit_test(test_from_f32),
        cmocka_unit_test(test_cast),
    };
    struct backend *be = op_run_backend(1);
    const bool bf16 = be->ops->bf16;

    be->ops->destroy(be);
    if (!bf16) {
        fprintf(stderr, "skipped: bf16 needs a CPU with AVX-512, and this one has %s\n", cpu_isa());
        return SKIPPED;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
