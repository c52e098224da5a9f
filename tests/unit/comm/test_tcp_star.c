/* test_tcp_star - one end of a star, the other being played by hand: what is said between frames, frames that
 * come in pieces, and frames that should not be there. */
#include "tests/unit/cm.h"
#include "worker/comm/tcp_star.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SHORT_MS = 100, PATIENT_MS = 120000 };

/* A star of n links; far[i] is the other end of the i-th, which blocks. */
struct rig {
    struct tcp_star star;
    int far[2];
};

static struct rig *rig_create(int rank, int size, int timeout_ms)
{
    struct rig *g = calloc(1, sizeof *g);
    const int n = rank > 0 ? 1 : size - 1;

    g->star = (struct tcp_star){.rank = rank, .size = size, .timeout_ms = timeout_ms, .n_links = n};
    g->star.links = calloc((size_t)n, sizeof *g->star.links);
    g->star.fds = calloc((size_t)n, sizeof *g->star.fds);
    for (int i = 0; i < n; i++) {
        int pair[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
        tcp_link_open(&g->star.links[i], pair[0], rank > 0 ? 0 : i + 1, "far");
        g->far[i] = pair[1];
    }
    return g;
}

static void rig_destroy(struct rig *g)
{
    const int n = g->star.n_links;

    tcp_star_close(&g->star);
    for (int i = 0; i < n; i++)
        close(g->far[i]);
    free(g);
}

static void far_say(struct rig *g, int i, struct tcp_head head, const void *bytes)
{
    assert_int_equal(send(g->far[i], &head, sizeof head, MSG_NOSIGNAL), sizeof head);
    if (head.bytes)
        assert_int_equal(send(g->far[i], bytes, head.bytes, MSG_NOSIGNAL), head.bytes);
}

static struct tcp_head far_hear(struct rig *g, int i, void *bytes)
{
    struct tcp_head head;

