/* test_client - against a scripted peer in a child process that answers whatever each test wants it to. */
#include "proto/client.h"
#include "common/json.h"

#include "tests/unit/cm.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

struct peer {
    char dir[64], address[128];
    int listener;
    pid_t pid;
};

static void peer_listen(struct peer *p)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};

    strcpy(p->dir, "/tmp/bf-client-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    snprintf(sa.sun_path, sizeof sa.sun_path, "%s/s", p->dir);
    snprintf(p->address, sizeof p->address, "unix:%s/s", p->dir);
    p->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(p->listener, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(listen(p->listener, 5), 0);
}

/* The child waits for one line of each call and then sends answers[i], until the list ends; then it closes.
 */
static void peer_start(struct peer *p, const char *const *answers)
{
    peer_listen(p);
    p->pid = fork();
    if (p->pid != 0)
        return;
    int fd = accept(p->listener, NULL, NULL);
    FILE *in = fdopen(fd, "r");
    char line[4096];
    for (; *answers && fgets(line, sizeof line, in); answers++)
        if (write(fd, *answers, strlen(*answers)) < 0)
            _exit(1);
    _exit(0);
}

static void peer_end(struct peer *p)
{
    char path[80];

    if (p->pid > 0) {
        kill(p->pid, SIGKILL);
        waitpid(p->pid, NULL, 0);
    }
    close(p->listener);
    snprintf(path, sizeof path, "%s/s", p->dir);
    unlink(path);
    rmdir(p->dir);
}

static void test_call_and_notifications(void **state)
{
    static const char *const answers[] = {
        "{\"jsonrpc\":\"2.0\",\"method\":\"n\",\"params\":{\"k\":1}}\n"
        "{\"jsonrpc\":\"2.0\",\"method\":\"n\",\"params\":{\"k\":2}}\n"
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"x\":42}}\n"
        "{\"jsonrpc\":\"2.0\",\"method\":\"n\",\"params\":{\"k\":3}}\n",
        "{\"jsonrpc\":\"2.0\",\"id\":2,\"error\":{\"code\":1002,\"message\":\"bad spec\",\"data\":[5]}}\n",
        NULL};
    struct peer p;
    struct err e = ERR_INIT;
    cJSON *data = NULL;

    (void)state;
    peer_start(&p, answers);
    struct client *c = client_connect(p.address, &e);
    assert_non_null(c);
    cJSON *r = client_call(c, "m", NULL, 20000, NULL, &e);
    assert_non_null(r);
    assert_int_equal(json_find(r, "x")->valueint, 42);
    cJSON_Delete(r);
    assert_null(client_call(c, "m", cJSON_CreateObject(), 20000, &data, &e));
    assert_int_equal(e.kind, ERR_REMOTE);
    assert_int_equal(e.code, 1002);
    assert_string_equal(e.msg, "bad spec");
    assert_int_equal(cJSON_GetArraySize(data), 1);
    cJSON_Delete(data);
    for (int k = 1; k <= 3; k++) {
        cJSON *n = client_next(c, 20000, &e);
        assert_non_null(n);
        assert_string_equal(json_find(n, "method")->valuestring, "n");
        assert_int_equal(json_find(json_find(n, "params"), "k")->valueint, k);
        cJSON_Delete(n);
    }
    assert_null(client_next(c, 20000, &e));
    assert_int_equal(e.kind, ERR_UNREACHABLE);
    client_close(c);
    peer_end(&p);
}

static void test_nobody_there(void **state)
{
    struct err e = ERR_INIT;

    (void)state;
    assert_null(client_connect("unix:/nonexistent/socket", &e));
    assert_int_equal(e.kind, ERR_UNREACHABLE);
    assert_non_null(strstr(e.msg, "unix:/nonexistent/socket"));
    assert_null(client_connect("http:localhost:1", &e));
    assert_int_equal(e.kind, ERR_USAGE);
    char path[200] = "unix:/";
    memset(path + 6, 'x', 150);
    path[156] = 0;
    assert_null(client_connect(path, &e));
    assert_non_null(strstr(e.msg, "151 bytes"));
    client_close(NULL);
}

/* A call that timed out leaves the connection usable; its late answer is not taken for the next one's. */
static void test_timeout_and_late_answer(void **state)
{
    static const char *const answers[] = {"",
                                          "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"late\"}\n"
                                          "{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":\"right\"}\n",
                                          NULL};
    struct peer p;
    struct err e = ERR_INIT;

    (void)state;
    peer_start(&p, answers);
    struct client *c = client_connect(p.address, &e);
    assert_null(client_call(c, "slow", NULL, 30, NULL, &e));
    assert_non_null(strstr(e.msg, "slow: no answer within 30 ms"));
    assert_null(client_next(c, 0, &e));
    assert_int_equal(e.kind, ERR_GENERIC);
    assert_string_equal(e.msg, "");
    cJSON *r = client_call(c, "m", NULL, 20000, NULL, &e);
    assert_non_null(r);
    assert_string_equal(r->valuestring, "right");
    cJSON_Delete(r);
    client_close(c);
    peer_end(&p);
}

/* An error without an id (too many clients) answers whatever is being asked. */
static void test_error_without_id(void **state)
{
    static const char *const answers[] = {
        "{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":1005,\"message\":\"full\"}}\n", NULL};
    struct peer p;
    struct err e = ERR_INIT;

    (void)state;
    peer_start(&p, answers);
    struct client *c = client_connect(p.address, &e);
    assert_null(client_call(c, "m", NULL, 20000, NULL, &e));
    assert_int_equal(e.code, 1005);
    client_close(c);
    peer_end(&p);
}

/* Nobody reads: notifications are dropped whole, and every line that did go out is whole. */
static void test_full_socket_drops_whole_messages(void **state)
{
    struct peer p;
    struct err e = ERR_INIT;
    char *filler = malloc(20001);
    int sent = 0, dropped = 0;

    (void)state;
    p.pid = 0;
    peer_listen(&p);
    struct client *c = client_connect(p.address, &e);
    int fd = accept(p.listener, NULL, NULL);
    memset(filler, 'f', 20000);
    filler[20000] = 0;
    while (dropped < 3) {
        cJSON *params = cJSON_CreateObject();
        cJSON_AddStringToObject(params, "f", filler);
        if (client_notify(c, "n", params, 0, &e) == 0)
            sent++;
        else
            dropped++;
        assert_true(sent < 10000);
    }
    /* Read what was sent while the client's next message pushes out the rest of the one cut by the full
     * socket. */
    char *all = calloc(1, (size_t)(sent + 2) * 20100);
    size_t len = 0;
    for (bool last = false; !last;) {
        ssize_t n = recv(fd, all + len, 65536, MSG_DONTWAIT);
        len += n > 0 ? (size_t)n : 0;
        last = client_notify(c, "last", NULL, 0, &e) == 0;
    }
    client_close(c);
    for (ssize_t n; (n = recv(fd, all + len, 65536, 0)) > 0;)
        len += (size_t)n;
    int lines = 0;
    for (char *line = strtok(all, "\n"); line; line = strtok(NULL, "\n"), lines++) {
        cJSON *doc = json_parse(line, strlen(line), &e);
        assert_non_null(doc);
        cJSON_Delete(doc);
    }
    assert_int_equal(lines, sent + 1);
    close(fd);
    free(all);
    free(filler);
    peer_end(&p);
}

static void test_default_address(void **state)
{
    (void)state;
    setenv("BATCHFORMER_ADDRESS", "unix:/a", 1);
    setenv("XDG_RUNTIME_DIR", "/run/user/5", 1);
    char *a = client_default_address();
    assert_string_equal(a, "unix:/a");
    free(a);
    unsetenv("BATCHFORMER_ADDRESS");
    a = client_default_address();
    assert_string_equal(a, "unix:/run/user/5/batchformer.sock");
    free(a);
    unsetenv("XDG_RUNTIME_DIR");
    a = client_default_address();
    assert_string_equal(strrchr(a, '/'), "/batchformer.sock");
    free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_call_and_notifications),           cmocka_unit_test(test_nobody_there),
        cmocka_unit_test(test_timeout_and_late_answer),          cmocka_unit_test(test_error_without_id),
        cmocka_unit_test(test_full_socket_drops_whole_messages), cmocka_unit_test(test_default_address),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
