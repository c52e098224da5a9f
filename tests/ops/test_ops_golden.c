/* test_ops_golden - operators against PyTorch's results in fp64 (tests/golden/make_ops.py): values and
 * gradients within 1e-5 of their norm. Batch norm, which is three operators here and one there, has a test of
 * its own.
 */
#include "tests/ops/golden.h"
#include "tests/ops/op_run.h"
#include "worker/backend/cpu/cpu.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { FILE_CONV, FILE_NORM, FILE_MISC, N_FILES };

struct fixture {
    struct backend *be;
    struct golden files[N_FILES];
};

static const double TOLERANCE = 1e-5;

/* A row a case of make_ops.py; inputs, their shapes and which gradients exist are in the file. */
struct golden_case {
    const char *name;
    int file;
    enum op op;
    union op_attr attr;
};

static const struct golden_case cases[] = {
    {"conv_3x3", FILE_CONV, OP_CONV2D, {.conv = {3, 1, 1, 1}}},
    {"conv_3x3_s2", FILE_CONV, OP_CONV2D, {.conv = {3, 2, 1, 1}}},
    {"conv_3x3_s2_odd", FILE_CONV, OP_CONV2D, {.conv = {3, 2, 1, 1}}},
    {"conv_stem3", FILE_CONV, OP_CONV2D, {.conv = {3, 1, 1, 1}}},
    {"conv_stem1", FILE_CONV, OP_CONV2D, {.conv = {3, 1, 1, 1}}},
    {"conv_7x7_s2", FILE_CONV, OP_CONV2D, {.conv = {7, 2, 3, 1}}},
    {"conv_1x1", FILE_CONV, OP_CONV2D, {.conv = {1, 1, 0, 1}}},
    {"conv_1x1_s2", FILE_CONV, OP_CONV2D, {.conv = {1, 2, 0, 1}}},
    {"conv_groups", FILE_CONV, OP_CONV2D, {.conv = {3, 1, 1, 8}}},
    {"conv_groups_s2", FILE_CONV, OP_CONV2D, {.conv = {3, 2, 1, 4}}},
    {"bn_infer", FILE_NORM, OP_BN_INFER, {.bn = {0, 1e-5f, 0, false}}},
    {"bn_infer_residual_relu", FILE_NORM, OP_BN_INFER, {.bn = {0, 1e-5f, 0, true}}},
    {"layernorm", FILE_NORM, OP_LAYERNORM, {.layernorm = {1e-5f}}},
    {"layernorm_odd", FILE_NORM, OP_LAYERNORM, {.layernorm = {1e-5f}}},
    {"maxpool_3x3_s2", FILE_MISC, OP_MAXPOOL, {.conv = {3, 2, 1, 1}}},
    {"maxpool_2x2", FILE_MISC, OP_MAXPOOL, {.conv = {2, 2, 0, 1}}},
    {"maxpool_ties", FILE_MISC, OP_MAXPOOL, {.conv = {3, 2, 1, 1}}},
    {"mean_spatial", FILE_MISC, OP_MEAN_SPATIAL, {.conv = {0}}},
    {"shortcut", FILE_MISC, OP_SHORTCUT_PAD, {.shortcut = {2, 32}}},
    {"shortcut_odd", FILE_MISC, OP_SHORTCUT_PAD, {.shortcut = {2, 8}}},
    {"attention_4heads", FILE_MISC, OP_ATTENTION, {.attention = {4, 0, 0, 0}}},
    {"attention_slice", FILE_MISC, OP_ATTENTION, {.attention = {3, 0, 0, 0}}},
    {"linear", FILE_MISC, OP_LINEAR, {.conv = {0}}},
    {"linear_bias", FILE_MISC, OP_LINEAR, {.conv = {0}}},
    {"relu", FILE_MISC, OP_ACT, {.act = {ACT_RELU}}},
    {"gelu", FILE_MISC, OP_ACT, {.act = {ACT_GELU}}},
    {"add", FILE_MISC, OP_ADD, {.conv = {0}}},
    {"concat", FILE_MISC, OP_CONCAT_ROWS, {.conv = {0}}},
    {"slice", FILE_MISC, OP_SLICE_ROWS, {.slice = {2, 6}}},
    {"xent", FILE_MISC, OP_SOFTMAX_XENT, {.xent = {32}}},
    {"xent_offset", FILE_MISC, OP_SOFTMAX_XENT, {.xent = {24}}},
};

