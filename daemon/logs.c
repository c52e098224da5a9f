/* logs - see logs.h.
 *
 * A log is a file that grows. Following looks at the sizes every POLL_MS: a handful of fstat calls for the
 * few clients that follow, which works on every file system that jobs write to. A client that reads slowly is
 * read for slowly: while it has much unsent, nothing more is read.
 */
#include "daemon/logs.h"
#include "common/buf.h"
#include "common/utf8.h"
#include "daemon/as_user.h"
#include "daemon/conn.h"
#include "daemon/daemon.h"
#include "daemon/run_dir.h"

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    POLL_MS = 200,
    TAIL_BYTES = 192 << 10, /* of one file; JSON may double it and a reply has at most 1 MiB */
    CHUNK_BYTES = 32 << 10,
    MAX_LINE_BYTES = 8 << 10,
    STAMP_BYTES = 24, /* "2026-01-31T09:30:00.123Z" */
    MAX_FILES = 1024
};

struct line {
    char *text; /* owned */
    int64_t rank;
    char stamp[STAMP_BYTES + 1]; /* of this line, or of the last one before it that had one */
    size_t order;
};

struct followed {
    int64_t rank;
    off_t at; /* everything before was sent */
};

struct follow {
    uv_timer_t timer;
    struct conn *conn;
    int64_t job, rank;
    char *run_dir;
    struct followed *files;
    size_t n_files;
    bool seen_end; /* the job had ended before the last look: one more look finds all */
};

struct lines {
    struct line *v;
    size_t n, cap;
};

/* --- text --- */

/* A copy that is valid UTF-8 without NUL, cut to MAX_LINE_BYTES. malloc'ed. */
static char *clean_line(const char *text, size_t n)
{
    struct buf b;
    buf_init(&b, MAX_LINE_BYTES + 8);

    for (size_t i = 0; i < n && b.len < MAX_LINE_BYTES;) {
        size_t len = text[i] ? utf8_len((const unsigned char *)text + i, n - i) : 0;
        if (len)
            buf_append(&b, text + i, len, NULL);
        else
            buf_append(&b, "\xEF\xBF\xBD", 3, NULL);
        i += len ? len : 1;
    }
    return b.data ? b.data : xcalloc(1, 1);
}

static cJSON *line_to_json(int64_t rank, const char *text)
{
    cJSON *v = cJSON_CreateObject();

    if (rank >= 0)
        cJSON_AddNumberToObject(v, "rank", (double)rank);
    cJSON_AddStringToObject(v, "line", text);
    return v;
}

/* --- files --- */

static int compare_ranks(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return x < y ? -1 : x > y;
}

/* Which files there are for `rank`: itself, or all (the launcher's first). */
static size_t list_files(const char *run_dir, int64_t rank, int64_t out[MAX_FILES])
{
    size_t n = 0;

    if (rank != LOGS_ALL) {
        out[0] = rank;
        return 1;
    }
    out[n++] = LOGS_LAUNCHER;
    char *dir = xasprintf("%s/log", run_dir), *end;
    struct as_user as;
    DIR *d = NULL;
    if (as_user_enter_owner(&as, run_dir, NULL) == 0) {
        d = opendir(dir);
        as_user_leave(&as);
    }
    free(dir);
    for (struct dirent *ent; d && n < MAX_FILES && (ent = readdir(d));) {
        if (strncmp(ent->d_name, "rank-", 5) != 0 || !isdigit((unsigned char)ent->d_name[5]))
            continue;
        int64_t r = strtoll(ent->d_name + 5, &end, 10);
        if (strcmp(end, ".log") == 0)
            out[n++] = r;
    }
    if (d)
        closedir(d);
    qsort(out, n, sizeof *out, compare_ranks);
    return n;
}

static int open_log(const char *run_dir, int64_t rank)
{
    char *path = run_dir_log(run_dir, rank);
    int fd = run_dir_open(run_dir, path, NULL);

    free(path);
    return fd;
}

/* --- tail --- */

