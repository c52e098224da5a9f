/* test_plans - plans.json of a run: read when it goes on, written before its first step. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/fsutil.h"
#include "scratch.h"
#include "worker/train/plans.h"

/* As one rank: what plans_open() gives, with a log in the directory. */
struct run {
    struct comm *comm;
    char *path, *log_path;
    struct log log;
    struct tuning *t;
};

static void start(struct run *r, void **state, bool resume)
{
    struct err e = ERR_INIT;

    *r = (struct run){.comm = comm_single_create(), .path = scratch_path(state, "plans.json")};
    r->log_path = scratch_path(state, "log");
    r->log = (struct log){.fd = open(r->log_path, O_WRONLY | O_CREAT | O_TRUNC, 0666),
                          .level = LOG_INFO,
                          .component = "test"};
    assert_true(r->log.fd >= 0);
    r->t = plans_open(r->comm, *state, resume, &r->log, &e);
    if (!r->t)
        fail_msg("%s", e.msg);
    assert_int_equal(plans_share(r->t, r->comm, &e), 0);
}

/* The log says `line`; the run ends. */
static void end(struct run *r, void **state, const char *line)
{
    struct err e = ERR_INIT;

    assert_int_equal(plans_close(r->t, 0, *state, &r->log, &e), 0);
    char *text = scratch_read(r->log_path);
    if (!strstr(text, line))
        fail_msg("\"%s\" has no \"%s\"", text, line);
    free(text);
    close(r->log.fd);
    tuning_destroy(r->t);
    comm_destroy(r->comm);
    free(r->path);
    free(r->log_path);
}

static ino_t inode(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return st.st_ino;
}

static void first_start_then_resume(void **state)
{
    struct run r;

    start(&r, state, false);
    assert_true(tuning_measures(r.t));
    tuning_record(r.t, "a", "eng1");
    tuning_record(r.t, "b", "eng2");
    end(&r, state, "engines: 0 as plans.json says, 2 chosen now");

    start(&r, state, true);
    const ino_t before = inode(r.path);
    assert_true(tuning_measures(r.t));
    assert_string_equal(tuning_lookup(r.t, "a"), "eng1");
    tuning_record(r.t, "a", "eng1");
    tuning_record(r.t, "b", "eng2");
    char *path = strdup(r.path);
    end(&r, state, "engines: 2 as plans.json says, 0 chosen now");
    assert_true(inode(path) == before); /* it said the same already */

    start(&r, state, true);
    tuning_record(r.t, "b", "eng2");
    tuning_record(r.t, "c", "eng3");
    end(&r, state, "engines: 1 as plans.json says, 1 chosen now");
    char *text = scratch_read(path);
    assert_non_null(strstr(text, "\"a\":\t\"eng1\"")); /* the run may come back to it */
    assert_non_null(strstr(text, "\"c\":\t\"eng3\""));
    free(text);
    free(path);
}

static void another_device(void **state)
{
    struct run r;

    start(&r, state, false);
    tuning_record(r.t, "GPU A", "eng1");
    end(&r, state, "1 chosen now");
    start(&r, state, true);
    tuning_record(r.t, "GPU B", "eng2");
    end(&r, state,
        "engines: plans.json has none for this kind of GPU, this library and this number of rows: 1 "
        "chosen anew, and the run goes on with other bits");
    start(&r, state, true);
    assert_string_equal(tuning_lookup(r.t, "GPU A"), "eng1");
    assert_string_equal(tuning_lookup(r.t, "GPU B"), "eng2");
    end(&r, state, "engines: 0 as plans.json says, 0 chosen now");
}

static void resume_without_a_file(void **state)
{
    struct run r;

    start(&r, state, true);
    assert_int_equal(tuning_size(r.t), 0);
    tuning_record(r.t, "a", "eng1");
    char *path = strdup(r.path);
    end(&r, state, "engines: 0 as plans.json says, 1 chosen now");
    assert_true(fs_exists(path));
    free(path);
}

/* Of a run that ended before its first step: it is not this run's. */
static void a_file_that_is_not_gone_on_with(void **state)
{
    struct run r;

    start(&r, state, false);
    tuning_record(r.t, "a", "eng1");
    end(&r, state, "1 chosen now");
    start(&r, state, false);
    assert_int_equal(tuning_size(r.t), 0);
    char *path = strdup(r.path);
    end(&r, state, "0 chosen now");
    char *text = scratch_read(path);
    assert_null(strstr(text, "eng1"));
    free(text);
    free(path);
}

static void damaged_file(void **state)
{
    char *path = scratch_path(state, "plans.json");
    struct comm *comm = comm_single_create();
    struct err e = ERR_INIT;

    scratch_write(path, "{\"version\": 1, \"plans\": {\"a\"", 28);
    assert_null(plans_open(comm, *state, true, NULL, &e));
    assert_non_null(strstr(e.msg, path));
    assert_non_null(strstr(e.msg, "without the file they are chosen anew"));
    struct tuning *t = plans_open(comm, *state, false, NULL, &e);
    assert_non_null(t);
    tuning_destroy(t);
    comm_destroy(comm);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(first_start_then_resume, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(another_device, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(resume_without_a_file, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(a_file_that_is_not_gone_on_with, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(damaged_file, scratch_setup, scratch_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
