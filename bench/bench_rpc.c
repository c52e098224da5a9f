/* bench_rpc - a closed loop of requests over many connections, each with DEPTH requests under way (1); and
 * the time from exec to the first answer. bench/rpc drives it.
 *
 *   bench_rpc loop ADDRESS rpc|redis CLIENTS[xDEPTH] SECONDS COUNT MAX REQUEST_FILE
 *   bench_rpc ready ADDRESS rpc|redis REQUEST_FILE PROGRAM [ARGUMENT]...
 *
 * loop ends after SECONDS or COUNT answers, whatever is first (0: no such bound). REQUEST_FILE holds the
 * bytes of one request; ten '@' in it become a number from 1 to MAX, drawn anew for each request, or counted
 * up from 1 when MAX is 0; it is padded with blanks, so that all requests have one length. Both protocols go
 * through the same loop, so that what is compared is the servers. Prints one JSON object; an answer that is
 * an error counts as one and is no answer.
 */
#include "bench/load_util.h"
#include "common/buf.h"
#include "common/clock.h"
#include "common/fsutil.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MARK_LEN = 10, MAX_ANSWER = 8 << 20, READ_BYTES = 65536, MAX_EVENTS = 256, READY_LIMIT_S = 120 };

struct client {
    int fd;
    struct buf in;
    size_t scanned;   /* bytes of `in` that hold no newline */
    int64_t *sent_ns; /* a ring of l->depth moments: answers to requests of one kind come in order */
    int64_t n_sent, n_taken;
};

struct load {
    const char *address;
    bool redis;
    char *request;
    size_t len;
    char *mark;       /* the ten '@' in request, or NULL */
    int64_t max, seq; /* numbers: drawn up to max, or counted */
    int64_t depth;    /* requests under way on a connection */
    uint64_t random;
    int64_t n_done, n_asked, n_errors, bytes, limit;
    struct sample times;
    char first_error[200];
};

/* xorshift64*: the same requests in every run. */
static int64_t draw(struct load *l)
{
    l->random ^= l->random >> 12;
    l->random ^= l->random << 25;
    l->random ^= l->random >> 27;
    return (int64_t)((l->random * 2685821657736338717u >> 33) % (uint64_t)l->max) + 1;
}

static void ask(struct load *l, struct client *c)
{
    char digits[24];

    if (l->limit && l->n_asked == l->limit)
        return;
    l->n_asked++;
    if (l->mark) {
        snprintf(digits, sizeof digits, "%10lld", (long long)(l->max ? draw(l) : ++l->seq));
        memcpy(l->mark, digits, MARK_LEN);
    }
    c->sent_ns[c->n_sent++ % l->depth] = clock_mono_ns();
    for (size_t at = 0; at < l->len;) {
        ssize_t n = send(c->fd, l->request + at, l->len - at, MSG_NOSIGNAL);
        if (n < 0)
            load_die("%s: sending: %s", l->address, strerror(errno));
        at += (size_t)n;
    }
}

/* Length of the whole answer at the front of `in`, 0 while it is not all there. */
static size_t whole(const struct load *l, struct client *c)
{
    char *end = c->scanned < c->in.len ? memchr(c->in.data + c->scanned, '\n', c->in.len - c->scanned) : NULL;

    if (!end) {
        c->scanned = c->in.len;
        return 0;
    }
    size_t line = (size_t)(end + 1 - c->in.data);
    if (!l->redis || c->in.data[0] != '$')
        return line;
    long n = strtol(c->in.data + 1, NULL, 10);
    size_t need = n < 0 ? line : line + (size_t)n + 2;
    return c->in.len >= need ? need : 0;
}

static bool is_error(const struct load *l, const char *answer, size_t len)
{
    if (l->redis)
        return answer[0] == '-' || (answer[0] == '$' && answer[1] == '-');
    return memmem(answer, len, "\"error\":{", 9) && !memmem(answer, len < 40 ? len : 40, "\"result\":", 9);
}

static bool take(struct load *l, struct client *c, int64_t now)
{
    size_t n = whole(l, c);

    if (!n)
        return false;
    int64_t sent_ns = c->sent_ns[c->n_taken++ % l->depth];
    if (is_error(l, c->in.data, n)) {
        if (!l->n_errors++)
            snprintf(l->first_error, sizeof l->first_error, "%.*s", (int)(n < 190 ? n : 190), c->in.data);
    } else {
        l->n_done++;
        sample_add(&l->times, now - sent_ns);
    }
    l->bytes += (int64_t)n;
    buf_consume(&c->in, n);
    c->scanned = 0;
    ask(l, c);
    return true;
}

static void receive(struct load *l, struct client *c)
{
    char *room = buf_reserve(&c->in, READ_BYTES, NULL);

    if (!room)
        load_die("%s: an answer is longer than %d bytes", l->address, MAX_ANSWER);
    ssize_t n = recv(c->fd, room, READ_BYTES, 0);
    if (n <= 0)
        load_die("%s: %s", l->address, n ? strerror(errno) : "the server hung up");
    int64_t now = clock_mono_ns();
    buf_commit(&c->in, (size_t)n);
    while (take(l, c, now))
        ;
}

static void read_request(struct load *l, const char *path)
{
    struct err e = ERR_INIT;

    if (fs_read_file(path, MAX_ANSWER, &l->request, &l->len, &e) < 0)
        load_die("%s", e.msg);
    l->mark = memmem(l->request, l->len, "@@@@@@@@@@", MARK_LEN);
}

