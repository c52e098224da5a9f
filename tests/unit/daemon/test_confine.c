/* test_confine - paths under roots, by their text and where they lead; links that change on the way. */
#include "daemon/confine.h"

#include "tests/unit/cm.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/json.h"
#include "tests/unit/daemon/tmp_state.h"

/* DIR/in (the root), DIR/in2, DIR/out; files in them, links between them. */
struct fixture {
    struct tmp_state tmp;
    char *items[2];
    struct conf_list roots;
};

static char *at(const struct fixture *f, const char *path)
{
    return fs_join(f->tmp.dir, path);
}

static void make_dir(const struct fixture *f, const char *path)
{
    char *full = at(f, path);

    assert_int_equal(mkdir(full, 0755), 0);
    free(full);
}

static void make_file(const struct fixture *f, const char *path)
{
    char *full = at(f, path);
    int fd = open(full, O_WRONLY | O_CREAT | O_EXCL, 0644);

    assert_true(fd >= 0);
    close(fd);
    free(full);
}

/* A relative target counts from the link, one that begins with '/' from the fixture's directory. */
static void make_link(const struct fixture *f, const char *path, const char *target)
{
    char *full = at(f, path), *to = target[0] == '/' ? at(f, target + 1) : xstrdup(target);

    assert_int_equal(symlink(to, full), 0);
    free(to);
    free(full);
}

static int set_up(void **state)
{
    struct fixture *f = xcalloc(1, sizeof *f);

    tmp_state_make(&f->tmp);
    assert_int_equal(chmod(f->tmp.dir, 0755), 0);
    make_dir(f, "in");
    make_dir(f, "in/sub");
    make_dir(f, "in2");
    make_dir(f, "out");
    make_file(f, "in/file");
    make_file(f, "in2/file");
    make_file(f, "in/sub/file");
    make_file(f, "out/secret");
    make_link(f, "in/to-sub", "sub");
    make_link(f, "in/to-in2", "/in2");
    make_link(f, "in/to-secret", "/out/secret");
    make_link(f, "in/to-out", "../out");
    make_link(f, "in/to-nothing", "/in/none");
    make_link(f, "in/loop", "loop");
    make_link(f, "in/to-passwd", "../../../etc/passwd");
    make_link(f, "link-to-in", "in");
    f->items[0] = at(f, "in");
    f->roots = (struct conf_list){f->items, 1};
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    tmp_state_remove(&f->tmp);
    free(f->items[0]);
    free(f->items[1]);
    free(f);
    return 0;
}

static bool allowed(const struct fixture *f, const char *path, struct err *e)
{
    char *full = path[0] == '/' ? at(f, path + 1) : xstrdup(path);
    bool ok = confine_path(&f->roots, getuid(), full, e) == 0;

    free(full);
    return ok;
}

static void test_inside(void **state)
{
    static const char *const good[] = {
        "/in", "/in/", "/in/file", "/in/sub", "/in//sub/./file", "/in/to-sub", "/in/to-sub/file"};
    const struct fixture *f = *state;

    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(allowed(f, good[i], NULL));
}

static void test_outside(void **state)
{
    static const struct {
        const char *path, *says;
    } bad[] = {
        {"/out/secret", "--data-root"},       {"/in2/file", "--data-root"}, /* not a part of the name: /in */
        {"/in/../out/secret", "\"..\""},      {"/in/sub/..", "\"..\""},
        {"/in/to-secret", "by a link"},       {"/in/to-out/secret", "by a link"},
        {"/in/to-in2/file", "by a link"},     {"/in/to-passwd", "by a link"},
        {"/in/to-nothing", "leads nowhere"},  {"/in/none", "leads nowhere"},
        {"/in/loop", "leads nowhere"},        {"/in/file/x", "leads nowhere"},
        {"in/file", "a relative one is not"}, {"", "a relative one is not"},
        {"-rf", "a relative one is not"},
    };
    const struct fixture *f = *state;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = ERR_INIT;
        assert_false(allowed(f, bad[i].path, &e));
        assert_non_null(strstr(e.msg, bad[i].says));
        assert_non_null(strstr(e.msg, f->items[0])); /* which roots there are */
    }
}

