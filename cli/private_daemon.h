/* private_daemon - a coordinator of our own for one `bfctl run`. */
#ifndef CLI_PRIVATE_DAEMON_H
#define CLI_PRIVATE_DAEMON_H

#include <stdbool.h>
#include "common/err.h"

struct private_daemon;

/* Starts batchformerd (found beside this program) on state_dir, which is made if missing, with that many
 * slots. Returns once it answers; NULL with the reason, its log's last line included, when it does not. */
struct private_daemon *private_daemon_start(const char *state_dir, int slots, struct err *e);

const char *private_daemon_address(const struct private_daemon *d);
const char *private_daemon_log(const struct private_daemon *d); /* path */

/* Ends the lifeline, on which the daemon stops what runs and exits. With `wait` it returns once that has
 * happened, and kills a daemon that hangs; without, at once. Frees d; NULL is legal. */
void private_daemon_stop(struct private_daemon *d, bool wait);

#endif
