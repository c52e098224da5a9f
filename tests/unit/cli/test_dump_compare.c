/* test_dump_compare - deviations by hand, and files that cannot be compared. */
#include "tests/unit/cm.h"
#include "cli/dump_compare.h"
#include "common/safetensors.h"
#include "scratch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define N(v) (sizeof(v) / sizeof *(v))

static double deviation(const float *a, const float *b, size_t n, int64_t expect_different)
{
    struct dump_sums s = {0};

    dump_sums_add(&s, a, b, n);
    assert_int_equal(s.elements, n);
    assert_int_equal(s.elements_different, expect_different);
    return dump_sums_deviation(&s);
}

static void values(void **state)
{
    (void)state;
    static const float a[] = {3, 0, 4}, b[] = {3, 1, 4}, zero[] = {0, 0, 0}, tiny[] = {1e-14f, 0, 0};
    static const float minus[] = {-0.0f, 0, 0}, big[] = {3e38f, 3e38f, 3e38f};

    assert_true(deviation(a, a, 3, 0) == 0);
    assert_true(fabs(deviation(a, b, 3, 1) - 0.2) < 1e-15); /* of a's norm, 5 */
    assert_true(fabs(deviation(b, a, 3, 1) - 1 / sqrt(26)) < 1e-15);
    assert_true(deviation(zero, zero, 3, 0) == 0);
    assert_true(fabs(deviation(zero, a, 3, 2) / 5e12 - 1) < 1e-12); /* far apart, not infinite */
    assert_true(fabs(deviation(zero, tiny, 3, 1) - 1e-2) < 1e-8);   /* below the floor */
    assert_true(deviation(zero, minus, 3, 1) == 0);                 /* other bits, the same number */
    assert_true(fabs(deviation(big, zero, 3, 3) - 1) < 1e-15);      /* no overflow in the squares */
    assert_true(deviation(a, a, 0, 0) == 0);
}

static void not_numbers(void **state)
{
    (void)state;
    static const float a[] = {1, NAN}, b[] = {2, NAN}, c[] = {1, 5}, d[] = {INFINITY, 5};

    assert_true(deviation(a, a, 2, 0) == 0);
    assert_true(isinf(deviation(a, b, 2, 1)));
    assert_true(isinf(deviation(a, c, 2, 1)));
    assert_true(isinf(deviation(c, a, 2, 1)));
    assert_true(isinf(deviation(c, d, 2, 1)));
    assert_true(isinf(deviation(d, c, 2, 1)));
}

struct tensor {
    const char *name;
    int64_t n;
    float v[4];
};

static char *file(void **state, const char *name, const struct tensor *t, size_t n_tensors)
{
    char *path = scratch_path(state, name);
    struct safetensors_writer *w = safetensors_writer_create(path);
    struct err e = ERR_INIT;

    for (size_t i = 0; i < n_tensors; i++)
        safetensors_writer_add(w, t[i].name, SAFETENSORS_F32, 1, &t[i].n);
    assert_int_equal(safetensors_writer_begin(w, &e), 0);
    for (size_t i = 0; i < n_tensors; i++)
        assert_int_equal(safetensors_writer_data(w, t[i].v, (size_t)t[i].n * sizeof(float), &e), 0);
    assert_int_equal(safetensors_writer_finish(w, &e), 0);
    safetensors_writer_destroy(w);
    return path;
}

static void files(void **state)
{
    static const struct tensor ta[] = {
        {"param.w", 2, {3, 4}}, {"grad.w", 3, {3, 0, 4}}, {"grad.v", 2, {1, 1}}, {"grad.same", 1, {7}}};
    static const struct tensor tb[] = {
        {"grad.v", 2, {1, 2}}, {"grad.same", 1, {7}}, {"grad.w", 3, {3, 1, 5}}, {"param.w", 2, {3, 4}}};
    char *a = file(state, "a.st", ta, N(ta)), *b = file(state, "b.st", tb, N(tb));
    struct dump_deviation d;
    struct err e = ERR_INIT;

    assert_int_equal(dump_compare(a, b, "grad.", &d, &e), 0);
    assert_string_equal(d.where, "v");
    assert_true(fabs(d.worst - 1 / sqrt(2)) < 1e-15);
    assert_true(fabs(d.overall - sqrt(3 / (25.0 + 2 + 49))) < 1e-15);
    assert_int_equal(d.elements, 6);
    assert_int_equal(d.elements_different, 3);
    assert_int_equal(dump_compare(a, b, "param.", &d, &e), 0);
    assert_true(d.worst == 0 && d.elements == 2 && d.elements_different == 0);
    assert_string_equal(d.where, "");
    free(a);
    free(b);
}

/* A difference that is no deviation has a place all the same. */
static void minus_zero(void **state)
{
    static const struct tensor ta[] = {{"grad.w", 1, {0}}}, tb[] = {{"grad.w", 1, {-0.0f}}};
    char *a = file(state, "a.st", ta, 1), *b = file(state, "b.st", tb, 1);
    struct dump_deviation d;
    struct err e = ERR_INIT;

    assert_int_equal(dump_compare(a, b, "grad.", &d, &e), 0);
    assert_true(d.worst == 0 && d.elements_different == 1);
    assert_string_equal(d.where, "w");
    free(a);
    free(b);
}

static void refuse(const char *a, const char *b, const char *prefix, const char *message)
{
    struct dump_deviation d;
    struct err e = ERR_INIT;

    assert_int_equal(dump_compare(a, b, prefix, &d, &e), -1);
    if (!strstr(e.msg, message))
        fail_msg("'%s' is not in '%s'", message, e.msg);
}

static void incomparable(void **state)
{
    static const struct tensor two[] = {{"grad.w", 2, {1, 2}}, {"grad.v", 1, {1}}};
    static const struct tensor one[] = {{"grad.w", 2, {1, 2}}}, other[] = {{"grad.w", 3, {1, 2, 3}}};
    char *a = file(state, "a.st", two, 2), *b = file(state, "b.st", one, 1),
         *c = file(state, "c.st", other, 1), *none = scratch_path(state, "none.st");

    refuse(a, b, "grad.", "tensor grad.v is in ");
    refuse(b, a, "grad.", "tensor grad.v is in ");
    refuse(b, c, "grad.", "tensor grad.w is (2) in ");
    refuse(a, a, "param.", "no tensor's name begins with \"param.\"");
    refuse(a, none, "grad.", none);
    free(a);
    free(b);
    free(c);
    free(none);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(values),
        cmocka_unit_test(not_numbers),
        cmocka_unit_test_setup_teardown(files, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(minus_zero, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(incomparable, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
