/* store - see store.h.
 *
 * Statements are prepared once at opening and reset after each use. A statement that fails inside a
 * transaction leaves the transaction open; the caller rolls back.
 */
#include "daemon/store.h"
#include "common/fault.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { APPLICATION_ID = 0x62666d64 }; /* "bfmd" */

static const char schema[] = "CREATE TABLE jobs ("
                             " id INTEGER PRIMARY KEY AUTOINCREMENT,"
                             " uid INTEGER NOT NULL,"
                             " idempotency_key TEXT,"
                             " spec TEXT NOT NULL);"
                             "CREATE UNIQUE INDEX jobs_key ON jobs(uid, idempotency_key)"
                             " WHERE idempotency_key IS NOT NULL;"
                             "CREATE TABLE events ("
                             " seq INTEGER PRIMARY KEY AUTOINCREMENT,"
                             " job INTEGER NOT NULL REFERENCES jobs(id),"
                             " time_ms INTEGER NOT NULL,"
                             " data TEXT NOT NULL);"
                             "CREATE INDEX events_job ON events(job, seq);";

enum statement {
    SQL_BEGIN,
    SQL_COMMIT,
    SQL_ROLLBACK,
    SQL_ADD_JOB,
    SQL_FIND_KEY,
    SQL_ADD_EVENT,
    SQL_SPEC,
    SQL_EVENTS,
    SQL_JOB_EVENTS,
    N_STATEMENTS
};

static const char *const sql[N_STATEMENTS] = {
    [SQL_BEGIN] = "BEGIN IMMEDIATE",
    [SQL_COMMIT] = "COMMIT",
    [SQL_ROLLBACK] = "ROLLBACK",
    [SQL_ADD_JOB] = "INSERT INTO jobs(uid, idempotency_key, spec) VALUES(?1, ?2, ?3)",
    [SQL_FIND_KEY] = "SELECT id FROM jobs WHERE uid = ?1 AND idempotency_key = ?2",
    [SQL_ADD_EVENT] = "INSERT INTO events(job, time_ms, data) VALUES(?1, ?2, ?3)",
    [SQL_SPEC] = "SELECT spec FROM jobs WHERE id = ?1",
    [SQL_EVENTS] = "SELECT seq, job, time_ms, data FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    [SQL_JOB_EVENTS] =
        "SELECT seq, job, time_ms, data FROM events WHERE job = ?3 AND seq > ?1 ORDER BY seq LIMIT ?2",
};

struct store {
    sqlite3 *db;
    char *path;
    sqlite3_stmt *st[N_STATEMENTS];
    int commit_fault;
};

static int fail(struct store *s, const char *what, struct err *e)
{
    return err_set(e, "%s: %s: %s", s->path, what, sqlite3_errmsg(s->db));
}

static int damaged(struct store *s, const char *why, struct err *e)
{
    return err_set(
        e,
        "%s is damaged (%s): restore it from a copy, or move it and its -wal and -shm files away to start "
        "with an empty one (the runs' directories stay)",
        s->path, why);
}

static int exec(struct store *s, const char *text, struct err *e)
{
    int rc = sqlite3_exec(s->db, text, NULL, NULL, NULL);

    if (rc == SQLITE_NOTADB || rc == SQLITE_CORRUPT)
        return damaged(s, sqlite3_errmsg(s->db), e);
    return rc == SQLITE_OK ? 0 : fail(s, text, e);
}

/* The first column of the first row of a query that always has one. */
static int query_text(struct store *s, const char *text, char *out, size_t size, struct err *e)
{
    sqlite3_stmt *st;
    int rc = sqlite3_prepare_v2(s->db, text, -1, &st, NULL);

    if (rc == SQLITE_OK && (rc = sqlite3_step(st)) == SQLITE_ROW) {
        const unsigned char *v = sqlite3_column_text(st, 0);
        snprintf(out, size, "%s", v ? (const char *)v : "");
        sqlite3_finalize(st);
        return 0;
    }
    if (rc == SQLITE_NOTADB || rc == SQLITE_CORRUPT)
        damaged(s, sqlite3_errmsg(s->db), e);
    else
        fail(s, text, e);
    sqlite3_finalize(st);
    return -1;
}

