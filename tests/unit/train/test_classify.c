/* test_classify - the cross entropy that evaluation reports, and the choice of what to gather. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include "worker/tasks/classify.h"
#include "worker/tasks/long_tailed.h"

static void row_loss(void **state)
{
    const float even[4] = {2, 2, 2, 2}, big[2] = {1000, 0}, two[2] = {0, 1};

    (void)state;
    assert_true(fabs(classify_row_loss(even, 4, 1) - log(4)) < 1e-15);
    assert_true(classify_row_loss(big, 2, 0) == 0);
    assert_true(classify_row_loss(big, 2, 1) == 1000); /* no overflow */
    assert_true(fabs(classify_row_loss(two, 2, 1) - log1p(exp(-1))) < 1e-15);
}

static void gather_choice(void **state)
{
    (void)state;
    assert_int_equal(long_tailed_gather(1, 16), GATHER_KEYS_VALUES);
    assert_int_equal(long_tailed_gather(8, 16), GATHER_ROWS); /* the projection is next to nothing */
    assert_int_equal(long_tailed_gather(8, 64), GATHER_KEYS_VALUES);
    assert_int_equal(long_tailed_gather(64, 2048), GATHER_KEYS_VALUES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(row_loss),
        cmocka_unit_test(gather_choice),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
