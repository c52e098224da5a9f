/* test_optim - segments cover all weights once and keep unlike parameters apart; one step is
 * torch.optim.SGD's; clipping is torch's; the moving average and its place; what a backend lacks.
 * tests/ops/test_optim_golden.c has the other optimisers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "fake_backend.h"
#include "worker/train/optim.h"

static void check_cover(const struct optim_segment *v, int n, size_t n_weights)
{
    size_t at = 0;

    for (int i = 0; i < n; i++) {
        assert_int_equal(v[i].first, at);
        assert_true(v[i].count > 0);
        at += v[i].count;
    }
    assert_int_equal(at, n_weights);
}

static void equal_parameters_are_one_segment(void **state)
{
    struct params *ps = fake_params(1, 3);
    struct optim_segment *v;

    (void)state;
    assert_int_equal(optim_segments(ps, 0.01, &v), 1);
    check_cover(v, 1, ps->n_weights);
    assert_true(v[0].weight_decay == 0.01 && v[0].lr_scale == 1);
    free(v);
    params_destroy(ps);
}

static void unlike_parameters_are_kept_apart(void **state)
{
    struct params *ps = fake_params(1, 3);
    struct param *module = params_find(ps, "batchformer.w");
    struct optim_segment *v;

    (void)state;
    module->lr_scale = 10;
    module->weight_decay = 0;
    params_find(ps, "layer.bias")->weight_decay = 0.01; /* says what the optimiser says anyway */
    assert_int_equal(optim_segments(ps, 0.01, &v), 3);
    check_cover(v, 3, ps->n_weights);
    assert_int_equal(v[1].first, module->offset);
    assert_int_equal(v[1].count, 16); /* 4 floats and their padding */
    assert_true(v[1].lr_scale == 10 && v[1].weight_decay == 0);
    assert_true(v[0].weight_decay == 0.01 && v[2].weight_decay == 0.01);
    free(v);
    params_destroy(ps);
}

static void steps_use_the_segment(void **state)
{
    struct jobspec spec = {.optim = {.momentum = 0.5, .weight_decay = 0.25}};
    struct params *ps = fake_params(1, 3);
    struct param *module = params_find(ps, "batchformer.w"), *layer = params_find(ps, "layer.bias");
    struct err e = ERR_INIT;

    (void)state;
    module->lr_scale = 2;
    module->weight_decay = 0;
    struct optim *o = optim_create(&spec, ps, &e);
    assert_non_null(o);
    layer->value[0] = module->value[0] = 8;
    for (int step = 0; step < 2; step++) {
        layer->grad[0] = module->grad[0] = 1;
        assert_int_equal(optim_step(o, &(struct step_scalars){.lr = 0.5}, &e), 0);
    }
    /* layer: g = 1 + 2 = 3, m = 3, w = 6.5; g = 1 + 1.625, m = 1.5 + 2.625 = 4.125, w = 4.4375 */
    assert_true(layer->value[0] == 4.4375f);
    /* module: lr 1, no decay: m = 1, w = 7; m = 1.5, w = 5.5 */
    assert_true(module->value[0] == 5.5f);
    optim_destroy(o);
    params_destroy(ps);
}

static void measuring_clipping_skipping(void **state)
{
    struct jobspec spec = {0};
    struct params *ps = fake_params(1, 3);
    struct err e = ERR_INIT;
    struct optim *o = optim_create(&spec, ps, &e);
    struct step_scalars s = {.lr = 1, .max_grad_norm = 10};
    double loss = 0.25;
    float w0 = ps->weights[0];

    (void)state;
    ps->grads[0] = 3;
    ps->grads[5] = 4;
    assert_int_equal(optim_measure(o, &loss, &s, &e), 0);
    assert_true(s.grad_norm == 5 && s.loss == 0.25 && s.grad_not_finite == 0 && s.loss_not_finite == 0);
    assert_int_equal(optim_step(o, &s, &e), 0); /* below the limit: as it is */
    assert_true(ps->weights[0] == w0 - 3);
    s.max_grad_norm = 1;
    assert_int_equal(optim_step(o, &s, &e), 0);
    assert_true(fabs(ps->weights[0] - (w0 - 3.6)) < 1e-5);
    w0 = ps->weights[0];
    ps->grads[5] = NAN;
    assert_int_equal(optim_measure(o, NULL, &s, &e), 0);
    assert_true(s.loss == 0 && s.grad_not_finite == 1);
    assert_int_equal(optim_step(o, &s, &e), 0); /* nothing is updated */
    assert_true(ps->weights[0] == w0);
    optim_destroy(o);
    params_destroy(ps);
}

