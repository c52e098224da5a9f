/* test_schedule - learning rates of chosen steps, against the formulas worked out by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include "worker/train/schedule.h"

static struct jobspec make_spec(enum jobspec_schedule kind)
{
    struct jobspec s = {0};

    s.optim.lr = 0.4;
    s.optim.schedule.kind = kind;
    s.optim.schedule.gamma = 0.1;
    s.train.epochs = 10;
    return s;
}

static double lr_at(const struct jobspec *spec, int64_t step)
{
    struct schedule s;

    schedule_init(&s, spec, 10);
    return schedule_lr(&s, step);
}

static void assert_near(double a, double b)
{
    if (fabs(a - b) > 1e-12)
        fail_msg("%.17g found, %.17g expected", a, b);
}

static void constant_with_warmup(void **state)
{
    struct jobspec spec = make_spec(SCHEDULE_CONSTANT);

    (void)state;
    spec.optim.schedule.warmup_epochs = 0.4; /* 4 steps */
    assert_near(lr_at(&spec, 0), 0.1);
    assert_near(lr_at(&spec, 1), 0.2);
    assert_near(lr_at(&spec, 3), 0.4);
    assert_near(lr_at(&spec, 4), 0.4);
    assert_near(lr_at(&spec, 99), 0.4);
}

static void steps_at_milestones(void **state)
{
    struct jobspec spec = make_spec(SCHEDULE_STEP);

    (void)state;
    spec.optim.schedule.n_milestones = 2;
    spec.optim.schedule.milestones[0] = 2;
    spec.optim.schedule.milestones[1] = 5.5;
    assert_near(lr_at(&spec, 19), 0.4);
    assert_near(lr_at(&spec, 20), 0.04);
    assert_near(lr_at(&spec, 54), 0.04);
    assert_near(lr_at(&spec, 55), 0.004);
}

static void cosine_to_min(void **state)
{
    struct jobspec spec = make_spec(SCHEDULE_COSINE);

    (void)state;
    spec.optim.schedule.min_lr = 0.2;
    spec.optim.schedule.warmup_epochs = 2;
    assert_near(lr_at(&spec, 19), 0.4);
    assert_near(lr_at(&spec, 20), 0.4);                             /* the top comes after the warm-up, too */
    assert_near(lr_at(&spec, 60), 0.3);                             /* half-way */
    assert_near(lr_at(&spec, 40), 0.2 + 0.2 * (1 + sqrt(0.5)) / 2); /* a quarter */
    assert_near(lr_at(&spec, 100), 0.2);
    assert_true(lr_at(&spec, 99) > 0.2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(constant_with_warmup),
        cmocka_unit_test(steps_at_milestones),
        cmocka_unit_test(cosine_to_min),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
