/* options - the daemon's settings: defaults, config file, command line. */
#ifndef DAEMON_OPTIONS_H
#define DAEMON_OPTIONS_H

#include "common/conf.h"
#include "common/log.h"

struct options {
    bool help, version, lifeline, check;
    char *config, *state_dir, *launcher, *worker, *mpirun, *log_level, *http;
    char *tls_cert, *tls_key;   /* both or neither; given where a tcp: address is */
    struct conf_list listen;    /* resolved: "unix:/absolute/path" (at least one), "tcp:HOST:PORT" */
    struct conf_list data_root; /* absolute */
    struct conf_list viewers, operators, admins; /* names or numbers of users, "@" before those of groups */
    int64_t slots, max_clients, stop_ms, kill_ms, hang_ms, yield_ms, retry_ms, retry_max_ms, login_ms;
    int64_t max_user_clients, max_jobs, max_user_jobs, max_spec_bytes;
    int64_t user_requests_per_s, user_request_burst, user_submits_per_s, user_submit_burst;
    /* Where workers find us: the first Unix socket, for those that run as our user; for those that run as
     * others a socket that everybody can reach and that takes workers only. The latter NULL where jobs of
     * others run as our user, too, or where its path would be too long. */
    const char *link_address; /* one of listen */
    char *guest_link_address;
    bool default_address; /* nobody gave --listen */
    enum log_level level;
};

/* Reads argv (and --config), fills in every default, checks. Errors of kind ERR_USAGE are the caller's
 * mistakes. */
int options_read(struct options *o, int argc, char **argv, struct err *e);
void options_free(struct options *o);
void options_print_help(int fd);

#endif
