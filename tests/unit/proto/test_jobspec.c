/* test_jobspec - the job spec: defaults, every kind of finding, rules over several keys, --set, files. */
#include "common/fsutil.h"
#include "common/json.h"
#include "proto/jobspec.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define IDX "\"data\": {\"format\": \"idx\", \"path\": \"/d\"}"
#define MODEL "\"model\": {\"arch\": \"resnet8\"}"
#define TRAIN "\"train\": {\"epochs\": 2, \"batch_size\": 8}"
#define HEAD "\"version\": 1, \"task\": \"long_tailed\""
#define MINIMAL "{" HEAD ", " IDX ", " MODEL ", " TRAIN "}"

/* The example of the documentation: every key of it must be known. */
static const char *const example =
    "{\"version\": 1, \"name\": \"fashion-lt\", \"task\": \"long_tailed\", \"seed\": 0,"
    "\"data\": {\"format\": \"idx\", \"path\": \"/usr/share/datasets/fashion-mnist\","
    "           \"long_tail\": {\"kind\": \"exp\", \"factor\": 100},"
    "           \"augment\": {\"crop_padding\": 4, \"flip\": true}},"
    "\"model\": {\"arch\": \"resnet20\", \"width\": 1.0, \"norm\": \"sync_batch\"},"
    "\"batchformer\": {\"enabled\": true, \"scope\": \"global\", \"layers\": 1, \"heads\": 4, \"ffn\": null,"
    "                  \"dropout\": 0.5, \"shared_classifier\": true, \"gather\": \"auto\", \"lr_scale\": "
    "1.0,"
    "                  \"weight_decay\": null, \"eval\": false},"
    "\"loss\": {\"kind\": \"cross_entropy\"},"
    "\"optim\": {\"kind\": \"sgd\", \"lr\": 0.1, \"momentum\": 0.9, \"nesterov\": false, \"weight_decay\": "
    "5e-4,"
    "            \"schedule\": {\"kind\": \"cosine\", \"warmup_epochs\": 1}},"
    "\"train\": {\"epochs\": 20, \"batch_size\": 256, \"precision\": \"fp32\", \"determinism\": \"default\"},"
    "\"eval\": {\"every_epochs\": 1, \"batch_size\": 512},"
    "\"checkpoint\": {\"every_steps\": 200, \"keep\": 3},"
    "\"init\": {\"weights\": null},"
    "\"resources\": {\"ranks\": 2, \"min_ranks\": 1, \"max_ranks\": 2, \"gpus_per_rank\": 0,"
    "                \"threads_per_rank\": null, \"nodes\": null},"
    "\"scheduling\": {\"priority\": 0, \"max_restarts\": 3, \"time_limit_s\": null, \"after\": []},"
    "\"sweep\": null}";

static cJSON *doc_of(const char *text)
{
    struct err e = ERR_INIT;
    cJSON *doc = json_parse(text, strlen(text), &e);

    if (!doc)
        fail_msg("%s: %s", e.msg, text);
    return doc;
}

static cJSON *minimal_with(const char *assignment)
{
    struct err e = ERR_INIT;
    cJSON *doc = doc_of(MINIMAL);

    if (assignment && jobspec_set(doc, assignment, &e) < 0)
        fail_msg("%s", e.msg);
    return doc;
}

static void print_errors(const struct jobspec_errors *errs)
{
    for (int i = 0; i < errs->n; i++)
        print_message("  %s: %s\n", errs->v[i].pointer, errs->v[i].message);
}

static struct jobspec good(cJSON *doc, cJSON **resolved)
{
    struct jobspec s;
    struct jobspec_errors errs;

    if (jobspec_parse(doc, &s, resolved, &errs) < 0) {
        print_errors(&errs);
        fail_msg("a good spec was refused");
    }
    assert_int_equal(errs.n, 0);
    jobspec_errors_free(&errs);
    cJSON_Delete(doc);
    return s;
}

