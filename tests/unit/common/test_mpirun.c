/* test_mpirun - the environment of ranks: what is set, taken away, kept, and never passed on. */
#include "tests/unit/cm.h"
#include "common/mpirun.h"

#include <stdlib.h>
#include <string.h>

/* The value of a variable; NULL when it is not there. It must not be there twice. */
static const char *value_of(char **env, const char *name)
{
    const char *found = NULL;
    size_t n = strlen(name);

    for (char **v = env; *v; v++)
        if (strncmp(*v, name, n) == 0 && (*v)[n] == '=') {
            assert_null(found);
            found = *v + n + 1;
        }
    return found;
}

static void test_env(void **state)
{
    (void)state;
    static const char *const changes[] = {"MINE=1", "GONE", "REPLACED=new"};

    setenv("GONE", "x", 1);
    setenv("GONE_NOT", "kept", 1);
    setenv("REPLACED", "old", 1);
    setenv("REPLACED_NOT", "kept", 1);
    setenv("PMIX_RANK", "3", 1);
    setenv("OMPI_COMM_WORLD_SIZE", "4", 1);
    unsetenv("GOMP_SPINCOUNT");
    char **env = mpirun_env(changes, 3);
    assert_string_equal(value_of(env, "MINE"), "1");
    assert_null(value_of(env, "GONE"));
    assert_string_equal(value_of(env, "GONE_NOT"), "kept");
    assert_string_equal(value_of(env, "REPLACED"), "new");
    assert_string_equal(value_of(env, "REPLACED_NOT"), "kept");
    assert_null(value_of(env, "PMIX_RANK"));
    assert_null(value_of(env, "OMPI_COMM_WORLD_SIZE"));
    assert_string_equal(value_of(env, "GOMP_SPINCOUNT"), "1000");
    mpirun_free(env);
    setenv("GOMP_SPINCOUNT", "7", 1);
    env = mpirun_env(changes, 3);
    assert_string_equal(value_of(env, "GOMP_SPINCOUNT"), "7");
    mpirun_free(env);
    unsetenv("GOMP_SPINCOUNT");
}

static void test_find(void **state)
{
    (void)state;
    char *old = strdup(getenv("PATH"));

    setenv("PATH", "/nonexistent::/proc", 1);
    assert_null(mpirun_find());
    setenv("PATH", old, 1);
    free(old);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_env),
        cmocka_unit_test(test_find),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
