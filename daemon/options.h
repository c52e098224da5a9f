/* options - the daemon's settings: defaults, config file, command line. */
#ifndef DAEMON_OPTIONS_H
#define DAEMON_OPTIONS_H

#include "common/conf.h"
#include "common/log.h"

struct options {
    bool help, version, lifeline, check;
    bool no_preempt, no_resize;
    char *config, *state_dir, *launcher, *launch_agent, *worker, *mpirun, *log_level, *http;
    struct conf_list listen; /* resolved: "unix:/absolute/path", at least one */
    struct conf_list node, share;
    int64_t half_life_s, grace_ms, grow_ms;
    int64_t slots, max_clients, stop_ms, kill_ms, hang_ms, lost_ms, stall_s, yield_ms, retry_ms, retry_max_ms;
    bool default_address; /* nobody gave --listen */
    enum log_level level;
};

/* Reads argv (and --config), fills in every default, checks. Errors of kind ERR_USAGE are the caller's
 * mistakes. */
int options_read(struct options *o, int argc, char **argv, struct err *e);
void options_free(struct options *o);
void options_print_help(int fd);

#endif
