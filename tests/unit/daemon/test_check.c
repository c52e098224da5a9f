/* test_check - whatever is wrong with a state directory is told, with what to do; what is right is not. */
#include "daemon/check.h"
#include "daemon/state_dir.h"
#include "daemon/store.h"

#include "tests/unit/cm.h"
#include "tests/unit/daemon/dump.h"
#include "tests/unit/daemon/tmp_state.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* What check_state() prints, malloc'ed; *n is what it returns. */
static char *checked(const struct tmp_state *t, int64_t *n)
{
    char *text = NULL;
    size_t len;
    FILE *f = open_memstream(&text, &len);
    struct err e = ERR_INIT;

    *n = check_state(t->dir, f, &e);
    fprintf(f, "%s", e.msg);
    fclose(f);
    return text;
}

static void expect(const struct tmp_state *t, int64_t n, const char *const *says, size_t n_says)
{
    int64_t found;
    char *text = checked(t, &found);

    for (size_t i = 0; i < n_says; i++)
        if (!strstr(text, says[i]))
            fail_msg("\"%s\" is not said: %s", says[i], text);
    if (found != n)
        fail_msg("%d faults: %s", (int)found, text);
    free(text);
}

#define EXPECT(t, n, ...)                                                                                    \
    expect(t, n, (const char *const[]){__VA_ARGS__},                                                         \
           sizeof(const char *const[]){__VA_ARGS__} / sizeof(char *))

static void begin(struct tmp_state *t)
{
    tmp_state_make(t);
    load_dump(t->db, STORE_SCHEMA_VERSION);
}

static void make_dir(const struct tmp_state *t, const char *name)
{
    char *path = fs_join(t->dir, name);

    assert_int_equal(fs_mkdir_p(path, NULL), 0);
    free(path);
}

static void test_nothing_is_wrong(void **state)
{
    struct tmp_state t;

    (void)state;
    for (int v = 1; v <= STORE_SCHEMA_VERSION; v++) {
        char want[96];
        tmp_state_make(&t);
        load_dump(t.db, v);
        make_dir(&t, "runs/1/log");
        make_dir(&t, "runs/not-a-number");
        snprintf(want, sizeof want,
                 "schema %d, 6 jobs of which 2 have not ended, 28 events, 1 run directories: no fault", v);
        EXPECT(&t, 0, want);
        EXPECT(&t, 0, want); /* it has changed nothing */
        tmp_state_remove(&t);
    }
}

/* One thing is broken each time. */
static void test_faults_of_the_journal(void **state)
{
    static const struct {
        const char *sql, *says[3];
        int n;
    } cases[] = {
        {"UPDATE events SET data = '{\"type\"' WHERE seq = 4",
         {"event 4 of job 1: not valid JSON", "restore state.db from a copy",
          "28 events, 0 run directories: 1 fault\n"},
         1},
        {"UPDATE events SET data = replace(data, '\"attached\"', '\"attacked\"') WHERE seq = 4",
         {"event 4 of job 1: /type: unknown event \"attacked\""},
         1},
        {"UPDATE events SET data = replace(data, '\"attached\"', '\"submitted\"') WHERE seq = 4",
         {"event 4 of job 1: ", "job 1 is starting: \"submitted\" is not possible there"},
         1},
        {"UPDATE events SET data = replace(data, '\"state\":\"running\"', '\"state\":\"queued\"') WHERE seq "
         "= 4",
         {"event 4 of job 1: it says that the job is queued then, but it is running"},
         1},
        {"PRAGMA foreign_keys = 0; UPDATE events SET job = 77 WHERE seq = 14",
         {"row 14 of table events refers to a row of table jobs that does not exist", "event 14 of job 77: "},
         2},
        {"DELETE FROM events WHERE seq BETWEEN 24 AND 25",
         {"events 24 to 25 are missing", "job 5 has no event", "event 26 of job 6: "},
         3},
        {"DELETE FROM events WHERE seq = 28", {"event 28 is missing", "runs/3 is missing, and job 3 had"}, 2},
        {"UPDATE sqlite_sequence SET seq = 5 WHERE name = 'jobs'",
         {"the counter of table jobs is 5 and its largest number 6: numbers would be given again"},
         1},
        {"DELETE FROM sqlite_sequence WHERE name = 'events'",
         {"the counter of table events is 0 and its largest number 28"},
         1},
        {"UPDATE jobs SET uid = 7 WHERE id = 5",
         {"job 5 belongs to user 7, and its first event to user 1000"},
         1},
        {"UPDATE jobs SET spec = replace(spec, '\"resnet8\"', '\"resnet9\"') WHERE id = 2",
         {"the spec of job 2: /model/arch: ", "or cancel the job"},
         1},
        {"UPDATE jobs SET spec = '{' WHERE id = 2", {"the spec of job 2: not valid JSON"}, 1},
        {"PRAGMA writable_schema = 1; UPDATE sqlite_master SET sql = 'CREATE UNIQUE INDEX jobs_key ON "
         "jobs(uid)'"
         " WHERE name = 'jobs_key'",
         {"jobs_key"},
         -2},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tmp_state t;
        int64_t n;
        begin(&t);
        run_sql(t.db, cases[i].sql);
        char *text = checked(&t, &n);
        for (int k = 0; k < 3 && cases[i].says[k]; k++)
            if (!strstr(text, cases[i].says[k]))
                fail_msg("%s: \"%s\" is not said: %s", cases[i].sql, cases[i].says[k], text);
        if (cases[i].n < 0 ? n == 0 : n != cases[i].n)
            fail_msg("%s: %d faults: %s", cases[i].sql, (int)n, text);
        free(text);
        tmp_state_remove(&t);
    }
}

