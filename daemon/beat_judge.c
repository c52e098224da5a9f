/* beat_judge - see beat_judge.h. */
#include "daemon/beat_judge.h"
#include "common/err.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SILENT_MAX_MS = 3000, STALL_STEPS = 20, SLOW_STEPS = 20 };

static const double slow_ratio = 1.5, slow_least_ms = 1;

const char *beat_state_name(enum beat_state s)
{
    static const char *const names[] = {"ok", "slow", "silent", "stopped", "stalled", "absent", "left"};

    return names[s];
}

/* --- what is known --- */

static bool is_silent(const struct beat_row *r, const struct beat_limits *l)
{
    int64_t limit = l->lost_ms / 2 < SILENT_MAX_MS ? l->lost_ms / 2 : SILENT_MAX_MS;

    return r->age_ms >= limit;
}

static bool has_left(const struct beat_row *r)
{
    return r->known && strcmp(r->at.phase, PROGRESS_PHASE_END) == 0;
}

static bool beats(const struct beat_row *r, const struct beat_limits *l)
{
    return r->known && !has_left(r) && !is_silent(r, l);
}

static bool waits(const struct beat_row *r)
{
    return r->at.waits_in[0] != 0;
}

static void find_states(struct beat_row *rows, int64_t n, const struct beat_limits *l)
{
    for (int64_t i = 0; i < n; i++) {
        struct beat_row *r = &rows[i];
        r->ratio = NAN;
        r->over = false;
        r->state = !r->known                            ? BEAT_ABSENT
                   : has_left(r)                        ? BEAT_LEFT
                   : !is_silent(r, l)                   ? BEAT_OK
                   : r->process == BEAT_PROCESS_STOPPED ? BEAT_STOPPED
                                                        : BEAT_SILENT;
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* The lower median, so that of two ranks the faster one is the measure. v is sorted. NaN for n == 0. */
static double median(double *v, int64_t n)
{
    if (n == 0)
        return NAN;
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[(n - 1) / 2];
}

static bool is_measured(const struct beat_row *r)
{
    return r->known && r->at.n_steps >= SLOW_STEPS && r->at.work_ms > 0;
}

static void find_slow(struct beat_row *rows, int64_t n, double *scratch)
{
    int64_t k = 0;

    for (int64_t i = 0; i < n; i++)
        if (is_measured(&rows[i]))
            scratch[k++] = rows[i].at.work_ms;
    double middle = median(scratch, k);
    for (int64_t i = 0; i < n && k > 1; i++) {
        struct beat_row *r = &rows[i];
        if (!is_measured(r))
            continue;
        r->ratio = r->at.work_ms / middle;
        r->over = r->ratio > slow_ratio && r->at.work_ms - middle >= slow_least_ms;
        if (r->state == BEAT_OK && r->over && r->over_ms >= BEAT_SLOW_FOR_MS)
            r->state = BEAT_SLOW;
    }
}

static double median_step_ms(const struct beat_row *rows, int64_t n, double *scratch)
{
    int64_t k = 0;

    for (int64_t i = 0; i < n; i++)
        if (rows[i].known && rows[i].at.step_ms > 0)
            scratch[k++] = rows[i].at.step_ms;
    return k ? median(scratch, k) : 0;
}

/* --- lost and stopped --- */

/* Has another rank that beats finished anything in the last half of the limit? */
static bool others_move(const struct beat_row *rows, int64_t n, int64_t rank, const struct beat_limits *l)
{
    for (int64_t i = 0; i < n; i++)
        if (i != rank && beats(&rows[i], l) && rows[i].moved_ms < l->lost_ms / 2)
            return true;
    return false;
}

static bool others_beat(const struct beat_row *rows, int64_t n, int64_t rank, const struct beat_limits *l)
{
    for (int64_t i = 0; i < n; i++)
        if (i != rank && beats(&rows[i], l))
            return true;
    return false;
}

static enum beat_end end_of_silent(const struct beat_row *rows, int64_t n, int64_t rank,
                                   const struct beat_limits *l)
{
    const struct beat_row *r = &rows[rank];

    if (!r->known || has_left(r) || r->age_ms < l->lost_ms)
        return BEAT_GO_ON;
    if (r->process == BEAT_PROCESS_STOPPED)
        return BEAT_END_STOPPED;
    if (r->process == BEAT_PROCESS_GONE ||
        (r->process == BEAT_PROCESS_UNKNOWN && others_beat(rows, n, rank, l)))
        return BEAT_END_LOST;
    return BEAT_GO_ON;
}

/* The one that has been silent for longest. */
static bool judge_silence(const struct beat_row *rows, int64_t n, const struct beat_limits *l,
                          struct beat_verdict *v)
{
    for (int64_t i = 0; i < n; i++) {
        if (rows[i].age_ms < l->lost_ms || (v->end != BEAT_GO_ON && rows[i].age_ms <= v->for_ms))
            continue;
        enum beat_end end = end_of_silent(rows, n, i, l);
        if (end != BEAT_GO_ON && !others_move(rows, n, i, l)) {
            v->end = end;
            v->rank = i;
            v->for_ms = rows[i].age_ms;
        }
    }
    return v->end != BEAT_GO_ON;
}

/* --- stalled --- */

/* What a phase may take longer than a step may. */
static int64_t factor_of(const char *phase)
{
    static const struct {
        const char *phase;
        int64_t factor;
    } rows[] = {{"start", 4}, {"evaluate", 4}, {"checkpoint", 4}, {"finish", 4}, {"data", 2}};

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (strcmp(rows[i].phase, phase) == 0)
            return rows[i].factor;
    return 1;
}

/* How likely rank a is the one that holds the others up: the higher, the likelier. */
static int suspicion(const struct beat_row *r, const struct beat_limits *l)
{
    if (has_left(r))
        return 0;
    if (beats(r, l))
        return waits(r) ? 1 : 4;
    return r->known ? 2 : 3;
}

/* Of two ranks of equal suspicion: the one that has finished fewer collectives; of ranks that wait, then, the
 * one that came last; of others the one that has been where it is for longest. */
static bool is_further_behind(const struct beat_row *a, const struct beat_row *b)
{
    if (a->at.collectives != b->at.collectives)
        return a->at.collectives < b->at.collectives;
    int64_t in_a = a->at.in_ms + a->age_ms, in_b = b->at.in_ms + b->age_ms;
    return waits(a) ? in_a < in_b : in_a > in_b;
}

static int64_t find_culprit(const struct beat_row *rows, int64_t n, const struct beat_limits *l)
{
    int64_t best = -1;
    int most = 0;

    for (int64_t i = 0; i < n; i++) {
        int s = suspicion(&rows[i], l);
        if (s > most ||
            (s == most && best >= 0 && rows[i].known && is_further_behind(&rows[i], &rows[best]))) {
            best = i;
            most = s;
        }
    }
    return best;
}

static void judge_stall(struct beat_row *rows, int64_t n, const struct beat_limits *l, double step_ms,
                        struct beat_verdict *v)
{
    int64_t quiet_ms = INT64_MAX, rank = find_culprit(rows, n, l);
    const char *phase = NULL;

    for (int64_t i = 0; i < n; i++)
        if (beats(&rows[i], l)) {
            quiet_ms = rows[i].moved_ms < quiet_ms ? rows[i].moved_ms : quiet_ms;
            phase = phase ? phase : rows[i].at.phase;
        }
    if (!phase || rank < 0) /* nobody beats: the coordinator knows nothing */
        return;
    if (rows[rank].known)
        phase = rows[rank].at.phase;
    double limit = (double)l->stall_ms;
    if (step_ms * STALL_STEPS > limit)
        limit = step_ms * STALL_STEPS;
    limit *= (double)factor_of(phase);
    if ((double)quiet_ms < limit / 2)
        return;
    if (rows[rank].state == BEAT_OK || rows[rank].state == BEAT_SLOW)
        rows[rank].state = BEAT_STALLED;
    if ((double)quiet_ms < limit)
        return;
    v->end = BEAT_END_STALLED;
    v->rank = rank;
    v->for_ms = quiet_ms;
    v->all_wait = beats(&rows[rank], l) && waits(&rows[rank]);
}

static void count_waiting(const struct beat_row *rows, int64_t n, const struct beat_limits *l,
                          struct beat_verdict *v)
{
    for (int64_t i = 0; i < n; i++)
        if (i != v->rank && beats(&rows[i], l) && waits(&rows[i])) {
            v->n_waiting++;
            v->waiting = v->waiting < 0 ? i : v->waiting;
        }
}

void beat_judge(struct beat_row *rows, int64_t n, const struct beat_limits *limits, struct beat_verdict *out)
{
    double *scratch = xcalloc((size_t)n + 1, sizeof *scratch);

    *out = (struct beat_verdict){.end = BEAT_GO_ON, .rank = -1, .waiting = -1};
    find_states(rows, n, limits);
    find_slow(rows, n, scratch);
    if (!judge_silence(rows, n, limits, out))
        judge_stall(rows, n, limits, median_step_ms(rows, n, scratch), out);
    if (out->end != BEAT_GO_ON)
        count_waiting(rows, n, limits, out);
    free(scratch);
}

/* --- words --- */

static void add(char *out, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

static void add(char *out, size_t size, const char *fmt, ...)
{
    size_t n = strlen(out);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(out + n, size - n, fmt, ap);
    va_end(ap);
}

static void add_rank(char *out, size_t size, int64_t rank, const char *host)
{
    add(out, size, *host ? "rank %lld on %.100s" : "rank %lld", (long long)rank, host);
}

static void say_waiting(const struct beat_verdict *v, const struct beat_row *rows, char *out, size_t size)
{
    if (v->n_waiting)
        add(out, size, "; %lld rank%s for it in %s", (long long)v->n_waiting,
            v->n_waiting == 1 ? " waits" : "s wait", rows[v->waiting].at.waits_in);
}

static void say_silent(const struct beat_verdict *v, const struct beat_row *rows, const char *const *hosts,
                       char *out, size_t size)
{
    const struct beat_row *r = &rows[v->rank];
    const char *why = v->end == BEAT_END_STOPPED        ? "stopped by a signal"
                      : r->process == BEAT_PROCESS_GONE ? "its process is gone"
                                                        : "its machine does not answer";

    add_rank(out, size, v->rank, hosts[v->rank]);
    add(out, size, " has been silent for %lld s at step %lld (%s), in %s", (long long)v->for_ms / 1000,
        (long long)r->at.step, why, waits(r) ? r->at.waits_in : r->at.phase);
    say_waiting(v, rows, out, size);
}

static void say_stalled(const struct beat_verdict *v, const struct beat_row *rows, int64_t n,
                        const char *const *hosts, char *out, size_t size)
{
    const struct beat_row *r = &rows[v->rank];
    long long s = v->for_ms / 1000;

    if (v->all_wait && n > 1) {
        add(out, size, "all ranks have waited for %lld s at step %lld in %s; ", s, (long long)r->at.step,
            r->at.waits_in);
        add_rank(out, size, v->rank, hosts[v->rank]);
        add(out, size, " came last");
        return;
    }
    add_rank(out, size, v->rank, hosts[v->rank]);
    if (r->known)
        add(out, size, " has not moved for %lld s at step %lld, in %s", s, (long long)r->at.step,
            waits(r) ? r->at.waits_in : r->at.phase);
    else
        add(out, size, " has not reported, and no rank has moved for %lld s", s);
    say_waiting(v, rows, out, size);
}

void beat_verdict_say(const struct beat_verdict *v, const struct beat_row *rows, int64_t n,
                      const char *const *hosts, char *out, unsigned long size)
{
    out[0] = 0;
    if (v->end == BEAT_END_STALLED)
        say_stalled(v, rows, n, hosts, out, size);
    else if (v->end != BEAT_GO_ON)
        say_silent(v, rows, hosts, out, size);
}