/* Copies a tensor of the file to where a kernel reads it. */
static void load(void *dst, const struct golden_tensor *t)
{
    memcpy(dst, t->data, (size_t)shape_count(t->shape) * dtype_bytes(t->dtype));
}

static void compare(const struct golden *g, const char *name, const char *key, const void *got,
                    struct shape shape)
{
    const struct golden_tensor *want = golden_find(g, name, key);
    double d;

    CHECK(want, "%s.%s is not in the file", name, key);
    CHECK(shape_equal(want->shape, shape), "%s.%s has another shape", name, key);
    d = op_distance(got, want->data, want->dtype, shape_count(shape));
    CHECK(d < TOLERANCE, "%s.%s is off by %.2g of its norm", name, key, d);
}

/* Fills s from the file's inputs. */
static void make_spec(const struct golden *g, const struct golden_case *k, struct op_case *s)
{
    *s = (struct op_case){.name = k->name, .op = k->op, .attr = k->attr};
    for (int i = 0; i < OP_MAX_INPUTS; i++) {
        char key[16];

        snprintf(key, sizeof(key), "in%d", i);
        const struct golden_tensor *t = golden_find(g, k->name, key);
        if (!t)
            break;
        s->in[i] = (struct op_input){t->dtype == DTYPE_I32 ? FILL_TARGETS : FILL_UNIT, t->shape};
        s->n_inputs++;
    }
    CHECK(s->n_inputs, "%s is not in the file", k->name);
}

static void check_gradients(const struct golden *g, const struct golden_case *k, struct op_run *r)
{
    unsigned mask = 0;
    char key[16];

    for (int i = 0; i < r->node.n_inputs; i++) {
        snprintf(key, sizeof(key), "din%d", i);
        mask |= golden_find(g, k->name, key) ? 1u << i : 0;
    }
    assert_int_equal(mask, op_run_grad_mask(r) & (k->op == OP_SOFTMAX_XENT ? 1 : ~0u));
    load((void *)(uintptr_t)r->call.dout, golden_find(g, k->name, "dout"));
    op_run_want(r, mask);
    op_run_backward(r);
    for (int i = 0; i < r->node.n_inputs; i++) {
        snprintf(key, sizeof(key), "din%d", i);
        if (mask >> i & 1)
            compare(g, k->name, key, r->call.din[i], r->node.in[i]->shape);
    }
}

static void test_golden(void **state)
{
    struct fixture *fx = *state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct golden_case *k = &cases[i];
        const struct golden *g = &fx->files[k->file];
        struct op_case spec;
        struct op_run r;

        make_spec(g, k, &spec);
        op_run_init(&r, fx->be, &spec, 1);
        for (int j = 0; j < spec.n_inputs; j++) {
            char key[16];

            snprintf(key, sizeof(key), "in%d", j);
            load(r.call.in[j], golden_find(g, k->name, key));
        }
        op_run_forward(&r);
        compare(g, k->name, "out", r.call.out, r.node.shape);
        if (r.kernel->backward)
            check_gradients(g, k, &r);
        op_run_free(&r);
    }
}

/* Loads a case of batch norm: x, then the sums that `stats` computed, γ, β, running values [, residual]. */
static void load_bn(const struct golden *g, const char *name, struct op_run *stats, struct op_run *apply)
{
    const char *const keys[] = {"x", NULL, "gamma", "beta", "mean", "var", "res"};

    load(stats->call.in[0], golden_find(g, name, "x"));
    op_run_forward(stats);
    for (int i = 0; i < apply->node.n_inputs; i++)
        if (keys[i])
            load(apply->call.in[i], golden_find(g, name, keys[i]));
    memcpy(apply->call.in[1], stats->call.out, (size_t)op_run_count(stats, -1) * sizeof(double));
    load((void *)(uintptr_t)apply->call.dout, golden_find(g, name, "dout"));
}

