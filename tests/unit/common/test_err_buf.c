/* test_err_buf - messages that carry their place, and buffers that never pass their maximum. */
#include "tests/unit/cm.h"
#include "common/arena.h"
#include "common/buf.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void test_err(void **state)
{
    (void)state;
    struct err e = ERR_INIT;

    assert_int_equal(err_set_kind(&e, ERR_SPEC, "value %d", 7), -1);
    assert_int_equal(err_wrap(&e, "job %d", 17), -1);
    assert_string_equal(e.msg, "job 17: value 7");
    assert_int_equal(e.kind, ERR_SPEC);
    errno = ENOSPC;
    err_set_errno(&e, "store");
    assert_string_equal(e.msg, "store: No space left on device");
    assert_int_equal(err_set(NULL, "dropped"), -1);
    assert_int_equal(err_wrap(NULL, "dropped"), -1);
}

static void test_err_long_message_is_cut(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    char big[4000];

    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = 0;
    err_set(&e, "%s", big);
    err_wrap(&e, "%s", big);
    assert_int_equal(strlen(e.msg), sizeof e.msg - 1);
}

static void test_buf_limit(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct buf b;

    buf_init(&b, 10);
    assert_int_equal(buf_append_str(&b, "12345678", &e), 0);
    assert_int_equal(buf_append_str(&b, "901", &e), -1);
    assert_string_equal(e.msg, "buffer full: 11 bytes, at most 10");
    assert_string_equal(b.data, "12345678"); /* unchanged */
    assert_int_equal(buf_printf(&b, &e, "%d", 90), 0);
    assert_string_equal(b.data, "1234567890");
    assert_null(buf_reserve(&b, (size_t)-1, &e));
    buf_consume(&b, 4);
    assert_string_equal(b.data, "567890");
    buf_consume(&b, 6);
    assert_int_equal(b.len, 0);
    buf_free(&b);
    buf_free(&b);
}

static void test_buf_grows(void **state)
{
    (void)state;
    struct buf b;

    buf_init(&b, 1 << 20);
    for (int i = 0; i < 10000; i++)
        assert_int_equal(buf_printf(&b, NULL, "%04d,", i), 0);
    assert_int_equal(b.len, 50000);
    assert_memory_equal(b.data + 9999 * 5, "9999,", 5);
    buf_free(&b);
}

static void test_arena(void **state)
{
    (void)state;
    struct arena a = {0};
    char *first = arena_strdup(&a, "first");

    for (int i = 0; i < 1000; i++) {
        char *p = arena_alloc(&a, 100);
        assert_int_equal((uintptr_t)p % 16, 0);
        for (int k = 0; k < 100; k++)
            assert_int_equal(p[k], 0);
        memset(p, 0xee, 100);
    }
    char *big = arena_alloc(&a, 1 << 20);
    memset(big, 1, 1 << 20);
    assert_string_equal(first, "first");
    arena_free(&a);
    arena_free(&a);
}

static void test_clock_and_log(void **state)
{
    (void)state;
    char when[32], line[256];
    int fds[2];

    clock_iso(0, when);
    assert_string_equal(when, "1970-01-01T00:00:00.000Z");
    clock_iso(1769851800123, when);
    assert_string_equal(when, "2026-01-31T09:30:00.123Z");
    assert_int_equal(pipe(fds), 0);
    struct log l = {.fd = fds[1], .level = LOG_INFO, .component = "test"};
    log_debug(&l, "not written");
    log_warn(&l, "two\nlines %d", 1);
    ssize_t n = read(fds[0], line, sizeof line - 1);
    assert_true(n > 0);
    line[n] = 0;
    assert_string_equal(line + 24, " WARN  test: two lines 1\n"); /* one event, one line */
    log_error(NULL, "nowhere");
    enum log_level level;
    struct err e = ERR_INIT;
    assert_int_equal(log_level_parse("warn", &level, &e), 0);
    assert_int_equal(level, LOG_WARN);
    assert_int_equal(log_level_parse("loud", &level, &e), -1);
    assert_non_null(strstr(e.msg, "'loud'"));
    close(fds[0]);
    close(fds[1]);
}

