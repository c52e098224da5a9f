/* tfevents - see tfevents.h. */
#include "worker/train/tfevents.h"

#include <endian.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/buf.h"
#include "common/clock.h"
#include "common/fsutil.h"

enum { EVENT_MAX_BYTES = 4096 };

/* Bit by bit: a few records a second need no table. */
uint32_t tfevents_crc32c(const void *data, size_t n)
{
    const uint8_t *p = data;
    uint32_t crc = 0xFFFFFFFFu;

    while (n--) {
        crc ^= *p++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    return ~crc;
}

uint32_t tfevents_mask(uint32_t crc)
{
    return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

/* Protocol-buffer wire types. */
enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

static int put_varint(struct buf *b, uint64_t v, struct err *e)
{
    uint8_t out[10];
    size_t n = 0;

    do {
        out[n++] = (uint8_t)((v & 0x7F) | (v > 0x7F ? 0x80 : 0));
        v >>= 7;
    } while (v);
    return buf_append(b, out, n, e);
}

static int put_key(struct buf *b, int field, int wire, struct err *e)
{
    return put_varint(b, (uint64_t)(field << 3 | wire), e);
}

static int put_int(struct buf *b, int field, int64_t v, struct err *e)
{
    return put_key(b, field, WIRE_VARINT, e) < 0 ? -1 : put_varint(b, (uint64_t)v, e);
}

static int put_bytes(struct buf *b, int field, const void *data, size_t n, struct err *e)
{
    if (put_key(b, field, WIRE_BYTES, e) < 0 || put_varint(b, n, e) < 0)
        return -1;
    return buf_append(b, data, n, e);
}

static int put_double(struct buf *b, int field, double v, struct err *e)
{
    return put_key(b, field, WIRE_64, e) < 0 ? -1 : buf_append(b, &v, sizeof v, e);
}

static int put_float(struct buf *b, int field, float v, struct err *e)
{
    return put_key(b, field, WIRE_32, e) < 0 ? -1 : buf_append(b, &v, sizeof v, e);
}

static int write_record(struct tfevents *t, const struct buf *event, struct err *e)
{
    uint64_t len = htole64(event->len);
    uint32_t len_crc = htole32(tfevents_mask(tfevents_crc32c(&len, sizeof len)));
    uint32_t data_crc = htole32(tfevents_mask(tfevents_crc32c(event->data, event->len)));
    struct buf record;

    buf_init(&record, EVENT_MAX_BYTES + 64);
    int rc = 0;
    if (buf_append(&record, &len, sizeof len, e) < 0 ||
        buf_append(&record, &len_crc, sizeof len_crc, e) < 0 ||
        buf_append(&record, event->data, event->len, e) < 0 ||
        buf_append(&record, &data_crc, sizeof data_crc, e) < 0 ||
        fs_write_all(t->fd, record.data, record.len, e) < 0)
        rc = err_wrap(e, "%s", t->path);
    buf_free(&record);
    return rc;
}

/* One Event whose payload is field `field` with n bytes. */
static int write_event(struct tfevents *t, int64_t step, int field, const void *payload, size_t n,
                       struct err *e)
{
    struct buf b;
    int rc = -1;

    buf_init(&b, EVENT_MAX_BYTES);
    if (put_double(&b, 1, (double)clock_wall_ms() / 1000, e) == 0 && put_int(&b, 2, step, e) == 0 &&
        put_bytes(&b, field, payload, n, e) == 0)
        rc = write_record(t, &b, e);
    buf_free(&b);
    return rc;
}

int tfevents_open(struct tfevents *t, const char *dir, int64_t first_step, struct err *e)
{
    static const char version[] = "brain.Event:2";
    static const uint8_t session_start[] = {1 << 3 | WIRE_VARINT, 1}; /* SessionLog {status: START} */
    char host[64] = "localhost";

    *t = (struct tfevents){.fd = -1};
    if (fs_mkdir_p(dir, e) < 0)
        return -1;
    gethostname(host, sizeof host - 1);
    t->path = xasprintf("%s/events.out.tfevents.%010lld.%s.%ld", dir, (long long)(clock_wall_ms() / 1000),
                        host, (long)getpid());
    t->fd = open(t->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (t->fd < 0)
        return err_set_errno(e, "%s", t->path);
    if (write_event(t, 0, 3, version, sizeof version - 1, e) < 0)
        return -1;
    return first_step > 1 ? write_event(t, first_step, 7, session_start, sizeof session_start, e) : 0;
}

int tfevents_scalar(struct tfevents *t, int64_t step, const char *tag, double value, struct err *e)
{
    struct buf v, summary;
    int rc = -1;

    buf_init(&v, EVENT_MAX_BYTES);
    buf_init(&summary, EVENT_MAX_BYTES);
    if (put_bytes(&v, 1, tag, strlen(tag), e) == 0 && put_float(&v, 2, (float)value, e) == 0 &&
        put_bytes(&summary, 1, v.data, v.len, e) == 0)
        rc = write_event(t, step, 5, summary.data, summary.len, e);
    buf_free(&v);
    buf_free(&summary);
    return rc;
}

void tfevents_close(struct tfevents *t)
{
    if (t->path && t->fd >= 0)
        close(t->fd);
    free(t->path);
    *t = (struct tfevents){.fd = -1};
}