/* The document has exactly one finding, at `pointer`, and its message contains `part`. Consumes doc. */
static void bad(cJSON *doc, const char *pointer, const char *part)
{
    struct jobspec s;
    struct jobspec_errors errs;
    cJSON *resolved = NULL;

    if (jobspec_parse(doc, &s, &resolved, &errs) == 0)
        fail_msg("accepted, expected a finding at %s", pointer);
    assert_null(resolved);
    if (errs.n != 1 || strcmp(errs.v[0].pointer, pointer) != 0 || !strstr(errs.v[0].message, part)) {
        print_errors(&errs);
        fail_msg("expected one finding at %s with \"%s\"", pointer, part);
    }
    jobspec_errors_free(&errs);
    cJSON_Delete(doc);
}

static void test_example_is_known(void **state)
{
    (void)state;
    cJSON *resolved = NULL;
    struct jobspec s = good(doc_of(example), &resolved);

    assert_string_equal(s.name, "fashion-lt");
    assert_int_equal(s.task, TASK_LONG_TAILED);
    assert_int_equal(s.data.format, FORMAT_IDX);
    assert_string_equal(s.data.path, "/usr/share/datasets/fashion-mnist");
    assert_int_equal(s.data.long_tail.kind, TAIL_EXP);
    assert_true(s.data.long_tail.factor == 100);
    assert_int_equal(s.data.augment.crop_padding, 4);
    assert_true(s.data.augment.flip);
    assert_string_equal(s.model.arch, "resnet20");
    assert_true(s.optim.weight_decay == 5e-4);
    assert_int_equal(s.optim.schedule.kind, SCHEDULE_COSINE);
    assert_true(s.optim.schedule.warmup_epochs == 1);
    assert_int_equal(s.train.batch_size, 256);
    assert_int_equal(s.resources.max_ranks, 2);
    cJSON_Delete(resolved);
}

static void test_defaults(void **state)
{
    (void)state;
    struct jobspec s = good(doc_of(MINIMAL), NULL);

    assert_string_equal(s.name, "job");
    assert_int_equal(s.data.long_tail.kind, TAIL_NONE);
    assert_int_equal(s.data.holdout_per_class, 100);
    assert_int_equal(s.data.augment.crop_padding, 0);
    assert_false(s.data.augment.flip);
    assert_true(s.data.normalize);
    assert_true(s.model.width == 1);
    assert_int_equal(s.model.norm, NORM_SYNC_BATCH);
    assert_true(s.batchformer.enabled);
    assert_int_equal(s.batchformer.scope, SCOPE_GLOBAL);
    assert_int_equal(s.batchformer.layers, 1);
    assert_int_equal(s.batchformer.heads, 4);
    assert_int_equal(s.batchformer.ffn, 0);
    assert_true(s.batchformer.dropout == 0.5);
    assert_true(s.batchformer.shared_classifier);
    assert_true(s.batchformer.lr_scale == 1);
    assert_true(s.batchformer.weight_decay < 0);
    assert_false(s.batchformer.eval);
    assert_int_equal(s.loss.kind, LOSS_CROSS_ENTROPY);
    assert_true(s.optim.lr == 0.1);
    assert_true(s.optim.momentum == 0.9);
    assert_true(s.optim.schedule.min_lr == 0);
    assert_int_equal(s.train.log_every_steps, 10);
    assert_true(s.train.max_grad_norm == 0);
    assert_int_equal(s.eval.batch_size, 512);
    assert_int_equal(s.eval.many_above, 100);
    assert_int_equal(s.eval.few_below, 20);
    assert_int_equal(s.checkpoint.every_steps, 200);
    assert_int_equal(s.checkpoint.keep, 3);
    assert_string_equal(s.init.weights, "");
    assert_int_equal(s.resources.ranks, 1);
    assert_int_equal(s.resources.min_ranks, 1);
    assert_int_equal(s.resources.max_ranks, 1);
    assert_int_equal(s.resources.threads_per_rank, 0);
    assert_int_equal(s.scheduling.max_restarts, 3);
    assert_true(s.scheduling.time_limit_s == 0);
}

