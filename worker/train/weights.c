/* weights - see weights.h. */
#include "worker/train/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "worker/train/optim.h"

static bool starts_with(const char *s, const char *prefix)
{
    return prefix && strncmp(s, prefix, strlen(prefix)) == 0;
}

static bool ends_with(const char *s, const char *suffix)
{
    size_t n = strlen(s), m = strlen(suffix);

    return n >= m && strcmp(s + n - m, suffix) == 0;
}

static size_t param_bytes(const struct param *p)
{
    return (size_t)shape_count(p->shape) * sizeof(float);
}

/* Host memory for the largest tensor, so that one model never lies in memory twice. */
static float *alloc_largest(const struct params *ps, struct err *e)
{
    size_t most = sizeof(float);

    for (int i = 0; i < ps->n; i++)
        if (param_bytes(ps->v[i]) > most)
            most = param_bytes(ps->v[i]);
    float *host = malloc(most);
    if (!host)
        err_set(e, "no memory for a tensor of %zu bytes", most);
    return host;
}

int64_t weights_count(const struct params *ps)
{
    int64_t n = 0;

    for (int i = 0; i < ps->n; i++)
        if (ps->v[i]->kind == PARAM_WEIGHT)
            n += shape_count(ps->v[i]->shape);
    return n;
}

static bool is_saved(const struct param *p, const char *skip_prefix)
{
    return p->kind != PARAM_CONST && !starts_with(p->name, skip_prefix);
}

/* "bn1.num_batches_tracked" for "bn1.running_mean"; NULL for other names. malloc'ed. */
static char *tracked_name(const struct param *p)
{
    static const char suffix[] = "running_mean";

    if (p->kind != PARAM_BUFFER || !ends_with(p->name, suffix))
        return NULL;
    return xasprintf("%.*snum_batches_tracked", (int)(strlen(p->name) - strlen(suffix)), p->name);
}

static int before(const struct weights_hook *hook, int i, int n, struct err *e)
{
    return hook ? hook->before(hook->arg, i, n, e) : 0;
}

static int count_saved(const struct params *ps, const char *skip_prefix)
{
    int n = 0;

    for (int i = 0; i < ps->n; i++)
        n += is_saved(ps->v[i], skip_prefix);
    return n;
}

static int count_trained(const struct params *ps)
{
    int n = 0;

    for (int i = 0; i < ps->n; i++)
        n += ps->v[i]->kind == PARAM_WEIGHT;
    return n;
}

static void add_entries(struct safetensors_writer *w, const struct params *ps, const char *skip_prefix)
{
    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->v[i];
        if (!is_saved(p, skip_prefix))
            continue;
        safetensors_writer_add(w, p->name, SAFETENSORS_F32, p->shape.n_dims, p->shape.dims);
        char *tracked = tracked_name(p);
        if (tracked)
            safetensors_writer_add(w, tracked, SAFETENSORS_I64, 0, NULL);
        free(tracked);
    }
}

static int write_entries(struct safetensors_writer *w, const struct params *ps, const char *skip_prefix,
                         int64_t step, float *host, const struct weights_hook *hook, struct err *e)
{
    int n = count_saved(ps, skip_prefix), done = 0;

    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->v[i];
        if (!is_saved(p, skip_prefix))
            continue;
        if (before(hook, done++, n, e) < 0 || params_get(ps, p, host, e) < 0 ||
            safetensors_writer_data(w, host, param_bytes(p), e) < 0)
            return -1;
        char *tracked = tracked_name(p);
        int rc = tracked ? safetensors_writer_data(w, &step, sizeof step, e) : 0;
        free(tracked);
        if (rc < 0)
            return -1;
    }
    return 0;
}

int weights_save(const char *path, const struct params *ps, const char *skip_prefix, int64_t step,
                 const struct weights_hook *hook, struct err *e)
{
    float *host = alloc_largest(ps, e);

    if (!host)
        return -1;
    struct safetensors_writer *w = safetensors_writer_create(path);
    add_entries(w, ps, skip_prefix);
    int rc = safetensors_writer_begin(w, e);
    if (rc == 0)
        rc = write_entries(w, ps, skip_prefix, step, host, hook, e);
    if (rc == 0)
        rc = safetensors_writer_finish(w, e);
    safetensors_writer_destroy(w);
    free(host);
    return rc;
}

static int write_states(struct safetensors_writer *w, const struct params *ps,
                        const struct optim_states *states, float *host, const struct weights_hook *hook,
                        struct err *e)
{
    struct backend *be = ps->backend;
    int total = states->n * count_trained(ps), done = 0;

    for (int s = 0; s < states->n; s++)
        for (int i = 0; i < ps->n; i++) {
            const struct param *p = ps->v[i];
            if (p->kind != PARAM_WEIGHT)
                continue;
            if (before(hook, done++, total, e) < 0 ||
                be->ops->download(be, host, states->v[s].values + p->offset, param_bytes(p), e) < 0 ||
                safetensors_writer_data(w, host, param_bytes(p), e) < 0)
                return -1;
        }
    return 0;
}

/* "momentum.fc.weight"; malloc'ed. */
static char *state_name(const struct optim_state *state, const struct param *p)
{
    return xasprintf("%s.%s", state->name, p->name);
}

static void add_state_entries(struct safetensors_writer *w, const struct params *ps,
                              const struct optim_state *state)
{
    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->v[i];
        if (p->kind != PARAM_WEIGHT)
            continue;
        char *name = state_name(state, p);
        safetensors_writer_add(w, name, SAFETENSORS_F32, p->shape.n_dims, p->shape.dims);
        free(name);
    }
}

