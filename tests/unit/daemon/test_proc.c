/* test_proc - identities, and finding and ending the processes of an attempt wherever they hide. */
#include "daemon/proc.h"

#include "tests/unit/cm.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* A child that leads a session and has two children: one in a group of its own, one in a session of its own.
 */
static pid_t start_family(const char *env)
{
    int ready[2];
    char byte;

    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        char *const argv[] = {"sh", "-c", "setsid sleep 1000 & sleep 1000 & echo ok; wait", NULL};
        char *const envp[] = {"PATH=/usr/bin:/bin", strdup(env), NULL};
        setsid();
        dup2(ready[1], 1);
        execve("/bin/sh", argv, envp);
        _exit(127);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    close(ready[1]);
    return pid;
}

static void make_token(char *env, size_t size)
{
    snprintf(env, size, "BF_TEST_TOKEN=%ld", (long)getpid());
}

/* What a failed test left behind would hold its output open. */
static int end_all(void **state)
{
    char env[64];
    struct proc_family all = {.env = env};

    (void)state;
    make_token(env, sizeof env);
    for (int i = 0; i < 100 && proc_signal_family(&all, SIGKILL) > 0; i++)
        usleep(10000);
    while (waitpid(-1, NULL, WNOHANG) > 0)
        continue;
    return 0;
}

static void test_identity(void **state)
{
    struct job_process me, changed;

    (void)state;
    assert_int_equal(proc_identify(getpid(), &me), 0);
    assert_true(me.pid == getpid() && me.start_ticks > 0 && me.boot_id[0]);
    assert_true(proc_alive(&me));
    changed = me;
    changed.start_ticks++; /* another process with the same pid */
    assert_false(proc_alive(&changed));
    assert_int_equal(proc_open(&changed), -1);
    changed = me;
    strcpy(changed.boot_id, "another boot");
    assert_false(proc_alive(&changed));
    assert_int_equal(proc_identify(0, &me), -1);
    assert_int_equal(proc_identify(1 << 30, &me), -1);
}

static void test_a_zombie_is_dead(void **state)
{
    struct job_process p;
    siginfo_t info;

    (void)state;
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    assert_int_equal(proc_identify(pid, &p), -1);
    waitpid(pid, NULL, 0);
}

static void wait_for_count(const struct proc_family *f, int want)
{
    for (int i = 0; i < 3000 && proc_signal_family(f, 0) != want; i++)
        usleep(10000);
    assert_int_equal(proc_signal_family(f, 0), want);
}

static void test_family_is_found_and_ended(void **state)
{
    struct job_process leader, found;
    char env[64];

    (void)state;
    make_token(env, sizeof env);
    pid_t pid = start_family(env);
    assert_int_equal(proc_identify(pid, &leader), 0);
    struct proc_family by_env = {.env = env}, by_session = {.leader = leader},
                       both = {.leader = leader, .env = env};
    wait_for_count(&by_env, 3);
    wait_for_count(&by_session, 2); /* the one that left the session is not in it */
    assert_int_equal(proc_find_leader(env, &found), 0);
    assert_int_equal(found.pid, pid);

    kill(pid, SIGKILL); /* the leader alone */
    waitpid(pid, NULL, 0);
    assert_int_equal(proc_signal_family(&both, 0), 2);
    proc_signal_family(&both, SIGKILL);
    wait_for_count(&both, 0);
    assert_int_equal(proc_find_leader(env, &found), -1);
}

/* A leader whose pid belongs to somebody else now: the session of that number is not ours to kill. */
static void test_strangers_are_left_alone(void **state)
{
    struct job_process stranger;
    char env[64];

    (void)state;
    make_token(env, sizeof env);
    pid_t pid = start_family(env);
    assert_int_equal(proc_identify(pid, &stranger), 0);
    stranger.start_ticks--; /* we remember an older process with this pid */
    struct proc_family f = {.leader = stranger, .env = "BF_TEST_TOKEN=nobody has this"}, all = {.env = env};
    assert_int_equal(proc_signal_family(&f, SIGKILL), 0);
    wait_for_count(&all, 3);
    proc_signal_family(&all, SIGKILL);
    waitpid(pid, NULL, 0);
    wait_for_count(&all, 0);
}

/* While a process changes its program its environment is empty for a moment. It must not be overlooked then:
 * here is one that does nothing else. */
static void test_exec_is_looked_through(void **state)
{
    char env[64];
    int missed = 0;

    (void)state;
    make_token(env, sizeof env);
    pid_t pid = fork();
    if (pid == 0) {
        char *const argv[] = {"sh", "-c", "eval \"$AGAIN\"", NULL};
        char *const envp[] = {"AGAIN=exec sh -c 'eval \"$AGAIN\"'", "PATH=/usr/bin:/bin", strdup(env), NULL};
        setsid();
        execve("/bin/sh", argv, envp);
        _exit(127);
    }
    struct proc_family f = {.env = env};
    wait_for_count(&f, 1);
    for (int i = 0; i < 500; i++)
        missed += proc_signal_family(&f, 0) != 1;
    proc_signal_family(&f, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_int_equal(missed, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_a_zombie_is_dead),
        cmocka_unit_test_teardown(test_family_is_found_and_ended, end_all),
        cmocka_unit_test_teardown(test_strangers_are_left_alone, end_all),
        cmocka_unit_test_teardown(test_exec_is_looked_through, end_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
