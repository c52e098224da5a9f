/* test_limits - token buckets, and what one user may ask for. */
#include "daemon/limits.h"

#include "tests/unit/cm.h"
#include <string.h>

#define SECOND 1000000000LL

static const struct options options = {.max_user_clients = 2,
                                       .max_jobs = 5,
                                       .max_user_jobs = 3,
                                       .max_spec_bytes = 1000,
                                       .user_requests_per_s = 10,
                                       .user_request_burst = 20,
                                       .user_submits_per_s = 1,
                                       .user_submit_burst = 2};

static void test_a_bucket_gives_its_burst_and_then_its_rate(void **state)
{
    struct bucket b = bucket_full(3, 0);
    int64_t wait;

    (void)state;
    for (int i = 0; i < 3; i++)
        assert_true(bucket_take(&b, 2, 3, 1, 0, &wait));
    assert_false(bucket_take(&b, 2, 3, 1, 0, &wait));
    assert_int_equal(wait, 500); /* two a second */
    assert_false(bucket_take(&b, 2, 3, 1, SECOND / 4, &wait));
    assert_int_equal(wait, 250);
    assert_true(bucket_take(&b, 2, 3, 1, SECOND / 2, &wait));
    assert_int_equal(wait, 0);
    assert_false(bucket_take(&b, 2, 3, 1, SECOND / 2, &wait));
}

static void test_a_bucket_does_not_run_over(void **state)
{
    struct bucket b = bucket_full(3, 0);
    int64_t wait;
    int n = 0;

    (void)state;
    while (bucket_take(&b, 2, 3, 1, 1000000 * SECOND, &wait))
        n++;
    assert_int_equal(n, 3);
}

static void test_a_clock_that_goes_back_gives_nothing(void **state)
{
    struct bucket b = bucket_full(1, 10 * SECOND);
    int64_t wait;

    (void)state;
    assert_true(bucket_take(&b, 1, 1, 1, 10 * SECOND, &wait));
    assert_false(bucket_take(&b, 1, 1, 1, 5 * SECOND, &wait));
    assert_false(bucket_take(&b, 1, 1, 1, 10 * SECOND + SECOND / 2, &wait));
    assert_true(bucket_take(&b, 1, 1, 1, 11 * SECOND, &wait));
}

static void test_what_costs_more_than_a_bucket_waits_for_a_full_one(void **state)
{
    struct bucket b = bucket_full(3, 0);
    int64_t wait;

    (void)state;
    assert_true(bucket_take(&b, 1, 3, 50, 0, &wait));
    assert_false(bucket_take(&b, 1, 3, 50, 2 * SECOND, &wait));
    assert_int_equal(wait, 1000);
    assert_true(bucket_take(&b, 1, 3, 50, 3 * SECOND, &wait));
}

static void test_clients_of_each_user(void **state)
{
    struct limits *l = limits_create(&options);
    struct limit_hit hit;

    (void)state;
    assert_int_equal(limits_add_client(l, 1000, &hit), 0);
    assert_int_equal(limits_add_client(l, 1000, &hit), 0);
    assert_int_equal(limits_add_client(l, 1000, &hit), -1);
    assert_string_equal(hit.option, "max-user-clients");
    assert_int_equal(hit.value, 2);
    assert_non_null(strstr(hit.message, "--max-user-clients"));
    assert_int_equal(limits_add_client(l, 2000, &hit), 0);
    assert_int_equal(limits_add_client(l, LIMITS_STRANGER, &hit), 0);
    limits_remove_client(l, 1000);
    assert_int_equal(limits_add_client(l, 1000, &hit), 0);
    limits_destroy(l);
}

