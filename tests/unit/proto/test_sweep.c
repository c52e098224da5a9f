/* test_sweep - one document becomes the right jobs, in the right order, or findings. */
#include "common/json.h"
#include "proto/jobspec.h"

#include "tests/unit/cm.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A good document with more members at its end. */
static cJSON *document(const char *more)
{
    char *text =
        xasprintf("{\"version\":1,\"task\":\"long_tailed\",\"data\":{\"format\":\"synthetic\",\"synthetic\":"
                  "{\"height\":8,\"width\":8,\"channels\":1,\"classes\":4,\"train_per_class\":8,"
                  "\"test_per_class\":2}},\"model\":{\"arch\":\"resnet8\"},"
                  "\"train\":{\"epochs\":1,\"batch_size\":8}%s}",
                  more);
    cJSON *doc = json_parse(text, strlen(text), NULL);

    assert_non_null(doc);
    free(text);
    return doc;
}

static void test_combinations(void **state)
{
    cJSON *doc = document(",\"sweep\":{\"seed\":[3,4],\"optim.lr\":[0.1,0.2,0.3],\"name\":[\"x\"]}");
    struct jobspec_errors errs;
    static const double rates[] = {0.1, 0.2, 0.3};
    struct jobspec_job *jobs;
    int n = jobspec_parse_jobs(doc, &jobs, &errs);

    (void)state;
    assert_int_equal(n, 6);
    for (int i = 0; i < n; i++) {
        assert_int_equal(jobs[i].spec.seed, 3 + i / 3);
        assert_true(jobs[i].spec.optim.lr == rates[i % 3]);
        assert_string_equal(jobs[i].spec.name, "x");
        assert_true(cJSON_IsNull(json_find(jobs[i].resolved, "sweep")));
    }
    jobspec_jobs_free(jobs, n);
    jobspec_errors_free(&errs);
    cJSON_Delete(doc);
}

static void test_no_sweep_is_one_job(void **state)
{
    static const char *const texts[] = {"", ",\"sweep\":null"};

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        cJSON *doc = document(texts[i]);
        struct jobspec_errors errs;
        struct jobspec_job *jobs;
        assert_int_equal(jobspec_parse_jobs(doc, &jobs, &errs), 1);
        jobspec_jobs_free(jobs, 1);
        jobspec_errors_free(&errs);
        cJSON_Delete(doc);
    }
}

static void test_findings(void **state)
{
    static const struct {
        const char *sweep, *pointer, *says;
    } rows[] = {
        {"{\"seed\":[]}", "/sweep/seed", "[] found, an array of at least one value"},
        {"{\"seed\":7}", "/sweep/seed", "7 found"},
        {"{}", "/sweep", "no key found"},
        {"[]", "/sweep", "[] found"},
        {"{\"sede\":[1]}", "/sweep/sede", "not a key that can be swept"},
        {"{\"sweep\":[null]}", "/sweep/sweep", "not a key that can be swept"},
        {"{\"version\":[1]}", "/sweep/version", "not a key that can be swept"},
        {"{\"a/b\":[1]}", "/sweep/a~1b", "not a key that can be swept"},
        {"{\"train.epochs\":[1,0,0]}", "/train/epochs", "0 found"},
        {"{\"data.augment\":[3],\"data.augment.flip\":[true]}", "/sweep/data.augment.flip", "cannot be set"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[512];
        snprintf(text, sizeof text, ",\"sweep\":%s", rows[i].sweep);
        cJSON *doc = document(text);
        struct jobspec_errors errs;
        struct jobspec_job *jobs;
        assert_int_equal(jobspec_parse_jobs(doc, &jobs, &errs), -1);
        if (errs.n != 1 || strcmp(errs.v[0].pointer, rows[i].pointer) != 0 ||
            !strstr(errs.v[0].message, rows[i].says))
            fail_msg("%s: %d findings, first %s: %s", rows[i].sweep, errs.n, errs.v[0].pointer,
                     errs.v[0].message);
        jobspec_errors_free(&errs);
        cJSON_Delete(doc);
    }
}

static void test_too_many(void **state)
{
    char text[1024] = ",\"sweep\":{";
    struct jobspec_errors errs;
    struct jobspec_job *jobs;

    (void)state;
    for (int i = 0; i < 3; i++)
        strcat(text,
               (const char *[]){"\"seed\":[1,2,3,4,5,6,7,8,9,10,11]", ",\"optim.lr\":[1,2,3,4,5,6,7,8,9,10]",
                                ",\"train.epochs\":[1,2,3,4,5,6,7,8,9,10]}"}[i]);
    cJSON *doc = document(text);
    assert_int_equal(jobspec_parse_jobs(doc, &jobs, &errs), -1);
    assert_non_null(strstr(errs.v[0].message, "more than 1000 combinations"));
    jobspec_errors_free(&errs);
    cJSON_Delete(doc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_combinations),
        cmocka_unit_test(test_no_sweep_is_one_job),
        cmocka_unit_test(test_findings),
        cmocka_unit_test(test_too_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