/* What does not exist outside is answered like what does. */
static void test_nothing_is_told_of_what_lies_outside(void **state)
{
    const struct fixture *f = *state;
    struct err there = ERR_INIT, not_there = ERR_INIT;

    assert_false(allowed(f, "/out/secret", &there));
    assert_false(allowed(f, "/out/nosuch", &not_there));
    char *rest = strstr(there.msg, "secret\""), *other = strstr(not_there.msg, "nosuch\"");
    assert_string_equal(rest + strlen("secret"), other + strlen("nosuch"));
}

/* The kernel's own links lead each process elsewhere. */
static void test_links_of_the_kernel(void **state)
{
    struct fixture *f = *state;
    char *cwd = get_current_dir_name();

    free(f->items[0]);
    f->items[0] = xstrdup("/");
    assert_true(allowed(f, "/out/secret", NULL));
    assert_int_equal(chdir(f->tmp.dir), 0);
    assert_int_equal(confine_path(&f->roots, getuid(), "/proc/self/cwd/in/file", NULL), -1);
    assert_int_equal(confine_path(&f->roots, getuid(), "/proc/self/root/etc", NULL), -1);
    assert_int_equal(chdir(cwd), 0);
    free(cwd);
}

static void test_roots_that_are_links_and_several(void **state)
{
    struct fixture *f = *state;

    free(f->items[0]);
    f->items[0] = at(f, "link-to-in");
    assert_true(allowed(f, "/link-to-in/file", NULL));
    assert_true(allowed(f, "/in/file", NULL));
    assert_false(allowed(f, "/in/to-in2/file", NULL));
    f->items[1] = at(f, "in2");
    f->roots.n_items = 2;
    assert_true(allowed(f, "/in2/file", NULL));
    assert_true(allowed(f, "/in/to-in2/file", NULL));
    assert_false(allowed(f, "/out/secret", NULL));
    free(f->items[1]);
    f->items[1] = at(f, "nosuch"); /* a root that is not there admits nothing */
    assert_false(allowed(f, "/nosuch/x", NULL));
}

/* --- specs --- */

static cJSON *make_spec(const char *data_path, const char *weights)
{
    cJSON *spec = cJSON_CreateObject();

    cJSON_AddStringToObject(cJSON_AddObjectToObject(spec, "data"), "path", data_path);
    cJSON *init = cJSON_AddObjectToObject(spec, "init");
    if (weights)
        cJSON_AddStringToObject(init, "weights", weights);
    else
        cJSON_AddNullToObject(init, "weights");
    return spec;
}

static void test_every_path_of_a_spec(void **state)
{
    const struct fixture *f = *state;
    struct options o = {.data_root = f->roots};
    char *in = at(f, "in"), *out = at(f, "out/secret");

    cJSON *good = make_spec(in, NULL), *bad = make_spec(out, out);
    assert_null(confine_find(&o, getuid(), good));
    cJSON *findings = confine_find(&o, getuid(), bad);
    assert_int_equal(cJSON_GetArraySize(findings), 2);
    assert_string_equal(json_find(findings->child, "pointer")->valuestring, "/data/path");
    assert_string_equal(json_find(findings->child->next, "pointer")->valuestring, "/init/weights");
    assert_non_null(strstr(json_find(findings->child, "message")->valuestring, out));
    cJSON *again = make_spec(in, NULL);
    assert_true(confine_same(good, again));
    assert_false(confine_same(good, bad));
    assert_false(confine_same(bad, good));
    cJSON_Delete(again);
    cJSON_Delete(findings);
    cJSON_Delete(good);
    cJSON_Delete(bad);
    free(in);
    free(out);
}

/* Without roots only those are free whose jobs gain nothing by it. */
static void test_without_roots(void **state)
{
    struct options o = {0};
    cJSON *spec = make_spec("/etc", NULL), *synthetic = cJSON_CreateObject();
    int64_t stranger = (int64_t)getuid() + 12345;

    (void)state;
    assert_null(confine_find(&o, getuid(), spec));
    assert_null(confine_find(&o, 0, spec));
    cJSON *findings = confine_find(&o, stranger, spec);
    if (geteuid() == 0) /* his job runs as himself */
        assert_null(findings);
    else
        assert_int_equal(cJSON_GetArraySize(findings), 1);
    cJSON_Delete(findings);
    assert_null(confine_find(&o, stranger, synthetic)); /* it names no path */
    cJSON_Delete(spec);
    cJSON_Delete(synthetic);
}