/* The line that the log writes, without its newline. */
static void logged(enum log_format format, const char *message, char *line, size_t size)
{
    int fds[2];

    assert_int_equal(pipe(fds), 0);
    struct log l = {.fd = fds[1], .level = LOG_DEBUG, .component = "test", .format = format};
    log_error(&l, "%s", message);
    ssize_t n = read(fds[0], line, size - 1);
    assert_true(n > 1 && line[n - 1] == '\n');
    line[n - 1] = 0;
    close(fds[0]);
    close(fds[1]);
}

static void expect_json(const char *message, const char *want, double job)
{
    char line[4200];

    logged(LOG_JSON, message, line, sizeof line);
    cJSON *v = json_parse(line, strlen(line), NULL);
    if (!v)
        fail_msg("not JSON: %s", line);
    assert_string_equal(cJSON_GetStringValue(json_find(v, "message")), want);
    assert_string_equal(cJSON_GetStringValue(json_find(v, "level")), "error");
    assert_string_equal(cJSON_GetStringValue(json_find(v, "component")), "test");
    assert_int_equal(strlen(cJSON_GetStringValue(json_find(v, "time"))), 24);
    if (job < 0)
        assert_null(json_find(v, "job"));
    else
        assert_true(cJSON_GetNumberValue(json_find(v, "job")) == job);
    assert_int_equal(cJSON_GetArraySize(v), job < 0 ? 4 : 5);
    cJSON_Delete(v);
}

static void test_log_as_json(void **state)
{
    enum log_format format;
    char line[4200], big[3000];
    struct err e = ERR_INIT;

    (void)state;
    expect_json("plain", "plain", -1);
    expect_json("job 12 running: running on n", "job 12 running: running on n", 12);
    expect_json("job 7: asked to stop", "job 7: asked to stop", 7);
    expect_json("job 7th", "job 7th", -1);
    expect_json("job -1: no", "job -1: no", -1);
    expect_json("12 jobs", "12 jobs", -1);
    expect_json("say \"no\" to C:\\", "say \"no\" to C:\\", -1);
    expect_json("two\nlines\x1b[2J", "two lines [2J", -1);
    expect_json("näh → \xff\xc3", "näh → \xEF\xBF\xBD\xEF\xBF\xBD", -1);
    memset(big, '"', sizeof big - 1);
    big[sizeof big - 1] = 0;
    logged(LOG_JSON, big, line, sizeof line);
    assert_int_equal(strlen(line) < 4096, true);
    cJSON *v = json_parse(line, strlen(line), NULL);
    assert_non_null(v); /* cut, and still whole */
    cJSON_Delete(v);
    logged(LOG_TEXT, big, line, sizeof line);
    assert_int_equal(strlen(line), 24 + strlen(" ERROR test: ") + 2047);
    logged(LOG_TEXT, "job 1: \x1b[2J\r", line, sizeof line);
    assert_string_equal(line + 24, " ERROR test: job 1:  [2J ");
    assert_int_equal(log_format_parse("json", &format, &e), 0);
    assert_int_equal(format, LOG_JSON);
    assert_int_equal(log_format_parse("text", &format, &e), 0);
    assert_int_equal(format, LOG_TEXT);
    assert_int_equal(log_format_parse("xml", &format, &e), -1);
    assert_non_null(strstr(e.msg, "'xml'"));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_err),         cmocka_unit_test(test_err_long_message_is_cut),
        cmocka_unit_test(test_buf_limit),   cmocka_unit_test(test_buf_grows),
        cmocka_unit_test(test_arena),       cmocka_unit_test(test_clock_and_log),
        cmocka_unit_test(test_log_as_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
