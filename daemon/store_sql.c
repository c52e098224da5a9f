/* store_sql - see store_sql.h. */
#include "daemon/store_sql.h"
#include "common/fsutil.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/statvfs.h>

static int is_full(sqlite3 *db)
{
    int rc = sqlite3_errcode(db) & 0xff, why = sqlite3_system_errno(db);

    return rc == SQLITE_FULL || (rc == SQLITE_IOERR && (why == ENOSPC || why == EDQUOT));
}

static int fail_full(const char *path, const char *what, struct err *e)
{
    char *dir = fs_parent(path);
    struct statvfs st;
    int rc;

    if (statvfs(dir, &st) == 0)
        rc = err_set_kind(e, ERR_NO_SPACE, "%s: %s: the disk is full (%llu KiB are free in %s): make room",
                          path, what, (unsigned long long)st.f_bavail * st.f_frsize / 1024, dir);
    else
        rc = err_set_kind(e, ERR_NO_SPACE, "%s: %s: the disk is full: make room", path, what);
    free(dir);
    return rc;
}

int store_sql_fail(sqlite3 *db, const char *path, const char *what, struct err *e)
{
    if (is_full(db))
        return fail_full(path, what, e);
    return err_set(e, "%s: %s: %s", path, what, sqlite3_errmsg(db));
}

int store_sql_damaged(const char *path, const char *why, struct err *e)
{
    return err_set(
        e,
        "%s is damaged (%s): restore it from a copy, or move it and the files beside it that begin with "
        "its name away to start with an empty one (the runs' directories stay)",
        path, why);
}

static int fail_or_damaged(sqlite3 *db, const char *path, int rc, const char *what, struct err *e)
{
    rc &= 0xff;
    if (rc == SQLITE_NOTADB || rc == SQLITE_CORRUPT)
        return store_sql_damaged(path, sqlite3_errmsg(db), e);
    return store_sql_fail(db, path, what, e);
}

int store_sql_exec(sqlite3 *db, const char *path, const char *text, struct err *e)
{
    int rc = sqlite3_exec(db, text, NULL, NULL, NULL);

    return rc == SQLITE_OK ? 0 : fail_or_damaged(db, path, rc, text, e);
}

int store_sql_text(sqlite3 *db, const char *path, const char *text, char *out, size_t size, struct err *e)
{
    sqlite3_stmt *st;
    int rc = sqlite3_prepare_v2(db, text, -1, &st, NULL);

    if (rc == SQLITE_OK && (rc = sqlite3_step(st)) == SQLITE_ROW) {
        const unsigned char *v = sqlite3_column_text(st, 0);
        snprintf(out, size, "%s", v ? (const char *)v : "");
        sqlite3_finalize(st);
        return 0;
    }
    fail_or_damaged(db, path, rc, text, e);
    sqlite3_finalize(st);
    return -1;
}
