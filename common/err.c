/* err - see err.h. */
#include "common/err.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void err_format(struct err *e, enum err_kind kind, const char *fmt, va_list ap)
{
    e->kind = kind;
    e->code = 0;
    vsnprintf(e->msg, sizeof e->msg, fmt, ap);
}

int err_set(struct err *e, const char *fmt, ...)
{
    va_list ap;

    if (!e)
        return -1;
    va_start(ap, fmt);
    err_format(e, ERR_GENERIC, fmt, ap);
    va_end(ap);
    return -1;
}

int err_set_kind(struct err *e, enum err_kind kind, const char *fmt, ...)
{
    va_list ap;

    if (!e)
        return -1;
    va_start(ap, fmt);
    err_format(e, kind, fmt, ap);
    va_end(ap);
    return -1;
}

int err_set_errno(struct err *e, const char *fmt, ...)
{
    int saved = errno;
    va_list ap;

    if (!e)
        return -1;
    va_start(ap, fmt);
    err_format(e, saved == ENOSPC || saved == EDQUOT ? ERR_NO_SPACE : ERR_GENERIC, fmt, ap);
    va_end(ap);
    size_t n = strlen(e->msg);
    snprintf(e->msg + n, sizeof e->msg - n, ": %s", strerror(saved));
    errno = saved;
    return -1;
}

int err_wrap(struct err *e, const char *fmt, ...)
{
    char old[sizeof e->msg];
    va_list ap;

    if (!e)
        return -1;
    memcpy(old, e->msg, sizeof old);
    va_start(ap, fmt);
    vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    size_t n = strlen(e->msg);
    snprintf(e->msg + n, sizeof e->msg - n, ": %s", old);
    return -1;
}

void err_assert_failed(const char *file, int line, const char *cond)
{
    fprintf(stderr, "%s:%d: this is a bug in batchformer: assertion failed: %s\n", file, line, cond);
    abort();
}

static void *or_die(void *p, unsigned long n)
{
    if (!p && n) {
        fprintf(stderr, "out of memory: %lu bytes for a small object\n", n);
        abort();
    }
    return p;
}

void *xmalloc(unsigned long n)
{
    return or_die(malloc(n ? n : 1), n);
}

void *xcalloc(unsigned long n, unsigned long size)
{
    return or_die(calloc(n ? n : 1, size ? size : 1), n * size);
}

void *xrealloc(void *p, unsigned long n)
{
    return or_die(realloc(p, n ? n : 1), n);
}

char *xstrdup(const char *s)
{
    return or_die(strdup(s), strlen(s) + 1);
}

char *xasprintf(const char *fmt, ...)
{
    char *s = NULL;
    va_list ap;

    va_start(ap, fmt);
    if (vasprintf(&s, fmt, ap) < 0)
        s = or_die(NULL, 1);
    va_end(ap);
    return s;
}
