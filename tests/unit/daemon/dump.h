/* dump - the committed databases of old: loading one, and breaking it with SQL. */
#ifndef TESTS_UNIT_DAEMON_DUMP_H
#define TESTS_UNIT_DAEMON_DUMP_H

#include <sqlite3.h>
#include <stdlib.h>
#include "common/fsutil.h"

static inline void run_sql(const char *path, const char *text)
{
    sqlite3 *db;

    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    if (sqlite3_exec(db, text, NULL, NULL, NULL) != SQLITE_OK)
        fail_msg("%s: %s", text, sqlite3_errmsg(db));
    sqlite3_close(db);
}

/* data/schemaN.sql as a database in WAL mode, as a coordinator of then left it. */
static inline void load_dump(const char *path, int version)
{
    char *from = xasprintf("%s/tests/unit/daemon/data/schema%d.sql", SOURCE_DIR, version), *text;
    size_t len;

    assert_int_equal(fs_read_file(from, 1 << 20, &text, &len, NULL), 0);
    run_sql(path, text);
    run_sql(path, "PRAGMA journal_mode = WAL");
    free(text);
    free(from);
}

#endif