static int create_schema(struct store *s, struct err *e)
{
    char text[96];

    snprintf(text, sizeof text, "PRAGMA application_id = %d; PRAGMA user_version = %d", APPLICATION_ID,
             STORE_SCHEMA_VERSION);
    if (exec(s, "BEGIN EXCLUSIVE", e) < 0)
        return -1;
    if (exec(s, schema, e) < 0 || exec(s, text, e) < 0 || exec(s, "COMMIT", e) < 0) {
        sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
        return -1;
    }
    return 0;
}

/* An empty file has application id 0, version 0 and no tables. */
static int check_schema(struct store *s, struct err *e)
{
    char app[32], version[32], n_tables[32], check[256];

    if (query_text(s, "PRAGMA application_id", app, sizeof app, e) < 0 ||
        query_text(s, "PRAGMA user_version", version, sizeof version, e) < 0 ||
        query_text(s, "SELECT count(*) FROM sqlite_master", n_tables, sizeof n_tables, e) < 0)
        return -1;
    if (atoi(app) == 0 && atoi(version) == 0 && atoi(n_tables) == 0)
        return create_schema(s, e);
    if (atoi(app) != APPLICATION_ID)
        return err_set(e, "%s is a database of another program: choose another state directory", s->path);
    if (atoi(version) > STORE_SCHEMA_VERSION)
        return err_set(
            e,
            "%s was written by a newer version (schema %s; this version reads up to %d): run that version, "
            "or choose another state directory",
            s->path, version, STORE_SCHEMA_VERSION);
    if (query_text(s, "PRAGMA quick_check(1)", check, sizeof check, e) < 0)
        return -1;
    return strcmp(check, "ok") == 0 ? 0 : damaged(s, check, e);
}

static int prepare_all(struct store *s, struct err *e)
{
    for (int i = 0; i < N_STATEMENTS; i++)
        if (sqlite3_prepare_v3(s->db, sql[i], -1, SQLITE_PREPARE_PERSISTENT, &s->st[i], NULL) != SQLITE_OK)
            return fail(s, sql[i], e);
    return 0;
}

struct store *store_open(const char *path, struct err *e)
{
    struct store *s = xcalloc(1, sizeof *s);

    s->path = xstrdup(path);
    if (sqlite3_open_v2(path, &s->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
                        NULL) != SQLITE_OK) {
        fail(s, "opening", e);
        goto fail;
    }
    sqlite3_extended_result_codes(s->db, 0);
    sqlite3_busy_timeout(s->db, 2000);
    if (check_schema(s, e) < 0 || exec(s, "PRAGMA journal_mode = WAL", e) < 0 ||
        exec(s, "PRAGMA synchronous = FULL", e) < 0 || exec(s, "PRAGMA foreign_keys = ON", e) < 0 ||
        prepare_all(s, e) < 0)
        goto fail;
    return s;
fail:
    store_close(s);
    return NULL;
}

void store_close(struct store *s)
{
    if (!s)
        return;
    for (int i = 0; i < N_STATEMENTS; i++)
        sqlite3_finalize(s->st[i]);
    sqlite3_close(s->db);
    free(s->path);
    free(s);
}

/* Runs a statement that gives no rows. */
static int run(struct store *s, enum statement which, const char *what, struct err *e)
{
    int rc = sqlite3_step(s->st[which]) == SQLITE_DONE ? 0 : fail(s, what, e);

    sqlite3_reset(s->st[which]);
    sqlite3_clear_bindings(s->st[which]);
    return rc;
}

int store_skip_ids(struct store *s, int64_t id, struct err *e)
{
    char text[320];

    snprintf(text, sizeof text,
             "BEGIN IMMEDIATE;"
             "INSERT INTO sqlite_sequence (name, seq) SELECT 'jobs', 0"
             " WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'jobs');"
             "UPDATE sqlite_sequence SET seq = %lld WHERE name = 'jobs' AND seq < %lld;"
             "COMMIT",
             (long long)id, (long long)id);
    if (exec(s, text, e) == 0)
        return 0;
    sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
    return -1;
}

