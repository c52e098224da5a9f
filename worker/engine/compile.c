/* compile - turns a graph into a program: which gradients exist, who writes them first, who needs which bytes
 * when.
 *
 * Order of work: pick kernels (a missing one is refused by name) → walk backward once to find the gradients
 * that exist and the first writer of each (the acc bits) → prepare kernels, which tells aux and scratch sizes
 * → lives → placement → pointers → gradient buckets. In micro-shards (the bitwise mode) compile_shards.c
 * joins in at each of these points.
 */
#include "worker/engine/compile_impl.h"
#include "worker/engine/ops_comm.h"
#include "worker/engine/tuning.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static int backward_time(const struct compiler *c, int id)
{
    return 2 * c->n - 1 - id;
}

bool compile_is_leaf(const struct node *n)
{
    return n->op == OP_INPUT || n->op == OP_PARAM;
}

/* Where the first row of a slice lies in the parameter, in floats. */
static size_t view_offset(const struct node *n)
{
    const int64_t rows = n->in[0]->shape.dims[0];

    return rows ? (size_t)(n->attr.slice.from * (shape_count(n->in[0]->shape) / rows)) : 0;
}

/* Rows of a parameter are used where they lie: neither they nor their gradient, which adds to the
 * parameter's, are copied. Kernels may count on the alignment of a tensor, so the first row has it. In
 * micro-shards, where a gradient is first a sum over shards, a slice is a copy. */
static bool is_view(const struct compiler *c, const struct node *n)
{
    return n->op == OP_SLICE_ROWS && n->in[0]->op == OP_PARAM && c->g->rows.n_shards == 0 &&
           view_offset(n) * sizeof(float) % TENSOR_ALIGN_BYTES == 0;
}

static int view_run(const struct op_call *call, struct err *e)
{
    (void)call;
    (void)e;
    return 0;
}

static const struct kernel view_kernel = {.forward = view_run, .backward = view_run};

static int pick_kernels(struct compiler *c, struct err *e)
{
    for (int i = 0; i < c->n; i++) {
        const struct node *n = c->g->nodes[i];
        if (compile_is_leaf(n))
            continue;
        if (is_view(c, n)) {
            c->p->steps[i].kernel = &view_kernel;
            continue;
        }
        const struct kernel *k = comm_kernel(n->op);
        if (!k)
            k = &c->p->cfg.backend->ops->kernels[n->op];
        if (!k->forward)
            return err_set(e, "%s: backend %s has no kernel for operator %s", n->name,
                           c->p->cfg.backend->ops->name, op_table[n->op].name);
        if (n->dtype == DTYPE_BF16 && !c->p->cfg.backend->ops->bf16)
            return err_set(e, "%s: backend %s does not compute in bf16", n->name,
                           c->p->cfg.backend->ops->name);
        c->p->steps[i].kernel = k;
    }
    return 0;
}

/* Marks node i's inputs as receiving a gradient and sets the acc bits. Nodes come in descending order, so the
 * first consumer met is the first writer. */
static void flow_to_inputs(struct compiler *c, int i)
{
    const struct node *n = c->g->nodes[i];

    for (int k = 0; k < n->n_inputs; k++) {
        const struct node *x = n->in[k];
        if (!(op_table[n->op].grad_inputs >> k & 1) || !x->needs_grad)
            continue;
        if (c->has_grad[x->id] || x->op == OP_PARAM || is_view(c, x))
            c->p->steps[i].call.acc |= 1u << k;
        if (!c->has_grad[x->id])
            c->first_writer[x->id] = i;
        c->has_grad[x->id] = true;
    }
}

static int find_gradients(struct compiler *c, struct err *e)
{
    const struct node *loss = c->p->cfg.loss;

    if (!loss)
        return 0;
    if (loss->dtype != DTYPE_F64 || shape_count(loss->shape) != 1)
        return err_set(e, "%s: a loss is one f64 number", loss->name);
    c->has_grad[loss->id] = true;
    c->first_writer[loss->id] = loss->id;
    for (int i = c->n - 1; i >= 0; i--) {
        const struct node *n = c->g->nodes[i];
        if (!c->has_grad[i] || !n->needs_grad || compile_is_leaf(n))
            continue;
        if (!c->p->steps[i].kernel->backward || !op_table[n->op].grad_inputs)
            return err_set(e, "%s: operator %s has no backward on backend %s", n->name, op_table[n->op].name,
                           c->p->cfg.backend->ops->name);
        c->p->steps[i].backward = true;
        flow_to_inputs(c, i);
    }
    return 0;
}

