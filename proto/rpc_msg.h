/* rpc_msg - JSON-RPC 2.0 messages: building them and taking them apart, nothing else. */
#ifndef PROTO_RPC_MSG_H
#define PROTO_RPC_MSG_H

#include <cjson/cJSON.h>
#include <stdint.h>
#include "common/err.h"

/* What batchformerd and its clients say to each other, as a whole number: docs/protocol.md says what is fixed
 * within one. */
enum { RPC_PROTOCOL = 1 };

enum rpc_code {
    RPC_PARSE_ERROR = -32700,
    RPC_INVALID_REQUEST = -32600,
    RPC_METHOD_NOT_FOUND = -32601,
    RPC_INVALID_PARAMS = -32602,
    RPC_INTERNAL_ERROR = -32603,
    RPC_NOT_FOUND = 1001,
    RPC_INVALID_SPEC = 1002, /* error.data.errors: [{pointer, message}] */
    RPC_WRONG_STATE = 1003,
    RPC_FORBIDDEN = 1004,
    RPC_OVERLOADED = 1005, /* overloaded or draining */
    RPC_NOT_LOGGED_IN = 1006,
};

enum rpc_kind { RPC_REQUEST, RPC_NOTIFICATION, RPC_RESULT, RPC_ERROR };

/* One message; every pointer is borrowed from the parsed document. */
struct rpc_msg {
    enum rpc_kind kind;
    const cJSON *id;     /* request, result, error; may be JSON null in an error */
    const char *method;  /* request, notification */
    const cJSON *params; /* request, notification; NULL when absent, else object or array */
    const cJSON *result; /* result */
    int code;            /* error */
    const char *message; /* error */
    const cJSON *data;   /* error; NULL when absent */
};

/* Classifies one JSON object (not a batch). -1: not a JSON-RPC 2.0 message; the sentence says why. */
int rpc_msg_read(const cJSON *doc, struct rpc_msg *m, struct err *e);

/* Builders. They take ownership of params, result and data (NULL: left out; a NULL result becomes null);
 * `id` is copied (NULL: JSON null). The caller owns the returned document. */
cJSON *rpc_request(int64_t id, const char *method, cJSON *params);
cJSON *rpc_notification(const char *method, cJSON *params);
cJSON *rpc_result(const cJSON *id, cJSON *result);
cJSON *rpc_error(const cJSON *id, int code, const char *message, cJSON *data);

#endif
