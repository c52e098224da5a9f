/* spec_cache - texts of the specs that were asked for lately. A job's spec never changes, so nothing here
 * grows old. */
#ifndef DAEMON_SPEC_CACHE_H
#define DAEMON_SPEC_CACHE_H

#include <stdint.h>
#include "common/err.h"
#include "daemon/store.h"

struct spec_cache;

struct spec_cache *spec_cache_create(void);
void spec_cache_destroy(struct spec_cache *c);

/* The job's spec as one line of JSON, borrowed until the next call; NULL when the store cannot give it, or
 * what it gives is not JSON. */
const char *spec_cache_get(struct spec_cache *c, struct store *store, int64_t job, struct err *e);

#endif