static int prepare_kernels(struct compiler *c, struct err *e)
{
    struct tuning *tuning = c->p->cfg.backend->tuning;

    if (tuning)
        tuning_set_rows(tuning, c->g->rows.local, c->g->rows.counts[0]);
    for (int i = 0; i < c->n; i++) {
        struct step *s = &c->p->steps[i];
        struct op_prep prep = {0};
        if (!s->kernel || !s->kernel->prepare || (c->spread && !shards_runs_whole(c, i)))
            continue;
        if (s->kernel->prepare(c->p->cfg.backend, c->g->nodes[i], &prep, e) < 0)
            return err_wrap(e, "%s", c->g->nodes[i]->name);
        s->call.state = prep.state;
        c->aux_bytes[i] = prep.aux_bytes;
        if (prep.scratch_bytes > c->scratch_bytes)
            c->scratch_bytes = prep.scratch_bytes;
    }
    return c->spread ? shards_prepare(c, e) : 0;
}

static void extend(struct plan_item *it, int t)
{
    if (t > it->death)
        it->death = t;
}

size_t compile_node_bytes(const struct node *n)
{
    return (size_t)shape_count(n->shape) * dtype_bytes(n->dtype);
}

size_t compile_grad_bytes(const struct node *n)
{
    return (size_t)shape_count(n->shape) * dtype_bytes(n->grad_dtype);
}

static bool is_output(const struct compiler *c, const struct node *n)
{
    for (int i = 0; i < c->p->cfg.n_outputs; i++)
        if (c->p->cfg.outputs[i] == n)
            return true;
    return n == c->p->cfg.loss;
}

static void set_lives_of(struct compiler *c, int i, int end)
{
    const struct node *n = c->g->nodes[i];
    const struct step *s = &c->p->steps[i];
    struct plan_item *it = &c->items[i * ITEM_KINDS];
    size_t value = c->spread ? shards_value_bytes(c, i) : compile_node_bytes(n);
    size_t grad = c->spread ? shards_grad_bytes(c, i) : compile_grad_bytes(n);

    if (n->op == OP_PARAM || is_view(c, n))
        return;
    it[ITEM_VALUE] = (struct plan_item){.bytes = value, .birth = n->op == OP_INPUT ? -1 : i, .death = i};
    if (is_output(c, n))
        it[ITEM_VALUE].death = end;
    if (s->backward && (n->bwd_reads & READS_OUT))
        extend(&it[ITEM_VALUE], backward_time(c, i));
    if (c->has_grad[i])
        it[ITEM_GRAD] = (struct plan_item){.bytes = grad,
                                           .birth = backward_time(c, c->first_writer[i]),
                                           .death = backward_time(c, i)};
    it[ITEM_AUX] = (struct plan_item){.bytes = c->aux_bytes[i],
                                      .birth = i,
                                      .death = s->backward ? backward_time(c, i) : i};
}

/* Lives on the time line of program.h. Consumers extend their inputs' lives. */
static void set_lives(struct compiler *c)
{
    int end = 2 * c->n;
    size_t scratch = c->scratch_bytes;

    if (c->spread)
        scratch = align_up(scratch) + c->p->sharded->temp_bytes;
    c->p->scratch_bytes = scratch;
    for (int i = 0; i < c->n; i++)
        set_lives_of(c, i, end);
    for (int i = 0; i < c->n; i++) {
        const struct node *n = c->g->nodes[i];
        for (int k = 0; k < n->n_inputs; k++) {
            struct plan_item *x = &c->items[n->in[k]->id * ITEM_KINDS + ITEM_VALUE];
            extend(x, i);
            if (c->p->steps[i].backward && (n->bwd_reads >> k & 1))
                extend(x, backward_time(c, i));
        }
    }
    c->items[c->n * ITEM_KINDS] = (struct plan_item){.bytes = scratch, .birth = -1, .death = end};
}

