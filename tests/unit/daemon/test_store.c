/* test_store - what was committed is there after reopening, what was not is not; ids; damaged, foreign and
 * newer files. */
#include "daemon/store.h"

#include "tests/unit/cm.h"
#include "tests/unit/daemon/dump.h"
#include "tests/unit/daemon/tmp_state.h"
#include <fcntl.h>
#include <unistd.h>

static struct store *must_open(const char *path)
{
    struct err e = ERR_INIT;
    struct store *s = store_open(path, &e);

    if (!s)
        fail_msg("%s", e.msg);
    return s;
}

static int64_t add_job(struct store *s, const char *key)
{
    int64_t id = 0;

    assert_int_equal(store_add_job(s, 1000, key, "{\"spec\":1}", &id, NULL), 0);
    return id;
}

struct seen {
    int64_t seq[64], job[64];
    int n;
};

static int note_event(void *ctx, int64_t seq, int64_t job, int64_t time_ms, const char *data, struct err *e)
{
    struct seen *s = ctx;

    assert_int_equal(time_ms, 1000 + seq);
    assert_string_equal(data, "{}");
    s->seq[s->n] = seq;
    s->job[s->n++] = job;
    return s->n == 60 ? err_set(e, "enough") : 0;
}

static void test_reopen(void **state)
{
    struct tmp_state t;
    int64_t seq, id;

    (void)state;
    tmp_state_make(&t);
    struct store *s = must_open(t.db);
    assert_int_equal(store_begin(s, NULL), 0);
    assert_int_equal(add_job(s, NULL), 1);
    assert_int_equal(add_job(s, "key"), 2);
    for (int i = 0; i < 10; i++)
        assert_int_equal(store_add_event(s, 1 + i % 2, 1001 + i, "{}", &seq, NULL), 0);
    assert_int_equal(store_commit(s, NULL), 0);
    assert_int_equal(store_begin(s, NULL), 0);
    add_job(s, "lost");
    store_close(s); /* as a crash: never committed */

    s = must_open(t.db);
    struct seen seen = {0};
    assert_int_equal(store_each_event(s, 0, 0, -1, note_event, &seen, NULL), 10);
    assert_true(seen.seq[0] == 1 && seen.seq[9] == 10);
    seen.n = 0;
    assert_int_equal(store_each_event(s, 2, 4, 2, note_event, &seen, NULL), 2);
    assert_true(seen.seq[0] == 6 && seen.seq[1] == 8 && seen.job[0] == 2);
    assert_int_equal(store_find_key(s, 1000, "key", &id, NULL), 1);
    assert_int_equal(id, 2);
    assert_int_equal(store_find_key(s, 1001, "key", &id, NULL), 0); /* keys are each user's own */
    assert_int_equal(store_find_key(s, 1000, "lost", &id, NULL), 0);
    char *spec = store_spec(s, 2, NULL);
    assert_string_equal(spec, "{\"spec\":1}");
    free(spec);
    struct err e = ERR_INIT;
    assert_null(store_spec(s, 77, &e));
    assert_non_null(strstr(e.msg, "no job 77"));
    store_close(s);
    tmp_state_remove(&t);
}

static void test_a_key_is_used_once(void **state)
{
    struct tmp_state t;
    struct err e = ERR_INIT;
    int64_t id;

    (void)state;
    tmp_state_make(&t);
    struct store *s = must_open(t.db);
    assert_int_equal(store_begin(s, NULL), 0);
    add_job(s, "k");
    assert_int_equal(store_add_job(s, 1000, "k", "{}", &id, &e), -1);
    assert_int_equal(store_add_job(s, 1001, "k", "{}", &id, NULL), 0);
    store_rollback(s);
    store_rollback(s); /* legal with no transaction open */
    assert_int_equal(store_find_key(s, 1000, "k", &id, NULL), 0);
    store_close(s);
    tmp_state_remove(&t);
}

