/* test_checkpoint - saving, keeping, damage of every file, falling back, and refusing what belongs to another
 * job. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/fsutil.h"
#include "common/json.h"
#include "fake_backend.h"
#include "scratch.h"
#include "worker/train/checkpoint.h"

struct fixture {
    struct checkpoint c;
    struct params *ps;
    struct optim_states states;
    cJSON *spec;
    struct log log;
    char *log_path;
};

static void make(struct fixture *f, void **state, uint64_t seed, int classes)
{
    static const char spec[] = "{\"seed\":1,\"train\":{\"epochs\":3,\"batch_size\":8}}";

    *f = (struct fixture){.ps = fake_params(seed, classes), .log_path = scratch_path(state, "log")};
    f->spec = json_parse(spec, strlen(spec), NULL);
    f->states = (struct optim_states){2, {{.name = "exp_avg"}, {.name = "ema"}}};
    for (int k = 0; k < f->states.n; k++) {
        float *x = xcalloc(f->ps->n_weights, sizeof *x);
        for (size_t i = 0; i < f->ps->n_weights; i++)
            x[i] = (float)(seed * 1000 + (size_t)k * 500 + i);
        f->states.v[k].values = x;
    }
    f->log = (struct log){.fd = open(f->log_path, O_CREAT | O_RDWR | O_TRUNC, 0600),
                          .level = LOG_INFO,
                          .component = "test"};
    checkpoint_init(&f->c, *state, 2);
    f->c.spec = f->spec;
    f->c.data_hash = "abc";
    f->c.world_size = 1;
    f->c.log = &f->log;
}

static void drop(struct fixture *f)
{
    close(f->log.fd);
    checkpoint_free(&f->c);
    params_destroy(f->ps);
    for (int k = 0; k < f->states.n; k++)
        free(f->states.v[k].values);
    free(f->log_path);
    cJSON_Delete(f->spec);
}

static void save(struct fixture *f, int64_t step)
{
    struct err e = ERR_INIT;
    struct checkpoint_state st = {.step = step,
                                  .epoch_loss_sum = 0.1 * (double)step,
                                  .best = {1, 2, 1.0 / 3}};

    const struct receipt r = {.step = step,
                              .loss = 1.0 / 3,
                              .weights = hash_bytes("w", 1),
                              .buffers = hash_bytes("b", 1),
                              .optimizer = hash_bytes("o", 1)};

    receipts_init(&st.receipts, 0);
    receipts_feed(&st.receipts, (uint64_t)step);
    receipts_add(&st.receipts, &r);
    receipts_feed(&st.receipts, 5); /* the running order has gone on since the receipt */
    if (checkpoint_save(&f->c, &st, f->ps, &f->states, &e) < 0)
        fail_msg("%s", e.msg);
}

static char *file_of(const struct fixture *f, int64_t step, const char *name)
{
    char *dir = checkpoint_path(&f->c, step), *path = fs_join(dir, name);

    free(dir);
    return path;
}

static void round_trip(void **state)
{
    struct fixture a, b;
    struct checkpoint_state st;
    struct err e = ERR_INIT;

    make(&a, state, 1, 3);
    make(&b, state, 2, 3);
    assert_int_equal(checkpoint_load(&a.c, &st, a.ps, &a.states, &e), 0); /* none yet */
    save(&a, 7);
    b.c.world_size = 5;
    if (checkpoint_load(&b.c, &st, b.ps, &b.states, &e) != 1)
        fail_msg("%s", e.msg);
    assert_int_equal(st.step, 7);
    assert_true(st.epoch_loss_sum == 0.1 * 7.0 && st.best.epoch == 1 && st.best.step == 2 &&
                st.best.value == 1.0 / 3);
    struct receipts want;
    receipts_init(&want, 0);
    receipts_feed(&want, 7);
    assert_int_equal(st.receipts.n, 1);
    assert_int_equal(st.receipts.from, 0);
    assert_true(st.receipts.v[0].step == 7 && st.receipts.v[0].loss == 1.0 / 3);
    assert_string_equal(st.receipts.v[0].order.s, want.order.s);
    assert_string_equal(st.receipts.v[0].optimizer.s, hash_bytes("o", 1).s);
    receipts_feed(&want, 5);
    assert_string_equal(st.receipts.order.s, want.order.s);
    assert_memory_equal(a.ps->weights, b.ps->weights, a.ps->n_weights * sizeof(float));
    const struct param *p = params_find(a.ps, "fc.weight"), *q = params_find(a.ps, "bn.running_mean");
    for (int k = 0; k < 2; k++)
        assert_memory_equal(a.states.v[k].values + p->offset, b.states.v[k].values + p->offset,
                            15 * sizeof(float));
    assert_true(a.states.v[0].values[p->offset] != a.states.v[1].values[p->offset]);
    assert_memory_equal(q->value, params_find(b.ps, "bn.running_mean")->value, 5 * sizeof(float));
    drop(&a);
    drop(&b);
}

