/* spec_match - see spec_match.h. */
#include "worker/train/spec_match.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include "common/json.h"

/* A pointer covers everything below it. data.path may move: the checksum of the data is compared instead. */
static const char *const may_differ[] = {
    "/version",      "/name",           "/data/path",      "/batchformer/gather",
    "/train/epochs", "/train/autotune", "/train/winograd", "/train/log_every_steps",
    "/eval",         "/checkpoint",     "/init",           "/resources",
    "/scheduling",   "/sweep",
};

static int differs(const char *at, const cJSON *saved, const cJSON *now, struct err *e)
{
    char a[64] = "nothing", b[64] = "nothing";

    if (saved)
        json_brief(saved, a);
    if (now)
        json_brief(now, b);
    return err_set_kind(e, ERR_SPEC, "%s is %s in the checkpoint and %s in this job", at, a, b);
}

static int match(char *at, size_t size, const cJSON *saved, const cJSON *now, struct err *e);

static int match_member(char *at, size_t size, const char *key, const cJSON *saved, const cJSON *now,
                        struct err *e)
{
    size_t n = strlen(at);

    snprintf(at + n, size - n, "/%s", key);
    int rc = match(at, size, json_find(saved, key), json_find(now, key), e);
    at[n] = 0;
    return rc;
}

static int match_objects(char *at, size_t size, const cJSON *saved, const cJSON *now, struct err *e)
{
    for (const cJSON *c = now->child; c; c = c->next)
        if (match_member(at, size, c->string, saved, now, e) < 0)
            return -1;
    for (const cJSON *c = saved->child; c; c = c->next)
        if (!json_find(now, c->string) && match_member(at, size, c->string, saved, now, e) < 0)
            return -1;
    return 0;
}

/* A key that a version did not have yet is as good as one that is null. */
static bool is_none(const cJSON *v)
{
    return !v || cJSON_IsNull(v);
}

static int match(char *at, size_t size, const cJSON *saved, const cJSON *now, struct err *e)
{
    for (size_t i = 0; i < sizeof may_differ / sizeof *may_differ; i++)
        if (strcmp(at, may_differ[i]) == 0)
            return 0;
    if (cJSON_IsObject(saved) && cJSON_IsObject(now))
        return match_objects(at, size, saved, now, e);
    return is_none(saved) == is_none(now) && (is_none(saved) || cJSON_Compare(saved, now, 1))
               ? 0
               : differs(at, saved, now, e);
}

int spec_match(const cJSON *saved, const cJSON *now, struct err *e)
{
    char at[256] = "";

    return match(at, sizeof at, saved, now, e);
}
