/* sched_order - the total order of jobs, and the usage that fair share goes by.
 *
 * In order of weight:
 *   1. level = priority + one point for each period of age_priority_ms that it has waited through;
 *   2. who has waited age_share_ms comes before who has not; among those who have not, the user with the
 * lower usage / share;
 *   3. submitted earlier;
 *   4. the lower id.
 * Periods are those of one clock for all, [k p, (k + 1) p), and a job gets its first point after the first
 * whole one. So the order of two jobs that wait changes a few times at most: when either is past fair share,
 * when either gets its first point; from then on both get theirs at the same moments. (With a period of its
 * own for each job, two that are a point apart would swap for part of every period, and what yields for the
 * one would yield in vain.) Who has passed fair share is overtaken by those of a higher level only, and a job
 * that is queued later by more than (difference in priority + 1) periods never gets a higher level.
 * docs/scheduling.md has the proof.
 */
#include "common/err.h"
#include "daemon/sched_impl.h"

#include <math.h>

static const int64_t max_run_ms = (int64_t)1 << 50; /* 36,000 years */

void sched_settings_init(struct sched_settings *s)
{
    *s = (struct sched_settings){
        .max_reservations = 256,
        .default_run_ms = 3600 * 1000,
        .age_share_ms = 12 * 3600 * 1000,
        .age_priority_ms = 24 * 3600 * 1000,
        .preempt = true,
        .resize = true,
        .grace_ms = 300 * 1000,
        .restart_ms = 60 * 1000,
        .grow_ms = 600 * 1000,
        .max_yield_tries = 8,
    };
}

static int64_t periods_waited(int64_t since_ms, int64_t now_ms, int64_t period_ms)
{
    int64_t n = now_ms / period_ms - since_ms / period_ms - 1;

    return n > 0 ? n : 0;
}

struct sched_key sched_key(const struct sched_input *in, const struct sched_settings *set,
                           const struct sched_job *job)
{
    int64_t waited = in->now_ms > job->queued_ms ? in->now_ms - job->queued_ms : 0;
    struct sched_key k = {job->priority, 0, job->submitted_ms, job->id};

    if (set->age_priority_ms > 0)
        k.level += periods_waited(job->queued_ms, in->now_ms, set->age_priority_ms);
    if (set->age_share_ms > 0 && waited >= set->age_share_ms) {
        k.usage = -1;
    } else if (in->n_users) {
        ASSERT(job->user >= 0 && (size_t)job->user < in->n_users);
        const struct sched_user *u = &in->users[job->user];
        k.usage = u->share > 0 && u->usage >= 0 ? u->usage / u->share : INFINITY;
    }
    return k;
}

int sched_key_compare(const struct sched_key *a, const struct sched_key *b)
{
    if (a->level != b->level)
        return a->level > b->level ? -1 : 1;
    if (a->usage != b->usage)
        return a->usage < b->usage ? -1 : 1;
    if (a->submitted_ms != b->submitted_ms)
        return a->submitted_ms < b->submitted_ms ? -1 : 1;
    return (a->id > b->id) - (a->id < b->id);
}

int sched_compare(const struct sched_input *in, const struct sched_job *a, const struct sched_job *b)
{
    struct sched_settings defaults;
    const struct sched_settings *set = in->settings;

    if (!set) {
        sched_settings_init(&defaults);
        set = &defaults;
    }
    struct sched_key x = sched_key(in, set, a), y = sched_key(in, set, b);
    return sched_key_compare(&x, &y);
}

int64_t sched_run_ms(const struct sched_job *job, int32_t ranks)
{
    int64_t run = job->run_ms < max_run_ms ? job->run_ms : max_run_ms;

    if (run < 0)
        return -1;
    __int128 scaled = ((__int128)run * job->ranks + ranks - 1) / ranks;
    return scaled < max_run_ms ? (int64_t)scaled : max_run_ms;
}

double sched_usage_at(double usage, double held, int64_t elapsed_ms, int64_t half_life_ms)
{
    double t = elapsed_ms > 0 ? (double)elapsed_ms / 1000 : 0;

    if (half_life_ms <= 0)
        return usage + held * t;
    double rate = M_LN2 * 1000 / (double)half_life_ms; /* 1/s */
    return usage * exp(-rate * t) - held / rate * expm1(-rate * t);
}
