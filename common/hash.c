/* hash - see hash.h. The only file that knows xxhash. */
#include "common/hash.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

static struct hash_hex to_hex(XXH128_hash_t h)
{
    struct hash_hex out;

    snprintf(out.s, sizeof out.s, "%016llx%016llx", (unsigned long long)h.high64,
             (unsigned long long)h.low64);
    return out;
}

struct hash_hex hash_bytes(const void *data, size_t n)
{
    return to_hex(XXH3_128bits(data, n));
}

int hash_file(const char *path, struct hash_hex *out, struct err *e)
{
    enum { CHUNK = 1 << 18 };
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return err_set_errno(e, "%s", path);
    XXH3_state_t *st = XXH3_createState();
    char *chunk = xmalloc(CHUNK);
    ssize_t n;
    XXH3_128bits_reset(st);
    while ((n = read(fd, chunk, CHUNK)) > 0)
        XXH3_128bits_update(st, chunk, (size_t)n);
    int rc = n < 0 ? err_set_errno(e, "%s", path) : 0;
    *out = to_hex(XXH3_128bits_digest(st));
    XXH3_freeState(st);
    close(fd);
    free(chunk);
    return rc;
}

struct hash_stream {
    XXH3_state_t *st;
};

struct hash_stream *hash_stream_create(void)
{
    struct hash_stream *s = xcalloc(1, sizeof *s);

    s->st = XXH3_createState();
    ASSERT(s->st);
    XXH3_128bits_reset(s->st);
    return s;
}

void hash_stream_add(struct hash_stream *s, const void *data, size_t n)
{
    if (n > 0)
        XXH3_128bits_update(s->st, data, n);
}

struct hash_hex hash_stream_end(struct hash_stream *s)
{
    struct hash_hex out = to_hex(XXH3_128bits_digest(s->st));

    XXH3_freeState(s->st);
    free(s);
    return out;
}

bool hash_is_hex(const char *s)
{
    return strlen(s) == 32 && strspn(s, "0123456789abcdef") == 32;
}
