/* tcp_star - see tcp_star.h. */
#include "worker/comm/tcp_star.h"
#include "common/clock.h"
#include "worker/comm/tcp_meet.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A rank that waits for rank 0 hears after so long (or an eighth of the timeout) whom that waits for. */
enum { SAY_WAITS_MS = 1000, LAST_WORDS_MS = 2000, NAMED_RANKS = 4 };

/* ------------------------------------------------------------------ failure */

/* Behind what is half out, as far as the others read soon. */
static void say_last_words(struct tcp_star *s, const struct err *why)
{
    const int64_t until = clock_mono_ns() + LAST_WORDS_MS * 1000000LL;

    for (int i = 0; i < s->n_links; i++)
        tcp_link_say_abort(&s->links[i], why->code, why->msg);
    for (;;) {
        int n_left = 0;

        for (int i = 0; i < s->n_links; i++) {
            const bool left = !tcp_link_finish(&s->links[i]);

            s->fds[i] = (struct pollfd){.fd = left ? s->links[i].fd : -1, .events = POLLOUT};
            n_left += left;
        }
        if (!n_left || clock_mono_ns() > until)
            return;
        poll(s->fds, (nfds_t)s->n_links, LAST_WORDS_MS);
    }
}

int tcp_star_fail(struct tcp_star *s, const struct err *why, struct err *e)
{
    s->broken = true;
    s->why = *why;
    say_last_words(s, why);
    if (e)
        *e = *why;
    return -1;
}

/* What a link found out. Of a rank that gave up, the words are its own and say what it was doing. */
static int fail_link(struct tcp_star *s, enum tcp_kind kind, const struct tcp_link *l, struct err *why,
                     struct err *e)
{
    if (!l->why[0])
        err_wrap(why, "%s", tcp_kind_name(kind));
    return tcp_star_fail(s, why, e);
}

/* "rank 2 on node7", "rank 2 on node7, rank 5 on node9 and 3 more". */
static void name_missing(const struct tcp_star *s, bool (*missing)(const struct tcp_link *), char *out,
                         size_t size)
{
    int n = 0;
    size_t at = 0;

    out[0] = 0;
    for (int i = 0; i < s->n_links; i++)
        if (missing(&s->links[i]) && n++ < NAMED_RANKS)
            at += (size_t)snprintf(out + at, size - at, "%srank %d on %s", at ? ", " : "", s->links[i].rank,
                                   s->links[i].host);
    if (n > NAMED_RANKS)
        snprintf(out + at, size - at, " and %d more", n - NAMED_RANKS);
}

static bool any(const struct tcp_star *s, bool (*what)(const struct tcp_link *))
{
    for (int i = 0; i < s->n_links; i++)
        if (what(&s->links[i]))
            return true;
    return false;
}

static int fail_late(struct tcp_star *s, enum tcp_kind kind, struct err *e)
{
    const bool sending = !any(s, tcp_link_wants);
    char names[NAMED_RANKS * (TCP_HOST_BYTES + 24) + 32], beyond[64] = "";
    struct err why = ERR_INIT;

    name_missing(s, sending ? tcp_link_unsent : tcp_link_wants, names, sizeof names);
    if (s->rank > 0 && s->links[0].waits_for >= 0)
        snprintf(beyond, sizeof beyond, ", which waits for rank %d", s->links[0].waits_for);
    err_set_kind(&why, ERR_PEER_LOST, "%s: rank %d waited %d s for %s%s%s", tcp_kind_name(kind), s->rank,
                 s->timeout_ms / 1000, names, sending ? " to read what it is sent" : "", beyond);
    return tcp_star_fail(s, &why, e);
}

int tcp_star_usable(const struct tcp_star *s, struct err *e)
{
    if (!s->broken)
        return 0;
    if (e)
        *e = s->why;
    return -1;
}

/* ------------------------------------------------------------------ the exchange */

/* Milliseconds for poll(2): until somebody is too late, or until the ranks that wait for us should hear why.
 */
static int wait_ms(const struct tcp_star *s, int64_t since_ns, bool said)
{
    const int64_t gone_ms = (clock_mono_ns() - since_ns) / 1000000;
    int64_t until = s->timeout_ms < 0 ? INT64_MAX : s->timeout_ms;

    if (!said && s->rank == 0) {
        const int64_t say = until / 8 < SAY_WAITS_MS ? until / 8 : SAY_WAITS_MS;

        until = say < until ? say : until;
    }
    if (until == INT64_MAX)
        return -1;
    return until <= gone_ms ? 0 : until - gone_ms < INT32_MAX ? (int)(until - gone_ms) : INT32_MAX;
}

