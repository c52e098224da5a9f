/* test_store_schema - databases of every version that there was open, with all that is in them; the copy that
 * is kept; a migration that dies or cannot be written; and what is refused because a part is missing. */
#include "daemon/journal.h"

#include "tests/unit/cm.h"
#include "tests/unit/daemon/dump.h"
#include "tests/unit/daemon/tmp_state.h"
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- databases of old --- */

static int query_int(const char *path, const char *sql)
{
    sqlite3 *db;
    sqlite3_stmt *st;

    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &st, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(st), SQLITE_ROW);
    int v = sqlite3_column_int(st, 0);
    sqlite3_finalize(st);
    sqlite3_close(db);
    return v;
}

static void no_fault(void *ctx, const char *what)
{
    (void)ctx;
    fail_msg("%s", what);
}

static struct store *must_open(const char *path)
{
    struct err e = ERR_INIT;
    struct store *s = store_open(path, &e);

    if (!s)
        fail_msg("%s", e.msg);
    assert_int_equal(store_version(s), STORE_SCHEMA_VERSION);
    if (store_check(s, no_fault, NULL, &e) < 0)
        fail_msg("%s", e.msg);
    return s;
}

/* What the dumps hold, as of the versions that wrote them. */
static void expect_jobs(struct store *s)
{
    static const enum job_state want[] = {JOB_SUCCEEDED, JOB_FAILED, JOB_CANCELLED,
                                          JOB_RUNNING,   JOB_QUEUED, JOB_CANCELLED};
    struct jobs jobs = {0};
    struct err e = ERR_INIT;
    uv_loop_t loop;
    int64_t id;

    uv_loop_init(&loop);
    struct journal *j = journal_create(&loop, s, &jobs, NULL, (struct journal_listener){0}, &e);
    if (!j)
        fail_msg("%s", e.msg);
    assert_int_equal(journal_last_seq(j), 28);
    assert_int_equal(jobs.n, 6);
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(jobs.v[i]->state, want[i]);
    assert_int_equal(jobs.v[0]->attempt, 2);
    assert_int_equal(jobs.v[3]->process.pid, 4711);
    assert_string_equal(jobs.v[3]->process.boot_id, "0d1f5a2c-7b0e-4d57-9a55-3c1de0a4b6f2");
    assert_int_equal(jobs.v[2]->priority, 5);
    assert_int_equal(store_find_key(s, 1000, "key-2", &id, NULL), 1);
    assert_int_equal(id, 4);
    journal_destroy(j);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    jobs_free(&jobs);
}

static void test_every_version_opens(void **state)
{
    (void)state;
    for (int v = 1; v <= STORE_SCHEMA_VERSION; v++) {
        struct tmp_state t;
        tmp_state_make(&t);
        load_dump(t.db, v);
        assert_int_equal(query_int(t.db, "PRAGMA user_version"), v);
        struct store *s = must_open(t.db);
        expect_jobs(s);
        store_close(s);
        s = must_open(t.db); /* and again, without a migration */
        expect_jobs(s);
        store_close(s);
        char *copy = xasprintf("%s.v%d.bak", t.db, v);
        assert_int_equal(fs_exists(copy), v < STORE_SCHEMA_VERSION);
        if (v < STORE_SCHEMA_VERSION) {
            assert_int_equal(query_int(copy, "PRAGMA user_version"), v);
            assert_int_equal(query_int(copy, "SELECT count(*) FROM events"), 28);
        }
        free(copy);
        tmp_state_remove(&t);
    }
}

/* A new database has the tables that one has which has grown up. */
static void test_new_and_migrated_are_alike(void **state)
{
    static const char sum[] = "SELECT sum(length(sql)) FROM sqlite_master WHERE sql IS NOT NULL";
    struct tmp_state old, fresh;

    (void)state;
    tmp_state_make(&old);
    tmp_state_make(&fresh);
    load_dump(old.db, 1);
    store_close(must_open(old.db));
    store_close(must_open(fresh.db));
    assert_int_equal(query_int(old.db, sum), query_int(fresh.db, sum));
    assert_int_equal(query_int(fresh.db, "PRAGMA application_id"),
                     query_int(old.db, "PRAGMA application_id"));
    tmp_state_remove(&old);
    tmp_state_remove(&fresh);
}

