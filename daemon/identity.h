/* identity - users of this machine: their names, numbers and groups. */
#ifndef DAEMON_IDENTITY_H
#define DAEMON_IDENTITY_H

#include <stdint.h>
#include <sys/types.h>
#include "common/err.h"

/* A user as whom something can be done. */
struct identity {
    uid_t uid;
    gid_t gid;
    gid_t *groups; /* all of the user's, gid among them; owned */
    int n_groups;
    char *name, *home; /* owned */
};

/* -1 when no user of this machine has the number: nothing is done as somebody who does not exist. */
int identity_load(int64_t uid, struct identity *out, struct err *e);
void identity_free(struct identity *who);

/* The user's name, or the number where it has none. */
void identity_name(int64_t uid, char *out, size_t size);

/* A user's number from a name, or from a number in decimal (which need not have a name). */
int identity_find_user(const char *text, int64_t *uid, struct err *e);

/* The same for a group. */
int identity_find_group(const char *text, int64_t *gid, struct err *e);

#endif
