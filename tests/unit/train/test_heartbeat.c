/* test_heartbeat - a rank's sign of life against a coordinator of a few lines: hello, where the training
 * thread is, what it waits in, hanging up and coming back, the last word; and a communicator that tells. */
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "common/json.h"
#include "scratch.h"
#include "tests/unit/cm.h"
#include "worker/train/heartbeat.h"

enum { WAIT_MS = 20000, MAX_LINES = 100 };

/* One connection at a time. */
struct coordinator {
    int listener, fd;
    char text[1 << 14];
    size_t len;
};

static void listen_at(struct coordinator *c, const char *path)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};

    *c = (struct coordinator){.fd = -1, .listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    strncpy(sa.sun_path, path, sizeof sa.sun_path - 1);
    unlink(path);
    assert_int_equal(bind(c->listener, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(listen(c->listener, 4), 0);
}

static void wait_readable(int fd)
{
    struct pollfd p = {fd, POLLIN, 0};

    assert_int_equal(poll(&p, 1, WAIT_MS), 1);
}

/* The next line's parameters; *method is what it asks. The caller owns the result. NULL: hung up. */
static cJSON *next(struct coordinator *c, char method[32])
{
    char *end;

    while (!(end = memchr(c->text, '\n', c->len))) {
        wait_readable(c->fd);
        ssize_t n = recv(c->fd, c->text + c->len, sizeof c->text - c->len, 0);
        if (n <= 0)
            return NULL;
        c->len += (size_t)n;
    }
    cJSON *doc = json_parse(c->text, (size_t)(end - c->text), NULL);
    assert_non_null(doc);
    snprintf(method, 32, "%s", json_find(doc, "method")->valuestring);
    cJSON *params = cJSON_DetachItemFromObjectCaseSensitive(doc, "params");
    cJSON_Delete(doc);
    c->len -= (size_t)(end + 1 - c->text);
    memmove(c->text, end + 1, c->len);
    return params;
}

/* Takes the next connection's hello and answers it; the caller owns its parameters. */
static cJSON *take_hello(struct coordinator *c, const char *answer)
{
    char method[32];

    wait_readable(c->listener);
    c->fd = accept(c->listener, NULL, NULL);
    c->len = 0;
    cJSON *hello = next(c, method);
    assert_string_equal(method, "worker.hello");
    assert_int_equal(send(c->fd, answer, strlen(answer), MSG_NOSIGNAL), strlen(answer));
    return hello;
}

static const char accepted[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"accepted\":true}}\n";

static bool text_is(const cJSON *v, const char *key, const char *want)
{
    const cJSON *m = json_find(v, key);

    return want ? cJSON_IsString(m) && strcmp(m->valuestring, want) == 0 : cJSON_IsNull(m);
}

/* Reads beats until one shows this place; the caller owns it. */
static cJSON *wait_for_place(struct coordinator *c, const char *phase, const char *waits_in)
{
    char method[32];

    for (int i = 0; i < MAX_LINES; i++) {
        cJSON *beat = next(c, method);
        assert_non_null(beat);
        assert_string_equal(method, "worker.beat");
        if (text_is(beat, "phase", phase) && text_is(beat, "waits_in", waits_in))
            return beat;
        cJSON_Delete(beat);
    }
    fail_msg("no beat shows %s", phase);
    return NULL;
}

static double number(const cJSON *v, const char *key)
{
    return json_find(v, key)->valuedouble;
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

static void test_places(void **state)
{
    char *path = set_env(state);
    struct coordinator c;
    cJSON *v;

    listen_at(&c, path);
    struct heartbeat *h = heartbeat_start(NULL, 3, NULL);
    assert_non_null(h);
    v = take_hello(&c, accepted);
    assert_true(number(v, "rank") == 3 && number(v, "job") == 17 && number(v, "attempt") == 2);
    assert_true(number(v, "pid") == getpid() && text_is(v, "token", "0123abcd"));
    cJSON_Delete(v);
    v = wait_for_place(&c, "start", NULL);
    assert_true(cJSON_IsNull(json_find(v, "work_ms")) && number(v, "step") == 0);
    cJSON_Delete(v);

    struct comm_watcher w = heartbeat_watcher(h);
    heartbeat_at_step(h, 40);
    heartbeat_step_begin(h);
    assert_int_equal(heartbeat_phase(h, HEART_FORWARD), HEART_START);
    w.enter(w.arg, COMM_ALL_GATHER);
    v = wait_for_place(&c, "forward", "all-gather of features");
    assert_true(number(v, "step") == 40 && number(v, "collectives") == 0);
    cJSON_Delete(v);
    w.leave(w.arg, COMM_ALL_GATHER);
    heartbeat_step_end(h, 41);
    heartbeat_phase(h, HEART_LOG);
    v = wait_for_place(&c, "log", NULL);
    assert_true(number(v, "step") == 41 && number(v, "collectives") == 1 && number(v, "n_steps") == 1);
    /* It waited while the beat above was on its way, and worked hardly at all. */
    assert_true(number(v, "work_ms") < number(v, "step_ms"));
    cJSON_Delete(v);

    close(c.fd); /* hung up: it comes back, and says where it is */
    cJSON_Delete(take_hello(&c, accepted));
    cJSON_Delete(wait_for_place(&c, "log", NULL));
    heartbeat_stop(h);
    cJSON_Delete(wait_for_place(&c, "end", NULL));
    close(c.fd);
    close(c.listener);
    free(path);
}

/* It beats on its own although the training thread is in the same place. */
static void test_beats_in_one_place(void **state)
{
    char *path = set_env(state);
    struct coordinator c;

    listen_at(&c, path);
    struct heartbeat *h = heartbeat_start(NULL, 0, NULL);
    cJSON_Delete(take_hello(&c, accepted));
    heartbeat_phase(h, HEART_CHECKPOINT);
    double last = -1;
    for (int i = 0; i < 3; i++) {
        cJSON *v = wait_for_place(&c, "checkpoint", NULL);
        assert_true(number(v, "in_ms") > last);
        last = number(v, "in_ms");
        cJSON_Delete(v);
    }
    heartbeat_stop(h);
    close(c.fd);
    close(c.listener);
    free(path);
}

static void test_refused_or_nobody_there(void **state)
{
    char *path = set_env(state);
    struct coordinator c;
    struct heartbeat *h = heartbeat_start(NULL, 0, NULL);

    assert_non_null(h); /* nobody listens */
    heartbeat_phase(h, HEART_VOTE);
    heartbeat_stop(h);
    listen_at(&c, path);
    h = heartbeat_start(NULL, 0, NULL);
    cJSON_Delete(
        take_hello(&c, "{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":1004,\"message\":\"no\"}}\n"));
    char method[32];
    assert_null(next(&c, method)); /* it hangs up */
    heartbeat_phase(h, HEART_VOTE);
    heartbeat_stop(h);
    close(c.fd);
    close(c.listener);
    free(path);
}

static void test_environment(void **state)
{
    char *path = set_env(state);
    struct err e = ERR_INIT;

    unsetenv("BATCHFORMER_TOKEN");
    assert_null(heartbeat_start(NULL, 0, &e));
    assert_non_null(strstr(e.msg, "BATCHFORMER_TOKEN"));
    setenv("BATCHFORMER_TOKEN", "ab", 1);
    setenv("BATCHFORMER_ATTEMPT", "0", 1);
    assert_null(heartbeat_start(NULL, 0, &e));
    assert_non_null(strstr(e.msg, "BATCHFORMER_ATTEMPT: '0' found"));
    free(path);
    /* Without one there is none. */
    assert_int_equal(heartbeat_phase(NULL, HEART_DATA), HEART_DATA);
    heartbeat_at_step(NULL, 1);
    heartbeat_step_begin(NULL);
    heartbeat_step_end(NULL, 1);
    heartbeat_stop(NULL);
}

static void test_names(void **state)
{
    (void)state;
    for (int p = 0; p < HEART_N_PHASES; p++) {
        assert_in_range(strlen(heartbeat_phase_name((enum heart_phase)p)), 1, 15);
        for (int c = 0; c < COMM_N_CALLS; c++)
            assert_in_range(strlen(heartbeat_wait_name((enum heart_phase)p, (enum comm_call)c)), 1, 63);
    }
    assert_string_equal(heartbeat_wait_name(HEART_BACKWARD, COMM_WAIT), "gradient buckets");
    assert_string_equal(heartbeat_wait_name(HEART_VOTE, COMM_ALL_REDUCE), "vote");
    assert_string_equal(heartbeat_wait_name(HEART_UPDATE, COMM_BARRIER), "barrier");
}

/* --- a communicator that tells --- */

struct seen {
    char text[256];
};

static void on_enter(void *arg, enum comm_call call)
{
    struct seen *s = arg;

    snprintf(s->text + strlen(s->text), sizeof s->text - strlen(s->text), "+%d", call);
}

static void on_leave(void *arg, enum comm_call call)
{
    struct seen *s = arg;

    snprintf(s->text + strlen(s->text), sizeof s->text - strlen(s->text), "-%d", call);
}

static void test_watched_communicator(void **state)
{
    struct comm *inner = comm_single_create();
    struct seen s = {""};
    struct comm_watcher w = {on_enter, on_leave, &s};
    struct comm *c = comm_watch_create(inner, &w);
    float a[2] = {1, 2}, b[2] = {0};
    int64_t counts[1] = {2};
    struct comm_req req;
    char want[256];

    (void)state;
    assert_string_equal(c->ops->name, "single");
    assert_true(c->rank == 0 && c->size == 1);
    assert_int_equal(comm_all_gather(c, a, b, counts, sizeof *a, NULL), 0);
    assert_true(b[0] == 1 && b[1] == 2);
    assert_int_equal(comm_reduce_scatter(c, a, b, counts, 1, NULL), 0);
    assert_int_equal(comm_all_to_all(c, a, counts, b, counts, sizeof *a, NULL), 0);
    assert_int_equal(comm_all_reduce(c, a, 2, DTYPE_F32, NULL), 0);
    assert_int_equal(comm_all_reduce_start(c, a, 2, DTYPE_F32, &req, NULL), 0);
    assert_int_equal(comm_wait(c, &req, NULL), 0);
    assert_int_equal(comm_broadcast(c, a, sizeof a, 0, NULL), 0);
    assert_int_equal(comm_barrier(c, NULL), 0);
    assert_int_equal(comm_sync(c, "x", NULL), 0); /* the inner one has nothing to wait for */
    want[0] = 0;
    for (int i = COMM_ALL_GATHER; i <= COMM_BARRIER; i++)
        snprintf(want + strlen(want), sizeof want - strlen(want), "+%d-%d", i, i);
    assert_string_equal(s.text, want);
    comm_destroy(c);
    assert_int_equal(comm_barrier(inner, NULL), 0); /* left alone */
    comm_destroy(inner);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_places, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_beats_in_one_place, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_refused_or_nobody_there, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_environment, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_watched_communicator),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