static void test_derived_defaults(void **state)
{
    (void)state;
    cJSON *doc = minimal_with("resources.ranks=3");
    struct jobspec s = good(doc, NULL);
    assert_int_equal(s.resources.max_ranks, 3);
    assert_false(s.train.autotune);
    assert_true(s.train.winograd);
    s = good(minimal_with("resources.gpus_per_rank=1"), NULL);
    assert_true(s.train.autotune);
    assert_false(s.train.winograd);
    doc = minimal_with("resources.gpus_per_rank=1");
    assert_int_equal(jobspec_set(doc, "train.autotune=false", NULL), 0);
    assert_false(good(doc, NULL).train.autotune);

    doc =
        minimal_with("data={\"format\":\"synthetic\",\"synthetic\":{\"height\":8,\"width\":8,\"channels\":1,"
                     "\"classes\":4,\"train_per_class\":20,\"test_per_class\":5}}");
    s = good(doc, NULL);
    assert_int_equal(s.data.format, FORMAT_SYNTHETIC);
    assert_int_equal(s.data.holdout_per_class, 0);
    assert_int_equal(s.data.synthetic.classes, 4);
    assert_string_equal(s.data.path, "");
}

static void test_optimisers_have_their_own_defaults(void **state)
{
    (void)state;
    static const struct {
        const char *set;
        enum jobspec_optim kind;
        double lr, weight_decay, momentum, beta1, beta2, eps, trust;
    } rows[] = {
        {"optim={}", OPTIM_SGD, 0.1, 5e-4, 0.9, 0, 0, 0, 0},
        {"optim.kind=adam", OPTIM_ADAM, 1e-3, 0, 0, 0.9, 0.999, 1e-8, 0},
        {"optim.kind=adamw", OPTIM_ADAMW, 1e-3, 0.01, 0, 0.9, 0.999, 1e-8, 0},
        {"optim.kind=lars", OPTIM_LARS, 0.1, 5e-4, 0.9, 0, 0, 1e-8, 1e-3},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct jobspec s = good(minimal_with(rows[i].set), NULL);
        assert_int_equal(s.optim.kind, rows[i].kind);
        assert_true(s.optim.lr == rows[i].lr && s.optim.weight_decay == rows[i].weight_decay);
        assert_true(s.optim.momentum == rows[i].momentum && !s.optim.nesterov);
        assert_true(s.optim.beta1 == rows[i].beta1 && s.optim.beta2 == rows[i].beta2);
        assert_true(s.optim.eps == rows[i].eps && s.optim.trust_coefficient == rows[i].trust);
        assert_true(s.optim.ema == 0);
    }
}

/* A resolved document parses, resolves to itself, and holds every default. */
static void test_resolved_is_a_fixed_point(void **state)
{
    (void)state;
    static const char *const sets[] = {
        "seed=999999999999999",
        "optim.schedule={\"kind\":\"step\",\"milestones\":[0.5,1]}",
        "optim.schedule.kind=constant",
        "optim={\"kind\":\"adamw\",\"lr\":0.003,\"ema\":0.999}",
        "optim={\"kind\":\"lars\",\"momentum\":0.8,\"nesterov\":true,\"beta1\":null}",
        "data={\"format\":\"synthetic\",\"synthetic\":{\"height\":8,\"width\":8,\"channels\":1,\"classes\":4,"
        "\"train_per_class\":20,\"test_per_class\":5}}",
        "data.long_tail={\"kind\":\"step\",\"factor\":10}",
        "data.augment=null",
        "resources.gpus_per_rank=1",
    };
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        cJSON *first = NULL, *second = NULL;
        struct jobspec a = good(minimal_with(sets[i]), &first);
        struct jobspec b = good(cJSON_Duplicate(first, true), &second);
        char *ta = json_text(first), *tb = json_text(second);
        assert_string_equal(ta, tb);
        assert_memory_equal(&a, &b, sizeof a);
        free(ta);
        free(tb);
        cJSON_Delete(first);
        cJSON_Delete(second);
    }
}

