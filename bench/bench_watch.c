/* bench_watch - how late progress reaches many watchers. Speaks as rank 0 of a running job and as its
 * watchers, so that sender and receivers have one clock. bench/rpc drives it.
 *
 *   bench_watch ADDRESS JOB ATTEMPT TOKEN WATCHERS REPORTS REPORTS_PER_S
 *
 * `step` of a report is its number, by which a watcher's line finds the moment when it was sent. A delivery
 * is timed when recv() has returned it; the receivers share one core, so the last of them waits for this
 * program, too. Prints one JSON object: times of all deliveries, and of each report until its last watcher
 * had it.
 */
#include "bench/load_util.h"
#include "common/buf.h"
#include "common/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_LINE = 1 << 20, READ_BYTES = 65536, MAX_EVENTS = 512, DRAIN_S = 10 };

struct watcher {
    int fd;
    struct buf in;
    int64_t next; /* the report that must come */
};

struct fan {
    int64_t n_watchers, n_reports, n_delivered, n_missed;
    int64_t *sent_ns, *last_ns; /* of each report */
    struct sample times;
};

static int open_conn(const char *address)
{
    int fd = load_connect(address);

    if (fd < 0)
        load_die("%s: %s", address, strerror(errno));
    return fd;
}

static void send_all(int fd, const char *text)
{
    size_t len = strlen(text);

    for (size_t at = 0; at < len;) {
        ssize_t n = send(fd, text + at, len - at, MSG_NOSIGNAL);
        if (n < 0)
            load_die("sending: %s", strerror(errno));
        at += (size_t)n;
    }
}

/* One line, which must hold `what`. */
static void expect(int fd, const char *what)
{
    char text[4096];
    size_t n = 0;

    while (n < sizeof text - 1 && (n == 0 || text[n - 1] != '\n')) {
        if (recv(fd, text + n, 1, 0) <= 0)
            load_die("the daemon hung up");
        n++;
    }
    text[n] = 0;
    if (!strstr(text, what))
        load_die("unexpected answer: %s", text);
}

static void take_line(struct fan *f, struct watcher *w, const char *line, int64_t now)
{
    const char *at = strstr(line, "\"type\":\"progress\"") ? strstr(line, "\"step\":") : NULL;

    if (!at)
        return;
    int64_t step = strtoll(at + 7, NULL, 10);
    if (step < 1 || step > f->n_reports)
        return;
    f->n_missed += step - w->next;
    w->next = step + 1;
    f->n_delivered++;
    f->last_ns[step] = now;
    sample_add(&f->times, now - f->sent_ns[step]);
}

static void receive(struct fan *f, struct watcher *w)
{
    char *room = buf_reserve(&w->in, READ_BYTES, NULL), *end;

    if (!room)
        load_die("a line is longer than %d bytes", MAX_LINE);
    ssize_t n = recv(w->fd, room, READ_BYTES, 0);
    if (n <= 0)
        load_die("a watcher was hung up on");
    int64_t now = clock_mono_ns();
    buf_commit(&w->in, (size_t)n);
    while ((end = memchr(w->in.data, '\n', w->in.len))) {
        *end = 0;
        take_line(f, w, w->in.data, now);
        buf_consume(&w->in, (size_t)(end + 1 - w->in.data));
    }
}

static struct watcher *watch_all(const struct fan *f, const char *address, const char *job, int ep)
{
    struct watcher *w = xcalloc((size_t)f->n_watchers, sizeof *w);
    char line[128];

    snprintf(line, sizeof line,
             "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"job.watch\",\"params\":{\"id\":%s}}\n", job);
    for (int64_t i = 0; i < f->n_watchers; i++) {
        struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &w[i]};
        buf_init(&w[i].in, MAX_LINE);
        w[i].next = 1;
        w[i].fd = open_conn(address);
        send_all(w[i].fd, line);
        expect(w[i].fd, "\"seq\":");
        epoll_ctl(ep, EPOLL_CTL_ADD, w[i].fd, &ev);
    }
    return w;
}