static int by_time(const void *pa, const void *pb)
{
    return ((const struct death *)pa)->t - ((const struct death *)pb)->t;
}

/* Items with bytes, placed; deaths recorded for poisoning. */
static int place(struct compiler *c, struct err *e)
{
    struct program *p = c->p;
    size_t n_all = (size_t)c->n * ITEM_KINDS + 1, n = 0;
    struct plan_item *dense = xmalloc(n_all * sizeof *dense);

    for (size_t i = 0; i < n_all; i++)
        if (c->items[i].bytes)
            dense[n++] = c->items[i];
    p->arena_bytes = plan_place(dense, n);
    p->deaths = xcalloc(n, sizeof *p->deaths);
    n = 0;
    for (size_t i = 0; i < n_all; i++) {
        if (!c->items[i].bytes)
            continue;
        c->items[i].offset = dense[n].offset;
        p->unshared_bytes += align_up(dense[n].bytes);
        p->deaths[n] = (struct death){dense[n].death, dense[n].offset, dense[n].bytes};
        n++;
    }
    free(dense);
    p->n_deaths = (int)n;
    qsort(p->deaths, n, sizeof *p->deaths, by_time);
    p->arena = p->cfg.backend->ops->mem_alloc(p->cfg.backend, p->arena_bytes ? p->arena_bytes : 1, e);
    if (!p->arena)
        return err_wrap(e, "activations");
    return p->cfg.backend->ops->zero(p->cfg.backend, p->arena, p->arena_bytes, e);
}

void *compile_item(const struct compiler *c, int id, int kind)
{
    const struct plan_item *it = &c->items[id * ITEM_KINDS + kind];

    return it->bytes ? c->p->arena + it->offset : NULL;
}

static void *value_ptr(const struct compiler *c, const struct node *n)
{
    if (is_view(c, n))
        return n->in[0]->param->value + view_offset(n);
    return n->op == OP_PARAM ? n->param->value : compile_item(c, n->id, ITEM_VALUE);
}

static void *grad_ptr(const struct compiler *c, const struct node *n)
{
    if (!c->has_grad[n->id])
        return NULL;
    if (is_view(c, n))
        return n->in[0]->param->grad + view_offset(n);
    return n->op == OP_PARAM ? n->param->grad : compile_item(c, n->id, ITEM_GRAD);
}

static void set_pointers(struct compiler *c)
{
    struct program *p = c->p;
    void *scratch = compile_item(c, c->n, 0);

    for (int i = 0; i < c->n; i++) {
        struct node *n = c->g->nodes[i];
        struct op_call *call = &p->steps[i].call;
        call->node = n;
        call->out = value_ptr(c, n);
        call->aux = compile_item(c, i, ITEM_AUX);
        call->scratch = scratch;
        call->dout = grad_ptr(c, n);
        call->step = &p->ctx;
        call->rows = &c->g->rows;
        call->comm = p->cfg.comm;
        for (int k = 0; k < n->n_inputs; k++) {
            call->in[k] = value_ptr(c, n->in[k]);
            bool flows =
                p->steps[i].backward && (op_table[n->op].grad_inputs >> k & 1) && n->in[k]->needs_grad;
            call->din[k] = flows ? grad_ptr(c, n->in[k]) : NULL;
        }
    }
}

/* d loss / d loss = 1, in memory of its own: written once, so that a step needs nothing from the host. */
static int make_loss_grad(struct compiler *c, struct err *e)
{
    static const double one = 1.0;
    struct program *p = c->p;
    struct backend *be = p->cfg.backend;

    if (!p->cfg.loss)
        return 0;
    if (!(p->loss_grad = be->ops->mem_alloc(be, sizeof one, e)) ||
        be->ops->upload(be, p->loss_grad, &one, sizeof one, e) < 0)
        return err_wrap(e, "gradient of the loss");
    p->steps[p->cfg.loss->id].call.dout = p->loss_grad;
    return 0;
}

