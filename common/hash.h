/* hash - XXH3-128 checksums as 32 hex digits: of bytes, of files, and of what comes in pieces. For damage,
 * not against attackers. */
#ifndef COMMON_HASH_H
#define COMMON_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include "common/err.h"

struct hash_hex {
    char s[33];
};

struct hash_hex hash_bytes(const void *data, size_t n);
int hash_file(const char *path, struct hash_hex *out, struct err *e);

/* The checksum of all pieces put together: create → add … → end, which also frees. */
struct hash_stream;
struct hash_stream *hash_stream_create(void);
void hash_stream_add(struct hash_stream *s, const void *data, size_t n);
struct hash_hex hash_stream_end(struct hash_stream *s);

/* True when s is 32 digits as printed here. */
bool hash_is_hex(const char *s);

#endif
