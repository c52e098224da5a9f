/* tokens - see tokens.h. */
#include "daemon/tokens.h"
#include "common/clock.h"
#include "common/fsutil.h"
#include "common/json.h"
#include "proto/tls.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_FILE_BYTES = 16 << 20, HOUR_MS = 3600000, WRITE_USES_EVERY_MS = 60000 };

static const char prefix[] = "bft_";

struct list {
    struct token *v; /* ids rise */
    size_t n;
    int64_t last_id;
};

struct tokens {
    char *path;
    const struct log *log;
    struct list list;
    struct stat seen; /* of the file that `list` is; st_ino 0: there is none */
    bool uses_unwritten;
    int64_t next_write_ms;
};

/* --- hex --- */

static void to_hex(const unsigned char *raw, size_t n, char *out)
{
    for (size_t i = 0; i < n; i++)
        snprintf(out + 2 * i, 3, "%02x", raw[i]);
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int from_hex(const char *text, unsigned char *out, size_t n)
{
    if (strlen(text) != 2 * n)
        return -1;
    for (size_t i = 0; i < n; i++) {
        int hi = hex_digit(text[2 * i]), lo = hex_digit(text[2 * i + 1]);
        if (hi < 0 || lo < 0)
            return -1;
        out[i] = (unsigned char)(hi << 4 | lo);
    }
    return 0;
}

/* --- the file --- */

static void add_time(cJSON *v, const char *key, int64_t ms)
{
    cJSON_AddItemToObject(v, key, ms ? cJSON_CreateNumber((double)ms) : cJSON_CreateNull());
}

static cJSON *to_json(const struct list *l)
{
    cJSON *doc = cJSON_CreateObject(), *all;

    cJSON_AddNumberToObject(doc, "version", 1);
    cJSON_AddNumberToObject(doc, "last_id", (double)l->last_id);
    all = cJSON_AddArrayToObject(doc, "tokens");
    for (size_t i = 0; i < l->n; i++) {
        const struct token *t = &l->v[i];
        char hash[2 * TOKEN_HASH_BYTES + 1];
        cJSON *v = cJSON_CreateObject();
        to_hex(t->hash, sizeof t->hash, hash);
        cJSON_AddNumberToObject(v, "id", (double)t->id);
        cJSON_AddStringToObject(v, "sha256", hash);
        cJSON_AddStringToObject(v, "user", t->user);
        cJSON_AddNumberToObject(v, "uid", (double)t->uid);
        cJSON_AddStringToObject(v, "role", role_name(t->role));
        cJSON_AddStringToObject(v, "note", t->note);
        cJSON_AddStringToObject(v, "by", t->by);
        add_time(v, "created_ms", t->created_ms);
        add_time(v, "expires_ms", t->expires_ms);
        add_time(v, "used_ms", t->used_ms);
        cJSON_AddItemToArray(all, v);
    }
    return doc;
}

/* null is 0. */
static int get_time(const cJSON *v, const char *at, const char *key, int64_t *out, struct err *e)
{
    *out = 0;
    if (cJSON_IsNull(json_find(v, key)))
        return 0;
    return json_get_int(v, at, key, 1, (int64_t)1 << 53, out, e);
}

static int get_text(const cJSON *v, const char *at, const char *key, char *out, size_t size, struct err *e)
{
    const char *text;

    if (json_get_str(v, at, key, &text, e) < 0)
        return -1;
    if (strlen(text) >= size)
        return err_set(e, "%s/%s: %zu bytes found, at most %zu are accepted", at, key, strlen(text),
                       size - 1);
    strcpy(out, text);
    return 0;
}

static int one_from_json(const cJSON *v, const char *at, int64_t above, int64_t last_id, struct token *t,
                         struct err *e)
{
    char hash[2 * TOKEN_HASH_BYTES + 1], role[16];

    *t = (struct token){0};
    if (json_get_int(v, at, "id", above + 1, last_id, &t->id, e) < 0 ||
        get_text(v, at, "sha256", hash, sizeof hash, e) < 0 ||
        get_text(v, at, "user", t->user, sizeof t->user, e) < 0 ||
        json_get_int(v, at, "uid", 0, 0xfffffffe, &t->uid, e) < 0 ||
        get_text(v, at, "role", role, sizeof role, e) < 0 ||
        get_text(v, at, "note", t->note, sizeof t->note, e) < 0 ||
        get_text(v, at, "by", t->by, sizeof t->by, e) < 0 ||
        get_time(v, at, "created_ms", &t->created_ms, e) < 0 ||
        get_time(v, at, "expires_ms", &t->expires_ms, e) < 0 ||
        get_time(v, at, "used_ms", &t->used_ms, e) < 0)
        return -1;
    if (from_hex(hash, t->hash, sizeof t->hash) < 0)
        return err_set(e, "%s/sha256: 64 hex digits are accepted", at);
    return role_parse(role, &t->role, e) < 0 ? err_wrap(e, "%s/role", at) : 0;
}

static int from_json(const cJSON *doc, struct list *out, struct err *e)
{
    const cJSON *all = json_find(doc, "tokens");
    int64_t version, last_id;
    int n = cJSON_GetArraySize(all);
    struct list l = {0};
    char at[48];

    if (json_get_int(doc, "", "version", 1, 1, &version, e) < 0 ||
        json_get_int(doc, "", "last_id", 0, (int64_t)1 << 53, &last_id, e) < 0)
        return -1;
    if (!cJSON_IsArray(all) || n > TOKENS_MAX)
        return err_set(e, "/tokens: an array of at most %d objects is accepted", TOKENS_MAX);
    l.last_id = last_id;
    l.v = xcalloc((size_t)n + 1, sizeof *l.v);
    for (const cJSON *v = all->child; v; v = v->next, l.n++) {
        snprintf(at, sizeof at, "/tokens/%zu", l.n);
        if (one_from_json(v, at, l.n ? l.v[l.n - 1].id : 0, last_id, &l.v[l.n], e) < 0) {
            free(l.v);
            return -1;
        }
    }
    *out = l;
    return 0;
}

/* Who may write the file may let himself in. */
static int check_mode(const char *path, const struct stat *st, struct err *e)
{
    if (!S_ISREG(st->st_mode))
        return err_set(e, "%s is not a file", path);
    if (st->st_mode & 0077)
        return err_set(e, "%s has mode %04o: chmod 600 is accepted, for nobody else may read or change it",
                       path, (unsigned)(st->st_mode & 07777));
    if (st->st_uid != geteuid() && st->st_uid != 0)
        return err_set(e, "%s belongs to user %lu, who is neither root nor the coordinator's user", path,
                       (unsigned long)st->st_uid);
    return 0;
}

static int load(struct tokens *t, struct err *e)
{
    struct list l = {0};
    struct stat st;

    if (lstat(t->path, &st) < 0) {
        if (errno != ENOENT)
            return err_set_errno(e, "%s", t->path);
        l.last_id = t->list.last_id;
        st = (struct stat){0};
    } else {
        if (check_mode(t->path, &st, e) < 0)
            return -1;
        cJSON *doc = json_read_file(t->path, MAX_FILE_BYTES, e);
        int rc = doc ? from_json(doc, &l, e) : -1;
        cJSON_Delete(doc);
        if (rc < 0)
            return doc ? err_wrap(e, "%s", t->path) : -1;
    }
    free(t->list.v);
    t->list = l;
    t->seen = st;
    t->uses_unwritten = false;
    return 0;
}

static int save(struct tokens *t, const struct list *l, struct err *e)
{
    cJSON *doc = to_json(l);
    char *text = json_text_pretty(doc);
    int rc = fs_atomic_replace_private(t->path, text, strlen(text), e);

    free(text);
    cJSON_Delete(doc);
    if (rc == 0 && lstat(t->path, &t->seen) < 0)
        t->seen = (struct stat){0};
    if (rc == 0)
        t->uses_unwritten = false;
    return rc;
}

struct tokens *tokens_open(const char *path, const struct log *log, struct err *e)
{
    struct tokens *t = xcalloc(1, sizeof *t);

    t->path = xstrdup(path);
    t->log = log;
    if (load(t, e) == 0)
        return t;
    free(t->path);
    free(t);
    return NULL;
}

void tokens_close(struct tokens *t)
{
    struct err e = ERR_INIT;

    if (!t)
        return;
    if (t->uses_unwritten && save(t, &t->list, &e) < 0)
        log_warn(t->log, "last uses of tokens are not noted: %s", e.msg);
    free(t->list.v);
    free(t->path);
    free(t);
}

void tokens_tend(struct tokens *t)
{
    struct stat st = {0};
    struct err e = ERR_INIT;
    int64_t now = clock_wall_ms();

    if (lstat(t->path, &st) < 0)
        st = (struct stat){0};
    if (st.st_ino != t->seen.st_ino || st.st_size != t->seen.st_size ||
        st.st_mtim.tv_sec != t->seen.st_mtim.tv_sec || st.st_mtim.tv_nsec != t->seen.st_mtim.tv_nsec) {
        if (load(t, &e) == 0) {
            log_info(t->log, "%s was changed: %zu tokens", t->path, t->list.n);
        } else {
            log_error(t->log, "the changed file of tokens is not used: %s", e.msg);
            t->seen = st; /* not again before the next change */
        }
    } else if (t->uses_unwritten && now >= t->next_write_ms) {
        t->next_write_ms = now + WRITE_USES_EVERY_MS;
        if (save(t, &t->list, &e) < 0)
            log_warn(t->log, "last uses of tokens are not noted yet: %s", e.msg);
    }
}

/* --- looking --- */

static bool is_over(const struct token *k, int64_t now_ms)
{
    return k->expires_ms && now_ms >= k->expires_ms;
}

/* All bytes of all tokens are looked at, whatever is found where. */
const struct token *tokens_match(const struct tokens *t, const char *secret, int64_t now_ms)
{
    unsigned char hash[TOKEN_HASH_BYTES];
    const struct token *found = NULL;

    tls_sha256(secret, strlen(secret), hash);
    for (size_t i = 0; i < t->list.n; i++) {
        unsigned diff = 0;
        for (size_t k = 0; k < sizeof hash; k++)
            diff |= (unsigned)(hash[k] ^ t->list.v[i].hash[k]);
        if (diff == 0)
            found = &t->list.v[i];
    }
    return found && !is_over(found, now_ms) ? found : NULL;
}

static struct token *find(const struct tokens *t, int64_t id)
{
    for (size_t i = 0; i < t->list.n; i++)
        if (t->list.v[i].id == id)
            return &t->list.v[i];
    return NULL;
}

const struct token *tokens_get(const struct tokens *t, int64_t id, int64_t now_ms)
{
    const struct token *k = find(t, id);

    return k && !is_over(k, now_ms) ? k : NULL;
}

const struct token *tokens_at(const struct tokens *t, size_t i)
{
    return i < t->list.n ? &t->list.v[i] : NULL;
}

/* --- changing --- */

static int make_secret(char secret[TOKEN_TEXT_BYTES], struct err *e)
{
    unsigned char raw[32];

    if (getrandom(raw, sizeof raw, 0) != (ssize_t)sizeof raw)
        return err_set_errno(e, "the system gives no random numbers");
    memcpy(secret, prefix, sizeof prefix);
    to_hex(raw, sizeof raw, secret + sizeof prefix - 1);
    return 0;
}

/* Writes the new list and, when that is done, takes it; it owns the list. */
static int replace(struct tokens *t, struct list *l, struct err *e)
{
    if (save(t, l, e) < 0) {
        free(l->v);
        return -1;
    }
    free(t->list.v);
    t->list = *l;
    return 0;
}

static struct list copy_list(const struct list *from)
{
    struct list l = *from;

    l.v = xcalloc(from->n + 1, sizeof *l.v); /* room for one more */
    if (from->n)
        memcpy(l.v, from->v, from->n * sizeof *l.v);
    return l;
}

int tokens_create(struct tokens *t, const struct token *as, int64_t *id, char secret[TOKEN_TEXT_BYTES],
                  struct err *e)
{
    if (t->list.n >= TOKENS_MAX)
        return err_set(e, "there are %d tokens already, and no more are possible: revoke some", TOKENS_MAX);
    if (make_secret(secret, e) < 0)
        return -1;
    struct list l = copy_list(&t->list);
    struct token *k = &l.v[l.n++];
    *k = *as;
    k->id = ++l.last_id;
    k->used_ms = 0;
    tls_sha256(secret, strlen(secret), k->hash);
    *id = k->id;
    return replace(t, &l, e);
}

int tokens_revoke(struct tokens *t, int64_t id, struct err *e)
{
    const struct token *k = find(t, id);

    if (!k)
        return err_set_kind(e, ERR_USAGE, "there is no token %lld", (long long)id);
    size_t at = (size_t)(k - t->list.v);
    struct list l = copy_list(&t->list);
    memmove(l.v + at, l.v + at + 1, (l.n - at - 1) * sizeof *l.v);
    l.n--;
    return replace(t, &l, e);
}

void tokens_used(struct tokens *t, int64_t id, int64_t now_ms)
{
    struct token *k = find(t, id);
    int64_t hour = now_ms - now_ms % HOUR_MS;

    if (!k || k->used_ms == hour)
        return;
    k->used_ms = hour;
    t->uses_unwritten = true;
}
