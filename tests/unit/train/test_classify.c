/* test_classify - the cross entropy that evaluation reports, and the choice of what to gather. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <string.h>
#include "common/json.h"
#include "proto/estimate.h"
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

/* The estimate, which may not know the worker, says what the worker does. */
static void gather_choice_estimated(void **state)
{
    static const char text[] =
        "{\"version\": 1, \"task\": \"long_tailed\", \"data\": {\"format\": \"idx\", \"path\": \"/d\"}, "
        "\"model\": {\"arch\": \"resnet8\"}, \"batchformer\": {\"heads\": 1}, "
        "\"train\": {\"epochs\": 1, \"batch_size\": 64}}";
    struct jobspec spec;
    struct jobspec_errors errors = {0};
    struct err e = ERR_INIT;
    cJSON *doc = json_parse(text, strlen(text), &e);

    (void)state;
    assert_int_equal(jobspec_parse(doc, &spec, NULL, &errors), 0);
    cJSON_Delete(doc);
    for (int c = 4; c <= 256; c++)
        for (int ranks = 1; ranks <= 64; ranks *= 8) {
            struct estimate est;
            spec.model.width = c / 64.0;
            struct estimate_query q = {&spec, estimate_machines, ranks};
            assert_int_equal(estimate_job(&q, &est, &e), 0);
            assert_int_equal(est.gather.features, long_tailed_gather(ranks, c) == GATHER_ROWS);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(row_loss),
        cmocka_unit_test(gather_choice),
        cmocka_unit_test(gather_choice_estimated),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
