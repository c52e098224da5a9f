/* test_optim - segments cover all weights once and keep unlike parameters apart; one step is
 * torch.optim.SGD's; clipping is torch's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_parameters_are_one_segment),
        cmocka_unit_test(unlike_parameters_are_kept_apart),
        cmocka_unit_test(steps_use_the_segment),
        cmocka_unit_test(measuring_clipping_skipping),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
