/* options - see options.h. */
#include "daemon/options.h"
#include "common/fsutil.h"
#include "proto/address.h"
#include "proto/client.h"

#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define AT(field) offsetof(struct options, field)

static const struct conf_option rows[] = {
    {"config", 'c', CONF_STR, AT(config), "FILE", NULL, 0, 0, "JSON file with any of these options"},
    {"state-dir", 0, CONF_STR, AT(state_dir), "DIR", NULL, 0, 0, "where jobs and their runs are kept"},
    {"listen", 0, CONF_LIST, AT(listen), "ADDR", NULL, 0, 0,
     "unix:PATH or tcp:HOST:PORT for clients; may be repeated"},
    {"tls-cert", 0, CONF_STR, AT(tls_cert), "FILE", NULL, 0, 0, "certificate (PEM) for tcp: addresses"},
    {"tls-key", 0, CONF_STR, AT(tls_key), "FILE", NULL, 0, 0,
     "its private key (PEM), for nobody else's eyes"},
    {"http", 0, CONF_STR, AT(http), "HOST:PORT", NULL, 0, 0, "dashboard (not available in this version)"},
    {"slots", 0, CONF_INT, AT(slots), "N", NULL, 1, 65536, "ranks that may run at once (default: CPU cores)"},
    {"node", 0, CONF_LIST, AT(node), "NAME:SLOTS[:GPUS]", NULL, 0, 0,
     "a host that jobs run on; may be repeated (default: this host, with --slots and its GPUs)"},
    {"link", 0, CONF_STR, AT(link), "tcp:HOST:PORT", NULL, 0, 0,
     "where workers on other hosts find this coordinator; one of its --listen addresses, as they see it"},
    {"link-ca", 0, CONF_STR, AT(link_ca), "FILE", NULL, 0, 0,
     "certificates (PEM) that those workers trust, on their hosts (default: their system's)"},
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
    {"viewers", 0, CONF_LIST, AT(viewers), "USER", NULL, 0, 0,
     "user or @group who sees all jobs and touches none; may be repeated"},
    {"operators", 0, CONF_LIST, AT(operators), "USER", NULL, 0, 0,
     "user or @group who may touch all jobs and nodes; may be repeated"},
    {"admins", 0, CONF_LIST, AT(admins), "USER", NULL, 0, 0,
     "user or @group who may do all; may be repeated"},
    {"data-root", 0, CONF_LIST, AT(data_root), "DIR", NULL, 0, 0,
     "where paths of jobs must lie; may be repeated"},
    {"login-ms", 0, CONF_INT, AT(login_ms), "MS", NULL, 100, 86400000,
     "time for TLS handshake and login (default: 10000)"},
    {"max-clients", 0, CONF_INT, AT(max_clients), "N", NULL, 1, 60000, "connections at once (default: 512)"},
    {"max-user-clients", 0, CONF_INT, AT(max_user_clients), "N", NULL, 1, 60000,
     "connections of one user (default: 128)"},
    {"max-jobs", 0, CONF_INT, AT(max_jobs), "N", NULL, 1, 100000000,
     "jobs that have not ended (default: 100000)"},
    {"max-user-jobs", 0, CONF_INT, AT(max_user_jobs), "N", NULL, 1, 100000000,
     "of those of one user (default: 10000)"},
    {"max-spec-bytes", 0, CONF_INT, AT(max_spec_bytes), "N", NULL, 1024, 1048576,
     "size of a job spec (default: 262144)"},
    {"user-requests-per-s", 0, CONF_INT, AT(user_requests_per_s), "N", NULL, 1, 1000000000,
     "requests of one user a second (default: 1000)"},
    {"user-request-burst", 0, CONF_INT, AT(user_request_burst), "N", NULL, 1, 1000000000,
     "requests of one user at once (default: 5000)"},
    {"user-submits-per-s", 0, CONF_INT, AT(user_submits_per_s), "N", NULL, 1, 1000000000,
     "submissions of one user a second (default: 20)"},
    {"user-submit-burst", 0, CONF_INT, AT(user_submit_burst), "N", NULL, 1, 1000000000,
     "submissions of one user at once (default: 1000)"},
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
    {"log-format", 0, CONF_STR, AT(log_format), "FORMAT", NULL, 0, 0, "text (default) or json"},
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

const struct conf_option *options_rows(size_t *n)
{
    *n = N_ROWS;
    return rows;
}

void options_free(struct options *o)
{
    conf_free(rows, N_ROWS, o);
    free(o->guest_link_address);
    o->guest_link_address = NULL;
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
    struct address a;

    if (address_parse(*address, &a, e) < 0)
        return err_wrap(e, "--listen");
    if (a.is_tcp)
        return 0;
    char *path = xstrdup(a.path);
    if (make_absolute(&path, e) < 0) {
        free(path);
        return -1;
    }
    free(*address);
    *address = xasprintf("unix:%s", path);
    free(path);
    return 0;
}

static void list_add(struct conf_list *l, char *item)
{
    l->items = xrealloc(l->items, (l->n_items + 1) * sizeof *l->items);
    l->items[l->n_items++] = item;
}

static bool is_tcp(const char *address)
{
    return strncmp(address, "tcp:", 4) == 0;
}

/* Workers need a Unix socket: where only TCP addresses are given, there is one in the state directory. */
static void find_link(struct options *o)
{
    o->link_address = NULL;
    for (size_t i = 0; i < o->listen.n_items && !o->link_address; i++)
        if (!is_tcp(o->listen.items[i]))
            o->link_address = o->listen.items[i];
    if (!o->link_address) {
        list_add(&o->listen, xasprintf("unix:%s/batchformer.sock", o->state_dir));
        o->link_address = o->listen.items[o->listen.n_items - 1];
    }
    if (geteuid() != 0 || o->lifeline)
        return;
    char *path = fs_join(o->state_dir, "workers.sock");
    if (strlen(path) < sizeof((struct sockaddr_un *)0)->sun_path)
        o->guest_link_address = xasprintf("unix:%s", path);
    free(path);
}

static int check_tls(const struct options *o, struct err *e)
{
    const char *first = NULL;

    for (size_t i = 0; i < o->listen.n_items && !first; i++)
        if (is_tcp(o->listen.items[i]))
            first = o->listen.items[i];
    if (!o->tls_cert != !o->tls_key)
        return err_set_kind(e, ERR_USAGE, "--tls-cert and --tls-key belong together: give both or neither");
    if (first && !o->tls_cert)
        return err_set_kind(e, ERR_USAGE,
                            "--listen %s needs --tls-cert FILE and --tls-key FILE: there is no TCP without "
                            "TLS",
                            first);
    if (!first && o->tls_cert)
        return err_set_kind(e, ERR_USAGE,
                            "--tls-cert and --tls-key are for --listen tcp:HOST:PORT, and there "
                            "is none");
    return 0;
}

static int resolve_listen(struct options *o, struct err *e)
{
    o->default_address = o->listen.n_items == 0;
    if (o->default_address)
        list_add(&o->listen, client_default_address());
    for (size_t i = 0; i < o->listen.n_items; i++)
        if (resolve_address(&o->listen.items[i], e) < 0)
            return -1;
    if (check_tls(o, e) < 0)
        return -1;
    find_link(o);
    return 0;
}

static int resolve_paths(struct options *o, struct err *e)
{
    if (make_absolute(&o->state_dir, e) < 0 || make_absolute(&o->worker, e) < 0 ||
        (o->mpirun && make_absolute(&o->mpirun, e) < 0) ||
        (o->launch_agent && make_absolute(&o->launch_agent, e) < 0) ||
        (o->link_ca && make_absolute(&o->link_ca, e) < 0) ||
        (o->tls_cert && make_absolute(&o->tls_cert, e) < 0) ||
        (o->tls_key && make_absolute(&o->tls_key, e) < 0))
        return -1;
    for (size_t i = 0; i < o->data_root.n_items; i++)
        if (!o->data_root.items[i][0])
            return err_set_kind(e, ERR_USAGE, "--data-root: '' found, a directory is accepted");
        else if (make_absolute(&o->data_root.items[i], e) < 0)
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
    if (o->link && !is_tcp(o->link))
        return err_set_kind(e, ERR_USAGE, "--link: '%s' found, tcp:HOST:PORT is accepted", o->link);
    if (!o->launcher)
        o->launcher = xstrdup("mpirun");
    if (strcmp(o->launcher, "mpirun") != 0 && strcmp(o->launcher, "fake") != 0)
        return err_set_kind(e, ERR_USAGE, "--launcher: '%s' found, mpirun or fake is accepted", o->launcher);
    if (log_level_parse(o->log_level ? o->log_level : "info", &o->level, e) < 0 ||
        log_format_parse(o->log_format ? o->log_format : "text", &o->format, e) < 0) {
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
    return resolve_paths(o, e) < 0 ? -1 : resolve_listen(o, e);
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
    for (int i = 0; i < N_ROWS; i++)
        if (rows[i].type == CONF_LIST && ((struct conf_list *)((char *)o + rows[i].offset))->n_items)
            conf_free(&rows[i], 1, &both);
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
                                            .retry_max_ms = 300000,

                                            .login_ms = 10000,
                                            .max_user_clients = 128,
                                            .max_jobs = 100000,
                                            .max_user_jobs = 10000,
                                            .max_spec_bytes = 256 << 10,
                                            .user_requests_per_s = 1000,
                                            .user_request_burst = 5000,
                                            .user_submits_per_s = 20,
                                            .user_submit_burst = 1000};
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
    o->argc = argc;
    o->argv = argv;
    return resolve(o, e);
}
