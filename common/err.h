/* err - errors are values: a sentence for a person, filled in by whoever failed, carried up by whoever
 * called.
 *
 * A fallible function takes a struct err * last, returns 0 or -1 (or a pointer or NULL), and leaves the
 * caller's world unchanged when it fails. `return err_set(e, …)` is the idiom; err_wrap() adds the place at a
 * module's border ("job 17: store: disk full"). A NULL err is legal everywhere: the message is dropped.
 */
#ifndef COMMON_ERR_H
#define COMMON_ERR_H

#include <stdarg.h>

/* What kind of failure it was, for those who must choose an exit status or a protocol error. */
enum err_kind {
    ERR_GENERIC = 0,
    ERR_USAGE,       /* bad command line */
    ERR_SPEC,        /* bad job spec */
    ERR_UNREACHABLE, /* no coordinator, or the connection is gone */
    ERR_REMOTE,      /* the peer answered with an error; .code is its JSON-RPC code */
    ERR_INTERRUPTED, /* a signal asked us to stop */
    ERR_PEER_LOST, /* another rank is gone or silent; .code, when not 0, is the exit status with which it gave
                      up for a reason of its own, which it has told */
    ERR_NOT_FINITE, /* a loss or gradient is NaN or infinite */
    ERR_NO_SPACE,   /* no room on a disk: it may work later, when there is */
};

struct err {
    enum err_kind kind;
    int code;
    char msg[1024];
};

#define ERR_INIT                                                                                             \
    {                                                                                                        \
        ERR_GENERIC, 0, ""                                                                                   \
    }

/* Formats the message, sets kind ERR_GENERIC, returns -1. */
int err_set(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The same with a kind. */
int err_set_kind(struct err *e, enum err_kind kind, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* err_set(), followed by ": " and strerror(errno). The kind is ERR_NO_SPACE for ENOSPC and EDQUOT. */
int err_set_errno(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Puts "prefix: " before the message that is there; keeps kind and code; returns -1. */
int err_wrap(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* For our own bugs only, never for bad input; not compiled out. */
#define ASSERT(cond)                                                                                         \
    do {                                                                                                     \
        if (!(cond))                                                                                         \
            err_assert_failed(__FILE__, __LINE__, #cond);                                                    \
    } while (0)

void err_assert_failed(const char *file, int line, const char *cond) __attribute__((noreturn));

/* malloc family that dies with a clear message instead of returning NULL: at the sizes they are used for
 * (small, bounded objects) there is nothing better to do. Big arenas use fallible allocation. */
void *xmalloc(unsigned long n);
void *xcalloc(unsigned long n, unsigned long size);
void *xrealloc(void *p, unsigned long n);
char *xstrdup(const char *s);
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