int weights_save_states(const char *path, const struct params *ps, const struct optim_states *states,
                        const struct weights_hook *hook, struct err *e)
{
    float *host = alloc_largest(ps, e);

    if (!host)
        return -1;
    struct safetensors_writer *w = safetensors_writer_create(path);
    for (int s = 0; s < states->n; s++)
        add_state_entries(w, ps, &states->v[s]);
    int rc = safetensors_writer_begin(w, e);
    if (rc == 0)
        rc = write_states(w, ps, states, host, hook, e);
    if (rc == 0)
        rc = safetensors_writer_finish(w, e);
    safetensors_writer_destroy(w);
    free(host);
    return rc;
}

static bool same_shape(const struct safetensors_entry *t, struct shape s)
{
    if (t->n_dims != s.n_dims)
        return false;
    for (int i = 0; i < s.n_dims; i++)
        if (t->dims[i] != s.dims[i])
            return false;
    return true;
}

/* Reads the tensor into `host` after checking it against p. */
static int read_checked(const struct safetensors *f, const struct safetensors_entry *t, const struct param *p,
                        float *host, struct err *e)
{
    char found[192], wanted[96];

    if (t->dtype != SAFETENSORS_F32)
        return err_set(e, "%s: tensor %s has type %s, F32 is accepted", safetensors_path(f), t->name,
                       safetensors_dtype_name(t->dtype));
    if (!same_shape(t, p->shape))
        return err_set(e, "%s: tensor %s has shape %s, the model's has %s", safetensors_path(f), t->name,
                       safetensors_shape_text(t, found), shape_text(p->shape, wanted));
    return safetensors_read(f, t, host, e);
}

static int missing(const struct safetensors *f, const char *name, struct err *e)
{
    return err_set(e, "%s: tensor %s of the model is missing", safetensors_path(f), name);
}

/* Every tensor of the file is one of the model's, or num_batches_tracked. */
static int check_known(const struct safetensors *f, const struct params *ps, struct err *e)
{
    for (int i = 0; i < safetensors_count(f); i++) {
        const char *name = safetensors_at(f, i)->name;
        const struct param *p = params_find(ps, name);
        if ((!p || p->kind == PARAM_CONST) && !ends_with(name, ".num_batches_tracked"))
            return err_set(e, "%s: the model has no tensor %.200s", safetensors_path(f), name);
    }
    return 0;
}

static int load_all(const struct safetensors *f, struct params *ps, float *host, struct err *e)
{
    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->v[i];
        if (p->kind == PARAM_CONST)
            continue;
        const struct safetensors_entry *t = safetensors_find(f, p->name);
        if (!t)
            return missing(f, p->name, e);
        if (read_checked(f, t, p, host, e) < 0 || params_set(ps, p, host, e) < 0)
            return -1;
    }
    return 0;
}

int weights_load(const struct safetensors *f, struct params *ps, struct err *e)
{
    float *host = alloc_largest(ps, e);
    int rc = host ? check_known(f, ps, e) : -1;

    if (rc == 0)
        rc = load_all(f, ps, host, e);
    free(host);
    return rc;
}

static int load_state(const struct safetensors *f, const struct params *ps, const struct optim_state *state,
                      float *host, struct err *e)
{
    struct backend *be = ps->backend;

    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->v[i];
        if (p->kind != PARAM_WEIGHT)
            continue;
        char *name = state_name(state, p);
        const struct safetensors_entry *t = safetensors_find(f, name);
        int rc = t ? read_checked(f, t, p, host, e) : missing(f, name, e);
        free(name);
        if (rc < 0 || be->ops->upload(be, state->values + p->offset, host, param_bytes(p), e) < 0)
            return -1;
    }
    return 0;
}

int weights_load_states(const struct safetensors *f, const struct params *ps,
                        const struct optim_states *states, struct err *e)
{
    float *host = alloc_largest(ps, e);
    int rc = host ? 0 : -1;

    for (int s = 0; s < states->n && rc == 0; s++)
        rc = load_state(f, ps, &states->v[s], host, e);
    free(host);
    return rc;
}

static bool of_classifier(const char *name, const char *classifier)
{
    return starts_with(name, classifier) && name[strlen(classifier)] == '.';
}

static int load_init_tensor(const struct safetensors *f, struct params *ps, const struct param *p,
                            const char *classifier, const char *train_only, const struct log *log,
                            float *host, struct err *e)
{
    const struct safetensors_entry *t = safetensors_find(f, p->name);
    bool optional = of_classifier(p->name, classifier) || starts_with(p->name, train_only);

    if (!t && !optional)
        return missing(f, p->name, e);
    if (!t) {
        log_info(log, "init.weights: %s is not in the file and keeps its random initialisation", p->name);
        return 0;
    }
    if (read_checked(f, t, p, host, e) == 0)
        return params_set(ps, p, host, e);
    if (of_classifier(p->name, classifier) && !same_shape(t, p->shape)) {
        size_t n = strlen(e->msg);
        snprintf(e->msg + n, sizeof e->msg - n,
                 " (another number of classes? a file without %s.weight and %s.bias is accepted: the "
                 "classifier then "
                 "starts from its random initialisation)",
                 classifier, classifier);
    }
    return -1;
}

int weights_load_init(const char *path, struct params *ps, const char *classifier, const char *train_only,
                      const struct log *log, struct err *e)
{
    struct safetensors *f = safetensors_open(path, e);
    float *host = f ? alloc_largest(ps, e) : NULL;
    int rc = host ? check_known(f, ps, e) : -1;

    for (int i = 0; i < ps->n && rc == 0; i++)
        if (ps->v[i]->kind != PARAM_CONST)
            rc = load_init_tensor(f, ps, ps->v[i], classifier, train_only, log, host, e);
    free(host);
    safetensors_close(f);
    return rc < 0 ? err_wrap(e, "init.weights") : 0;
}
