/* buf - see buf.h. */
#include "common/buf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buf_init(struct buf *b, size_t max_bytes)
{
    *b = (struct buf){.max_bytes = max_bytes};
}

void buf_free(struct buf *b)
{
    free(b->data);
    buf_init(b, b->max_bytes);
}

char *buf_reserve(struct buf *b, size_t n, struct err *e)
{
    if (n > b->max_bytes || b->len > b->max_bytes - n) {
        err_set(e, "buffer full: %zu bytes, at most %zu", b->len + n, b->max_bytes);
        return NULL;
    }
    size_t need = b->len + n + 1;
    if (need > b->cap_bytes) {
        size_t cap = b->cap_bytes ? b->cap_bytes : 256;
        while (cap < need)
            cap *= 2;
        b->data = xrealloc(b->data, cap);
        b->cap_bytes = cap;
    }
    return b->data + b->len;
}

void buf_commit(struct buf *b, size_t n)
{
    ASSERT(b->len + n < b->cap_bytes);
    b->len += n;
    b->data[b->len] = 0;
}

int buf_append(struct buf *b, const void *data, size_t n, struct err *e)
{
    char *p = buf_reserve(b, n, e);

    if (!p)
        return -1;
    if (n)
        memcpy(p, data, n);
    buf_commit(b, n);
    return 0;
}

int buf_append_str(struct buf *b, const char *s, struct err *e)
{
    return buf_append(b, s, strlen(s), e);
}

int buf_printf(struct buf *b, struct err *e, const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    ASSERT(n >= 0);
    int rc = buf_append(b, text, (size_t)n, e);
    free(text);
    return rc;
}

void buf_consume(struct buf *b, size_t n)
{
    ASSERT(n <= b->len);
    if (!n)
        return;
    memmove(b->data, b->data + n, b->len - n);
    b->len -= n;
    b->data[b->len] = 0;
}
