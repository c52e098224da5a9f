/* place - see place.h. */
#include "daemon/place.h"
#include "common/buf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool place_is_name(const char *name)
{
    size_t n = strlen(name);

    return n > 0 && n < PLACE_MAX_NAME && name[0] != '-' &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == n;
}

void place_add(struct place *p, const char *node, int64_t ranks, uint64_t gpus)
{
    p->v = xrealloc(p->v, (size_t)(p->n + 1) * sizeof *p->v);
    p->v[p->n++] = (struct place_piece){xstrdup(node), ranks, gpus};
}

void place_free(struct place *p)
{
    for (int64_t i = 0; i < p->n; i++)
        free(p->v[i].node);
    free(p->v);
    *p = (struct place){0};
}

int64_t place_ranks(const struct place *p)
{
    int64_t n = 0;

    for (int64_t i = 0; i < p->n; i++)
        n += p->v[i].ranks;
    return n;
}

bool place_is_on(const struct place *p, const char *node)
{
    return p->n == 1 && strcmp(p->v[0].node, node) == 0;
}

char *place_gpu_list(uint64_t gpus, char separator)
{
    char text[PLACE_MAX_GPUS * 3 + 1] = "";
    size_t n = 0;

    for (int i = 0; i < PLACE_MAX_GPUS; i++)
        if (gpus >> i & 1) {
            if (n)
                text[n++] = separator;
            n += (size_t)snprintf(text + n, sizeof text - n, "%d", i);
        }
    return xstrdup(text);
}

char *place_text(const struct place *p)
{
    size_t cap = 1;
    char *out;

    for (int64_t i = 0; i < p->n; i++)
        cap += strlen(p->v[i].node) + 32 + PLACE_MAX_GPUS * 3;
    out = xcalloc(cap, 1);
    for (int64_t i = 0, at = 0; i < p->n; i++) {
        const struct place_piece *piece = &p->v[i];
        char *gpus = place_gpu_list(piece->gpus, '+');
        at += snprintf(out + at, cap - (size_t)at, "%s%s:%lld%s%s", i ? "," : "", piece->node,
                       (long long)piece->ranks, *gpus ? "@" : "", gpus);
        free(gpus);
    }
    return out;
}

void place_brief(const struct place *p, char *out, size_t size)
{
    if (p->n < 1)
        snprintf(out, size, "no node");
    else if (p->n == 1)
        snprintf(out, size, "%s", p->v[0].node);
    else if (p->n == 2)
        snprintf(out, size, "%s and %s", p->v[0].node, p->v[1].node);
    else
        snprintf(out, size, "%s, %s and %lld more", p->v[0].node, p->v[1].node, (long long)p->n - 2);
}

/* --- reading --- */

/* "0+3" up to `end`; false when it is something else. */
static bool parse_gpus(const char *text, const char *end, uint64_t *gpus)
{
    *gpus = 0;
    while (text < end) {
        char *after;
        unsigned long i = strtoul(text, &after, 10);
        if (after == text || i >= PLACE_MAX_GPUS || after > end ||
            (after < end && (*after != '+' || after + 1 == end)))
            return false;
        *gpus |= (uint64_t)1 << i;
        text = after < end ? after + 1 : end;
    }
    return *gpus != 0;
}

static bool parse_piece(struct place *p, const char *text, size_t len)
{
    const char *colon = memchr(text, ':', len), *end = text + len;
    char name[PLACE_MAX_NAME], *after;
    uint64_t gpus = 0;

    if (!colon || (size_t)(colon - text) >= sizeof name)
        return false;
    memcpy(name, text, (size_t)(colon - text));
    name[colon - text] = 0;
    long long ranks = strtoll(colon + 1, &after, 10);
    if (!place_is_name(name) || after == colon + 1 || ranks < 1 || after > end)
        return false;
    if (after < end && (*after != '@' || !parse_gpus(after + 1, end, &gpus)))
        return false;
    place_add(p, name, ranks, gpus);
    return true;
}

int place_parse(struct place *p, const char *text, struct err *e)
{
    for (const char *at = text; *at || !p->n;) {
        size_t len = strcspn(at, ",");
        if (!parse_piece(p, at, len)) {
            place_free(p);
            return err_set(e,
                           "place \"%.200s\": \"%.*s\" found, NODE:RANKS or NODE:RANKS@GPU+GPU… is accepted",
                           text, (int)(len < 100 ? len : 100), at);
        }
        at += len + (at[len] == ',' && at[len + 1]);
    }
    return 0;
}
