/* test_fsutil - files that are whole or absent; hashes; fault points. */
#include "tests/unit/cm.h"
#include "common/fault.h"
#include "common/fsutil.h"
#include "common/hash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char *temp_dir(void)
{
    return mkdtemp(xstrdup("/tmp/test_fsutil.XXXXXX"));
}

static void test_replace_and_read(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    char *dir = temp_dir(), *path = fs_join(dir, "a/b/c.txt"), *parent = fs_join(dir, "a/b"), *text;
    size_t len;

    assert_int_equal(fs_atomic_replace(path, "x", 1, &e), -1); /* no directory yet */
    assert_non_null(strstr(e.msg, path));
    assert_int_equal(fs_mkdir_p(parent, &e), 0);
    assert_int_equal(fs_mkdir_p(parent, &e), 0);
    assert_int_equal(fs_atomic_replace(path, "old", 3, &e), 0);
    assert_int_equal(fs_atomic_replace(path, "newer", 5, &e), 0);
    assert_int_equal(fs_read_file(path, 5, &text, &len, &e), 0);
    assert_int_equal(len, 5);
    assert_string_equal(text, "newer");
    free(text);
    assert_int_equal(fs_read_file(path, 4, &text, &len, &e), -1);
    assert_non_null(strstr(e.msg, "is larger than 4 bytes"));
    assert_int_equal(fs_read_file(parent, 4, &text, &len, &e), -1);
    assert_non_null(strstr(e.msg, "is a directory"));
    assert_int_equal(fs_mkdir_p(path, &e), -1);
    assert_int_equal(fs_remove_tree(dir, &e), 0);
    assert_false(fs_exists(dir));
    assert_int_equal(fs_remove_tree(dir, &e), 0);
    free(path);
    free(parent);
    free(dir);
}

static void test_big_file(void **state)
{
    (void)state;
    enum { N = 300000 };
    struct err e = ERR_INIT;
    char *dir = temp_dir(), *path = fs_join(dir, "big"), *data = xmalloc(N), *back;
    size_t len;

    for (int i = 0; i < N; i++)
        data[i] = (char)(i * 7);
    assert_int_equal(fs_atomic_replace(path, data, N, &e), 0);
    assert_int_equal(fs_read_file(path, N, &back, &len, &e), 0);
    assert_int_equal(len, N);
    assert_memory_equal(back, data, N);
    struct hash_hex h;
    assert_int_equal(hash_file(path, &h, &e), 0);
    assert_string_equal(h.s, hash_bytes(data, N).s);
    data[N / 2] ^= 1;
    assert_string_not_equal(h.s, hash_bytes(data, N).s);
    assert_int_equal(fs_remove_tree(dir, &e), 0);
    free(back);
    free(data);
    free(path);
    free(dir);
}

static void test_copy_tree(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    char *dir = temp_dir(), *from = fs_join(dir, "from"), *deep = fs_join(dir, "from/a/b"), *text;
    char *file = fs_join(deep, "f"), *to = fs_join(dir, "to"), *copy = fs_join(dir, "to/a/b/f");
    char *link = fs_join(dir, "from/link"), *other = fs_join(dir, "other");
    size_t len;

    assert_int_equal(fs_mkdir_p(deep, &e), 0);
    assert_int_equal(fs_atomic_replace(file, "one\0two", 7, &e), 0);
    assert_int_equal(fs_copy_tree(from, to, &e), 0);
    assert_int_equal(fs_read_file(copy, 100, &text, &len, &e), 0);
    assert_int_equal(len, 7);
    assert_memory_equal(text, "one\0two", 7);
    free(text);
    assert_int_equal(fs_atomic_replace(copy, "changed", 7, &e), 0); /* a file of its own */
    assert_int_equal(fs_read_file(file, 100, &text, &len, &e), 0);
    assert_memory_equal(text, "one\0two", 7);
    free(text);
    assert_int_equal(fs_copy_tree(from, to, &e), -1);
    assert_non_null(strstr(e.msg, to));
    assert_int_equal(symlink("/etc/passwd", link), 0);
    assert_int_equal(fs_copy_tree(from, other, &e), -1);
    assert_non_null(strstr(e.msg, link));
    assert_int_equal(fs_remove_tree(dir, &e), 0);
    char *const all[] = {dir, from, deep, file, to, copy, link, other};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* A known answer: XXH3-128 of nothing, seed 0. */
static void test_hash_known(void **state)
{
    (void)state;
    assert_string_equal(hash_bytes("", 0).s, "99aa06d3014798d86001c324468d497f");
}

static void test_fault(void **state)
{
    (void)state;
    int n = 0;

    unsetenv("BATCHFORMER_FAULT");
    assert_false(fault_hit("a.b", &n));
    setenv("BATCHFORMER_FAULT", "x.y:kill,a.b:error@2", 1);
    assert_false(fault_hit("a.b", &n));
    assert_true(fault_hit("a.b", &n));
    assert_false(fault_hit("a.b", &n));
    assert_false(fault_hit("a", &n));
    pid_t child = fork();
    if (child == 0) {
        int k = 0;
        fault_hit("x.y", &k);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == 9);
    unsetenv("BATCHFORMER_FAULT");
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replace_and_read),
        cmocka_unit_test(test_big_file),
        cmocka_unit_test(test_copy_tree),
        cmocka_unit_test(test_hash_known),
        cmocka_unit_test(test_fault),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