static void keeps_the_newest(void **state)
{
    struct fixture f;
    int64_t *steps;

    make(&f, state, 1, 3);
    for (int64_t s = 10; s <= 40; s += 10)
        save(&f, s);
    assert_int_equal(checkpoint_list(&f.c, &steps), 2);
    assert_true(steps[0] == 40 && steps[1] == 30);
    free(steps);
    assert_int_equal(scratch_count(f.c.dir), 2); /* and no leftovers */
    save(&f, 40);                                /* replaced in place */
    assert_int_equal(scratch_count(f.c.dir), 2);
    save(&f, 35); /* a run that went back: what lies beyond is of a history that was given up */
    assert_int_equal(checkpoint_list(&f.c, &steps), 2);
    assert_true(steps[0] == 35 && steps[1] == 30);
    free(steps);
    drop(&f);
}

/* A removal that is cut short must not leave half a checkpoint that looks like a damaged one. */
static void what_is_too_old_loses_its_name_first(void **state)
{
    struct fixture f;
    struct checkpoint_state st = {.step = 30, .best = {-1, -1, 0}};
    struct err e = ERR_INIT;
    int64_t *steps;

    receipts_init(&st.receipts, 0);
    make(&f, state, 1, 3);
    save(&f, 10);
    save(&f, 20);
    setenv("BATCHFORMER_FAULT", "checkpoint.before_remove:error", 1);
    assert_int_equal(checkpoint_save(&f.c, &st, f.ps, &f.states, &e), -1);
    unsetenv("BATCHFORMER_FAULT");
    assert_int_equal(checkpoint_list(&f.c, &steps), 2);
    assert_true(steps[0] == 30 && steps[1] == 20);
    free(steps);
    assert_int_equal(scratch_count(f.c.dir), 3);
    save(&f, 40);
    assert_int_equal(scratch_count(f.c.dir), 2);
    drop(&f);
}

/* Damages FILE of step 20; step 10 must be loaded and the log must name the file. */
static void check_fallback(void **state, const char *file, long flip_at)
{
    struct fixture f;
    struct checkpoint_state st = {0};
    struct err e = ERR_INIT;

    make(&f, state, 1, 3);
    save(&f, 10);
    save(&f, 20);
    char *path = file_of(&f, 20, file);
    if (flip_at)
        scratch_flip(path, flip_at);
    else
        assert_int_equal(unlink(path), 0);
    if (checkpoint_load(&f.c, &st, f.ps, &f.states, &e) != 1)
        fail_msg("%s damaged: %s", file, e.msg);
    assert_int_equal(st.step, 10);
    char *log = scratch_read(f.log_path);
    assert_non_null(strstr(log, "step 20 is damaged"));
    assert_non_null(strstr(log, file));
    if (flip_at && strcmp(file, "manifest.json") != 0)
        assert_true(strstr(log, "checksum") && strstr(log, "found") && strstr(log, "expected"));
    free(log);
    free(path);
    drop(&f);
    char *dir = scratch_path(state, "checkpoints");
    assert_int_equal(fs_remove_tree(dir, NULL), 0);
    free(dir);
}

