/* options - the daemon's settings: defaults, config file, command line. */
#ifndef DAEMON_OPTIONS_H
#define DAEMON_OPTIONS_H

#include "common/conf.h"
#include "common/log.h"

struct options {
    bool help, version, lifeline, check;
    bool no_preempt, no_resize;
    char *link, *link_ca; /* for workers on other hosts */
    char *config, *state_dir, *launcher, *launch_agent, *worker, *mpirun, *log_level, *log_format, *http;
    struct conf_list node, share;
    int64_t half_life_s, grace_ms, grow_ms;
    char *tls_cert, *tls_key;   /* both or neither; given where a tcp: address is */
    struct conf_list listen;    /* resolved: "unix:/absolute/path" (at least one), "tcp:HOST:PORT" */
    struct conf_list data_root; /* absolute */
    struct conf_list viewers, operators, admins; /* names or numbers of users, "@" before those of groups */
    int64_t slots, max_clients, stop_ms, kill_ms, hang_ms, lost_ms, stall_s, yield_ms, retry_ms, retry_max_ms,
        login_ms;
    int64_t max_user_clients, max_jobs, max_user_jobs, max_spec_bytes;
    int64_t user_requests_per_s, user_request_burst, user_submits_per_s, user_submit_burst;
    /* Where workers find us: the first Unix socket, for those that run as our user; for those that run as
     * others a socket that everybody can reach and that takes workers only. The latter NULL where jobs of
     * others run as our user, too, or where its path would be too long. */
    const char *link_address; /* one of listen */
    char *guest_link_address;
    bool default_address; /* nobody gave --listen */
    enum log_level level;
    enum log_format format;
    int argc;
    char **argv; /* borrowed, for options_reload() */
};

/* Reads argv (and --config), fills in every default, checks. Errors of kind ERR_USAGE are the caller's
 * mistakes. */
int options_read(struct options *o, int argc, char **argv, struct err *e);

/* Told for each value that differs; `applied` is false where only a new start would take it. */
typedef void options_change_fn(void *ctx, const char *name, const char *old, const char *new, bool applied);

/* Reads the same sources again and takes over what may change while the coordinator runs (options_reload.c
 * lists it). When anything in them is wrong, nothing changes. */
int options_reload(struct options *o, options_change_fn *fn, void *ctx, struct err *e);

/* The table of options. */
const struct conf_option *options_rows(size_t *n);

void options_free(struct options *o);
void options_print_help(int fd);

#endif
