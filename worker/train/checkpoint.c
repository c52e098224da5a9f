/* checkpoint - saving; see checkpoint.h. */
#include "worker/train/checkpoint.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/fault.h"
#include "common/fsutil.h"
#include "common/json.h"
#include "common/step_dir.h"
#include "worker/train/weights.h"

const char *const checkpoint_files[CHECKPOINT_N_FILES] = {"model.safetensors", "state.safetensors"};

void checkpoint_init(struct checkpoint *c, const char *run_dir, int64_t keep)
{
    *c = (struct checkpoint){.dir = fs_join(run_dir, "checkpoints"), .keep = keep < 1 ? 1 : keep};
}

void checkpoint_free(struct checkpoint *c)
{
    free(c->dir);
    c->dir = NULL;
}

char *checkpoint_path(const struct checkpoint *c, int64_t step)
{
    return step_dir_path(c->dir, step);
}

static int falling(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return x < y ? 1 : x > y ? -1 : 0;
}

int checkpoint_list(const struct checkpoint *c, int64_t **out)
{
    DIR *d = opendir(c->dir);
    int n = 0;

    *out = xcalloc(1, sizeof **out);
    for (struct dirent *ent; d && (ent = readdir(d));) {
        int64_t step = step_dir_parse(ent->d_name);
        if (step < 0)
            continue;
        *out = xrealloc(*out, (size_t)(n + 1) * sizeof **out);
        (*out)[n++] = step;
    }
    if (d)
        closedir(d);
    qsort(*out, (size_t)n, sizeof **out, falling);
    return n;
}

struct hash_hex checkpoint_manifest_hash(const cJSON *manifest)
{
    cJSON *copy = cJSON_Duplicate(manifest, 1);

    cJSON_DeleteItemFromObjectCaseSensitive(copy, "checksum");
    char *text = json_text(copy);
    struct hash_hex h = hash_bytes(text, strlen(text));
    free(text);
    cJSON_Delete(copy);
    return h;
}

/* As a string of 17 digits, which survives any JSON printer bit for bit. */
static void add_exact(cJSON *obj, const char *key, double v)
{
    char text[32];

    snprintf(text, sizeof text, "%.17g", v);
    cJSON_AddStringToObject(obj, key, text);
}

static cJSON *best_to_json(const struct checkpoint_best *b)
{
    if (b->epoch < 0)
        return cJSON_CreateNull();
    cJSON *v = cJSON_CreateObject();
    cJSON_AddNumberToObject(v, "epoch", (double)b->epoch);
    cJSON_AddNumberToObject(v, "step", (double)b->step);
    add_exact(v, "value", b->value);
    return v;
}

/* {"bytes": …, "xxh3_128": "…"} */
static int add_file(cJSON *files, const char *dir, const char *name, struct err *e)
{
    char *path = fs_join(dir, name);
    struct hash_hex h;
    struct stat st;
    int rc = hash_file(path, &h, e);

    if (rc == 0 && stat(path, &st) < 0)
        rc = err_set_errno(e, "%s", path);
    if (rc == 0) {
        cJSON *f = cJSON_AddObjectToObject(files, name);
        cJSON_AddNumberToObject(f, "bytes", (double)st.st_size);
        cJSON_AddStringToObject(f, "xxh3_128", h.s);
    }
    free(path);
    return rc;
}

static cJSON *make_manifest(const struct checkpoint *c, const struct checkpoint_state *st, const char *dir,
                            struct err *e)
{
    cJSON *m = cJSON_CreateObject();
    char when[32];

    clock_iso(clock_wall_ms(), when);
    cJSON_AddStringToObject(m, "format", "batchformer-checkpoint");
    cJSON_AddNumberToObject(m, "version", CHECKPOINT_VERSION);
    cJSON_AddStringToObject(m, "time", when);
    cJSON_AddNumberToObject(m, "world_size", c->world_size);
    cJSON_AddNumberToObject(m, "step", (double)st->step);
    add_exact(m, "epoch_loss_sum", st->epoch_loss_sum);
    cJSON_AddItemToObject(m, "best", best_to_json(&st->best));
    cJSON_AddStringToObject(m, "order", st->receipts.order.s);
    cJSON_AddNumberToObject(m, "order_from", (double)st->receipts.from);
    cJSON_AddItemToObject(m, "receipts", receipts_to_json(&st->receipts));
    cJSON_AddStringToObject(m, "data", c->data_hash);
    cJSON_AddItemToObject(m, "spec", cJSON_Duplicate(c->spec, 1));
    cJSON *files = cJSON_AddObjectToObject(m, "files");
    for (int i = 0; i < CHECKPOINT_N_FILES; i++)
        if (add_file(files, dir, checkpoint_files[i], e) < 0) {
            cJSON_Delete(m);
            return NULL;
        }
    cJSON_AddStringToObject(m, "checksum", checkpoint_manifest_hash(m).s);
    return m;
}

static int write_manifest(const struct checkpoint *c, const struct checkpoint_state *st, const char *dir,
                          struct err *e)
{
    cJSON *m = make_manifest(c, st, dir, e);

