/* tuning - see tuning.h. A list: a network has some dozens of problems, and looks them up when it is compiled
 * only. */
#include "worker/engine/tuning.h"

#include <stdlib.h>
#include <string.h>
#include "common/fsutil.h"
#include "common/json.h"

enum { FILE_VERSION = 1, FILE_MAX_BYTES = 16 << 20 };

struct entry {
    char *key, *choice;
};

struct entries {
    struct entry *v;
    int n;
};

struct tuning {
    struct entries all;
    bool measures;
    const struct log *log;
    int64_t local_rows, rank0_rows;
    struct tuning_counts counts;
};

static void entries_free(struct entries *all)
{
    for (int i = 0; i < all->n; i++) {
        free(all->v[i].key);
        free(all->v[i].choice);
    }
    free(all->v);
    *all = (struct entries){0};
}

static void entries_add(struct entries *all, const char *key, const char *choice)
{
    all->v = xrealloc(all->v, ((size_t)all->n + 1) * sizeof *all->v);
    all->v[all->n++] = (struct entry){xstrdup(key), xstrdup(choice)};
}

static struct entry *entry_find(const struct tuning *t, const char *key)
{
    for (int i = 0; i < t->all.n; i++)
        if (strcmp(t->all.v[i].key, key) == 0)
            return &t->all.v[i];
    return NULL;
}

struct tuning *tuning_create(bool measures, const struct log *log)
{
    struct tuning *t = xcalloc(1, sizeof *t);

    t->measures = measures;
    t->log = log;
    return t;
}

void tuning_destroy(struct tuning *t)
{
    if (!t)
        return;
    entries_free(&t->all);
    free(t);
}

bool tuning_measures(const struct tuning *t)
{
    return t->measures;
}

const struct log *tuning_log(const struct tuning *t)
{
    return t->log;
}

const char *tuning_lookup(const struct tuning *t, const char *key)
{
    const struct entry *found = entry_find(t, key);

    return found ? found->choice : NULL;
}

void tuning_put(struct tuning *t, const char *key, const char *choice)
{
    struct entry *found = entry_find(t, key);

    ASSERT(*key && *choice);
    if (found) {
        char *old = found->choice;
        found->choice = xstrdup(choice);
        free(old); /* last: `choice` may be what the entry held */
    } else {
        entries_add(&t->all, key, choice);
    }
}

void tuning_record(struct tuning *t, const char *key, const char *choice)
{
    const char *there = tuning_lookup(t, key);

    if (there && strcmp(there, choice) == 0) {
        t->counts.found++;
    } else if (t->measures) {
        t->counts.chosen++;
        tuning_put(t, key, choice);
    } else {
        t->counts.missed++;
    }
}

struct tuning_counts tuning_counts(const struct tuning *t)
{
    return t->counts;
}

int tuning_size(const struct tuning *t)
{
    return t->all.n;
}

/* ---- rows ---- */

void tuning_set_rows(struct tuning *t, int64_t local, int64_t rank0)
{
    t->local_rows = local;
    t->rank0_rows = rank0;
}

int64_t tuning_rows(const struct tuning *t, int64_t n)
{
    return t->local_rows > 0 && n % t->local_rows == 0 ? n / t->local_rows * t->rank0_rows : n;
}

/* ---- as JSON ---- */

char *tuning_text(const struct tuning *t)
{
    cJSON *doc = cJSON_CreateObject();

    cJSON_AddNumberToObject(doc, "version", FILE_VERSION);
    cJSON *plans = cJSON_AddObjectToObject(doc, "plans");
    for (int i = 0; i < t->all.n; i++)
        cJSON_AddStringToObject(plans, t->all.v[i].key, t->all.v[i].choice);
    char *text = json_text_pretty(doc);
    cJSON_Delete(doc);
    return text;
}

static int entry_read(const cJSON *v, struct entries *out, struct err *e)
{
    char found[64];

    if (*v->string && cJSON_IsString(v) && *v->valuestring) {
        entries_add(out, v->string, v->valuestring);
        return 0;
    }
    json_brief(v, found);
    return err_set(e, "/plans/%s: %s found, the name of an engine is accepted", v->string, found);
}

static int entries_read(const cJSON *doc, struct entries *out, struct err *e)
{
    int64_t version;

    if (json_get_int(doc, "", "version", FILE_VERSION, FILE_VERSION, &version, e) < 0)
        return -1;
    const cJSON *plans = json_get_obj(doc, "", "plans", e);
    if (!plans)
        return -1;
    for (const cJSON *v = plans->child; v; v = v->next)
        if (entry_read(v, out, e) < 0)
            return -1;
    return 0;
}

/* doc may be NULL: *e then says why, and nothing is done. */
static int table_take(struct tuning *t, const cJSON *doc, struct err *e)
{
    struct entries read = {0};

    if (!doc || entries_read(doc, &read, e) < 0) {
        entries_free(&read);
        return -1;
    }
    entries_free(&t->all);
    t->all = read;
    return 0;
}

int tuning_parse(struct tuning *t, const char *text, size_t len, struct err *e)
{
    cJSON *doc = json_parse(text, len, e);
    int rc = table_take(t, doc, e);

    cJSON_Delete(doc);
    return rc;
}

int tuning_load(struct tuning *t, const char *path, struct err *e)
{
    char *text;
    size_t len;

    if (fs_read_file(path, FILE_MAX_BYTES, &text, &len, e) < 0)
        return -1;
    int rc = tuning_parse(t, text, len, e);
    free(text);
    return rc < 0 ? err_wrap(e, "%s", path) : 0;
}

int tuning_save(const struct tuning *t, const char *path, struct err *e)
{
    char *text = tuning_text(t);
    int rc = fs_atomic_replace(path, text, strlen(text), e);

    free(text);
    return rc;
}
