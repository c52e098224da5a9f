/* inventory - see inventory.h. */
#include "daemon/inventory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ASIDE_FIRST_MS = 60 * 1000, ASIDE_MAX_MS = 60 * 60 * 1000, MAX_SLOTS = 65536 };

/* --- what is configured --- */

static uint64_t first_gpus(int64_t n)
{
    return n >= 64 ? UINT64_MAX : ((uint64_t)1 << n) - 1;
}

/* The driver makes a device file for each GPU. */
static int64_t count_local_gpus(void)
{
    char path[32];
    int64_t n = 0;

    while (n < PLACE_MAX_GPUS &&
           (snprintf(path, sizeof path, "/dev/nvidia%lld", (long long)n), access(path, F_OK) == 0))
        n++;
    return n;
}

static void add(struct inventory *inv, const char *name, int64_t slots, int64_t n_gpus)
{
    inv->v = xrealloc(inv->v, (inv->n + 1) * sizeof *inv->v);
    struct node *n = &inv->v[inv->n++];
    *n = (struct node){.slots = slots, .gpus = first_gpus(n_gpus)};
    snprintf(n->name, sizeof n->name, "%s", name);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(struct node *const *)a)->name, (*(struct node *const *)b)->name);
}

static int sort_names(struct inventory *inv, struct err *e)
{
    inv->by_name = xcalloc(inv->n, sizeof *inv->by_name);
    for (size_t i = 0; i < inv->n; i++)
        inv->by_name[i] = &inv->v[i];
    qsort(inv->by_name, inv->n, sizeof *inv->by_name, compare_names);
    for (size_t i = 1; i < inv->n; i++)
        if (strcmp(inv->by_name[i - 1]->name, inv->by_name[i]->name) == 0)
            return err_set_kind(e, ERR_USAGE, "--node: %s is there twice", inv->by_name[i]->name);
    return 0;
}

/* NAME:SLOTS or NAME:SLOTS:GPUS */
static int add_configured(struct inventory *inv, const char *text, struct err *e)
{
    char name[PLACE_MAX_NAME], *end;
    size_t len = strcspn(text, ":");
    long long slots = 0, gpus = 0;
    bool ok = text[len] == ':' && len < sizeof name;

    if (ok) {
        memcpy(name, text, len);
        name[len] = 0;
        slots = strtoll(text + len + 1, &end, 10);
        if (*end == ':' && end[1])
            gpus = strtoll(end + 1, &end, 10);
        ok = place_is_name(name) && !*end && end != text + len + 1 && slots >= 1 && slots <= MAX_SLOTS &&
             gpus >= 0 && gpus <= PLACE_MAX_GPUS;
    }
    if (!ok)
        return err_set_kind(
            e, ERR_USAGE,
            "--node: '%.200s' found, NAME:SLOTS or NAME:SLOTS:GPUS is accepted, with 1 to %d slots and at "
            "most %d GPUs",
            text, MAX_SLOTS, PLACE_MAX_GPUS);
    add(inv, name, slots, gpus);
    return 0;
}

static int on_stored(void *ctx, const struct store_node *s, struct err *e)
{
    struct node *n = inventory_find(ctx, s->name);

    (void)e;
    if (!n || !s->drained)
        return 0;
    n->drained = true;
    n->drained_ms = s->since_ms;
    snprintf(n->reason, sizeof n->reason, "%s", s->reason);
    return 0;
}

int inventory_init(struct inventory *inv, const struct options *o, const char *local, struct store *store,
                   struct err *e)
{
    *inv = (struct inventory){0};
    for (size_t i = 0; i < o->node.n_items; i++)
        if (add_configured(inv, o->node.items[i], e) < 0)
            return -1;
    if (!inv->n)
        add(inv, place_is_name(local) ? local : "localhost", o->slots, count_local_gpus());
    if (sort_names(inv, e) < 0)
        return -1;
    return store_each_node(store, on_stored, inv, e) < 0 ? -1 : 0;
}

void inventory_free(struct inventory *inv)
{
    free(inv->by_name);
    free(inv->v);
    *inv = (struct inventory){0};
}

struct node *inventory_find(const struct inventory *inv, const char *name)
{
    size_t lo = 0, hi = inv->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(inv->by_name[mid]->name, name);
        if (c == 0)
            return inv->by_name[mid];
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

/* --- in and out of service --- */

int inventory_drain(struct node *n, struct store *store, bool drained, const char *reason, int64_t now_ms,
                    struct err *e)
{
    struct store_node s = {.name = n->name, .reason = reason, .drained = drained, .since_ms = now_ms};

    if (store_set_node(store, &s, e) < 0)
        return -1;
    n->drained = drained;
    n->drained_ms = now_ms;
    snprintf(n->reason, sizeof n->reason, "%s", reason);
    if (!drained)
        inventory_good(n);
    return 0;
}

void inventory_fault(struct node *n, const char *reason, int64_t now_ms)
{
    int64_t ms = ASIDE_FIRST_MS;

    for (int64_t i = 0; i < n->n_faults && ms < ASIDE_MAX_MS; i++)
        ms *= 2;
    n->n_faults++;
    n->aside_until_ms = now_ms + (ms < ASIDE_MAX_MS ? ms : ASIDE_MAX_MS);
    if (!n->drained)
        snprintf(n->reason, sizeof n->reason, "%s", reason);
}

void inventory_good(struct node *n)
{
    n->n_faults = 0;
    n->aside_until_ms = 0;
    if (!n->drained)
        n->reason[0] = 0;
}

bool inventory_usable(const struct node *n, int64_t now_ms)
{
    return !n->drained && n->aside_until_ms <= now_ms;
}

const char *inventory_health(const struct node *n, int64_t now_ms)
{
    return n->drained ? "drained" : inventory_usable(n, now_ms) ? "up" : "set aside";
}

/* --- what is in use --- */

void inventory_use(const struct inventory *inv, const struct jobs *jobs, struct node_use *use)
{
    for (size_t i = 0; i < jobs->n_active; i++) {
        const struct place *p = &jobs->active[i]->place;
        for (int64_t k = 0; k < p->n; k++) {
            const struct node *n = inventory_find(inv, p->v[k].node);
            if (!n)
                continue;
            use[n - inv->v].ranks += p->v[k].ranks;
            use[n - inv->v].gpus |= p->v[k].gpus;
        }
    }
}

int64_t inventory_slots(const struct inventory *inv)
{
    int64_t n = 0;

    for (size_t i = 0; i < inv->n; i++)
        n += inv->v[i].slots;
    return n;
}

int64_t inventory_capacity(const struct inventory *inv, int64_t gpus_per_rank)
{
    int64_t n = 0;

    for (size_t i = 0; i < inv->n; i++) {
        int64_t ranks = inv->v[i].slots;
        if (gpus_per_rank > 0 && __builtin_popcountll(inv->v[i].gpus) / gpus_per_rank < ranks)
            ranks = __builtin_popcountll(inv->v[i].gpus) / gpus_per_rank;
        n += ranks;
    }
    return n;
}
