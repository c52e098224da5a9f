/* buf - a growable byte buffer with a mandatory maximum, so that no peer can make us grow without bound. */
#ifndef COMMON_BUF_H
#define COMMON_BUF_H

#include <stddef.h>
#include "common/err.h"

struct buf {
    char *data; /* len bytes, always followed by a NUL once something was appended */
    size_t len;
    size_t cap_bytes; /* allocated */
    size_t max_bytes; /* never holds more than this */
};

void buf_init(struct buf *b, size_t max_bytes);
void buf_free(struct buf *b); /* also after buf_init only; the buffer may be used again */

/* All fail with "buffer full: N bytes, at most M" and then leave the buffer unchanged. */
int buf_append(struct buf *b, const void *data, size_t n, struct err *e);
int buf_append_str(struct buf *b, const char *s, struct err *e);
int buf_printf(struct buf *b, struct err *e, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Makes room for n more bytes and returns where they go; buf_commit() then counts them. NULL when full. */
char *buf_reserve(struct buf *b, size_t n, struct err *e);
void buf_commit(struct buf *b, size_t n);

/* Drops the first n bytes (n <= len). */
void buf_consume(struct buf *b, size_t n);

#endif
