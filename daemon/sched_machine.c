/* sched_machine - how large a gang empty nodes could hold: for each number of GPUs per rank, how many nodes
 * have room for x ranks or more. Tables are made when they are first asked for. */
#include "common/err.h"
#include "daemon/sched_impl.h"

#include <stdlib.h>

struct table {
    int64_t sum;     /* ranks */
    int32_t *n_hold; /* [1 .. max_slots] nodes with room for so many ranks */
};

struct machine {
    const struct sched_node *nodes;
    size_t n_nodes;
    int32_t max_slots, max_gpus;
    struct table *tables[2]; /* of all nodes, of usable ones; by GPUs per rank */
};

struct machine *machine_create(const struct sched_node *nodes, size_t n_nodes)
{
    struct machine *m = xcalloc(1, sizeof *m);

    m->nodes = nodes;
    m->n_nodes = n_nodes;
    for (size_t i = 0; i < n_nodes; i++) {
        ASSERT(nodes[i].slots >= 0 && nodes[i].gpus >= 0);
        m->max_slots = nodes[i].slots > m->max_slots ? nodes[i].slots : m->max_slots;
        m->max_gpus = nodes[i].gpus > m->max_gpus ? nodes[i].gpus : m->max_gpus;
    }
    for (int k = 0; k < 2; k++)
        m->tables[k] = xcalloc((size_t)m->max_gpus + 1, sizeof *m->tables[k]);
    return m;
}

void machine_destroy(struct machine *m)
{
    for (int k = 0; k < 2; k++) {
        for (int32_t g = 0; g <= m->max_gpus; g++)
            free(m->tables[k][g].n_hold);
        free(m->tables[k]);
    }
    free(m);
}

static void fill(const struct machine *m, struct table *t, int32_t gpus_per_rank, bool usable)
{
    t->n_hold = xcalloc((size_t)m->max_slots + 2, sizeof *t->n_hold);
    for (size_t i = 0; i < m->n_nodes; i++) {
        const struct sched_node *n = &m->nodes[i];
        int32_t room = n->slots;
        if (usable && !n->usable)
            continue;
        if (gpus_per_rank && n->gpus / gpus_per_rank < room)
            room = n->gpus / gpus_per_rank;
        t->sum += room;
        t->n_hold[room]++;
    }
    for (int32_t x = m->max_slots; x > 0; x--)
        t->n_hold[x] += t->n_hold[x + 1];
}

int32_t machine_capacity(struct machine *m, const struct gang *g, bool usable)
{
    if (g->gpus_per_rank > m->max_gpus || g->nodes > g->ranks)
        return 0;
    struct table *t = &m->tables[usable][g->gpus_per_rank];
    if (!t->n_hold)
        fill(m, t, g->gpus_per_rank, usable);
    int64_t ranks = t->sum;
    if (g->nodes) {
        int32_t each = m->max_slots;
        while (each && t->n_hold[each] < g->nodes)
            each--;
        /* Fewer than g->nodes nodes have room for one more. */
        ranks = each ? (int64_t)each * g->nodes + t->n_hold[each + 1] : 0;
    }
    return (int32_t)(ranks < g->ranks ? ranks : g->ranks);
}
