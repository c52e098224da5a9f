/* test_tcp_meet - how ranks that share a directory find each other (rendezvous.h, tcp_meet.h): ranks that do
 * not come, what other meetings left behind, and connections of those who do not know the secret. */
#include "tests/mpi/fork_ranks.h"
#include "worker/comm/comm_tcp.h"
#include "worker/comm/tcp_door.h"
#include "worker/comm/tcp_meet.h"
#include "worker/comm/tcp_proof.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

enum { PATIENT_MS = 120000, SHORT_MS = 300, TRY_MS = 60000 };

static struct rendezvous meeting(const struct fork_rank *r, int timeout_ms)
{
    return (struct rendezvous){
        .dir = r->dir, .name = "test", .rank = r->rank, .size = r->size, .timeout_ms = timeout_ms};
}

/* The meeting, and a sum that proves it. */
static void join_and_sum(const struct fork_rank *r)
{
    const struct comm_tcp_config cfg = {.dir = r->dir,
                                        .name = "test",
                                        .rank = r->rank,
                                        .size = r->size,
                                        .meet_ms = PATIENT_MS,
                                        .timeout_ms = PATIENT_MS};
    struct err e = ERR_INIT;
    struct comm *c = comm_tcp_create(&cfg, &e);
    int32_t x = r->rank + 1;

    if (!c || comm_all_reduce(c, &x, 1, DTYPE_I32, &e) < 0)
        fail_msg("%s", e.msg);
    assert_int_equal(x, r->size * (r->size + 1) / 2);
    comm_destroy(c);
}

static char *path_in(const struct fork_rank *r, const char *name, char out[128])
{
    snprintf(out, 128, "%s/%s", r->dir, name);
    return out;
}

static void put_file(const char *path, const void *data, size_t n, int mode)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, n), (ssize_t)n);
    assert_int_equal(fchmod(fd, (mode_t)mode), 0);
    close(fd);
}

static void wait_for_file(const char *path)
{
    const struct timespec pause = {0, 1000000};

    while (access(path, F_OK) < 0)
        nanosleep(&pause, NULL);
}

/* ---- the rendezvous ---- */