/* Backward of both; what apply says of the sums is what stats is told, and both add up in dx. */
static void bn_backward(struct op_run *stats, struct op_run *apply)
{
    const size_t bytes = (size_t)op_run_count(apply, 0) * sizeof(float);

    op_run_want(apply, op_run_grad_mask(apply));
    op_run_backward(apply);
    memcpy((void *)(uintptr_t)stats->call.dout, apply->call.din[1],
           (size_t)op_run_count(stats, -1) * sizeof(double));
    op_run_want(stats, 1);
    memcpy(stats->call.din[0], apply->call.din[0], bytes);
    stats->call.acc = 1;
    op_run_backward(stats);
}

static void check_batchnorm(struct fixture *fx, const char *name, bool relu)
{
    const struct golden *g = &fx->files[FILE_NORM];
    const struct golden_tensor *x = golden_find(g, name, "x"), *res = golden_find(g, name, "res");
    CHECK(x, "%s is not in the file", name);
    const struct shape s = x->shape, c = shape1(shape_channels(s));
    const double count = (double)shape_rows(s);
    const struct op_case stats_case = {
        .name = name, .op = OP_BN_STATS, .n_inputs = 1, .in = {{FILL_UNIT, s}}};
    const struct op_case apply_case = {.name = name,
                                       .op = OP_BN_APPLY,
                                       .attr.bn = {count, 1e-5f, 0.1f, relu},
                                       .n_inputs = res ? 7 : 6,
                                       .in = {{FILL_UNIT, s},
                                              {FILL_SUMS, shape2(2, c.dims[0])},
                                              {FILL_ONE, c},
                                              {FILL_ONE, c},
                                              {FILL_ONE, c},
                                              {FILL_ONE, c},
                                              {FILL_UNIT, s}}};
    struct op_run stats, apply;

    op_run_init(&stats, fx->be, &stats_case, 1);
    op_run_init(&apply, fx->be, &apply_case, 1);
    load_bn(g, name, &stats, &apply);
    op_run_forward(&apply);
    compare(g, name, "out", apply.call.out, s);
    compare(g, name, "mean_after", apply.call.in[4], c);
    compare(g, name, "var_after", apply.call.in[5], c);
    bn_backward(&stats, &apply);
    compare(g, name, "dx", stats.call.din[0], s);
    compare(g, name, "dgamma", apply.call.din[2], c);
    compare(g, name, "dbeta", apply.call.din[3], c);
    if (res)
        compare(g, name, "dres", apply.call.din[6], s);
    op_run_free(&stats);
    op_run_free(&apply);
}

/* The last one has a mean 30 times its standard deviation. */
static void test_batchnorm(void **state)
{
    check_batchnorm(*state, "bn", false);
    check_batchnorm(*state, "bn_relu", true);
    check_batchnorm(*state, "bn_residual_relu", true);
    check_batchnorm(*state, "bn_features", false);
    check_batchnorm(*state, "bn_far_mean", false);
}

static int setup(void **state)
{
    static const char *const names[N_FILES] = {"ops_conv.bin", "ops_norm.bin", "ops_misc.bin"};
    struct fixture *fx = xcalloc(1, sizeof(*fx));
    struct err e = ERR_INIT;

    *state = fx;
    fx->be = cpu_backend_create(&(struct cpu_config){.n_threads = 1}, &e);
    for (int i = 0; i < N_FILES; i++) {
        char *path = xasprintf("%s/%s", TEST_DATA_DIR, names[i]);
        int rc = golden_read(&fx->files[i], path, &e);

        free(path);
        if (rc < 0) {
            fprintf(stderr, "%s\n", e.msg);
            return -1;
        }
    }
    return fx->be ? 0 : -1;
}

static int teardown(void **state)
{
    struct fixture *fx = *state;

    for (int i = 0; i < N_FILES; i++)
        golden_free(&fx->files[i]);
    fx->be->ops->destroy(fx->be);
    free(fx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_batchnorm),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
