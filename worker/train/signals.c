/* signals - see signals.h. */
#include "worker/train/signals.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

static const struct {
    int number;
    unsigned meaning;
    const char *name;
} table[] = {
    {SIGTERM, SIGNALS_STOP, "SIGTERM"},
    {SIGINT, SIGNALS_STOP, "SIGINT"},
    {SIGUSR1, SIGNALS_STOP, "SIGUSR1"},
    {SIGUSR2, SIGNALS_CHECKPOINT, "SIGUSR2"},
};

enum { N_TABLE = sizeof table / sizeof *table };

int signals_open(struct err *e)
{
    sigset_t set;

    sigemptyset(&set);
    for (int i = 0; i < N_TABLE; i++)
        sigaddset(&set, table[i].number);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return err_set_errno(e, "sigprocmask");
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    return fd < 0 ? err_set_errno(e, "signalfd") : fd;
}

unsigned signals_take(int fd, int *stop_signal)
{
    struct signalfd_siginfo info;
    unsigned got = 0;

    while (fd >= 0 && read(fd, &info, sizeof info) == sizeof info)
        for (int i = 0; i < N_TABLE; i++)
            if (table[i].number == (int)info.ssi_signo) {
                got |= table[i].meaning;
                if (table[i].meaning & SIGNALS_STOP)
                    *stop_signal = table[i].number;
            }
    return got;
}

const char *signals_name(int signal_number, char out[32])
{
    snprintf(out, 32, "signal %d", signal_number);
    for (int i = 0; i < N_TABLE; i++)
        if (table[i].number == signal_number)
            snprintf(out, 32, "%s", table[i].name);
    return out;
}
