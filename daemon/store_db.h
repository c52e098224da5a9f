/* store_db - what an open store is. Private to store*.c. */
#ifndef DAEMON_STORE_DB_H
#define DAEMON_STORE_DB_H

#include <sqlite3.h>
#include <stdbool.h>

enum store_statement {
    SQL_BEGIN,
    SQL_COMMIT,
    SQL_ROLLBACK,
    SQL_ADD_JOB,
    SQL_FIND_KEY,
    SQL_ADD_EVENT,
    SQL_SPEC,
    SQL_EVENTS,
    SQL_JOB_EVENTS,
    SQL_SET_NODE,
    SQL_NODES,
    SQL_JOBS,
    N_STATEMENTS
};

struct store {
    sqlite3 *db;
    char *path;
    int version; /* of the schema that the file has */
    sqlite3_stmt *st[N_STATEMENTS];
    bool marked; /* PATH-open is ours */
    int commit_fault, committed_fault;
};

#endif
