/* exec_shards - runs what compile_shards.c wrote down. */
#include <stdlib.h>
#include "worker/engine/program_impl.h"

static int run_one(struct program *p, const struct instr *in, struct err *e)
{
    struct sharded *s = p->sharded;
    struct backend *be = p->cfg.backend;

    switch (in->kind) {
    case INSTR_FORWARD:
        return in->run.kernel->forward(&in->run.call, e);
    case INSTR_BACKWARD:
        return in->run.kernel->backward(&in->run.call, e);
    case INSTR_ADD:
        return be->ops->accumulate(be, in->add.dst, in->add.src, in->add.n, in->add.dtype, e);
    case INSTR_FROM_F32:
        return be->ops->from_f32(be, in->add.dst, in->add.dtype, in->add.src, in->add.n, !in->add.defines, e);
    case INSTR_ALL_REDUCE:
        return tree_all_reduce(s->sum, in->sum.parts, in->sum.dst, in->sum.n, in->sum.dtype, s->stage, e);
    case INSTR_REDUCE_SCATTER:
        return tree_reduce_scatter(s->sum, in->sum.parts, in->sum.dst, p->graph->rows.counts, in->sum.width,
                                   s->stage, e);
    }
    return 0;
}

int sharded_run(struct program *p, const struct instr_list *list, struct err *e)
{
    for (int i = 0; i < list->n; i++)
        if (run_one(p, &list->v[i], e) < 0)
            return -1;
    return 0;
}

int sharded_zero_grads(struct program *p, struct err *e)
{
    const struct sharded *s = p->sharded;
    size_t bytes = (size_t)(s->sum->n_roots - 1) * p->graph->params->n_weights * sizeof(float);

    return bytes ? p->cfg.backend->ops->zero(p->cfg.backend, s->more_grads, bytes, e) : 0;
}

int sharded_sum_bucket(struct program *p, int b, struct err *e)
{
    const struct bucket *k = &p->buckets[b];

    return tree_all_reduce(p->sharded->sum, p->sharded->bucket_parts[b], p->graph->params->grads + k->first,
                           (int64_t)k->count, DTYPE_F32, p->sharded->stage, e);
}

static void release_view(struct program *p, int v)
{
    struct sharded *s = p->sharded;

    for (int i = 0; s->views[v].states && i < p->graph->n_nodes; i++)
        if (p->steps[i].kernel && p->steps[i].kernel->release && s->views[v].states[i])
            p->steps[i].kernel->release(s->views[v].states[i]);
    free(s->views[v].states);
}

void sharded_destroy(struct program *p)
{
    struct sharded *s = p->sharded;
    struct backend *be = p->cfg.backend;

    if (!s)
        return;
    release_view(p, 0);
    release_view(p, 1);
    for (int i = 0; i < p->graph->n_nodes; i++) {
        free(s->forward[i].v);
        free(s->backward[i].v);
    }
    free(s->forward);
    free(s->backward);
    free(s->rows);
    free(s->bucket_parts);
    if (s->more_grads)
        be->ops->mem_free(be, s->more_grads);
    if (s->stage)
        be->ops->mem_free(be, s->stage);
    tree_sum_destroy(s->sum);
    arena_free(&s->arena);
    free(s);
}