static void add_line(struct lines *ls, int64_t rank, const char *text, size_t n, const char *stamp)
{
    if (ls->n == ls->cap) {
        ls->cap = ls->cap ? ls->cap * 2 : 256;
        ls->v = xrealloc(ls->v, ls->cap * sizeof *ls->v);
    }
    struct line *l = &ls->v[ls->n];
    *l = (struct line){.text = clean_line(text, n), .rank = rank, .order = ls->n};
    memcpy(l->stamp, stamp, sizeof l->stamp);
    ls->n++;
}

static bool has_stamp(const char *s, size_t n)
{
    return n >= STAMP_BYTES && s[4] == '-' && s[10] == 'T' && s[23] == 'Z';
}

/* Where following begins, or the end of the file. */
static off_t readable_end(const struct follow *upto, int64_t rank, off_t size)
{
    if (!upto)
        return size;
    for (size_t i = 0; i < upto->n_files; i++)
        if (upto->files[i].rank == rank)
            return upto->files[i].at;
    return 0;
}

/* Adds the last `tail` lines of a text; the last one may lack its newline. */
static void add_tail(struct lines *ls, int64_t rank, const char *text, size_t len, int64_t tail)
{
    char stamp[STAMP_BYTES + 1] = "";
    size_t n_lines = len && text[len - 1] != '\n';

    for (size_t i = 0; i < len; i++)
        n_lines += text[i] == '\n';
    for (size_t at = 0, skip = n_lines > (size_t)tail ? n_lines - (size_t)tail : 0; at < len;) {
        const char *nl = memchr(text + at, '\n', len - at);
        size_t n = nl ? (size_t)(nl - (text + at)) : len - at;
        if (has_stamp(text + at, n))
            memcpy(stamp, text + at, STAMP_BYTES);
        if (skip)
            skip--;
        else
            add_line(ls, rank, text + at, n, stamp);
        at += n + 1;
    }
}

/* Adds the last `tail` lines among the last TAIL_BYTES of a file. */
static void tail_file(struct lines *ls, const char *run_dir, int64_t rank, int64_t tail,
                      const struct follow *upto)
{
    int fd = open_log(run_dir, rank);
    struct stat st;

    if (fd < 0)
        return;
    off_t end = fstat(fd, &st) == 0 ? readable_end(upto, rank, st.st_size) : 0;
    if (end > 0) {
        off_t from = end > TAIL_BYTES ? end - TAIL_BYTES : 0;
        char *text = xmalloc(TAIL_BYTES);
        ssize_t n = pread(fd, text, (size_t)(end - from), from);
        size_t len = n > 0 ? (size_t)n : 0;
        const char *nl = from ? memchr(text, '\n', len) : NULL; /* then the first line is cut */
        size_t at = nl ? (size_t)(nl - text) + 1 : 0;
        add_tail(ls, rank, text + at, len - at, tail);
        free(text);
    }
    close(fd);
}

static int compare_lines(const void *a, const void *b)
{
    const struct line *x = a, *y = b;
    int c = strcmp(x->stamp, y->stamp);

    return c ? c : x->order < y->order ? -1 : x->order > y->order;
}

cJSON *logs_tail(const char *run_dir, int64_t rank, int64_t tail, const struct follow *upto)
{
    int64_t files[MAX_FILES];
    size_t n_files = list_files(run_dir, rank, files), first, bytes = 0;
    struct lines ls = {0};
    cJSON *out = cJSON_CreateArray();

    for (size_t i = 0; i < n_files; i++)
        tail_file(&ls, run_dir, files[i], tail, upto);
    if (ls.n && n_files > 1)
        qsort(ls.v, ls.n, sizeof *ls.v, compare_lines);
    for (first = ls.n; first > 0 && ls.n - first < (size_t)tail; first--) {
        bytes += strlen(ls.v[first - 1].text) + 32;
        if (bytes > TAIL_BYTES)
            break;
    }
    for (size_t i = 0; i < ls.n; i++) {
        if (i >= first)
            cJSON_AddItemToArray(out, line_to_json(ls.v[i].rank, ls.v[i].text));
        free(ls.v[i].text);
    }
    free(ls.v);
    return out;
}

/* --- follow --- */

static void on_closed(uv_handle_t *h)
{
    struct follow *f = h->data;

    free(f->files);
    free(f->run_dir);
    free(f);
}

