/* options - see options.h. */
#include "daemon/options.h"
#include "common/fsutil.h"
#include "proto/client.h"

#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define AT(field) offsetof(struct options, field)

static const struct conf_option rows[] = {
    {"config", 'c', CONF_STR, AT(config), "FILE", NULL, 0, 0, "JSON file with any of these options"},
    {"state-dir", 0, CONF_STR, AT(state_dir), "DIR", NULL, 0, 0, "where jobs and their runs are kept"},
    {"listen", 0, CONF_LIST, AT(listen), "unix:PATH", NULL, 0, 0, "socket for clients; may be repeated"},
    {"http", 0, CONF_STR, AT(http), "HOST:PORT", NULL, 0, 0, "dashboard (not available in this version)"},
    {"slots", 0, CONF_INT, AT(slots), "N", NULL, 1, 65536, "ranks that may run at once (default: CPU cores)"},
    {"node", 0, CONF_LIST, AT(node), "NAME:SLOTS[:GPUS]", NULL, 0, 0,
     "a host that jobs run on; may be repeated (default: this host, with --slots and its GPUs)"},
    {"launch-agent", 0, CONF_STR, AT(launch_agent), "PATH", NULL, 0, 0,
     "what mpirun starts its daemons on other hosts with (default: ssh)"},
    {"share", 0, CONF_LIST, AT(share), "USER:SHARE", NULL, 0, 0,
     "a user's share of the machine beside others' (default: 1); may be repeated"},
    {"half-life-s", 0, CONF_INT, AT(half_life_s), "S", NULL, 0, 1000000000,
     "time after which use counts half in fair share (default: 604800, a week)"},
    {"grace-ms", 0, CONF_INT, AT(grace_ms), "MS", NULL, 0, 86400000,
     "time that a job runs before it may be asked to yield for another (default: 300000)"},
    {"grow-ms", 0, CONF_INT, AT(grow_ms), "MS", NULL, 0, 86400000,
     "time that a job runs before it may be grown into free slots (default: 600000)"},
    {"no-preempt", 0, CONF_FLAG, AT(no_preempt), NULL, NULL, 0, 0,
     "no job is asked to yield for one of higher priority"},
    {"no-resize", 0, CONF_FLAG, AT(no_resize), NULL, NULL, 0, 0, "no running job is shrunk or grown"},
    {"launcher", 0, CONF_STR, AT(launcher), "NAME", NULL, 0, 0, "mpirun (default) or fake"},
    {"worker", 0, CONF_STR, AT(worker), "PATH", NULL, 0, 0,
     "batchformer-worker (default: beside batchformerd)"},
    {"mpirun", 0, CONF_STR, AT(mpirun), "PATH", NULL, 0, 0, "Open MPI's mpirun (default: found in $PATH)"},
    {"lifeline", 0, CONF_FLAG, AT(lifeline), NULL, NULL, 0, 0,
     "when standard input ends, cancel what runs and exit"},
    {"max-clients", 0, CONF_INT, AT(max_clients), "N", NULL, 1, 60000, "connections at once (default: 512)"},
    {"stop-ms", 0, CONF_INT, AT(stop_ms), "MS", NULL, 0, 86400000,
     "time for a job to stop by itself before SIGTERM (default: 15000)"},
    {"kill-ms", 0, CONF_INT, AT(kill_ms), "MS", NULL, 0, 86400000,
     "time after SIGTERM before SIGKILL (default: 10000)"},
    {"yield-ms", 0, CONF_INT, AT(yield_ms), "MS", NULL, 0, 86400000,
     "time for a job to write a checkpoint and give its slots back before SIGTERM (default: 60000)"},
    {"retry-ms", 0, CONF_INT, AT(retry_ms), "MS", NULL, 0, 86400000,
     "wait before the first restart after a fault; twice as long each time (default: 1000)"},
    {"retry-max-ms", 0, CONF_INT, AT(retry_max_ms), "MS", NULL, 0, 86400000,
     "longest such wait (default: 300000)"},
    {"hang-ms", 0, CONF_INT, AT(hang_ms), "MS", NULL, 1000, 86400000,
     "time for an mpirun without ranks to end before SIGKILL (default: 30000)"},
    {"lost-ms", 0, CONF_INT, AT(lost_ms), "MS", NULL, 3000, 86400000,
     "silence of a rank that is lost or stopped before its run is restarted (default: 10000)"},
    {"stall-s", 0, CONF_INT, AT(stall_s), "S", NULL, 1, 1000000,
     "time that a run may make no step before it is restarted (default: 300; at least 20 steps)"},
    {"log-level", 0, CONF_STR, AT(log_level), "LEVEL", NULL, 0, 0, "debug, info (default), warn or error"},
    {"check", 0, CONF_FLAG, AT(check), NULL, NULL, 0, 0, "verify what is in the state directory, and exit"},
    {"help", 'h', CONF_FLAG, AT(help), NULL, NULL, 0, 0, "show this help"},
    {"version", 0, CONF_FLAG, AT(version), NULL, NULL, 0, 0, "show the version"},
};
enum { N_ROWS = sizeof rows / sizeof *rows };

void options_print_help(int fd)
{
    dprintf(fd, "usage: batchformerd [OPTION]...\n\nCoordinator of BatchFormer training jobs.\n\n");
    conf_print_help(rows, N_ROWS, fd);
}

void options_free(struct options *o)
{
    conf_free(rows, N_ROWS, o);
}

/* /var/lib/batchformer for root, else $XDG_STATE_HOME/batchformer or ~/.local/state/batchformer. */
static char *default_state_dir(void)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");

    if (getuid() == 0)
        return xstrdup("/var/lib/batchformer");
    if (state && *state)
        return fs_join(state, "batchformer");
    return xasprintf("%s/.local/state/batchformer", home && *home ? home : "/tmp");
}

