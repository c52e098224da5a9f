/* store_schema - the versions of state.db: what each one adds, how a new file comes to be, and how an older
 * one becomes the newest. Private to store*.c.
 */
#ifndef DAEMON_STORE_SCHEMA_H
#define DAEMON_STORE_SCHEMA_H

#include <sqlite3.h>
#include "common/err.h"

/* Refuses a database that is not ours or was written by a newer version; else *version. Writes nothing. */
int store_schema_version(sqlite3 *db, const char *path, int *version, struct err *e);

/* Makes a new database of the newest version. It appears under its name when it is whole, so that an empty
 * file of that name is never a beginning, always damage. */
int store_schema_create(const char *path, struct err *e);

/* Brings an open database from `version` to the newest one, a step at a time, each in one transaction. Keeps
 * a copy of it as it was, "PATH.v1.bak" for version 1. */
int store_schema_migrate(sqlite3 *db, const char *path, int version, struct err *e);

#endif
