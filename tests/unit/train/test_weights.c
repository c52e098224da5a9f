/* test_weights - names, shapes and the rules of init.weights. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "fake_backend.h"
#include "scratch.h"
#include "worker/train/weights.h"

static void save(const char *path, const struct params *ps, const char *skip)
{
    struct err e = ERR_INIT;

    if (weights_save(path, ps, skip, 7, NULL, &e) < 0)
        fail_msg("%s", e.msg);
}

static int load_init(const char *path, struct params *ps, struct err *e)
{
    return weights_load_init(path, ps, "fc", "batchformer.", NULL, e);
}

static bool same(const struct params *a, const struct params *b, const char *name)
{
    const struct param *p = params_find(a, name), *q = params_find(b, name);

    return memcmp(p->value, q->value, (size_t)shape_count(p->shape) * sizeof(float)) == 0;
}

static void file_has_the_usual_names(void **state)
{
    char *path = scratch_path(state, "m.safetensors");
    struct params *ps = fake_params(1, 3);
    struct err e = ERR_INIT;
    int64_t tracked;

    save(path, ps, NULL);
    struct safetensors *f = safetensors_open(path, &e);
    assert_non_null(f);
    assert_int_equal(safetensors_count(f), 9); /* 8 saved tensors and one num_batches_tracked */
    assert_null(safetensors_find(f, "prior"));
    const struct safetensors_entry *t = safetensors_find(f, "bn.num_batches_tracked");
    assert_true(t && t->dtype == SAFETENSORS_I64 && t->n_dims == 0);
    assert_int_equal(safetensors_read(f, t, &tracked, &e), 0);
    assert_int_equal(tracked, 7);
    safetensors_close(f);

    save(path, ps, "batchformer.");
    f = safetensors_open(path, &e);
    assert_non_null(f);
    assert_int_equal(safetensors_count(f), 8);
    assert_null(safetensors_find(f, "batchformer.w"));
    safetensors_close(f);
    params_destroy(ps);
    free(path);
}

static void init_takes_everything(void **state)
{
    char *path = scratch_path(state, "m.safetensors");
    struct params *a = fake_params(1, 3), *b = fake_params(2, 3);
    struct err e = ERR_INIT;

    assert_false(same(a, b, "layer.weight"));
    save(path, a, NULL);
    if (load_init(path, b, &e) < 0)
        fail_msg("%s", e.msg);
    assert_true(same(a, b, "layer.weight") && same(a, b, "bn.running_var") && same(a, b, "fc.bias"));
    assert_false(same(a, b, "prior"));
    params_destroy(a);
    params_destroy(b);
    free(path);
}

static void init_may_lack_the_module(void **state)
{
    char *path = scratch_path(state, "m.safetensors");
    struct params *a = fake_params(1, 3), *b = fake_params(2, 3), *c = fake_params(2, 3);
    struct err e = ERR_INIT;

    save(path, a, "batchformer.");
    assert_int_equal(load_init(path, b, &e), 0);
    assert_true(same(b, c, "batchformer.w") && same(a, b, "fc.weight"));
    params_destroy(a);
    params_destroy(b);
    params_destroy(c);
    free(path);
}

static void init_may_lack_the_classifier(void **state)
{
    char *path = scratch_path(state, "m.safetensors");
    struct params *a = fake_params(1, 3), *b = fake_params(2, 4), *c = fake_params(2, 4);
    struct err e = ERR_INIT;

    save(path, a, "fc.");
    assert_int_equal(load_init(path, b, &e), 0);
    assert_true(same(b, c, "fc.weight") && same(a, b, "layer.weight"));
    params_destroy(a);
    params_destroy(b);
    params_destroy(c);
    free(path);
}

static void other_class_count_is_refused_with_a_way_out(void **state)
{
    char *path = scratch_path(state, "m.safetensors");
    struct params *a = fake_params(1, 3), *b = fake_params(2, 4);
    struct err e = ERR_INIT;

    save(path, a, NULL);
    assert_int_equal(load_init(path, b, &e), -1);
    assert_non_null(strstr(e.msg, "fc.weight"));
    assert_non_null(strstr(e.msg, "(3, 5)"));
    assert_non_null(strstr(e.msg, "(4, 5)"));
    assert_non_null(strstr(e.msg, "without fc.weight and fc.bias is accepted"));
    params_destroy(a);
    params_destroy(b);
    free(path);
}

static void missing_and_unknown_tensors_are_named(void **state)
{
    char *path = scratch_path(state, "m.safetensors");
    struct params *a = fake_params(1, 3), *b = fake_params(2, 3);
    struct err e = ERR_INIT;

    save(path, a, "bn.");
    assert_int_equal(load_init(path, b, &e), -1);
    assert_non_null(strstr(e.msg, "bn.weight"));
    assert_non_null(strstr(e.msg, "missing"));

    struct safetensors_writer *w = safetensors_writer_create(path);
    safetensors_writer_add(w, "stranger", SAFETENSORS_F32, 0, NULL);
    assert_int_equal(safetensors_writer_begin(w, &e), 0);
    assert_int_equal(safetensors_writer_data(w, &(float){1}, 4, &e), 0);
    assert_int_equal(safetensors_writer_finish(w, &e), 0);
    safetensors_writer_destroy(w);
    assert_int_equal(load_init(path, b, &e), -1);
    assert_non_null(strstr(e.msg, "no tensor stranger"));
    params_destroy(a);
    params_destroy(b);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(file_has_the_usual_names, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(init_takes_everything, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(init_may_lack_the_module, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(init_may_lack_the_classifier, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(other_class_count_is_refused_with_a_way_out, scratch_setup,
                                        scratch_teardown),
        cmocka_unit_test_setup_teardown(missing_and_unknown_tensors_are_named, scratch_setup,
                                        scratch_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
