/* jobspec - see jobspec.h; the fields themselves are rows of jobspec_fields.c.
 *
 * One walk over the table does everything: for each row it takes the document's value or the default, checks
 * it, stores it in the struct and appends it to the resolved document, so that struct, document and messages
 * cannot disagree. A value that is wrong is reported and left out; the walk goes on, which is how all
 * findings come at once. Checks that involve several keys follow in jobspec_check.c. A resolved document
 * parses to the same struct and resolves to itself.
 */
#include "proto/jobspec_fields.h"
#include "common/conf.h"
#include "common/json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SPEC_MAX_BYTES = 1 << 20, POINTER_MAX = 256 };

struct walk {
    struct jobspec *spec;
    struct jobspec_errors *errs;
};

/* --- findings --- */

void jobspec_errors_add(struct jobspec_errors *errs, const char *pointer, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    errs->v = xrealloc(errs->v, (unsigned long)(errs->n + 1) * sizeof *errs->v);
    errs->v[errs->n++] = (struct jobspec_error){xstrdup(pointer), xstrdup(text)};
}

void jobspec_errors_free(struct jobspec_errors *errs)
{
    for (int i = 0; i < errs->n; i++) {
        free(errs->v[i].pointer);
        free(errs->v[i].message);
    }
    free(errs->v);
    *errs = (struct jobspec_errors){0};
}

cJSON *jobspec_errors_to_json(const struct jobspec_errors *errs)
{
    cJSON *list = cJSON_CreateArray();

    for (int i = 0; i < errs->n; i++) {
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "pointer", errs->v[i].pointer);
        cJSON_AddStringToObject(item, "message", errs->v[i].message);
        cJSON_AddItemToArray(list, item);
    }
    return list;
}

/* "FOUND found, ACCEPTED is accepted". Always false, so that a check can return it. */
static bool refuse(struct walk *w, const struct field *f, const cJSON *v)
{
    char found[64], accepted[320];

    json_brief(v, found);
    jobspec_field_accepted(f, accepted, sizeof accepted);
    jobspec_errors_add(w->errs, f->pointer, "%s found, %s is accepted", found, accepted);
    return false;
}

static bool refuse_later(struct walk *w, const struct field *f, const cJSON *v, const char *accepted)
{
    char found[64];

    json_brief(v, found);
    jobspec_errors_add(w->errs, f->pointer, "%s found, not available in this version; accepted: %s", found,
                       accepted);
    return false;
}

/* --- one value: check it and store it. Each returns false after reporting. --- */

static bool number_in(const struct field *f, double x)
{
    return isfinite(x) && (f->flags & FIELD_MIN_OUT ? x > f->min : x >= f->min) &&
           (f->flags & FIELD_MAX_OUT ? x < f->max : x <= f->max);
}

static bool take_int(struct walk *w, const struct field *f, const cJSON *v, void *at)
{
    int64_t i;

    if (!json_is_int(v, &i) || !number_in(f, (double)i))
        return refuse(w, f, v);
    if (f->flags & FIELD_NOT_KEPT)
        return true;
    if (f->type == FIELD_INT)
        *(int *)at = (int)i;
    else if (f->type == FIELD_INT64)
        *(int64_t *)at = i;
    else
        *(uint64_t *)at = (uint64_t)i;
    return true;
}

static bool take_number(struct walk *w, const struct field *f, const cJSON *v, void *at)
{
    if (!cJSON_IsNumber(v) || !number_in(f, v->valuedouble))
        return refuse(w, f, v);
    *(double *)at = v->valuedouble;
    return true;
}

/* The count follows the array in struct jobspec. */
static bool take_numbers(struct walk *w, const struct field *f, const cJSON *v, void *at)
{
    int n = cJSON_IsArray(v) ? cJSON_GetArraySize(v) : 0;
    const cJSON *item = n ? v->child : NULL;

    if (n < 1 || n > JOBSPEC_MAX_MILESTONES)
        return refuse(w, f, v);
    for (int i = 0; i < n; i++, item = item->next) {
        if (!cJSON_IsNumber(item) || !number_in(f, item->valuedouble))
            return refuse(w, f, v);
        ((double *)at)[i] = item->valuedouble;
    }
    *(int *)((double *)at + JOBSPEC_MAX_MILESTONES) = n;
    return true;
}

