/* follow - see follow.h.
 *
 * The event stream is resumable: every durable event has a number, `since` is the last one that was seen.
 * When the connection breaks, a new one goes on from there, so nothing is lost or shown twice. Progress
 * events are not durable and carry the number of the durable event before them; they never move `since`
 * backwards.
 */
#include "cli/follow.h"
#include "cli/connect.h"
#include "cli/output.h"
#include "common/clock.h"
#include "common/json.h"

#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

enum { RETRY_MS = 200, CANCEL_MS = 3000 /* short: a second interrupt must be heard */ };

struct watch {
    const struct follow *cfg;
    struct follow_end *end;
    struct client *client; /* NULL while disconnected */
    int sig_fd;
    int n_signals;
    int64_t since;
    struct output_progress progress;
};

enum verdict { GO_ON, ENDED, LEAVE };

/* --- signals --- */

static void signal_set(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGHUP);
}

void follow_block_signals(void)
{
    sigset_t set;

    signal_set(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

int follow_signal_fd(struct err *e)
{
    sigset_t set;

    signal_set(&set);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? err_set_errno(e, "signalfd") : fd;
}

/* --- events --- */

static bool is_end(const char *state)
{
    static const char *const ends[] = {"succeeded", "failed", "cancelled"};

    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (strcmp(state, ends[i]) == 0)
            return true;
    return false;
}

int follow_exit_status(const struct follow_end *end)
{
    if (end->interrupted)
        return EXIT_INTERRUPTED;
    return strcmp(end->state, "succeeded") == 0 ? EXIT_DONE : EXIT_JOB_FAILED;
}

static const char *text_of(const cJSON *obj, const char *key)
{
    const cJSON *v = json_find(obj, key);

    return cJSON_IsString(v) ? v->valuestring : "";
}

static void print_transition(struct watch *w, const cJSON *ev)
{
    char when[16] = "", state[32], reason[512];
    const cJSON *time_ms = json_find(ev, "time");
    time_t t = cJSON_IsNumber(time_ms) ? (time_t)(time_ms->valuedouble / 1000) : time(NULL);
    struct tm tm;

    if (localtime_r(&t, &tm))
        strftime(when, sizeof when, "%H:%M:%S", &tm);
    output_text(state, sizeof state, *text_of(ev, "state") ? text_of(ev, "state") : text_of(ev, "type"));
    output_text(reason, sizeof reason, text_of(ev, "reason"));
    output_progress_clear(&w->progress);
    fprintf(stderr, "%s  %-10s %s\n", when, state, reason);
}

static enum verdict take_event(struct watch *w, const cJSON *ev)
{
    int64_t id = 0, seq = 0;
    struct progress p;

    if (!json_is_int(json_find(ev, "id"), &id) || id != w->cfg->id)
        return GO_ON;
    if (w->cfg->json && !w->cfg->quiet)
        output_json(ev);
    if (strcmp(text_of(ev, "type"), "progress") == 0) {
        const cJSON *report = json_find(ev, "progress");
        if (!w->cfg->json && progress_from_json(cJSON_IsObject(report) ? report : ev, &p, NULL) == 0)
            output_progress_show(&w->progress, &p);
        return GO_ON;
    }
    if (json_is_int(json_find(ev, "seq"), &seq) && seq > w->since)
        w->since = seq;
    if (!w->cfg->json)
        print_transition(w, ev);
    if (!is_end(text_of(ev, "state")))
        return GO_ON;
    snprintf(w->end->state, sizeof w->end->state, "%s", text_of(ev, "state"));
    output_text(w->end->reason, sizeof w->end->reason, text_of(ev, "reason"));
    return ENDED;
}

/* --- the loop --- */

static int subscribe(struct watch *w, struct err *e)
{
    cJSON *params = cJSON_CreateObject();

    w->client = connect_to(w->cfg->address, w->cfg->ca, e);
    if (!w->client) {
        cJSON_Delete(params);
        return -1;
    }
    cJSON_AddNumberToObject(params, "id", (double)w->cfg->id);
    cJSON_AddNumberToObject(params, "since", (double)w->since);
    cJSON *result = client_call(w->client, "job.watch", params, CLI_CALL_MS, NULL, e);
    cJSON_Delete(result);
    return result ? 0 : -1;
}

static void disconnect(struct watch *w)
{
    client_close(w->client);
    w->client = NULL;
}

static void ask_to_cancel(struct watch *w)
{
    struct err e = ERR_INIT;
    cJSON *params = cJSON_CreateObject();

    output_progress_clear(&w->progress);
    fprintf(stderr, "bfctl: cancelling job %lld; interrupt again to leave at once\n", (long long)w->cfg->id);
    cJSON_AddNumberToObject(params, "id", (double)w->cfg->id);
    cJSON *result = client_call(w->client, "job.cancel", params, CANCEL_MS, NULL, &e);
    if (!result)
        fprintf(stderr, "bfctl: %s\n", e.msg);
    cJSON_Delete(result);
}

static enum verdict take_signals(struct watch *w)
{
    struct signalfd_siginfo info;

    while (read(w->sig_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        w->end->interrupted = true;
        w->n_signals++;
        if (!w->cfg->cancel_first || w->n_signals > 1 || !w->client)
            return LEAVE;
        ask_to_cancel(w);
    }
    return GO_ON;
}

/* Handles what has arrived, then waits for more. -1: the connection is gone. */
static int wait_and_take(struct watch *w, enum verdict *verdict, struct err *e)
{
    struct pollfd fds[2] = {{.fd = client_fd(w->client), .events = POLLIN},
                            {.fd = w->sig_fd, .events = POLLIN}};
    cJSON *note;

    e->msg[0] = 0;
    while (*verdict == GO_ON && (note = client_next(w->client, 0, e))) {
        if (strcmp(text_of(note, "method"), "job.event") == 0)
            *verdict = take_event(w, json_find(note, "params"));
        cJSON_Delete(note);
        if (*verdict == GO_ON)
            *verdict = take_signals(w);
    }
    if (*verdict != GO_ON)
        return 0;
    if (e->msg[0])
        return -1;
    poll(fds, 2, -1);
    *verdict = take_signals(w);
    return 0;
}

/* Tries again until the coordinator is back, a signal comes or the patience is over. */
static int reconnect(struct watch *w, enum verdict *verdict, struct err *e)
{
    int64_t deadline = clock_mono_ns() + (int64_t)w->cfg->reconnect_ms * 1000000;
    struct pollfd fd = {.fd = w->sig_fd, .events = POLLIN};

    disconnect(w);
    output_progress_clear(&w->progress);
    if (clock_mono_ns() < deadline)
        fprintf(stderr, "bfctl: %s; trying again for %d s\n", e->msg, w->cfg->reconnect_ms / 1000);
    while (clock_mono_ns() < deadline) {
        poll(&fd, 1, RETRY_MS);
        *verdict = take_signals(w);
        if (*verdict != GO_ON || subscribe(w, e) == 0)
            return 0;
        disconnect(w);
        if (e->kind != ERR_UNREACHABLE)
            return -1;
    }
    return -1;
}

int follow_job(const struct follow *cfg, struct follow_end *end, struct err *e)
{
    struct watch w = {.cfg = cfg, .end = end, .since = cfg->since};
    enum verdict verdict = GO_ON;
    int rc;

    *end = (struct follow_end){0};
    output_progress_init(&w.progress, stderr);
    w.sig_fd = follow_signal_fd(e);
    if (w.sig_fd < 0)
        return -1;
    rc = subscribe(&w, e);
    while (rc == 0 && verdict == GO_ON) {
        rc = wait_and_take(&w, &verdict, e);
        if (rc < 0 && e->kind == ERR_UNREACHABLE)
            rc = reconnect(&w, &verdict, e);
    }
    output_progress_clear(&w.progress);
    disconnect(&w);
    close(w.sig_fd);
    return rc;
}
