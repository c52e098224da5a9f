/* source - the bytes of a file that may be gzip-compressed or plain, read front to back.
 *
 * Unlike zlib's gzread, which returns what it has and passes over garbage after the stream, every kind of
 * damage is an error here: a stream that ends early, a wrong check sum, bytes after the stream that are no
 * gzip member.
 */
#ifndef DATA_SOURCE_H
#define DATA_SOURCE_H

#include <stddef.h>
#include <stdint.h>
#include "common/err.h"

struct source;

/* Opens a file; compressed or not is told by its first two bytes, not by its name. Messages name the path. */
struct source *source_open(const char *path, struct err *e);

/* Reads up to n decompressed bytes, fewer only at the end of the data. Returns how many, or -1; the message
 * then does not name the file, because the caller knows what it expected of it and wraps. */
int64_t source_read(struct source *s, void *out, size_t n, struct err *e);

/* Decompressed bytes that came out so far, those of a failed source_read included. */
uint64_t source_count(const struct source *s);

/* NULL is legal. */
void source_close(struct source *s);

#endif
