/* spec_cache - see spec_cache.h.
 *
 * A slot for each remainder of the job's number: clients ask for the jobs of the moment, whose numbers follow
 * each other. At most N_SLOTS * KEEP_BYTES are held; a longer text stays only until the next call.
 */
#include "daemon/spec_cache.h"

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

/* What the coordinator stored was printed by json_text(): one line, no control characters. Anything else
 * would break the lines of the connection that it goes out on. */
static char *read_spec(struct store *store, int64_t job, struct err *e)
{
    char *text = store_spec(store, job, e);

    for (const char *p = text; p && *p; p++)
        if ((unsigned char)*p < ' ') {
            err_set(e, "the spec of job %lld in the store is damaged at byte %td", (long long)job, p - text);
            free(text);
            return NULL;
        }
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