    assert_int_equal(recv(g->far[i], &head, sizeof head, MSG_WAITALL), sizeof head);
    if (head.bytes)
        assert_int_equal(recv(g->far[i], bytes, head.bytes, MSG_WAITALL), head.bytes);
    return head;
}

/* Rank 1 expects eight bytes of a broadcast from rank 0. */
static int expect_eight(struct rig *g, char got[8], struct err *e)
{
    struct tcp_call c = {.kind = TCP_BROADCAST};
    const uint32_t number = tcp_star_begin(&g->star);

    memset(got, 0, 8);
    tcp_link_expect(g->star.links, c.kind, number, got, 8);
    return tcp_star_exchange(&g->star, &c, e);
}

static const struct tcp_head eight = {.kind = TCP_BROADCAST, .call = 1, .total = 8, .bytes = 8};

static void test_takes_what_it_expects(void **state)
{
    struct rig *g = rig_create(1, 3, PATIENT_MS);
    struct err e = ERR_INIT;
    char got[8];

    (void)state;
    far_say(g, 0, (struct tcp_head){.kind = TCP_WAITS, .arg = 2}, NULL);
    far_say(g, 0, eight, "abcdefg");
    assert_int_equal(expect_eight(g, got, &e), 0);
    assert_string_equal(got, "abcdefg");
    rig_destroy(g);
}

/* Another process writes it byte by byte. */
static void test_takes_it_in_pieces(void **state)
{
    struct rig *g = rig_create(1, 3, PATIENT_MS);
    struct err e = ERR_INIT;
    char all[sizeof eight + 8], got[8];
    pid_t pid;
    int status;

    (void)state;
    memcpy(all, &eight, sizeof eight);
    memcpy(all + sizeof eight, "abcdefg", 8);
    pid = fork();
    if (pid == 0) {
        for (size_t i = 0; i < sizeof all; i++)
            if (send(g->far[0], all + i, 1, MSG_NOSIGNAL) != 1)
                _exit(1);
        _exit(0);
    }
    assert_int_equal(expect_eight(g, got, &e), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_string_equal(got, "abcdefg");
    rig_destroy(g);
}

/* Rank 0 has said for whom it waits, and is not heard of again. */
static void test_names_whom_rank0_waits_for(void **state)
{
    struct rig *g = rig_create(1, 8, SHORT_MS);
    struct err e = ERR_INIT;
    char got[8], words[256] = "";
    struct tcp_head head;

    (void)state;
    far_say(g, 0, (struct tcp_head){.kind = TCP_WAITS, .arg = 7}, NULL);
    assert_int_equal(expect_eight(g, got, &e), -1);
    assert_int_equal(e.kind, ERR_PEER_LOST);
    assert_string_equal(e.msg, "broadcast: rank 1 waited 0 s for rank 0 on far, which waits for rank 7");
    head = far_hear(g, 0, words); /* it says goodbye with the reason */
    assert_int_equal(head.kind, TCP_ABORT);
    assert_int_equal(head.arg, 0);
    assert_string_equal(words, e.msg);
    rig_destroy(g);
}

/* Rank 0 waits for rank 2 and tells rank 1 so, then that it gives up. */
static void test_rank0_says_for_whom_it_waits(void **state)
{
    struct rig *g = rig_create(0, 3, SHORT_MS);
    struct tcp_call c = {.kind = TCP_BARRIER, .arrived = tcp_star_release};
    const uint32_t number = tcp_star_begin(&g->star);
    struct err e = ERR_INIT;
    struct tcp_head head;
    char words[TCP_WHY_BYTES] = "";

    (void)state;
    far_say(g, 0, (struct tcp_head){.kind = TCP_BARRIER, .call = number}, NULL);
    for (int i = 0; i < 2; i++) {
        tcp_link_expect(&g->star.links[i], c.kind, number, NULL, 0);
        tcp_link_send(&g->star.links[i], c.kind, number, NULL, 0);
    }
    assert_int_equal(tcp_star_exchange(&g->star, &c, &e), -1);
    assert_int_equal(e.kind, ERR_PEER_LOST);
    assert_string_equal(e.msg, "barrier: rank 0 waited 0 s for rank 2 on far");
    head = far_hear(g, 0, words);
    assert_int_equal(head.kind, TCP_WAITS);
    assert_int_equal(head.arg, 2);
    head = far_hear(g, 0, words);
    assert_int_equal(head.kind, TCP_ABORT);
    assert_string_equal(words, e.msg);
    assert_int_equal(tcp_star_usable(&g->star, &e), -1);
    assert_string_equal(words, e.msg);
    rig_destroy(g);
}

static void test_takes_last_words(void **state)
{
    static const char words[] = "rank 0 on far gave up with status 1";
    struct rig *g = rig_create(1, 2, PATIENT_MS);
    struct err e = ERR_INIT;
    char got[8];

    (void)state;
    far_say(g, 0, (struct tcp_head){.kind = TCP_ABORT, .bytes = sizeof words - 1, .arg = 1}, words);
    shutdown(g->far[0], SHUT_RDWR);
    assert_int_equal(expect_eight(g, got, &e), -1);
    assert_int_equal(e.kind, ERR_PEER_LOST);
    assert_int_equal(e.code, 1);
    assert_string_equal(e.msg, words);
    rig_destroy(g);
}

/* The same where this side only sends, and the other has closed already. */
static void test_takes_last_words_when_sending(void **state)
{
    static const char words[] = "rank 0 on far gave up with status 1";
    struct rig *g = rig_create(1, 2, PATIENT_MS);
    struct tcp_call c = {.kind = TCP_BROADCAST};
    const uint32_t number = tcp_star_begin(&g->star);
    struct err e = ERR_INIT;

    (void)state;
    far_say(g, 0, (struct tcp_head){.kind = TCP_ABORT, .bytes = sizeof words - 1, .arg = 1}, words);
    shutdown(g->far[0], SHUT_RDWR);
    tcp_link_send(g->star.links, c.kind, number, "x", 1);
    tcp_link_ready(g->star.links, 1);
    assert_int_equal(tcp_star_exchange(&g->star, &c, &e), -1);
    assert_int_equal(e.code, 1);
    assert_string_equal(e.msg, words);
    rig_destroy(g);
}

/* The other end of link 0: begins to read when it has a part of a frame, and wants the rest, then words. */
static void read_half_then_words(int fd)
{
    char *frame = malloc(TCP_CHUNK_BYTES), words[TCP_WHY_BYTES] = "";
    struct tcp_head head;
    int n = 0;

    while (n <= (int)sizeof head)
        if (ioctl(fd, FIONREAD, &n) < 0)
            _exit(1);
    if (recv(fd, &head, sizeof head, MSG_WAITALL) != sizeof head || head.kind != TCP_BROADCAST ||
        recv(fd, frame, head.bytes, MSG_WAITALL) != TCP_CHUNK_BYTES)
        _exit(2);
    if (recv(fd, &head, sizeof head, MSG_WAITALL) != sizeof head || head.kind != TCP_ABORT ||
        recv(fd, words, head.bytes, MSG_WAITALL) != (ssize_t)head.bytes)
        _exit(3);
    _exit(strcmp(words, "broadcast: rank 2 on far is gone: its connection ended") == 0 ? 0 : 4);
}

/* Rank 2 is gone while half a frame is out to rank 1: the words that say so come behind the other half. */
static void test_last_words_come_between_frames(void **state)
{
    struct rig *g = rig_create(0, 3, PATIENT_MS);
    struct tcp_call c = {.kind = TCP_BROADCAST, .arrived = tcp_star_release};
    const uint32_t number = tcp_star_begin(&g->star);
    char *bytes = calloc(4, TCP_CHUNK_BYTES);
    struct err e = ERR_INIT;
    const int small = 1;
    int status;
    pid_t pid;

    (void)state;
    /* Less than a frame is on its way at any time. */
    assert_int_equal(setsockopt(g->star.links[0].fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    shutdown(g->far[1], SHUT_RDWR);
    pid = fork();
    if (pid == 0)
        read_half_then_words(g->far[0]);
    for (int i = 0; i < 2; i++)
        tcp_link_send(&g->star.links[i], c.kind, number, bytes, 4 * (size_t)TCP_CHUNK_BYTES);
    assert_int_equal(tcp_star_exchange(&g->star, &c, &e), -1);
    assert_string_equal(e.msg, "broadcast: rank 2 on far is gone: its connection ended");
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    free(bytes);
    rig_destroy(g);
}

static void refuse(struct tcp_head head, const char *text)
{
    struct rig *g = rig_create(1, 2, PATIENT_MS);
    struct err e = ERR_INIT;
    char got[8];

    assert_int_equal(send(g->far[0], &head, sizeof head, MSG_NOSIGNAL), sizeof head);
    assert_int_equal(expect_eight(g, got, &e), -1);
    if (!strstr(e.msg, text))
        fail_msg("'%s' does not say '%s'", e.msg, text);
    rig_destroy(g);
}

static void test_refuses_other_frames(void **state)
{
    struct tcp_head h;

    (void)state;
    h = eight;
    h.kind = TCP_BARRIER;
    refuse(h, "broadcast: the ranks do not make the same calls: rank 0 on far sends barrier of 8 bytes as "
              "its call 1 "
              "where broadcast of 8 bytes is expected as call 1");
    h = eight;
    h.call = 2;
    refuse(h, "as its call 2 where");
    h = eight;
    h.total = 9;
    refuse(h, "broadcast of 9 bytes");
    h = eight;
    h.bytes = 7; /* a frame of another size than it must have */
    refuse(h, "do not make the same calls");
    h.kind = 77;
    refuse(h, "sends nothing known");
    refuse((struct tcp_head){.kind = TCP_BYE},
           "broadcast: rank 0 on far is gone: it has ended the run in order");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_takes_what_it_expects),
        cmocka_unit_test(test_takes_it_in_pieces),
        cmocka_unit_test(test_names_whom_rank0_waits_for),
        cmocka_unit_test(test_rank0_says_for_whom_it_waits),
        cmocka_unit_test(test_takes_last_words),
        cmocka_unit_test(test_takes_last_words_when_sending),
        cmocka_unit_test(test_last_words_come_between_frames),
        cmocka_unit_test(test_refuses_other_frames),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
