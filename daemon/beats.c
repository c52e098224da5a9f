/* beats - see beats.h. */
#include "daemon/beats.h"
#include "common/err.h"
#include "daemon/proc.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct rank_beat {
    uint64_t conn_id; /* 0: it has not said hello */
    int64_t pid;
    int64_t heard_ms, moved_ms; /* in time of this process; see beats.h */
    int64_t over_ms;            /* likewise: since when its ratio is over the limit */
    char host[64];
    struct job_process process; /* pid 0: not known, or elsewhere */
    bool told_slow;
};

struct beats {
    int64_t n;
    struct rank_beat *ranks;
    struct beat_row *rows; /* as of the last tick, but for what was heard since */
    int64_t tick_ms;       /* monotonic, of the last tick */
    int64_t awake_ms;      /* time of this process at the last tick */
    bool anybody;
};

struct beats *beats_create(int64_t n_ranks, int64_t now_ms)
{
    struct beats *b = xcalloc(1, sizeof *b);

    b->n = n_ranks;
    b->ranks = xcalloc((size_t)n_ranks + 1, sizeof *b->ranks);
    b->rows = xcalloc((size_t)n_ranks + 1, sizeof *b->rows);
    b->tick_ms = now_ms;
    for (int64_t i = 0; i < n_ranks; i++) {
        b->rows[i].state = BEAT_ABSENT;
        b->rows[i].ratio = NAN;
    }
    return b;
}

void beats_destroy(struct beats *b)
{
    if (!b)
        return;
    free(b->ranks);
    free(b->rows);
    free(b);
}

int64_t beats_hello(struct beats *b, const struct progress_hello *h, uint64_t conn_id,
                    const struct job_process *process)
{
    if (h->rank < 0 || h->rank >= b->n)
        return -1;
    struct rank_beat *r = &b->ranks[h->rank];
    uint64_t old = r->conn_id == conn_id ? 0 : r->conn_id;
    r->conn_id = conn_id;
    r->pid = h->pid;
    r->process = process ? *process : (struct job_process){0};
    snprintf(r->host, sizeof r->host, "%.*s", (int)sizeof r->host - 1, h->host);
    return (int64_t)old;
}

void beats_beat(struct beats *b, int64_t rank, uint64_t conn_id, const struct progress_beat *beat)
{
    struct rank_beat *r = rank >= 0 && rank < b->n ? &b->ranks[rank] : NULL;

    if (!r || r->conn_id != conn_id)
        return;
    struct beat_row *row = &b->rows[rank];
    if (!row->known || beat->step != row->at.step || beat->collectives != row->at.collectives)
        r->moved_ms = b->awake_ms;
    r->heard_ms = b->awake_ms;
    row->known = b->anybody = true;
    row->at = *beat;
}

/* Only of those that say nothing: a look into /proc for each. */
static enum beat_process look_at_process(const struct rank_beat *r, const struct beat_row *row)
{
    char state;

    if (!r->process.pid || row->age_ms < 2 * BEATS_TICK_MS)
        return BEAT_PROCESS_UNKNOWN;
    state = proc_state(&r->process);
    return state == 0 ? BEAT_PROCESS_GONE : state == 'T' ? BEAT_PROCESS_STOPPED : BEAT_PROCESS_RUNS;
}

void beats_tick(struct beats *b, int64_t now_ms, const struct beat_limits *limits, struct beat_verdict *out)
{
    int64_t step = now_ms - b->tick_ms;

    b->tick_ms = now_ms;
    b->awake_ms += step < 0 ? 0 : step < BEATS_MAX_STEP_MS ? step : BEATS_MAX_STEP_MS;
    *out = (struct beat_verdict){.end = BEAT_GO_ON, .rank = -1, .waiting = -1};
    if (!b->anybody)
        return;
    for (int64_t i = 0; i < b->n; i++) {
        struct beat_row *row = &b->rows[i];
        row->age_ms = row->known ? b->awake_ms - b->ranks[i].heard_ms : 0;
        row->moved_ms = row->known ? b->awake_ms - b->ranks[i].moved_ms : 0;
        row->over_ms = row->over ? b->awake_ms - b->ranks[i].over_ms : 0;
        row->process = look_at_process(&b->ranks[i], row);
    }
    beat_judge(b->rows, b->n, limits, out);
    for (int64_t i = 0; i < b->n; i++)
        if (!b->rows[i].over)
            b->ranks[i].over_ms = b->awake_ms;
}

