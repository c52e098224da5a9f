/* spec_diff - see spec_diff.h. */
#include "cli/spec_diff.h"
#include "common/err.h"
#include "common/json.h"

#include <stdlib.h>
#include <string.h>

static const char *const asides[] = {"/name", "/resources", "/scheduling"};

static bool is_aside(const char *pointer)
{
    for (size_t i = 0; i < sizeof asides / sizeof *asides; i++) {
        size_t n = strlen(asides[i]);
        if (strncmp(pointer, asides[i], n) == 0 && (pointer[n] == 0 || pointer[n] == '/'))
            return true;
    }
    return false;
}

/* pointer + "/" + key with '~' and '/' escaped; malloc'ed. */
static char *step_down(const char *pointer, const char *key)
{
    size_t n = strlen(pointer);
    char *out = xmalloc(n + 2 + 2 * strlen(key)), *p = out + n;

    memcpy(out, pointer, n);
    *p++ = '/';
    for (; *key; key++) {
        if (*key != '~' && *key != '/') {
            *p++ = *key;
            continue;
        }
        *p++ = '~';
        *p++ = *key == '~' ? '0' : '1';
    }
    *p = 0;
    return out;
}

static void walk(const char *pointer, const cJSON *a, const cJSON *b, struct spec_diff *out)
{
    if (!a || !b || !cJSON_IsObject(a) || !cJSON_IsObject(b)) {
        if (a && b && cJSON_Compare(a, b, 1))
            return;
        out->v = xrealloc(out->v, (size_t)(out->n + 1) * sizeof *out->v);
        out->v[out->n++] = (struct spec_difference){xstrdup(pointer), a, b, is_aside(pointer)};
        return;
    }
    for (const cJSON *c = a->child; c; c = c->next) {
        char *below = step_down(pointer, c->string);
        walk(below, c, json_find(b, c->string), out);
        free(below);
    }
    for (const cJSON *c = b->child; c; c = c->next) {
        char *below = step_down(pointer, c->string);
        if (!json_find(a, c->string))
            walk(below, NULL, c, out);
        free(below);
    }
}

void spec_diff(const cJSON *a, const cJSON *b, struct spec_diff *out)
{
    *out = (struct spec_diff){0};
    walk("", a, b, out);
}

void spec_diff_free(struct spec_diff *d)
{
    for (int i = 0; i < d->n; i++)
        free(d->v[i].pointer);
    free(d->v);
    *d = (struct spec_diff){0};
}
