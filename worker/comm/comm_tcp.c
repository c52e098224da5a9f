/* comm_tcp - see comm_tcp.h. Each collective is one exchange over the star, an all-to-all three; every rank
 * sends all it has at once, and rank 0 answers as far as it can.
 */
#include "worker/comm/comm_tcp.h"
#include "worker/comm/tcp_star.h"

#include <stdlib.h>
#include <string.h>

struct comm_tcp {
    struct comm base;
    struct tcp_star star;
    char *stage;   /* rank 0: a chunk of each link's, for sums */
    char *scratch; /* rank 0: grows to what a call needs */
    size_t scratch_bytes;
};

/* A sum on rank 0; on others, its kind and size. */
struct sum {
    struct tcp_call call;
    char *sum;
    size_t bytes, done;
    enum dtype type;
};

static struct comm_tcp *tcp_of(struct comm *c)
{
    return (struct comm_tcp *)c;
}

/* Ranks but 0: all of it can leave at once. */
static void send_whole(struct tcp_link *l, const struct tcp_call *c, uint32_t number, const void *data,
                       size_t n)
{
    tcp_link_send(l, c->kind, number, data, n);
    tcp_link_ready(l, n);
}

static int get_scratch(struct comm_tcp *t, size_t bytes, struct err *e)
{
    struct err why = ERR_INIT;
    char *p;

    if (bytes <= t->scratch_bytes)
        return 0;
    p = realloc(t->scratch, bytes);
    if (!p) {
        err_set(&why, "rank 0 on %s: out of memory: %zu bytes for what crosses ranks", t->star.host, bytes);
        return tcp_star_fail(&t->star, &why, e);
    }
    t->scratch = p;
    t->scratch_bytes = bytes;
    return 0;
}

/* ------------------------------------------------------------------ gathering */

static size_t bytes_before(const int64_t *counts, int rank, size_t unit_bytes)
{
    int64_t n = 0;

    for (int r = 0; r < rank; r++)
        n += counts[r];
    return (size_t)n * unit_bytes;
}

static int tcp_all_gather(struct comm *base, const void *local, void *all, const int64_t *counts,
                          size_t row_bytes, struct err *e)
{
    struct tcp_star *s = &tcp_of(base)->star;
    struct tcp_call c = {.kind = TCP_ALL_GATHER};
    const size_t own = (size_t)counts[base->rank] * row_bytes;
    const size_t total = bytes_before(counts, base->size, row_bytes);
    char *at = all;

    if (tcp_star_usable(s, e) < 0)
        return -1;
    const uint32_t number = tcp_star_begin(s);
    if (base->rank > 0) {
        send_whole(s->links, &c, number, local, own);
        tcp_link_expect(s->links, c.kind, number, all, total);
        return tcp_star_exchange(s, &c, e);
    }
    c.arrived = tcp_star_release;
    if (own)
        memmove(at, local, own);
    for (int r = 1; r < base->size; r++) {
        tcp_link_expect(&s->links[r - 1], c.kind, number, at + bytes_before(counts, r, row_bytes),
                        (size_t)counts[r] * row_bytes);
        tcp_link_send(&s->links[r - 1], c.kind, number, all, total);
    }
    return tcp_star_exchange(s, &c, e);
}

static int tcp_broadcast(struct comm *base, void *buf, size_t bytes, int root, struct err *e)
{
    struct tcp_star *s = &tcp_of(base)->star;
    struct tcp_call c = {.kind = TCP_BROADCAST};

    if (tcp_star_usable(s, e) < 0)
        return -1;
    const uint32_t number = tcp_star_begin(s);
    if (base->rank > 0) {
        if (base->rank == root)
            send_whole(s->links, &c, number, buf, bytes);
        else
            tcp_link_expect(s->links, c.kind, number, buf, bytes);
        return tcp_star_exchange(s, &c, e);
    }
    c.arrived = tcp_star_release;
    for (int r = 1; r < base->size; r++)
        if (r == root)
            tcp_link_expect(&s->links[r - 1], c.kind, number, buf, bytes);
        else
            tcp_link_send(&s->links[r - 1], c.kind, number, buf, bytes);
    return tcp_star_exchange(s, &c, e);
}

static int tcp_barrier(struct comm *base, struct err *e)
{
    struct tcp_star *s = &tcp_of(base)->star;
    struct tcp_call c = {.kind = TCP_BARRIER, .arrived = base->rank == 0 ? tcp_star_release : NULL};

    if (tcp_star_usable(s, e) < 0)
        return -1;
    const uint32_t number = tcp_star_begin(s);
    for (int i = 0; i < s->n_links; i++) {
        tcp_link_send(&s->links[i], c.kind, number, NULL, 0);
        tcp_link_expect(&s->links[i], c.kind, number, NULL, 0);
        if (base->rank > 0)
            tcp_link_ready(&s->links[i], 0);
    }
    return tcp_star_exchange(s, &c, e);
}