static struct client *connect_all(const struct load *l, int n, int ep)
{
    struct client *clients = xcalloc((size_t)n, sizeof *clients);

    for (int i = 0; i < n; i++) {
        struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &clients[i]};
        buf_init(&clients[i].in, MAX_ANSWER);
        clients[i].sent_ns = xcalloc((size_t)l->depth, sizeof(int64_t));
        clients[i].fd = load_connect(l->address);
        if (clients[i].fd < 0)
            load_die("%s: connecting client %d: %s", l->address, i, strerror(errno));
        epoll_ctl(ep, EPOLL_CTL_ADD, clients[i].fd, &ev);
    }
    return clients;
}

static void print(struct load *l, double seconds)
{
    double p50 = sample_at(&l->times, 0.5), p99 = sample_at(&l->times, 0.99);

    printf(
        "{\"answers\":%lld,\"seconds\":%.6f,\"per_s\":%.1f,\"p50_ms\":%.4f,\"p99_ms\":%.4f,\"max_ms\":%.4f,"
        "\"bytes_per_answer\":%.1f,\"errors\":%lld}\n",
        (long long)l->n_done, seconds, (double)l->n_done / seconds, p50, p99, sample_at(&l->times, 1),
        l->n_done ? (double)l->bytes / (double)l->n_done : 0, (long long)l->n_errors);
    if (l->n_errors)
        fprintf(stderr, "bench_rpc: %lld errors; first: %s\n", (long long)l->n_errors, l->first_error);
}

static int loop(char **arg)
{
    struct load l = {.address = arg[0],
                     .redis = strcmp(arg[1], "redis") == 0,
                     .limit = atoll(arg[4]),
                     .max = atoll(arg[5]),
                     .depth = 1,
                     .random = 88172645463325252u};
    int n = atoi(arg[2]), ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[MAX_EVENTS];

    if (strchr(arg[2], 'x'))
        l.depth = atoll(strchr(arg[2], 'x') + 1);
    if (n < 1 || l.depth < 1)
        load_die("CLIENTS[xDEPTH]: '%s' found, whole numbers from 1 are accepted", arg[2]);
    read_request(&l, arg[6]);
    struct client *clients = connect_all(&l, n, ep);
    int64_t from = clock_mono_ns(), now = from;
    double limit_s = atof(arg[3]);
    for (int64_t i = 0; i < n * l.depth; i++)
        ask(&l, &clients[i % n]);
    while ((!limit_s || (double)(now - from) / 1e9 < limit_s) &&
           (!l.limit || l.n_done + l.n_errors < l.limit)) {
        int got = epoll_wait(ep, events, MAX_EVENTS, 1000);
        for (int i = 0; i < got; i++)
            receive(&l, events[i].data.ptr);
        now = clock_mono_ns();
    }
    print(&l, (double)(now - from) / 1e9);
    for (int i = 0; i < n; i++) {
        close(clients[i].fd);
        free(clients[i].sent_ns);
        buf_free(&clients[i].in);
    }
    free(clients);
    free(l.request);
    sample_free(&l.times);
    close(ep);
    return l.n_errors ? 1 : 0;
}

/* Connects as soon as somebody listens and waits for the answer to one request. */
static void first_answer(struct load *l)
{
    int64_t give_up = clock_mono_ns() + (int64_t)READY_LIMIT_S * 1000000000;
    int64_t sent_ns;
    struct client c = {.fd = -1, .sent_ns = &sent_ns};

    buf_init(&c.in, MAX_ANSWER);
    while ((c.fd = load_connect(l->address)) < 0) {
        if (clock_mono_ns() > give_up)
            load_die("%s: nobody listens after %d s", l->address, READY_LIMIT_S);
        usleep(100);
    }
    l->limit = 1;
    ask(l, &c);
    while (!l->n_done) {
        receive(l, &c);
        if (l->n_errors) /* redis says so while it loads */
            load_die("%s: %s", l->address, l->first_error);
    }
    close(c.fd);
    buf_free(&c.in);
}

static int ready(char **arg)
{
    struct load l = {
        .address = arg[0], .redis = strcmp(arg[1], "redis") == 0, .max = 1, .depth = 1, .random = 1};
    int status;

    read_request(&l, arg[2]);
    int64_t from = clock_mono_ns();
    pid_t pid = fork();
    if (pid < 0)
        load_die("fork: %s", strerror(errno));
    if (pid == 0) {
        execvp(arg[3], arg + 3);
        fprintf(stderr, "%s: %s\n", arg[3], strerror(errno));
        _exit(127);
    }
    first_answer(&l);
    printf("{\"ready_ms\":%.3f}\n", (double)(clock_mono_ns() - from) / 1e6);
    fflush(stdout);
    kill(pid, SIGTERM);
    waitpid(pid, &status, 0);
    free(l.request);
    sample_free(&l.times);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 9 && strcmp(argv[1], "loop") == 0)
        return loop(argv + 2);
    if (argc >= 6 && strcmp(argv[1], "ready") == 0)
        return ready(argv + 2);
    fprintf(stderr,
            "usage: %s loop ADDRESS rpc|redis CLIENTS[xDEPTH] SECONDS COUNT MAX REQUEST_FILE\n"
            "       %s ready ADDRESS rpc|redis REQUEST_FILE PROGRAM [ARGUMENT]...\n",
            argv[0], argv[0]);
    return 2;
}