void beats_say(const struct beats *b, const struct beat_verdict *v, char *out, unsigned long size)
{
    const char **hosts = xcalloc((size_t)b->n + 1, sizeof *hosts);

    for (int64_t i = 0; i < b->n; i++)
        hosts[i] = b->ranks[i].host;
    beat_verdict_say(v, b->rows, b->n, hosts, out, size);
    free(hosts);
}

int64_t beats_next_slow(struct beats *b)
{
    for (int64_t i = 0; i < b->n; i++)
        if (b->rows[i].state == BEAT_SLOW && !b->ranks[i].told_slow) {
            b->ranks[i].told_slow = true;
            return i;
        }
    return -1;
}

int64_t beats_slowest(const struct beats *b)
{
    int64_t worst = -1;

    for (int64_t i = 0; i < b->n; i++)
        if (b->rows[i].state == BEAT_SLOW && (worst < 0 || b->rows[i].ratio > b->rows[worst].ratio))
            worst = i;
    return worst;
}

void beats_say_slow(const struct beats *b, int64_t rank, char *out, unsigned long size)
{
    snprintf(out, size,
             "rank %lld on %s is slow: its own work in a step takes %.1f ms, %.1f times the median",
             (long long)rank, b->ranks[rank].host, b->rows[rank].at.work_ms, b->rows[rank].ratio);
}

/* --- for clients --- */

static void add_number(cJSON *v, const char *key, bool known, double value)
{
    if (known && isfinite(value))
        cJSON_AddNumberToObject(v, key, value);
    else
        cJSON_AddNullToObject(v, key);
}

static void add_text(cJSON *v, const char *key, const char *text)
{
    if (*text)
        cJSON_AddStringToObject(v, key, text);
    else
        cJSON_AddNullToObject(v, key);
}

static cJSON *row_to_json(const struct beats *b, int64_t rank)
{
    const struct beat_row *row = &b->rows[rank];
    const struct rank_beat *r = &b->ranks[rank];
    cJSON *v = cJSON_CreateObject();

    cJSON_AddNumberToObject(v, "rank", (double)rank);
    add_text(v, "host", r->host);
    add_number(v, "pid", r->pid > 0, (double)r->pid);
    cJSON_AddStringToObject(v, "state", beat_state_name(row->state));
    add_number(v, "step", row->known, (double)row->at.step);
    add_text(v, "phase", row->at.phase);
    add_text(v, "waits_in", row->at.waits_in);
    add_number(v, "age_s", row->known, (double)(b->awake_ms - r->heard_ms) / 1000);
    add_number(v, "step_ms", row->known, row->at.step_ms);
    add_number(v, "work_ms", row->known, row->at.work_ms);
    add_number(v, "ratio", row->known, row->ratio);
    return v;
}

struct order {
    int64_t rank;
    int odd;
    double work_ms;
};

static int by_interest(const void *a, const void *b)
{
    const struct order *x = a, *y = b;

    if (x->odd != y->odd)
        return y->odd - x->odd;
    if (x->work_ms != y->work_ms)
        return x->work_ms < y->work_ms ? 1 : -1;
    return (x->rank > y->rank) - (x->rank < y->rank);
}

cJSON *beats_to_json(const struct beats *b)
{
    cJSON *all = cJSON_CreateArray();
    struct order *o = b->anybody ? xcalloc((size_t)b->n, sizeof *o) : NULL;

    for (int64_t i = 0; i < b->n && o; i++) {
        const struct beat_row *row = &b->rows[i];
        o[i] = (struct order){i, row->state != BEAT_OK && row->state != BEAT_SLOW,
                              row->known && row->at.work_ms > 0 ? row->at.work_ms : 0};
    }
    if (o && b->n > BEATS_MAX_ROWS)
        qsort(o, (size_t)b->n, sizeof *o, by_interest);
    for (int64_t i = 0; i < b->n && i < BEATS_MAX_ROWS && o; i++)
        cJSON_AddItemToArray(all, row_to_json(b, o[i].rank));
    free(o);
    return all;
}
