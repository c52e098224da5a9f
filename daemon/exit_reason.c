/* exit_reason - see exit_reason.h. */
#include "daemon/exit_reason.h"

#include <stdio.h>
#include <string.h>

enum { WORKER_OK = 0, WORKER_FAILED = 1, WORKER_USAGE = 2, WORKER_PEER_LOST = 4, WORKER_STOPPED = 130 };
enum { MAX_WHY = 400, MAX_LINE = 300 };

bool exit_parse_signal(const char *log, char *out, size_t size)
{
    static const char mark[] = "noticed that process rank ";

    for (const char *p = log; (p = strstr(p, mark)); p++) {
        char node[256], name[64] = "";
        int rank, signal;
        long pid;
        if (sscanf(p + strlen(mark), "%d with PID %ld on node %255s exited on signal %d (%63[^)])", &rank,
                   &pid, node, &signal, name) < 4)
            continue;
        snprintf(out, size, "rank %d on %s was killed by signal %d%s%s%s", rank, node, signal,
                 *name ? " (" : "", name, *name ? ")" : "");
        return true;
    }
    return false;
}

/* Is `name` there as a word of its own? */
static bool names(const char *log, const char *name)
{
    static const char more[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    size_t n = strlen(name);

    for (const char *p = log; (p = strstr(p, name)); p++)
        if ((p == log || !strchr(more, p[-1])) && (!p[n] || !strchr(more, p[n])))
            return true;
    return false;
}

const char *exit_find_lost_node(const char *log, const struct place *place, const char *host)
{
    static const char *const marks[] = {"ORTE was unable to reliably start one or more daemons",
                                        "ORTE has lost communication with a remote daemon",
                                        "ORTE does not know how to route a message",
                                        "An ORTE daemon has unexpectedly failed after launch"};

    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        if (!strstr(log, marks[i]))
            continue;
        for (int64_t k = 0; k < place->n; k++)
            if (strcmp(place->v[k].node, host) != 0 && names(log, place->v[k].node))
                return place->v[k].node;
    }
    return NULL;
}

static bool is_dashes(const char *line, size_t len)
{
    return len >= 20 && strspn(line, "-") >= len;
}

static void copy_line(char *out, size_t size, const char *line, size_t len)
{
    while (len && (*line == ' ' || *line == '\t')) {
        line++;
        len--;
    }
    while (len && (line[len - 1] == ' ' || line[len - 1] == '\r' || line[len - 1] == '\t'))
        len--;
    if (len)
        snprintf(out, size, "%.*s", (int)(len < MAX_LINE ? len : MAX_LINE), line);
}

void exit_last_line(const char *log, char *out, size_t size)
{
    char boxed[MAX_LINE + 1] = "";
    bool in_box = false;

    out[0] = 0;
    for (const char *line = log; *line;) {
        size_t len = strcspn(line, "\n");
        if (is_dashes(line, len))
            in_box = !in_box;
        else if (!in_box)
            copy_line(out, size, line, len);
        else if (!boxed[0])
            copy_line(boxed, sizeof boxed, line, len);
        line += len + (line[len] == '\n');
    }
    if (!out[0])
        snprintf(out, size, "%s", boxed);
}

/* Where the launcher could start nothing, its box says why; its lines are joined into one sentence. */
static bool parse_launch_failure(const char *log, char *out, size_t size)
{
    static const char *const marks[] = {"mpirun was unable to", "There are not enough slots available"};

    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        const char *p = strstr(log, marks[i]);
        if (!p)
            continue;
        size_t n = 0;
        for (; *p && !is_dashes(p, strcspn(p, "\n")) && n + 2 < size;
             p += strcspn(p, "\n"), p += *p == '\n') {
            size_t len = strcspn(p, "\n");
            if (!len)
                continue;
            if (n)
                out[n++] = ' ';
            len = len < size - n - 1 ? len : size - n - 1;
            memcpy(out + n, p, len);
            n += len;
        }
        out[n] = 0;
        return true;
    }
    return false;
}

static void final(struct exit_verdict *v, enum job_event_type type, const char *why)
{
    v->type = type;
    snprintf(v->reason, sizeof v->reason, "%s", why);
}

/* Another attempt while there are any left. Attempts are counted from 1: max_restarts + 1 in all, those that
 * yielded not counted. */
static void retry(const struct exit_facts *f, const char *why, struct exit_verdict *v)
{
    long long attempts = f->job->max_restarts + 1, next = f->job->n_restarts + 2;

    if (next > attempts) {
        v->type = JOB_EV_FAILED;
        snprintf(v->reason, sizeof v->reason, "%s; no restart is left after attempt %lld of %lld", why,
                 next - 1, attempts);
        return;
    }
    v->type = JOB_EV_RESTARTING;
    if (f->checkpoint_step >= 0)
        snprintf(v->reason, sizeof v->reason, "%s; restarting from step %lld, attempt %lld of %lld", why,
                 (long long)f->checkpoint_step, next, attempts);
    else
        snprintf(v->reason, sizeof v->reason, "%s; restarting from the beginning, attempt %lld of %lld", why,
                 next, attempts);
}