/* ------------------------------------------------------------------ sums */

static void add(char *sum, const char *x, size_t bytes, enum dtype t)
{
    if (t == DTYPE_F64) {
        double *s = (double *)sum;
        for (size_t i = 0; i < bytes / sizeof *s; i++)
            s[i] += ((const double *)x)[i];
    } else if (t == DTYPE_I32) {
        uint32_t *s = (uint32_t *)sum;
        for (size_t i = 0; i < bytes / sizeof *s; i++)
            s[i] += ((const uint32_t *)x)[i];
    } else {
        float *s = (float *)sum;
        for (size_t i = 0; i < bytes / sizeof *s; i++)
            s[i] += ((const float *)x)[i];
    }
}

/* How much of a message that begins `first` bytes into the sum is summed. */
static size_t summed_of(size_t done, size_t first, size_t total)
{
    return done <= first ? 0 : done - first < total ? done - first : total;
}

/* A chunk of everyone's is here: it is added in the order of ranks, and the next is wanted. */
static void sum_chunk(struct tcp_star *s, struct tcp_call *call)
{
    struct sum *c = (struct sum *)call;
    const size_t left = c->bytes - c->done, n = left < TCP_CHUNK_BYTES ? left : TCP_CHUNK_BYTES;

    for (int i = 0; i < s->n_links; i++)
        add(c->sum + c->done, s->links[i].in.dst, n, c->type);
    c->done += n;
    for (int i = 0; i < s->n_links; i++) {
        struct tcp_link *l = &s->links[i];
        const size_t first = c->bytes ? (size_t)(l->out.data - c->sum) : 0;

        tcp_link_ready(l, summed_of(c->done, first, l->out.total));
        tcp_link_want(l, c->done + TCP_CHUNK_BYTES < c->bytes ? c->done + TCP_CHUNK_BYTES : c->bytes);
    }
    if (c->done == c->bytes)
        call->arrived = NULL;
}

/* Rank 0: everyone's c->bytes are wanted, to be added to those at c->sum. */
static void expect_sum(struct comm_tcp *t, struct sum *c, uint32_t number)
{
    const struct tcp_star *s = &t->star;

    c->call.arrived = sum_chunk;
    for (int i = 0; i < s->n_links; i++)
        tcp_link_expect_staged(&s->links[i], c->call.kind, number, t->stage + (size_t)i * TCP_CHUNK_BYTES,
                               c->bytes);
}

static int tcp_all_reduce(struct comm *base, void *buf, size_t n, enum dtype type, struct err *e)
{
    struct comm_tcp *t = tcp_of(base);
    struct tcp_star *s = &t->star;
    struct sum c = {.call.kind = TCP_ALL_REDUCE, .sum = buf, .bytes = n * dtype_bytes(type), .type = type};

    if (type == DTYPE_BF16)
        return err_set(e, "all-reduce of bf16: sums are made in fp32 or wider");
    if (tcp_star_usable(s, e) < 0)
        return -1;
    const uint32_t number = tcp_star_begin(s);
    if (base->rank > 0) {
        send_whole(s->links, &c.call, number, buf, c.bytes);
        /* In place: a chunk has left before its sum comes. */
        tcp_link_expect(s->links, c.call.kind, number, buf, c.bytes);
        return tcp_star_exchange(s, &c.call, e);
    }
    expect_sum(t, &c, number);
    for (int i = 0; i < s->n_links; i++)
        tcp_link_send(&s->links[i], c.call.kind, number, buf, c.bytes);
    return tcp_star_exchange(s, &c.call, e);
}

