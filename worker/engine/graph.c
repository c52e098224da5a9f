/* graph - see graph.h. */
#include "worker/engine/graph.h"

#include <stdlib.h>
#include <string.h>

struct graph *graph_create(struct params *params, const struct row_split *rows, bool training)
{
    struct graph *g = xcalloc(1, sizeof *g);
    int64_t *counts = arena_alloc(&g->arena, (size_t)rows->size * sizeof *counts);

    memcpy(counts, rows->counts, (size_t)rows->size * sizeof *counts);
    g->params = params;
    g->rows = *rows;
    g->rows.counts = counts;
    g->training = training;
    return g;
}

void graph_destroy(struct graph *g)
{
    if (!g)
        return;
    arena_free(&g->arena);
    free(g->nodes);
    free(g);
}

/* A gather takes this rank's rows to all rows; only the graph knows how many those are. */
static int infer_gathered_rows(const struct graph *g, struct node *n, struct err *e)
{
    if (n->shape.n_dims < 1 || n->shape.dims[0] != g->rows.local)
        return err_set(e, "%lld rows, this rank's %lld rows of the mini-batch are accepted",
                       (long long)n->shape.dims[0], (long long)g->rows.local);
    n->shape.dims[0] = g->rows.total;
    return 0;
}

static int check_and_infer(const struct graph *g, struct node *n, struct err *e)
{
    const struct op_def *def = &op_table[n->op];

    if (n->n_inputs < def->min_inputs || n->n_inputs > def->max_inputs)
        return err_set(e, "%d inputs, %d to %d are accepted", n->n_inputs, def->min_inputs, def->max_inputs);
    n->bwd_reads = def->bwd_reads;
    if (def->infer(n, e) < 0)
        return -1;
    if (n->op == OP_ALL_GATHER && infer_gathered_rows(g, n, e) < 0)
        return -1;
    n->grad_dtype = n->op == OP_ALL_GATHER ? DTYPE_F32 : n->dtype;
    n->needs_grad = g->training && n->op == OP_PARAM && n->param->kind == PARAM_WEIGHT;
    for (int i = 0; i < n->n_inputs; i++)
        if ((def->grad_inputs >> i & 1) && n->in[i]->needs_grad)
            n->needs_grad = true;
    return 0;
}

static struct node *append(struct graph *g, struct node *n)
{
    if (g->n_nodes == g->cap_nodes) {
        g->cap_nodes = g->cap_nodes ? 2 * g->cap_nodes : 64;
        g->nodes = xrealloc(g->nodes, (size_t)g->cap_nodes * sizeof *g->nodes);
    }
    n->id = g->n_nodes;
    g->nodes[g->n_nodes++] = n;
    return n;
}

struct node *graph_add(struct graph *g, enum op op, const char *name, struct node *const *in, int n_inputs,
                       const union op_attr *attr, struct err *e)
{
    struct node *n = arena_alloc(&g->arena, sizeof *n);

    ASSERT(n_inputs <= OP_MAX_INPUTS);
    n->op = op;
    n->name = arena_strdup(&g->arena, name);
    n->n_inputs = n_inputs;
    for (int i = 0; i < n_inputs; i++) {
        ASSERT(in[i] && in[i]->id < g->n_nodes && g->nodes[in[i]->id] == in[i]);
        n->in[i] = in[i];
    }
    if (attr)
        n->attr = *attr;
    if (check_and_infer(g, n, e) < 0) {
        err_wrap(e, "%s (%s)", name, op_table[op].name);
        return NULL;
    }
    return append(g, n);
}

struct node *graph_param(struct graph *g, struct param *p, struct err *e)
{
    for (int i = 0; i < g->n_nodes; i++)
        if (g->nodes[i]->op == OP_PARAM && g->nodes[i]->param == p)
            return g->nodes[i];
    struct node *n = arena_alloc(&g->arena, sizeof *n);
    n->op = OP_PARAM;
    n->name = p->name;
    n->param = p;
    if (check_and_infer(g, n, e) < 0)
        return NULL;
    return append(g, n);
}
