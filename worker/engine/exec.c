/* exec - runs a compiled program; see program.h. */
#include "worker/engine/program_impl.h"

#include <string.h>

/* Debug builds: what died at time t becomes NaN, so that nobody can live off the dead. */
static void poison_dead(struct program *p, int t)
{
#ifdef BF_POISON
    struct backend *be = p->cfg.backend;

    for (int i = 0; i < p->n_deaths && p->deaths[i].t <= t; i++)
        if (p->deaths[i].t == t)
            be->ops->poison(be, p->arena + p->deaths[i].offset, p->deaths[i].bytes);
#else
    (void)p;
    (void)t;
#endif
}

static int watch_node(const struct program *p, int i, bool backward, struct err *e)
{
    return p->watch.after ? p->watch.after(p->watch.arg, p, i, backward, e) : 0;
}

int program_feed(struct program *p, struct node *input, const void *host, size_t bytes, struct err *e)
{
    size_t want = (size_t)shape_count(input->shape) * dtype_bytes(input->dtype);

    ASSERT(input->op == OP_INPUT && bytes == want);
    return bytes ? p->cfg.backend->ops->upload(p->cfg.backend, p->steps[input->id].call.out, host, bytes, e)
                 : 0;
}

int program_feed_ahead(struct program *p, const void *host, size_t bytes, struct err *e)
{
    struct backend *be = p->cfg.backend;

    return be->ops->upload_ahead ? be->ops->upload_ahead(be, host, bytes, e) : 0;
}

static int run_forward(struct program *p, int i, struct err *e)
{
    const struct step *s = &p->steps[i];

    if (p->sharded)
        return sharded_run(p, &p->sharded->forward[i], e);
    return s->kernel ? s->kernel->forward(&s->call, e) : 0;
}

static int run_backward(struct program *p, int i, struct err *e)
{
    const struct step *s = &p->steps[i];

    if (p->sharded)
        return sharded_run(p, &p->sharded->backward[i], e);
    return s->backward ? s->kernel->backward(&s->call, e) : 0;
}

int program_begin(struct program *p, uint64_t seed, uint64_t step, struct err *e)
{
    struct backend *be = p->cfg.backend;

    p->ctx = (struct step_ctx){seed, step};
    return be->ops->set_step ? be->ops->set_step(be, &p->ctx, e) : 0;
}

int program_run(struct program *p, struct err *e)
{
    p->now_backward = false;
    for (int i = 0; i < p->graph->n_nodes; i++) {
        p->now = i;
        if (run_forward(p, i, e) < 0)
            return err_wrap(e, "%s", p->graph->nodes[i]->name);
        if (p->steps[i].kernel && watch_node(p, i, false, e) < 0)
            return -1;
        poison_dead(p, i);
    }
    return 0;
}

int program_forward(struct program *p, uint64_t seed, uint64_t step, struct err *e)
{
    return program_begin(p, seed, step, e) < 0 ? -1 : program_run(p, e);
}

static int start_buckets(struct program *p, int node_id, struct err *e)
{
    float *grads = p->graph->params->grads;

    if (p->cfg.comm->size == 1)
        return 0;
    for (int b = 0; b < p->n_buckets; b++) {
        const struct bucket *k = &p->buckets[b];
        if (k->node_id != node_id)
            continue;
        int rc = p->sharded ? sharded_sum_bucket(p, b, e)
                            : comm_all_reduce_start(p->cfg.comm, grads + k->first, k->count, DTYPE_F32,
                                                    &p->reqs[b], e);
        if (rc < 0)
            return err_wrap(e, "gradient bucket %d of %d", b + 1, p->n_buckets);
    }
    return 0;
}

static int wait_buckets(struct program *p, struct err *e)
{
    if (p->cfg.comm->size == 1 || p->sharded)
        return 0;
    for (int b = 0; b < p->n_buckets; b++)
        if (comm_wait(p->cfg.comm, &p->reqs[b], e) < 0)
            return err_wrap(e, "gradient bucket %d of %d", b + 1, p->n_buckets);
    return 0;
}

int program_backward(struct program *p, struct err *e)
{
    struct backend *be = p->cfg.backend;
    const struct params *ps = p->graph->params;
    int n = p->graph->n_nodes;

    ASSERT(p->loss_grad);
    p->now_backward = true;
    if (be->ops->zero(be, ps->grads, ps->n_weights * sizeof(float), e) < 0 ||
        (p->sharded && sharded_zero_grads(p, e) < 0))
        return -1;
    for (int i = n - 1; i >= 0; i--) {
        p->now = i;
        if (run_backward(p, i, e) < 0)
            return err_wrap(e, "%s (backward)", p->graph->nodes[i]->name);
        if (p->steps[i].backward && watch_node(p, i, true, e) < 0)
            return -1;
        if (start_buckets(p, i, e) < 0)
            return -1;
        poison_dead(p, 2 * n - 1 - i);
    }
    return wait_buckets(p, e);
}

int program_read(struct program *p, const struct node *n, void *host, size_t bytes, struct err *e)
{
    ASSERT(bytes == (size_t)shape_count(n->shape) * dtype_bytes(n->dtype));
    return bytes ? p->cfg.backend->ops->download(p->cfg.backend, host, p->steps[n->id].call.out, bytes, e)
                 : 0;
}

const double *program_loss_share(const struct program *p)
{
    if (p->sharded && p->cfg.comm->rank > 0) /* every rank holds the global loss already */
        return NULL;
    return p->steps[p->cfg.loss->id].call.out;
}

size_t program_arena_bytes(const struct program *p)
{
    return p->arena_bytes;
}

size_t program_unshared_bytes(const struct program *p)
{
    return p->unshared_bytes;
}

size_t program_scratch_bytes(const struct program *p)
{
    return p->scratch_bytes;
}

const char *program_where(const struct program *p, bool *backward)
{
    *backward = p->now_backward;
    return p->graph->nodes[p->now]->name;
}
