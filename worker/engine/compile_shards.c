/* compile_shards - programs in micro-shards (the bitwise mode; shards.h says why).
 *
 * Nothing of it is known to kernels. Every node gets a copy with the shape of a shard (a *view*; two when S
 * does not divide N), kernels are prepared for views, and what a node does becomes a list of instructions:
 *
 *   - over ROWS: the kernel once for each shard (and each stream), on the shard's rows. What it makes of a
 *     sum over rows (a PARTIAL value; the gradient of a SHARED or ALL one) goes into the slot that
 *     tree_push() names, followed by the additions that it asks for;
 *   - over SHARED: forward once; backward once for each root;
 *   - collectives: sums by tree_sum.h in place of the communicator's own.
 *
 * Slots: the first n_roots belong to the value itself and hold its roots in the end; the others are temporary
 * and shared by all nodes. A SHARED value may have one user whose gradient is a sum over rows, because the
 * sum of two trees depends on where ranks cut them; slices of a parameter that do not overlap are the
 * exception, since they add to zeros.
 */
#include "worker/engine/compile_impl.h"

#include <stdlib.h>
#include <string.h>
#include "common/cut.h"
#include "worker/engine/ops_comm.h"

static struct spread spread_of(const struct compiler *c, const struct node *n)
{
    return c->spread[n->id];
}

static bool is_collective(const struct node *n)
{
    return comm_kernel(n->op) != NULL;
}

int shards_n_roots(const struct compiler *c)
{
    return c->p->sharded->sum->n_roots;
}

/* The kernel runs a shard at a time in this pass. */
bool shards_in_pieces(const struct compiler *c, int i, unsigned whole_flag)
{
    const struct node *n = c->g->nodes[i];

    return !is_collective(n) && spread_over_rows(n, c->spread) && !(op_table[n->op].flags & whole_flag);
}

static bool any_in_pieces(const struct compiler *c, int i)
{
    return shards_in_pieces(c, i, OP_WHOLE_FORWARD) ||
           (c->p->steps[i].backward && shards_in_pieces(c, i, OP_WHOLE_BACKWARD));
}

bool shards_runs_whole(const struct compiler *c, int i)
{
    if (compile_is_leaf(c->g->nodes[i]))
        return false;
    return !shards_in_pieces(c, i, OP_WHOLE_FORWARD) ||
           (c->p->steps[i].backward && !shards_in_pieces(c, i, OP_WHOLE_BACKWARD));
}

/* ---- views ---- */

static void cut_rows(struct compiler *c)
{
    struct sharded *s = c->p->sharded;
    const struct row_split *r = &c->g->rows;

    shards_of_rank(r->n_shards, r->rank, r->size, &s->first, &s->end);
    s->rows = xcalloc((size_t)(s->end - s->first), sizeof *s->rows);
    for (int32_t k = s->first; k < s->end; k++) {
        int64_t first = cut_first(r->total, r->n_shards, k);
        int64_t local = cut_first(r->total, r->n_shards, k + 1) - first;
        s->rows[k - s->first] = (struct row_split){
            .rank = r->rank, .size = r->size, .total = r->total, .first = first, .local = local};
        if (s->views[0].rows == 0 || s->views[0].rows == local)
            s->views[0].rows = local;
        else
            s->views[1].rows = local;
    }
    ASSERT(s->rows[0].first == r->first);
}

static void make_view(struct compiler *c, int v)
{
    struct sharded *s = c->p->sharded;
    size_t n = (size_t)c->n;
    struct node **nodes = arena_alloc(&s->arena, n * sizeof *nodes);

    for (int i = 0; i < c->n; i++) {
        nodes[i] = arena_alloc(&s->arena, sizeof **nodes);
        *nodes[i] = *c->g->nodes[i];
        if (c->spread[i].kind == SPREAD_ROWS)
            nodes[i]->shape.dims[0] = s->views[v].rows;
        for (int k = 0; k < nodes[i]->n_inputs; k++)
            nodes[i]->in[k] = nodes[nodes[i]->in[k]->id];
    }
    s->views[v].nodes = nodes;
    s->views[v].states = xcalloc(n, sizeof *s->views[v].states);
}

