/* test_address - addresses taken apart, and what is none. */
#include "proto/address.h"

#include "tests/unit/cm.h"
#include <stdlib.h>
#include <string.h>

static void test_good(void **state)
{
    static const struct {
        const char *text, *path, *host, *port;
    } good[] = {
        {"unix:/run/x.sock", "/run/x.sock", NULL, NULL},
        {"unix:relative", "relative", NULL, NULL},
        {"unix:a:b", "a:b", NULL, NULL},
        {"tcp:host:1", NULL, "host", "1"},
        {"tcp:node-1.example.org:65535", NULL, "node-1.example.org", "65535"},
        {"tcp:192.0.2.1:0", NULL, "192.0.2.1", "0"},
        {"tcp:[::1]:7000", NULL, "::1", "7000"},
        {"tcp:[fe80::1%eth0]:7000", NULL, "fe80::1%eth0", "7000"},
        {"tcp:host:007", NULL, "host", "7"},
    };
    struct address a;
    struct err e = ERR_INIT;

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(address_parse(good[i].text, &a, &e), 0);
        assert_int_equal(a.is_tcp, good[i].host != NULL);
        if (a.is_tcp) {
            assert_string_equal(a.host, good[i].host);
            assert_string_equal(a.port, good[i].port);
        } else {
            assert_string_equal(a.path, good[i].path);
        }
    }
}

static void test_bad(void **state)
{
    static const char *const bad[] = {
        "",
        "host:1",
        "unix:",
        "tcp:",
        "tcp:host",
        "tcp::1",
        "tcp:host:",
        "tcp:host:x",
        "tcp:host:65536",
        "tcp:host:-1",
        "tcp:host:1x",
        "tcp:::1:7000",
        "tcp:[::1]",
        "tcp:[::1:1",
        "tcp:[]:1",
        "tcp:a b:1",
        "tcp:-x:1",
        "tcp:a/b:1",
        "http:host:1",
        "tcp:a:1:2",
        "tcp:host:000001",
        "TCP:host:1",
        "tcp:a@b:1",
        "tcp:host\n:1",
    };
    struct address a;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = ERR_INIT;
        assert_int_equal(address_parse(bad[i], &a, &e), -1);
        assert_int_equal(e.kind, ERR_USAGE);
        assert_non_null(strstr(e.msg, bad[i]));
    }
}

static void test_text(void **state)
{
    char *text = address_tcp_text("127.0.0.1", 5);

    (void)state;
    assert_string_equal(text, "tcp:127.0.0.1:5");
    free(text);
    text = address_tcp_text("::1", 5);
    assert_string_equal(text, "tcp:[::1]:5");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