static void test_a_migration_that_cannot_be_written(void **state)
{
    struct tmp_state t;
    struct err e = ERR_INIT;

    (void)state;
    tmp_state_make(&t);
    load_dump(t.db, 1);
    setenv("BATCHFORMER_FAULT", "store.migrate:error", 1);
    assert_null(store_open(t.db, &e));
    unsetenv("BATCHFORMER_FAULT");
    assert_non_null(strstr(e.msg, "schema 1 → 2: "));
    assert_int_equal(query_int(t.db, "PRAGMA user_version"), 1);
    assert_int_equal(query_int(t.db, "SELECT count(*) FROM sqlite_master WHERE name = 'nodes'"), 0);
    struct store *s = must_open(t.db);
    expect_jobs(s);
    store_close(s);
    tmp_state_remove(&t);
}

/* Opens in a child that kills itself at the point; gives its end's signal. */
static int die_at(const char *path, const char *fault)
{
    int status;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        setenv("BATCHFORMER_FAULT", fault, 1);
        struct store *s = store_open(path, NULL);
        if (s && store_begin(s, NULL) == 0 &&
            store_set_node(s, &(struct store_node){"n", "", true, 1}, NULL) == 0 &&
            store_commit(s, NULL) == 0)
            _exit(1);
        _exit(2);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void test_killed_in_a_migration(void **state)
{
    struct tmp_state t;

    (void)state;
    tmp_state_make(&t);
    load_dump(t.db, 1);
    assert_int_equal(die_at(t.db, "store.migrate:kill"), SIGKILL);
    struct store *s = must_open(t.db);
    expect_jobs(s);
    store_close(s);
    tmp_state_remove(&t);
}

static void test_killed_while_it_is_made(void **state)
{
    struct tmp_state t;

    (void)state;
    tmp_state_make(&t);
    assert_int_equal(die_at(t.db, "store.migrate:kill@2"), SIGKILL);
    assert_false(fs_exists(t.db)); /* half of one has not got its name */
    store_close(must_open(t.db));
    tmp_state_remove(&t);
}

/* --- nodes --- */

struct node_list {
    char text[512];
};

static int note_node(void *ctx, const struct store_node *n, struct err *e)
{
    struct node_list *l = ctx;
    size_t at = strlen(l->text);

    snprintf(l->text + at, sizeof l->text - at, "%s %d '%s' %lld; ", n->name, n->drained, n->reason,
             (long long)n->since_ms);
    return strcmp(n->name, "stop") == 0 ? err_set(e, "enough") : 0;
}

static void test_nodes(void **state)
{
    struct tmp_state t;
    struct node_list l = {""};
    struct err e = ERR_INIT;

    (void)state;
    tmp_state_make(&t);
    struct store *s = must_open(t.db);
    assert_int_equal(store_each_node(s, note_node, &l, NULL), 0);
    assert_int_equal(store_set_node(s, &(struct store_node){"node2", "its fan", true, 5}, NULL), 0);
    assert_int_equal(store_set_node(s, &(struct store_node){"node10", NULL, true, 6}, NULL), 0);
    assert_int_equal(store_begin(s, NULL), 0); /* also within a transaction */
    assert_int_equal(store_set_node(s, &(struct store_node){"node2", "repaired", false, 7}, NULL), 0);
    assert_int_equal(store_commit(s, NULL), 0);
    assert_int_equal(store_begin(s, NULL), 0);
    assert_int_equal(store_set_node(s, &(struct store_node){"node3", "never", true, 8}, NULL), 0);
    store_close(s); /* as a crash: never committed */
    s = must_open(t.db);
    assert_int_equal(store_each_node(s, note_node, &l, NULL), 2);
    assert_string_equal(l.text, "node10 1 '' 6; node2 0 'repaired' 7; ");
    assert_int_equal(store_set_node(s, &(struct store_node){"stop", "", true, 9}, NULL), 0);
    assert_int_equal(store_each_node(s, note_node, &l, &e), -1);
    assert_string_equal(e.msg, "enough");
    store_close(s);
    tmp_state_remove(&t);
}

/* --- parts that are missing --- */

static void expect_refusal(const char *path, const char *says)
{
    struct err e = ERR_INIT;

    assert_null(store_open(path, &e));
    if (!strstr(e.msg, says) || !strstr(e.msg, path))
        fail_msg("\"%s\" does not say \"%s\"", e.msg, says);
}

static void move(const char *path, const char *suffix, const char *to)
{
    char *from = xasprintf("%s%s", path, suffix), *into = xasprintf("%s%s", path, to);

    assert_int_equal(rename(from, into), 0);
    free(from);
    free(into);
}

static void test_a_wal_that_is_missing(void **state)
{
    struct tmp_state t;
    struct node_list l = {""};

    (void)state;
    tmp_state_make(&t);
    assert_int_equal(die_at(t.db, "store.committed:kill"), SIGKILL);
    move(t.db, "-wal", "-wal.away");
    expect_refusal(t.db, "-wal is missing, which held the newest events");
    assert_null(store_open(t.db, NULL)); /* and again: a refusal changes nothing */
    move(t.db, "-wal.away", "-wal");
    struct store *s = must_open(t.db);
    assert_int_equal(store_each_node(s, note_node, &l, NULL), 1); /* which only the WAL held */
    store_close(s);

    assert_int_equal(die_at(t.db, "store.committed:kill"), SIGKILL);
    move(t.db, "", ".away");
    expect_refusal(t.db, "-wal is there: put it back");
    move(t.db, "-wal", ".away-wal");
    expect_refusal(t.db, "-open is there: put it back");
    move(t.db, "-open", ".away-open"); /* as the message says: nothing of it is left, a new one begins */
    s = must_open(t.db);
    assert_int_equal(store_each_node(s, note_node, &l, NULL), 0);
    store_close(s);
    tmp_state_remove(&t);
}

/* An orderly end leaves the database alone, and a copy of it is a whole one. */
static void test_an_orderly_end_leaves_one_file(void **state)
{
    static const char *const gone[] = {"-wal", "-shm", "-open", ".new"};
    struct tmp_state t;

    (void)state;
    tmp_state_make(&t);
    store_close(must_open(t.db));
    for (size_t i = 0; i < sizeof gone / sizeof *gone; i++) {
        char *path = xasprintf("%s%s", t.db, gone[i]);
        if (fs_exists(path))
            fail_msg("%s is left", path);
        free(path);
    }
    tmp_state_remove(&t);
}

/* --- reading only --- */

static void test_opened_to_check_nothing_changes(void **state)
{
    struct tmp_state t;
    struct stat before, after;
    char *name;

    (void)state;
    tmp_state_make(&t);
    free(t.db);
    t.db = fs_join(t.dir, "odd ?#%41 name.db");
    load_dump(t.db, 1);
    assert_int_equal(stat(t.db, &before), 0);
    struct store *s = store_open_to_check(t.db, NULL);
    assert_non_null(s);
    assert_int_equal(store_version(s), 1);
    assert_int_equal(store_check(s, no_fault, NULL, NULL), 0);
    expect_jobs(s);
    store_close(s);
    assert_int_equal(stat(t.db, &after), 0);
    assert_true(before.st_mtim.tv_nsec == after.st_mtim.tv_nsec && before.st_ino == after.st_ino);
    name = xasprintf("%s-wal", t.db);
    assert_false(fs_exists(name));
    free(name);
    tmp_state_remove(&t);

    tmp_state_make(&t);
    assert_int_equal(die_at(t.db, "store.committed:kill"), SIGKILL);
    s = store_open_to_check(t.db, NULL); /* sees what only the WAL holds, and leaves it there */
    struct node_list l = {""};
    assert_int_equal(store_each_node(s, note_node, &l, NULL), 1);
    store_close(s);
    name = xasprintf("%s-wal", t.db);
    assert_true(fs_exists(name));
    free(name);
    store_close(must_open(t.db));
    tmp_state_remove(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_version_opens),
        cmocka_unit_test(test_new_and_migrated_are_alike),
        cmocka_unit_test(test_a_migration_that_cannot_be_written),
        cmocka_unit_test(test_killed_in_a_migration),
        cmocka_unit_test(test_killed_while_it_is_made),
        cmocka_unit_test(test_nodes),
        cmocka_unit_test(test_a_wal_that_is_missing),
        cmocka_unit_test(test_an_orderly_end_leaves_one_file),
        cmocka_unit_test(test_opened_to_check_nothing_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
