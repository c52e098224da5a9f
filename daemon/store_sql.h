/* store_sql - what every part of the store does with SQLite: run a text, read one value, say what went wrong.
 * Private to store*.c.
 */
#ifndef DAEMON_STORE_SQL_H
#define DAEMON_STORE_SQL_H

#include <sqlite3.h>
#include <stddef.h>
#include "common/err.h"

/* Sets the error of the last call on db: "PATH: what: …". A full disk has kind ERR_NO_SPACE and says how much
 * is free there. */
int store_sql_fail(sqlite3 *db, const char *path, const char *what, struct err *e);

/* "PATH is damaged (why): …" and what to do. */
int store_sql_damaged(const char *path, const char *why, struct err *e);

/* Runs statements that give no rows. */
int store_sql_exec(sqlite3 *db, const char *path, const char *text, struct err *e);

/* The first column of the first row of a query that always has one. */
int store_sql_text(sqlite3 *db, const char *path, const char *text, char *out, size_t size, struct err *e);

#endif
