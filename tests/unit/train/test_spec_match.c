/* test_spec_match - what may differ between a checkpoint's spec and a job's, and what may not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include "common/json.h"
#include "worker/train/spec_match.h"

static const char base[] = "{\"name\":\"a\",\"seed\":1,\"data\":{\"format\":\"idx\",\"path\":\"/x\"},"
                           "\"train\":{\"epochs\":2,\"batch_size\":32},\"resources\":{\"ranks\":1}}";

static int match(const char *now_text, struct err *e)
{
    cJSON *saved = json_parse(base, strlen(base), e), *now = json_parse(now_text, strlen(now_text), e);

    assert_true(saved && now);
    int rc = spec_match(saved, now, e);
    cJSON_Delete(saved);
    cJSON_Delete(now);
    return rc;
}

static void free_fields(void **state)
{
    struct err e = ERR_INIT;

    (void)state;
    assert_int_equal(match(base, &e), 0);
    assert_int_equal(
        match(
            "{\"name\":\"b\",\"seed\":1,\"data\":{\"format\":\"idx\",\"path\":\"/y\"},"
            "\"train\":{\"epochs\":9,\"batch_size\":32,\"autotune\":true,\"winograd\":false},\"resources\":{"
            "\"ranks\":4,\"more\":1}}",
            &e),
        0);
}

static void null_is_as_good_as_absent(void **state)
{
    struct err e = ERR_INIT;

    (void)state;
    assert_int_equal(
        match("{\"name\":\"a\",\"seed\":1,\"data\":{\"format\":\"idx\",\"path\":\"/x\"},\"optim\":null,"
              "\"train\":{\"epochs\":2,\"batch_size\":32,\"ema\":null},\"resources\":{}}",
              &e),
        0);
}

static void expect_named(const char *now, const char *pointer, const char *saved_value, const char *now_value)
{
    struct err e = ERR_INIT;

    assert_int_equal(match(now, &e), -1);
    if (!strstr(e.msg, pointer) || !strstr(e.msg, saved_value) || !strstr(e.msg, now_value))
        fail_msg("\"%s\" names not all of %s, %s, %s", e.msg, pointer, saved_value, now_value);
}

static void bound_fields(void **state)
{
    (void)state;
    expect_named("{\"name\":\"a\",\"seed\":2,\"data\":{\"format\":\"idx\",\"path\":\"/x\"},"
                 "\"train\":{\"epochs\":2,\"batch_size\":32},\"resources\":{}}",
                 "/seed", "1", "2");
    expect_named("{\"name\":\"a\",\"seed\":1,\"data\":{\"format\":\"idx\",\"path\":\"/x\"},"
                 "\"train\":{\"epochs\":2,\"batch_size\":64},\"resources\":{}}",
                 "/train/batch_size", "32", "64");
    expect_named("{\"name\":\"a\",\"seed\":1,\"data\":{\"format\":\"idx\"},\"model\":{\"arch\":\"r\"},"
                 "\"train\":{\"epochs\":2,\"batch_size\":32},\"resources\":{}}",
                 "/model", "nothing", "{");
    expect_named("{\"name\":\"a\",\"seed\":1,\"data\":{\"path\":\"/x\"},"
                 "\"train\":{\"epochs\":2,\"batch_size\":32},\"resources\":{}}",
                 "/data/format", "idx", "nothing");
    expect_named("{\"name\":\"a\",\"seed\":null,\"data\":{\"format\":\"idx\",\"path\":\"/x\"},"
                 "\"train\":{\"epochs\":2,\"batch_size\":32},\"resources\":{}}",
                 "/seed", "1", "null");
    expect_named("{\"name\":\"a\",\"seed\":1,\"data\":{\"format\":\"idx\",\"path\":\"/x\"},"
                 "\"train\":{\"epochs\":2,\"batch_size\":32,\"ema\":0.9},\"resources\":{}}",
                 "/train/ema", "nothing", "0.9");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(free_fields),
        cmocka_unit_test(null_is_as_good_as_absent),
        cmocka_unit_test(bound_fields),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
