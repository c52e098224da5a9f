/* emit_shards - writes down, instruction by instruction, what each node does in micro-shards;
 * compile_shards.c tells the idea.
 *
 * Where sums go: tree_push() names the slot of a shard's contribution and the additions that follow it. Slots
 * below n_roots are the value's own roots, the others lie behind the kernels' scratch.
 */
#include "worker/engine/compile_impl.h"

#include <stdlib.h>
#include "worker/engine/ops_comm.h"

/* One value or gradient of which this rank has roots. */
struct partial {
    char *first;   /* root 0 */
    size_t stride; /* from root 1 to root 2 … */
    char *more;    /* root 1 */
    char *temp;    /* slots that are not roots */
    size_t slot_bytes;
    size_t n; /* elements */
    enum dtype dtype;
};

static struct instr *append(struct instr_list *l, enum instr_kind kind)
{
    if (l->n == l->cap) {
        l->cap = l->cap ? 2 * l->cap : 8;
        l->v = xrealloc(l->v, (size_t)l->cap * sizeof *l->v);
    }
    l->v[l->n] = (struct instr){.kind = kind};
    return &l->v[l->n++];
}

static void append_run(struct instr_list *l, enum instr_kind kind, const struct kernel *k,
                       const struct op_call *call)
{
    struct instr *in = append(l, kind);

    in->run.kernel = k;
    in->run.call = *call;
}

static void append_add(struct instr_list *l, void *dst, const void *src, size_t n, enum dtype dtype)
{
    struct instr *in = append(l, INSTR_ADD);

    in->add.dst = dst;
    in->add.src = src;
    in->add.n = n;
    in->add.dtype = dtype;
}

static char *root(const struct partial *t, int i)
{
    return i == 0 ? t->first : t->more + (size_t)(i - 1) * t->stride;
}

static char *slot(const struct compiler *c, const struct partial *t, int i)
{
    return i < shards_n_roots(c) ? root(t, i) : t->temp + (size_t)(i - shards_n_roots(c)) * t->slot_bytes;
}

/* The roots of n's value or gradient, of type t, that lie one behind the other from `base`. */
static struct partial roots_at(char *base, const struct node *n, enum dtype t)
{
    size_t count = (size_t)shape_count(n->shape), bytes = align_up(count * dtype_bytes(t));

    return (struct partial){base, bytes, base + bytes, NULL, bytes, count, t};
}

static struct partial grad_roots(const struct compiler *c, const struct node *n)
{
    struct partial t = roots_at(compile_item(c, n->id, ITEM_GRAD), n, n->grad_dtype);

    if (n->op == OP_PARAM) {
        t.first = (char *)n->param->grad;
        t.stride = c->g->params->n_weights * sizeof(float);
        t.more = c->p->sharded->more_grads ? (char *)(c->p->sharded->more_grads + n->param->offset) : NULL;
    }
    return t;
}

/* The temporary slots lie behind the kernels' scratch. */
static char *temp_at(const struct compiler *c)
{
    return (char *)compile_item(c, c->n, 0) + align_up(c->scratch_bytes);
}

static void **root_list(const struct compiler *c, const struct partial *t)
{
    void **v = arena_alloc(&c->p->sharded->arena, (size_t)shards_n_roots(c) * sizeof *v);

    for (int i = 0; i < shards_n_roots(c); i++)
        v[i] = root(t, i);
    return v;
}

/* First element of piece (shard, stream) of a value in rows; base may be NULL. */
static void *piece_ptr(const struct compiler *c, const struct node *n, void *base, int shard, int stream)
{
    const struct row_split *all = &c->g->rows;
    int64_t at = stream * all->local + c->p->sharded->rows[shard].first - all->first;

    if (!base || c->spread[n->id].kind != SPREAD_ROWS)
        return base;
    return (char *)base + (size_t)(at * (shape_count(n->shape) / n->shape.dims[0])) * dtype_bytes(n->dtype);
}

static int view_of(const struct sharded *s, int64_t rows)
{
    return s->views[0].rows == rows ? 0 : 1;
}

static struct op_call piece_call(const struct compiler *c, int i, int shard, int stream)
{
    const struct sharded *s = c->p->sharded;
    const struct node *n = c->g->nodes[i];
    int v = view_of(s, s->rows[shard].local), streams = shards_n_streams(c, n);
    size_t one_aux = c->aux_bytes[i] / (size_t)((s->end - s->first) * streams);
    struct op_call call = c->p->steps[i].call;