static int make_absolute(char **path, struct err *e)
{
    char cwd[PATH_MAX];

    if ((*path)[0] == '/')
        return 0;
    if (!getcwd(cwd, sizeof cwd))
        return err_set_errno(e, "getcwd");
    char *full = fs_join(cwd, *path);
    free(*path);
    *path = full;
    return 0;
}

static int resolve_address(char **address, struct err *e)
{
    if (strncmp(*address, "tcp:", 4) == 0)
        return err_set_kind(e, ERR_USAGE,
                            "--listen %s: TCP is not available in this version; accepted: unix:PATH",
                            *address);
    if (strncmp(*address, "unix:", 5) != 0 || !(*address)[5])
        return err_set_kind(e, ERR_USAGE, "--listen: '%s' found, unix:PATH is accepted", *address);
    char *path = xstrdup(*address + 5);
    if (make_absolute(&path, e) < 0) {
        free(path);
        return -1;
    }
    free(*address);
    *address = xasprintf("unix:%s", path);
    free(path);
    return 0;
}

static int resolve_listen(struct options *o, struct err *e)
{
    o->default_address = o->listen.n_items == 0;
    if (o->default_address) {
        o->listen.items = xcalloc(1, sizeof *o->listen.items);
        o->listen.items[o->listen.n_items++] = client_default_address();
    }
    for (size_t i = 0; i < o->listen.n_items; i++)
        if (resolve_address(&o->listen.items[i], e) < 0)
            return -1;
    return 0;
}

static int check_shares(const struct conf_list *shares, struct err *e)
{
    for (size_t i = 0; i < shares->n_items; i++) {
        const char *colon = strrchr(shares->items[i], ':');
        char *end = NULL;
        double share = colon ? strtod(colon + 1, &end) : 0;
        if (!colon || colon == shares->items[i] || *end || !(share > 0) || share > 1e9)
            return err_set_kind(e, ERR_USAGE,
                                "--share: '%s' found, USER:SHARE with a share above 0 is accepted",
                                shares->items[i]);
    }
    return 0;
}

static int resolve(struct options *o, struct err *e)
{
    if (o->http)
        return err_set_kind(e, ERR_USAGE, "--http %s: the dashboard is not available in this version",
                            o->http);
    if (check_shares(&o->share, e) < 0)
        return -1;
    if (!o->launcher)
        o->launcher = xstrdup("mpirun");
    if (strcmp(o->launcher, "mpirun") != 0 && strcmp(o->launcher, "fake") != 0)
        return err_set_kind(e, ERR_USAGE, "--launcher: '%s' found, mpirun or fake is accepted", o->launcher);
    if (log_level_parse(o->log_level ? o->log_level : "info", &o->level, e) < 0) {
        if (e)
            e->kind = ERR_USAGE;
        return -1;
    }
    if (!o->slots) {
        long cores = sysconf(_SC_NPROCESSORS_ONLN);
        o->slots = cores > 0 ? cores : 1;
    }
    if (!o->state_dir)
        o->state_dir = default_state_dir();
    if (!o->worker) {
        char *dir = fs_self_dir();
        o->worker = fs_join(dir, "batchformer-worker");
        free(dir);
    }
    if (make_absolute(&o->state_dir, e) < 0 || make_absolute(&o->worker, e) < 0 ||
        (o->mpirun && make_absolute(&o->mpirun, e) < 0) ||
        (o->launch_agent && make_absolute(&o->launch_agent, e) < 0))
        return -1;
    return resolve_listen(o, e);
}

static void list_free(struct conf_list *l)
{
    for (size_t i = 0; i < l->n_items; i++)
        free(l->items[i]);
    free(l->items);
    *l = (struct conf_list){0};
}

/* The file is read into fresh options and the command line on top of it, so that the command line wins. Lists
 * grow by each source: the file's list counts only where the command line gave none. There are no operands
 * here, so the first reading left argv as it was. */
static int read_config(struct options *o, const struct options *defaults, int argc, char **argv,
                       struct err *e)
{
    struct options both = *defaults;
    struct conf_operands rest;
    int rc = -1;

    if (conf_from_file(rows, N_ROWS, &both, o->config, e) < 0)
        goto out;
    if (o->listen.n_items)
        list_free(&both.listen);
    if (o->node.n_items)
        list_free(&both.node);
    if (o->share.n_items)
        list_free(&both.share);
    if (conf_from_args(rows, N_ROWS, &both, argc, argv, &rest, e) < 0)
        goto out;
    struct options swap = *o;
    *o = both;
    both = swap;
    rc = 0;
out:
    conf_free(rows, N_ROWS, &both);
    return rc;
}

int options_read(struct options *o, int argc, char **argv, struct err *e)
{
    static const struct options defaults = {.max_clients = 512,
                                            .stop_ms = 15000,
                                            .kill_ms = 10000,
                                            .hang_ms = 30000,
                                            .lost_ms = 10000,
                                            .stall_s = 300,
                                            .yield_ms = 60000,
                                            .half_life_s = 604800,
                                            .grace_ms = 300000,
                                            .grow_ms = 600000,
                                            .retry_ms = 1000,
                                            .retry_max_ms = 300000};
    struct conf_operands rest;

    *o = defaults;
    if (conf_from_args(rows, N_ROWS, o, argc, argv, &rest, e) < 0)
        return -1;
    if (rest.n)
        return err_set_kind(e, ERR_USAGE, "unexpected argument '%s': only options are accepted", rest.v[0]);
    if (o->help || o->version)
        return 0;
    if (o->config && read_config(o, &defaults, argc, argv, e) < 0)
        return -1;
    return resolve(o, e);
}