/* ---- what is refused ---- */

static bool slices_overlap(const struct node *a, const struct node *b)
{
    return a->op != OP_SLICE_ROWS || b->op != OP_SLICE_ROWS ||
           (a->attr.slice.from < b->attr.slice.to && b->attr.slice.from < a->attr.slice.to);
}

static bool sends_gradient(const struct compiler *c, const struct node *n, const struct node *to)
{
    for (int k = 0; k < n->n_inputs; k++)
        if (n->in[k] == to && (op_table[n->op].grad_inputs >> k & 1))
            return c->p->steps[n->id].backward && to->needs_grad;
    return false;
}

/* x is SHARED or ALL: its gradient is a tree, and trees of two users cannot be added. */
static int check_users(const struct compiler *c, const struct node *x, struct err *e)
{
    const struct node *users[OP_MAX_INPUTS];
    int n_users = 0;

    for (int i = x->id + 1; i < c->n; i++) {
        const struct node *n = c->g->nodes[i];
        if (!sends_gradient(c, n, x))
            continue;
        for (int u = 0; u < n_users; u++)
            if (slices_overlap(n, users[u]))
                return err_set(e,
                               "%s is used by %s and by %s, and the bitwise mode accepts one user of a "
                               "parameter or gathered value",
                               x->name, users[u]->name, n->name);
        if (n_users == OP_MAX_INPUTS)
            return err_set(e, "%s has more than %d slices", x->name, OP_MAX_INPUTS);
        users[n_users++] = n;
    }
    return 0;
}

int shards_begin(struct compiler *c, struct err *e)
{
    struct program *p = c->p;
    const struct row_split *r = &c->g->rows;

    ASSERT(r->n_shards <= SHARDS_MAX && r->n_shards <= r->total && r->n_shards >= r->size);
    p->sharded = xcalloc(1, sizeof *p->sharded);
    p->sharded->sum = tree_sum_create(p->cfg.comm, p->cfg.backend, r->n_shards);
    p->sharded->forward = xcalloc((size_t)c->n, sizeof *p->sharded->forward);
    p->sharded->backward = xcalloc((size_t)c->n, sizeof *p->sharded->backward);
    c->spread = xcalloc((size_t)c->n, sizeof *c->spread);
    if (spread_find(c->g, c->spread, e) < 0)
        return -1;
    for (int i = 0; i < c->n; i++)
        if ((c->spread[i].kind == SPREAD_SHARED || c->spread[i].kind == SPREAD_ALL) &&
            check_users(c, c->g->nodes[i], e) < 0)
            return -1;
    cut_rows(c);
    for (int v = 0; v < 2 && p->sharded->views[v].rows; v++)
        make_view(c, v);
    return 0;
}

/* ---- memory ---- */

/* Pieces of a node: shards of the rank times streams. */
int shards_n_streams(const struct compiler *c, const struct node *n)
{
    for (int k = 0; k < n->n_inputs; k++)
        if (spread_of(c, n->in[k]).kind == SPREAD_ROWS)
            return spread_of(c, n->in[k]).streams;
    return 1;
}

size_t shards_value_bytes(const struct compiler *c, int i)
{
    size_t one = compile_node_bytes(c->g->nodes[i]);

    return c->spread[i].kind == SPREAD_PARTIAL ? align_up(one) * (size_t)shards_n_roots(c) : one;
}

size_t shards_grad_bytes(const struct compiler *c, int i)
{
    size_t one = compile_grad_bytes(c->g->nodes[i]);
    bool tree = c->spread[i].kind == SPREAD_SHARED || c->spread[i].kind == SPREAD_ALL;

    return tree ? align_up(one) * (size_t)shards_n_roots(c) : one;
}

static int n_slots(const struct compiler *c, int i)
{
    const struct sharded *s = c->p->sharded;
    int slots = shards_slots(s->sum->n_shards, s->first, s->end);

    return shards_n_streams(c, c->g->nodes[i]) > 1 ? slots + 1 : slots;
}

