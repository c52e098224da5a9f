/* store_check - what a database can say of itself; see store.h. */
#include "daemon/store.h"
#include "daemon/store_db.h"
#include "daemon/store_sql.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct finder {
    struct store *store;
    store_fault_fn *fn;
    void *ctx;
};

static void found(const struct finder *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void found(const struct finder *f, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    for (char *p = text; *p; p++)
        if (*p == '\n')
            *p = ' ';
    f->fn(f->ctx, text);
}

/* Runs a query and gives each of its rows to `row`. */
static int each_row(const struct finder *f, const char *sql,
                    void (*row)(const struct finder *f, sqlite3_stmt *st), struct err *e)
{
    struct store *s = f->store;
    sqlite3_stmt *st;
    int step = sqlite3_prepare_v2(s->db, sql, -1, &st, NULL);

    if (step == SQLITE_OK)
        while ((step = sqlite3_step(st)) == SQLITE_ROW)
            row(f, st);
    sqlite3_finalize(st);
    if (step == SQLITE_DONE)
        return 0;
    step &= 0xff;
    return step == SQLITE_CORRUPT || step == SQLITE_NOTADB
               ? store_sql_damaged(s->path, sqlite3_errmsg(s->db), e)
               : store_sql_fail(s->db, s->path, sql, e);
}

static void integrity_row(const struct finder *f, sqlite3_stmt *st)
{
    const char *text = (const char *)sqlite3_column_text(st, 0);

    if (text && strcmp(text, "ok") != 0)
        found(f, "%s", text);
}

static void reference_row(const struct finder *f, sqlite3_stmt *st)
{
    found(f, "row %lld of table %s refers to a row of table %s that does not exist",
          (long long)sqlite3_column_int64(st, 1), (const char *)sqlite3_column_text(st, 0),
          (const char *)sqlite3_column_text(st, 2));
}

static void counter_row(const struct finder *f, sqlite3_stmt *st)
{
    found(f, "the counter of table %s is %lld and its largest number %lld: numbers would be given again",
          (const char *)sqlite3_column_text(st, 0), (long long)sqlite3_column_int64(st, 1),
          (long long)sqlite3_column_int64(st, 2));
}

static void gap_row(const struct finder *f, sqlite3_stmt *st)
{
    long long from = sqlite3_column_int64(st, 0), to = sqlite3_column_int64(st, 1);

    if (from == to)
        found(f, "event %lld is missing", from);
    else
        found(f, "events %lld to %lld are missing", from, to);
}

static void number_row(const struct finder *f, sqlite3_stmt *st)
{
    found(f, "table %s has the number %lld: numbers begin at 1", (const char *)sqlite3_column_text(st, 0),
          (long long)sqlite3_column_int64(st, 1));
}

int store_check(struct store *s, store_fault_fn *fn, void *ctx, struct err *e)
{
    static const struct {
        const char *sql;
        void (*row)(const struct finder *f, sqlite3_stmt *st);
    } queries[] = {
        {"PRAGMA integrity_check(100)", integrity_row},
        {"PRAGMA foreign_key_check", reference_row},
        {"SELECT name, seq, most FROM"
         " (SELECT 'jobs' AS name, ifnull(max(id), 0) AS most FROM jobs"
         "  UNION ALL SELECT 'events', ifnull(max(seq), 0) FROM events)"
         " LEFT JOIN (SELECT name, ifnull(seq, 0) AS seq FROM sqlite_sequence) USING(name)"
         " WHERE most > ifnull(seq, 0)",
         counter_row},
        {"SELECT 'jobs', id FROM jobs WHERE id < 1 UNION ALL SELECT 'events', seq FROM events WHERE seq < 1",
         number_row},
        /* Events are numbered without gaps: a transaction that is rolled back gives its numbers back. */
        {"SELECT before + 1, seq - 1 FROM (SELECT seq, lag(seq, 1, 0) OVER (ORDER BY seq) AS before FROM "
         "events)"
         " WHERE seq > before + 1",
         gap_row},
        {"SELECT ifnull(max(events.seq), 0) + 1, counter.seq FROM sqlite_sequence AS counter LEFT JOIN events"
         " WHERE counter.name = 'events' GROUP BY counter.name HAVING counter.seq > ifnull(max(events.seq), "
         "0)",
         gap_row},
    };
    struct finder f = {s, fn, ctx};

    for (size_t i = 0; i < sizeof queries / sizeof *queries; i++)
        if (each_row(&f, queries[i].sql, queries[i].row, e) < 0)
            return -1;
    return 0;
}

int store_last_id(struct store *s, int64_t *id, struct err *e)
{
    char text[32];

    if (store_sql_text(s->db, s->path,
                       "SELECT ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'jobs'), 0)", text,
                       sizeof text, e) < 0)
        return -1;
    *id = strtoll(text, NULL, 10);
    return 0;
}

int64_t store_each_job(struct store *s, store_job_fn *fn, void *ctx, struct err *e)
{
    sqlite3_stmt *st = s->st[SQL_JOBS];
    int64_t n = 0;
    int step, rc = 0;

    while (rc == 0 && (step = sqlite3_step(st)) == SQLITE_ROW) {
        const char *spec = (const char *)sqlite3_column_text(st, 2);
        rc = fn(ctx, sqlite3_column_int64(st, 0), sqlite3_column_int64(st, 1), spec ? spec : "", e);
        n++;
    }
    if (rc == 0 && step != SQLITE_DONE)
        rc = store_sql_fail(s->db, s->path, "reading jobs", e);
    sqlite3_reset(st);
    return rc < 0 ? -1 : n;
}