/* The count follows the array in struct jobspec. */
static bool take_ids(struct walk *w, const struct field *f, const cJSON *v, void *at)
{
    int64_t *ids = at;
    int n = 0;

    if (!cJSON_IsArray(v) || cJSON_GetArraySize(v) > JOBSPEC_MAX_AFTER)
        return refuse(w, f, v);
    for (const cJSON *item = v->child; item; item = item->next) {
        if (!json_is_int(item, &ids[n]) || !number_in(f, (double)ids[n]))
            return refuse(w, f, v);
        for (int i = 0; i < n; i++)
            if (ids[i] == ids[n])
                return refuse(w, f, v);
        n++;
    }
    *(int *)(ids + JOBSPEC_MAX_AFTER) = n;
    return true;
}

/* Null, which is no sweep, does not come here. */
static bool refuse_sweep(struct walk *w, const struct field *f, const cJSON *v)
{
    if (!cJSON_IsObject(v))
        return refuse(w, f, v);
    jobspec_errors_add(w->errs, f->pointer,
                       "a sweep found, which makes several jobs; null is accepted where one job is "
                       "wanted: submit the sweep, or give each value by itself");
    return false;
}

static bool take_choice(struct walk *w, const struct field *f, const cJSON *v, void *at)
{
    char accepted[192];

    for (const struct field_choice *c = f->choices; cJSON_IsString(v) && c->name; c++) {
        if (strcmp(c->name, v->valuestring) != 0)
            continue;
        if (c->value == FIELD_LATER) {
            jobspec_field_accepted(f, accepted, sizeof accepted);
            return refuse_later(w, f, v, accepted);
        }
        if (f->type == FIELD_WORD)
            snprintf(at, f->cap_bytes, "%s", c->name);
        else if (!(f->flags & FIELD_NOT_KEPT))
            *(int *)at = c->value;
        return true;
    }
    return refuse(w, f, v);
}

