/* test_estimate - the estimate of a step: arithmetic of a small net by hand, bytes by formula, and what must
 * rise or fall with ranks. That parameters and activations are the worker's is tests/e2e/test_estimate.py's.
 */
#include "proto/estimate.h"
#include "common/json.h"

#include "tests/unit/cm.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* 8 × 8 images of 3 channels, 5 classes; more members of the spec in `more`. */
static struct jobspec *make_spec(const char *arch, int batch, const char *more)
{
    struct jobspec *spec = xcalloc(1, sizeof *spec);
    struct jobspec_errors errors = {0};
    struct err e = ERR_INIT;
    char *text = xasprintf(
        "{\"version\": 1, \"task\": \"long_tailed\", \"data\": {\"format\": \"synthetic\", \"synthetic\": {"
        "\"height\": 8, \"width\": 8, \"channels\": 3, \"classes\": 5, \"train_per_class\": 1000000, "
        "\"test_per_class\": 1}}, \"model\": {\"arch\": \"%s\"}, \"train\": {\"epochs\": 1, \"batch_size\": "
        "%d%s",
        arch, batch, more);
    cJSON *doc = json_parse(text, strlen(text), &e);

    assert_non_null(doc);
    assert_int_equal(jobspec_parse(doc, spec, NULL, &errors), 0);
    cJSON_Delete(doc);
    free(text);
    return spec;
}

static struct estimate estimate_on(const struct jobspec *spec, const char *machine, int ranks)
{
    struct err e = ERR_INIT;
    struct estimate est;
    struct estimate_query q = {spec, estimate_machine_find(machine, spec, &e), ranks};

    assert_non_null(q.machine);
    assert_int_equal(estimate_job(&q, &est, &e), 0);
    return est;
}

static void assert_close(double a, double b)
{
    if (fabs(a - b) > 1e-9 * fabs(b))
        fail_msg("%.17g is not %.17g", a, b);
}

/* ResNet-8 on 8 × 8: conv1 3→16; layer1 16→16 twice at 64 pixels; layer2 16→32, 32→32 at 16; layer3 32→64,
 * 64→64 at 4; classifier 64→5, over both streams where there is a module. */
static void test_flops_by_hand(void **state)
{
    struct jobspec *spec = make_spec("resnet8", 6, "}, \"batchformer\": {\"enabled\": false}}");
    struct estimate est = estimate_on(spec, "cpu-core", 2);
    double conv1 = 2.0 * 64 * 9 * 3 * 16;
    double convs = 2.0 * 9 * (64 * 2 * 16 * 16 + 16 * (16 * 32 + 32 * 32) + 4 * (32 * 64 + 64 * 64));
    double classifier = 2.0 * 64 * 5;

    (void)state;
    assert_int_equal(est.rows, 3);
    assert_close(est.flops[PAPER_BACKBONE][PAPER_FORWARD], 3 * (conv1 + convs + classifier));
    assert_close(est.flops[PAPER_BACKBONE][PAPER_BACKWARD], 3 * (conv1 + 2 * convs + 2 * classifier));
    assert_true(est.flops[PAPER_MODULE][0] == 0 && est.module_parameters == 0 && !est.gather.exists);
    free(spec);

    spec = make_spec("resnet8", 6, "}, \"batchformer\": {\"heads\": 4, \"ffn\": 32, \"gather\": \"kv\"}}");
    est = estimate_on(spec, "cpu-core", 2);
    double c = 64, linear = 3 * 2 * (4 * c * c + 2 * c * 32), scores = 3 * 6 * c;
    assert_close(est.flops[PAPER_MODULE][PAPER_FORWARD], linear + 4 * scores);
    assert_close(est.flops[PAPER_MODULE][PAPER_BACKWARD], 2 * linear + 10 * scores);
    assert_close(est.module_parameters, 4 * c * c + 4 * c + 2 * c * 32 + 32 + c + 4 * c);
    free(spec);

    spec =
        make_spec("resnet8", 6, "}, \"batchformer\": {\"heads\": 4, \"ffn\": 32, \"gather\": \"features\"}}");
    struct estimate all = estimate_on(spec, "cpu-core", 2);
    assert_close(all.flops[PAPER_MODULE][PAPER_FORWARD], linear + 4 * scores + 2 * 3 * 2 * c * c);
    assert_close(all.bytes.gather, est.bytes.gather / 2);
    free(spec);
}

