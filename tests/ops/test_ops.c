/* test_ops - every operator against its own forward pass, and against the contract of backend.h.
 *
 * Gradients: for a random projection w and a direction v, <w, f(x + εv)> - <w, f(x - εv)> over 2ε must be
 * what backward says, <din, v>, for every input that a gradient flows to. One direction leans towards the
 * gradient, so that a wrong scale is seen; others are random. Two checks of the check: backward passes that
 * are wrong on purpose must be caught.
 */
#include "tests/ops/op_run.h"
#include "worker/backend/cpu/cpu.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { DIRECTIONS = 3 };
static const double TOLERANCE = 2e-3;

/* <dout, out> */
static double project(const struct op_run *r)
{
    double sum = 0;

    for (int64_t k = 0; k < op_run_count(r, -1); k++)
        sum += op_value(r->call.dout, r->node.dtype, k) * op_value(r->call.out, r->node.dtype, k);
    return sum;
}

/* Central difference of the projection along v for input i; v gets what the step really was after rounding to
 * the input's type. Restores the input. */
static double difference(struct op_run *r, int i, double *v, double eps)
{
    const int64_t n = op_run_count(r, i);
    const enum dtype t = r->node.in[i]->dtype;
    double *x = xmalloc((size_t)n * sizeof(*x)), f[2];

    for (int64_t k = 0; k < n; k++)
        x[k] = op_value(r->call.in[i], t, k);
    for (int side = 0; side < 2; side++) {
        for (int64_t k = 0; k < n; k++)
            op_set_value(r->call.in[i], t, k, x[k] + (side ? -eps : eps) * v[k]);
        if (!side)
            for (int64_t k = 0; k < n; k++)
                v[k] = (op_value(r->call.in[i], t, k) - x[k]) / eps;
        op_run_forward(r);
        f[side] = project(r);
    }
    for (int64_t k = 0; k < n; k++)
        op_set_value(r->call.in[i], t, k, x[k]);
    free(x);
    return (f[0] - f[1]) / (2 * eps);
}

static double norm(const void *p, enum dtype t, int64_t n)
{
    double s = 0;

    for (int64_t k = 0; k < n; k++)
        s += op_value(p, t, k) * op_value(p, t, k);
    return sqrt(s);
}

/* The largest error, relative to the larger of the derivative and what a random direction would see of the
 * gradient. */
static double input_error(struct op_run *r, int i)
{
    const int64_t n = op_run_count(r, i);
    const enum dtype t = r->node.in[i]->dtype;
    const double eps = r->spec->step > 0 ? r->spec->step : 1e-2;
    /* A step for sums over count rows is count times larger. */
    const double unit = t == DTYPE_F64 ? r->spec->attr.bn.count : 1;
    const double size = norm(r->call.din[i], t, n);
    double *v = xmalloc((size_t)n * sizeof(*v) + 1), worst = 0;

    for (int dir = 0; dir < DIRECTIONS; dir++) {
        double analytic = 0, numeric, length = 0;

        for (int64_t k = 0; k < n; k++) {
            v[k] = unit * op_uniform(555, (uint32_t)(10 * i + dir), k);
            if (dir == 0 && size > 0)
                v[k] += unit * op_value(r->call.din[i], t, k) / size * sqrt((double)n);
        }
        numeric = difference(r, i, v, eps);
        for (int64_t k = 0; k < n; k++) {
            analytic += op_value(r->call.din[i], t, k) * v[k];
            length += v[k] * v[k];
        }
        double scale = fmax(fabs(analytic), size * sqrt(length / (double)(n ? n : 1)));
        double error = fabs(analytic - numeric) / fmax(scale, 1e-6);

        worst = error > worst || isnan(error) ? error : worst;
    }
    free(v);
    return worst;
}

/* Runs forward and backward; the largest error over all inputs. damage, if any, spoils the gradients first.
 */
static double case_error(struct op_run *r, void (*damage)(struct op_run *r))
{
    const unsigned mask = op_run_grad_mask(r);
    double worst = 0;

    op_run_fill_dout(r, 3);
    op_run_want(r, mask);
    op_run_forward(r);
    op_run_backward(r);
    if (damage)
        damage(r);
    for (int i = 0; i < r->node.n_inputs; i++) {
        double error = mask >> i & 1 ? input_error(r, i) : 0;

        worst = error > worst || isnan(error) ? error : worst;
    }
    return worst;
}

static struct backend *backend_of(void **state)
{
    return *state;
}

static void test_gradients(void **state)
{
    for (size_t k = 0; k < n_op_cases; k++) {
        struct op_run r;
        double error;

        op_run_init(&r, backend_of(state), &op_cases[k], 1);
        error = case_error(&r, NULL);
        CHECK(error < TOLERANCE, "%s: derivative off by %.2g of itself", op_cases[k].name, error);
        op_run_free(&r);
    }
}

static void scale_gradient(struct op_run *r)
{
    for (int64_t k = 0; k < op_run_count(r, 0); k++)
        ((float *)r->call.din[0])[k] *= 1.05f;
}

