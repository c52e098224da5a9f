/* test_spawn - programs started as ourselves and as another user: ids, groups, environment, descriptors,
 * ends. */
#include "daemon/spawn.h"

#include "tests/unit/cm.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/mpirun.h"
#include "daemon/user_env.h"
#include "tests/unit/daemon/tmp_state.h"

enum { NOBODY = 65534 };

struct fixture {
    struct tmp_state tmp;
    char *out;
    int out_fd;
};

static int set_up(void **state)
{
    struct fixture *f = xcalloc(1, sizeof *f);

    tmp_state_make(&f->tmp);
    chmod(f->tmp.dir, 0777);
    f->out = fs_join(f->tmp.dir, "out");
    f->out_fd = open(f->out, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    assert_true(f->out_fd >= 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    close(f->out_fd);
    tmp_state_remove(&f->tmp);
    free(f->out);
    free(f);
    return 0;
}

/* Runs a line of shell to its end; its output is malloc'ed. */
static char *run(const struct fixture *f, const char *script, const struct identity *as, int *status)
{
    char *const args[] = {"sh", "-c", (char *)(uintptr_t)script, NULL}, *const env[] = {"PATH=/usr/bin:/bin",
                                                                                        NULL};
    struct spawn s = {
        .file = "/bin/sh", .args = args, .env = env, .cwd = f->tmp.dir, .out_fd = f->out_fd, .as = as};
    struct err e = ERR_INIT;
    char *text;
    size_t len;
    pid_t pid;

    assert_int_equal(spawn_start(&s, &pid, &e), 0);
    assert_int_equal(waitpid(pid, status, 0), pid);
    assert_int_equal(fs_read_file(f->out, 1 << 20, &text, &len, NULL), 0);
    assert_int_equal(truncate(f->out, 0), 0);
    return text;
}

static void load_nobody(struct identity *who)
{
    struct err e = ERR_INIT;

    assert_int_equal(identity_load(NOBODY, who, &e), 0);
}

static void test_output_status_directory_session(void **state)
{
    const struct fixture *f = *state;
    int status;

    char *text = run(f, "pwd; echo err >&2; cat; ps -o pid=,sid= -p $$ | tr -s ' '; exit 7", NULL, &status);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    long pid, sid;
    char dir[80], err[8];
    assert_int_equal(sscanf(text, "%79s %7s %ld %ld", dir, err, &pid, &sid), 4);
    assert_string_equal(dir, f->tmp.dir);
    assert_string_equal(err, "err"); /* and cat found the end of its input at once */
    assert_int_equal(pid, sid);
    free(text);
    text = run(f, "kill -9 $$", NULL, &status);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    free(text);
}

/* What the daemon ignores or blocks the program does not. */
static void test_signals_are_as_new(void **state)
{
    const struct fixture *f = *state;
    sigset_t set;
    int status;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    char *text = run(f, "grep -E 'Sig(Blk|Ign)' /proc/self/status | tr -d '\\t\\n'", NULL, &status);
    assert_string_equal(text, "SigBlk:0000000000000000SigIgn:0000000000000000");
    free(text);
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static void test_no_other_descriptor_is_handed_on(void **state)
{
    const struct fixture *f = *state;
    int open_one = open("/dev/null", O_RDONLY), status; /* not close-on-exec */

    assert_true(open_one > 2);
    char *text = run(f, "ls /proc/self/fd | tr '\\n' ' '", NULL, &status);
    assert_string_equal(text, "0 1 2 3 "); /* 3 is ls's own look at the directory */
    free(text);
    close(open_one);
}

static void test_what_cannot_be_started_is_an_error(void **state)
{
    const struct fixture *f = *state;
    char *const args[] = {"x", NULL}, *const env[] = {NULL};
    struct spawn s = {.file = "/nonexistent/x", .args = args, .env = env, .cwd = "/", .out_fd = f->out_fd};
    struct err e = ERR_INIT;
    pid_t pid = -5;

    assert_int_equal(spawn_start(&s, &pid, &e), -1);
    assert_non_null(strstr(e.msg, "/nonexistent/x: exec: No such file or directory"));
    s.file = "/bin/true";
    s.cwd = "/nonexistent";
    assert_int_equal(spawn_start(&s, &pid, &e), -1);
    assert_non_null(strstr(e.msg, "chdir"));
    assert_int_equal(pid, -5);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* nothing is left to wait for */
    assert_int_equal(errno, ECHILD);
}

static void test_as_another_user(void **state)
{
    const struct fixture *f = *state;
    struct identity who;
    int status;

    if (geteuid() != 0)
        skip();
    load_nobody(&who);
    char *text = run(f,
                     "id -u; id -g; id -G; umask; touch made; stat -c %u:%g:%a made;"
                     "grep -E '^(Uid|Gid|Groups|NoNewPrivs|CapPrm|CapEff)' /proc/self/status",
                     &who, &status);
    assert_non_null(strstr(text, "65534\n65534\n65534\n0027\n65534:65534:640\n"));
    assert_non_null(strstr(text, "Uid:\t65534\t65534\t65534\t65534\n"));
    assert_non_null(strstr(text, "Gid:\t65534\t65534\t65534\t65534\n"));
    assert_non_null(strstr(text, "Groups:\t65534 \n"));
    assert_non_null(strstr(text, "NoNewPrivs:\t1\n"));
    assert_non_null(strstr(text, "CapPrm:\t0000000000000000\n"));
    assert_non_null(strstr(text, "CapEff:\t0000000000000000\n"));
    free(text);
    identity_free(&who);
    assert_int_equal(geteuid(), 0);
}

/* A directory that only root may enter is no place to start in for somebody else. */
static void test_the_directory_is_entered_as_the_user(void **state)
{
    const struct fixture *f = *state;
    char *const args[] = {"true", NULL}, *const env[] = {NULL};
    struct err e = ERR_INIT;
    struct identity who;
    pid_t pid;

    if (geteuid() != 0)
        skip();
    load_nobody(&who);
    assert_int_equal(chmod(f->tmp.dir, 0700), 0);
    struct spawn s = {
        .file = "/bin/true", .args = args, .env = env, .cwd = f->tmp.dir, .out_fd = f->out_fd, .as = &who};
    assert_int_equal(spawn_start(&s, &pid, &e), -1);
    assert_non_null(strstr(e.msg, "as user nobody: chdir: Permission denied"));
    identity_free(&who);
}

/* --- the environment --- */

static const char *value_of(char *const *env, const char *name)
{
    size_t n = strlen(name);
    const char *found = NULL;

    for (; *env; env++)
        if (strncmp(*env, name, n) == 0 && (*env)[n] == '=') {
            assert_null(found); /* each once */
            found = *env + n + 1;
        }
    return found;
}

static void test_environment_of_another_user(void **state)
{
    static const char *const kept[][2] = {{"LC_TIME", "C"},
                                          {"NCCL_DEBUG", "INFO"},
                                          {"OMPI_MCA_btl", "tcp,self"}};
    static const char *const dropped[] = {
        "SECRET_KEY",        "LD_PRELOAD",      "OMPI_COMM_WORLD_RANK",   "OMPI_MCA_ess",
        "BATCHFORMER_FAULT", "XDG_RUNTIME_DIR", "BATCHFORMER_TOKEN_FILE", "PATHX",
        "SSH_AUTH_SOCK"};
    const char *const ours[] = {"BATCHFORMER_TOKEN=abc", "GOMP_SPINCOUNT=1000"};
    struct identity who = {.uid = 7, .gid = 7, .name = "grace", .home = "/home/grace"};

    (void)state;
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        setenv(kept[i][0], kept[i][1], 1);
    for (size_t i = 0; i < sizeof dropped / sizeof *dropped; i++)
        setenv(dropped[i], "x", 1);
    setenv("HOME", "/root", 1);
    setenv("USER", "root", 1);
    setenv("GOMP_SPINCOUNT", "7", 1);
    setenv("BATCHFORMER_TOKEN", "root's own", 1);
    char **env = user_env(&who, ours, 2);
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        assert_string_equal(value_of(env, kept[i][0]), kept[i][1]);
    for (size_t i = 0; i < sizeof dropped / sizeof *dropped; i++) {
        assert_null(value_of(env, dropped[i]));
        unsetenv(dropped[i]);
    }
    assert_string_equal(value_of(env, "PATH"), getenv("PATH"));
    assert_string_equal(value_of(env, "HOME"), "/home/grace");
    assert_string_equal(value_of(env, "USER"), "grace");
    assert_string_equal(value_of(env, "LOGNAME"), "grace");
    assert_string_equal(value_of(env, "BATCHFORMER_TOKEN"), "abc");
    assert_string_equal(value_of(env, "GOMP_SPINCOUNT"), "1000");
    mpirun_free(env);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_output_status_directory_session),
        TEST(test_signals_are_as_new),
        TEST(test_no_other_descriptor_is_handed_on),
        TEST(test_what_cannot_be_started_is_an_error),
        TEST(test_as_another_user),
        TEST(test_the_directory_is_entered_as_the_user),
        cmocka_unit_test(test_environment_of_another_user),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
