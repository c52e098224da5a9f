/* test_ops_rows - rows split over ranks: what a rank computes from its rows is what one rank computes from
 * them, masks and bits included, and partial sums add up to the whole.
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

#include "common/philox.h"

static size_t in_bytes(const struct op_run *r, int i)
{
    return (size_t)op_run_count(r, i) * dtype_bytes(r->node.in[i]->dtype);
}

/* Runs rows [from, to) of `whole`'s input 0 as the rank that owns them; other inputs are shared. */
static void run_slice(struct op_run *part, struct op_case *spec, const struct op_run *whole, int64_t from,
                      int64_t to)
{
    const int64_t rows = whole->node.in[0]->shape.dims[0];
    const int64_t width = op_run_count(whole, 0) / rows, out_width = op_run_count(whole, -1) / rows;

    *spec = *whole->spec;
    spec->in[0].shape.dims[0] = to - from;
    spec->first = whole->rows.first + from;
    spec->total = whole->rows.total;
    op_run_init(part, whole->be, spec, 1);
    for (int i = 0; i < part->node.n_inputs; i++) {
        const float *src = (const float *)whole->call.in[i] + (i ? 0 : from * width);

        if (in_bytes(part, i))
            memcpy(part->call.in[i], src, in_bytes(part, i));
    }
    if (to > from)
        memcpy((void *)(uintptr_t)part->call.dout, (const float *)whole->call.dout + from * out_width,
               (size_t)((to - from) * out_width) * sizeof(float));
    op_run_want(part, op_run_grad_mask(part));
    op_run_forward(part);
    op_run_backward(part);
}

static void test_dropout_of_ranks(void **state)
{
    const struct op_case spec = {.name = "dropout",
                                 .op = OP_DROPOUT,
                                 .attr.dropout = {0.5f, 5},
                                 .n_inputs = 1,
                                 .in = {{FILL_ONE, shape2(10, 33)}}};
    struct backend *be = op_run_backend(1);
    struct op_run whole, part;
    struct op_case slice;

    (void)state;
    op_run_whole(&whole, be, &spec);
    for (int64_t cut = 0; cut <= 10; cut += 5) {
        run_slice(&part, &slice, &whole, cut, 10);
        if (cut < 10) {
            assert_memory_equal(part.call.out, (float *)whole.call.out + cut * 33, in_bytes(&part, 0));
            assert_memory_equal(part.call.din[0], (float *)whole.call.din[0] + cut * 33, in_bytes(&part, 0));
        }
        op_run_free(&part);
    }
    op_run_free(&whole);
    be->ops->destroy(be);
}

/* Queries of 3 ranks over the gathered keys: rows as in one rank, partial dK|dV add up to the one rank's. */
static void check_attention_split(struct backend *be, const struct op_case *spec)
{
    const int64_t n = spec->in[0].shape.dims[0], C = spec->in[0].shape.dims[1];
    const int64_t cuts[] = {0, n / 3, n / 3, n / 2 + 1, n}; /* the second rank has no rows */
    struct op_run whole;
    double *sum;

    op_run_whole(&whole, be, spec);
    sum = xcalloc((size_t)op_run_count(&whole, 1), sizeof(*sum));
    for (int k = 0; k < 4; k++) {
        const int64_t rows = cuts[k + 1] - cuts[k], at = cuts[k] * C;
        struct op_case slice;
        struct op_run part;

        run_slice(&part, &slice, &whole, cuts[k], cuts[k + 1]);
        CHECK(op_distance(part.call.out, (float *)whole.call.out + at, DTYPE_F32, rows * C) < 1e-6,
              "%s: rows of rank %d differ", spec->name, k);
        CHECK(op_distance(part.call.din[0], (float *)whole.call.din[0] + at, DTYPE_F32, rows * C) < 1e-6,
              "%s: gradients of rank %d's queries differ", spec->name, k);
        for (int64_t i = 0; i < op_run_count(&whole, 1); i++)
            sum[i] += op_value(part.call.din[1], DTYPE_F32, i);
        op_run_free(&part);
    }
    float *total = xmalloc(in_bytes(&whole, 1));
    for (int64_t i = 0; i < op_run_count(&whole, 1); i++)
        total[i] = (float)sum[i];
    CHECK(op_distance(total, whole.call.din[1], DTYPE_F32, op_run_count(&whole, 1)) < 1e-6,
          "%s: gradients of keys and values do not add up", spec->name);
    free(total);
    free(sum);
    op_run_free(&whole);
}