/* Those whose part is here learn for whom we wait, and that we are alive. */
static void say_waits(struct tcp_star *s)
{
    int missing = -1;

    for (int i = 0; i < s->n_links && missing < 0; i++)
        if (tcp_link_wants(&s->links[i]))
            missing = s->links[i].rank;
    for (int i = 0; i < s->n_links && missing >= 0; i++)
        if (!tcp_link_wants(&s->links[i]))
            tcp_link_say_waits(&s->links[i], missing);
}

/* -1: poll failed; else how many links have something. */
static int poll_links(struct tcp_star *s, int ms, struct err *e)
{
    int n;

    for (int i = 0; i < s->n_links; i++) {
        const short events = tcp_link_events(&s->links[i]);

        s->fds[i] = (struct pollfd){.fd = events ? s->links[i].fd : -1, .events = events};
    }
    n = poll(s->fds, (nfds_t)s->n_links, ms);
    if (n >= 0 || errno == EINTR)
        return n < 0 ? 0 : n;
    return err_set_errno(e, "poll");
}

/* Once around. *moved: something was moved, or a sign of life came. */
static int serve_links(struct tcp_star *s, struct tcp_call *c, bool *moved, struct err *e)
{
    struct err why = ERR_INIT;

    for (int i = 0; i < s->n_links; i++) {
        const int rc = tcp_link_serve(&s->links[i], s->fds[i].revents, &why);

        if (rc < 0)
            return fail_link(s, c->kind, &s->links[i], &why, e);
        *moved |= rc > 0;
    }
    return 0;
}

static bool not_done(const struct tcp_link *l)
{
    return !tcp_link_done(l);
}

static int exchange(struct tcp_star *s, struct tcp_call *c, struct err *e)
{
    int64_t since = clock_mono_ns();
    bool said = false;

    for (;;) {
        struct err why = ERR_INIT;
        bool moved = false;
        int n;

        while (c->arrived && !any(s, tcp_link_wants))
            c->arrived(s, c);
        if (!any(s, not_done))
            return 0;
        n = poll_links(s, wait_ms(s, since, said), &why);
        if (n < 0)
            return tcp_star_fail(s, &why, e);
        if (serve_links(s, c, &moved, e) < 0)
            return -1;
        if (moved) {
            since = clock_mono_ns();
            said = false;
        }
        if (n == 0 && wait_ms(s, since, said) == 0 && !said) {
            say_waits(s);
            said = true;
        }
        if (n == 0 && wait_ms(s, since, true) == 0)
            return fail_late(s, c->kind, e);
    }
}

int tcp_star_exchange(struct tcp_star *s, struct tcp_call *c, struct err *e)
{
    int64_t since = clock_mono_ns();
    int rc = exchange(s, c, e);

    s->wait_ns += clock_mono_ns() - since;
    return rc;
}

uint32_t tcp_star_begin(struct tcp_star *s)
{
    for (int i = 0; i < s->n_links; i++)
        tcp_link_begin(&s->links[i]);
    return ++s->n_calls;
}

void tcp_star_release(struct tcp_star *s, struct tcp_call *c)
{
    for (int i = 0; i < s->n_links; i++)
        tcp_link_ready(&s->links[i], s->links[i].out.total);
    c->arrived = NULL;
}

/* ------------------------------------------------------------------ beginning and end */

int tcp_star_open(struct tcp_star *s, struct rendezvous *r, int timeout_ms, struct err *e)
{
    const size_t n = r->rank > 0 ? 1 : (size_t)r->size - 1;

    *s = (struct tcp_star){.rank = r->rank, .size = r->size, .timeout_ms = timeout_ms};
    s->links = xcalloc(n + 1, sizeof *s->links);
    s->fds = xcalloc(n + 1, sizeof *s->fds);
    gethostname(s->host, sizeof s->host - 1);
    if (r->size > 1 && tcp_meet(r, s->links, e) < 0) {
        tcp_star_close(s);
        return -1;
    }
    s->n_links = (int)n;
    return 0;
}

void tcp_star_close(struct tcp_star *s)
{
    for (int i = 0; i < s->n_links; i++)
        tcp_link_close(&s->links[i], !s->broken);
    free(s->links);
    free(s->fds);
    *s = (struct tcp_star){.n_links = 0};
}
