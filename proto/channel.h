/* channel - what stands between the lines of a connection and the bytes on its socket: nothing, or TLS.
 *
 * A channel does no input or output of its own. Whoever owns the socket hands it the bytes that came
 * (channel_take) and fetches the bytes that are to leave (channel_seal), whatever loop it runs; so the daemon
 * and the blocking client use the same ones, and a test needs no socket.
 */
#ifndef PROTO_CHANNEL_H
#define PROTO_CHANNEL_H

#include <stdbool.h>
#include "common/buf.h"
#include "proto/frame.h"

struct channel;

struct channel_ops {
    int (*take)(struct channel *ch, const char *raw, size_t n, struct frame *in, struct err *e);
    int (*seal)(struct channel *ch, struct buf *plain, struct buf *raw, struct err *e);
    bool (*is_open)(const struct channel *ch);
    void (*finish)(struct channel *ch, struct buf *raw);
    void (*destroy)(struct channel *ch);
};

/* The first member of every channel. */
struct channel {
    const struct channel_ops *ops;
};

/* Lines as they are. */
struct channel *channel_plain_create(void);

/* Takes n bytes that came from the socket; what they say goes to `in`. 0, 1 when the peer has said that no
 * more will come, or -1: the channel is of no use any more, but what it has to say about that may still be
 * sealed. */
static inline int channel_take(struct channel *ch, const char *raw, size_t n, struct frame *in, struct err *e)
{
    return ch->ops->take(ch, raw, n, in, e);
}

/* Moves what can leave from `plain` to the empty buffer `raw`, in the form in which it goes to the socket,
 * together with what the channel itself has to say. Before the channel is open `plain` keeps its bytes. -1
 * when that fails or `raw` becomes full. */
static inline int channel_seal(struct channel *ch, struct buf *plain, struct buf *raw, struct err *e)
{
    return ch->ops->seal(ch, plain, raw, e);
}

/* Can lines pass? False while a handshake goes on. */
static inline bool channel_is_open(const struct channel *ch)
{
    return ch->ops->is_open(ch);
}

/* Says good-bye: adds to `raw` what tells the peer that no more will come. */
static inline void channel_finish(struct channel *ch, struct buf *raw)
{
    ch->ops->finish(ch, raw);
}

static inline void channel_destroy(struct channel *ch)
{
    if (ch)
        ch->ops->destroy(ch);
}

#endif