static void test_run_directories(void **state)
{
    struct tmp_state t;

    (void)state;
    begin(&t);
    make_dir(&t, "runs/6");
    make_dir(&t, "runs/9");
    EXPECT(&t, 1, "runs/9 belongs to no job: the database is older than the runs");
    struct store *s = store_open(t.db, NULL); /* as the coordinator does when it starts */
    assert_int_equal(store_skip_ids(s, 9, NULL), 0);
    store_close(s);
    EXPECT(&t, 0, "2 run directories: no fault");
    run_sql(
        t.db,
        "UPDATE events SET data = replace(data, 'running on fake\"}', 'checkpoint\",\"step\":7}') "
        "WHERE seq = 22; UPDATE events SET data = replace(data, 'attached', 'checkpointed') WHERE seq = 22;"
        "UPDATE events SET data = replace(data, '\"state\":\"running\"', '\"state\":\"starting\"') "
        "WHERE seq = 22");
    EXPECT(&t, 1, "runs/4 is missing, and job 4 had a checkpoint at step 7: put it back");
    tmp_state_remove(&t);
}

static void test_many_faults_are_counted(void **state)
{
    struct tmp_state t;

    (void)state;
    begin(&t);
    run_sql(t.db, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 250)"
                  " INSERT INTO jobs(uid, spec) SELECT 1, '{}' FROM n");
    EXPECT(&t, 500, "and 400 more", "256 jobs", ": 500 faults"); /* no event, and no spec */
    tmp_state_remove(&t);
}

static void test_what_cannot_be_checked(void **state)
{
    struct tmp_state t;
    char want[96];

    (void)state;
    tmp_state_make(&t);
    EXPECT(&t, -1, "state.db does not exist: there is nothing to check");
    run_sql(t.db, "CREATE TABLE t(x)");
    EXPECT(&t, -1, "a database of another program");
    unlink(t.db);
    load_dump(t.db, STORE_SCHEMA_VERSION);
    run_sql(t.db, "PRAGMA user_version = 1000");
    EXPECT(&t, -1, "written by a newer version");
    run_sql(t.db, "PRAGMA user_version = 2");
    assert_int_equal(truncate(t.db, 6000), 0);
    EXPECT(&t, -1, "is damaged");
    tmp_state_remove(&t);
    EXPECT(&t, -1, "No such file or directory");

    begin(&t);
    int lock = state_dir_lock(t.dir, NULL);
    snprintf(want, sizeof want, "another batchformerd (pid %ld) already works in ", (long)getpid());
    EXPECT(&t, -1, want);
    close(lock);
    EXPECT(&t, 0, "no fault");
    tmp_state_remove(&t);
}

static void test_a_missing_wal_is_told_and_the_rest_is_checked(void **state)
{
    struct tmp_state t;
    char *mark;

    (void)state;
    begin(&t);
    mark = xasprintf("%s-open", t.db);
    assert_int_equal(fs_atomic_replace(mark, "", 0, NULL), 0);
    EXPECT(&t, 1, "state.db-wal is missing", "28 events, 0 run directories: 1 fault\n");
    free(mark);
    tmp_state_remove(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_is_wrong),
        cmocka_unit_test(test_faults_of_the_journal),
        cmocka_unit_test(test_run_directories),
        cmocka_unit_test(test_many_faults_are_counted),
        cmocka_unit_test(test_what_cannot_be_checked),
        cmocka_unit_test(test_a_missing_wal_is_told_and_the_rest_is_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
