/* back_off - how a wait that polls gives the core to others: it polls, then yields, then sleeps 20 µs at a
 * time. A lone pair of ranks sees no delay, and oversubscribed ranks leave the cores to those who compute. */
#ifndef COMM_BACK_OFF_H
#define COMM_BACK_OFF_H

#include <limits.h>
#include <sched.h>
#include <time.h>

/* Between polls; n_polls counts them from 0. */
static inline void back_off(int n_polls)
{
    static const struct timespec nap = {0, 20000};

    if (n_polls < 200)
        return;
    if (n_polls < 2000)
        sched_yield();
    else
        nanosleep(&nap, NULL);
}

/* n_polls + 1, or, before that overflows, a number for which back_off() still sleeps. */
static inline int back_off_next(int n_polls)
{
    return n_polls < INT_MAX ? n_polls + 1 : 2000;
}

#endif
