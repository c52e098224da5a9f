/* channel - see channel.h; the channel that changes nothing. TLS is tls.c. */
#include "proto/channel.h"

#include <stdlib.h>

static int take(struct channel *ch, const char *raw, size_t n, struct frame *in, struct err *e)
{
    (void)ch;
    (void)e;
    frame_push(in, raw, n);
    return 0;
}

/* The buffers change places: nothing is copied. */
static int seal(struct channel *ch, struct buf *plain, struct buf *raw, struct err *e)
{
    struct buf swap = *raw;

    (void)ch;
    (void)e;
    if (plain->len) {
        *raw = *plain;
        *plain = swap;
    }
    return 0;
}

static bool is_open(const struct channel *ch)
{
    (void)ch;
    return true;
}

static void finish(struct channel *ch, struct buf *raw)
{
    (void)ch;
    (void)raw;
}

static void destroy(struct channel *ch)
{
    free(ch);
}

static const struct channel_ops ops = {take, seal, is_open, finish, destroy};

struct channel *channel_plain_create(void)
{
    struct channel *ch = xcalloc(1, sizeof *ch);

    ch->ops = &ops;
    return ch;
}
