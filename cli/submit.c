/* submit - see submit.h. */
#include "cli/submit.h"
#include "common/json.h"
#include "proto/client.h"
#include "proto/rpc_msg.h"

int submit_spec(struct cli *cli, struct client *c, const struct spec_arg *arg, const char *key, int64_t *id,
                int64_t *n, struct err *e)
{
    cJSON *params = cJSON_CreateObject(), *data = NULL;

    cJSON_AddItemToObject(params, "spec", cJSON_Duplicate(arg->doc, true));
    if (key)
        cJSON_AddStringToObject(params, "idempotency_key", key);
    cJSON *result = client_call(c, "job.submit", params, CLI_CALL_MS, &data, e);
    int rc = result ? json_get_int(result, "", "id", 1, (int64_t)1 << 53, id, e) : -1;
    const cJSON *ids = json_find(result, "ids");
    *n = cJSON_IsArray(ids) ? cJSON_GetArraySize(ids) : 1;
    const cJSON *errors = cJSON_IsObject(data) ? json_find(data, "errors") : NULL;
    if (!result && e->kind == ERR_REMOTE && e->code == RPC_INVALID_SPEC && cJSON_IsArray(errors))
        rc = spec_arg_report_json(cli, errors);
    cJSON_Delete(result);
    cJSON_Delete(data);
    return rc;
}
