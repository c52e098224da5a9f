/* test_diagnose - of the ranks' findings the earliest is told, of equal ones the lowest rank's; every kind as
 * a sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <string.h>
#include "worker/train/diagnose.h"

static struct finding found(enum finding_kind kind, int time, const char *name, double value)
{
    struct finding f = {.kind = kind, .time = time, .element = 1234, .count = 8192, .value = value};

    strcpy(f.name, name);
    return f;
}

static void picks_the_earliest(void **state)
{
    struct finding all[4] = {{0}};
    struct diagnosis d = diagnose_pick(all, 4);

    (void)state;
    assert_int_equal(d.first.kind, FINDING_NONE);
    assert_int_equal(d.n_like_it, 0);
    all[1] = found(FINDING_VALUE, 9, "conv2", INFINITY);
    all[2] = found(FINDING_VALUE, 5, "conv1", NAN);
    all[3] = found(FINDING_VALUE, 9, "conv2", INFINITY);
    d = diagnose_pick(all, 4);
    assert_true(d.rank == 2 && d.n_like_it == 0);
    assert_string_equal(d.first.name, "conv1");
    all[2] = (struct finding){0};
    d = diagnose_pick(all, 4);
    assert_true(d.rank == 1 && d.n_like_it == 1);
    all[0] = found(FINDING_PARAM, -2, "conv1.weight", NAN);
    d = diagnose_pick(all, 4);
    assert_true(d.rank == 0 && d.n_like_it == 0 && d.first.kind == FINDING_PARAM);
}

static void check_says(struct finding f, int n_like_it, int64_t step, double loss, const char *want)
{
    struct diagnosis d = {.first = f, .rank = 2, .n_like_it = n_like_it};
    struct err e = ERR_INIT;

    assert_int_equal(diagnose_say(&d, step, loss, &e), -1);
    assert_string_equal(e.msg, want);
    assert_int_equal(e.kind, ERR_NOT_FINITE);
}

static void says_it(void **state)
{
    (void)state;
    check_says(
        found(FINDING_VALUE, 5, "layer2.0.conv1", INFINITY), 0, 37, -NAN,
        "step 37: the output of layer2.0.conv1 is not finite on rank 2 (element 1234 of 8192 is inf); the "
        "loss is nan; lower optim.lr or set train.max_grad_norm");
    check_says(
        found(FINDING_GRAD, 5, "fc", -INFINITY), 1, 37, 2.5,
        "step 37: the gradient of the output of fc is not finite on rank 2 and 1 more (element 1234 of 8192 "
        "is -inf); the loss is 2.5; lower optim.lr or set train.max_grad_norm");
    check_says(
        found(FINDING_PARAM_GRAD, 5, "fc.weight", NAN), 0, 37, 2.5,
        "step 37: the gradient of fc.weight is not finite on rank 2 (element 1234 of 8192 is nan); the loss "
        "is 2.5; lower optim.lr or set train.max_grad_norm");
    check_says(
        found(FINDING_GRAD_SUM, 5, "fc.weight", INFINITY), 3, 37, 2.5,
        "step 37: the gradient of fc.weight, summed over the ranks, is not finite on rank 2 and 3 more "
        "(element 1234 of 8192 is inf); the loss is 2.5; lower optim.lr or set train.max_grad_norm");
    check_says(
        found(FINDING_PARAM, -2, "conv1.weight", NAN), 1, 1, NAN,
        "step 1: parameter conv1.weight, before the step, is not finite on rank 2 and 1 more (element 1234 "
        "of 8192 is nan); the loss is nan; look at init.weights");
    check_says(
        found(FINDING_PARAM, -2, "conv1.weight", NAN), 0, 2, NAN,
        "step 2: parameter conv1.weight, before the step, is not finite on rank 2 (element 1234 of 8192 is "
        "nan); the loss is nan; lower optim.lr or set train.max_grad_norm");
    check_says(
        found(FINDING_INPUT, -1, "images", NAN), 0, 5, NAN,
        "step 5: the input images is not finite on rank 2 (element 1234 of 8192 is nan); the loss is nan; "
        "look at the data");
}

static void says_that_it_cannot_be_reproduced(void **state)
{
    (void)state;
    check_says(
        (struct finding){0}, 0, 37, INFINITY,
        "step 37: the loss was inf and something in the step not finite, but made again the same step is "
        "finite throughout: it cannot be reproduced, which points to a fault of a machine and not of the "
        "job; go on from the newest checkpoint with --resume");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(picks_the_earliest),
        cmocka_unit_test(says_it),
        cmocka_unit_test(says_that_it_cannot_be_reproduced),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