static bool is(const char *status, const char *want)
{
    return status && strcmp(status, want) == 0;
}

static bool non_empty(const char *s)
{
    return s && *s;
}

static const char *stated_reason(const struct exit_facts *f)
{
    if (is(f->done_status, "failed") && non_empty(f->done_reason))
        return f->done_reason;
    if (is(f->result_status, "failed") && non_empty(f->result_reason))
        return f->result_reason;
    return NULL;
}

static void decide_cancelled(const struct exit_facts *f, struct exit_verdict *v)
{
    const char *user = f->job->cancel_user;

    v->type = JOB_EV_CANCELLED;
    int n = snprintf(v->reason, sizeof v->reason, "cancelled by %s", *user ? user : "request");
    if (f->step >= 0)
        snprintf(v->reason + n, sizeof v->reason - (size_t)n, " at step %lld", (long long)f->step);
}

/* Asked to give its slots back, it has, however it came to that. */
static void decide_yielded(const struct exit_facts *f, struct exit_verdict *v)
{
    bool pause = f->job->yield_to == JOB_YIELD_PAUSE;
    int n = snprintf(v->reason, sizeof v->reason, "%s", pause ? "paused" : "has given its ranks back");

    v->type = pause ? JOB_EV_PAUSED : JOB_EV_YIELDED;
    if (f->checkpoint_step >= 0)
        snprintf(v->reason + n, sizeof v->reason - (size_t)n, "; it goes on from step %lld",
                 (long long)f->checkpoint_step);
    else
        snprintf(v->reason + n, sizeof v->reason - (size_t)n, "; it begins anew");
}

/* Nobody has said why: the launcher's exit and what it printed. */
static void decide_by_exit(const struct exit_facts *f, struct exit_verdict *v)
{
    char why[MAX_WHY], line[MAX_LINE + 1];

    exit_last_line(f->launcher_log, line, sizeof line);
    if (f->hung) {
        retry(f, "mpirun had no rank any more and did not end", v);
    } else if (!f->status_known && f->result_peer_lost && non_empty(f->result_reason)) {
        snprintf(why, sizeof why, "a rank was lost: %s", f->result_reason);
        retry(f, why, v);
    } else if (!f->status_known) {
        retry(f, "the job ended while the coordinator was away", v);
    } else if (f->signal) {
        snprintf(why, sizeof why, "mpirun was killed by signal %d (%s)", f->signal, strsignal(f->signal));
        retry(f, why, v);
    } else if (f->status == WORKER_OK) {
        final(v, JOB_EV_SUCCEEDED, "all ranks ended with status 0");
    } else if (f->status == WORKER_PEER_LOST) {
        snprintf(why, sizeof why, "a rank was lost%s%s", *line ? ": " : "", line);
        retry(f, why, v);
    } else if (f->status == WORKER_STOPPED) {
        retry(f, "the ranks were stopped from outside", v);
    } else if (f->status > 128 && f->status < 128 + 65) {
        snprintf(why, sizeof why, "a rank was killed by signal %d (%s)", f->status - 128,
                 strsignal(f->status - 128));
        retry(f, why, v);
    } else if (f->status == WORKER_FAILED || f->status == WORKER_USAGE) {
        snprintf(why, sizeof why, "%s", *line ? line : "the worker failed and said nothing about why");
        final(v, JOB_EV_FAILED, why);
    } else {
        snprintf(why, sizeof why, "mpirun ended with status %d%s%s", f->status, *line ? ": " : "", line);
        final(v, JOB_EV_FAILED, why);
    }
}

void exit_decide(const struct exit_facts *f, struct exit_verdict *out)
{
    char why[MAX_WHY];
    bool peer_lost = f->status_known ? f->status == WORKER_PEER_LOST : f->result_peer_lost;

    if (is(f->done_status, "succeeded") || is(f->result_status, "succeeded"))
        final(out, JOB_EV_SUCCEEDED,
              f->job->cancelling ? "finished before the cancellation took effect" : "finished");
    else if (f->job->cancelling)
        decide_cancelled(f, out);
    else if (f->stopped_for)
        final(out, JOB_EV_FAILED, f->stopped_for);
    else if (f->job->state == JOB_PREEMPTING && (!stated_reason(f) || peer_lost || f->lost_for))
        decide_yielded(f, out);
    else if (f->lost_for)
        retry(f, f->lost_for, out);
    else if (f->lost_node) {
        snprintf(why, sizeof why, "node %s could not be reached", f->lost_node);
        retry(f, why, out);
    } else if (exit_parse_signal(f->launcher_log, why, sizeof why))
        retry(f, why, out);
    else if (is(f->done_status, "stopped") || (!f->status_known && is(f->result_status, "stopped")))
        retry(f, "the ranks were stopped from outside", out);
    else if (stated_reason(f) && !peer_lost)
        final(out, JOB_EV_FAILED, stated_reason(f));
    else if (f->status_known && f->status && parse_launch_failure(f->launcher_log, why, sizeof why))
        final(out, JOB_EV_FAILED, why);
    else
        decide_by_exit(f, out);
}