struct bad_case {
    const char *set, *pointer, *part;
};

static void run_bad(const struct bad_case *cases, size_t n)
{
    for (size_t i = 0; i < n; i++)
        bad(minimal_with(cases[i].set), cases[i].pointer, cases[i].part);
}

static void test_wrong_values(void **state)
{
    (void)state;
    static const struct bad_case cases[] = {
        {"version=2", "/version", "2 found, 1 is accepted"},
        {"name=a b", "/name", "\"a b\" found"},
        {"name=", "/name", "\"\" found"},
        {"seed=-1", "/seed", "-1 found, a whole number from 0 to 1000000000000000 is accepted"},
        {"seed=1000000000000001", "/seed", "found"},
        {"seed=1.5", "/seed", "1.5 found"},
        {"task=7", "/task", "7 found, \"long_tailed\" is accepted"},
        {"data=[]", "/data", "[] found, an object is accepted"},
        {"data.path=5", "/data/path", "5 found"},
        {"data.path=", "/data/path", "\"\" found"},
        {"data.long_tail={\"kind\":\"exp\",\"factor\":0.5}", "/data/long_tail/factor", "0.5 found"},
        {"data.long_tail={\"factor\":5}", "/data/long_tail/kind", "nothing found, one of \"exp\", \"step\""},
        {"data.augment.flip=1", "/data/augment/flip", "1 found, true or false is accepted"},
        {"data.augment.crop_padding=-1", "/data/augment/crop_padding", "-1 found"},
        {"data.holdout_per_class=-1", "/data/holdout_per_class", "-1 found"},
        {"model.arch=vgg", "/model/arch", "one of \"resnet8\", \"resnet20\""},
        {"model.width=0", "/model/width", "0 found, a number above 0 and at most 16 is accepted"},
        {"batchformer.dropout=1", "/batchformer/dropout", "1 found, a number of at least 0 and below 1"},
        {"batchformer.ffn=0", "/batchformer/ffn", "0 found, null or a whole number"},
        {"batchformer.scope=all", "/batchformer/scope", "one of \"global\", \"local\""},
        {"batchformer=null", "/batchformer", "null found, an object is accepted"},
        {"optim.lr=0", "/optim/lr", "0 found"},
        {"optim.lr=1e999", "/optim/lr", "found"},
        {"optim.lr=fast", "/optim/lr", "\"fast\" found"},
        {"optim.momentum=1", "/optim/momentum", "1 found"},
        {"optim.kind=rmsprop", "/optim/kind", "one of \"sgd\", \"adam\", \"adamw\", \"lars\" is accepted"},
        {"optim={\"kind\":\"adam\",\"beta1\":1}", "/optim/beta1",
         "1 found, a number of at least 0 and below 1"},
        {"optim={\"kind\":\"adamw\",\"eps\":0}", "/optim/eps", "0 found, a number from 1e-12 to 1"},
        {"optim={\"kind\":\"lars\",\"trust_coefficient\":0}", "/optim/trust_coefficient", "0 found"},
        {"optim.ema=1", "/optim/ema", "1 found, null or a number above 0 and below 1"},
        {"optim.ema=false", "/optim/ema", "false found"},
        {"train.epochs=0", "/train/epochs", "0 found, a whole number from 1 to 1000000"},
        {"train.epochs=null", "/train/epochs", "null found"},
        {"train.batch_size=8.5", "/train/batch_size", "8.5 found"},
        {"train.max_grad_norm=0", "/train/max_grad_norm", "0 found, null or a number above 0"},
        {"train.autotune=1", "/train/autotune", "1 found, true or false is accepted"},
        {"optim.schedule={\"kind\":\"step\",\"milestones\":[]}", "/optim/schedule/milestones",
         "[] found, an array"},
        {"optim.schedule={\"kind\":\"step\"}", "/optim/schedule/milestones", "nothing found"},
        {"optim.schedule={\"kind\":\"step\",\"milestones\":[1,\"2\"]}", "/optim/schedule/milestones",
         "[1,\"2\"]"},
        {"init.weights=", "/init/weights", "\"\" found, null or a string"},
        {"scheduling.time_limit_s=0", "/scheduling/time_limit_s", "0 found"},
        {"checkpoint.keep=0", "/checkpoint/keep", "0 found"},
    };
    run_bad(cases, sizeof cases / sizeof *cases);
}

