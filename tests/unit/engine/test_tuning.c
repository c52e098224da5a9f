/* test_tuning - the table of engines: entries, what is counted, rows of other ranks, and the file. */
#include "tests/unit/cm.h"
#include "scratch.h"
#include "worker/engine/tuning.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Keys are any text. */
static const char odd[] = "cudnn 91900 \"GPU\" \\ × é (256, 56, 56, 64) 3x3/1";

static void check_counts(const struct tuning *t, int found, int chosen, int missed)
{
    const struct tuning_counts n = tuning_counts(t);

    assert_int_equal(n.found, found);
    assert_int_equal(n.chosen, chosen);
    assert_int_equal(n.missed, missed);
}

static void test_entries(void **state)
{
    (void)state;
    struct tuning *t = tuning_create(true, NULL);

    assert_int_equal(tuning_size(t), 0);
    assert_null(tuning_lookup(t, "a"));
    tuning_put(t, "a", "eng1");
    tuning_put(t, odd, "eng2");
    tuning_put(t, "ab", "eng3");
    tuning_put(t, "a", "eng4");
    assert_int_equal(tuning_size(t), 3);
    assert_string_equal(tuning_lookup(t, "a"), "eng4");
    assert_string_equal(tuning_lookup(t, odd), "eng2");
    assert_null(tuning_lookup(t, "abc"));
    assert_null(tuning_lookup(t, ""));
    tuning_put(t, "ab", tuning_lookup(t, "ab"));
    assert_string_equal(tuning_lookup(t, "ab"), "eng3");
    tuning_destroy(t);
    tuning_destroy(NULL);
}

static void test_the_rank_that_measures(void **state)
{
    (void)state;
    struct tuning *t = tuning_create(true, NULL);

    assert_true(tuning_measures(t));
    tuning_record(t, "a", "eng1");
    check_counts(t, 0, 1, 0);
    tuning_record(t, "a", "eng1");
    check_counts(t, 1, 1, 0);
    tuning_record(t, "a", "eng2"); /* what the table said was not to be had */
    check_counts(t, 1, 2, 0);
    assert_string_equal(tuning_lookup(t, "a"), "eng2");
    assert_int_equal(tuning_size(t), 1);
    tuning_destroy(t);
}

/* Its table stays rank 0's, whatever it had to take. */
static void test_another_rank(void **state)
{
    (void)state;
    struct tuning *t = tuning_create(false, NULL);

    assert_false(tuning_measures(t));
    tuning_put(t, "a", "eng1");
    tuning_record(t, "a", "eng1");
    tuning_record(t, "a", "eng2");
    tuning_record(t, "b", "eng1");
    check_counts(t, 1, 0, 2);
    assert_string_equal(tuning_lookup(t, "a"), "eng1");
    assert_null(tuning_lookup(t, "b"));
    tuning_destroy(t);
}

static void test_rows(void **state)
{
    (void)state;
    struct tuning *t = tuning_create(false, NULL);

    assert_int_equal(tuning_rows(t, 7), 7); /* of no program yet */
    tuning_set_rows(t, 3, 2);
    assert_int_equal(tuning_rows(t, 3), 2);
    assert_int_equal(tuning_rows(t, 6), 4); /* two views of each row */
    assert_int_equal(tuning_rows(t, 5), 5); /* the global mini-batch, which is one for all */
    assert_int_equal(tuning_rows(t, 0), 0);
    tuning_set_rows(t, 8, 8);
    assert_int_equal(tuning_rows(t, 8), 8);
    tuning_set_rows(t, 0, 1); /* a rank without rows */
    assert_int_equal(tuning_rows(t, 4), 4);
    tuning_destroy(t);
}

static void test_file(void **state)
{
    char *path = scratch_path(state, "plans.json");
    struct tuning *t = tuning_create(true, NULL), *other = tuning_create(false, NULL);
    struct err e = ERR_INIT;

    assert_int_equal(tuning_save(t, path, &e), 0); /* empty */
    tuning_put(other, "old", "eng0");
    assert_int_equal(tuning_load(other, path, &e), 0);
    assert_int_equal(tuning_size(other), 0);

    tuning_put(t, "a", "eng1_k2=5");
    tuning_put(t, odd, "eng2");
    assert_int_equal(tuning_save(t, path, &e), 0);
    assert_int_equal(scratch_count(*state), 1); /* nothing is left beside it */
    tuning_put(other, "old", "eng0");
    assert_int_equal(tuning_load(other, path, &e), 0);
    assert_int_equal(tuning_size(other), 2);
    assert_string_equal(tuning_lookup(other, "a"), "eng1_k2=5");
    assert_string_equal(tuning_lookup(other, odd), "eng2");
    assert_false(tuning_measures(other));
    check_counts(other, 0, 0, 0);

    char *a = tuning_text(t), *b = tuning_text(other), *file = scratch_read(path);
    assert_string_equal(a, b); /* in the same order */
    assert_string_equal(a, file);
    free(a);
    free(b);
    free(file);
    tuning_destroy(t);
    tuning_destroy(other);
    free(path);
}

/* What is wrong is named, with the file, and the table stays as it was. */
static void test_bad_files(void **state)
{
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"", "not valid JSON"},
        {"[]", "/version: nothing found"},
        {"{\"plans\": {}}", "/version: nothing found"},
        {"{\"version\": 2, \"plans\": {}}", "/version: 2 found"},
        {"{\"version\": 1}", "/plans: nothing found, an object is accepted"},
        {"{\"version\": 1, \"plans\": []}", "/plans: [] found, an object is accepted"},
        {"{\"version\": 1, \"plans\": {\"a\": \"eng1\", \"b\": 3}}",
         "/plans/b: 3 found, the name of an engine is accepted"},
        {"{\"version\": 1, \"plans\": {\"a\": \"\"}}", "/plans/a: \"\" found"},
        {"{\"version\": 1, \"plans\": {\"\": \"eng1\"}}", "/plans/: \"eng1\" found"},
        {"{\"version\": 1, \"plans\": {\"a\": \"eng1\", \"a\": \"eng2\"}}", "key \"a\" appears twice"},
    };
    char *path = scratch_path(state, "plans.json");
    struct tuning *t = tuning_create(true, NULL);
    struct err e = ERR_INIT;

    assert_int_equal(tuning_load(t, path, &e), -1);
    assert_non_null(strstr(e.msg, path));
    tuning_put(t, "kept", "eng7");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        scratch_write(path, cases[i].text, strlen(cases[i].text));
        assert_int_equal(tuning_load(t, path, &e), -1);
        if (!strstr(e.msg, path) || !strstr(e.msg, cases[i].part))
            fail_msg("\"%s\" names not both %s and %s", e.msg, path, cases[i].part);
        assert_int_equal(tuning_size(t), 1);
        assert_string_equal(tuning_lookup(t, "kept"), "eng7");
    }
    tuning_destroy(t);
    free(path);
}

static void test_cannot_be_written(void **state)
{
    char *path = scratch_path(state, "missing/plans.json");
    struct tuning *t = tuning_create(true, NULL);
    struct err e = ERR_INIT;

    assert_int_equal(tuning_save(t, path, &e), -1);
    assert_non_null(strstr(e.msg, path));
    tuning_destroy(t);
    free(path);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_entries),
        cmocka_unit_test(test_the_rank_that_measures),
        cmocka_unit_test(test_another_rank),
        cmocka_unit_test(test_rows),
        cmocka_unit_test_setup_teardown(test_file, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_bad_files, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_cannot_be_written, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
