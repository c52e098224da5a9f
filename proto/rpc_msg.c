/* rpc_msg - see rpc_msg.h. */
#include "proto/rpc_msg.h"
#include "common/json.h"

#include <string.h>

static bool valid_id(const cJSON *id)
{
    return cJSON_IsString(id) || cJSON_IsNumber(id) || cJSON_IsNull(id);
}

static int found(const cJSON *v, const char *at, const char *accepted, struct err *e)
{
    char brief[64];

    json_brief(v, brief);
    return err_set(e, "%s: %s found, %s is accepted", at, brief, accepted);
}

static int read_call(const cJSON *doc, const cJSON *method, struct rpc_msg *m, struct err *e)
{
    if (!cJSON_IsString(method))
        return found(method, "/method", "a string", e);
    m->method = method->valuestring;
    m->params = json_find(doc, "params");
    if (m->params && !cJSON_IsObject(m->params) && !cJSON_IsArray(m->params))
        return found(m->params, "/params", "an object or an array", e);
    m->kind = m->id ? RPC_REQUEST : RPC_NOTIFICATION;
    return 0;
}

static int read_error(const cJSON *error, struct rpc_msg *m, struct err *e)
{
    int64_t code;

    if (!cJSON_IsObject(error))
        return found(error, "/error", "an object", e);
    if (json_get_int(error, "/error", "code", INT32_MIN, INT32_MAX, &code, e) < 0 ||
        json_get_str(error, "/error", "message", &m->message, e) < 0)
        return -1;
    m->kind = RPC_ERROR;
    m->code = (int)code;
    m->data = json_find(error, "data");
    return 0;
}

int rpc_msg_read(const cJSON *doc, struct rpc_msg *m, struct err *e)
{
    *m = (struct rpc_msg){0};
    if (!cJSON_IsObject(doc))
        return found(doc, "", "an object", e);
    const cJSON *version = json_find(doc, "jsonrpc");
    if (!cJSON_IsString(version) || strcmp(version->valuestring, "2.0") != 0)
        return found(version, "/jsonrpc", "\"2.0\"", e);
    const cJSON *method = json_find(doc, "method");
    const cJSON *result = json_find(doc, "result");
    const cJSON *error = json_find(doc, "error");
    m->id = json_find(doc, "id");
    if (m->id && !valid_id(m->id))
        return found(m->id, "/id", "a string, a number or null", e);
    if (!!method + !!result + !!error != 1)
        return err_set(e, "exactly one of \"method\", \"result\" and \"error\" is accepted, %d found",
                       !!method + !!result + !!error);
    if (method)
        return read_call(doc, method, m, e);
    if (!m->id)
        return err_set(e, "/id: nothing found, the id of the request is accepted");
    if (error)
        return read_error(error, m, e);
    m->kind = RPC_RESULT;
    m->result = result;
    return 0;
}

static cJSON *message(void)
{
    cJSON *doc = cJSON_CreateObject();

    ASSERT(doc);
    cJSON_AddStringToObject(doc, "jsonrpc", "2.0");
    return doc;
}

cJSON *rpc_request(int64_t id, const char *method, cJSON *params)
{
    cJSON *doc = rpc_notification(method, params);

    cJSON_AddNumberToObject(doc, "id", (double)id);
    return doc;
}

cJSON *rpc_notification(const char *method, cJSON *params)
{
    cJSON *doc = message();

    cJSON_AddStringToObject(doc, "method", method);
    if (params)
        cJSON_AddItemToObject(doc, "params", params);
    return doc;
}

static void add_id(cJSON *doc, const cJSON *id)
{
    cJSON_AddItemToObject(doc, "id", id ? cJSON_Duplicate(id, true) : cJSON_CreateNull());
}

cJSON *rpc_result(const cJSON *id, cJSON *result)
{
    cJSON *doc = message();

    cJSON_AddItemToObject(doc, "result", result ? result : cJSON_CreateNull());
    add_id(doc, id);
    return doc;
}

cJSON *rpc_error(const cJSON *id, int code, const char *text, cJSON *data)
{
    cJSON *doc = message();
    cJSON *error = cJSON_AddObjectToObject(doc, "error");

    cJSON_AddNumberToObject(error, "code", code);
    cJSON_AddStringToObject(error, "message", text);
    if (data)
        cJSON_AddItemToObject(error, "data", data);
    add_id(doc, id);
    return doc;
}