static void test_attention_of_ranks(void **state)
{
    struct backend *be = op_run_backend(1);

    (void)state;
    for (size_t k = 0; k < n_op_cases; k++)
        if (op_cases[k].op == OP_ATTENTION)
            check_attention_split(be, &op_cases[k]);
    be->ops->destroy(be);
}

/* What a row becomes, and its gradient, has the same bits whichever rows are beside it. */
static void test_bits_of_rows_of_ranks(void **state)
{
    struct backend *be = op_run_backend(1);

    (void)state;
    for (size_t k = 0; k < n_op_cases; k++) {
        const struct op_case *spec = &op_cases[k];
        const int64_t rows = spec->in[0].shape.dims[0], cut = rows / 3;
        struct op_run whole, part;
        struct op_case slice;

        if (spec->op != OP_LINEAR && spec->op != OP_LAYERNORM && spec->op != OP_ATTENTION)
            continue;
        op_run_whole(&whole, be, spec);
        run_slice(&part, &slice, &whole, cut, rows);
        CHECK(memcmp(part.call.out, (float *)whole.call.out + cut * op_run_count(&whole, -1) / rows,
                     (size_t)op_run_count(&part, -1) * sizeof(float)) == 0,
              "%s: rows from %lld on differ", spec->name, (long long)cut);
        CHECK(memcmp(part.call.din[0], (float *)whole.call.din[0] + cut * op_run_count(&whole, 0) / rows,
                     in_bytes(&part, 0)) == 0,
              "%s: gradients of rows from %lld on differ", spec->name, (long long)cut);
        op_run_free(&part);
        op_run_free(&whole);
    }
    be->ops->destroy(be);
}

/* Attention dropout against a plain computation with the promised draws. Keys start at sample 6: not a
 * multiple of four, so blocks of draws straddle. */
static void test_attention_draws(void **state)
{
    enum { ROWS = 3, KEYS = 11, WIDTH = 4, HEADS = 2, HEAD = WIDTH / HEADS };
    struct op_case spec = {.name = "attention",
                           .op = OP_ATTENTION,
                           .attr.attention = {HEADS, 0.4f, 8, 6},
                           .n_inputs = 2,
                           .in = {{FILL_UNIT, shape2(ROWS, WIDTH)}, {FILL_UNIT, shape2(KEYS, 2 * WIDTH)}},
                           .first = 9,
                           .total = 100};
    struct backend *be = op_run_backend(1);
    struct op_run r;

    (void)state;
    op_run_init(&r, be, &spec, 1);
    op_run_forward(&r);
    for (int i = 0; i < ROWS; i++) {
        for (int h = 0; h < HEADS; h++) {
            const float *q = (float *)r.call.in[0] + i * WIDTH + h * HEAD,
                        *kv = (float *)r.call.in[1] + h * HEAD;
            double sum = 0, want[HEAD] = {0};

            for (int j = 0; j < KEYS; j++) {
                const float *key = kv + (ptrdiff_t)j * 2 * WIDTH, *value = key + WIDTH;
                double w = exp((q[0] * key[0] + q[1] * key[1]) / sqrt(HEAD));
                struct philox_block b = philox(philox_make_key(r.step.seed, 8), (uint32_t)(6 + j) / 4,
                                               (uint32_t)(9 + i), (uint32_t)r.step.step, (uint32_t)h);

                sum += w;
                if (b.v[(6 + j) % 4] >= philox_threshold(0.4f))
                    for (int d = 0; d < HEAD; d++)
                        want[d] += w * value[d] / (1 - 0.4);
            }
            for (int d = 0; d < HEAD; d++)
                assert_true(fabs(((float *)r.call.out)[i * WIDTH + h * HEAD + d] - want[d] / sum) < 1e-5);
        }
    }
    op_run_free(&r);
    be->ops->destroy(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dropout_of_ranks),
        cmocka_unit_test(test_attention_of_ranks),
        cmocka_unit_test(test_bits_of_rows_of_ranks),
        cmocka_unit_test(test_attention_draws),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
