/* json_print - the compact text of a document, straight into a buffer: the bytes that
 * cJSON_PrintUnformatted() would give, without its detours. cJSON prints each number with sprintf, reads it
 * back with sscanf and asks for the locale's point; in an answer of the coordinator nearly all numbers are
 * whole.
 */
#include "common/json.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NUMBER_BYTES = 32 };

#define MAX_WHOLE 9007199254740992.0 /* 2^53: up to here a double is every whole number */

static int put(struct buf *b, const char *s, size_t n, struct err *e)
{
    return buf_append(b, s, n, e);
}

static int put_whole(struct buf *b, int64_t v, struct err *e)
{
    char text[NUMBER_BYTES], *p = text + sizeof text;
    uint64_t u = v < 0 ? (uint64_t)-v : (uint64_t)v;

    do
        *--p = (char)('0' + u % 10);
    while (u /= 10);
    if (v < 0)
        *--p = '-';
    return put(b, p, (size_t)(text + sizeof text - p), e);
}

/* As short as reads back to within one rounding, else 17 digits: cJSON's rule. */
static int put_number(struct buf *b, double v, struct err *e)
{
    char text[NUMBER_BYTES];

    if (!isfinite(v))
        return put(b, "null", 4, e);
    if (fabs(v) <= MAX_WHOLE && v == (double)(int64_t)v && !(v == 0 && signbit(v)))
        return put_whole(b, (int64_t)v, e);
    int n = snprintf(text, sizeof text, "%1.15g", v);
    double back = strtod(text, NULL);
    if (fabs(back - v) > fmax(fabs(back), fabs(v)) * DBL_EPSILON)
        n = snprintf(text, sizeof text, "%1.17g", v);
    return put(b, text, (size_t)n, e);
}

static int put_escaped(struct buf *b, unsigned char c, struct err *e)
{
    static const char letters[] = {['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r'};
    char text[8] = {'\\', (char)c};

    if (c >= ' ')
        return put(b, text, 2, e); /* a quote or a backslash */
    if (c < sizeof letters && letters[c]) {
        text[1] = letters[c];
        return put(b, text, 2, e);
    }
    snprintf(text, sizeof text, "\\u%04x", c);
    return put(b, text, 6, e);
}

static int put_string(struct buf *b, const char *s, struct err *e)
{
    if (put(b, "\"", 1, e) < 0)
        return -1;
    while (s && *s) {
        const char *p = s;
        while ((unsigned char)*p >= ' ' && *p != '"' && *p != '\\')
            p++;
        if (p > s && put(b, s, (size_t)(p - s), e) < 0)
            return -1;
        if (*p && put_escaped(b, (unsigned char)*p++, e) < 0)
            return -1;
        s = p;
    }
    return put(b, "\"", 1, e);
}

static int put_value(struct buf *b, const cJSON *v, struct err *e);

static int put_members(struct buf *b, const cJSON *v, bool named, struct err *e)
{
    if (put(b, named ? "{" : "[", 1, e) < 0)
        return -1;
    for (const cJSON *c = v->child; c; c = c->next) {
        if (named && (put_string(b, c->string, e) < 0 || put(b, ":", 1, e) < 0))
            return -1;
        if (put_value(b, c, e) < 0 || (c->next && put(b, ",", 1, e) < 0))
            return -1;
    }
    return put(b, named ? "}" : "]", 1, e);
}

static int put_value(struct buf *b, const cJSON *v, struct err *e)
{
    switch (v->type & 0xff) {
    case cJSON_NULL:
        return put(b, "null", 4, e);
    case cJSON_False:
        return put(b, "false", 5, e);
    case cJSON_True:
        return put(b, "true", 4, e);
    case cJSON_Number:
        return put_number(b, v->valuedouble, e);
    case cJSON_String:
        return put_string(b, v->valuestring, e);
    case cJSON_Raw:
        return put(b, v->valuestring, strlen(v->valuestring), e);
    default:
        return put_members(b, v, cJSON_IsObject(v), e);
    }
}

int json_print(const cJSON *v, struct buf *b, struct err *e)
{
    size_t before = b->len;

    if (put_value(b, v, e) == 0)
        return 0;
    if (b->data) {
        b->len = before;
        b->data[before] = 0;
    }
    return -1;
}

char *json_text(const cJSON *v)
{
    struct buf b;

    buf_init(&b, SIZE_MAX / 4);
    int rc = json_print(v, &b, NULL);
    ASSERT(rc == 0);
    return b.data;
}
