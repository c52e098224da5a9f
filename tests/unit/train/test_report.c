/* test_report - the link to the coordinator against a coordinator of a few lines: attach, lines, commands,
 * going away and coming back, and an environment that is not complete. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <pthread.h>
#include "common/clock.h"
#include "common/json.h"
#include "scratch.h"
#include "worker/train/report.h"

enum { WAIT_MS = 10000 };

/* Answers worker.attach and keeps all lines. One connection at a time, on a thread of its own. */
struct coordinator {
    int listener;
    pthread_t thread;
    char text[1 << 16]; /* everything that came */
    size_t len;
    const char *answer;  /* to an attach */
    const char *command; /* sent after an answer; NULL: none */
    const char *last;    /* hang up once this has come */
};

static int listen_at(const char *path)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strncpy(sa.sun_path, path, sizeof sa.sun_path - 1);
    unlink(path);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(listen(fd, 4), 0);
    return fd;
}

static void send_line(int fd, const char *line)
{
    if (send(fd, line, strlen(line), MSG_NOSIGNAL) < 0 || send(fd, "\n", 1, MSG_NOSIGNAL) < 0)
        return;
}

static void *serve(void *arg)
{
    struct coordinator *c = arg;
    struct pollfd p = {c->listener, POLLIN, 0};
    bool answered = false;

    if (poll(&p, 1, WAIT_MS) != 1)
        return NULL;
    int fd = accept(c->listener, NULL, NULL);
    p.fd = fd;
    while (poll(&p, 1, WAIT_MS) == 1) {
        ssize_t n = recv(fd, c->text + c->len, sizeof c->text - 1 - c->len, 0);
        if (n <= 0)
            break;
        c->len += (size_t)n;
        c->text[c->len] = 0;
        if (!answered && strstr(c->text, "worker.attach") && strchr(c->text, '\n')) {
            send_line(fd, c->answer);
            if (c->command)
                send_line(fd, c->command);
            answered = true;
        }
        if (strstr(c->text, c->last) && c->text[c->len - 1] == '\n')
            break;
    }
    close(fd);
    return NULL;
}

static void start(struct coordinator *c, const char *path, const char *command, const char *last)
{
    *c = (struct coordinator){.listener = listen_at(path),
                              .answer = "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"accepted\":true}}",
                              .command = command,
                              .last = last};
    assert_int_equal(pthread_create(&c->thread, NULL, serve, c), 0);
}

static void stop(struct coordinator *c)
{
    pthread_join(c->thread, NULL);
    close(c->listener);
}

static char *set_env(void **state)
{
    char *path = scratch_path(state, "sock"), address[256];

    snprintf(address, sizeof address, "unix:%s", path);
    setenv("BATCHFORMER_LINK", address, 1);
    setenv("BATCHFORMER_JOB", "17", 1);
    setenv("BATCHFORMER_ATTEMPT", "2", 1);
    setenv("BATCHFORMER_TOKEN", "0123abcd", 1);
    return path;
}

static const struct report_progress at_step_3 = {.phase = "train",
                                                 .step = 3,
                                                 .n_steps = 9,
                                                 .n_epochs = 1,
                                                 .loss = NAN,
                                                 .eta_s = NAN,
                                                 .checkpoint_step = -1};

static void nap(void)
{
    nanosleep(&(struct timespec){0, 10 * 1000 * 1000}, NULL);
}

static void whole_conversation(void **state)
{
    char *path = set_env(state);
    struct coordinator c;
    struct err e = ERR_INIT;
    cJSON *values = cJSON_CreateObject();
    unsigned got = 0;

    start(&c, path,
          "{\"jsonrpc\":\"2.0\",\"method\":\"worker.command\",\"params\":{\"command\":\"stop\"}}\n"
          "{\"jsonrpc\":\"2.0\",\"method\":\"worker.command\",\"params\":{\"command\":\"checkpoint\"}}",
          "worker.done");
    struct report *r = report_create(NULL, 4, &e);
    assert_non_null(r);
    for (int64_t end = clock_mono_ns() + WAIT_MS * 1000000LL; got != 3 && clock_mono_ns() < end; nap())
        got |= report_take_commands(r);
    assert_int_equal(got, REPORT_STOP | REPORT_CHECKPOINT);
    report_progress(r, &at_step_3);
    report_progress(r, &at_step_3); /* too soon: not sent */
    cJSON_AddNumberToObject(values, "loss", 0.5);
    report_metrics(r, "step", 3, 0, values);
    report_done(r, "stopped", "because", values, WAIT_MS);
    report_destroy(r);
    stop(&c);
    assert_non_null(strstr(c.text, "\"job\":17"));
    assert_non_null(strstr(c.text, "\"attempt\":2"));
    assert_non_null(strstr(c.text, "\"ranks\":4"));
    assert_non_null(strstr(c.text, "0123abcd"));
    char *progress = strstr(c.text, "worker.progress");
    assert_non_null(progress);
    assert_null(strstr(progress + 1, "worker.progress"));
    assert_non_null(strstr(c.text, "\"loss\":0.5"));
    assert_non_null(strstr(c.text, "\"reason\":\"because\""));
    cJSON_Delete(values);
    free(path);
}

static void comes_back(void **state)
{
    char *path = set_env(state);
    struct coordinator first, second;
    struct err e = ERR_INIT;

    unlink(path);
    struct report *r = report_create(NULL, 1, &e); /* nobody there: fine */
    assert_non_null(r);
    report_progress(r, &at_step_3);
    start(&first, path, NULL, "worker.progress");
    for (int64_t end = clock_mono_ns() + WAIT_MS * 1000000LL; clock_mono_ns() < end; nap()) {
        report_progress(r, &at_step_3);
        if (pthread_tryjoin_np(first.thread, NULL) == 0)
            break; /* it has hung up on us */
    }
    close(first.listener);
    start(&second, path, NULL, "worker.done");
    report_done(r, "succeeded", NULL, NULL, WAIT_MS);
    report_destroy(r);
    stop(&second);
    assert_non_null(strstr(first.text, "worker.progress"));
    assert_non_null(strstr(second.text, "worker.attach"));
    assert_non_null(strstr(second.text, "succeeded"));
    free(path);
}

static void done_gives_up(void **state)
{
    char *path = set_env(state);
    struct err e = ERR_INIT;
    struct report *r = report_create(NULL, 1, &e);

    assert_non_null(r);
    report_done(r, "failed", "x", NULL, 100); /* returns although nobody ever listens */
    report_destroy(r);
    free(path);
}

static void bad_environment(void **state)
{
    static const char *const names[] = {"BATCHFORMER_JOB", "BATCHFORMER_ATTEMPT", "BATCHFORMER_TOKEN"};
    struct err e = ERR_INIT;

    assert_true(report_wanted() || !getenv("BATCHFORMER_LINK"));
    for (int i = 0; i < 3; i++) {
        free(set_env(state));
        unsetenv(names[i]);
        assert_null(report_create(NULL, 1, &e));
        assert_non_null(strstr(e.msg, names[i]));
    }
    free(set_env(state));
    setenv("BATCHFORMER_JOB", "x1", 1);
    assert_null(report_create(NULL, 1, &e));
    assert_non_null(strstr(e.msg, "'x1'"));
    unsetenv("BATCHFORMER_LINK");
    assert_false(report_wanted());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(whole_conversation, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(comes_back, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(done_gives_up, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(bad_environment, scratch_setup, scratch_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
