/* confine - see confine.h.
 *
 * Where a path leads is asked of the kernel in one step: it is opened (O_PATH: nothing is read, a pipe does
 * not wait) and the descriptor's own name read. Following the links one by one could be led astray by one
 * that changes meanwhile. Links like /proc/self/cwd, which would lead the worker elsewhere than us, are
 * refused.
 *
 * What lies outside of the roots by its text alone is refused without a look at the disk, so that nobody
 * learns from the answer what exists there.
 */
#include "daemon/confine.h"
#include "common/json.h"
#include "daemon/as_user.h"
#include "proto/jobspec.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_PATHS = 64, MAX_LIST_BYTES = 300 };

/* --- where paths lead --- */

/* Is path the directory, or below it? */
static bool is_under(const char *path, const char *dir)
{
    size_t n = strlen(dir);

    while (n > 1 && dir[n - 1] == '/')
        n--;
    if (n == 1 && dir[0] == '/')
        return true;
    return strncmp(path, dir, n) == 0 && (path[n] == '/' || path[n] == 0);
}

static bool has_dots(const char *path)
{
    for (const char *p = path; (p = strstr(p, "..")); p += 2)
        if ((p == path || p[-1] == '/') && (p[2] == '/' || p[2] == 0))
            return true;
    return false;
}

static int open_path(const char *path)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_MAGICLINKS};

    return (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
}

/* The name of what a descriptor is open at; -1 when it has none (any more). */
static int name_of(int fd, char out[PATH_MAX])
{
    char link[64];

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, PATH_MAX - 1);
    if (n <= 0)
        return -1;
    out[n] = 0;
    return out[0] == '/' && !strstr(out, " (deleted)") ? 0 : -1;
}

/* The place that a path leads to, with the rights of `who` (NULL: ours). -1 with errno. */
static int resolve(const char *path, const struct identity *who, char out[PATH_MAX])
{
    struct as_user as = {0};

    if (who && as_user_enter(&as, who, NULL) < 0) {
        errno = EPERM;
        return -1;
    }
    int fd = open_path(path), why = errno;
    as_user_leave(&as);
    if (fd < 0) {
        errno = why;
        return -1;
    }
    int rc = name_of(fd, out);
    close(fd);
    if (rc < 0)
        errno = ENOENT;
    return rc;
}

/* --- one path --- */

static void list_roots(const struct conf_list *roots, char out[MAX_LIST_BYTES])
{
    size_t n = 0;

    out[0] = 0;
    for (size_t i = 0; i < roots->n_items && n < MAX_LIST_BYTES; i++)
        n += (size_t)snprintf(out + n, MAX_LIST_BYTES - n, "%s%s", i ? " or " : "", roots->items[i]);
}

static int refuse(const struct conf_list *roots, const char *path, const char *why, struct err *e)
{
    char list[MAX_LIST_BYTES];

    list_roots(roots, list);
    return err_set(e, "\"%.200s\" found, a path under %s is accepted (--data-root)%s%s", path, list,
                   *why ? ": " : "", why);
}

/* Under any root, as it is written (`by_text`) or as both lead. */
static bool lies_in(const struct conf_list *roots, const char *path, bool by_text)
{
    char root[PATH_MAX];
    bool found = false;

    for (size_t i = 0; i < roots->n_items && !found; i++) {
        const char *text = roots->items[i];
        bool led = resolve(text, NULL, root) == 0;
        found = (led && is_under(path, root)) || (by_text && is_under(path, text));
    }
    return found;
}

static int check_as(const struct conf_list *roots, const char *path, const struct identity *who,
                    struct err *e)
{
    char place[PATH_MAX], why[128];

    if (resolve(path, who, place) < 0) {
        snprintf(why, sizeof why, "this one leads nowhere (%s)", strerror(errno));
        return refuse(roots, path, why, e);
    }
    return lies_in(roots, place, false) ? 0 : refuse(roots, path, "this one leads elsewhere by a link", e);
}

int confine_path(const struct conf_list *roots, int64_t uid, const char *path, struct err *e)
{
    struct identity who;

    if (path[0] != '/')
        return refuse(roots, path, "a relative one is not", e);
    if (has_dots(path))
        return refuse(roots, path, "one with \"..\" is not", e);
    if (!lies_in(roots, path, true))
        return refuse(roots, path, "", e);
    if (geteuid() != 0 || uid == 0)
        return check_as(roots, path, NULL, e);
    if (identity_load(uid, &who, e) < 0)
        return -1;
    int rc = check_as(roots, path, &who, e);
    identity_free(&who);
    return rc;
}

/* --- a spec --- */

static bool is_free(const struct options *o, int64_t uid)
{
    return !o->data_root.n_items && (geteuid() == 0 || uid == 0 || uid == (int64_t)geteuid());
}

static int check_path(const struct options *o, int64_t uid, const char *path, struct err *e)
{
    if (o->data_root.n_items)
        return confine_path(&o->data_root, uid, path, e);
    return err_set(e,
                   "\"%.200s\" found, but jobs of other users may name no path here: they would read it with "
                   "the rights of the coordinator's user, and no --data-root says what they may read",
                   path);
}

cJSON *confine_find(const struct options *o, int64_t uid, const cJSON *resolved)
{
    struct jobspec_path paths[MAX_PATHS];
    int n = is_free(o, uid) ? 0 : jobspec_paths(resolved, paths, MAX_PATHS);
    cJSON *findings = NULL;

    ASSERT(n <= MAX_PATHS);
    for (int i = 0; i < n; i++) {
        struct err e = ERR_INIT;
        if (check_path(o, uid, paths[i].value, &e) == 0)
            continue;
        if (!findings)
            findings = cJSON_CreateArray();
        cJSON *v = cJSON_CreateObject();
        cJSON_AddStringToObject(v, "pointer", paths[i].pointer);
        cJSON_AddStringToObject(v, "message", e.msg);
        cJSON_AddItemToArray(findings, v);
    }
    return findings;
}

bool confine_same(const cJSON *a, const cJSON *b)
{
    struct jobspec_path pa[MAX_PATHS], pb[MAX_PATHS];
    int n = jobspec_paths(a, pa, MAX_PATHS);

    ASSERT(n <= MAX_PATHS);
    if (jobspec_paths(b, pb, MAX_PATHS) != n)
        return false;
    for (int i = 0; i < n; i++)
        if (strcmp(pa[i].pointer, pb[i].pointer) != 0 || strcmp(pa[i].value, pb[i].value) != 0)
            return false;
    return true;
}

int confine_check(const struct options *o, int64_t uid, const char *spec, struct err *e)
{
    cJSON *doc = is_free(o, uid) ? NULL : json_parse(spec, strlen(spec), e), *findings;
    int rc = 0;

    if (!doc)
        return is_free(o, uid) ? 0 : -1;
    findings = confine_find(o, uid, doc);
    if (findings)
        rc = err_set(e, "%s: %s", json_find(findings->child, "pointer")->valuestring,
                     json_find(findings->child, "message")->valuestring);
    cJSON_Delete(findings);
    cJSON_Delete(doc);
    return rc;
}
