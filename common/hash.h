/* hash - XXH3-128 checksums as 32 hex digits: of bytes and of files. For damage, not against attackers. */
#ifndef COMMON_HASH_H
#define COMMON_HASH_H

#include <stddef.h>
#include "common/err.h"

struct hash_hex {
    char s[33];
};

struct hash_hex hash_bytes(const void *data, size_t n);
int hash_file(const char *path, struct hash_hex *out, struct err *e);

#endif
