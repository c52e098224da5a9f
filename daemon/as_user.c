/* as_user - see as_user.h.
 *
 * The groups are set by the system call itself: the C library's function would set those of all threads.
 */
#include "daemon/as_user.h"

#include <stdlib.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool set_groups(int n, const gid_t *groups)
{
    return syscall(SYS_setgroups, (size_t)n, groups) == 0;
}

/* They return the number of before, whether or not they changed it; an impossible one changes nothing. */
static bool set_ids(uid_t uid, gid_t gid)
{
    setfsgid(gid);
    setfsuid(uid);
    return (gid_t)setfsgid((gid_t)-1) == gid && (uid_t)setfsuid((uid_t)-1) == uid;
}

static int enter(struct as_user *s, uid_t uid, gid_t gid, const gid_t *groups, int n_groups, struct err *e)
{
    *s = (struct as_user){0};
    if (geteuid() != 0 || uid == 0)
        return 0;
    int n = getgroups(0, NULL);
    s->groups = xcalloc((size_t)(n > 0 ? n : 0) + 1, sizeof *s->groups);
    s->n_groups = n > 0 ? getgroups(n, s->groups) : 0;
    s->entered = true;
    if (s->n_groups >= 0 && set_groups(n_groups, groups) && set_ids(uid, gid))
        return 0;
    err_set(e, "the rights of user %lu cannot be taken on: this root may not do so", (unsigned long)uid);
    as_user_leave(s);
    return -1;
}

int as_user_enter(struct as_user *s, const struct identity *who, struct err *e)
{
    return enter(s, who->uid, who->gid, who->groups, who->n_groups, e);
}

int as_user_enter_owner(struct as_user *s, const char *dir, struct err *e)
{
    struct stat st;

    *s = (struct as_user){0};
    if (geteuid() != 0)
        return 0;
    if (lstat(dir, &st) < 0)
        return err_set_errno(e, "%s", dir);
    return enter(s, st.st_uid, st.st_gid, &st.st_gid, 1, e);
}

void as_user_leave(struct as_user *s)
{
    if (!s->entered)
        return;
    /* What we were we may be again; if not, nothing that follows would be safe. */
    bool back = set_ids(geteuid(), getegid()) && set_groups(s->n_groups, s->groups);
    ASSERT(back);
    free(s->groups);
    *s = (struct as_user){0};
}