static void test_unknown_keys(void **state)
{
    (void)state;
    static const struct bad_case cases[] = {
        {"trian={}", "/trian", "nearest known one is \"train\""},
        {"batchsize=5", "/batchsize", "unknown key"},
        {"batch_size=5", "/batch_size", "did you mean /train/batch_size?"},
        {"train.batchsize=5", "/train/batchsize", "\"batch_size\""},
        {"optim.schedule.warmup=1", "/optim/schedule/warmup", "unknown key"},
        {"a/b~c=1", "/a~1b~0c", "unknown key"},
        {"Seed=1", "/Seed", "\"seed\""},
    };
    run_bad(cases, sizeof cases / sizeof *cases);
}

static void test_ids_and_hosts(void **state)
{
    (void)state;
    static const struct bad_case cases[] = {
        {"resources.nodes=[\"a\"]", "/resources/nodes", "null or a whole number"},
        {"resources.nodes=2", "/resources/nodes", "more hosts than processes"},
        {"scheduling.after=3", "/scheduling/after", "an array of at most 16 different job ids"},
        {"scheduling.after=[3,3]", "/scheduling/after", "different"},
        {"scheduling.after=[0]", "/scheduling/after", "different"},
        {"scheduling.after=[1.5]", "/scheduling/after", "different"},
        {"sweep={\"train.seed\":[0,1]}", "/sweep", "a sweep found, which makes several jobs"},
        {"sweep=3", "/sweep", "3 found"},
    };
    run_bad(cases, sizeof cases / sizeof *cases);
}

static void test_not_in_this_version(void **state)
{
    (void)state;
    static const struct bad_case cases[] = {
        {"task=contrastive", "/task", "not available in this version; accepted: \"long_tailed\""},
        {"data={\"format\":\"cifar10\",\"path\":\"/d\"}", "/data/format",
         "not available in this version; accepted: one of \"idx\", \"synthetic\""},
        {"train.precision=fp16", "/train/precision", "not available in this version; accepted: one of"},
        {"batchformer.shared_classifier=false", "/batchformer/shared_classifier",
         "not available in this version; accepted: true"},
    };
    run_bad(cases, sizeof cases / sizeof *cases);
}

static void test_keys_that_do_not_apply(void **state)
{
    (void)state;
    static const struct bad_case cases[] = {
        {"data.synthetic={}", "/data/synthetic", "only exists where format is \"synthetic\""},
        {"optim.schedule.milestones=[1]", "/optim/schedule/milestones", "only exists where kind is \"step\""},
        {"optim.schedule={\"kind\":\"constant\",\"min_lr\":0.1}", "/optim/schedule/min_lr",
         "kind is \"cosine\""},
        {"optim.beta1=0.9", "/optim/beta1", "only exists where kind is \"adam\" or \"adamw\"; leave it out"},
        {"optim.eps=1", "/optim/eps", "only exists where kind is \"adam\", \"adamw\" or \"lars\"; leave"},
        {"optim.trust_coefficient=1", "/optim/trust_coefficient", "only exists where kind is \"lars\""},
        {"optim={\"kind\":\"adamw\",\"momentum\":0}", "/optim/momentum", "kind is \"sgd\" or \"lars\""},
        {"optim={\"kind\":\"lars\",\"beta2\":0.9}", "/optim/beta2", "0.9 found"},
        {"optim={\"kind\":\"adam\",\"nesterov\":false}", "/optim/nesterov", "kind is \"sgd\" or \"lars\""},
    };
    run_bad(cases, sizeof cases / sizeof *cases);
    good(minimal_with("optim.schedule={\"kind\":\"constant\",\"min_lr\":null}"), NULL);
}