static void test_share(void **state)
{
    const struct fork_rank *r = *state;
    struct rendezvous m = meeting(r, PATIENT_MS);
    struct err e = ERR_INIT;
    int word = r->rank == 0 ? 4711 : 0;
    char byte, path[128];
    struct stat st;

    if (rendezvous_share(&m, &word, sizeof word, &e) < 0)
        fail_msg("%s", e.msg);
    assert_int_equal(word, 4711);
    if (r->rank > 0) {
        rendezvous_clean(&m);
        assert_int_equal(write(r->told[1], "x", 1), 1);
        return;
    }
    for (int i = 1; i < r->size; i++) /* all have read it */
        assert_int_equal(read(r->told[0], &byte, 1), 1);
    assert_int_equal(stat(path_in(r, "test.blob", path), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    rendezvous_clean(&m);
}

/* The last rank does not come: rank 0 names it, and the others say for whom they wait. */
static void test_absent(void **state)
{
    const struct fork_rank *r = *state;
    struct rendezvous m = meeting(r, SHORT_MS);
    struct err e = ERR_INIT;
    char text[64];
    int word = 0;

    if (r->rank == r->size - 1)
        return;
    assert_int_equal(rendezvous_share(&m, &word, sizeof word, &e), -1);
    assert_int_equal(e.kind, ERR_PEER_LOST);
    snprintf(text, sizeof text, "%d (is the directory shared", r->size - 1);
    assert_non_null(strstr(e.msg, r->rank == 0 ? text : "waited 0 s for rank 0 to see all"));
    if (r->rank == 0)
        assert_non_null(strstr(e.msg, "ranks did not come within 0 s: "));
}

/* What others could have read, or written, is no secret: rank 1 alone, with files made by hand. */
static void test_not_private(void **state)
{
    const struct fork_rank *r = *state;
    struct rendezvous m = {.dir = r->dir, .name = "test", .rank = 1, .size = 2, .timeout_ms = PATIENT_MS};
    struct err e = ERR_INIT;
    char path[128];
    int word = 1;

    if (r->rank > 0)
        return;
    put_file(path_in(r, "test.blob", path), &word, sizeof word, 0640);
    assert_int_equal(rendezvous_share(&m, &word, sizeof word, &e), -1);
    assert_non_null(strstr(e.msg, "mode 640"));
    assert_int_equal(unlink(path), 0);
    if (getuid() == 0) {
        put_file(path, &word, sizeof word, 0600);
        assert_int_equal(chown(path, 12345, 12345), 0);
        assert_int_equal(rendezvous_share(&m, &word, sizeof word, &e), -1);
        assert_non_null(strstr(e.msg, "owner 12345"));
        assert_int_equal(unlink(path), 0);
    }
    put_file(path, &word, sizeof word, 0600);
    assert_int_equal(rendezvous_share(&m, &word, sizeof word, &e), 0);
    rendezvous_clean(&m);
    m.rank = 0;
    rendezvous_clean(&m);
}

/* An earlier meeting of this name was killed: its invitation leads nowhere, and a rank's file is there
 * already.
 */
static void test_stale(void **state)
{
    const struct fork_rank *r = *state;
    struct tcp_invitation old = {.ok = 1, .port = 1};
    char path[128];

    gethostname(old.host, sizeof old.host - 1);
    if (r->rank == 0) {
        put_file(path_in(r, "test.blob", path), &old, sizeof old, 0600);
        if (r->size > 2)
            put_file(path_in(r, "test.2", path), "x", 1, 0600);
        wait_for_file(path_in(r, "test.1", path));
    } else {
        wait_for_file(path_in(r, "test.blob", path));
    }
    join_and_sum(r);
}

/* ---- who does not know the secret ---- */

static int connect_raw(const struct tcp_invitation *inv)
{
    const struct sockaddr_in at = {.sin_family = AF_INET,
                                   .sin_port = htons(inv->port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(connect(fd, (const struct sockaddr *)&at, sizeof at), 0);
    return fd;
}

/* Rank 0 closes the connection, after no more than its challenge. */
static void assert_hung_up(int fd)
{
    char got[256];
    size_t n_got = 0;
    ssize_t n;

    while ((n = recv(fd, got, sizeof got, 0)) > 0)
        n_got += (size_t)n;
    assert_true(n_got <= sizeof(struct tcp_challenge));
    close(fd);
}

static void refuse_knock(const struct tcp_invitation *inv, int rank)
{
    struct err e = ERR_INIT;

    assert_int_equal(tcp_meet_knock(inv, -1, rank, TRY_MS, &e), -1);
    if (!strstr(e.msg, "it hung up") && !strstr(e.msg, "reset"))
        fail_msg("%s", e.msg);
}

/* The proof that was right on one connection is sent on another. */
static void refuse_replay(const struct tcp_invitation *inv)
{
    struct tcp_challenge c;
    struct tcp_answer a;
    int first = connect_raw(inv), second;

    memset(&a, 0, sizeof a);
    memcpy(a.magic, TCP_MAGIC, sizeof a.magic);
    a.rank = 1;
    assert_int_equal(recv(first, &c, sizeof c, MSG_WAITALL), sizeof c);
    tcp_prove(inv->secret, TCP_ROLE_OTHER, &c, &a, a.proof);
    second = connect_raw(inv);
    assert_int_equal(send(second, &a, sizeof a, MSG_NOSIGNAL), sizeof a);
    assert_hung_up(second);
    close(first);
}

/* A try of rank 1 that rank 0 has welcomed, and that is given up: rank 0 must not count on it. */
static void give_up_welcomed(const struct tcp_invitation *inv)
{
    struct tcp_challenge c;
    struct tcp_welcome w;
    struct tcp_answer a;
    uint8_t proof[SIPHASH_BYTES];
    const int fd = connect_raw(inv);

    memset(&a, 0, sizeof a);
    memcpy(a.magic, TCP_MAGIC, sizeof a.magic);
    a.rank = 1;
    assert_int_equal(recv(fd, &c, sizeof c, MSG_WAITALL), sizeof c);
    tcp_prove(inv->secret, TCP_ROLE_OTHER, &c, &a, a.proof);
    assert_int_equal(send(fd, &a, sizeof a, MSG_NOSIGNAL), sizeof a);
    assert_int_equal(recv(fd, &w, sizeof w, MSG_WAITALL), sizeof w);
    tcp_prove(inv->secret, TCP_ROLE_ROOT, &c, &a, proof);
    assert_true(tcp_same_proof(proof, w.proof));
    assert_false(tcp_same_proof(a.proof, w.proof));
    close(fd);
}

/* Rank 1 is an intruder before it comes as itself. */
static void test_intruder(void **state)
{
    static const char junk[512] = "GET / HTTP/1.1\r\nHost: rank0\r\n\r\n";
    const struct fork_rank *r = *state;
    struct rendezvous m = meeting(r, PATIENT_MS);
    struct tcp_invitation inv, wrong;
    struct err e = ERR_INIT;
    int fd, silent;

    if (r->rank != 1) {
        join_and_sum(r);
        return;
    }
    if (rendezvous_share(&m, &inv, sizeof inv, &e) < 0)
        fail_msg("%s", e.msg);
    assert_int_equal(inv.ok, 1);
    silent = connect_raw(&inv);
    fd = connect_raw(&inv);
    assert_int_equal(send(fd, junk, sizeof junk, MSG_NOSIGNAL), sizeof junk);
    assert_hung_up(fd);
    for (int bit = 0; bit < 8 * SIPHASH_KEY_BYTES; bit += 37) {
        wrong = inv;
        wrong.secret[bit / 8] ^= (uint8_t)(1 << bit % 8);
        refuse_knock(&wrong, 1);
    }
    refuse_knock(&inv, 0);
    refuse_knock(&inv, -1);
    refuse_knock(&inv, r->size);
    refuse_replay(&inv);
    give_up_welcomed(&inv);
    join_and_sum(r);
    close(silent);
}

/* Who listens where rank 0 was expected: says `first`, reads an answer, says `then`. */
static pid_t impostor(int *door, uint16_t *port, const void *first, size_t n_first)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof at;
    pid_t pid;

    *door = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(*door, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(*door, 1), 0);
    assert_int_equal(getsockname(*door, (struct sockaddr *)&at, &n), 0);
    *port = ntohs(at.sin_port);
    pid = fork();
    if (pid == 0) {
        struct tcp_answer a;
        struct tcp_welcome w = {{0}};
        const int fd = accept(*door, NULL, NULL);
        const bool ok = send(fd, first, n_first, 0) == (ssize_t)n_first &&
                        recv(fd, &a, sizeof a, MSG_WAITALL) == sizeof a &&
                        send(fd, &w, sizeof w, MSG_NOSIGNAL) == sizeof w;
        _exit(ok ? 0 : 1);
    }
    return pid;
}

static void test_impostor(void **state)
{
    const struct fork_rank *r = *state;
    struct tcp_invitation inv = {.ok = 1};
    struct tcp_challenge c = {.magic = TCP_MAGIC};
    struct err e = ERR_INIT;
    int door, status;
    pid_t pid;

    if (r->rank > 0)
        return;
    pid = impostor(&door, &inv.port, &c, sizeof c);
    assert_int_equal(tcp_meet_knock(&inv, -1, 1, TRY_MS, &e), -1);
    assert_non_null(strstr(e.msg, "127.0.0.1 port "));
    assert_non_null(strstr(e.msg, "it does not know this job's secret"));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    close(door);
    memcpy(c.magic, "SSH-2.0-", sizeof c.magic);
    pid = impostor(&door, &inv.port, &c, sizeof c);
    assert_int_equal(tcp_meet_knock(&inv, -1, 1, TRY_MS, &e), -1);
    assert_non_null(strstr(e.msg, "another program answers there"));
    assert_int_equal(waitpid(pid, &status, 0), pid); /* it got no answer */
    assert_int_not_equal(status, 0);
    close(door);
    assert_int_equal(tcp_meet_knock(&inv, -1, 1, TRY_MS, &e), -1);
    assert_non_null(strstr(e.msg, "Connection refused"));
}

/* ---- rank 0's door ---- */

static void test_door(void **state)
{
    const struct rlimit few = {200, 200};
    const struct fork_rank *r = *state;
    struct tcp_link links[3];
    struct tcp_invitation inv;
    struct err e = ERR_INIT;
    int door;

    if (r->rank > 0)
        return;
    door = tcp_door_open(&inv, 4, &e);
    assert_true(door >= 0);
    assert_true(inv.ok && inv.port > 0 && inv.host[0] && inv.n_addresses <= TCP_MAX_ADDRESSES);
    for (int i = 0; i < inv.n_addresses; i++)
        assert_true(inv.addresses[i].is_v6 || inv.addresses[i].bytes[0] != 127);
    assert_int_equal(tcp_door_admit(door, &inv, 4, SHORT_MS, links, &e), -1);
    assert_int_equal(e.kind, ERR_PEER_LOST);
    assert_non_null(strstr(e.msg, "3 of 4 ranks were started and did not connect to rank 0 on "));
    assert_non_null(strstr(e.msg, "within 0 s: 1, 2, 3 (do the hosts"));
    close(door);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    assert_int_equal(tcp_door_open(&inv, 1000, &e), -1);
    assert_non_null(strstr(e.msg, "1000 ranks need 1064 open files on rank 0, and its limit is 200"));
    assert_int_equal(inv.ok, 0);
    assert_non_null(strstr(inv.why, "1000 ranks need 1064 open files"));
}

/* A rank that connects and is told `words`, all of them; another status where it was not let in. */
static int hear_words(const struct tcp_invitation *inv, const char *words)
{
    struct err e = ERR_INIT;
    struct tcp_head head;
    char text[TCP_WHY_BYTES] = "";
    const int fd = tcp_meet_knock(inv, -1, 1, TRY_MS, &e);

    if (fd < 0 || fcntl(fd, F_SETFL, 0) < 0 || recv(fd, &head, sizeof head, MSG_WAITALL) != sizeof head)
        return 2;
    if (head.kind != TCP_ABORT || recv(fd, text, head.bytes, MSG_WAITALL) != (ssize_t)head.bytes)
        return 3;
    return strstr(text, words) ? 0 : 4;
}

/* Rank 2 is started and never connects: rank 0 names it, and rank 1, which did, hears it. Rank 1 is given
 * more time until it has been quick enough. */
static void test_never_connects(void **state)
{
    static const char words[] = "1 of 3 ranks were started and did not connect to rank 0 on ";
    const struct fork_rank *r = *state;
    bool alone = false;

    for (int ms = 100; r->rank == 0 && !alone; ms *= 2) {
        struct tcp_link links[2];
        struct tcp_invitation inv;
        struct err e = ERR_INIT;
        const int door = tcp_door_open(&inv, 3, &e);
        int status;
        pid_t pid;

        assert_true(door >= 0);
        pid = fork();
        if (pid == 0) {
            close(door);
            _exit(hear_words(&inv, words));
        }
        assert_int_equal(tcp_door_admit(door, &inv, 3, ms, links, &e), -1);
        close(door);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        alone = strstr(e.msg, words) != NULL;
        assert_true(!alone || (strstr(e.msg, " s: 2 (do the hosts") && status == 0));
    }
}

/* Rank 0 cannot listen: the others learn why and do not wait. */
static void test_no_door(void **state)
{
    const struct rlimit none = {8, 8};
    const struct fork_rank *r = *state;
    struct rendezvous m = meeting(r, PATIENT_MS);
    struct tcp_invitation inv;
    struct tcp_link link;
    struct err e = ERR_INIT;
    char byte;

    if (r->rank > 0) {
        assert_int_equal(tcp_meet(&m, &link, &e), -1);
        assert_int_equal(e.kind, ERR_PEER_LOST);
        assert_non_null(strstr(e.msg, "cannot listen for the other ranks: "));
        assert_non_null(strstr(e.msg, "open files on rank 0, and its limit is 8"));
        assert_int_equal(write(r->told[1], "x", 1), 1);
        return;
    }
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    assert_int_equal(tcp_door_open(&inv, r->size, &e), -1);
    assert_non_null(strstr(e.msg, "its limit is 8"));
    assert_int_equal(inv.ok, 0);
    assert_int_equal(rendezvous_share(&m, &inv, sizeof inv, &e), 0);
    for (int i = 1; i < r->size; i++)
        assert_int_equal(read(r->told[0], &byte, 1), 1);
    rendezvous_clean(&m);
}

static const struct fork_scenario scenarios[] = {
    {"share", test_share, 1, FORK_NOBODY},
    {"absent", test_absent, 2, FORK_NOBODY},
    {"not private", test_not_private, 1, FORK_NOBODY},
    {"stale", test_stale, 2, FORK_NOBODY},
    {"intruder", test_intruder, 2, FORK_NOBODY},
    {"impostor", test_impostor, 1, FORK_NOBODY},
    {"door", test_door, 1, FORK_NOBODY},
    {"never connects", test_never_connects, 1, FORK_NOBODY},
    {"no door", test_no_door, 2, FORK_NOBODY},
};

FORK_TEST_MAIN(scenarios)
