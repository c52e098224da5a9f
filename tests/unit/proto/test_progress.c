/* test_progress - what goes out comes back, unknown numbers as null; hostile messages are refused with the
 * member named. */
#include "proto/progress.h"
#include "common/json.h"

#include "tests/unit/cm.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct progress sample = {"train", 120, 1000, 3, 20, 0.75, 1234.5, 17.25, 100};

static void test_round_trip(void **state)
{
    struct progress p;
    cJSON *v = progress_to_json(&sample);

    (void)state;
    assert_int_equal(progress_from_json(v, &p, NULL), 0);
    cJSON_Delete(v);
    assert_string_equal(p.phase, "train");
    assert_true(p.step == 120 && p.n_steps == 1000 && p.epoch == 3 && p.n_epochs == 20 &&
                p.checkpoint_step == 100);
    assert_true(p.loss == 0.75 && p.images_per_s == 1234.5 && p.eta_s == 17.25);
}

static void test_unknown_is_null(void **state)
{
    struct progress p = sample, q = sample;

    (void)state;
    p.loss = NAN;
    p.eta_s = INFINITY;
    cJSON *v = progress_to_json(&p);
    assert_true(cJSON_IsNull(json_find(v, "loss")));
    assert_int_equal(progress_from_json(v, &q, NULL), 0);
    assert_true(isnan(q.loss) && isnan(q.eta_s));
    cJSON_Delete(v);
}

/* Every member, replaced by something of the wrong type or left out, is refused by name and nothing is
 * written. */
static void test_bad_members(void **state)
{
    cJSON *v = progress_to_json(&sample);

    (void)state;
    for (int i = 0, n = cJSON_GetArraySize(v); i < n; i++)
        for (int leave_out = 0; leave_out < 2; leave_out++) {
            struct progress p = {.step = -7};
            struct err e = ERR_INIT;
            cJSON *w = cJSON_Duplicate(v, true);
            char *key = xstrdup(cJSON_GetArrayItem(w, i)->string);
            if (leave_out)
                cJSON_DeleteItemFromArray(w, i);
            else
                cJSON_ReplaceItemInObjectCaseSensitive(w, key, cJSON_CreateArray());
            assert_int_equal(progress_from_json(w, &p, &e), -1);
            assert_non_null(strstr(e.msg, key));
            assert_int_equal(p.step, -7);
            free(key);
            cJSON_Delete(w);
        }
    cJSON_ReplaceItemInObjectCaseSensitive(v, "phase",
                                           cJSON_CreateString("a phase that has too long a name"));
    assert_int_equal(progress_from_json(v, &(struct progress){0}, NULL), -1);
    cJSON_Delete(v);
}

static void test_attach(void **state)
{
    struct progress_attach a = {.job = 5,
                                .attempt = 2,
                                .pid = 77,
                                .ranks = 4,
                                .token = "abc",
                                .host = "node1"},
                           b;
    cJSON *v = progress_attach_to_json(&a);
    char big[66];
    struct err e = ERR_INIT;

    (void)state;
    assert_int_equal(progress_attach_from_json(v, &b, NULL), 0);
    assert_true(b.job == 5 && b.attempt == 2 && b.pid == 77 && b.ranks == 4);
    assert_string_equal(b.token, "abc");
    assert_string_equal(b.host, "node1");
    memset(big, 'a', 65);
    big[65] = 0;
    cJSON_ReplaceItemInObjectCaseSensitive(v, "token", cJSON_CreateString(big));
    assert_int_equal(progress_attach_from_json(v, &b, &e), -1);
    assert_non_null(strstr(e.msg, "/token: 65 characters found, at most 64"));
    cJSON_Delete(v);
}

static void test_hello(void **state)
{
    struct progress_hello h = {.job = 5, .attempt = 2, .pid = 77, .rank = 0, .token = "abc", .host = "node1"},
                          b;
    cJSON *v = progress_hello_to_json(&h);
    struct err e = ERR_INIT;

    (void)state;
    assert_int_equal(progress_hello_from_json(v, &b, NULL), 0);
    assert_true(b.job == 5 && b.attempt == 2 && b.pid == 77 && b.rank == 0);
    assert_string_equal(b.token, "abc");
    assert_string_equal(b.host, "node1");
    cJSON_ReplaceItemInObjectCaseSensitive(v, "rank", cJSON_CreateNumber(-1));
    assert_int_equal(progress_hello_from_json(v, &b, &e), -1);
    assert_non_null(strstr(e.msg, "/rank"));
    cJSON_Delete(v);
}

static void test_beat(void **state)
{
    struct progress_beat b = {.phase = "forward",
                              .waits_in = "vote",
                              .step = 9,
                              .collectives = 123,
                              .in_ms = 4,
                              .n_steps = 3,
                              .step_ms = 12.5,
                              .work_ms = 10.25},
                         c;
    cJSON *v = progress_beat_to_json(&b);

    (void)state;
    assert_int_equal(progress_beat_from_json(v, &c, NULL), 0);
    assert_true(c.step == 9 && c.collectives == 123 && c.in_ms == 4 && c.n_steps == 3 && c.step_ms == 12.5 &&
                c.work_ms == 10.25);
    assert_string_equal(c.phase, "forward");
    assert_string_equal(c.waits_in, "vote");
    for (int i = 0, n = cJSON_GetArraySize(v); i < n; i++) {
        struct err e = ERR_INIT;
        cJSON *w = cJSON_Duplicate(v, true);
        char *key = xstrdup(cJSON_GetArrayItem(w, i)->string);
        cJSON_ReplaceItemInObjectCaseSensitive(w, key, cJSON_CreateArray());
        assert_int_equal(progress_beat_from_json(w, &c, &e), -1);
        assert_non_null(strstr(e.msg, key));
        free(key);
        cJSON_Delete(w);
    }
    cJSON_Delete(v);
    b.waits_in[0] = 0;
    b.work_ms = NAN;
    v = progress_beat_to_json(&b);
    assert_true(cJSON_IsNull(json_find(v, "waits_in")) && cJSON_IsNull(json_find(v, "work_ms")));
    assert_int_equal(progress_beat_from_json(v, &c, NULL), 0);
    assert_true(c.waits_in[0] == 0 && isnan(c.work_ms));
    cJSON_Delete(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),  cmocka_unit_test(test_unknown_is_null),
        cmocka_unit_test(test_bad_members), cmocka_unit_test(test_attach),
        cmocka_unit_test(test_hello),       cmocka_unit_test(test_beat),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