static void test_cross_checks(void **state)
{
    (void)state;
    static const struct bad_case cases[] = {
        {"resources={\"ranks\":9}", "/resources/ranks", "9 found, more ranks than rows in a batch"},
        {"resources={\"ranks\":8,\"max_ranks\":9}", "/resources/max_ranks",
         "more ranks than rows in a batch"},
        {"resources={\"ranks\":2,\"min_ranks\":3}", "/resources/min_ranks",
         "3 found, at most resources.ranks = 2"},
        {"resources={\"ranks\":3,\"max_ranks\":2}", "/resources/max_ranks",
         "2 found, at least resources.ranks = 3"},
        {"batchformer.heads=5", "/batchformer/heads",
         "5 found, a divisor of the feature width 64 (resnet8, width 1)"},
        {"optim={\"nesterov\":true,\"momentum\":0}", "/optim/nesterov", "while optim.momentum is 0"},
        {"optim.schedule.warmup_epochs=2", "/optim/schedule/warmup_epochs",
         "2 found, less than train.epochs = 2"},
        {"optim.schedule={\"kind\":\"step\",\"milestones\":[2,1]}", "/optim/schedule/milestones",
         "1 found after 2"},
        {"optim.schedule={\"kind\":\"step\",\"milestones\":[1,1]}", "/optim/schedule/milestones", "rising"},
        {"optim.schedule.min_lr=0.2", "/optim/schedule/min_lr", "0.2 found, at most optim.lr = 0.1"},
        {"train.autotune=true", "/train/autotune",
         "true found, false is accepted while resources.gpus_per_rank is 0"},
        {"eval.few_below=102", "/eval/few_below", "102 found, at most eval.many_above + 1 = 101"},
    };
    run_bad(cases, sizeof cases / sizeof *cases);

    cJSON *doc = minimal_with("resources={\"ranks\":8}");
    assert_int_equal(jobspec_set(doc, "eval.batch_size=4", NULL), 0);
    bad(doc, "/eval/batch_size", "4 found, fewer rows in a batch than ranks");
    doc = minimal_with("batchformer.heads=5");
    assert_int_equal(jobspec_set(doc, "batchformer.enabled=false", NULL), 0);
    good(doc, NULL);
}

#define SYNTHETIC(more)                                                                                      \
    "data={\"format\":\"synthetic\",\"synthetic\":{\"height\":8,\"width\":8,\"channels\":1,\"classes\":4,"   \
    "\"train_per_class\":20,\"test_per_class\":5}" more "}"

static void test_synthetic_checks(void **state)
{
    (void)state;
    static const struct bad_case cases[] = {
        {"data={\"format\":\"synthetic\"}", "/data/synthetic", "nothing found, an object is accepted"},
        {SYNTHETIC(",\"path\":\"/d\""), "/data/path", "only exists where format is \"idx\""},
        {SYNTHETIC(",\"holdout_per_class\":20"), "/data/holdout_per_class", "20 found, less than"},
        {SYNTHETIC(",\"long_tail\":{\"kind\":\"exp\",\"factor\":2,\"max_per_class\":21}"),
         "/data/long_tail/max_per_class", "21 found, at most 20"},
    };
    run_bad(cases, sizeof cases / sizeof *cases);
    good(minimal_with(SYNTHETIC(",\"path\":null")), NULL);

    cJSON *doc = minimal_with(SYNTHETIC(""));
    assert_int_equal(jobspec_set(doc, "train.batch_size=81", NULL), 0);
    bad(doc, "/train/batch_size", "81 found, at most the 80 training images");
    doc = minimal_with(SYNTHETIC(""));
    assert_int_equal(jobspec_set(doc, "data.synthetic.test_per_class=600000000", NULL), 0);
    bad(doc, "/data/synthetic", "600000000 images of each of 4 classes");
}

