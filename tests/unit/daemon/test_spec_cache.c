/* test_spec_cache - what is asked for twice is read once; long texts and jobs that share a slot; texts that
 * are no line. */
#include "daemon/spec_cache.h"

#include "tests/unit/cm.h"
#include "tests/unit/daemon/tmp_state.h"

#include <stdio.h>

enum { N_JOBS = 600 }; /* more than there are slots */

static void add(struct store *s, const char *spec, int64_t want_id)
{
    int64_t id = 0;

    assert_int_equal(store_begin(s, NULL), 0);
    assert_int_equal(store_add_job(s, 0, NULL, spec, &id, NULL), 0);
    assert_int_equal(store_commit(s, NULL), 0);
    assert_int_equal(id, want_id);
}

static void expect(struct spec_cache *c, struct store *s, int64_t job)
{
    char want[32];

    snprintf(want, sizeof want, "{\"job\":%lld}", (long long)job);
    assert_string_equal(spec_cache_get(c, s, job, NULL), want);
}

static void test_cache(void **state)
{
    (void)state;
    struct spec_cache *c = spec_cache_create();
    struct err e = ERR_INIT;
    struct tmp_state t;
    char text[32], *longer = xmalloc(100001);

    tmp_state_make(&t);
    struct store *s = store_open(t.db, &e);
    assert_non_null(s);
    for (int64_t i = 1; i <= N_JOBS; i++) {
        snprintf(text, sizeof text, "{\"job\":%lld}", (long long)i);
        add(s, text, i);
    }
    memset(longer, 'x', 100000);
    longer[100000] = 0;
    add(s, longer, N_JOBS + 1);
    add(s, "{\"a\":\n1}", N_JOBS + 2);
    for (int round = 0; round < 2; round++)
        for (int64_t i = 1; i <= N_JOBS; i++)
            expect(c, s, i);
    assert_ptr_equal(spec_cache_get(c, s, 600, NULL), spec_cache_get(c, s, 600, NULL));
    assert_string_equal(spec_cache_get(c, s, N_JOBS + 1, NULL), longer);
    expect(c, s, (N_JOBS + 1) % 256); /* the long one has not taken its slot */
    assert_string_equal(spec_cache_get(c, s, N_JOBS + 1, NULL), longer);
    assert_null(spec_cache_get(c, s, N_JOBS + 2, &e));
    assert_string_equal(e.msg, "the spec of job 602 in the store is damaged at byte 5");
    assert_null(spec_cache_get(c, s, 4711, &e));
    expect(c, s, 1);
    store_close(s);
    spec_cache_destroy(c);
    tmp_state_remove(&t);
    free(longer);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(test_cache)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
