/* store_schema - see store_schema.h.
 *
 * A version is a row of `steps`, and never changes once it was released: a new one is a new row, with a dump
 * of such a database in tests/unit/daemon/data. A new database goes through all of them, so that it cannot
 * differ from one that has grown up.
 */
#include "daemon/store_schema.h"
#include "common/fault.h"
#include "common/fsutil.h"
#include "daemon/store.h"
#include "daemon/store_sql.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { APPLICATION_ID = 0x62666d64 }; /* "bfmd" */

/* steps[v] leads from version v to v + 1. */
static const char *const steps[] = {
    "CREATE TABLE jobs ("
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
    "CREATE INDEX events_job ON events(job, seq);",

    "CREATE TABLE nodes ("
    " name TEXT PRIMARY KEY NOT NULL,"
    " drained INTEGER NOT NULL,"
    " reason TEXT NOT NULL,"
    " since_ms INTEGER NOT NULL);",
};
_Static_assert(sizeof steps / sizeof *steps == STORE_SCHEMA_VERSION, "a step for every version");

int store_schema_version(sqlite3 *db, const char *path, int *version, struct err *e)
{
    char app[32], text[32];

    if (store_sql_text(db, path, "PRAGMA application_id", app, sizeof app, e) < 0 ||
        store_sql_text(db, path, "PRAGMA user_version", text, sizeof text, e) < 0)
        return -1;
    if (atoi(app) != APPLICATION_ID)
        return err_set(e, "%s is a database of another program: choose another state directory", path);
    *version = atoi(text);
    if (*version > STORE_SCHEMA_VERSION)
        return err_set(
            e,
            "%s was written by a newer version (schema %s; this version reads up to %d): run that version, "
            "or choose another state directory",
            path, text, STORE_SCHEMA_VERSION);
    if (*version < 1)
        return store_sql_damaged(path, "it has no schema version", e);
    return 0;
}

/* `n_steps` counts for the fault point. */
static int step(sqlite3 *db, const char *path, int version, int *n_steps, struct err *e)
{
    char set_version[64];
    int rc;

    snprintf(set_version, sizeof set_version, "PRAGMA user_version = %d", version + 1);
    if (store_sql_exec(db, path, "BEGIN EXCLUSIVE", e) < 0)
        return -1;
    rc = store_sql_exec(db, path, steps[version], e) < 0 || store_sql_exec(db, path, set_version, e) < 0 ? -1
                                                                                                         : 0;
    if (rc == 0 && fault_hit("store.migrate", n_steps))
        rc = err_set(e, "%s: committing: fault injected", path);
    if (rc == 0)
        rc = store_sql_exec(db, path, "COMMIT", e);
    if (rc < 0 && !sqlite3_get_autocommit(db))
        sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
    return rc < 0 ? err_wrap(e, "schema %d → %d", version, version + 1) : 0;
}

/* Renames what is whole now, and sees to it that the name stays. */
static int publish(const char *from, const char *to, struct err *e)
{
    char *dir = fs_parent(to);
    int rc = rename(from, to) < 0 ? err_set_errno(e, "renaming %s to %s", from, to) : fs_fsync_dir(dir, e);

    free(dir);
    return rc;
}

static int open_new(const char *path, sqlite3 **db, struct err *e)
{
    if (unlink(path) == 0 || !fs_exists(path)) {
        if (sqlite3_open_v2(path, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
                            NULL) == SQLITE_OK)
            return 0;
        return store_sql_fail(*db, path, "opening", e);
    }
    return err_set_errno(e, "removing %s", path);
}

int store_schema_create(const char *path, struct err *e)
{
    char *new = xasprintf("%s.new", path), app[64];
    sqlite3 *db = NULL;
    int rc = open_new(new, &db, e), n_steps = 0;

    snprintf(app, sizeof app, "PRAGMA application_id = %d", APPLICATION_ID);
    if (rc == 0)
        rc = store_sql_exec(db, path, app, e);
    for (int v = 0; rc == 0 && v < STORE_SCHEMA_VERSION; v++)
        rc = step(db, path, v, &n_steps, e);
    sqlite3_close(db);
    if (rc == 0)
        rc = publish(new, path, e);
    if (rc < 0)
        unlink(new);
    free(new);
    return rc;
}

/* Page by page, what the WAL holds included. */
static int copy_to(sqlite3 *db, sqlite3 *copy, const char *to, struct err *e)
{
    sqlite3_backup *b = sqlite3_backup_init(copy, "main", db, "main");

    if (b) {
        sqlite3_backup_step(b, -1);
        sqlite3_backup_finish(b);
    }
    return sqlite3_errcode(copy) == SQLITE_OK ? 0 : store_sql_fail(copy, to, "copying", e);
}

static int keep_copy(sqlite3 *db, const char *path, int version, struct err *e)
{
    char *to = xasprintf("%s.v%d.bak", path, version), *new = xasprintf("%s.new", to);
    sqlite3 *copy = NULL;
    int rc = open_new(new, &copy, e);

    if (rc == 0)
        rc = copy_to(db, copy, to, e);
    sqlite3_close(copy);
    if (rc == 0)
        rc = publish(new, to, e);
    if (rc < 0)
        unlink(new);
    free(new);
    free(to);
    return rc;
}

int store_schema_migrate(sqlite3 *db, const char *path, int version, struct err *e)
{
    int n_steps = 0;

    if (version == STORE_SCHEMA_VERSION)
        return 0;
    if (keep_copy(db, path, version, e) < 0)
        return -1;
    for (; version < STORE_SCHEMA_VERSION; version++)
        if (step(db, path, version, &n_steps, e) < 0)
            return -1;
    return 0;
}