/* Independent mistakes are all reported, each once; rules over keys that are wrong themselves stay silent. */
static void test_all_errors_at_once(void **state)
{
    (void)state;
    cJSON *doc =
        doc_of("{\"task\": \"nope\", \"data\": {\"format\": \"idx\"}, \"model\": {\"arch\": \"resnet8\"},"
               "\"train\": {\"batch_size\": 0}, \"resources\": {\"ranks\": 5, \"max_ranks\": 4}, \"x\": 1}");
    struct jobspec s;
    struct jobspec_errors errs;
    static const char *const expected[] = {"/x",
                                           "/version",
                                           "/task",
                                           "/data/path",
                                           "/train/epochs",
                                           "/train/batch_size",
                                           "/resources/max_ranks"};

    assert_int_equal(jobspec_parse(doc, &s, NULL, &errs), -1);
    if (errs.n != sizeof expected / sizeof *expected)
        print_errors(&errs);
    assert_int_equal(errs.n, sizeof expected / sizeof *expected);
    for (int i = 0; i < errs.n; i++)
        assert_string_equal(errs.v[i].pointer, expected[i]);
    cJSON *list = jobspec_errors_to_json(&errs);
    assert_int_equal(cJSON_GetArraySize(list), errs.n);
    assert_string_equal(json_find(list->child, "pointer")->valuestring, "/x");
    cJSON_Delete(list);
    jobspec_errors_free(&errs);
    cJSON_Delete(doc);

    doc = doc_of("[1]");
    bad(doc, "", "[1] found, an object is accepted");
}

/* Bytes that JSON lets through but that no message or file name should carry. */
static void test_hostile_strings(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    char text[9000];

    bad(minimal_with("data.path=\"/a\\nb\""), "/data/path", "without control characters");
    assert_null(json_parse("\"a\\u0000b\"", 10, &e));
    assert_non_null(strstr(e.msg, "\\u0000"));
    memset(text, 'a', sizeof text);
    memcpy(text, "data.path=", 10);
    text[10 + JOBSPEC_MAX_PATH] = 0;
    bad(minimal_with(text), "/data/path", "aaa... found");
    text[10 + JOBSPEC_MAX_PATH - 1] = 0;
    good(minimal_with(text), NULL);

    for (int i = 0; i < 4096; i++) /* an endless key of two-byte characters: cut at a border, no overflow */
        memcpy(text + 2 * i, "\xc3\xa9", 2);
    strcpy(text + 8192, "=1");
    cJSON *doc = minimal_with(text);
    struct jobspec s;
    struct jobspec_errors errs;
    assert_int_equal(jobspec_parse(doc, &s, NULL, &errs), -1);
    assert_int_equal(strlen(errs.v[0].pointer) % 2, 1);
    assert_true(strlen(errs.v[0].pointer) < 256);
    jobspec_errors_free(&errs);
    cJSON_Delete(doc);
}

