/* test_rpc_msg - the standard's kinds of messages are told apart, everything else is refused with the place
 * named.
 */
#include "proto/rpc_msg.h"
#include "common/json.h"

#include "tests/unit/cm.h"
#include <stdlib.h>
#include <string.h>

struct row {
    const char *text;
    enum rpc_kind kind;
};

static const struct row good[] = {
    {"{\"jsonrpc\":\"2.0\",\"method\":\"m\",\"id\":1}", RPC_REQUEST},
    {"{\"jsonrpc\":\"2.0\",\"method\":\"m\",\"params\":[],\"id\":\"a\"}", RPC_REQUEST},
    {"{\"jsonrpc\":\"2.0\",\"method\":\"m\",\"id\":null}", RPC_REQUEST},
    {"{\"jsonrpc\":\"2.0\",\"method\":\"m\",\"params\":{\"x\":1}}", RPC_NOTIFICATION},
    {"{\"jsonrpc\":\"2.0\",\"result\":null,\"id\":1}", RPC_RESULT},
    {"{\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32700,\"message\":\"x\"},\"id\":null}", RPC_ERROR},
};

static const struct {
    const char *text, *says;
} bad[] = {
    {"[]", "an object is accepted"},
    {"1", "an object is accepted"},
    {"{}", "/jsonrpc"},
    {"{\"jsonrpc\":\"1.0\",\"method\":\"m\"}", "/jsonrpc: \"1.0\" found"},
    {"{\"jsonrpc\":2.0,\"method\":\"m\"}", "/jsonrpc"},
    {"{\"jsonrpc\":\"2.0\"}", "exactly one"},
    {"{\"jsonrpc\":\"2.0\",\"method\":1}", "/method: 1 found"},
    {"{\"jsonrpc\":\"2.0\",\"method\":\"m\",\"params\":\"x\"}", "/params"},
    {"{\"jsonrpc\":\"2.0\",\"method\":\"m\",\"id\":{}}", "/id"},
    {"{\"jsonrpc\":\"2.0\",\"method\":\"m\",\"id\":true}", "/id"},
    {"{\"jsonrpc\":\"2.0\",\"method\":\"m\",\"result\":1,\"id\":1}", "exactly one"},
    {"{\"jsonrpc\":\"2.0\",\"result\":1}", "/id"},
    {"{\"jsonrpc\":\"2.0\",\"error\":1,\"id\":1}", "/error"},
    {"{\"jsonrpc\":\"2.0\",\"error\":{\"code\":1.5,\"message\":\"x\"},\"id\":1}", "/error/code"},
    {"{\"jsonrpc\":\"2.0\",\"error\":{\"code\":1},\"id\":1}", "/error/message"},
};

static cJSON *parse(const char *text)
{
    cJSON *doc = json_parse(text, strlen(text), NULL);

    assert_non_null(doc);
    return doc;
}

static void test_good(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct rpc_msg m;
        struct err e = ERR_INIT;
        cJSON *doc = parse(good[i].text);
        assert_int_equal(rpc_msg_read(doc, &m, &e), 0);
        assert_int_equal(m.kind, good[i].kind);
        cJSON_Delete(doc);
    }
}

static void test_bad(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct rpc_msg m;
        struct err e = ERR_INIT;
        cJSON *doc = parse(bad[i].text);
        assert_int_equal(rpc_msg_read(doc, &m, &e), -1);
        if (!strstr(e.msg, bad[i].says))
            fail_msg("%s: \"%s\" does not say \"%s\"", bad[i].text, e.msg, bad[i].says);
        cJSON_Delete(doc);
    }
}

static void expect_text(cJSON *doc, const char *want)
{
    char *text = json_text(doc);

    assert_string_equal(text, want);
    free(text);
    cJSON_Delete(doc);
}

static void test_builders(void **state)
{
    cJSON *id = cJSON_CreateString("7");

    (void)state;
    expect_text(rpc_request(3, "a.b", cJSON_CreateArray()),
                "{\"jsonrpc\":\"2.0\",\"method\":\"a.b\",\"params\":[],\"id\":3}");
    expect_text(rpc_notification("a.b", NULL), "{\"jsonrpc\":\"2.0\",\"method\":\"a.b\"}");
    expect_text(rpc_result(id, NULL), "{\"jsonrpc\":\"2.0\",\"result\":null,\"id\":\"7\"}");
    expect_text(rpc_error(NULL, RPC_PARSE_ERROR, "x", NULL),
                "{\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32700,\"message\":\"x\"},\"id\":null}");
    expect_text(
        rpc_error(id, RPC_INVALID_SPEC, "x", cJSON_CreateTrue()),
        "{\"jsonrpc\":\"2.0\",\"error\":{\"code\":1002,\"message\":\"x\",\"data\":true},\"id\":\"7\"}");
    cJSON_Delete(id);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_builders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