/* The average follows every update and no other; between use_average and use_weights it is in the weights'
 * place, and the weights come back with the same bits. */
static void the_average_takes_the_place_of_the_weights(void **state)
{
    struct jobspec spec = {.optim = {.ema = 0.75}};
    struct params *ps = fake_params(1, 3);
    struct err e = ERR_INIT;
    struct optim *o = optim_create(&spec, ps, &e);
    struct step_scalars s = {.lr = 1};
    const size_t bytes = ps->n_weights * sizeof(float);
    float *before = xmalloc(bytes);

    (void)state;
    assert_int_equal(o->states.n, 2);
    assert_string_equal(o->states.v[0].name, "momentum");
    assert_string_equal(o->states.v[1].name, "ema");
    ps->weights[0] = 8;
    assert_int_equal(optim_begin(o, &e), 0);
    assert_memory_equal(o->average, ps->weights, bytes);
    ps->grads[0] = 4;
    assert_int_equal(optim_step(o, &s, &e), 0);
    assert_true(ps->weights[0] == 4 && o->average[0] == 7);
    s.loss_not_finite = 1;
    assert_int_equal(optim_step(o, &s, &e), 0);
    assert_true(ps->weights[0] == 4 && o->average[0] == 7);
    memcpy(before, ps->weights, bytes);
    assert_int_equal(optim_use_average(o, &e), 0);
    assert_memory_equal(ps->weights, o->average, bytes);
    assert_int_equal(optim_use_weights(o, &e), 0);
    assert_memory_equal(ps->weights, before, bytes);
    assert_true(o->average[0] == 7);
    free(before);
    optim_destroy(o);
    params_destroy(ps);
}

static void without_an_average_nothing_moves(void **state)
{
    struct jobspec spec = {0};
    struct params *ps = fake_params(1, 3);
    struct err e = ERR_INIT;
    struct optim *o = optim_create(&spec, ps, &e);
    float w = ps->weights[0];

    (void)state;
    assert_true(o->states.n == 1 && !o->average);
    ps->grads[0] = w + 1;
    assert_int_equal(optim_begin(o, &e), 0);
    assert_int_equal(optim_use_average(o, &e), 0);
    assert_int_equal(optim_use_weights(o, &e), 0);
    assert_true(ps->weights[0] == w && ps->grads[0] == w + 1);
    optim_destroy(o);
    params_destroy(ps);
}

static void expect_refused(struct backend *be, const struct jobspec *spec, const char *message)
{
    struct params *ps = fake_params(1, 3);
    struct err e = ERR_INIT;
    struct backend *own = ps->backend;

    ps->backend = be;
    assert_null(optim_create(spec, ps, &e));
    assert_string_equal(e.msg, message);
    ps->backend = own;
    params_destroy(ps);
}

static void a_backend_that_lacks_a_sweep_is_named(void **state)
{
    struct flat_ops flat = *fake_backend.ops->flat;
    struct backend_ops ops = *fake_backend.ops;
    struct backend plain = {.ops = &ops};

    (void)state;
    flat.ema = NULL;
    ops.flat = &flat;
    ops.name = "plain";
    expect_refused(&fake_backend, &(struct jobspec){.optim = {.kind = OPTIM_ADAM}},
                   "backend fake has no optimiser adam (/optim/kind)");
    expect_refused(&fake_backend, &(struct jobspec){.optim = {.kind = OPTIM_ADAMW}},
                   "backend fake has no optimiser adamw (/optim/kind)");
    expect_refused(&fake_backend, &(struct jobspec){.optim = {.kind = OPTIM_LARS}},
                   "backend fake has no optimiser lars (/optim/kind)");
    expect_refused(&plain, &(struct jobspec){.optim = {.ema = 0.9}},
                   "backend plain has no moving average of weights (/optim/ema)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_parameters_are_one_segment),
        cmocka_unit_test(unlike_parameters_are_kept_apart),
        cmocka_unit_test(steps_use_the_segment),
        cmocka_unit_test(measuring_clipping_skipping),
        cmocka_unit_test(the_average_takes_the_place_of_the_weights),
        cmocka_unit_test(without_an_average_nothing_moves),
        cmocka_unit_test(a_backend_that_lacks_a_sweep_is_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