    call.node = s->views[v].nodes[i];
    call.state = s->views[v].states[i];
    call.rows = &s->rows[shard];
    call.out = piece_ptr(c, n, call.out, shard, stream);
    call.dout = piece_ptr(c, n, (void *)call.dout, shard, stream);
    call.aux = call.aux ? (char *)call.aux + one_aux * (size_t)(shard * streams + stream) : NULL;
    for (int k = 0; k < n->n_inputs; k++) {
        call.in[k] = piece_ptr(c, n->in[k], call.in[k], shard, stream);
        call.din[k] = piece_ptr(c, n->in[k], call.din[k], shard, stream);
    }
    return call;
}

/* dst slot += the slot above it, for every sum that the node makes. */
static void append_merges(const struct compiler *c, struct instr_list *l, const struct partial *sums,
                          int n_sums, int into)
{
    for (int t = 0; t < n_sums; t++)
        append_add(l, slot(c, &sums[t], into), slot(c, &sums[t], into + 1), sums[t].n, sums[t].dtype);
}

/* What writes where: din[which[t]], or out when it is -1, is sum t. */
struct sums {
    struct partial v[OP_MAX_INPUTS];
    int which[OP_MAX_INPUTS];
    int n;
};

static void aim(const struct compiler *c, struct op_call *call, const struct sums *sums, int at)
{
    for (int t = 0; t < sums->n; t++) {
        int k = sums->which[t];
        if (k < 0) {
            call->out = slot(c, &sums->v[t], at);
        } else {
            call->din[k] = slot(c, &sums->v[t], at);
            call->acc &= ~(1u << k);
        }
    }
}

static void emit_pieces(struct compiler *c, int i, struct instr_list *l, enum instr_kind kind,
                        const struct sums *sums)
{
    const struct sharded *s = c->p->sharded;
    struct tree_stack stack = tree_stack_make(s->sum->n_shards);
    int streams = shards_n_streams(c, c->g->nodes[i]);

    for (int shard = 0; shard < s->end - s->first; shard++) {
        for (int j = 0; j < streams; j++) {
            struct op_call call = piece_call(c, i, shard, j);
            aim(c, &call, sums, stack.n + (j > 0));
            append_run(l, kind, c->p->steps[i].kernel, &call);
            if (j > 0)
                append_merges(c, l, sums->v, sums->n, stack.n);
        }
        int top = stack.n;
        for (int merges = tree_push(&stack, tree_leaf(s->first + shard)); merges > 0; merges--, top--)
            append_merges(c, l, sums->v, sums->n, top - 1);
    }
}

static void emit_sum(struct compiler *c, struct instr_list *l, enum instr_kind kind,
                     const struct partial *roots, void *dst)
{
    struct instr *in = append(l, kind);

    in->sum.parts = root_list(c, roots);
    in->sum.dst = dst;
    in->sum.n = (int64_t)roots->n;
    in->sum.dtype = roots->dtype;
}

static void emit_forward(struct compiler *c, int i)
{
    const struct node *n = c->g->nodes[i];
    struct instr_list *l = &c->p->sharded->forward[i];
    struct sums sums = {.n = 0};

    if (n->op == OP_ALL_REDUCE) {
        struct partial roots = roots_at(compile_item(c, n->in[0]->id, ITEM_VALUE), n->in[0], n->in[0]->dtype);
        emit_sum(c, l, INSTR_ALL_REDUCE, &roots, c->p->steps[i].call.out);
    } else if (!shards_in_pieces(c, i, OP_WHOLE_FORWARD)) {
        append_run(l, INSTR_FORWARD, c->p->steps[i].kernel, &c->p->steps[i].call);
    } else {
        if (c->spread[i].kind == SPREAD_PARTIAL) {
            sums.v[0] = roots_at(compile_item(c, i, ITEM_VALUE), n, n->dtype);
            sums.v[0].temp = temp_at(c);
            sums.which[sums.n++] = -1;
        }
        emit_pieces(c, i, l, INSTR_FORWARD, &sums);
        if (n == c->p->cfg.loss) /* what is read is the loss of the global mini-batch */
            emit_sum(c, l, INSTR_ALL_REDUCE, &sums.v[0], sums.v[0].first);
    }
}

