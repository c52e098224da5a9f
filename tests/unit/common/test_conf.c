/* test_conf - one option table, three sources, errors that name the option. */
#include "tests/unit/cm.h"
#include "common/conf.h"
#include "common/fsutil.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct opts {
    char *dir;
    int64_t slots;
    bool verbose;
    struct conf_list listen;
};

static const struct conf_option rows[] = {
    {"state-dir", 'd', CONF_STR, offsetof(struct opts, dir), "DIR", "TEST_CONF_DIR", 0, 0, "where"},
    {"slots", 0, CONF_INT, offsetof(struct opts, slots), "N", NULL, 1, 64, "how many"},
    {"verbose", 'v', CONF_FLAG, offsetof(struct opts, verbose), NULL, NULL, 0, 0, "say more"},
    {"listen", 0, CONF_LIST, offsetof(struct opts, listen), "ADDR", NULL, 0, 0, "address"},
};

enum { N_ROWS = sizeof rows / sizeof *rows };

static int parse(struct opts *o, struct conf_operands *rest, struct err *e, int argc, char **argv)
{
    return conf_from_args(rows, N_ROWS, o, argc, argv, rest, e);
}

static void test_args(void **state)
{
    (void)state;
    char *argv[] = {"prog", "one", "--slots=3", "-d", "/a", "--listen", "x",
                    "-v",   "two", "--listen",  "y",  "--", "-z"};
    struct opts o = {0};
    struct conf_operands rest;
    struct err e = ERR_INIT;

    assert_int_equal(parse(&o, &rest, &e, 13, argv), 0);
    assert_string_equal(o.dir, "/a");
    assert_int_equal(o.slots, 3);
    assert_true(o.verbose);
    assert_int_equal(o.listen.n_items, 2);
    assert_string_equal(o.listen.items[1], "y");
    assert_int_equal(rest.n, 3);
    assert_string_equal(rest.v[0], "one");
    assert_string_equal(rest.v[2], "-z");
    conf_free(rows, N_ROWS, &o);
}

static void expect_usage(int argc, char **argv, const char *says)
{
    struct opts o = {0};
    struct conf_operands rest;
    struct err e = ERR_INIT;

    assert_int_equal(parse(&o, &rest, &e, argc, argv), -1);
    assert_int_equal(e.kind, ERR_USAGE);
    if (!strstr(e.msg, says))
        fail_msg("\"%s\" does not say \"%s\"", e.msg, says);
    conf_free(rows, N_ROWS, &o);
}

static void test_bad_args(void **state)
{
    (void)state;
    expect_usage(2, (char *[]){"p", "--slot"}, "did you mean --slots");
    expect_usage(2, (char *[]){"p", "--slots"}, "--slots needs a value: N");
    expect_usage(2, (char *[]){"p", "--slots=65"}, "'65' found, a whole number from 1 to 64 is accepted");
    expect_usage(2, (char *[]){"p", "--slots=3x"}, "'3x' found");
    expect_usage(2, (char *[]){"p", "--verbose=1"}, "--verbose takes no value");
    expect_usage(2, (char *[]){"p", "-q"}, "unknown option '-q'");
}

static void test_precedence(void **state)
{
    (void)state;
    char path[] = "/tmp/test_conf.XXXXXX";
    int fd = mkstemp(path);
    static const char text[] =
        "{\"state_dir\": \"/file\", \"slots\": 5, \"verbose\": true, \"listen\": [\"a\", \"b\"]}";
    struct opts o = {0};
    struct conf_operands rest;
    struct err e = ERR_INIT;

    assert_int_equal(fs_write_all(fd, text, strlen(text), &e), 0);
    assert_int_equal(conf_from_file(rows, N_ROWS, &o, path, &e), 0);
    assert_string_equal(o.dir, "/file");
    assert_int_equal(o.listen.n_items, 2);
    setenv("TEST_CONF_DIR", "/env", 1);
    assert_int_equal(conf_from_env(rows, N_ROWS, &o, &e), 0);
    assert_string_equal(o.dir, "/env");
    assert_int_equal(parse(&o, &rest, &e, 3, (char *[]){"p", "--state-dir", "/arg"}), 0);
    assert_string_equal(o.dir, "/arg");
    assert_int_equal(o.slots, 5);
    unsetenv("TEST_CONF_DIR");
    conf_free(rows, N_ROWS, &o);
    close(fd);
    unlink(path);
}

