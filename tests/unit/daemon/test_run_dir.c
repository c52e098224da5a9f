/* test_run_dir - making a run directory and reading it, also when its owner has put traps into it. */
#include "daemon/run_dir.h"

#include "tests/unit/cm.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/as_user.h"
#include "daemon/metrics_file.h"
#include "tests/unit/daemon/tmp_state.h"

enum { NOBODY = 65534 };

struct fixture {
    struct tmp_state tmp;
    char *run, *secret;
};

static int set_up(void **state)
{
    struct fixture *f = xcalloc(1, sizeof *f);

    tmp_state_make(&f->tmp);
    f->run = run_dir_path(f->tmp.dir, 5);
    f->secret = fs_join(f->tmp.dir, "secret"); /* readable by its owner alone */
    static const char text[] = "{\"status\": \"succeeded\", \"step\": 1, \"kind\": \"step\", \"loss\": 42}\n";
    assert_int_equal(fs_atomic_replace_private(f->secret, text, strlen(text), NULL), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    tmp_state_remove(&f->tmp);
    free(f->run);
    free(f->secret);
    free(f);
    return 0;
}

static int prepare(const struct fixture *f, int64_t uid, struct err *e)
{
    struct run_dir_attempt at = {.job = 5, .attempt = 2, .n_ranks = 3, .uid = uid};

    return run_dir_prepare(f->run, "{\"version\":1}", &at, e);
}

static char *in_run(const struct fixture *f, const char *name)
{
    return fs_join(f->run, name);
}

static void put(const struct fixture *f, const char *name, const char *text)
{
    char *path = in_run(f, name);

    assert_int_equal(fs_atomic_replace(path, text, strlen(text), NULL), 0);
    free(path);
}

static void put_link(const struct fixture *f, const char *name, const char *target)
{
    char *path = in_run(f, name);

    fs_remove_tree(path, NULL);
    assert_int_equal(symlink(target, path), 0);
    assert_int_equal(lchown(path, NOBODY, NOBODY), geteuid() == 0 ? 0 : -1);
    free(path);
}

static struct stat stat_of(const struct fixture *f, const char *name)
{
    char *path = in_run(f, name);
    struct stat st;

    assert_int_equal(lstat(path, &st), 0);
    free(path);
    return st;
}

static void test_what_is_made(void **state)
{
    const struct fixture *f = *state;
    struct run_result r = {0};
    struct err e = ERR_INIT;

    for (int again = 0; again < 2; again++) {
        assert_int_equal(prepare(f, getuid(), &e), 0);
        assert_true(S_ISREG(stat_of(f, "job.json").st_mode));
        assert_true(S_ISDIR(stat_of(f, "log").st_mode));
        assert_int_equal(run_dir_result(f->run, &r), -1); /* that of the attempt before is gone */
        put(f, "result.json", "{\"status\": \"failed\", \"reason\": \"why\", \"peer_lost\": true}");
        assert_int_equal(run_dir_result(f->run, &r), 0);
        assert_string_equal(r.status, "failed");
        assert_string_equal(r.reason, "why");
        assert_true(r.peer_lost);
    }
    put(f, "log/launcher.log", "=== job 5, attempt 1, …\nold\n=== job 5, attempt 2, …\nnew\n");
    char *tail = run_dir_launcher_tail(f->run);
    assert_string_equal(tail, "new\n");
    free(tail);
    assert_int_equal(run_dir_max_id(f->tmp.dir), 5);
}

/* A pipe would keep whoever opens it waiting for its other end; a link is no file of the run. */
static void test_what_is_no_file_is_not_opened(void **state)
{
    const struct fixture *f = *state;
    struct run_result r = {0};
    struct err e = ERR_INIT;

    assert_int_equal(prepare(f, getuid(), &e), 0);
    char *result = in_run(f, "result.json"), *log = in_run(f, "log/launcher.log"),
         *metrics = in_run(f, "metrics.jsonl");
    assert_int_equal(mkfifo(result, 0600), 0);
    assert_int_equal(run_dir_result(f->run, &r), -1);
    assert_int_equal(unlink(log), 0);
    assert_int_equal(mkfifo(log, 0600), 0);
    assert_int_equal(run_dir_open_log(f->run, &e), -1);
    char *tail = run_dir_launcher_tail(f->run);
    assert_string_equal(tail, "");
    free(tail);
    assert_int_equal(mkfifo(metrics, 0600), 0);
    assert_null(metrics_file_latest(metrics));
    assert_null(metrics_file_read(metrics, NULL, 0, &e));
    assert_non_null(strstr(e.msg, "is not a file"));
    free(result);
    free(log);
    free(metrics);
}

static void test_a_directory_of_another_user(void **state)
{
    const struct fixture *f = *state;
    struct err e = ERR_INIT;
    struct stat st;

    if (geteuid() != 0)
        skip();
    assert_int_equal(chmod(f->tmp.dir, 0700), 0);
    assert_int_equal(prepare(f, NOBODY, &e), 0);
    assert_int_equal(stat(f->run, &st), 0);
    assert_true(st.st_uid == NOBODY && (st.st_mode & 07777) == 0700);
    assert_int_equal(stat_of(f, "job.json").st_uid, NOBODY);
    assert_int_equal(stat_of(f, "log").st_uid, NOBODY);
    assert_int_equal(stat_of(f, "log/launcher.log").st_uid, NOBODY);
    assert_int_equal(stat(f->tmp.dir, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0711); /* he passes through and sees no names */
    char *runs = fs_join(f->tmp.dir, "runs");
    assert_int_equal(stat(runs, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0711);
    free(runs);
    assert_int_equal(prepare(f, NOBODY, &e), 0); /* the next attempt */
    assert_int_equal(prepare(f, 1, &e), -1);     /* somebody else's */
    assert_non_null(strstr(e.msg, "is not a directory of user daemon"));
    assert_int_equal(prepare(f, 4000000000, &e), -1);
    assert_non_null(strstr(e.msg, "no user of this machine has the number 4000000000"));
}

static void test_roots_own_is_closed_and_one_left_empty_is_taken(void **state)
{
    const struct fixture *f = *state;
    struct err e = ERR_INIT;
    struct stat st;

    if (geteuid() != 0)
        skip();
    assert_int_equal(prepare(f, 0, &e), 0);
    assert_int_equal(stat(f->run, &st), 0);
    assert_true(st.st_uid == 0 && (st.st_mode & 07777) == 0700);
    assert_int_equal(prepare(f, NOBODY, &e), -1); /* it holds root's run */
    assert_int_equal(fs_remove_tree(f->run, NULL), 0);
    assert_int_equal(mkdir(f->run, 0700), 0); /* made, and not given away before a crash */
    assert_int_equal(prepare(f, NOBODY, &e), 0);
}

static char *text_of(const char *path)
{
    char *text;
    size_t len;

    assert_int_equal(fs_read_file(path, 1 << 20, &text, &len, NULL), 0);
    return text;
}

/* The owner of a run has made its files links to what only root may read and write. */
static void test_links_in_the_place_of_files(void **state)
{
    const struct fixture *f = *state;
    struct run_result r = {0};
    struct err e = ERR_INIT;

    if (geteuid() != 0)
        skip();
    assert_int_equal(prepare(f, NOBODY, &e), 0);
    char *before = text_of(f->secret), *metrics = in_run(f, "metrics.jsonl");
    put_link(f, "result.json", f->secret);
    put_link(f, "metrics.jsonl", f->secret);
    put_link(f, "log/launcher.log", f->secret);
    put_link(f, "job.json", f->secret);
    char *tmp = xasprintf("job.json.tmp.%ld", (long)getpid());
    put_link(f, tmp, f->secret);
    free(tmp);
    assert_int_equal(run_dir_result(f->run, &r), -1);
    assert_null(metrics_file_latest(metrics));
    char *tail = run_dir_launcher_tail(f->run);
    assert_string_equal(tail, "");
    free(tail);
    assert_int_equal(run_dir_open_log(f->run, &e), -1);
    assert_int_equal(prepare(f, NOBODY, &e), -1);
    char *after = text_of(f->secret);
    assert_string_equal(after, before);
    free(after);
    free(before);
    free(metrics);
}

/* Or a directory a link to one that only root may enter; there the names would be right. */
static void test_a_link_in_the_place_of_a_directory(void **state)
{
    const struct fixture *f = *state;
    struct err e = ERR_INIT;

    if (geteuid() != 0)
        skip();
    assert_int_equal(prepare(f, NOBODY, &e), 0);
    char *other = fs_join(f->tmp.dir, "other"), *log = fs_join(other, "launcher.log"),
         *step = fs_join(other, "step-00000007");
    assert_int_equal(mkdir(other, 0700), 0);
    assert_int_equal(mkdir(step, 0700), 0);
    assert_int_equal(fs_atomic_replace(log, "root's\n", 7, NULL), 0);
    put_link(f, "log", other);
    put_link(f, "checkpoints", other);
    char *tail = run_dir_launcher_tail(f->run);
    assert_string_equal(tail, "");
    free(tail);
    assert_int_equal(run_dir_open_log(f->run, &e), -1);
    assert_int_equal(run_dir_checkpoint_step(f->run), -1);
    assert_int_equal(prepare(f, NOBODY, &e), -1);
    char *text = text_of(log);
    assert_string_equal(text, "root's\n");
    free(text);
    free(other);
    free(log);
    free(step);
}

static void test_rights_are_taken_on_and_laid_down(void **state)
{
    const struct fixture *f = *state;
    struct as_user as;
    struct identity who;
    struct err e = ERR_INIT;

    if (geteuid() != 0)
        skip();
    assert_int_equal(identity_load(NOBODY, &who, &e), 0);
    assert_int_equal(as_user_enter(&as, &who, &e), 0);
    assert_int_equal(open(f->secret, O_RDONLY | O_CLOEXEC), -1);
    as_user_leave(&as);
    as_user_leave(&as); /* does nothing */
    int fd = open(f->secret, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(as_user_enter_owner(&as, f->tmp.dir, &e), 0); /* root's own */
    assert_false(as.entered);
    assert_int_equal(as_user_enter_owner(&as, "/nonexistent", &e), -1);
    as_user_leave(&as);
    identity_free(&who);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_what_is_made),
        TEST(test_what_is_no_file_is_not_opened),
        TEST(test_a_directory_of_another_user),
        TEST(test_roots_own_is_closed_and_one_left_empty_is_taken),
        TEST(test_links_in_the_place_of_files),
        TEST(test_a_link_in_the_place_of_a_directory),
        TEST(test_rights_are_taken_on_and_laid_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