/* --- links that change --- */

/* Fine at the submission, led elsewhere before the start. */
static void test_a_link_that_changes_after_the_submission(void **state)
{
    const struct fixture *f = *state;
    struct options o = {.data_root = f->roots};
    char *link = at(f, "in/link");
    struct err e = ERR_INIT;

    make_link(f, "in/link", "sub");
    cJSON *spec = make_spec(link, NULL);
    char *text = json_text(spec);
    assert_null(confine_find(&o, getuid(), spec));
    assert_int_equal(confine_check(&o, getuid(), text, &e), 0);
    assert_int_equal(unlink(link), 0);
    make_link(f, "in/link", "/out");
    assert_int_equal(confine_check(&o, getuid(), text, &e), -1);
    assert_non_null(strstr(e.msg, "/data/path: "));
    cJSON_Delete(spec);
    free(text);
    free(link);
}

struct flipper {
    char *a, *b;
    atomic_bool stop;
    atomic_long n;
};

static void *flip(void *ctx)
{
    struct flipper *fl = ctx;

    while (!atomic_load(&fl->stop)) {
        renameat2(AT_FDCWD, fl->a, AT_FDCWD, fl->b, RENAME_EXCHANGE);
        atomic_fetch_add(&fl->n, 1);
    }
    return NULL;
}

/* in/x is now a directory whose y leads out, now a link out to a directory that has a y: wherever the look
 * falls, y is outside, and a check that took the parts from different moments would call it inside. in/p/q is
 * always inside. */
static void test_links_that_change_under_the_check(void **state)
{
    const struct fixture *f = *state;
    struct flipper x = {.a = at(f, "in/x"), .b = at(f, "in/x2")},
                   p = {.a = at(f, "in/p"), .b = at(f, "in/p2")};
    pthread_t threads[2];

    make_dir(f, "in/x");
    make_link(f, "in/x/y", "/out/secret");
    make_dir(f, "out/x");
    make_file(f, "out/x/y");
    make_link(f, "in/x2", "/out/x");
    make_dir(f, "in/p");
    make_file(f, "in/p/q");
    make_link(f, "in/p2", "sub");
    make_file(f, "in/sub/q");
    assert_int_equal(pthread_create(&threads[0], NULL, flip, &x), 0);
    assert_int_equal(pthread_create(&threads[1], NULL, flip, &p), 0);
    for (long i = 0; i < 20000 || atomic_load(&x.n) < 1000 || atomic_load(&p.n) < 1000; i++) {
        assert_false(allowed(f, "/in/x/y", NULL));
        assert_true(allowed(f, "/in/p/q", NULL));
    }
    atomic_store(&x.stop, true);
    atomic_store(&p.stop, true);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    free(x.a);
    free(x.b);
    free(p.a);
    free(p.b);
}

/* Under root the submitter's own rights decide what he can point at. */
static void test_with_the_rights_of_the_submitter(void **state)
{
    const struct fixture *f = *state;
    char *sub = at(f, "in/sub");
    struct err e = ERR_INIT;

    if (geteuid() != 0)
        skip();
    assert_int_equal(chmod(sub, 0700), 0);
    char *file = at(f, "in/sub/file");
    assert_int_equal(confine_path(&f->roots, 0, file, &e), 0);
    assert_int_equal(confine_path(&f->roots, 65534, file, &e), -1);
    assert_non_null(strstr(e.msg, "Permission denied"));
    assert_int_equal(access(file, R_OK), 0);
    int fd = open(file, O_RDONLY); /* we are ourselves again */
    assert_true(fd >= 0);
    close(fd);
    free(file);
    free(sub);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_inside),
        TEST(test_outside),
        TEST(test_nothing_is_told_of_what_lies_outside),
        TEST(test_links_of_the_kernel),
        TEST(test_roots_that_are_links_and_several),
        TEST(test_every_path_of_a_spec),
        TEST(test_without_roots),
        TEST(test_a_link_that_changes_after_the_submission),
        TEST(test_links_that_change_under_the_check),
        TEST(test_with_the_rights_of_the_submitter),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