static void falls_back(void **state)
{
    check_fallback(state, "model.safetensors", -1);
    check_fallback(state, "model.safetensors", 3);
    check_fallback(state, "model.safetensors", 100);
    check_fallback(state, "state.safetensors", -20);
    check_fallback(state, "state.safetensors", 0);
    check_fallback(state, "manifest.json", 0);
}

/* Every byte of the manifest counts. (A flip in white space between tokens would make it another text, too.)
 */
static void every_flip_in_the_manifest_is_seen(void **state)
{
    struct fixture f;
    struct err e = ERR_INIT;

    make(&f, state, 1, 3);
    save(&f, 10);
    char *path = file_of(&f, 10, "manifest.json"), *text = scratch_read(path);
    long n = (long)strlen(text);
    for (long i = 0; i < n; i++) {
        struct checkpoint_state st = {0};
        if (text[i] == '\t' || text[i] == '\n' || text[i] == ' ')
            continue;
        scratch_flip(path, i);
        if (checkpoint_load(&f.c, &st, f.ps, &f.states, &e) != -1)
            fail_msg("a flip in byte %ld of the manifest went unseen", i);
        scratch_flip(path, i);
    }
    free(text);
    free(path);
    drop(&f);
}

/* Rewrites a manifest with its checksum right, as another program would. */
static void edit_manifest(const struct fixture *f, int64_t step, void (*edit)(cJSON *m))
{
    char *path = file_of(f, step, "manifest.json");
    cJSON *m = json_read_file(path, 1 << 20, NULL);

    assert_non_null(m);
    edit(m);
    cJSON_ReplaceItemInObject(m, "checksum", cJSON_CreateString(checkpoint_manifest_hash(m).s));
    char *text = json_text_pretty(m);
    assert_int_equal(fs_atomic_replace(path, text, strlen(text), NULL), 0);
    free(text);
    free(path);
    cJSON_Delete(m);
}

static void make_version_1(cJSON *m)
{
    cJSON_ReplaceItemInObject(m, "version", cJSON_CreateNumber(1));
    cJSON_DeleteItemFromObject(m, "receipts");
    cJSON_DeleteItemFromObject(m, "order");
    cJSON_DeleteItemFromObject(m, "order_from");
}

/* It goes on, claims nothing about the steps before it, and says so. */
static void version_1_has_no_receipts(void **state)
{
    struct fixture f;
    struct checkpoint_state st = {0};
    struct receipts from_0, from_10;
    struct err e = ERR_INIT;

    make(&f, state, 1, 3);
    save(&f, 10);
    edit_manifest(&f, 10, make_version_1);
    if (checkpoint_load(&f.c, &st, f.ps, &f.states, &e) != 1)
        fail_msg("%s", e.msg);
    assert_int_equal(st.step, 10);
    assert_int_equal(st.receipts.n, 0);
    assert_int_equal(st.receipts.from, 10);
    receipts_init(&from_0, 0);
    receipts_init(&from_10, 10);
    assert_string_equal(st.receipts.order.s, from_10.order.s);
    assert_string_not_equal(st.receipts.order.s, from_0.order.s);
    char *log = scratch_read(f.log_path);
    assert_non_null(strstr(log, "steps up to 10 were made by a version without receipts"));
    free(log);
    save(&f, 20); /* and a new one is of this version again */
    assert_int_equal(checkpoint_load(&f.c, &st, f.ps, &f.states, &e), 1);
    assert_int_equal(st.receipts.n, 1);
    drop(&f);
}

static void drop_receipts(cJSON *m)
{
    cJSON_DeleteItemFromObject(m, "receipts");
}

static void spoil_order(cJSON *m)
{
    cJSON_ReplaceItemInObject(m, "order", cJSON_CreateString("0123"));
}

static void receipt_of_the_future(cJSON *m)
{
    cJSON_ReplaceItemInObject(json_find(m, "receipts")->child, "step", cJSON_CreateNumber(11));
}

static void repeat_receipt(cJSON *m)
{
    cJSON *list = json_find(m, "receipts");

    cJSON_AddItemToArray(list, cJSON_Duplicate(list->child, 1));
}

