/* spec_cache - see spec_cache.h.
 *
 * A slot for each remainder of the job's number: clients ask for the jobs of the moment, whose numbers follow
 * each other. At most N_SLOTS * KEEP_BYTES are held; a longer text stays only until the next call.
 */
#include "daemon/spec_cache.h"
#include "common/json.h"

#include <stdlib.h>
#include <string.h>

enum { N_SLOTS = 256, KEEP_BYTES = 8192 };

struct slot {
    int64_t job; /* 0: empty */
    char *text;
};

struct spec_cache {
    struct slot slots[N_SLOTS], extra;
};

struct spec_cache *spec_cache_create(void)
{
    return xcalloc(1, sizeof(struct spec_cache));
}

void spec_cache_destroy(struct spec_cache *c)
{
    if (!c)
        return;
    for (int i = 0; i < N_SLOTS; i++)
        free(c->slots[i].text);
    free(c->extra.text);
    free(c);
}

/* Through the parser, so that what clients get is JSON and one line, whatever was stored. */
static char *read_spec(struct store *store, int64_t job, struct err *e)
{
    char *text = store_spec(store, job, e);
    cJSON *spec = text ? json_parse(text, strlen(text), e) : NULL;

    free(text);
    text = spec ? json_text(spec) : NULL;
    cJSON_Delete(spec);
    return text;
}

const char *spec_cache_get(struct spec_cache *c, struct store *store, int64_t job, struct err *e)
{
    struct slot *s = &c->slots[job % N_SLOTS];
    char *text;

    if (s->job == job)
        return s->text;
    if (!(text = read_spec(store, job, e)))
        return NULL;
    if (strlen(text) > KEEP_BYTES)
        s = &c->extra;
    free(s->text);
    *s = (struct slot){job, text};
    return text;
}