static int tcp_reduce_scatter(struct comm *base, const float *all, float *local, const int64_t *counts,
                              int64_t width, struct err *e)
{
    struct comm_tcp *t = tcp_of(base);
    struct tcp_star *s = &t->star;
    const size_t row_bytes = (size_t)width * sizeof(float);
    const size_t own = (size_t)counts[base->rank] * row_bytes;
    struct sum c = {.call.kind = TCP_REDUCE_SCATTER, .type = DTYPE_F32};

    c.bytes = bytes_before(counts, base->size, row_bytes);
    if (tcp_star_usable(s, e) < 0)
        return -1;
    const uint32_t number = tcp_star_begin(s);
    if (base->rank > 0) {
        send_whole(s->links, &c.call, number, all, c.bytes);
        tcp_link_expect(s->links, c.call.kind, number, local, own);
        return tcp_star_exchange(s, &c.call, e);
    }
    if (get_scratch(t, c.bytes, e) < 0)
        return -1;
    c.sum = t->scratch;
    if (c.bytes)
        memcpy(c.sum, all, c.bytes);
    expect_sum(t, &c, number);
    for (int r = 1; r < base->size; r++)
        tcp_link_send(&s->links[r - 1], c.call.kind, number, c.sum + bytes_before(counts, r, row_bytes),
                      (size_t)counts[r] * row_bytes);
    if (tcp_star_exchange(s, &c.call, e) < 0)
        return -1;
    if (own)
        memcpy(local, c.sum, own);
    return 0;
}

static int tcp_all_reduce_start(struct comm *c, void *buf, size_t n, enum dtype type, struct comm_req *r,
                                struct err *e)
{
    r->handle = NULL;
    return tcp_all_reduce(c, buf, n, type, e);
}

static int tcp_wait(struct comm *c, struct comm_req *r, struct err *e)
{
    (void)c, (void)r, (void)e;
    return 0;
}

/* ------------------------------------------------------------------ all to all */

/* Rank 0: who sends whom how much, and where it lies. */
struct routes {
    int size;
    int64_t *counts;   /* [from × to] units */
    const char **from; /* [from]: what it sends, in the order of receivers */
    size_t unit_bytes;
};

static int64_t *counts_of(const struct routes *r, int from)
{
    return r->counts + (size_t)from * (size_t)r->size;
}

static size_t bytes_from(const struct routes *r, int from)
{
    return bytes_before(counts_of(r, from), r->size, r->unit_bytes);
}

static size_t bytes_to(const struct routes *r, int to)
{
    size_t n = 0;

    for (int from = 0; from < r->size; from++)
        n += (size_t)counts_of(r, from)[to] * r->unit_bytes;
    return n;
}

/* What `to` receives, in the order of senders. */
static void collect(const struct routes *r, int to, char *out)
{
    for (int from = 0; from < r->size; from++) {
        const int64_t *counts = counts_of(r, from);
        const size_t n = (size_t)counts[to] * r->unit_bytes;

        if (n)
            memcpy(out, r->from[from] + bytes_before(counts, to, r->unit_bytes), n);
        out += n;
    }
}

/* Everyone's counts to rank 0, into all [from × to]. */
static int gather_counts(struct tcp_star *s, const int64_t *send_counts, int64_t *all, struct err *e)
{
    struct tcp_call c = {.kind = TCP_ALL_TO_ALL};
    const size_t n = (size_t)s->size, bytes = n * sizeof *all;
    const uint32_t number = tcp_star_begin(s);

    if (s->rank > 0) {
        send_whole(s->links, &c, number, send_counts, bytes);
        return tcp_star_exchange(s, &c, e);
    }
    memcpy(all, send_counts, bytes);
    for (size_t r = 1; r < n; r++)
        tcp_link_expect(&s->links[r - 1], c.kind, number, all + r * n, bytes);
    return tcp_star_exchange(s, &c, e);
}

/* The others find out by the number of bytes that comes. */
static int check_counts(struct tcp_star *s, const struct routes *r, const int64_t *recv_counts, struct err *e)
{
    struct err why = ERR_INIT;

    for (int from = 0; from < r->size; from++)
        if (counts_of(r, from)[0] != recv_counts[from]) {
            err_set(&why, "all-to-all: rank %d sends %lld units to rank 0, which expects %lld", from,
                    (long long)counts_of(r, from)[0], (long long)recv_counts[from]);
            return tcp_star_fail(s, &why, e);
        }
    return 0;
}

/* Rank 0: takes in what the others send, and gives each its own in one piece. */
static int route(struct comm_tcp *t, struct routes *r, char *recv, struct err *e)
{
    struct tcp_star *s = &t->star;
    struct tcp_call c = {.kind = TCP_ALL_TO_ALL};
    uint32_t number = tcp_star_begin(s);
    size_t total = 0;
    char *at;

    for (int i = 1; i < r->size; i++)
        total += bytes_from(r, i) + bytes_to(r, i);
    if (get_scratch(t, total, e) < 0)
        return -1;
    at = t->scratch;
    for (int i = 1; i < r->size; i++) {
        r->from[i] = at;
        tcp_link_expect(&s->links[i - 1], c.kind, number, at, bytes_from(r, i));
        at += bytes_from(r, i);
    }
    if (tcp_star_exchange(s, &c, e) < 0)
        return -1;
    number = tcp_star_begin(s);
    for (int i = 1; i < r->size; i++) {
        collect(r, i, at);
        send_whole(&s->links[i - 1], &c, number, at, bytes_to(r, i));
        at += bytes_to(r, i);
    }
    collect(r, 0, recv);
    return tcp_star_exchange(s, &c, e);
}

