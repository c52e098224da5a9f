/* checkpoint_load - finding the newest whole checkpoint and reading it; see checkpoint.h. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "common/fsutil.h"
#include "common/hash.h"
#include "common/json.h"
#include "worker/train/checkpoint.h"
#include "worker/train/spec_match.h"
#include "worker/train/weights.h"

enum { MANIFEST_MAX_BYTES = 4 << 20 };

/* A checkpoint that is being read. */
struct opened {
    char *dir;
    cJSON *manifest;
    struct safetensors *files[CHECKPOINT_N_FILES];
    struct checkpoint_state st;
};

static void opened_free(struct opened *o)
{
    for (int i = 0; i < CHECKPOINT_N_FILES; i++)
        safetensors_close(o->files[i]);
    cJSON_Delete(o->manifest);
    free(o->dir);
    *o = (struct opened){0};
}

static int check_manifest_hash(const cJSON *m, struct err *e)
{
    const char *expected;

    if (json_get_str(m, "", "checksum", &expected, e) < 0)
        return -1;
    struct hash_hex found = checkpoint_manifest_hash(m);
    if (strcmp(found.s, expected) != 0)
        return err_set(e, "checksum %s found, %s expected", found.s, expected);
    return 0;
}

static int get_exact(const cJSON *obj, const char *at, const char *key, double *out, struct err *e)
{
    const char *text;
    char *end;

    if (json_get_str(obj, at, key, &text, e) < 0)
        return -1;
    *out = strtod(text, &end);
    if (end == text || *end)
        return err_set(e, "%s/%s: \"%.40s\" found, a number in a string is accepted", at, key, text);
    return 0;
}

static int read_best(const cJSON *m, struct checkpoint_best *b, struct err *e)
{
    const cJSON *v = json_find(m, "best");

    *b = (struct checkpoint_best){-1, -1, 0};
    if (!v || cJSON_IsNull(v))
        return 0;
    if (json_get_int(v, "/best", "epoch", 0, INT64_C(1) << 53, &b->epoch, e) < 0 ||
        json_get_int(v, "/best", "step", 0, INT64_C(1) << 53, &b->step, e) < 0)
        return -1;
    return get_exact(v, "/best", "value", &b->value, e);
}

/* Version 1 had none: what its steps fed and held is not known any more, and nothing is made up for it. */
static int read_receipts(const cJSON *m, int64_t version, struct checkpoint_state *st, struct err *e)
{
    struct receipts *r = &st->receipts;

    if (version == 1) {
        receipts_init(r, st->step);
        return 0;
    }
    if (receipts_from_json(r, m, e) < 0)
        return -1;
    if (r->n > 0 && r->v[r->n - 1].step > st->step)
        return err_set(e, "/receipts: step %lld found, the checkpoint is of step %lld",
                       (long long)r->v[r->n - 1].step, (long long)st->step);
    return 0;
}

static int read_state(const cJSON *m, int64_t step, struct checkpoint_state *st, struct err *e)
{
    const char *format;
    int64_t version;

    if (json_get_str(m, "", "format", &format, e) < 0 ||
        json_get_int(m, "", "version", 1, CHECKPOINT_VERSION, &version, e) < 0 ||
        json_get_int(m, "", "step", 0, INT64_C(1) << 53, &st->step, e) < 0 ||
        get_exact(m, "", "epoch_loss_sum", &st->epoch_loss_sum, e) < 0 || read_best(m, &st->best, e) < 0)
        return -1;
    if (st->step != step)
        return err_set(e, "/step: %lld found, the directory is of step %lld", (long long)st->step,
                       (long long)step);
    return read_receipts(m, version, st, e);
}

static int open_manifest(struct opened *o, int64_t step, struct err *e)
{
    char *path = fs_join(o->dir, "manifest.json");

    o->manifest = json_read_file(path, MANIFEST_MAX_BYTES, e);
    int rc = o->manifest ? 0 : -1;
    if (rc == 0 && (check_manifest_hash(o->manifest, e) < 0 || read_state(o->manifest, step, &o->st, e) < 0))
        rc = err_wrap(e, "%s", path);
    free(path);
    return rc;
}

