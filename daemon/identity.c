/* identity - see identity.h. The databases of users and groups may be remote; every look-up here can wait for
 * them, so none is made for each message. */
#include "daemon/identity.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ENTRY_BYTES = 16384, MAX_GROUPS = 65536 };

static const int64_t max_id = 0xfffffffe; /* one more stands for "no change" */

void identity_name(int64_t uid, char *out, size_t size)
{
    struct passwd pw, *found = NULL;
    char buf[ENTRY_BYTES];

    if (getpwuid_r((uid_t)uid, &pw, buf, sizeof buf, &found) == 0 && found)
        snprintf(out, size, "%s", found->pw_name);
    else
        snprintf(out, size, "%lld", (long long)uid);
}

static int load_groups(struct identity *who, struct err *e)
{
    int n = 64;

    for (;;) {
        who->groups = xrealloc(who->groups, (size_t)n * sizeof *who->groups);
        who->n_groups = n;
        if (getgrouplist(who->name, who->gid, who->groups, &who->n_groups) >= 0)
            return 0;
        if (who->n_groups <= n || who->n_groups > MAX_GROUPS)
            return err_set(e, "the groups of user %s cannot be read", who->name);
        n = who->n_groups;
    }
}

int identity_load(int64_t uid, struct identity *out, struct err *e)
{
    struct passwd pw, *found = NULL;
    char buf[ENTRY_BYTES];
    int rc = getpwuid_r((uid_t)uid, &pw, buf, sizeof buf, &found);

    if (rc)
        return err_set(e, "user %lld: %s", (long long)uid, strerror(rc));
    if (!found)
        return err_set(e, "no user of this machine has the number %lld", (long long)uid);
    *out = (struct identity){.uid = pw.pw_uid,
                             .gid = pw.pw_gid,
                             .name = xstrdup(pw.pw_name),
                             .home = xstrdup(pw.pw_dir && *pw.pw_dir ? pw.pw_dir : "/")};
    if (load_groups(out, e) == 0)
        return 0;
    identity_free(out);
    return -1;
}

void identity_free(struct identity *who)
{
    free(who->groups);
    free(who->name);
    free(who->home);
    *who = (struct identity){0};
}

static bool parse_id(const char *text, int64_t *id)
{
    size_t n = strspn(text, "0123456789");

    if (!n || text[n] || n > 10)
        return false;
    *id = strtoll(text, NULL, 10);
    return *id <= max_id;
}

int identity_find_user(const char *text, int64_t *uid, struct err *e)
{
    struct passwd pw, *found = NULL;
    char buf[ENTRY_BYTES];

    if (parse_id(text, uid))
        return 0;
    if (getpwnam_r(text, &pw, buf, sizeof buf, &found) != 0 || !found)
        return err_set(e, "'%s' found, the name or number of a user of this machine is accepted", text);
    *uid = pw.pw_uid;
    return 0;
}

int identity_find_group(const char *text, int64_t *gid, struct err *e)
{
    struct group gr, *found = NULL;
    char buf[ENTRY_BYTES];

    if (parse_id(text, gid))
        return 0;
    if (getgrnam_r(text, &gr, buf, sizeof buf, &found) != 0 || !found)
        return err_set(e, "'%s' found, the name or number of a group of this machine is accepted", text);
    *gid = gr.gr_gid;
    return 0;
}