void logs_follow_end(struct conn *c)
{
    if (!c->follow)
        return;
    uv_close((uv_handle_t *)&c->follow->timer, on_closed);
    c->follow = NULL;
}

/* End of the last whole line, so that a line is never sent in two pieces. */
static off_t whole_lines_end(const char *run_dir, int64_t rank)
{
    int fd = open_log(run_dir, rank);
    struct stat st;
    off_t end = 0;

    if (fd < 0)
        return 0;
    if (fstat(fd, &st) == 0) {
        char last[4096];
        end = st.st_size;
        off_t from = end > (off_t)sizeof last ? end - (off_t)sizeof last : 0;
        ssize_t n = pread(fd, last, sizeof last, from);
        while (n > 0 && last[n - 1] != '\n')
            n--;
        end = n > 0 ? from + n : from;
    }
    close(fd);
    return end;
}

static void send_note(struct follow *f, cJSON *params)
{
    cJSON_AddNumberToObject(params, "id", (double)f->job);
    conn_send(f->conn, rpc_notification("job.log", params));
}

/* Sends the new whole lines of one file; a line longer than a chunk is sent in chunks. With `last` a line
 * that lacks its newline counts as whole. True when there may be more. */
static bool send_new(struct follow *f, struct followed *file, bool last)
{
    int fd = open_log(f->run_dir, file->rank);
    char *text = xmalloc(CHUNK_BYTES);
    ssize_t n = fd >= 0 ? pread(fd, text, CHUNK_BYTES, file->at) : 0;
    size_t len = n > 0 ? (size_t)n : 0, at = 0;

    if (fd >= 0)
        close(fd);
    while (at < len && !f->conn->closing) {
        char *nl = memchr(text + at, '\n', len - at);
        if (!nl && !(at == 0 && len == CHUNK_BYTES) && !(last && len < CHUNK_BYTES))
            break;
        size_t line_len = nl ? (size_t)(nl - (text + at)) : len - at;
        char *clean = clean_line(text + at, line_len);
        send_note(f, line_to_json(file->rank, clean));
        free(clean);
        at += line_len + (nl ? 1 : 0);
    }
    file->at += (off_t)at;
    free(text);
    return len == CHUNK_BYTES && at > 0;
}

/* Ranks' logs appear while the job starts. */
static void find_new_files(struct follow *f)
{
    int64_t ranks[MAX_FILES];
    size_t n = list_files(f->run_dir, f->rank, ranks);

    for (size_t i = 0; i < n; i++) {
        size_t k = 0;
        while (k < f->n_files && f->files[k].rank != ranks[i])
            k++;
        if (k < f->n_files)
            continue;
        f->files = xrealloc(f->files, (f->n_files + 1) * sizeof *f->files);
        f->files[f->n_files++] = (struct followed){.rank = ranks[i]};
    }
}

static void on_poll(uv_timer_t *t)
{
    struct follow *f = t->data;
    struct conn *c = f->conn;
    const struct job *job = jobs_find(&c->daemon->jobs, f->job);
    bool ended = job_state_is_final(job->state), more = false;

    if (conn_unsent(c) > CONN_OUT_HIGH_BYTES)
        return;
    find_new_files(f);
    for (size_t i = 0; i < f->n_files && !c->closing; i++)
        more = send_new(f, &f->files[i], ended && f->seen_end) || more;
    if (c->closing || more)
        return;
    if (ended && f->seen_end) {
        cJSON *params = cJSON_CreateObject();
        cJSON_AddTrueToObject(params, "end");
        send_note(f, params);
        logs_follow_end(c);
        return;
    }
    f->seen_end = ended;
}

void logs_follow(struct conn *c, const struct job *job, const char *run_dir, int64_t rank)
{
    struct follow *f = xcalloc(1, sizeof *f);

    logs_follow_end(c);
    f->conn = c;
    f->job = job->id;
    f->rank = rank;
    f->run_dir = xstrdup(run_dir);
    find_new_files(f);
    for (size_t i = 0; i < f->n_files; i++)
        f->files[i].at = whole_lines_end(run_dir, f->files[i].rank);
    uv_timer_init(&c->daemon->loop, &f->timer);
    f->timer.data = f;
    uv_timer_start(&f->timer, on_poll, 0, POLL_MS);
    c->follow = f;
}