/* A gather brings the rows of the others, a reduce-scatter takes as many; an all-reduce is both. */
static void test_bytes_by_formula(void **state)
{
    struct jobspec *spec = make_spec("resnet8", 12,
                                     ", \"precision\": \"bf16\"}, \"resources\": {\"gpus_per_rank\": "
                                     "1}, \"batchformer\": {\"layers\": 2, \"gather\": \"kv\"}}");
    struct estimate est = estimate_on(spec, NULL, 3);
    double channels = 16 * 3 + 32 * 2 + 64 * 2; /* of all batch norms */

    (void)state;
    assert_string_equal(est.machine->name, "h100-400g");
    assert_close(est.bytes.gather, 2 * 2.0 * (12 - 4) * 64 * 2);
    assert_close(est.bytes.scatter, 2 * 2.0 * (12 - 4) * 64 * 4);
    assert_close(est.bytes.gradients, 2 * est.parameters * 4 * 2 / 3);
    assert_close(est.bytes.norm, 2 * (2 * channels * 8) * 2 * 2 / 3);
    assert_close(est.memory.gathered, 2 * 2.0 * 12 * 64 * (2 + 4));
    est = estimate_on(spec, NULL, 1);
    assert_true(est.bytes.gather + est.bytes.scatter + est.bytes.gradients + est.bytes.norm == 0);
    assert_true(est.seconds.gather + est.seconds.norm + est.seconds.gradients == 0 && est.efficiency == 1);
    free(spec);
}

static void test_ranks_change_what_they_should(void **state)
{
    static const char *const machines[] = {"h100-nvlink", "h100-400g"};
    struct jobspec *spec = make_spec("resnet50", 65536, "}, \"resources\": {\"gpus_per_rank\": 1}}");

    (void)state;
    for (size_t m = 0; m < 2; m++) {
        struct estimate last = estimate_on(spec, machines[m], 1);
        for (int ranks = 8; ranks <= 4096; ranks *= 8) {
            struct estimate est = estimate_on(spec, machines[m], ranks);
            assert_close(est.parameters, last.parameters);
            assert_true(est.flops[PAPER_BACKBONE][0] < last.flops[PAPER_BACKBONE][0]);
            assert_true(est.memory.activations < last.memory.activations);
            assert_true(est.bytes.gather > last.bytes.gather && est.seconds.gather > last.seconds.gather);
            assert_true(est.seconds.norm > last.seconds.norm);
            assert_true(est.efficiency < last.efficiency && est.efficiency > 0);
            assert_true(est.seconds.gradients_exposed <= est.seconds.gradients);
            last = est;
        }
    }
    free(spec);
}

/* Where the two ways cost the same, the width is the crossing, latency being equal. */
static void test_gathers_cross(void **state)
{
    static const char *const archs[] = {"resnet8", "resnet18", "resnet50"};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct jobspec *spec = make_spec(archs[i], 4096, "}, \"resources\": {\"gpus_per_rank\": 1}}");
        struct estimate est = estimate_on(spec, "h100-nvlink", 8);
        double width = jobspec_feature_width(archs[i], 1), latency = 2 * 7 * 1.5e-6;
        assert_int_equal(est.gather.features_s < est.gather.kv_s, width < est.gather.cross_width);
        assert_close((est.gather.features_s - latency) / (est.gather.kv_s - latency),
                     0.5 + 0.5 * width / est.gather.cross_width);
        free(spec);
    }
}

static void test_refusals(void **state)
{
    struct jobspec *spec = make_spec("resnet8", 6, "}}");
    struct estimate est;
    struct err e = ERR_INIT;

    (void)state;
    assert_null(estimate_machine_find("abacus", spec, &e));
    assert_non_null(strstr(e.msg, "cpu-core, h100-nvlink, h100-400g"));
    struct estimate_query q = {spec, &estimate_machines[0], 7};
    assert_int_equal(estimate_job(&q, &est, &e), -1);
    assert_non_null(strstr(e.msg, "7 ranks found, at most train.batch_size = 6"));
    free(spec);
    spec = make_spec("resnet8", 6, ", \"precision\": \"tf32\"}, \"resources\": {\"gpus_per_rank\": 1}}");
    q = (struct estimate_query){spec, &estimate_machines[0], 1};
    assert_int_equal(estimate_job(&q, &est, &e), -1);
    assert_non_null(strstr(e.msg, "cpu-core does not compute in train.precision \"tf32\""));
    free(spec);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flops_by_hand),
        cmocka_unit_test(test_bytes_by_formula),
        cmocka_unit_test(test_ranks_change_what_they_should),
        cmocka_unit_test(test_gathers_cross),
        cmocka_unit_test(test_refusals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
