/* options - see options.h. */
#include "worker/options.h"

#include <stddef.h>
#include <stdio.h>
#include <unistd.h>
#include "common/conf.h"

static const struct conf_option rows[] = {
    {"job", 'j', CONF_STR, offsetof(struct options, job), "FILE", NULL, 0, 0, "the job spec"},
    {"run-dir", 'd', CONF_STR, offsetof(struct options, run_dir), "DIR", NULL, 0, 0,
     "where the run is written"},
    {"resume", 'r', CONF_FLAG, offsetof(struct options, resume), NULL, NULL, 0, 0,
     "go on from the newest checkpoint in DIR, or start when there is none"},
    {"max-steps", 0, CONF_INT, offsetof(struct options, max_steps), "N", NULL, 1, INT64_C(1) << 53,
     "stop after N steps of the whole run, with a checkpoint"},
    {"dump-step", 0, CONF_STR, offsetof(struct options, dump_step), "N:FILE", NULL, 0, 0,
     "write loss, parameters and gradients of step N as safetensors"},
    {"probe", 0, CONF_FLAG, offsetof(struct options, probe), NULL, NULL, 0, 0,
     "print what this machine offers, as JSON"},
    {"version", 0, CONF_FLAG, offsetof(struct options, version), NULL, NULL, 0, 0, "print the version"},
    {"help", 'h', CONF_FLAG, offsetof(struct options, help), NULL, NULL, 0, 0, "print this"},
};

enum { N_ROWS = sizeof rows / sizeof *rows };

static int check(struct options *o, const struct conf_operands *operands, struct err *e)
{
    if (operands->n > 0)
        return err_set_kind(e, ERR_USAGE, "'%s' found, only options are accepted", operands->v[0]);
    if (o->help || o->version || o->probe)
        return 0;
    if (!o->job || !o->run_dir)
        return err_set_kind(e, ERR_USAGE, "--%s is missing (see --help)", o->job ? "run-dir" : "job");
    return o->dump_step ? dump_parse(o->dump_step, &o->dump, e) : 0;
}

int options_parse(struct options *o, int argc, char **argv, struct err *e)
{
    struct conf_operands operands;

    *o = (struct options){0};
    if (conf_from_args(rows, N_ROWS, o, argc, argv, &operands, e) < 0)
        return -1;
    return check(o, &operands, e);
}

void options_free(struct options *o)
{
    conf_free(rows, N_ROWS, o);
}

void options_print_help(void)
{
    printf(
        "batchformer-worker --job FILE --run-dir DIR [options] | --probe | --version\n"
        "One rank of one training job. Alone it trains by itself; mpirun -n R (or srun -n R) starts R ranks "
        "that\n"
        "share the work and compute the same function.\n\n");
    fflush(stdout);
    conf_print_help(rows, N_ROWS, STDOUT_FILENO);
    printf("\n"
           "Signals: SIGTERM, SIGINT, SIGUSR1 - checkpoint and stop; SIGUSR2 - checkpoint and go on. mpirun "
           "kills its\n"
           "ranks soon after SIGTERM but forwards SIGUSR1, so stop a run under mpirun with SIGUSR1.\n"
           "Exit status: 0 done (or stopped at --max-steps); 1 failed; 2 bad command line or spec; 4 another "
           "rank was\n"
           "lost; 130 stopped on request.\n");
}