static void test_set(void **state)
{
    (void)state;
    struct err e = ERR_INIT;
    cJSON *doc = doc_of("{\"train\": {\"epochs\": 1}, \"data\": {\"long_tail\": null}}");

    assert_int_equal(jobspec_set(doc, "train.epochs=2", &e), 0);
    assert_int_equal(jobspec_set(doc, "data.long_tail.kind=exp", &e), 0);
    assert_int_equal(jobspec_set(doc, "optim.schedule.kind=\"step\"", &e), 0);
    assert_int_equal(jobspec_set(doc, "name=a=b", &e), 0);
    char *text = json_text(doc);
    assert_string_equal(text, "{\"train\":{\"epochs\":2},\"data\":{\"long_tail\":{\"kind\":\"exp\"}},"
                              "\"optim\":{\"schedule\":{\"kind\":\"step\"}},\"name\":\"a=b\"}");
    free(text);

    static const char *const wrong[] = {"train.epochs",     "=1", ".a=1", "a.=1", "a..b=1",
                                        "train.epochs.x=1", ""};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(jobspec_set(doc, wrong[i], &e), -1);
        assert_int_equal(e.kind, ERR_USAGE);
    }
    assert_int_equal(jobspec_set(doc, "train.epochs.x=1", &e), -1);
    assert_non_null(strstr(e.msg, "\"epochs\" is not an object"));
    cJSON_Delete(doc);
}

static void test_load(void **state)
{
    (void)state;
    char path[] = "/tmp/test_jobspec.XXXXXX";
    struct jobspec s;
    struct err e = ERR_INIT;
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(fs_atomic_replace(path, MINIMAL, strlen(MINIMAL), &e), 0);
    assert_int_equal(jobspec_load(path, &s, NULL, &e), 0);
    assert_int_equal(s.train.epochs, 2);

    const char *wrong = "{\"version\": 1,}";
    assert_int_equal(fs_atomic_replace(path, wrong, strlen(wrong), &e), 0);
    assert_int_equal(jobspec_load(path, &s, NULL, &e), -1);
    assert_int_equal(e.kind, ERR_SPEC);
    assert_non_null(strstr(e.msg, "line 1, column"));

    /* More findings than a message holds: as many as fit, and the number of the others. */
    char many[8192] = "{";
    for (int i = 0; i < 60; i++)
        sprintf(many + strlen(many), "\"unknown_key_%d\": 1,", i);
    strcpy(many + strlen(many) - 1, "}");
    assert_int_equal(fs_atomic_replace(path, many, strlen(many), &e), 0);
    assert_int_equal(jobspec_load(path, &s, NULL, &e), -1);
    assert_int_equal(e.kind, ERR_SPEC);
    assert_non_null(strstr(e.msg, "\n  /unknown_key_0: unknown key"));
    assert_non_null(strstr(e.msg, " more"));

    unlink(path);
    assert_int_equal(jobspec_load(path, &s, NULL, &e), -1);
    assert_non_null(strstr(e.msg, path));
}

static void test_feature_width(void **state)
{
    (void)state;
    assert_int_equal(jobspec_feature_width("resnet8", 1), 64);
    assert_int_equal(jobspec_feature_width("resnet32", 0.25), 16);
    assert_int_equal(jobspec_feature_width("resnet18", 1), 512);
    assert_int_equal(jobspec_feature_width("resnet50", 1), 2048);
    assert_int_equal(jobspec_feature_width("resnet50", 0.3), 4 * 154);
    assert_int_equal(jobspec_feature_width("resnet20", 0.001), 1);
    assert_int_equal(jobspec_feature_width("vgg", 1), 0);
    assert_int_equal(jobspec_scale_channels(10, 0.25), 3); /* halves go away from zero */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_example_is_known),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_derived_defaults),
        cmocka_unit_test(test_optimisers_have_their_own_defaults),
        cmocka_unit_test(test_resolved_is_a_fixed_point),
        cmocka_unit_test(test_wrong_values),
        cmocka_unit_test(test_unknown_keys),
        cmocka_unit_test(test_ids_and_hosts),
        cmocka_unit_test(test_not_in_this_version),
        cmocka_unit_test(test_keys_that_do_not_apply),
        cmocka_unit_test(test_cross_checks),
        cmocka_unit_test(test_synthetic_checks),
        cmocka_unit_test(test_all_errors_at_once),
        cmocka_unit_test(test_hostile_strings),
        cmocka_unit_test(test_set),
        cmocka_unit_test(test_load),
        cmocka_unit_test(test_feature_width),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
