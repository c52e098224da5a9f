/* test_metrics - metrics.jsonl: exact numbers, and what a resumed run keeps of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "common/json.h"
#include "scratch.h"
#include "worker/train/metrics.h"
#include "worker/train/result.h"

static void write_step(struct metrics *m, double step, double loss)
{
    cJSON *line = cJSON_CreateObject();
    struct err e = ERR_INIT;

    cJSON_AddStringToObject(line, "kind", "step");
    cJSON_AddNumberToObject(line, "step", step);
    json_add_double(line, "loss", loss);
    assert_int_equal(metrics_write(m, line, &e), 0);
    cJSON_Delete(line);
}

static void numbers_keep_their_bits(void **state)
{
    static const double values[] = {0.1,       1.0 / 3,  2.302585092994046, 5e-324, 1.7976931348623157e308,
                                    123456789, 0.1 + 0.2};
    char *path = scratch_path(state, "m.jsonl");
    struct metrics m;
    struct err e = ERR_INIT;

    assert_int_equal(metrics_open(&m, path, 0, &e), 0);
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        write_step(&m, 1, values[i]);
    write_step(&m, 1, NAN);
    metrics_close(&m);
    char *text = scratch_read(path), *at = text;
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        at = strstr(at, "\"loss\":") + 7;
        assert_true(strtod(at, NULL) == values[i]);
    }
    assert_non_null(strstr(at, "\"loss\":null"));
    free(text);
    free(path);
}

static void resuming_cuts(void **state)
{
    static const char old[] = "{\"kind\":\"step\",\"step\":1}\n"
                              "{\"kind\":\"step\",\"step\":2}\n"
                              "{\"kind\":\"eval\",\"step\":2,\"split\":\"validation\"}\n"
                              "garbage\n"
                              "{\"kind\":\"eval\",\"step\":2,\"split\":\"test\"}\n"
                              "{\"kind\":\"step\",\"step\":3}\n"
                              "{\"kind\":\"step\",\"step\":2";
    char *path = scratch_path(state, "m.jsonl");
    struct metrics m;
    struct err e = ERR_INIT;

    scratch_write(path, old, strlen(old));
    assert_int_equal(metrics_open(&m, path, 2, &e), 0);
    write_step(&m, 3, 1);
    metrics_close(&m);
    char *text = scratch_read(path);
    assert_string_equal(text, "{\"kind\":\"step\",\"step\":1}\n"
                              "{\"kind\":\"step\",\"step\":2}\n"
                              "{\"kind\":\"eval\",\"step\":2,\"split\":\"validation\"}\n"
                              "{\"kind\":\"step\",\"step\":3,\"loss\":1}\n");
    assert_int_equal(scratch_count(*state), 1);
    free(text);
    free(path);
}

static void unwritable_is_an_error(void **state)
{
    char *path = scratch_path(state, "none/m.jsonl");
    struct metrics m;
    struct err e = ERR_INIT;

    assert_int_equal(metrics_open(&m, path, 0, &e), -1);
    assert_non_null(strstr(e.msg, path));
    metrics_close(&m);
    free(path);
}

static void result_of_a_run_that_never_began(void **state)
{
    struct result r = {.status = "failed",
                       .reason = "no data",
                       .name = "n",
                       .task = "long_tailed",
                       .primary = "top1",
                       .loss = NAN,
                       .images_per_s = NAN,
                       .best = {-1, -1, 0},
                       .timings = RESULT_NO_TIMINGS};
    struct err e = ERR_INIT;
    const char *status;
    cJSON *doc = result_to_json(&r);

    assert_int_equal(result_write(*state, doc, &e), 0);
    cJSON_Delete(doc);
    char *path = scratch_path(state, "result.json");
    doc = json_read_file(path, 1 << 20, &e);
    assert_non_null(doc);
    assert_int_equal(json_get_str(doc, "", "status", &status, &e), 0);
    assert_string_equal(status, "failed");
    assert_true(cJSON_IsNull(json_find(doc, "best")) && cJSON_IsNull(json_find(doc, "eval")) &&
                cJSON_IsNull(json_find(doc, "images_per_s")));
    cJSON_Delete(doc);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(numbers_keep_their_bits, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(resuming_cuts, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(unwritable_is_an_error, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(result_of_a_run_that_never_began, scratch_setup, scratch_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
