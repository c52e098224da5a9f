/* access - see access.h. */
#include "daemon/access.h"
#include "daemon/identity.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct entry {
    enum role role;
    bool is_group;
    int64_t id;
};

struct access {
    struct entry *v;
    size_t n;
};

static const char *const names[] = {
    [ROLE_ANY] = "none",          [ROLE_VIEWER] = "viewer", [ROLE_USER] = "user",
    [ROLE_OPERATOR] = "operator", [ROLE_ADMIN] = "admin",   [ROLE_WORKER] = "worker",
};

const char *role_name(enum role r)
{
    return names[r];
}

int role_parse(const char *name, enum role *out, struct err *e)
{
    for (int r = ROLE_VIEWER; r <= ROLE_ADMIN; r++)
        if (strcmp(name, names[r]) == 0) {
            *out = (enum role)r;
            return 0;
        }
    return err_set(e, "'%.64s' found, viewer, user, operator or admin is accepted", name);
}

bool role_sees_all(enum role r)
{
    return r == ROLE_VIEWER || role_touches_all(r);
}

bool role_touches_all(enum role r)
{
    return r == ROLE_OPERATOR || r == ROLE_ADMIN;
}

static int add_list(struct access *a, enum role role, const struct conf_list *list, struct err *e)
{
    for (size_t i = 0; i < list->n_items; i++) {
        const char *text = list->items[i];
        struct entry en = {.role = role, .is_group = text[0] == '@'};
        int rc = en.is_group ? identity_find_group(text + 1, &en.id, e) : identity_find_user(text, &en.id, e);
        if (rc < 0) {
            err_wrap(e, "--%ss", names[role]);
            if (e)
                e->kind = ERR_USAGE;
            return -1;
        }
        a->v = xrealloc(a->v, (a->n + 1) * sizeof *a->v);
        a->v[a->n++] = en;
    }
    return 0;
}

struct access *access_create(const struct options *o, struct err *e)
{
    struct access *a = xcalloc(1, sizeof *a);

    if (add_list(a, ROLE_VIEWER, &o->viewers, e) == 0 && add_list(a, ROLE_OPERATOR, &o->operators, e) == 0 &&
        add_list(a, ROLE_ADMIN, &o->admins, e) == 0)
        return a;
    access_destroy(a);
    return NULL;
}

void access_destroy(struct access *a)
{
    if (!a)
        return;
    free(a->v);
    free(a);
}

static bool names_peer(const struct entry *en, const struct access_peer *peer)
{
    if (!en->is_group)
        return en->id == peer->uid;
    bool found = en->id == peer->gid;
    for (int i = 0; i < peer->n_groups && !found; i++)
        found = (int64_t)peer->groups[i] == en->id;
    return found;
}

enum role access_role(const struct access *a, const struct access_peer *peer)
{
    enum role best = ROLE_ANY;

    if (peer->uid == 0 || peer->uid == (int64_t)getuid())
        return ROLE_ADMIN;
    for (size_t i = 0; i < a->n; i++)
        if (a->v[i].role > best && names_peer(&a->v[i], peer))
            best = a->v[i].role;
    return best == ROLE_ANY ? ROLE_USER : best;
}