/* Ids that were given out come never again, even when their rows are gone. */
static void test_ids_are_never_used_again(void **state)
{
    struct tmp_state t;
    sqlite3 *db;

    (void)state;
    tmp_state_make(&t);
    struct store *s = must_open(t.db);
    assert_int_equal(add_job(s, NULL), 1);
    assert_int_equal(add_job(s, NULL), 2);
    store_close(s);
    assert_int_equal(sqlite3_open(t.db, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "DELETE FROM jobs", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    s = must_open(t.db);
    assert_int_equal(add_job(s, NULL), 3);
    assert_int_equal(store_skip_ids(s, 2, NULL), 0); /* nothing to skip */
    assert_int_equal(add_job(s, NULL), 4);
    assert_int_equal(store_skip_ids(s, 40, NULL), 0);
    store_close(s);
    s = must_open(t.db);
    assert_int_equal(add_job(s, NULL), 41);
    store_close(s);
    tmp_state_remove(&t);
}

static void test_a_new_store_steps_over_old_ids(void **state)
{
    struct tmp_state t;

    (void)state;
    tmp_state_make(&t);
    struct store *s = must_open(t.db);
    assert_int_equal(store_skip_ids(s, 7, NULL), 0);
    assert_int_equal(add_job(s, NULL), 8);
    store_close(s);
    tmp_state_remove(&t);
}

static void expect_refusal(const char *path, const char *says)
{
    struct err e = ERR_INIT;

    assert_null(store_open(path, &e));
    if (!strstr(e.msg, says) || !strstr(e.msg, path))
        fail_msg("\"%s\" does not say \"%s\"", e.msg, says);
}

static void test_newer_and_foreign(void **state)
{
    struct tmp_state t;

    (void)state;
    tmp_state_make(&t);
    store_close(must_open(t.db));
    run_sql(t.db, "PRAGMA user_version = 1000");
    expect_refusal(t.db, "written by a newer version (schema 1000; this version reads up to ");
    run_sql(t.db, "PRAGMA user_version = 0");
    expect_refusal(t.db, "it has no schema version");
    char *other = fs_join(t.dir, "other.db");
    run_sql(other, "CREATE TABLE t(x)");
    expect_refusal(other, "another program");
    free(other);
    expect_refusal("/nonexistent/dir/state.db", "opening");
    tmp_state_remove(&t);
}

static void overwrite(const char *path, off_t at, size_t n)
{
    char junk[8192];
    int fd = open(path, O_RDWR | O_CREAT, 0600);

    memset(junk, 0x5a, sizeof junk);
    assert_true(fd >= 0 && n <= sizeof junk);
    assert_int_equal(pwrite(fd, junk, n, at), (ssize_t)n);
    close(fd);
}

static void test_damaged(void **state)
{
    struct tmp_state t;
    int64_t seq;

    (void)state;
    tmp_state_make(&t);
    overwrite(t.db, 0, 5000);
    expect_refusal(t.db, "is damaged");
    tmp_state_remove(&t);

    tmp_state_make(&t);
    struct store *s = must_open(t.db);
    assert_int_equal(store_begin(s, NULL), 0);
    for (int i = 0; i < 300; i++) {
        add_job(s, NULL);
        assert_int_equal(
            store_add_event(s, i + 1, 5, "{\"text\":\"some event that takes room\"}", &seq, NULL), 0);
    }
    assert_int_equal(store_commit(s, NULL), 0);
    store_close(s);
    overwrite(t.db, 8192, 8192); /* inside the tables; the header is whole */
    expect_refusal(t.db, "is damaged");
    tmp_state_remove(&t);
}

/* A commit that fails (by the fault point) takes the whole transaction with it; the store goes on afterwards.
 */
static void test_commit_that_fails_leaves_nothing(void **state)
{
    struct tmp_state t;
    struct err e = ERR_INIT;
    int64_t id;

    (void)state;
    tmp_state_make(&t);
    struct store *s = must_open(t.db);
    setenv("BATCHFORMER_FAULT", "store.commit:error", 1);
    assert_int_equal(store_begin(s, NULL), 0);
    add_job(s, "k");
    assert_int_equal(store_commit(s, &e), -1);
    unsetenv("BATCHFORMER_FAULT");
    assert_int_equal(store_find_key(s, 1000, "k", &id, NULL), 0);
    assert_int_equal(store_begin(s, NULL), 0);
    assert_int_equal(add_job(s, "k"), 1);
    assert_int_equal(store_commit(s, NULL), 0);
    store_close(s);
    tmp_state_remove(&t);
}

static void test_callback_may_stop(void **state)
{
    struct tmp_state t;
    struct err e = ERR_INIT;
    struct seen seen = {0};
    int64_t seq;

    (void)state;
    tmp_state_make(&t);
    struct store *s = must_open(t.db);
    add_job(s, NULL);
    for (int i = 0; i < 70; i++)
        assert_int_equal(store_add_event(s, 1, 1001 + i, "{}", &seq, NULL), 0);
    assert_int_equal(store_each_event(s, 0, 0, -1, note_event, &seen, &e), -1);
    assert_string_equal(e.msg, "enough");
    store_close(s);
    tmp_state_remove(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reopen),
        cmocka_unit_test(test_a_key_is_used_once),
        cmocka_unit_test(test_ids_are_never_used_again),
        cmocka_unit_test(test_a_new_store_steps_over_old_ids),
        cmocka_unit_test(test_newer_and_foreign),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_commit_that_fails_leaves_nothing),
        cmocka_unit_test(test_callback_may_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
