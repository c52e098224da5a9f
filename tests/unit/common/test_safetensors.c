/* test_safetensors - round trip of all types, and files made to hurt: each must be refused with a message
 * that names file and fault. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/fsutil.h"
#include "scratch.h"
#include "common/safetensors.h"

static void round_trip(void **state)
{
    char *path = scratch_path(state, "a.safetensors");
    const float f32[6] = {1, -2, 3.5f, 0, 1e-30f, -1e30f};
    const double f64[1] = {0.1};
    const int64_t i64[2] = {-5, INT64_C(1) << 60}, scalar = 42;
    const int32_t i32[1] = {-7};
    struct err e = ERR_INIT;
    struct safetensors_writer *w = safetensors_writer_create(path);

    safetensors_writer_metadata(w, "note", "a \"quoted\" one");
    safetensors_writer_add(w, "w", SAFETENSORS_F32, 2, (const int64_t[]){2, 3});
    safetensors_writer_add(w, "d", SAFETENSORS_F64, 1, (const int64_t[]){1});
    safetensors_writer_add(w, "empty", SAFETENSORS_F32, 2, (const int64_t[]){0, 3});
    safetensors_writer_add(w, "l", SAFETENSORS_I64, 1, (const int64_t[]){2});
    safetensors_writer_add(w, "s", SAFETENSORS_I64, 0, NULL);
    safetensors_writer_add(w, "i", SAFETENSORS_I32, 1, (const int64_t[]){1});
    assert_int_equal(safetensors_writer_begin(w, &e), 0);
    assert_int_equal(safetensors_writer_data(w, f32, sizeof f32, &e), 0);
    assert_int_equal(safetensors_writer_data(w, f64, sizeof f64, &e), 0);
    assert_int_equal(safetensors_writer_data(w, f32, 0, &e), 0);
    assert_int_equal(safetensors_writer_data(w, i64, sizeof i64, &e), 0);
    assert_int_equal(safetensors_writer_data(w, &scalar, sizeof scalar, &e), 0);
    assert_int_equal(safetensors_writer_data(w, i32, sizeof i32, &e), 0);
    assert_false(fs_exists(path)); /* appears only when it is whole */
    assert_int_equal(safetensors_writer_finish(w, &e), 0);
    safetensors_writer_destroy(w);

    struct safetensors *f = safetensors_open(path, &e);
    if (!f)
        fail_msg("%s", e.msg);
    assert_int_equal(safetensors_count(f), 6);
    const struct safetensors_entry *t = safetensors_find(f, "w");
    float back[6];
    assert_true(t && t->dtype == SAFETENSORS_F32 && t->n_dims == 2 && t->dims[0] == 2 && t->dims[1] == 3);
    assert_int_equal(safetensors_read(f, t, back, &e), 0);
    assert_memory_equal(back, f32, sizeof f32);
    int64_t s;
    t = safetensors_find(f, "s");
    assert_true(t && t->dtype == SAFETENSORS_I64 && t->n_dims == 0);
    assert_int_equal(safetensors_read(f, t, &s, &e), 0);
    assert_int_equal(s, 42);
    assert_null(safetensors_find(f, "__metadata__"));
    assert_null(safetensors_find(f, "nothing"));
    safetensors_close(f);
    free(path);
}

static void unfinished_writer_leaves_nothing(void **state)
{
    char *path = scratch_path(state, "b.safetensors");
    struct err e = ERR_INIT;
    struct safetensors_writer *w = safetensors_writer_create(path);
    float x = 1;

    safetensors_writer_add(w, "x", SAFETENSORS_F32, 0, NULL);
    assert_int_equal(safetensors_writer_begin(w, &e), 0);
    assert_int_equal(safetensors_writer_data(w, &x, sizeof x, &e), 0);
    safetensors_writer_destroy(w);
    assert_int_equal(scratch_count(*state), 0);
    free(path);
}

/* One hostile header; what its message must contain; bytes of data behind it. */
struct hostile {
    const char *header, *message;
    size_t data_bytes;
};

static const struct hostile table[] = {
    {"", "not valid JSON", 0},
    {"[]", "not a JSON object", 0},
    {"{\"a\":1}", "not an object", 0},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}", "not valid JSON", 4},
    {"{\"a\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]}}", "dtype 'BF16'", 2},
    {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", "dtype", 4},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", "'shape'", 4},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", "dimension 0", 4},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", "dimension 0", 4},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", "more than 8", 4},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}",
     "larger than any", 4},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", "'data_offsets'", 4},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", "'data_offsets'", 4},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", "'data_offsets'", 4},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", "outside", 4},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", "outside", 4},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "outside", 4},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", "takes 8 bytes", 4},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", "8 bytes of data", 8},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", "after a gap", 8},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
     "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
     "tensor b starts at byte 4 of the data, inside another", 8},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
     "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
     "twice", 8},
    {"{\"__metadata__\":{\"k\":1}}", "not a string", 0},
    {"{\"__metadata__\":[]}", "not an object", 0},
};

static void write_file(const char *path, uint64_t announced, const char *header, size_t data_bytes)
{
    size_t n = strlen(header);
    char *all = calloc(8 + n + data_bytes + 1, 1);

    memcpy(all, &announced, 8);
    memcpy(all + 8, header, n);
    scratch_write(path, all, 8 + n + data_bytes);
    free(all);
}

static void expect_refused(const char *path, const char *message)
{
    struct err e = ERR_INIT;
    struct safetensors *f = safetensors_open(path, &e);

    if (f) {
        safetensors_close(f);
        fail_msg("accepted, although: %s", message);
    }
    if (!strstr(e.msg, message) || !strstr(e.msg, path))
        fail_msg("message \"%s\" names not both \"%s\" and the file", e.msg, message);
}

static void hostile_headers(void **state)
{
    char *path = scratch_path(state, "c.safetensors");

    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        write_file(path, strlen(table[i].header), table[i].header, table[i].data_bytes);
        expect_refused(path, table[i].message);
    }
    free(path);
}

static void hostile_lengths(void **state)
{
    char *path = scratch_path(state, "d.safetensors");

    scratch_write(path, "1234567", 7);
    expect_refused(path, "7 bytes");
    write_file(path, 3, "{}", 0); /* one byte more than there is */
    expect_refused(path, "header of 3 bytes in a file of 10");
    write_file(path, 100000001, "{}", 0);
    expect_refused(path, "at most 100000000");
    write_file(path, UINT64_MAX, "{}", 0);
    expect_refused(path, "at most 100000000");
    write_file(path, UINT64_MAX - 7, "{}", 0);
    expect_refused(path, "at most 100000000");
    expect_refused(*state, "not a regular file");
    free(path);
}

static void empty_file_is_fine(void **state)
{
    char *path = scratch_path(state, "e.safetensors");
    struct err e = ERR_INIT;

    write_file(path, 2, "{}", 0);
    struct safetensors *f = safetensors_open(path, &e);
    assert_non_null(f);
    assert_int_equal(safetensors_count(f), 0);
    safetensors_close(f);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(round_trip, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(unfinished_writer_leaves_nothing, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(hostile_headers, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(hostile_lengths, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(empty_file_is_fine, scratch_setup, scratch_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