static int check_file(const char *path, const char *name, const cJSON *files, struct err *e)
{
    const cJSON *f = json_get_obj(files, "/files", name, e);
    const char *expected;
    struct hash_hex found;
    struct stat st;
    int64_t bytes;

    if (!f || json_get_int(f, "/files", "bytes", 0, INT64_C(1) << 53, &bytes, e) < 0 ||
        json_get_str(f, "/files", "xxh3_128", &expected, e) < 0)
        return -1;
    if (stat(path, &st) < 0)
        return err_set_errno(e, "%s", path);
    if (st.st_size != bytes)
        return err_set(e, "%s: %lld bytes found, %lld expected", path, (long long)st.st_size,
                       (long long)bytes);
    if (hash_file(path, &found, e) < 0)
        return -1;
    if (strcmp(found.s, expected) != 0)
        return err_set(e, "%s: checksum %s found, %s expected", path, found.s, expected);
    return 0;
}

static int open_files(struct opened *o, struct err *e)
{
    const cJSON *files = json_get_obj(o->manifest, "", "files", e);

    for (int i = 0; i < CHECKPOINT_N_FILES; i++) {
        if (!files)
            return -1;
        char *path = fs_join(o->dir, checkpoint_files[i]);
        int rc = check_file(path, checkpoint_files[i], files, e);
        if (rc == 0 && !(o->files[i] = safetensors_open(path, e)))
            rc = -1;
        free(path);
        if (rc < 0)
            return -1;
    }
    return 0;
}

static int check_belongs(const struct checkpoint *c, const struct opened *o, struct err *e)
{
    const cJSON *spec = json_get_obj(o->manifest, "", "spec", e);
    const char *data;

    if (!spec || json_get_str(o->manifest, "", "data", &data, e) < 0)
        return -1;
    if (spec_match(spec, c->spec, e) < 0)
        return -1;
    if (strcmp(data, c->data_hash) != 0)
        return err_set_kind(e, ERR_SPEC, "the data have checksum %s, those of the checkpoint had %s",
                            c->data_hash, data);
    return 0;
}

static int read_tensors(const struct opened *o, struct params *ps, const struct optim_states *states,
                        struct err *e)
{
    if (weights_load(o->files[0], ps, e) < 0)
        return -1;
    return weights_load_states(o->files[1], ps, states, e);
}

/* 1: loaded. 0: damaged, *e says how. -1: belongs to another job. */
static int try_load(struct checkpoint *c, int64_t step, struct checkpoint_state *st, struct params *ps,
                    const struct optim_states *states, struct err *e)
{
    struct opened o = {.dir = checkpoint_path(c, step)};
    int rc = 0;

    if (open_manifest(&o, step, e) == 0 && open_files(&o, e) == 0) {
        rc = check_belongs(c, &o, e) == 0 && read_tensors(&o, ps, states, e) == 0 ? 1 : -1;
        if (rc == 1) {
            *st = o.st;
            if (st->receipts.from > 0)
                log_warn(
                    c->log,
                    "the steps up to %lld were made by a version without receipts: receipts begin after it, "
                    "and their order hashes compare only with runs that begin there, too",
                    (long long)st->receipts.from);
        } else {
            err_wrap(e, "%s cannot be resumed by this job", o.dir);
        }
    }
    opened_free(&o);
    return rc;
}

int checkpoint_load(struct checkpoint *c, struct checkpoint_state *st, struct params *ps,
                    const struct optim_states *states, struct err *e)
{
    int64_t *steps;
    int n = checkpoint_list(c, &steps), rc = 0;

    for (int i = 0; i < n && rc == 0; i++) {
        rc = try_load(c, steps[i], st, ps, states, e);
        if (rc == 0)
            log_warn(c->log, "checkpoint of step %lld is damaged and not used: %s", (long long)steps[i],
                     e->msg);
    }
    free(steps);
    if (n > 0 && rc == 0)
        return err_wrap(e, "no checkpoint is whole, %d tried; the oldest", n);
    return rc;
}
