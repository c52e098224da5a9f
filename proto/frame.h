/* frame - one JSON message a line: cuts a byte stream into lines of at most FRAME_MAX_BYTES.
 *
 * Bytes go in as they arrive, whole lines come out; the line is borrowed until the next call. A line that is
 * too long is dropped up to its end and reported once, so that one bad message costs its sender an error and
 * nothing more.
 */
#ifndef PROTO_FRAME_H
#define PROTO_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include "common/buf.h"

enum { FRAME_MAX_BYTES = 1 << 20 };

struct frame {
    struct buf in; /* received bytes; the first `given` were handed out already and go when no line is left */
    size_t scanned; /* bytes of `in` after `given` that are known to hold no newline */
    size_t given;
    bool skipping; /* inside a line that was too long */
};

enum frame_result { FRAME_NONE, FRAME_LINE, FRAME_TOO_LONG };

void frame_init(struct frame *f);
void frame_free(struct frame *f);

/* Adds n received bytes. What is kept grows only by what was pushed since frame_next() last said FRAME_NONE:
 * the owner bounds that by draining before it pushes again. */
void frame_push(struct frame *f, const void *data, size_t n);

/* FRAME_LINE: *line holds len bytes without the newline (and a carriage return before it), NUL-terminated.
 * Empty lines are skipped. FRAME_TOO_LONG: once for each over-long line. FRAME_NONE: push more. */
enum frame_result frame_next(struct frame *f, char **line, size_t *len);

#endif