static void lose_elements(struct op_run *r)
{
    const int64_t n = op_run_count(r, 0);

    for (int64_t k = 0; k < n; k += n / 4)
        ((float *)r->call.din[0])[k] = 0;
}

static const struct op_case *case_of(enum op op)
{
    size_t at = 0;

    while (op_cases[at].op != op)
        at++;
    return &op_cases[at];
}

static void test_wrong_gradients_are_caught(void **state)
{
    void (*const damage[])(struct op_run *) = {scale_gradient, lose_elements};
    const enum op ops[] = {OP_CONV2D, OP_BN_APPLY, OP_LAYERNORM, OP_LINEAR, OP_ATTENTION, OP_SOFTMAX_XENT};

    for (size_t o = 0; o < sizeof(ops) / sizeof(ops[0]); o++) {
        for (size_t w = 0; w < 2; w++) {
            struct op_run r;

            op_run_init(&r, backend_of(state), case_of(ops[o]), 1);
            CHECK(case_error(&r, damage[w]) > 2 * TOLERANCE, "%s: wrong gradient %zu not caught",
                  r.spec->name, w);
            op_run_free(&r);
        }
    }
}

/* acc = 1 adds to what is there; acc = 0, already run into *want, defines. */
static void check_adds(struct op_run *r, unsigned mask, void *const *want)
{
    op_run_want(r, mask);
    r->call.acc = mask;
    for (int i = 0; i < r->node.n_inputs; i++)
        for (int64_t k = 0; mask >> i & 1 && k < op_run_count(r, i); k++)
            op_set_value(r->call.din[i], r->node.in[i]->dtype, k, 3 * op_uniform(9, (uint32_t)i, k));
    op_run_backward(r);
    for (int i = 0; i < r->node.n_inputs; i++)
        for (int64_t k = 0; mask >> i & 1 && k < op_run_count(r, i); k++) {
            enum dtype t = r->node.in[i]->dtype;
            double before = (float)(3 * op_uniform(9, (uint32_t)i, k)), added = op_value(want[i], t, k);
            double got = op_value(r->call.din[i], t, k);

            CHECK(fabs(got - (before + added)) < 1e-5 * (3 + fabs(added)),
                  "%s: acc = 1, input %d element %lld is %g, want %g + %g", r->spec->name, i, (long long)k,
                  got, before, added);
        }
}

/* Every subset of one input gives the bits that it has among all. */
static void check_alone(struct op_run *r, unsigned mask, void *const *want)
{
    for (int i = 0; i < r->node.n_inputs; i++) {
        if (!(mask >> i & 1))
            continue;
        op_run_want(r, 1u << i);
        op_run_backward(r);
        size_t bytes = (size_t)op_run_count(r, i) * dtype_bytes(r->node.in[i]->dtype);
        CHECK(memcmp(r->call.din[i], want[i], bytes) == 0, "%s: input %d alone has another gradient",
              r->spec->name, i);
    }
}

static void test_acc_contract(void **state)
{
    for (size_t k = 0; k < n_op_cases; k++) {
        struct op_run r;
        void *want[OP_MAX_INPUTS];

        op_run_init(&r, backend_of(state), &op_cases[k], 2);
        const unsigned mask = op_run_grad_mask(&r);
        op_run_fill_dout(&r, 4);
        op_run_want(&r, mask);
        op_run_forward(&r);
        op_run_backward(&r);
        for (int i = 0; i < r.node.n_inputs; i++) {
            for (int64_t j = 0; mask >> i & 1 && j < op_run_count(&r, i); j++)
                CHECK(isfinite(op_value(r.call.din[i], r.node.in[i]->dtype, j)),
                      "%s: acc = 0 leaves element %lld of input %d undefined", op_cases[k].name, (long long)j,
                      i);
            want[i] = r.call.din[i];
            r.call.din[i] = NULL; /* ours now */
        }
        check_adds(&r, mask, want);
        check_alone(&r, mask, want);
        for (int i = 0; i < r.node.n_inputs; i++)
            r.be->ops->mem_free(r.be, want[i]);
        op_run_free(&r);
    }
}

/* Forward defines every element and reads its inputs only. */
static void test_forward_defines(void **state)
{
    for (size_t k = 0; k < n_op_cases; k++) {
        struct op_run r;

        op_run_init(&r, backend_of(state), &op_cases[k], 5);
        op_run_forward(&r);
        for (int64_t j = 0; j < op_run_count(&r, -1); j++)
            CHECK(isfinite(op_value(r.call.out, r.node.dtype, j)), "%s: element %lld undefined",
                  op_cases[k].name, (long long)j);
        op_run_free(&r);
    }
}

static int setup(void **state)
{
    *state = cpu_backend_create(&(struct cpu_config){.n_threads = 1, .winograd = true}, NULL);
    return *state ? 0 : -1;
}

static int teardown(void **state)
{
    struct backend *be = *state;

    be->ops->destroy(be);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward_defines),
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_wrong_gradients_are_caught),
        cmocka_unit_test(test_acc_contract),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
