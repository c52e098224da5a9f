/* limits - see limits.h. */
#include "daemon/limits.h"
#include "daemon/identity.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct user {
    int64_t uid, n_clients;
    char name[64]; /* looked up once: who asks too much must not make us look again each time */
    struct bucket requests, submissions;
};

struct limits {
    const struct options *options;
    struct user *v;
    size_t n;
};

/* --- buckets --- */

struct bucket bucket_full(double burst, int64_t now_ns)
{
    return (struct bucket){.level = burst, .at_ns = now_ns};
}

/* A clock that stands still or a burst that was made smaller are no reason for more than there is. */
static void fill(struct bucket *b, double per_s, double burst, int64_t now_ns)
{
    if (now_ns > b->at_ns) {
        b->level += (double)(now_ns - b->at_ns) * 1e-9 * per_s;
        b->at_ns = now_ns;
    }
    b->level = fmin(b->level, burst);
}

bool bucket_take(struct bucket *b, double per_s, double burst, double n, int64_t now_ns, int64_t *wait_ms)
{
    fill(b, per_s, burst, now_ns);
    n = fmin(n, burst); /* what costs more than a whole bucket waits for a full one */
    *wait_ms = 0;
    if (b->level >= n) {
        b->level -= n;
        return true;
    }
    *wait_ms = (int64_t)ceil((n - b->level) / per_s * 1e3);
    return false;
}

/* --- users --- */

struct limits *limits_create(const struct options *o)
{
    struct limits *l = xcalloc(1, sizeof *l);

    l->options = o;
    return l;
}

void limits_destroy(struct limits *l)
{
    if (!l)
        return;
    free(l->v);
    free(l);
}

static struct user *find(struct limits *l, int64_t uid)
{
    for (size_t i = 0; i < l->n; i++)
        if (l->v[i].uid == uid)
            return &l->v[i];
    return NULL;
}

static struct user *find_or_add(struct limits *l, int64_t uid, int64_t now_ns)
{
    const struct options *o = l->options;
    struct user *u = find(l, uid);

    if (u)
        return u;
    l->v = xrealloc(l->v, (l->n + 1) * sizeof *l->v);
    u = &l->v[l->n++];
    *u = (struct user){.uid = uid,
                       .requests = bucket_full((double)o->user_request_burst, now_ns),
                       .submissions = bucket_full((double)o->user_submit_burst, now_ns)};
    if (uid == LIMITS_STRANGER)
        snprintf(u->name, sizeof u->name, "people who have not logged in");
    else
        identity_name(uid, u->name, sizeof u->name);
    return u;
}

int limits_add_client(struct limits *l, int64_t uid, struct limit_hit *hit)
{
    struct user *u = find_or_add(l, uid, 0);
    int64_t most = l->options->max_user_clients;

    if (u->n_clients < most) {
        u->n_clients++;
        return 0;
    }
    *hit = (struct limit_hit){.option = "max-user-clients", .value = most};
    snprintf(hit->message, sizeof hit->message,
             "too many clients of %s: %lld are connected already (--max-user-clients)", u->name,
             (long long)most);
    return -1;
}

void limits_remove_client(struct limits *l, int64_t uid)
{
    struct user *u = find(l, uid);

    ASSERT(u && u->n_clients > 0);
    u->n_clients--;
}

/* Says so; the rest of *hit is filled in. */
static int too_fast(struct limit_hit *hit, const char *what, const char *whose)
{
    snprintf(hit->message, sizeof hit->message,
             "too many %s of %s: %lld a second are accepted (--%s); try again in %lld ms", what, whose,
             (long long)hit->value, hit->option, (long long)hit->retry_ms);
    return -1;
}

int limits_request(struct limits *l, int64_t uid, int cost, int64_t now_ns, struct limit_hit *hit)
{
    const struct options *o = l->options;
    struct user *u = find_or_add(l, uid, now_ns);
    int64_t wait_ms;

    if (bucket_take(&u->requests, (double)o->user_requests_per_s, (double)o->user_request_burst, cost, now_ns,
                    &wait_ms))
        return 0;
    *hit = (struct limit_hit){.option = "user-requests-per-s",
                              .value = o->user_requests_per_s,
                              .retry_ms = wait_ms};
    return too_fast(hit, "requests", u->name);
}

static int too_many_jobs(struct limit_hit *hit, const char *option, int64_t most, int64_t now,
                         const char *whose)
{
    *hit = (struct limit_hit){.option = option, .value = most};
    snprintf(hit->message, sizeof hit->message,
             "too many jobs%s%s: %lld have not ended, and at most %lld are accepted (--%s)",
             *whose ? " of " : "", whose, (long long)now, (long long)most, option);
    return -1;
}

int limits_submission(struct limits *l, int64_t uid, const struct limits_jobs *jobs, int64_t now_ns,
                      struct limit_hit *hit)
{
    const struct options *o = l->options;
    int64_t wait_ms;

    if (jobs->n_all + jobs->n_new > o->max_jobs)
        return too_many_jobs(hit, "max-jobs", o->max_jobs, jobs->n_all, "");
    if (jobs->exempt)
        return 0;
    struct user *u = find_or_add(l, uid, now_ns);
    if (jobs->n_user + jobs->n_new > o->max_user_jobs)
        return too_many_jobs(hit, "max-user-jobs", o->max_user_jobs, jobs->n_user, u->name);
    if (bucket_take(&u->submissions, (double)o->user_submits_per_s, (double)o->user_submit_burst,
                    (double)jobs->n_new, now_ns, &wait_ms))
        return 0;
    *hit = (struct limit_hit){.option = "user-submits-per-s",
                              .value = o->user_submits_per_s,
                              .retry_ms = wait_ms};
    return too_fast(hit, "submissions", u->name);
}

int limits_spec_size(const struct limits *l, int64_t n_bytes, struct limit_hit *hit)
{
    int64_t most = l->options->max_spec_bytes;

    if (n_bytes <= most)
        return 0;
    *hit = (struct limit_hit){.option = "max-spec-bytes", .value = most};
    snprintf(hit->message, sizeof hit->message,
             "the spec has %lld bytes, at most %lld are accepted (--max-spec-bytes)", (long long)n_bytes,
             (long long)most);
    return -1;
}

void limits_tend(struct limits *l, int64_t now_ns)
{
    const struct options *o = l->options;
    size_t n = 0;

    for (size_t i = 0; i < l->n; i++) {
        struct user *u = &l->v[i];
        fill(&u->requests, (double)o->user_requests_per_s, (double)o->user_request_burst, now_ns);
        fill(&u->submissions, (double)o->user_submits_per_s, (double)o->user_submit_burst, now_ns);
        if (u->n_clients || u->requests.level < (double)o->user_request_burst ||
            u->submissions.level < (double)o->user_submit_burst)
            l->v[n++] = *u;
    }
    l->n = n;
}

int64_t limits_n_users(const struct limits *l)
{
    return (int64_t)l->n;
}
