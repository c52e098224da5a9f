/* frame - see frame.h.
 *
 * `in` is a window over the stream: [0, given) was handed out, [given, given + scanned) holds no newline.
 * Handing out a line only moves `given`; the bytes are dropped in one go when no whole line is left, so that
 * a burst of small messages costs one memmove, not one a message.
 */
#include "proto/frame.h"

#include <string.h>

void frame_init(struct frame *f)
{
    *f = (struct frame){0};
    buf_init(&f->in, (size_t)1 << 40); /* the real bound is frame_next()'s; see frame_push in the header */
}

void frame_free(struct frame *f)
{
    buf_free(&f->in);
}

void frame_push(struct frame *f, const void *data, size_t n)
{
    if (f->skipping) {
        const char *end = memchr(data, '\n', n);
        if (!end)
            return;
        n -= (size_t)(end + 1 - (const char *)data);
        data = end + 1;
        f->skipping = false;
    }
    int rc = buf_append(&f->in, data, n, NULL);
    ASSERT(rc == 0);
}

/* No whole line is left: drop what was handed out, and give up on a line that is too long already. */
static enum frame_result no_line(struct frame *f)
{
    buf_consume(&f->in, f->given);
    f->given = 0;
    f->scanned = f->in.len;
    if (f->in.len <= FRAME_MAX_BYTES)
        return FRAME_NONE;
    buf_free(&f->in);
    f->scanned = 0;
    f->skipping = true;
    return FRAME_TOO_LONG;
}

enum frame_result frame_next(struct frame *f, char **line, size_t *len)
{
    for (;;) {
        size_t from = f->given + f->scanned;
        char *end = from < f->in.len ? memchr(f->in.data + from, '\n', f->in.len - from) : NULL;
        if (!end)
            return no_line(f);
        char *start = f->in.data + f->given;
        size_t n = (size_t)(end - start);
        f->given += n + 1;
        f->scanned = 0;
        if (n > FRAME_MAX_BYTES)
            return FRAME_TOO_LONG;
        if (n && start[n - 1] == '\r')
            n--;
        if (!n)
            continue;
        start[n] = 0;
        *line = start;
        *len = n;
        return FRAME_LINE;
    }
}
