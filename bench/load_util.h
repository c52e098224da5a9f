/* load_util - what the load generators share: sockets, and a sample of times with its percentiles. */
#ifndef BENCH_LOAD_UTIL_H
#define BENCH_LOAD_UTIL_H

#include <stddef.h>
#include <stdint.h>

struct sample {
    int64_t *v; /* nanoseconds; sorted by the first sample_at() */
    size_t n, cap;
};

void sample_add(struct sample *s, int64_t ns);
double sample_at(struct sample *s, double q); /* quantile in milliseconds; 0 of an empty sample */
void sample_free(struct sample *s);

/* A connected stream socket to "unix:PATH" or "tcp:PORT" (on 127.0.0.1); -1 with errno. */
int load_connect(const char *address);

/* Ends the program with a message: this is a tool, not a library. */
_Noreturn void load_die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
