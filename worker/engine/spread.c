/* spread - see spread.h. */
#include "worker/engine/spread.h"

static int refuse(const struct node *n, const char *what, struct err *e)
{
    return err_set(e, "%s: %s, which the bitwise mode cannot do", n->name, what);
}

bool spread_over_rows(const struct node *n, const struct spread *spread)
{
    for (int k = 0; k < n->n_inputs; k++)
        if (spread[n->in[k]->id].kind == SPREAD_ROWS)
            return true;
    return false;
}

static bool reads(const struct node *n, const struct spread *spread, enum spread_kind kind)
{
    for (int k = 0; k < n->n_inputs; k++)
        if (spread[n->in[k]->id].kind == kind)
            return true;
    return false;
}

static int of_input(const struct graph *g, const struct node *n, struct spread *out, struct err *e)
{
    if (n->shape.n_dims < 1 || n->shape.dims[0] != g->rows.local)
        return refuse(n, "an input that is not rows of the mini-batch", e);
    *out = (struct spread){SPREAD_ROWS, 1};
    return 0;
}

static int of_collective(const struct node *n, const struct spread *in, struct spread *out, struct err *e)
{
    if (n->op == OP_ALL_GATHER) {
        if (in->kind != SPREAD_ROWS || in->streams != 1)
            return refuse(n, "gathers what is not this rank's rows", e);
        *out = (struct spread){SPREAD_ALL, 0};
        return 0;
    }
    if (in->kind != SPREAD_PARTIAL)
        return refuse(n, "sums over ranks what is not a sum over rows", e);
    *out = (struct spread){SPREAD_SHARED, 0};
    return 0;
}

/* Rows [from, to) of a value with streams: whole streams. */
static int of_slice(const struct graph *g, const struct node *n, struct spread *out, struct err *e)
{
    int64_t from = n->attr.slice.from, rows = n->attr.slice.to - from;

    if (rows == 0 || from % g->rows.local || rows % g->rows.local)
        return refuse(n, "takes some of this rank's rows", e);
    *out = (struct spread){SPREAD_ROWS, (int)(rows / g->rows.local)};
    return 0;
}

static int of_rows(const struct graph *g, const struct node *n, const struct spread *spread,
                   struct spread *out, struct err *e)
{
    int streams = 0, sum = 0;

    if (n->op == OP_ATTENTION && spread[n->in[1]->id].kind == SPREAD_ROWS)
        return refuse(n, "attends to one rank's rows alone", e);
    for (int k = 0; k < n->n_inputs; k++) {
        const struct spread *in = &spread[n->in[k]->id];
        if (in->kind != SPREAD_ROWS) {
            if (n->op == OP_CONCAT_ROWS)
                return refuse(n, "mixes this rank's rows with others", e);
            continue;
        }
        sum += in->streams;
        if (streams && streams != in->streams && n->op != OP_CONCAT_ROWS)
            return refuse(n, "reads different numbers of rows", e);
        streams = in->streams;
    }
    if (n->op == OP_SLICE_ROWS)
        return of_slice(g, n, out, e);
    if (op_table[n->op].flags & OP_SUMS_ROWS)
        *out = (struct spread){SPREAD_PARTIAL, 0};
    else
        *out = (struct spread){SPREAD_ROWS, n->op == OP_CONCAT_ROWS ? sum : streams};
    return 0;
}

static int of_node(const struct graph *g, const struct node *n, const struct spread *spread,
                   struct spread *out, struct err *e)
{
    if (n->op == OP_INPUT)
        return of_input(g, n, out, e);
    if (n->op == OP_ALL_GATHER || n->op == OP_ALL_REDUCE)
        return of_collective(n, &spread[n->in[0]->id], out, e);
    if (reads(n, spread, SPREAD_PARTIAL))
        return refuse(n, "uses statistics of one rank alone", e);
    if (spread_over_rows(n, spread))
        return of_rows(g, n, spread, out, e);
    if (reads(n, spread, SPREAD_ALL))
        return refuse(n, "computes with gathered rows on every rank", e);
    *out = (struct spread){SPREAD_SHARED, 0};
    return 0;
}

int spread_find(const struct graph *g, struct spread *out, struct err *e)
{
    for (int i = 0; i < g->n_nodes; i++)
        if (of_node(g, g->nodes[i], out, &out[i], e) < 0)
            return -1;
    return 0;
}
