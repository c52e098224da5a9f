/* sweep - one document that describes several jobs, taken apart; see jobspec_expand(). */
#include "common/json.h"
#include "proto/jobspec_fields.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A key that is swept, and its values in the document (borrowed). */
struct axis {
    const char *key;
    const cJSON *values;
    int n;
};

static void pointer_of(const char *key, char *out, size_t cap)
{
    size_t n = (size_t)snprintf(out, cap, "/sweep/");

    for (; *key && n + 3 < cap; key++) {
        if (*key == '~' || *key == '/')
            out[n++] = '~';
        out[n++] = *key == '~' ? '0' : *key == '/' ? '1' : *key;
    }
    out[n] = 0;
}

static bool is_known(const char *key)
{
    size_t n = strlen(key);

    for (int i = 0; i < jobspec_n_fields; i++) {
        const char *p = jobspec_fields[i].pointer + 1;
        if (strlen(p) != n)
            continue;
        size_t at = 0;
        while (at < n && (p[at] == key[at] || (p[at] == '/' && key[at] == '.')))
            at++;
        if (at == n)
            return true;
    }
    return false;
}

static void check_axis(const struct axis *a, struct jobspec_errors *errs)
{
    char pointer[256], found[64];

    pointer_of(a->key, pointer, sizeof pointer);
    if (!is_known(a->key) || strcmp(a->key, "version") == 0 || strcmp(a->key, "sweep") == 0)
        jobspec_errors_add(errs, pointer,
                           "not a key that can be swept; dotted keys of the job spec are accepted, e.g. "
                           "\"train.seed\" or \"optim.lr\"");
    else if (!a->n) {
        json_brief(a->values, found);
        jobspec_errors_add(errs, pointer, "%s found, an array of at least one value is accepted", found);
    }
}

/* The number of axes, each checked. */
static int read_axes(const cJSON *sweep, struct axis axes[JOBSPEC_MAX_SWEEP_KEYS],
                     struct jobspec_errors *errs)
{
    int n = 0;
    int64_t n_jobs = 1;

    for (const cJSON *v = sweep->child; v; v = v->next) {
        if (n == JOBSPEC_MAX_SWEEP_KEYS) {
            jobspec_errors_add(errs, "/sweep", "%d keys found, at most %d are accepted",
                               cJSON_GetArraySize(sweep), JOBSPEC_MAX_SWEEP_KEYS);
            return n;
        }
        axes[n] = (struct axis){v->string, v, cJSON_IsArray(v) ? cJSON_GetArraySize(v) : 0};
        check_axis(&axes[n], errs);
        if (n_jobs <= JOBSPEC_MAX_SWEEP)
            n_jobs *= axes[n].n;
        n++;
    }
    if (!n)
        jobspec_errors_add(errs, "/sweep", "no key found, at least one is accepted; null is no sweep");
    if (n_jobs > JOBSPEC_MAX_SWEEP)
        jobspec_errors_add(errs, "/sweep", "more than %d combinations found, so many are accepted",
                           JOBSPEC_MAX_SWEEP);
    return n;
}

/* Puts a copy of the value at the dotted key; objects on the way are made. */
static int put(cJSON *doc, const char *key, const cJSON *value, struct err *e)
{
    char *text = json_text(value), *assignment = xasprintf("%s=%s", key, text);
    int rc = jobspec_set(doc, assignment, e);

    free(assignment);
    free(text);
    return rc;
}

static cJSON *combination(const cJSON *doc, const struct axis *axes, int n_axes, int index,
                          struct jobspec_errors *errs)
{
    cJSON *one = cJSON_Duplicate(doc, true);
    int at[JOBSPEC_MAX_SWEEP_KEYS];
    char pointer[256];

    for (int a = n_axes - 1; a >= 0; index /= axes[a].n, a--)
        at[a] = index % axes[a].n;
    cJSON_DeleteItemFromObjectCaseSensitive(one, "sweep");
    for (int a = 0; a < n_axes; a++) {
        struct err e = ERR_INIT;
        if (put(one, axes[a].key, cJSON_GetArrayItem(axes[a].values, at[a]), &e) < 0 && !errs->n) {
            pointer_of(axes[a].key, pointer, sizeof pointer);
            jobspec_errors_add(errs, pointer, "cannot be set: %s", e.msg);
        }
    }
    return one;
}

void jobspec_expand_free(cJSON **docs, int n)
{
    for (int i = 0; i < n; i++)
        cJSON_Delete(docs[i]);
    free(docs);
}

int jobspec_expand(const cJSON *doc, cJSON ***docs, struct jobspec_errors *errs)
{
    const cJSON *sweep = json_find(doc, "sweep");
    struct axis axes[JOBSPEC_MAX_SWEEP_KEYS];
    int n_axes = 0, n = 1;

    *errs = (struct jobspec_errors){0};
    if (cJSON_IsObject(sweep))
        n_axes = read_axes(sweep, axes, errs);
    if (errs->n)
        return -1;
    for (int a = 0; a < n_axes; a++)
        n *= axes[a].n;
    *docs = xcalloc((size_t)n, sizeof **docs);
    for (int i = 0; i < n; i++)
        (*docs)[i] = n_axes ? combination(doc, axes, n_axes, i, errs) : cJSON_Duplicate(doc, true);
    if (!errs->n)
        return n;
    jobspec_expand_free(*docs, n);
    return -1;
}

/* --- and parsed --- */

static bool is_listed(const struct jobspec_errors *errs, const struct jobspec_error *f)
{
    for (int i = 0; i < errs->n; i++)
        if (strcmp(errs->v[i].pointer, f->pointer) == 0 && strcmp(errs->v[i].message, f->message) == 0)
            return true;
    return false;
}

void jobspec_jobs_free(struct jobspec_job *jobs, int n)
{
    for (int i = 0; i < n; i++)
        cJSON_Delete(jobs[i].resolved);
    free(jobs);
}

int jobspec_parse_jobs(const cJSON *doc, struct jobspec_job **jobs, struct jobspec_errors *errs)
{
    cJSON **docs;
    int n = jobspec_expand(doc, &docs, errs);

    if (n < 0)
        return -1;
    struct jobspec_job *out = xcalloc((size_t)n, sizeof *out);
    for (int i = 0; i < n; i++) {
        struct jobspec_errors found;
        jobspec_parse(docs[i], &out[i].spec, &out[i].resolved, &found);
        for (int k = 0; k < found.n; k++)
            if (!is_listed(errs, &found.v[k]))
                jobspec_errors_add(errs, found.v[k].pointer, "%s", found.v[k].message);
        jobspec_errors_free(&found);
    }
    jobspec_expand_free(docs, n);
    if (errs->n == 0) {
        *jobs = out;
        return n;
    }
    jobspec_jobs_free(out, n);
    return -1;
}
