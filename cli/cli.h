/* cli - what the commands of bfctl share: options, the command table's row, exit statuses.
 *
 * A command is a function that returns an exit status, or -1 with an error from which main makes one.
 * Standard output carries the answer (with --json one JSON document, or one a line for streams); standard
 * error carries messages for people.
 */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include "common/conf.h"
#include "common/err.h"

enum cli_exit {
    EXIT_DONE = 0,
    EXIT_JOB_FAILED = 1, /* the job, or the request */
    EXIT_USAGE = 2,      /* or an invalid spec */
    EXIT_NO_COORDINATOR = 3,
    EXIT_INTERRUPTED = 130,
};

/* Milliseconds that a request may take before the coordinator counts as gone. */
enum { CLI_CALL_MS = 30000 };

/* One struct for all commands; each command's table says which it takes. */
struct cli_options {
    bool help, version, json;
    char *address, *ca;
    struct conf_list set;   /* run, submit, validate, estimate */
    bool watch;             /* submit */
    char *idempotency_key;  /* submit */
    char *state;            /* list */
    char *user;             /* list, token */
    char *role, *expires;   /* token */
    char *note;             /* token */
    int64_t limit;          /* list; 0 = all */
    bool follow;            /* logs */
    char *rank;             /* logs; a number or "launcher" */
    int64_t tail;           /* logs; -1 = not given */
    struct conf_list names; /* metrics */
    int64_t since_step;     /* metrics; -1 = not given */
    bool plot;              /* metrics */
    bool cancel;            /* shutdown */
    bool array;             /* cancel, pause, resume, requeue */
    char *reason;           /* node drain */
    char *state_dir;        /* run */
    char *ranks;            /* verify, estimate; "1,2,4" */
    int64_t steps;          /* verify */
    char *tolerance;        /* verify; a number */
    char *keep;             /* verify */
    char *machine;          /* estimate */
    int64_t rows;           /* estimate; rows of each rank, 0 = the spec's global mini-batch */
};

struct cli {
    struct cli_options opts;
    char **operands;
    int n_operands;
};

struct cli_command {
    const char *name;
    const char *operands; /* "ID", for --help */
    int min_operands, max_operands;
    const struct conf_option *rows;
    size_t n_rows;
    const char *summary;                        /* one line */
    const char *details;                        /* more for --help, or NULL */
    int (*run)(struct cli *cli, struct err *e); /* NULL: not available in this version */
};

/* The tables of the command files. Each ends with a NULL name. */
extern const struct cli_command cmd_job_commands[];
extern const struct cli_command cmd_data_commands[];
extern const struct cli_command cmd_daemon_commands[];
extern const struct cli_command cmd_run_commands[];
extern const struct cli_command cmd_verify_commands[];
extern const struct cli_command cmd_diff_commands[];
extern const struct cli_command cmd_estimate_commands[];
extern const struct cli_command cmd_token_commands[];

/* Options that several files use. */
#define CLI_OPTION_SET                                                                                       \
    {                                                                                                        \
        "set", 0, CONF_LIST, offsetof(struct cli_options, set), "KEY=VALUE", NULL, 0, 0,                     \
            "override a key of the spec by its dotted path; may be repeated"                                 \
    }

/* The address to use: --address or the default. malloc'ed. */
char *cli_address(const struct cli *cli);

/* Parses operand i as a job id. */
int cli_job_id(const struct cli *cli, int i, int64_t *id, struct err *e);

/* Connects, calls one method, closes. Takes ownership of params; the caller owns the result. */
cJSON *cli_call(struct cli *cli, const char *method, cJSON *params, struct err *e);

/* {"id": operand 0} or NULL with an error. */
cJSON *cli_id_params(const struct cli *cli, struct err *e);

#endif