static bool is_alnum(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

static bool is_label(const char *s)
{
    if (!is_alnum(*s))
        return false;
    while (*s && (is_alnum(*s) || strchr("._+=-", *s)))
        s++;
    return *s == 0;
}

static bool is_path(const char *s)
{
    if (!*s)
        return false;
    while (*s && (unsigned char)*s >= 0x20 && *s != 0x7f)
        s++;
    return *s == 0;
}

static bool take_string(struct walk *w, const struct field *f, const cJSON *v, void *at)
{
    if (!cJSON_IsString(v) || strlen(v->valuestring) >= f->cap_bytes ||
        !(f->type == FIELD_LABEL ? is_label(v->valuestring) : is_path(v->valuestring)))
        return refuse(w, f, v);
    strcpy(at, v->valuestring);
    return true;
}

static bool take_bool(struct walk *w, const struct field *f, const cJSON *v, void *at)
{
    if (!cJSON_IsBool(v))
        return refuse(w, f, v);
    *(bool *)at = cJSON_IsTrue(v);
    return true;
}

/* A key that this version knows and holds at its default. */
static bool check_fixed(struct walk *w, const struct field *f, const cJSON *v)
{
    cJSON *def = cJSON_Parse(f->def);
    bool same = cJSON_Compare(v, def, true);

    cJSON_Delete(def);
    return same || refuse_later(w, f, v, f->def);
}

static bool take_value(struct walk *w, const struct field *f, const cJSON *v)
{
    void *at = (char *)w->spec + f->offset;

    if (f->flags & FIELD_FIXED && !check_fixed(w, f, v))
        return false;
    switch (f->type) {
    case FIELD_INT:
    case FIELD_INT64:
    case FIELD_UINT64:
        return take_int(w, f, v, at);
    case FIELD_NUMBER:
        return take_number(w, f, v, at);
    case FIELD_NUMBERS:
        return take_numbers(w, f, v, at);
    case FIELD_ENUM:
    case FIELD_WORD:
        return take_choice(w, f, v, at);
    case FIELD_LABEL:
    case FIELD_PATH:
        return take_string(w, f, v, at);
    case FIELD_BOOL:
        return take_bool(w, f, v, at);
    case FIELD_IDS:
        return take_ids(w, f, v, at);
    case FIELD_SWEEP:
        return refuse_sweep(w, f, v);
    case FIELD_OBJECT: /* objects are walked, not taken */
        return true;
    }
    return true;
}

/* Everything but numbers is zero from the start, and zero is what null means there. */
static void take_null(struct walk *w, const struct field *f)
{
    void *at = (char *)w->spec + f->offset;

    if (f->type == FIELD_INT)
        *(int *)at = (int)f->null_value;
    else if (f->type == FIELD_INT64)
        *(int64_t *)at = (int64_t)f->null_value;
    else if (f->type == FIELD_NUMBER)
        *(double *)at = f->null_value;
}

/* --- keys that nobody knows --- */

/* Where else a key of this name lives, for "did you mean"; NULL when nowhere. */
static const struct field *find_key_elsewhere(const char *key)
{
    for (int i = 0; i < jobspec_n_fields; i++)
        if (strcmp(jobspec_field_key(&jobspec_fields[i]), key) == 0)
            return &jobspec_fields[i];
    return NULL;
}

/* parent/key as a JSON Pointer; a key too long to be anything real is cut at a character's border. */
static void join_pointer(const char *parent, const char *key, char out[POINTER_MAX])
{
    size_t n = (size_t)snprintf(out, POINTER_MAX, "%s/", parent);

    for (const char *c = key; *c; c++) {
        bool starts = ((unsigned char)*c & 0xc0) != 0x80;
        if (starts && n + 5 >= POINTER_MAX)
            break;
        if (*c == '~' || *c == '/')
            out[n++] = '~';
        out[n++] = *c == '~' ? '0' : *c == '/' ? '1' : *c;
    }
    out[n] = 0;
}

static void refuse_unknown(struct walk *w, const char *parent, const char *key)
{
    const char *names[64] = {0};
    size_t n = 0;
    char pointer[POINTER_MAX];

    for (int i = 0; i < jobspec_n_fields; i++)
        if (jobspec_field_is_child(&jobspec_fields[i], parent) && n < sizeof names / sizeof *names)
            names[n++] = jobspec_field_key(&jobspec_fields[i]);
    const char *near = conf_nearest(key, names, n);
    const struct field *other = find_key_elsewhere(key);
    join_pointer(parent, key, pointer);
    if (other)
        jobspec_errors_add(w->errs, pointer, "unknown key; did you mean %s?", other->pointer);
    else if (near)
        jobspec_errors_add(w->errs, pointer, "unknown key; the nearest known one is \"%s\"", near);
    else
        jobspec_errors_add(w->errs, pointer, "unknown key");
}

static void check_unknown(struct walk *w, const char *parent, const cJSON *doc)
{
    for (const cJSON *v = doc ? doc->child : NULL; v; v = v->next) {
        bool known = false;
        for (int i = 0; i < jobspec_n_fields && !known; i++)
            known = jobspec_field_is_child(&jobspec_fields[i], parent) &&
                    strcmp(jobspec_field_key(&jobspec_fields[i]), v->string) == 0;
        if (!known)
            refuse_unknown(w, parent, v->string);
    }
}

/* --- the walk --- */

enum presence { APPLIES, DOES_NOT_APPLY, UNCERTAIN };

/* Whether a conditional key belongs here; UNCERTAIN when the key that decides was itself wrong. */
static enum presence presence_of(const struct field *f, const cJSON *resolved_parent)
{
    if (!f->when_key)
        return APPLIES;
    const cJSON *decides = json_find(resolved_parent, f->when_key);
    if (!decides)
        return UNCERTAIN;
    return jobspec_field_exists_with(f, decides->valuestring) ? APPLIES : DOES_NOT_APPLY;
}

/* NULL: required, or derived from a key that is wrong itself. */
static cJSON *default_of(const struct walk *w, const struct field *f)
{
    if (f->derive) {
        double x = f->derive(w->spec);
        if (f->type == FIELD_BOOL)
            return cJSON_CreateBool(x != 0);
        return number_in(f, x) ? cJSON_CreateNumber(x) : NULL;
    }
    return f->def ? cJSON_Parse(f->def) : NULL;
}

static void walk_object(struct walk *w, const char *parent, const cJSON *doc, cJSON *resolved);

/* `v` is the value to use, present or default; owned by the caller. */
static void walk_value(struct walk *w, const struct field *f, const cJSON *v, cJSON *resolved)
{
    const char *key = jobspec_field_key(f);

    if (cJSON_IsNull(v) && f->flags & FIELD_NULLABLE) {
        take_null(w, f);
        cJSON_AddNullToObject(resolved, key);
    } else if (f->type == FIELD_OBJECT) {
        if (!cJSON_IsObject(v))
            refuse(w, f, v);
        else
            walk_object(w, f->pointer, v, cJSON_AddObjectToObject(resolved, key));
    } else if (take_value(w, f, v)) {
        cJSON_AddItemToObject(resolved, key, cJSON_Duplicate(v, true));
    }
}

static void walk_field(struct walk *w, const struct field *f, const cJSON *doc, cJSON *resolved)
{
    const cJSON *v = json_find(doc, jobspec_field_key(f));
    enum presence presence = presence_of(f, resolved);
    char found[64], when[128];

    if (presence == DOES_NOT_APPLY) {
        json_brief(v, found);
        jobspec_field_when(f, '"', when, sizeof when);
        if (v && !cJSON_IsNull(v)) /* null un-sets a key, so that --set can switch kinds */
            jobspec_errors_add(w->errs, f->pointer,
                               "%s found, but the key only exists where %s is %s; leave it out", found,
                               f->when_key, when);
        return;
    }
    cJSON *def = v ? NULL : default_of(w, f);
    if (v || def)
        walk_value(w, f, v ? v : def, resolved);
    else if (presence == APPLIES && !f->derive)
        refuse(w, f, NULL);
    cJSON_Delete(def);
}

static void walk_object(struct walk *w, const char *parent, const cJSON *doc, cJSON *resolved)
{
    check_unknown(w, parent, doc);
    for (int i = 0; i < jobspec_n_fields; i++)
        if (jobspec_field_is_child(&jobspec_fields[i], parent))
            walk_field(w, &jobspec_fields[i], doc, resolved);
}

int jobspec_parse(const cJSON *doc, struct jobspec *spec, cJSON **resolved, struct jobspec_errors *errs)
{
    struct jobspec *filled = xcalloc(1, sizeof *filled);
    struct walk w = {filled, errs};
    cJSON *out = cJSON_CreateObject();

    *errs = (struct jobspec_errors){0};
    if (!cJSON_IsObject(doc)) {
        char found[64];
        json_brief(doc, found);
        jobspec_errors_add(errs, "", "%s found, an object is accepted", found);
    } else {
        walk_object(&w, "", doc, out);
        jobspec_cross_check(filled, errs);
    }
    bool ok = errs->n == 0;
    if (ok) {
        *spec = *filled;
        if (resolved) {
            *resolved = out;
            out = NULL;
        }
    }
    cJSON_Delete(out);
    free(filled);
    return ok ? 0 : -1;
}

/* --- paths --- */

/* The value at a pointer whose keys need no escapes, as those of the table; NULL when it is not there. */
static const cJSON *find_at(const cJSON *doc, const char *pointer)
{
    char key[POINTER_MAX];

    while (doc && *pointer) {
        size_t n = strcspn(++pointer, "/");
        snprintf(key, sizeof key, "%.*s", (int)n, pointer);
        doc = cJSON_IsObject(doc) ? json_find(doc, key) : NULL;
        pointer += n;
    }
    return doc;
}

int jobspec_paths(const cJSON *resolved, struct jobspec_path *out, int cap)
{
    int n = 0;

    for (int i = 0; i < jobspec_n_fields; i++) {
        const struct field *f = &jobspec_fields[i];
        const cJSON *v = f->type == FIELD_PATH ? find_at(resolved, f->pointer) : NULL;
        if (!cJSON_IsString(v))
            continue;
        if (n < cap)
            out[n] = (struct jobspec_path){f->pointer, v->valuestring};
        n++;
    }
    return n;
}

/* --- files --- */

/* All findings in one message; where they do not fit, the last line counts the rest. */
static int errors_to_err(const char *path, const struct jobspec_errors *errs, struct err *e)
{
    char text[sizeof e->msg], line[640];
    size_t n = (size_t)snprintf(text, sizeof text, "%.200s: the job spec is not valid", path);

    for (int i = 0; i < errs->n; i++) {
        const struct jobspec_error *f = &errs->v[i];
        int left = errs->n - i;
        size_t len = (size_t)snprintf(line, sizeof line, "\n  %s%s%s", f->pointer, *f->pointer ? ": " : "",
                                      f->message);
        size_t reserve = left > 1 ? sizeof "\n  … and 2147483647 more" : 1;
        if (len >= sizeof line || n + len + reserve > sizeof text) {
            snprintf(text + n, sizeof text - n, "\n  … and %d more", left);
            break;
        }
        memcpy(text + n, line, len + 1);
        n += len;
    }
    return err_set_kind(e, ERR_SPEC, "%s", text);
}

int jobspec_load(const char *path, struct jobspec *spec, cJSON **resolved, struct err *e)
{
    struct jobspec_errors errs;
    cJSON *doc = json_read_file(path, SPEC_MAX_BYTES, e);

    if (!doc) {
        if (e)
            e->kind = ERR_SPEC;
        return -1;
    }
    int rc = jobspec_parse(doc, spec, resolved, &errs);
    if (rc < 0)
        errors_to_err(path, &errs, e);
    jobspec_errors_free(&errs);
    cJSON_Delete(doc);
    return rc;
}

/* --- --set --- */

/* The object at the end of the path, made where it is missing; `path` is cut into its last component. */
static cJSON *set_parent(cJSON *doc, char **path, const char *assignment, struct err *e)
{
    cJSON *at = doc;
    char *dot;

    while ((dot = strchr(*path, '.'))) {
        *dot = 0;
        cJSON *next = json_find(at, *path);
        if (next && !cJSON_IsObject(next) && !cJSON_IsNull(next)) {
            err_set_kind(e, ERR_USAGE, "--set %s: \"%s\" is not an object, nothing can be set inside it",
                         assignment, *path);
            return NULL;
        }
        if (!next || cJSON_IsNull(next)) {
            cJSON_DeleteItemFromObjectCaseSensitive(at, *path);
            next = cJSON_AddObjectToObject(at, *path);
        }
        at = next;
        *path = dot + 1;
    }
    return at;
}

static bool is_dotted_path(const char *s)
{
    size_t n = strlen(s);

    return n > 0 && s[0] != '.' && s[n - 1] != '.' && !strstr(s, "..");
}

int jobspec_set(cJSON *doc, const char *assignment, struct err *e)
{
    const char *eq = strchr(assignment, '=');

    if (!cJSON_IsObject(doc))
        return err_set_kind(e, ERR_USAGE, "--set %s: the spec is not an object", assignment);
    char *path = eq ? strndup(assignment, (size_t)(eq - assignment)) : xstrdup(assignment), *key = path;
    cJSON *at = NULL;
    int rc = -1;

    if (!eq || !is_dotted_path(path))
        err_set_kind(e, ERR_USAGE, "--set %s: KEY=VALUE with a dotted key is accepted, e.g. train.epochs=2",
                     assignment);
    else
        at = set_parent(doc, &key, assignment, e);
    if (at) {
        struct err ignored;
        cJSON *v = json_parse(eq + 1, strlen(eq + 1), &ignored);
        cJSON_DeleteItemFromObjectCaseSensitive(at, key);
        cJSON_AddItemToObject(at, key, v ? v : cJSON_CreateString(eq + 1));
        rc = 0;
    }
    free(path);
    return rc;
}