static int attach(char **arg)
{
    int fd = open_conn(arg[0]);
    char line[512];

    snprintf(
        line, sizeof line,
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"worker.attach\",\"params\":{\"job\":%s,\"attempt\":%s,"
        "\"token\":\"%s\",\"pid\":%d,\"host\":\"bench\",\"ranks\":1}}\n",
        arg[1], arg[2], arg[3], (int)getpid());
    send_all(fd, line);
    expect(fd, "\"accepted\":true");
    return fd;
}

static void report(struct fan *f, int fd, int64_t step)
{
    char line[512];

    snprintf(
        line, sizeof line,
        "{\"jsonrpc\":\"2.0\",\"method\":\"worker.progress\",\"params\":{\"phase\":\"train\",\"step\":%lld,"
        "\"n_steps\":%lld,\"epoch\":0,\"n_epochs\":1,\"loss\":0.5,\"images_per_s\":1000.5,\"eta_s\":10,"
        "\"checkpoint_step\":-1}}\n",
        (long long)step, (long long)f->n_reports);
    f->sent_ns[step] = clock_mono_ns();
    send_all(fd, line);
}

static void run(struct fan *f, int worker, int ep, double per_s)
{
    struct epoll_event events[MAX_EVENTS];
    int64_t every = (int64_t)(1e9 / per_s), next = clock_mono_ns() + every, step = 0, end = 0;

    while (f->n_delivered + f->n_missed < f->n_watchers * f->n_reports) {
        int64_t now = clock_mono_ns();
        if (step < f->n_reports && now >= next) {
            report(f, worker, ++step);
            next += every;
            end = now + (int64_t)DRAIN_S * 1000000000;
        }
        if (step == f->n_reports && now > end)
            return;
        int64_t wait_ms = step < f->n_reports ? (next - now) / 1000000 : 100;
        int n = epoll_wait(ep, events, MAX_EVENTS, wait_ms > 0 ? (int)wait_ms : 0);
        for (int i = 0; i < n; i++)
            receive(f, events[i].data.ptr);
    }
}

static void print(struct fan *f)
{
    struct sample last = {0};

    for (int64_t i = 1; i <= f->n_reports; i++)
        if (f->last_ns[i])
            sample_add(&last, f->last_ns[i] - f->sent_ns[i]);
    printf("{\"watchers\":%lld,\"reports\":%lld,\"deliveries\":%lld,\"missing\":%lld,\"p50_ms\":%.3f,\"p99_"
           "ms\":%.3f,"
           "\"max_ms\":%.3f,\"last_p50_ms\":%.3f,\"last_p99_ms\":%.3f}\n",
           (long long)f->n_watchers, (long long)f->n_reports, (long long)f->n_delivered,
           (long long)(f->n_watchers * f->n_reports - f->n_delivered), sample_at(&f->times, 0.5),
           sample_at(&f->times, 0.99), sample_at(&f->times, 1), sample_at(&last, 0.5),
           sample_at(&last, 0.99));
    sample_free(&last);
}

int main(int argc, char **argv)
{
    struct rlimit files;

    if (argc != 8) {
        fprintf(stderr, "usage: %s ADDRESS JOB ATTEMPT TOKEN WATCHERS REPORTS REPORTS_PER_S\n", argv[0]);
        return 2;
    }
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    struct fan f = {.n_watchers = atoll(argv[5]), .n_reports = atoll(argv[6])};
    int ep = epoll_create1(EPOLL_CLOEXEC), worker = attach(argv + 1);
    f.sent_ns = xcalloc((size_t)f.n_reports + 1, sizeof *f.sent_ns);
    f.last_ns = xcalloc((size_t)f.n_reports + 1, sizeof *f.last_ns);
    struct watcher *w = watch_all(&f, argv[1], argv[2], ep);
    run(&f, worker, ep, atof(argv[7]));
    print(&f);
    for (int64_t i = 0; i < f.n_watchers; i++) {
        close(w[i].fd);
        buf_free(&w[i].in);
    }
    free(w);
    free(f.sent_ns);
    free(f.last_ns);
    sample_free(&f.times);
    return 0;
}
