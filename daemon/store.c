/* store - see store.h.
 *
 * Statements are prepared once at opening and reset after each use. A statement that fails inside a
 * transaction leaves the transaction open; the caller rolls back.
 *
 * Beside state.db lies state.db-wal, which holds what was committed since the last checkpoint. SQLite takes a
 * database whose WAL was removed for a whole one, of the past. So state.db-open says that a WAL belongs to
 * the database: it is made once the WAL is there and goes before the WAL does, at an orderly close. Where it
 * lies and no WAL, something is missing. That is also why nothing but an orderly close may let SQLite remove
 * the WAL (SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE).
 */
#include "daemon/store.h"
#include "common/fault.h"
#include "common/fsutil.h"
#include "daemon/store_db.h"
#include "daemon/store_schema.h"
#include "daemon/store_sql.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Each with the schema from which on it makes sense. */
static const struct {
    const char *text;
    int since;
} sql[N_STATEMENTS] = {
    [SQL_BEGIN] = {"BEGIN IMMEDIATE", 1},
    [SQL_COMMIT] = {"COMMIT", 1},
    [SQL_ROLLBACK] = {"ROLLBACK", 1},
    [SQL_ADD_JOB] = {"INSERT INTO jobs(uid, idempotency_key, spec) VALUES(?1, ?2, ?3)", 1},
    [SQL_FIND_KEY] = {"SELECT id FROM jobs WHERE uid = ?1 AND idempotency_key = ?2", 1},
    [SQL_ADD_EVENT] = {"INSERT INTO events(job, time_ms, data) VALUES(?1, ?2, ?3)", 1},
    [SQL_SPEC] = {"SELECT spec FROM jobs WHERE id = ?1", 1},
    [SQL_EVENTS] = {"SELECT seq, job, time_ms, data FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?2", 1},
    [SQL_JOB_EVENTS] =
        {"SELECT seq, job, time_ms, data FROM events WHERE job = ?3 AND seq > ?1 ORDER BY seq LIMIT ?2", 1},
    [SQL_SET_NODE] = {"INSERT INTO nodes(name, drained, reason, since_ms) VALUES(?1, ?2, ?3, ?4)"
                      " ON CONFLICT(name) DO UPDATE SET drained = ?2, reason = ?3, since_ms = ?4",
                      2},
    [SQL_NODES] = {"SELECT name, drained, reason, since_ms FROM nodes ORDER BY name", 2},
    [SQL_JOBS] = {"SELECT id, uid, spec FROM jobs ORDER BY id", 1},
};

static int fail(struct store *s, const char *what, struct err *e)
{
    return store_sql_fail(s->db, s->path, what, e);
}

/* --- opening and closing --- */

static int prepare_all(struct store *s, struct err *e)
{
    for (int i = 0; i < N_STATEMENTS; i++)
        if (sql[i].since <= s->version &&
            sqlite3_prepare_v3(s->db, sql[i].text, -1, SQLITE_PREPARE_PERSISTENT, &s->st[i], NULL) !=
                SQLITE_OK)
            return fail(s, sql[i].text, e);
    return 0;
}

static bool beside_exists(const char *path, const char *suffix)
{
    char *name = xasprintf("%s%s", path, suffix);
    bool there = fs_exists(name);

    free(name);
    return there;
}

static bool is_empty(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == 0;
}

int store_check_parts(const char *path, struct err *e)
{
    bool marked = beside_exists(path, "-open"), wal = beside_exists(path, "-wal");

    if (!fs_exists(path) && (marked || wal))
        return err_set(
            e,
            "%s is missing, but %s%s is there: put it back, or restore all from a copy; to start with an "
            "empty one move away every file that begins with that name (the runs' directories stay)",
            path, path, wal ? "-wal" : "-open");
    if (marked && !wal)
        return err_set(
            e,
            "%s-wal is missing, which held the newest events when the coordinator ended: put it back; or, "
            "if %s was restored from a copy or another SQLite program has opened it meanwhile, remove "
            "%s-open",
            path, path, path);
    return 0;
}

/* From now on a WAL belongs to the database. */
static int mark_open(struct store *s, struct err *e)
{
    char *mark = xasprintf("%s-open", s->path), *dir = fs_parent(s->path);
    int fd = -1, rc;

    if (!beside_exists(s->path, "-wal"))
        rc = err_set(e, "%s-wal has not come to be", s->path);
    else if ((fd = open(mark, O_WRONLY | O_CREAT | O_CLOEXEC, 0600)) < 0)
        rc = err_set_errno(e, "%s", mark);
    else
        rc = fs_fsync_dir(dir, e);
    if (fd >= 0)
        close(fd);
    s->marked = rc == 0;
    free(dir);
    free(mark);
    return rc;
}

static void unmark_open(struct store *s)
{
    char *mark = xasprintf("%s-open", s->path), *dir = fs_parent(s->path);

    if (unlink(mark) == 0 && fs_fsync_dir(dir, NULL) == 0)
        sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, NULL);
    free(dir);
    free(mark);
}

/* A look that led to nothing may have made a WAL: SQLite shall take it away again. */
static void leave_no_wal(struct store *s)
{
    char *wal = xasprintf("%s-wal", s->path);

    if (is_empty(wal) && !beside_exists(s->path, "-open"))
        sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, NULL);
    free(wal);
}