/* Smallest id of a node whose backward adds to this parameter: the last to do so. INT_MAX when none does. */
static int last_writer(const struct compiler *c, const struct param *prm)
{
    for (int i = 0; i < c->n; i++) {
        const struct node *n = c->g->nodes[i];
        for (int k = 0; k < n->n_inputs; k++)
            if (n->in[k]->op == OP_PARAM && n->in[k]->param == prm && c->p->steps[i].call.din[k])
                return i;
    }
    return INT_MAX;
}

/* Parameters lie in backward order, so consecutive ranges become final one after the other. */
static void cut_buckets(struct compiler *c)
{
    struct program *p = c->p;
    const struct params *ps = c->g->params;
    struct bucket b = {0, 0, INT_MAX};

    p->buckets = xcalloc((size_t)ps->n + 1, sizeof *p->buckets);
    for (int i = ps->n - 1; i >= 0; i--) {
        const struct param *prm = ps->v[i];
        if (prm->kind != PARAM_WEIGHT)
            continue;
        int w = last_writer(c, prm);
        if (w < b.node_id)
            b.node_id = w;
        size_t padded = align_up((size_t)shape_count(prm->shape) * sizeof(float)) / sizeof(float);
        b.count = prm->offset + padded - b.first;
        if (p->cfg.bucket_bytes && b.count * sizeof(float) >= p->cfg.bucket_bytes) {
            p->buckets[p->n_buckets++] = b;
            b = (struct bucket){b.first + b.count, 0, INT_MAX};
        }
    }
    if (b.count)
        p->buckets[p->n_buckets++] = b;
    for (int i = 0; i < p->n_buckets; i++) /* no gradient at all: as good as final when backward starts */
        if (p->buckets[i].node_id == INT_MAX)
            p->buckets[i].node_id = p->cfg.loss->id;
    p->reqs = xcalloc((size_t)p->n_buckets + 1, sizeof *p->reqs);
}

static int compile(struct compiler *c, struct err *e)
{
    if (pick_kernels(c, e) < 0 || find_gradients(c, e) < 0 ||
        (c->g->rows.n_shards > 0 && shards_begin(c, e) < 0) || prepare_kernels(c, e) < 0)
        return -1;
    set_lives(c);
    if (place(c, e) < 0)
        return -1;
    set_pointers(c);
    if (make_loss_grad(c, e) < 0)
        return -1;
    if (c->spread && shards_emit(c, e) < 0)
        return -1;
    if (c->p->cfg.loss)
        cut_buckets(c);
    return c->spread ? shards_finish(c, e) : 0;
}

struct program *program_compile(struct graph *g, const struct program_cfg *cfg, struct err *e)
{
    struct program *p = xcalloc(1, sizeof *p);
    size_t n = (size_t)g->n_nodes;
    struct compiler c = {.p = p, .g = g, .n = g->n_nodes};

    ASSERT(g->params->final);
    p->graph = g;
    p->cfg = *cfg;
    p->steps = xcalloc(n, sizeof *p->steps);
    c.has_grad = xcalloc(n, sizeof *c.has_grad);
    c.first_writer = xcalloc(n, sizeof *c.first_writer);
    c.aux_bytes = xcalloc(n, sizeof *c.aux_bytes);
    c.items = xcalloc(n * ITEM_KINDS + 1, sizeof *c.items);
    int rc = compile(&c, e);
    free(c.has_grad);
    free(c.first_writer);
    free(c.aux_bytes);
    free(c.items);
    free(c.spread);
    if (rc < 0) {
        program_destroy(p);
        return NULL;
    }
    return p;
}

void program_destroy(struct program *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->graph->n_nodes; i++)
        if (p->steps[i].kernel && p->steps[i].kernel->release)
            p->steps[i].kernel->release(p->steps[i].call.state);
    sharded_destroy(p);
    p->cfg.backend->ops->mem_free(p->cfg.backend, p->arena);
    p->cfg.backend->ops->mem_free(p->cfg.backend, p->loss_grad);
    free(p->steps);
    free(p->buckets);
    free(p->reqs);
    free(p->deaths);
    free(p);
}