static void test_requests_of_each_user(void **state)
{
    struct limits *l = limits_create(&options);
    struct limit_hit hit;

    (void)state;
    for (int i = 0; i < 20; i++)
        assert_int_equal(limits_request(l, 1000, 1, 0, &hit), 0);
    assert_int_equal(limits_request(l, 1000, 1, 0, &hit), -1);
    assert_string_equal(hit.option, "user-requests-per-s");
    assert_int_equal(hit.retry_ms, 100);
    assert_int_equal(limits_request(l, 2000, 10, 0, &hit), 0); /* another user's own bucket */
    assert_int_equal(limits_request(l, 2000, 11, 0, &hit), -1);
    assert_int_equal(limits_request(l, 1000, 1, SECOND / 10, &hit), 0);
    limits_destroy(l);
}

static int submit(struct limits *l, int64_t n_new, int64_t n_user, int64_t n_all, bool exempt,
                  struct limit_hit *hit)
{
    struct limits_jobs jobs = {.n_new = n_new, .n_user = n_user, .n_all = n_all, .exempt = exempt};

    return limits_submission(l, 7, &jobs, 0, hit);
}

static void test_submissions(void **state)
{
    struct limits *l = limits_create(&options);
    struct limit_hit hit;

    (void)state;
    assert_int_equal(submit(l, 1, 0, 5, false, &hit), -1);
    assert_string_equal(hit.option, "max-jobs");
    assert_int_equal(submit(l, 1, 0, 5, true, &hit), -1); /* there is no room for anybody */
    assert_int_equal(submit(l, 3, 0, 3, true, &hit), -1); /* an array is taken whole or not at all */
    assert_int_equal(submit(l, 1, 3, 4, false, &hit), -1);
    assert_string_equal(hit.option, "max-user-jobs");
    assert_int_equal(submit(l, 2, 2, 2, false, &hit), -1);
    assert_string_equal(hit.option, "max-user-jobs");
    assert_int_equal(submit(l, 1, 2, 4, false, &hit), 0);
    assert_int_equal(submit(l, 2, 0, 0, false, &hit), -1); /* one is left of the burst of two */
    assert_string_equal(hit.option, "user-submits-per-s");
    assert_int_equal(hit.retry_ms, 1000);
    assert_int_equal(submit(l, 1, 2, 4, false, &hit), 0);
    assert_int_equal(submit(l, 1, 2, 4, false, &hit), -1);
    for (int i = 0; i < 10; i++)
        assert_int_equal(submit(l, 1, 0, 4, true, &hit), 0); /* exempt */
    assert_int_equal(limits_spec_size(l, 1000, &hit), 0);
    assert_int_equal(limits_spec_size(l, 1001, &hit), -1);
    assert_string_equal(hit.option, "max-spec-bytes");
    limits_destroy(l);
}

static void test_who_is_quiet_is_forgotten(void **state)
{
    struct limits *l = limits_create(&options);
    struct limit_hit hit;

    (void)state;
    for (int uid = 0; uid < 50; uid++)
        limits_request(l, uid, 1, 0, &hit);
    limits_add_client(l, 1000, &hit);
    assert_int_equal(limits_n_users(l), 51);
    limits_tend(l, 0);
    assert_int_equal(limits_n_users(l), 51); /* what they have used up is remembered */
    limits_tend(l, 10 * SECOND);
    assert_int_equal(limits_n_users(l), 1);
    limits_remove_client(l, 1000);
    limits_tend(l, 10 * SECOND);
    assert_int_equal(limits_n_users(l), 0);
    limits_destroy(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_bucket_gives_its_burst_and_then_its_rate),
        cmocka_unit_test(test_a_bucket_does_not_run_over),
        cmocka_unit_test(test_a_clock_that_goes_back_gives_nothing),
        cmocka_unit_test(test_what_costs_more_than_a_bucket_waits_for_a_full_one),
        cmocka_unit_test(test_clients_of_each_user),
        cmocka_unit_test(test_requests_of_each_user),
        cmocka_unit_test(test_submissions),
        cmocka_unit_test(test_who_is_quiet_is_forgotten),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
