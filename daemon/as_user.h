/* as_user - for some file operations the daemon, when it is root, takes on the rights of somebody else.
 *
 * What lies in a user's directory is the user's to change at any moment: a name may have become a link to
 * what only root may read or write. Between enter and leave the kernel checks each access to a file with the
 * user's rights, so that the daemon can reach there what the user can and nothing more. Only this thread
 * changes, and only for files. A daemon that is not root, and root's own directories, need none of this:
 * nothing is done.
 */
#ifndef DAEMON_AS_USER_H
#define DAEMON_AS_USER_H

#include <stdbool.h>
#include "common/err.h"
#include "daemon/identity.h"

struct as_user {
    bool entered;
    gid_t *groups; /* our own, to come back to */
    int n_groups;
};

/* As this user, with all his groups. -1: nothing has changed. */
int as_user_enter(struct as_user *s, const struct identity *who, struct err *e);

/* As the owner of a directory, with its group alone: enough for what the daemon does in run directories. The
 * directory must lie in one that only we can change. */
int as_user_enter_owner(struct as_user *s, const char *dir, struct err *e);

/* Back to ourselves; also when nothing was entered. */
void as_user_leave(struct as_user *s);

#endif