static void test_bad_file(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"{\"slot\": 1}", "unknown key \"slot\""},
        {"{\"slots\": \"5\"}", "/slots: \"5\" found, a whole number is accepted"},
        {"{\"listen\": [1]}", "an array of strings is accepted"},
        {"[]", "an object is accepted"},
        {"{", "not valid JSON"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[] = "/tmp/test_conf.XXXXXX";
        int fd = mkstemp(path);
        struct opts o = {0};
        struct err e = ERR_INIT;
        assert_int_equal(fs_write_all(fd, cases[i].text, strlen(cases[i].text), &e), 0);
        assert_int_equal(conf_from_file(rows, N_ROWS, &o, path, &e), -1);
        if (!strstr(e.msg, cases[i].says) || !strstr(e.msg, path))
            fail_msg("\"%s\" does not say \"%s\" and the file", e.msg, cases[i].says);
        conf_free(rows, N_ROWS, &o);
        close(fd);
        unlink(path);
    }
}

static void test_nearest(void **state)
{
    (void)state;
    static const char *const words[] = {"batch_size", "epochs", "seed"};

    assert_string_equal(conf_nearest("batchsize", words, 3), "batch_size");
    assert_string_equal(conf_nearest("epoch", words, 3), "epochs");
    assert_null(conf_nearest("zzzzzzzzzzzzzz", words, 3));
}

static void test_values(void **state)
{
    (void)state;
    static const char *const texts_a[] = {"/a", "3", "true", "[x, y]"}, *const texts_b[] = {"none", "0",
                                                                                            "false", "[]"};
    char *argv[] = {"prog", "--slots=3", "-d", "/a", "--listen", "x", "-v", "--listen", "y"}, text[64],
         cut[4];
    struct opts a = {0}, b = {0}, same = {0};
    struct conf_operands rest;

    assert_int_equal(parse(&a, &rest, NULL, 9, argv), 0);
    assert_int_equal(parse(&same, &rest, NULL, 9, argv), 0);
    for (int i = 0; i < N_ROWS; i++) {
        conf_value_text(&rows[i], &a, text, sizeof text);
        assert_string_equal(text, texts_a[i]);
        conf_value_text(&rows[i], &b, text, sizeof text);
        assert_string_equal(text, texts_b[i]);
        assert_true(conf_value_equal(&rows[i], &a, &same) && conf_value_equal(&rows[i], &b, &b));
        assert_false(conf_value_equal(&rows[i], &a, &b) || conf_value_equal(&rows[i], &b, &a));
        conf_value_swap(&rows[i], &a, &b);
        assert_true(conf_value_equal(&rows[i], &b, &same));
        conf_value_text(&rows[i], &a, text, sizeof text);
        assert_string_equal(text, texts_b[i]);
    }
    b.listen.items[1][0] = 'z';
    assert_false(conf_value_equal(&rows[3], &b, &same));
    conf_value_text(&rows[3], &b, cut, sizeof cut);
    assert_string_equal(cut, "[x,");
    conf_free(rows, N_ROWS, &a);
    conf_free(rows, N_ROWS, &b);
    conf_free(rows, N_ROWS, &same);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_args),     cmocka_unit_test(test_bad_args), cmocka_unit_test(test_precedence),
        cmocka_unit_test(test_bad_file), cmocka_unit_test(test_nearest),  cmocka_unit_test(test_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
