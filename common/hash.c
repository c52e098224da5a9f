/* hash - see hash.h. The only file that knows xxhash. */
#include "common/hash.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
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