static void emit_collective_backward(struct compiler *c, int i, struct instr_list *l)
{
    const struct node *n = c->g->nodes[i], *x = n->in[0];
    const struct op_call *call = &c->p->steps[i].call;
    struct partial roots = grad_roots(c, n);
    const bool adds = call->acc & 1, rounds = x->grad_dtype != n->grad_dtype;
    void *dst = adds || rounds ? temp_at(c) : call->din[0];

    emit_sum(c, l, n->op == OP_ALL_GATHER ? INSTR_REDUCE_SCATTER : INSTR_ALL_REDUCE, &roots, dst);
    l->v[l->n - 1].sum.width = shape_count(n->shape) / n->shape.dims[0];
    if (adds || rounds)
        append_add(l, call->din[0], dst, (size_t)shape_count(x->shape), x->grad_dtype);
    if (rounds) {
        l->v[l->n - 1].kind = INSTR_FROM_F32;
        l->v[l->n - 1].add.defines = !adds;
    }
}

/* A node over SHARED values: its adjoint is applied to each root. */
static void emit_shared_backward(struct compiler *c, int i, struct instr_list *l)
{
    const struct node *n = c->g->nodes[i];
    struct partial dout = grad_roots(c, n);

    for (int r = 0; r < shards_n_roots(c); r++) {
        struct op_call call = c->p->steps[i].call;
        call.dout = root(&dout, r);
        for (int k = 0; k < n->n_inputs; k++)
            if (call.din[k]) {
                struct partial din = grad_roots(c, n->in[k]);
                call.din[k] = root(&din, r);
            }
        append_run(l, INSTR_BACKWARD, c->p->steps[i].kernel, &call);
    }
}

static void emit_backward(struct compiler *c, int i)
{
    const struct node *n = c->g->nodes[i];
    struct instr_list *l = &c->p->sharded->backward[i];
    struct sums sums = {.n = 0};
    char *temp = temp_at(c);

    if (comm_kernel(n->op)) {
        emit_collective_backward(c, i, l);
    } else if (!spread_over_rows(n, c->spread)) {
        emit_shared_backward(c, i, l);
    } else if (!shards_in_pieces(c, i, OP_WHOLE_BACKWARD)) {
        append_run(l, INSTR_BACKWARD, c->p->steps[i].kernel, &c->p->steps[i].call);
    } else {
        for (int k = 0; k < n->n_inputs; k++) {
            if (!shards_is_tree_gradient(c, i, k))
                continue;
            sums.v[sums.n] = grad_roots(c, n->in[k]);
            sums.v[sums.n].temp = temp;
            temp += shards_temp_bytes(c, i, compile_grad_bytes(n->in[k]));
            sums.which[sums.n++] = k;
        }
        emit_pieces(c, i, l, INSTR_BACKWARD, &sums);
    }
}

int shards_emit(struct compiler *c, struct err *e)
{
    struct sharded *s = c->p->sharded;
    struct backend *be = c->p->cfg.backend;
    size_t more = (size_t)(shards_n_roots(c) - 1) * c->g->params->n_weights * sizeof(float);

    if (c->p->cfg.loss && more && !(s->more_grads = be->ops->mem_alloc(be, more, e)))
        return err_wrap(e, "gradients of micro-shards");
    for (int i = 0; i < c->n; i++) {
        if (compile_is_leaf(c->g->nodes[i]))
            continue;
        emit_forward(c, i);
        if (c->p->steps[i].backward)
            emit_backward(c, i);
    }
    return 0;
}

int shards_finish(struct compiler *c, struct err *e)
{
    struct program *p = c->p;
    struct sharded *s = p->sharded;

    s->bucket_parts = xcalloc((size_t)p->n_buckets + 1, sizeof *s->bucket_parts);
    for (int b = 0; b < p->n_buckets; b++) {
        struct partial t = {.first = (char *)(c->g->params->grads + p->buckets[b].first),
                            .stride = c->g->params->n_weights * sizeof(float),
                            .more = s->more_grads ? (char *)(s->more_grads + p->buckets[b].first) : NULL};
        size_t bytes = tree_all_reduce_stage_bytes(s->sum, (int64_t)p->buckets[b].count, DTYPE_F32);
        s->bucket_parts[b] = root_list(c, &t);
        s->stage_bytes = bytes > s->stage_bytes ? bytes : s->stage_bytes;
    }
    if (s->stage_bytes && !(s->stage = p->cfg.backend->ops->mem_alloc(p->cfg.backend, s->stage_bytes, e)))
        return err_wrap(e, "scratch of sums over ranks");
    return 0;
}
