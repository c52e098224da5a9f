/* test_step_dir - names of checkpoint directories: written and read back, and everything else left alone. */
#include "tests/unit/cm.h"
#include "common/fsutil.h"
#include "common/step_dir.h"
#include "scratch.h"

#include <stdlib.h>

static void test_a_name_is_read_as_it_was_written(void **state)
{
    (void)state;
    static const int64_t steps[] = {0, 7, 99999999, 100000000, INT64_MAX};

    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        char *path = step_dir_path("a", steps[i]);
        assert_int_equal(step_dir_parse(path + 2), steps[i]);
        free(path);
    }
}

static void test_other_names(void **state)
{
    (void)state;
    static const char *const names[] = {
        "",        "step-",   "step--3", "step- 3", "step-+3",
        "step-3x", "xstep-3", "step-3 ", "Step-3",  "step-9223372036854775808"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (step_dir_parse(names[i]) != -1)
            fail_msg("\"%s\" was taken for step %lld", names[i], (long long)step_dir_parse(names[i]));
}

static void make(const char *dir, const char *name)
{
    struct err e = ERR_INIT;
    char *path = fs_join(dir, name);

    assert_int_equal(fs_mkdir_p(path, &e), 0);
    free(path);
}

static void test_newest(void **state)
{
    const char *dir = *state;

    assert_int_equal(step_dir_newest("/nowhere/at/all"), -1);
    assert_int_equal(step_dir_newest(dir), -1);
    make(dir, ".tmp-step-00000900.17");
    make(dir, "step-00000009");
    make(dir, "step-00000100");
    make(dir, "step-00000020");
    assert_int_equal(step_dir_newest(dir), 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_name_is_read_as_it_was_written),
        cmocka_unit_test(test_other_names),
        cmocka_unit_test_setup_teardown(test_newest, scratch_setup, scratch_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
