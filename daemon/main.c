/* main - batchformerd: options, then the daemon; the only place that exits. */
#include "daemon/check.h"
#include "daemon/daemon.h"

#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct err e = ERR_INIT;
    struct options o;
    int status = 0;

    if (options_read(&o, argc, argv, &e) < 0)
        status = 2;
    else if (o.help)
        options_print_help(STDOUT_FILENO);
    else if (o.version)
        printf("batchformerd %s\n", BF_VERSION);
    else if (o.check)
        status = check_state(o.state_dir, stdout, &e) == 0 ? 0 : 1;
    else if (daemon_run(&o, &e) < 0)
        status = e.kind == ERR_USAGE ? 2 : 1;
    if (*e.msg && o.format == LOG_JSON)
        log_error((&(struct log){.fd = STDERR_FILENO, .component = "batchformerd", .format = LOG_JSON}), "%s",
                  e.msg);
    else if (*e.msg)
        fprintf(stderr, "batchformerd: %s\n", e.msg);
    options_free(&o);
    return status;
}
