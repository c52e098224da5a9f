/* test_json - what is parsed, what is refused and where, and what the getters say. */
#include "tests/unit/cm.h"
#include "common/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void expect_bad(const char *text, size_t len, const char *says)
{
    struct err e = ERR_INIT;
    cJSON *v = json_parse(text, len, &e);

    assert_null(v);
    if (!strstr(e.msg, says))
        fail_msg("\"%s\" does not say \"%s\"", e.msg, says);
}

static void test_good(void **state)
{
    (void)state;
    static const char *const texts[] = {"{}", " [1, 2.5e3, \"\\u00e9\"] \n", "\"[[[[\"", "null", "-0.5"};

    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct err e = ERR_INIT;
        cJSON *v = json_parse(texts[i], strlen(texts[i]), &e);
        if (!v)
            fail_msg("%s: %s", texts[i], e.msg);
        cJSON_Delete(v);
    }
}

static void test_bad(void **state)
{
    (void)state;
    expect_bad("", 0, "line 1, column 1");
    expect_bad("{\"a\": 1,}", 9, "line 1");
    expect_bad("{\n  \"a\": oops\n}", 15, "line 2");
    expect_bad("{} {}", 5, "something follows the value");
    expect_bad("{\"a\":1,\"a\":2}", 13, "\"a\" appears twice");
    expect_bad("[1,\0002]", 6, "byte 3 is NUL");
    expect_bad("// c\n{}", 7, "line 1");
}

static void test_depth(void **state)
{
    (void)state;
    char deep[2 * JSON_MAX_DEPTH + 3];
    struct err e = ERR_INIT;

    memset(deep, '[', JSON_MAX_DEPTH);
    memset(deep + JSON_MAX_DEPTH, ']', JSON_MAX_DEPTH);
    cJSON *v = json_parse(deep, 2 * JSON_MAX_DEPTH, &e);
    assert_non_null(v);
    cJSON_Delete(v);
    memset(deep, '[', JSON_MAX_DEPTH + 1);
    memset(deep + JSON_MAX_DEPTH + 1, ']', JSON_MAX_DEPTH + 1);
    expect_bad(deep, 2 * JSON_MAX_DEPTH + 2, "nested deeper than 64 levels");
}

static void test_getters(void **state)
{
    (void)state;
    static const char text[] = "{\"s\":\"x\",\"i\":5,\"f\":1.5,\"b\":true,\"n\":null,\"big\":1e17}";
    struct err e = ERR_INIT;
    cJSON *v = json_parse(text, strlen(text), &e);
    const char *s;
    int64_t i;
    double f;
    bool b;

    assert_int_equal(json_get_str(v, "/at", "s", &s, &e), 0);
    assert_string_equal(s, "x");
    assert_int_equal(json_get_int(v, "/at", "i", 0, 9, &i, &e), 0);
    assert_int_equal(i, 5);
    assert_int_equal(json_get_num(v, "/at", "f", &f, &e), 0);
    assert_int_equal(json_get_bool(v, "/at", "b", &b, &e), 0);
    assert_int_equal(json_get_int(v, "/at", "i", 6, 9, &i, &e), -1);
    assert_string_equal(e.msg, "/at/i: 5 found, a whole number from 6 to 9 is accepted");
    assert_int_equal(json_get_int(v, "/at", "f", 0, 9, &i, &e), -1);
    assert_int_equal(json_get_int(v, "/at", "big", 0, INT64_MAX, &i, &e), -1); /* beyond 2^53 */
    assert_int_equal(json_get_str(v, "/at", "S", &s, &e), -1);                 /* case-sensitive */
    assert_string_equal(e.msg, "/at/S: nothing found, a string is accepted");
    assert_int_equal(json_get_bool(v, "", "n", &b, &e), -1);
    assert_null(json_get_obj(v, "/at", "s", &e));
    cJSON_Delete(v);
}

/* The bytes of cJSON's own printer, whatever is printed. */
static void test_print(void **state)
{
    (void)state;
    static const double numbers[] = {0,
                                     -0.0,
                                     1,
                                     -1,
                                     0.5,
                                     1e-7,
                                     -2.5e300,
                                     5e-324,
                                     1.0 / 3,
                                     0.1 + 0.2,
                                     2147483647,
                                     2147483648.0,
                                     -2147483648.0,
                                     -2147483649.0,
                                     1795495086843.0,
                                     999999999999999.0,
                                     1e22,
                                     9223372036854775807.0,
                                     1e19};
    char text[] = {'a', '"', '\\', '/', '\b', '\f', '\n', '\r', '\t', 1, 31, 127, (char)0xc3, (char)0xa9, 0};
    cJSON *v = cJSON_CreateObject(), *list = cJSON_AddArrayToObject(v, text);

    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        cJSON_AddItemToArray(list, cJSON_CreateNumber(numbers[i]));
    cJSON_AddItemToArray(list, cJSON_CreateNumber(NAN));
    cJSON_AddItemToArray(list, cJSON_CreateNumber(-INFINITY));
    uint64_t x = 88172645463325252u; /* xorshift64: bit patterns of all magnitudes */
    for (int i = 0; i < 20000; i++) {
        double d;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(&d, &x, sizeof d);
        cJSON_AddItemToArray(list, cJSON_CreateNumber(i % 2 ? d : (double)(int64_t)x / 3e6));
    }
    cJSON_AddStringToObject(v, "", text);
    cJSON_AddItemToObject(v, "empty", cJSON_CreateArray());
    cJSON_AddItemToObject(v, "none", cJSON_CreateObject());
    cJSON_AddNullToObject(v, "null");
    cJSON_AddTrueToObject(v, "yes");
    cJSON_AddFalseToObject(v, "no");
    cJSON_AddRawToObject(v, "raw", "{\"a\":[1]}");
    char *ours = json_text(v), *theirs = cJSON_PrintUnformatted(v);
    assert_string_equal(ours, theirs);
    free(ours);
    free(theirs);
    cJSON_Delete(v);
}

static void test_print_whole(void **state)
{
    (void)state;
    cJSON *v = cJSON_CreateArray();

    cJSON_AddItemToArray(v, cJSON_CreateNumber(1e15));
    cJSON_AddItemToArray(v, cJSON_CreateNumber(-1234567890123456.0));
    cJSON_AddItemToArray(v, cJSON_CreateNumber(9007199254740991.0));
    cJSON_AddItemToArray(v, cJSON_CreateNumber(9007199254740992.0));
    char *text = json_text(v);
    assert_string_equal(text, "[1000000000000000,-1234567890123456,9007199254740991,9007199254740992]");
    free(text);
    cJSON_Delete(v);
}

static void test_print_full(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    struct buf b;
    cJSON *v = cJSON_CreateString("0123456789");

    buf_init(&b, 13);
    assert_int_equal(buf_append_str(&b, "ab", &e), 0);
    assert_int_equal(json_print(v, &b, &e), -1); /* 12 bytes do not fit into 11 */
    assert_non_null(strstr(e.msg, "buffer full"));
    assert_string_equal(b.data, "ab");
    assert_int_equal(b.len, 2);
    buf_free(&b);
    buf_init(&b, 12);
    assert_int_equal(json_print(v, &b, &e), 0);
    assert_string_equal(b.data, "\"0123456789\"");
    buf_free(&b);
    cJSON_Delete(v);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_print),   cmocka_unit_test(test_print_whole), cmocka_unit_test(test_print_full),
        cmocka_unit_test(test_good),    cmocka_unit_test(test_bad),         cmocka_unit_test(test_depth),
        cmocka_unit_test(test_getters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