int store_begin(struct store *s, struct err *e)
{
    return run(s, SQL_BEGIN, "beginning a transaction", e);
}

int store_commit(struct store *s, struct err *e)
{
    int rc = fault_hit("store.commit", &s->commit_fault)
                 ? err_set(e, "%s: committing: fault injected", s->path)
                 : run(s, SQL_COMMIT, "committing", e);

    if (rc < 0)
        store_rollback(s);
    return rc;
}

void store_rollback(struct store *s)
{
    if (!sqlite3_get_autocommit(s->db))
        run(s, SQL_ROLLBACK, "rolling back", NULL);
}

int store_add_job(struct store *s, int64_t uid, const char *key, const char *spec, int64_t *id, struct err *e)
{
    sqlite3_bind_int64(s->st[SQL_ADD_JOB], 1, uid);
    if (key)
        sqlite3_bind_text(s->st[SQL_ADD_JOB], 2, key, -1, SQLITE_STATIC);
    sqlite3_bind_text(s->st[SQL_ADD_JOB], 3, spec, -1, SQLITE_STATIC);
    if (run(s, SQL_ADD_JOB, "adding a job", e) < 0)
        return -1;
    *id = sqlite3_last_insert_rowid(s->db);
    return 0;
}

int store_find_key(struct store *s, int64_t uid, const char *key, int64_t *id, struct err *e)
{
    sqlite3_stmt *st = s->st[SQL_FIND_KEY];

    sqlite3_bind_int64(st, 1, uid);
    sqlite3_bind_text(st, 2, key, -1, SQLITE_STATIC);
    int step = sqlite3_step(st);
    int rc = step == SQLITE_ROW ? 1 : step == SQLITE_DONE ? 0 : fail(s, "looking for an idempotency key", e);
    if (rc == 1)
        *id = sqlite3_column_int64(st, 0);
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return rc;
}

int store_add_event(struct store *s, int64_t job, int64_t time_ms, const char *data, int64_t *seq,
                    struct err *e)
{
    sqlite3_bind_int64(s->st[SQL_ADD_EVENT], 1, job);
    sqlite3_bind_int64(s->st[SQL_ADD_EVENT], 2, time_ms);
    sqlite3_bind_text(s->st[SQL_ADD_EVENT], 3, data, -1, SQLITE_STATIC);
    if (run(s, SQL_ADD_EVENT, "adding an event", e) < 0)
        return -1;
    *seq = sqlite3_last_insert_rowid(s->db);
    return 0;
}

char *store_spec(struct store *s, int64_t job, struct err *e)
{
    sqlite3_stmt *st = s->st[SQL_SPEC];
    char *text = NULL;

    sqlite3_bind_int64(st, 1, job);
    int step = sqlite3_step(st);
    if (step == SQLITE_ROW && sqlite3_column_text(st, 0))
        text = xstrdup((const char *)sqlite3_column_text(st, 0));
    else if (step == SQLITE_DONE)
        err_set(e, "%s: no job %lld", s->path, (long long)job);
    else
        fail(s, "reading a spec", e);
    sqlite3_reset(st);
    return text;
}

int64_t store_each_event(struct store *s, int64_t job, int64_t since, int64_t limit, store_event_fn *fn,
                         void *ctx, struct err *e)
{
    sqlite3_stmt *st = s->st[job ? SQL_JOB_EVENTS : SQL_EVENTS];
    int64_t n = 0;
    int step;

    sqlite3_bind_int64(st, 1, since);
    sqlite3_bind_int64(st, 2, limit);
    if (job)
        sqlite3_bind_int64(st, 3, job);
    while ((step = sqlite3_step(st)) == SQLITE_ROW) {
        const char *data = (const char *)sqlite3_column_text(st, 3);
        if (fn(ctx, sqlite3_column_int64(st, 0), sqlite3_column_int64(st, 1), sqlite3_column_int64(st, 2),
               data ? data : "", e) < 0) {
            sqlite3_reset(st);
            return -1;
        }
        n++;
    }
    if (step != SQLITE_DONE)
        n = fail(s, "reading events", e);
    sqlite3_reset(st);
    return n;
}