static int open_db(struct store *s, const char *uri, int flags, struct err *e)
{
    if (sqlite3_open_v2(uri, &s->db, flags | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK)
        return fail(s, "opening", e);
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    sqlite3_busy_timeout(s->db, 2000);
    return 0;
}

/* Creates the file when there is none. */
static int require_file(const char *path, struct err *e)
{
    if (store_check_parts(path, e) < 0)
        return -1;
    if (!fs_exists(path))
        return store_schema_create(path, e);
    return is_empty(path) ? store_sql_damaged(path, "it is empty", e) : 0;
}

static int open_whole(struct store *s, struct err *e)
{
    char check[256];
    int version;

    if (store_schema_version(s->db, s->path, &version, e) < 0 ||
        store_sql_text(s->db, s->path, "PRAGMA quick_check(1)", check, sizeof check, e) < 0)
        return -1;
    if (strcmp(check, "ok") != 0)
        return store_sql_damaged(s->path, check, e);
    s->version = STORE_SCHEMA_VERSION;
    /* The empty transaction makes the WAL. */
    if (store_sql_exec(s->db, s->path, "PRAGMA synchronous = FULL", e) < 0 ||
        store_schema_migrate(s->db, s->path, version, e) < 0 ||
        store_sql_exec(s->db, s->path, "PRAGMA journal_mode = WAL", e) < 0 ||
        store_sql_exec(s->db, s->path, "PRAGMA foreign_keys = ON", e) < 0 ||
        store_sql_exec(s->db, s->path, "BEGIN IMMEDIATE; COMMIT", e) < 0)
        return -1;
    return mark_open(s, e);
}

struct store *store_open(const char *path, struct err *e)
{
    struct store *s;

    if (require_file(path, e) < 0)
        return NULL;
    s = xcalloc(1, sizeof *s);
    s->path = xstrdup(path);
    if (open_db(s, path, SQLITE_OPEN_READWRITE, e) < 0 || open_whole(s, e) < 0 || prepare_all(s, e) < 0) {
        store_close(s);
        return NULL;
    }
    return s;
}

/* "file:PATH?…" with what means something in a URI written in hex. */
static char *make_uri(const char *path, const char *query)
{
    char *uri = xmalloc(3 * strlen(path) + strlen(query) + 8), *to = uri + sprintf(uri, "file:");

    for (; *path; path++)
        to += sprintf(to, strchr("%?#", *path) ? "%%%02X" : "%c", (unsigned char)*path);
    sprintf(to, "?%s", query);
    return uri;
}

struct store *store_open_to_check(const char *path, struct err *e)
{
    struct store *s;

    if (is_empty(path)) {
        store_sql_damaged(path, "it is empty", e);
        return NULL;
    }
    s = xcalloc(1, sizeof *s);
    /* Without a WAL the file is all there is, and "immutable" leaves no trace beside it. */
    char *uri = make_uri(path, beside_exists(path, "-wal") ? "mode=ro" : "mode=ro&immutable=1");
    int rc;

    s->path = xstrdup(path);
    rc = open_db(s, uri, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, e);
    free(uri);
    if (rc < 0 || store_schema_version(s->db, path, &s->version, e) < 0 || prepare_all(s, e) < 0) {
        store_close(s);
        return NULL;
    }
    return s;
}

int store_version(const struct store *s)
{
    return s->version;
}

void store_close(struct store *s)
{
    if (!s)
        return;
    for (int i = 0; i < N_STATEMENTS; i++)
        sqlite3_finalize(s->st[i]);
    if (s->marked)
        unmark_open(s);
    else
        leave_no_wal(s);
    sqlite3_close(s->db);
    free(s->path);
    free(s);
}

/* --- transactions, jobs, events --- */

/* Runs a statement that gives no rows. */
static int run(struct store *s, enum store_statement which, const char *what, struct err *e)
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
    if (store_sql_exec(s->db, s->path, text, e) == 0)
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
    else
        (void)fault_hit("store.committed",
                        &s->committed_fault); /* to die here; what is durable cannot fail */
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

/* --- nodes --- */

int store_set_node(struct store *s, const struct store_node *node, struct err *e)
{
    sqlite3_stmt *st = s->st[SQL_SET_NODE];

    sqlite3_bind_text(st, 1, node->name, -1, SQLITE_STATIC);
    sqlite3_bind_int(st, 2, node->drained);
    sqlite3_bind_text(st, 3, node->reason ? node->reason : "", -1, SQLITE_STATIC);
    sqlite3_bind_int64(st, 4, node->since_ms);
    return run(s, SQL_SET_NODE, "setting a node", e);
}

int64_t store_each_node(struct store *s, store_node_fn *fn, void *ctx, struct err *e)
{
    sqlite3_stmt *st = s->st[SQL_NODES];
    int64_t n = 0;
    int step, rc = 0;

    while (rc == 0 && (step = sqlite3_step(st)) == SQLITE_ROW) {
        struct store_node node = {.name = (const char *)sqlite3_column_text(st, 0),
                                  .drained = sqlite3_column_int(st, 1) != 0,
                                  .reason = (const char *)sqlite3_column_text(st, 2),
                                  .since_ms = sqlite3_column_int64(st, 3)};
        rc = fn(ctx, &node, e);
        n++;
    }
    if (rc == 0 && step != SQLITE_DONE)
        rc = fail(s, "reading nodes", e);
    sqlite3_reset(st);
    return rc < 0 ? -1 : n;
}
