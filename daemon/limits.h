/* limits - how much one user may ask of the daemon, so that nobody is in the way of the others.
 *
 * Connections are counted; requests and submissions are drawn from a token bucket of each user, whatever
 * connections they come over. Administrators are not limited by what is counted for each user. Every refusal
 * names the option that sets the limit.
 */
#ifndef DAEMON_LIMITS_H
#define DAEMON_LIMITS_H

#include <stdbool.h>
#include <stdint.h>
#include "daemon/options.h"

/* --- a token bucket --- */

struct bucket {
    double level; /* tokens at at_ns */
    int64_t at_ns;
};

/* A bucket that is full. */
struct bucket bucket_full(double burst, int64_t now_ns);

/* Takes n tokens of a bucket that fills by per_s a second up to `burst`. False when there are not as many:
 * nothing is taken then, and *wait_ms says after how long there would be. */
bool bucket_take(struct bucket *b, double per_s, double burst, double n, int64_t now_ns, int64_t *wait_ms);

/* --- users --- */

struct limits;

/* A limit that was reached. */
struct limit_hit {
    const char *option; /* "max-user-clients" */
    int64_t value;
    int64_t retry_ms; /* 0: time alone does not help */
    char message[256];
};

/* Connections of people who have not logged in are counted as those of one user. */
enum { LIMITS_STRANGER = -1 };

/* Borrows the options, which may change while it lives. */
struct limits *limits_create(const struct options *o);
void limits_destroy(struct limits *l);

/* One more connection of the user. -1 when that is one too many: it is not counted then. */
int limits_add_client(struct limits *l, int64_t uid, struct limit_hit *hit);
void limits_remove_client(struct limits *l, int64_t uid);

/* A request that weighs as much as `cost` plain ones, at now_ns. -1 when there are too many. */
int limits_request(struct limits *l, int64_t uid, int cost, int64_t now_ns, struct limit_hit *hit);

/* Jobs that are submitted together, and those there are that have not ended. */
struct limits_jobs {
    int64_t n_new, n_user, n_all;
    bool exempt; /* only the number of all jobs counts */
};

/* A submission. -1 when there are too many, of submissions or of jobs: none of these is counted then. */
int limits_submission(struct limits *l, int64_t uid, const struct limits_jobs *jobs, int64_t now_ns,
                      struct limit_hit *hit);

/* A spec of so many bytes. */
int limits_spec_size(const struct limits *l, int64_t n_bytes, struct limit_hit *hit);

/* Forgets users of whom there is nothing to remember. */
void limits_tend(struct limits *l, int64_t now_ns);

/* How many users are remembered. */
int64_t limits_n_users(const struct limits *l);

#endif
