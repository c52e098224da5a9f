/* json - see json.h. */
#include "common/json.h"
#include "common/fsutil.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* cJSON's own nesting limit is 1000; ours is checked before it recurses. Also refuses a NUL byte, which
 * cJSON would take for the end, as it does an escaped one. */
static int check_depth(const char *text, size_t len, struct err *e)
{
    int depth = 0;
    bool in_string = false;

    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (c == 0)
            return err_set(e, "byte %zu is NUL", i);
        if (in_string) {
            if (c == '\\') {
                if (len - i > 5 && memcmp(text + i + 1, "u0000", 5) == 0)
                    return err_set(e, "byte %zu: \\u0000 is not accepted in a string", i);
                i++;
            } else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > JSON_MAX_DEPTH)
                return err_set(e, "nested deeper than %d levels at byte %zu", JSON_MAX_DEPTH, i);
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return 0;
}

static int check_duplicates(const cJSON *v, struct err *e)
{
    for (const cJSON *c = v->child; c; c = c->next) {
        if (cJSON_IsObject(v))
            for (const cJSON *d = c->next; d; d = d->next)
                if (c->string[0] == d->string[0] && strcmp(c->string, d->string) == 0)
                    return err_set(e, "key \"%s\" appears twice in one object", c->string);
        if (check_duplicates(c, e) < 0)
            return -1;
    }
    return 0;
}

static int parse_error(const char *text, size_t len, const char *where, struct err *e)
{
    size_t pos = where && where >= text && where <= text + len ? (size_t)(where - text) : len;
    int line = 1, col = 1;

    for (size_t i = 0; i < pos; i++) {
        col++;
        if (text[i] == '\n') {
            line++;
            col = 1;
        }
    }
    return err_set(e, "not valid JSON at line %d, column %d", line, col);
}

cJSON *json_parse(const char *text, size_t len, struct err *e)
{
    const char *end = NULL;

    if (check_depth(text, len, e) < 0)
        return NULL;
    cJSON *v = cJSON_ParseWithLengthOpts(text, len, &end, 0);
    if (!v) {
        parse_error(text, len, end, e);
        return NULL;
    }
    while (end < text + len && (*end == ' ' || *end == '\t' || *end == '\n' || *end == '\r'))
        end++;
    if (end != text + len) {
        parse_error(text, len, end, e);
        err_wrap(e, "something follows the value");
        cJSON_Delete(v);
        return NULL;
    }
    if (check_duplicates(v, e) < 0) {
        cJSON_Delete(v);
        return NULL;
    }
    return v;
}

cJSON *json_read_file(const char *path, size_t max_bytes, struct err *e)
{
    char *text;
    size_t len;

    if (fs_read_file(path, max_bytes, &text, &len, e) < 0)
        return NULL;
    cJSON *v = json_parse(text, len, e);
    if (!v)
        err_wrap(e, "%s", path);
    free(text);
    return v;
}

char *json_text_pretty(const cJSON *v)
{
    char *s = cJSON_Print(v);

    ASSERT(s);
    return s;
}

void json_brief(const cJSON *v, char out[64])
{
    if (!v) {
        strcpy(out, "nothing");
        return;
    }
    char *s = json_text(v);
    size_t n = strlen(s);
    if (n > 60) {
        n = 57;
        while (((unsigned char)s[n] & 0xc0) == 0x80) /* not in the middle of a character */
            n--;
        memcpy(out, s, n);
        strcpy(out + n, "...");
    } else {
        memcpy(out, s, n + 1);
    }
    free(s);
}

cJSON *json_find(const cJSON *obj, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(obj, key);
}

bool json_is_int(const cJSON *v, int64_t *out)
{
    if (!cJSON_IsNumber(v) || !isfinite(v->valuedouble) || v->valuedouble != floor(v->valuedouble) ||
        fabs(v->valuedouble) > 9007199254740992.0)
        return false;
    *out = (int64_t)v->valuedouble;
    return true;
}

static int type_error(const cJSON *v, const char *at, const char *key, const char *accepted, struct err *e)
{
    char brief[64];

    json_brief(v, brief);
    return err_set(e, "%s/%s: %s found, %s is accepted", at, key, brief, accepted);
}

int json_get_str(const cJSON *obj, const char *at, const char *key, const char **out, struct err *e)
{
    cJSON *v = json_find(obj, key);

    if (!cJSON_IsString(v))
        return type_error(v, at, key, "a string", e);
    *out = v->valuestring;
    return 0;
}

int json_get_int(const cJSON *obj, const char *at, const char *key, int64_t min, int64_t max, int64_t *out,
                 struct err *e)
{
    cJSON *v = json_find(obj, key);
    int64_t i;

    if (!json_is_int(v, &i) || i < min || i > max) {
        char accepted[96];
        snprintf(accepted, sizeof accepted, "a whole number from %lld to %lld", (long long)min,
                 (long long)max);
        return type_error(v, at, key, accepted, e);
    }
    *out = i;
    return 0;
}

int json_get_num(const cJSON *obj, const char *at, const char *key, double *out, struct err *e)
{
    cJSON *v = json_find(obj, key);

    if (!cJSON_IsNumber(v) || !isfinite(v->valuedouble))
        return type_error(v, at, key, "a number", e);
    *out = v->valuedouble;
    return 0;
}

int json_get_bool(const cJSON *obj, const char *at, const char *key, bool *out, struct err *e)
{
    cJSON *v = json_find(obj, key);

    if (!cJSON_IsBool(v))
        return type_error(v, at, key, "true or false", e);
    *out = cJSON_IsTrue(v);
    return 0;
}

cJSON *json_get_obj(const cJSON *obj, const char *at, const char *key, struct err *e)
{
    cJSON *v = json_find(obj, key);

    if (!cJSON_IsObject(v)) {
        type_error(v, at, key, "an object", e);
        return NULL;
    }
    return v;
}

void json_add_double(cJSON *obj, const char *key, double v)
{
    char text[32];

    if (!isfinite(v)) {
        cJSON_AddNullToObject(obj, key);
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    cJSON_AddRawToObject(obj, key, text);
}