static void bad_receipts_are_damage(void **state)
{
    static const struct {
        void (*edit)(cJSON *m);
        const char *says;
    } rows[] = {{drop_receipts, "/receipts"},
                {spoil_order, "/order: \"0123\" found"},
                {receipt_of_the_future, "/receipts: step 11 found"},
                {repeat_receipt, "/receipts/1/step: 10 found"}};

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct fixture f;
        struct checkpoint_state st = {0};
        struct err e = ERR_INIT;
        make(&f, state, 1, 3);
        save(&f, 10);
        edit_manifest(&f, 10, rows[i].edit);
        assert_int_equal(checkpoint_load(&f.c, &st, f.ps, &f.states, &e), -1);
        if (!strstr(e.msg, rows[i].says))
            fail_msg("%s", e.msg);
        drop(&f);
    }
}

static void all_damaged_is_an_error(void **state)
{
    struct fixture f;
    struct checkpoint_state st;
    struct err e = ERR_INIT;

    make(&f, state, 1, 3);
    for (int64_t s = 10; s <= 20; s += 10) {
        save(&f, s);
        char *path = file_of(&f, s, "model.safetensors");
        scratch_flip(path, -5);
        free(path);
    }
    assert_int_equal(checkpoint_load(&f.c, &st, f.ps, &f.states, &e), -1);
    assert_non_null(strstr(e.msg, "no checkpoint is whole"));
    assert_non_null(strstr(e.msg, "step-00000010"));
    drop(&f);
}

static void others_are_refused(void **state)
{
    struct fixture a, b;
    struct checkpoint_state st;
    struct err e = ERR_INIT;

    make(&a, state, 1, 3);
    save(&a, 10);
    make(&b, state, 1, 4);
    assert_int_equal(checkpoint_load(&b.c, &st, b.ps, &b.states, &e), -1);
    assert_true(strstr(e.msg, "fc.weight") && strstr(e.msg, "(3, 5)") && strstr(e.msg, "(4, 5)"));
    b.states.v[1].name = "momentum"; /* what this checkpoint does not hold */
    assert_int_equal(checkpoint_load(&a.c, &st, a.ps, &b.states, &e), -1);
    assert_non_null(strstr(e.msg, "tensor momentum."));
    a.c.data_hash = "abd";
    assert_int_equal(checkpoint_load(&a.c, &st, a.ps, &a.states, &e), -1);
    assert_non_null(strstr(e.msg, "data"));
    a.c.data_hash = "abc";
    cJSON_ReplaceItemInObject(a.spec, "seed", cJSON_CreateNumber(5));
    assert_int_equal(checkpoint_load(&a.c, &st, a.ps, &a.states, &e), -1);
    assert_non_null(strstr(e.msg, "/seed"));
    drop(&a);
    drop(&b);
}

static void failed_save_leaves_the_old_ones(void **state)
{
    static const char *const points[] = {"checkpoint.mid_write:error", "checkpoint.before_rename:error"};
    struct fixture f;
    struct checkpoint_state st = {.step = 20, .best = {-1, -1, 0}};
    struct err e = ERR_INIT;

    make(&f, state, 1, 3);
    receipts_init(&st.receipts, 0);
    save(&f, 10);
    for (int i = 0; i < 2; i++) {
        setenv("BATCHFORMER_FAULT", points[i], 1);
        assert_int_equal(checkpoint_save(&f.c, &st, f.ps, &f.states, &e), -1);
        unsetenv("BATCHFORMER_FAULT");
        assert_int_equal(scratch_count(f.c.dir), 1);
    }
    assert_int_equal(checkpoint_load(&f.c, &st, f.ps, &f.states, &e), 1);
    assert_int_equal(st.step, 10);
    assert_int_equal(st.best.epoch, 1);
    drop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(round_trip, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(keeps_the_newest, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(what_is_too_old_loses_its_name_first, scratch_setup,
                                        scratch_teardown),
        cmocka_unit_test_setup_teardown(falls_back, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(every_flip_in_the_manifest_is_seen, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(version_1_has_no_receipts, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(bad_receipts_are_damage, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(all_damaged_is_an_error, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(others_are_refused, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(failed_save_leaves_the_old_ones, scratch_setup, scratch_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
