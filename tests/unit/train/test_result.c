/* test_result - result.json carries the receipts, and an empty list when there was no run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include "common/json.h"
#include "worker/train/result.h"

static void carries_receipts(void **state)
{
    struct receipts rs;
    const struct receipt one = {.step = 64, .loss = 0.1, .weights = hash_bytes("w", 1)};
    struct result r = {.status = "succeeded", .best = {-1, -1, 0}, .loss = NAN, .images_per_s = NAN};

    (void)state;
    receipts_init(&rs, 7);
    receipts_feed(&rs, 1);
    receipts_add(&rs, &one);
    r.receipts = &rs;
    cJSON *doc = result_to_json(&r);
    const cJSON *list = json_find(doc, "receipts");
    assert_int_equal(cJSON_GetArraySize(list), 1);
    assert_int_equal(json_find(list->child, "step")->valueint, 64);
    assert_string_equal(json_find(list->child, "order")->valuestring, rs.order.s);
    assert_string_equal(json_find(list->child, "loss")->valuestring, "0.10000000000000001");
    assert_string_equal(json_find(list->child, "weights")->valuestring, hash_bytes("w", 1).s);
    assert_int_equal(json_find(doc, "order_from")->valueint, 7);
    cJSON_Delete(doc);
}

static void no_run_no_receipts(void **state)
{
    struct result r = {.status = "failed", .best = {-1, -1, 0}, .loss = NAN, .images_per_s = NAN};
    cJSON *doc = result_to_json(&r);

    (void)state;
    assert_true(cJSON_IsArray(json_find(doc, "receipts")));
    assert_int_equal(cJSON_GetArraySize(json_find(doc, "receipts")), 0);
    cJSON_Delete(doc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(carries_receipts),
        cmocka_unit_test(no_run_no_receipts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
