/* source - see source.h. The only file that knows zlib.
 *
 * Order: `in` is filled from the file; a plain file hands it out, a compressed one inflates it. Members of a
 * gzip file follow one another, so after the end of one, input that is left must be the header of the next:
 * garbage fails there as a bad header.
 */
#include "worker/data/source.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum { SOURCE_CHUNK = 1 << 18 };

struct source {
    int fd;
    bool gzip;
    bool in_member; /* between a member's first byte and its check sum */
    bool file_ended;
    z_stream z;       /* next_in and avail_in are the unread part of `in`, for plain files too */
    uint64_t count;   /* bytes handed out */
    uint64_t file_at; /* file bytes in `in` and before */
    uint8_t in[SOURCE_CHUNK];
};

/* Reads the next chunk of the file; only when the last one is used up. */
static int fill(struct source *s, struct err *e)
{
    ssize_t n;

    do
        n = read(s->fd, s->in, sizeof s->in);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return err_set_errno(e, "reading");
    s->z.next_in = s->in;
    s->z.avail_in = (uInt)n;
    s->file_at += (uint64_t)n;
    s->file_ended = n == 0;
    return 0;
}

struct source *source_open(const char *path, struct err *e)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        err_set_errno(e, "%s", path);
        return NULL;
    }
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        err_set(e, "%s is not a regular file", path);
        close(fd);
        return NULL;
    }
    struct source *s = xcalloc(1, sizeof *s);
    s->fd = fd;
    if (fill(s, e) < 0) {
        err_wrap(e, "%s", path);
        goto fail;
    }
    if (s->z.avail_in >= 2 && s->in[0] == 0x1f && s->in[1] == 0x8b) {
        if (inflateInit2(&s->z, 15 + 16) != Z_OK) { /* 32 KiB window, gzip header only */
            err_set(e, "%s: out of memory for decompression", path);
            goto fail;
        }
        s->gzip = true;
    }
    return s;
fail:
    source_close(s);
    return NULL;
}

void source_close(struct source *s)
{
    if (!s)
        return;
    if (s->gzip)
        inflateEnd(&s->z);
    close(s->fd);
    free(s);
}

uint64_t source_count(const struct source *s)
{
    return s->count;
}

static size_t take_plain(struct source *s, void *out, size_t n)
{
    size_t k = n < s->z.avail_in ? n : s->z.avail_in;

    memcpy(out, s->z.next_in, k);
    s->z.next_in += k;
    s->z.avail_in -= (uInt)k;
    return k;
}

/* Inflates what is in `in`; returns the bytes made, possibly 0, or -1. */
static int64_t take_gzip(struct source *s, void *out, size_t n, struct err *e)
{
    size_t room = n < (1u << 30) ? n : 1u << 30; /* avail_out is 32 bits wide */

    if (!s->in_member && inflateReset(&s->z) != Z_OK)
        return err_set(e, "zlib: cannot start a gzip member");
    s->in_member = true;
    s->z.next_out = out;
    s->z.avail_out = (uInt)room;
    int rc = inflate(&s->z, Z_NO_FLUSH);
    if (rc == Z_STREAM_END)
        s->in_member = false;
    else if (rc != Z_OK && rc != Z_BUF_ERROR) /* Z_BUF_ERROR: needs more input or room, nothing is wrong */
        return err_set(e, "damaged gzip data before compressed byte %llu: %s",
                       (unsigned long long)(s->file_at - s->z.avail_in), s->z.msg ? s->z.msg : zError(rc));
    return (int64_t)(room - s->z.avail_out);
}

int64_t source_read(struct source *s, void *out, size_t n, struct err *e)
{
    size_t done = 0;

    while (done < n) {
        if (s->z.avail_in == 0 && !s->file_ended && fill(s, e) < 0)
            return -1;
        if (s->file_ended && !s->in_member)
            break;
        uint8_t *to = (uint8_t *)out + done;
        int64_t k = s->gzip ? take_gzip(s, to, n - done, e) : (int64_t)take_plain(s, to, n - done);
        if (k < 0)
            return -1;
        done += (size_t)k;
        s->count += (uint64_t)k;
        /* inflate may hold output back only for lack of room: none made and no input left means no more. */
        if (k == 0 && s->file_ended && s->in_member)
            return err_set(e, "truncated gzip data: the file ends inside the stream, after %llu bytes",
                           (unsigned long long)s->file_at);
    }
    return (int64_t)done;
}