static int all_to_all_root(struct comm_tcp *t, const void *send, const int64_t *send_counts, void *recv,
                           const int64_t *recv_counts, size_t unit_bytes, struct err *e)
{
    const size_t n = (size_t)t->base.size;
    struct routes r = {.size = t->base.size, .unit_bytes = unit_bytes};
    int rc;

    r.counts = xcalloc(n * n, sizeof *r.counts);
    r.from = xcalloc(n, sizeof *r.from);
    r.from[0] = send;
    rc = gather_counts(&t->star, send_counts, r.counts, e);
    if (rc == 0)
        rc = check_counts(&t->star, &r, recv_counts, e);
    if (rc == 0)
        rc = route(t, &r, recv, e);
    free(r.counts);
    free(r.from);
    return rc;
}

static int tcp_all_to_all(struct comm *base, const void *send, const int64_t *send_counts, void *recv,
                          const int64_t *recv_counts, size_t unit_bytes, struct err *e)
{
    struct comm_tcp *t = tcp_of(base);
    struct tcp_star *s = &t->star;
    struct tcp_call c = {.kind = TCP_ALL_TO_ALL};
    uint32_t number;

    if (tcp_star_usable(s, e) < 0)
        return -1;
    if (base->rank == 0)
        return all_to_all_root(t, send, send_counts, recv, recv_counts, unit_bytes, e);
    if (gather_counts(s, send_counts, NULL, e) < 0)
        return -1;
    number = tcp_star_begin(s);
    send_whole(s->links, &c, number, send, bytes_before(send_counts, base->size, unit_bytes));
    if (tcp_star_exchange(s, &c, e) < 0)
        return -1;
    number = tcp_star_begin(s);
    tcp_link_expect(s->links, c.kind, number, recv, bytes_before(recv_counts, base->size, unit_bytes));
    return tcp_star_exchange(s, &c, e);
}

/* ------------------------------------------------------------------ beginning and end */

static int64_t tcp_wait_ns(const struct comm *c)
{
    return ((const struct comm_tcp *)c)->star.wait_ns;
}

static void tcp_abort(struct comm *base, int exit_status)
{
    struct tcp_star *s = &tcp_of(base)->star;
    struct err why = ERR_INIT;

    if (s->broken)
        return; /* they know */
    err_set_kind(&why, ERR_PEER_LOST, "rank %d on %s gave up with status %d", base->rank, s->host,
                 exit_status);
    why.code = exit_status;
    tcp_star_fail(s, &why, NULL);
}

static void tcp_destroy(struct comm *base)
{
    struct comm_tcp *t = tcp_of(base);

    tcp_star_close(&t->star);
    free(t->stage);
    free(t->scratch);
    free(t);
}

static const struct comm_ops tcp_ops = {
    .name = "tcp",
    .note = "srun started the ranks without PMIx, so what they tell each other goes through rank 0 over TCP: "
            "that is right for GPUs, whose features and gradients go over NCCL, and slow for CPUs, whose all "
            "goes this way (srun --mpi=pmix, or mpirun inside the allocation, is faster)",
    .all_gather = tcp_all_gather,
    .reduce_scatter = tcp_reduce_scatter,
    .all_to_all = tcp_all_to_all,
    .all_reduce = tcp_all_reduce,
    .all_reduce_start = tcp_all_reduce_start,
    .wait = tcp_wait,
    .broadcast = tcp_broadcast,
    .barrier = tcp_barrier,
    .wait_ns = tcp_wait_ns,
    .abort = tcp_abort,
    .destroy = tcp_destroy,
};

struct comm *comm_tcp_create(const struct comm_tcp_config *cfg, struct err *e)
{
    struct rendezvous r = {
        .dir = cfg->dir, .name = cfg->name, .rank = cfg->rank, .size = cfg->size, .timeout_ms = cfg->meet_ms};
    struct comm_tcp *t = xcalloc(1, sizeof *t);

    t->base = (struct comm){&tcp_ops, cfg->rank, cfg->size};
    if (tcp_star_open(&t->star, &r, cfg->timeout_ms, e) < 0) {
        tcp_destroy(&t->base);
        return NULL;
    }
    if (cfg->rank == 0)
        t->stage = xmalloc((size_t)t->star.n_links * TCP_CHUNK_BYTES + 1);
    return &t->base;
}