    if (!m)
        return -1;
    char *path = fs_join(dir, "manifest.json");
    char *text = json_text_pretty(m);
    int rc = fs_atomic_replace(path, text, strlen(text), e);
    free(text);
    free(path);
    cJSON_Delete(m);
    return rc;
}

static int mid_write_fault(void *arg, int i, int n, struct err *e)
{
    struct checkpoint *c = arg;

    if (i == n / 2 && fault_hit("checkpoint.mid_write", &c->fault_mid_write))
        return err_set(e, "fault point checkpoint.mid_write");
    return 0;
}

static int write_files(struct checkpoint *c, const struct checkpoint_state *st, const struct params *ps,
                       const struct optim_states *states, const char *dir, struct err *e)
{
    struct weights_hook hook = {mid_write_fault, c};
    char *model = fs_join(dir, checkpoint_files[0]), *state = fs_join(dir, checkpoint_files[1]);
    int rc = weights_save(model, ps, NULL, st->step, NULL, e);

    if (rc == 0)
        rc = weights_save_states(state, ps, states, &hook, e);
    if (rc == 0)
        rc = write_manifest(c, st, dir, e);
    free(model);
    free(state);
    return rc;
}

/* Puts the finished directory under its name. One of that name can only be damaged or of a history that was
 * given up, else we would have gone on from it or beyond. */
static int publish(struct checkpoint *c, const char *tmp, const char *path, struct err *e)
{
    if (fault_hit("checkpoint.before_rename", &c->fault_before_rename))
        return err_set(e, "fault point checkpoint.before_rename");
    if (fs_exists(path)) {
        char *old = xasprintf("%s/.tmp-replaced.%ld", c->dir, (long)getpid());
        int rc = rename(path, old) < 0 ? err_set_errno(e, "renaming %s", path) : 0;
        free(old); /* removed with the other leftovers at the end of the save */
        if (rc < 0)
            return -1;
    }
    if (rename(tmp, path) < 0)
        return err_set_errno(e, "renaming %s to %s", tmp, path);
    return fs_fsync_dir(c->dir, e);
}

/* Removes .tmp- directories of writers that died. */
static int remove_leftovers(const struct checkpoint *c, struct err *e)
{
    DIR *d = opendir(c->dir);
    int rc = d ? 0 : err_set_errno(e, "%s", c->dir);

    for (struct dirent *ent; rc == 0 && (ent = readdir(d));)
        if (strncmp(ent->d_name, ".tmp-", 5) == 0) {
            char *path = fs_join(c->dir, ent->d_name);
            rc = fs_remove_tree(path, e);
            free(path);
        }
    if (d)
        closedir(d);
    return rc;
}

/* Takes a checkpoint out of the list at once, so that one whose removal is cut short is not found as a
 * damaged one. It is removed with the other leftovers at the end of the save. */
static int retire(const struct checkpoint *c, int64_t step, struct err *e)
{
    char *path = checkpoint_path(c, step);
    char *old = xasprintf("%s/.tmp-retired-%08lld.%ld", c->dir, (long long)step, (long)getpid());
    int rc = rename(path, old) < 0 ? err_set_errno(e, "renaming %s", path) : 0;

    free(path);
    free(old);
    return rc;
}

/* Keeps `step` and the keep - 1 before it. Later ones were damaged when we resumed before them. */
static int prune(const struct checkpoint *c, int64_t step, struct err *e)
{
    int64_t *steps;
    int n = checkpoint_list(c, &steps), rc = 0;
    int64_t kept = 0;

    for (int i = 0; i < n && rc == 0; i++) {
        if (steps[i] <= step && kept < c->keep) {
            kept++;
            continue;
        }
        rc = retire(c, steps[i], e);
    }
    free(steps);
    return rc;
}

int checkpoint_save(struct checkpoint *c, const struct checkpoint_state *st, const struct params *ps,
                    const struct optim_states *states, struct err *e)
{
    char *tmp = xasprintf("%s/.tmp-step-%08lld.%ld", c->dir, (long long)st->step, (long)getpid());
    char *path = checkpoint_path(c, st->step);
    int rc = fs_mkdir_p(c->dir, e);

    if (rc == 0)
        rc = remove_leftovers(c, e);
    if (rc == 0)
        rc = fs_mkdir_p(tmp, e);
    if (rc == 0)
        rc = write_files(c, st, ps, states, tmp, e);
    if (rc == 0)
        rc = publish(c, tmp, path, e);
    if (rc < 0)
        fs_remove_tree(tmp, NULL);
    else
        rc = prune(c, st->step, e);
    if (rc == 0 && fault_hit("checkpoint.before_remove", &c->fault_before_remove))
        rc = err_set(e, "fault point checkpoint.before_remove");
    if (rc == 0)
        rc = remove_leftovers(c, e);
    free(tmp);
    free(path);
    return rc < 0 ? err_wrap(e, "checkpoint of step %lld", (long long)st->step) : 0;
}
