/* test_rundir - claiming a run directory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/fsutil.h"
#include "common/json.h"
#include "scratch.h"
#include "worker/train/rundir.h"

static int write_spec(const char *dir, int seed, struct err *e)
{
    cJSON *doc = cJSON_CreateObject();

    cJSON_AddNumberToObject(doc, "seed", seed);
    int rc = rundir_write_spec(dir, doc, e);
    cJSON_Delete(doc);
    return rc;
}

/* 0 when the directory could be claimed; it is given back at once. */
static int claim(const char *dir, bool resume, struct err *e)
{
    int lock = rundir_claim(dir, resume, NULL, e);

    return lock < 0 ? -1 : close(lock);
}

static void fresh_directory(void **state)
{
    char *dir = scratch_path(state, "a/b/run"), *job = fs_join(dir, "job.json");
    struct err e = ERR_INIT;

    assert_int_equal(claim(dir, false, &e), 0);
    assert_int_equal(write_spec(dir, 1, &e), 0);
    char *text = scratch_read(job);
    assert_non_null(strstr(text, "\"seed\":\t1"));
    free(text);
    assert_int_equal(write_spec(dir, 2, &e), 0);
    text = scratch_read(job);
    assert_non_null(strstr(text, "\"seed\":\t2"));
    free(text);
    int fd = rundir_open_log(dir, 12, &e);
    assert_true(fd >= 0);
    close(fd);
    char *log = fs_join(dir, "log/rank-0012.log");
    assert_true(fs_exists(log));
    assert_int_equal(claim(dir, false, &e), 0); /* nothing has run in it yet */
    free(log);
    free(job);
    free(dir);
}

static void used_directory(void **state)
{
    static const char *const traces[] = {"metrics.jsonl", "model.safetensors", "checkpoints"};
    struct err e = ERR_INIT;

    for (int i = 0; i < 3; i++) {
        char *path = scratch_path(state, traces[i]);
        scratch_write(path, "x", 1);
        assert_int_equal(claim(*state, false, &e), -1);
        assert_non_null(strstr(e.msg, traces[i]));
        assert_non_null(strstr(e.msg, "--resume"));
        assert_int_equal(claim(*state, true, &e), 0);
        unlink(path);
        free(path);
    }
}

static void old_result(void **state)
{
    char *result = scratch_path(state, "result.json");
    cJSON *doc = cJSON_CreateObject();
    struct err e = ERR_INIT;

    scratch_write(result, "{}", 2);
    assert_int_equal(claim(*state, false, &e), 0); /* of a run that never made a step */
    assert_true(fs_exists(result));
    assert_int_equal(rundir_begin(*state, doc, &e), 0);
    assert_false(fs_exists(result));
    cJSON_Delete(doc);
    free(result);
}

static void impossible_directory(void **state)
{
    char *file = scratch_path(state, "file"), *dir = fs_join(file, "run");
    struct err e = ERR_INIT;

    scratch_write(file, "x", 1);
    assert_int_equal(claim(dir, false, &e), -1);
    assert_non_null(strstr(e.msg, dir));
    assert_int_equal(claim(file, false, &e), -1);
    free(file);
    free(dir);
}

static void one_run_at_a_time(void **state)
{
    char pid[32], *path = scratch_path(state, "lock");
    struct err e = ERR_INIT;
    int lock = rundir_claim(*state, true, NULL, &e);

    snprintf(pid, sizeof pid, "process %ld:", (long)getpid());
    assert_true(lock >= 0);
    assert_int_equal(rundir_lock(*state, 50, NULL, &e), -1);
    assert_non_null(strstr(e.msg, *state));
    assert_non_null(strstr(e.msg, pid));
    assert_int_equal(rundir_claim(*state, false, NULL, &e), -1);
    close(lock);
    assert_true(fs_exists(path)); /* the file stays, and is no lock by itself */
    assert_int_equal(claim(*state, false, &e), 0);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(fresh_directory, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(used_directory, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(old_result, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(one_run_at_a_time, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(impossible_directory, scratch_setup, scratch_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
