/* dump - see dump.h. */
#include "worker/train/dump.h"

#include <stdlib.h>
#include "worker/engine/backend.h"
#include "common/safetensors.h"

int dump_parse(const char *text, struct dump *d, struct err *e)
{
    char *end;
    long long step = strtoll(text, &end, 10);

    if (end == text || *end != ':' || !end[1] || step < 1)
        return err_set_kind(e, ERR_USAGE, "--dump-step: '%s' found, N:FILE with a step N from 1 is accepted",
                            text);
    *d = (struct dump){.step = step, .path = end + 1};
    return 0;
}

void dump_free(struct dump *d)
{
    free(d->grads);
    d->grads = NULL;
}

int dump_take_grads(struct dump *d, const struct params *ps, struct err *e)
{
    size_t bytes = ps->n_weights * sizeof(float);

    d->grads = malloc(bytes ? bytes : 1);
    if (!d->grads)
        return err_set(e, "no memory for a copy of the gradients, %zu bytes", bytes);
    return ps->backend->ops->download(ps->backend, d->grads, ps->grads, bytes, e);
}

static void add_tensors(struct safetensors_writer *w, const struct params *ps)
{
    static const char *const prefixes[] = {"param", "grad"};

    safetensors_writer_add(w, "loss", SAFETENSORS_F32, 0, NULL);
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < ps->n; i++) {
            const struct param *p = ps->v[i];
            if (p->kind != PARAM_WEIGHT)
                continue;
            char *name = xasprintf("%s.%s", prefixes[k], p->name);
            safetensors_writer_add(w, name, SAFETENSORS_F32, p->shape.n_dims, p->shape.dims);
            free(name);
        }
}

static int write_params(struct safetensors_writer *w, const struct params *ps, struct err *e)
{
    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->v[i];
        if (p->kind != PARAM_WEIGHT)
            continue;
        size_t bytes = (size_t)shape_count(p->shape) * sizeof(float);
        float *host = xmalloc(bytes);
        int rc = params_get(ps, p, host, e);
        if (rc == 0)
            rc = safetensors_writer_data(w, host, bytes, e);
        free(host);
        if (rc < 0)
            return -1;
    }
    return 0;
}

static int write_grads(struct safetensors_writer *w, const struct dump *d, const struct params *ps,
                       struct err *e)
{
    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->v[i];
        size_t bytes = (size_t)shape_count(p->shape) * sizeof(float);
        if (p->kind == PARAM_WEIGHT && safetensors_writer_data(w, d->grads + p->offset, bytes, e) < 0)
            return -1;
    }
    return 0;
}

int dump_write(struct dump *d, const struct params *ps, double loss, struct err *e)
{
    struct safetensors_writer *w = safetensors_writer_create(d->path);
    float loss32 = (float)loss;

    ASSERT(d->grads);
    add_tensors(w, ps);
    int rc = safetensors_writer_begin(w, e);
    if (rc == 0)
        rc = safetensors_writer_data(w, &loss32, sizeof loss32, e);
    if (rc == 0)
        rc = write_params(w, ps, e);
    if (rc == 0)
        rc = write_grads(w, d, ps, e);
    if (rc == 0)
        rc = safetensors_writer_finish(w, e);
    safetensors_writer_destroy(w);
    dump_free(d);
    return rc < 0 ? err_wrap(e, "--dump-step") : 0;
}