/* Temporary slots that node i wants for a sum of `bytes`. */
size_t shards_temp_bytes(const struct compiler *c, int i, size_t bytes)
{
    int slots = n_slots(c, i) - shards_n_roots(c);

    return slots > 0 ? align_up(bytes) * (size_t)slots : 0;
}

/* Gradient k of node i is a sum over rows. */
bool shards_is_tree_gradient(const struct compiler *c, int i, int k)
{
    const struct node *n = c->g->nodes[i], *x = n->in[k];

    return c->p->steps[i].backward && (op_table[n->op].grad_inputs >> k & 1) && x->needs_grad &&
           spread_of(c, x).kind != SPREAD_ROWS;
}

static void want_temp(struct compiler *c, int i)
{
    const struct node *n = c->g->nodes[i];
    struct sharded *s = c->p->sharded;
    size_t forward = 0, backward = 0;

    if (is_collective(n)) {
        /* where the result is added to what is there, or rounded to another type */
        backward = align_up((size_t)shape_count(n->in[0]->shape) * dtype_bytes(n->grad_dtype));
    } else if (any_in_pieces(c, i)) {
        if (c->spread[i].kind == SPREAD_PARTIAL)
            forward = shards_temp_bytes(c, i, compile_node_bytes(n));
        for (int k = 0; k < n->n_inputs; k++)
            if (shards_is_tree_gradient(c, i, k))
                backward += shards_temp_bytes(c, i, compile_grad_bytes(n->in[k]));
    }
    s->temp_bytes = forward > s->temp_bytes ? forward : s->temp_bytes;
    s->temp_bytes = backward > s->temp_bytes ? backward : s->temp_bytes;
}

static void want_stage(struct compiler *c, const struct node *n)
{
    struct sharded *s = c->p->sharded;
    size_t bytes = 0;

    if (n->op == OP_ALL_GATHER)
        bytes = tree_reduce_scatter_stage_bytes(s->sum, c->g->rows.counts,
                                                shape_count(n->shape) / n->shape.dims[0]);
    else if (n->op == OP_ALL_REDUCE || n == c->p->cfg.loss)
        bytes = tree_all_reduce_stage_bytes(s->sum, shape_count(n->shape), n->dtype);
    s->stage_bytes = bytes > s->stage_bytes ? bytes : s->stage_bytes;
}

static int prepare_view(struct compiler *c, int i, int v, struct err *e)
{
    struct sharded *s = c->p->sharded;
    const struct kernel *k = c->p->steps[i].kernel;
    struct op_prep prep = {0};

    if (!k->prepare)
        return 0;
    if (k->prepare(c->p->cfg.backend, s->views[v].nodes[i], &prep, e) < 0)
        return err_wrap(e, "%s", c->g->nodes[i]->name);
    s->views[v].states[i] = prep.state;
    if (align_up(prep.aux_bytes) > c->aux_bytes[i]) /* of one piece, for now */
        c->aux_bytes[i] = align_up(prep.aux_bytes);
    if (prep.scratch_bytes > c->scratch_bytes)
        c->scratch_bytes = prep.scratch_bytes;
    return 0;
}

int shards_prepare(struct compiler *c, struct err *e)
{
    struct sharded *s = c->p->sharded;

    for (int i = 0; i < c->n; i++) {
        const struct node *n = c->g->nodes[i];
        want_temp(c, i);
        want_stage(c, n);
        if (compile_is_leaf(n) || !any_in_pieces(c, i))
            continue;
        ASSERT(!shards_runs_whole(c, i) ||
               c->aux_bytes[i] == 0); /* nothing is handed from one to the other */
        for (int v = 0; v < 2 && s->views[v].rows; v++)
            if (prepare_view(c, i, v, e) < 0)
                return -1;
        c->aux_bytes[i] *= (size_t)((s->end - s->first) * shards_n_streams(c, n));
    }
    return 0;
}
