/* test_cuda_tuning - engines of convolutions as a table says, and as they are measured. What holds for any
 * library is also run on real GPUs; which engine it is, is known of the simulator's only (cudnn_sim.cpp). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include "tests/sim/device.h"
#include "worker/backend/cuda/cuda_dnn.h"
#include "worker/engine/tuning.h"

enum { ALL_PASSES = (1 << N_CONV_PASSES) - 1, LIMIT = 64 << 20 };

/* n, h, w, ci, ho, wo, co, groups, kernel, stride, pad */
static const struct conv_shape shape = {2, 5, 6, 3, 5, 6, 4, 1, 3, 1, 1};

/* A library, a table, and a log that can be read. */
struct fixture {
    cudaStream_t stream;
    struct cuda_dnn *dnn;
    struct tuning *tuning;
    FILE *file;
    struct log log;
    char said[4096];
};

static void setup(struct fixture *f, bool measures)
{
    struct err e = ERR_INIT;

    *f = (struct fixture){.file = tmpfile()};
    f->log = (struct log){.fd = fileno(f->file), .level = LOG_INFO, .component = "test"};
    f->tuning = tuning_create(measures, &f->log);
    CUDA_OK(cudaStreamCreateWithFlags(&f->stream, cudaStreamNonBlocking));
    f->dnn = cuda_dnn_create(f->stream, &e);
    if (!f->dnn)
        fail_msg("%s", e.msg);
}

static void teardown(struct fixture *f)
{
    cuda_dnn_destroy(f->dnn);
    tuning_destroy(f->tuning);
    CUDA_OK(cudaStreamDestroy(f->stream));
    fclose(f->file);
}

/* All that was logged. */
static const char *said(struct fixture *f)
{
    rewind(f->file);
    f->said[fread(f->said, 1, sizeof f->said - 1, f->file)] = 0;
    return f->said;
}

/* The table of one goes to the other, as between ranks. */
static void give_table(struct fixture *to, const struct fixture *from)
{
    char *text = tuning_text(from->tuning);
    struct err e = ERR_INIT;

    assert_int_equal(tuning_parse(to->tuning, text, strlen(text), &e), 0);
    free(text);
}

static struct cuda_conv_options deterministic(enum dtype t)
{
    return (struct cuda_conv_options){.dtype = t, .deterministic = true, .workspace_limit = LIMIT};
}

/* What is chosen for the passes: "forward eng1_k2=2 …". */
static const char *choose(struct fixture *f, struct conv_shape s, struct cuda_conv_options o, unsigned passes)
{
    struct err e = ERR_INIT;

    o.tuning = f->tuning;
    const struct cuda_conv *c = cuda_conv_get(f->dnn, &s, &o, passes, &e);
    if (!c)
        fail_msg("%s", e.msg);
    return cuda_conv_text(c);
}

static void check_counts(const struct fixture *f, int found, int chosen, int missed)
{
    const struct tuning_counts n = tuning_counts(f->tuning);

    assert_int_equal(n.found, found);
    assert_int_equal(n.chosen, chosen);
    assert_int_equal(n.missed, missed);
}

/* Rank 0 measures; another rank and a later run take the same, and measure nothing. */
static void test_what_was_measured_is_taken_again(void **state)
{
    (void)state;
    static const struct cuda_conv_options variants[] = {
        {.dtype = DTYPE_F32, .deterministic = true, .workspace_limit = LIMIT},
        {.dtype = DTYPE_BF16, .deterministic = true, .f32_grad = true, .workspace_limit = LIMIT},
        {.dtype = DTYPE_F32, .allow_tf32 = true, .workspace_limit = LIMIT},
    };
    enum { N = sizeof variants / sizeof *variants };

    struct fixture first, later, other;
    setup(&first, true);
    setup(&later, true);
    setup(&other, false);
    for (int i = 0; i < N; i++)
        choose(&first, shape, variants[i], ALL_PASSES);
    check_counts(&first, 0, N * N_CONV_PASSES, 0);
    assert_int_equal(tuning_size(first.tuning), N * N_CONV_PASSES);
    give_table(&later, &first);
    give_table(&other, &first);
    for (int i = 0; i < N; i++) {
        const char *text = choose(&first, shape, variants[i], ALL_PASSES);
        assert_string_equal(choose(&later, shape, variants[i], ALL_PASSES), text);
        assert_string_equal(choose(&other, shape, variants[i], ALL_PASSES), text);
    }
    check_counts(&later, N * N_CONV_PASSES, 0, 0);
    check_counts(&other, N * N_CONV_PASSES, 0, 0);
    assert_string_equal(said(&first), "");
    assert_string_equal(said(&later), "");
    teardown(&first);
    teardown(&later);
    teardown(&other);
}

/* The only key of a table. */
static char *key_in(const struct fixture *f)
{
    char *text = tuning_text(f->tuning), *from = strstr(text, "\"cudnn "), *end;

    assert_int_equal(tuning_size(f->tuning), 1);
    assert_non_null(from);
    assert_non_null(end = strchr(from + 1, '"'));
    char *key = strndup(from + 1, (size_t)(end - from - 1));
    free(text);
    return key;
}

/* The first engine is taken, with a warning that names the key; where the table may change it then says so,
 * and the next run has no reason to warn. */
static void test_an_engine_that_is_not_offered(void **state)
{
    (void)state;
    for (int measures = 0; measures < 2; measures++) {
        struct fixture plain, f, again;
        setup(&plain, false);
        setup(&f, measures);
        setup(&again, true);
        const char *first = choose(&plain, shape, deterministic(DTYPE_F32), 1u << CONV_FORWARD);
        choose(&again, shape, deterministic(DTYPE_F32), 1u << CONV_FORWARD);
        char *key = key_in(&again);

        tuning_put(f.tuning, key, "eng999_k1=7");
        assert_string_equal(choose(&f, shape, deterministic(DTYPE_F32), 1u << CONV_FORWARD), first);
        assert_non_null(strstr(said(&f), "WARN "));
        assert_non_null(strstr(said(&f), "cuDNN does not offer eng999_k1=7 for "));
        assert_non_null(strstr(said(&f), key));
        check_counts(&f, 0, measures, !measures);
        assert_int_equal(strcmp(tuning_lookup(f.tuning, key), "eng999_k1=7") != 0, measures);
        free(key);
        teardown(&plain);
        teardown(&f);
        teardown(&again);
    }
}

/* A table without an entry, where nothing may be measured, is as no table. */
static void test_without_an_entry(void **state)
{
    (void)state;
    struct fixture f;
    struct err e = ERR_INIT;
    struct cuda_conv_options o = deterministic(DTYPE_F32);

    setup(&f, false);
    const struct cuda_conv *c = cuda_conv_get(f.dnn, &shape, &o, ALL_PASSES, &e);
    assert_non_null(c);
    assert_string_equal(choose(&f, shape, o, ALL_PASSES), cuda_conv_text(c));
    check_counts(&f, 0, 0, N_CONV_PASSES);
    assert_int_equal(tuning_size(f.tuning), 0);
    assert_string_equal(said(&f), "");
    teardown(&f);
}

#ifdef BF_SIM
/* Whether the only engine of a text "forward eng3_k1=5" is so: its index and the value of its knob. */
static bool is_engine(const char *text, int index, int knob)
{
    char head[32], tail[16];

    snprintf(head, sizeof head, "forward eng%d_k", index);
    snprintf(tail, sizeof tail, "=%d", knob);
    return !strncmp(text, head, strlen(head)) && !strcmp(text + strlen(text) - strlen(tail), tail);
}

static void test_the_fastest_that_is_allowed(void **state)
{
    (void)state;
    static const struct {
        struct cuda_conv_options o;
        const char *ms; /* of the engines 0 (nondeterministic), 1, 2 (TF32), 3 with one knob, with another */
        int index, knob;
    } cases[] = {
        {{.dtype = DTYPE_F32, .deterministic = true, .workspace_limit = LIMIT}, "1,5,1,4,3", 3, 5},
        {{.dtype = DTYPE_F32, .deterministic = true, .workspace_limit = LIMIT}, "1,5,1,3,4", 3, 4},
        {{.dtype = DTYPE_F32, .deterministic = true, .workspace_limit = LIMIT}, "1,3,1,4,5", 1, 2},
        {{.dtype = DTYPE_F32, .deterministic = true, .allow_tf32 = true, .workspace_limit = LIMIT},
         "1,3,2,4,5",
         2,
         3},
        {{.dtype = DTYPE_F32, .deterministic = true, .allow_tf32 = true, .workspace_limit = LIMIT},
         "1,3,4,2,5",
         3,
         4},
        {{.dtype = DTYPE_BF16, .deterministic = true, .workspace_limit = LIMIT}, "1,5,1,4,3", 3, 5},
        {{.dtype = DTYPE_F32, .workspace_limit = LIMIT}, "1,5,1,4,3", 0, 1},
        {{.dtype = DTYPE_F32, .workspace_limit = LIMIT}, "2,5,1,1,3", 3, 4},
        {{.dtype = DTYPE_F32, .deterministic = true, .workspace_limit = 4096}, "1,5,1,4,3", 1, 2},
        {{.dtype = DTYPE_F32, .deterministic = true, .workspace_limit = 8192}, "1,5,1,2,3", 3, 5},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fixture f;
        setup(&f, true);
        setenv("CUSIM_ENGINE_MS", cases[i].ms, 1);
        const char *text = choose(&f, shape, cases[i].o, 1u << CONV_FORWARD);
        if (!is_engine(text, cases[i].index, cases[i].knob))
            fail_msg("case %zu: %s", i, text);
        teardown(&f);
    }
    unsetenv("CUSIM_ENGINE_MS");
}

/* What was the fastest once is taken although another is the fastest now. */
static void test_the_table_wins_over_the_clock(void **state)
{
    (void)state;
    struct fixture then, now;

    setup(&then, true);
    setup(&now, true);
    setenv("CUSIM_ENGINE_MS", "1,5,1,4,3", 1);
    assert_true(is_engine(choose(&then, shape, deterministic(DTYPE_F32), 1u << CONV_FORWARD), 3, 5));
    give_table(&now, &then);
    setenv("CUSIM_ENGINE_MS", "1,2,1,4,3", 1);
    assert_true(is_engine(choose(&now, shape, deterministic(DTYPE_F32), 1u << CONV_FORWARD), 3, 5));
    struct conv_shape unknown = shape;
    unknown.n++;
    assert_true(is_engine(choose(&now, unknown, deterministic(DTYPE_F32), 1u << CONV_FORWARD), 1, 2));
    unsetenv("CUSIM_ENGINE_MS");
    teardown(&then);
    teardown(&now);
}

/* An engine that there is, but that may give other bits the next time. */
static void test_the_table_does_not_make_it_allowed(void **state)
{
    (void)state;
    struct fixture any, f;
    struct cuda_conv_options o = deterministic(DTYPE_F32);

    setup(&any, true);
    setup(&f, true);
    choose(&f, shape, o, 1u << CONV_FORWARD);
    char *key = key_in(&f);
    o.deterministic = false;
    tuning_put(f.tuning, key, strstr(choose(&any, shape, o, 1u << CONV_FORWARD), "eng0"));
    teardown(&any);
    setup(&any, true);
    give_table(&any, &f);
    o.deterministic = true;
    assert_true(is_engine(choose(&any, shape, o, 1u << CONV_FORWARD), 1, 2));
    assert_non_null(strstr(said(&any), "cuDNN does not offer eng0_k"));
    free(key);
    teardown(&any);
    teardown(&f);
}

/* Rank 0 has two rows of a mini-batch of five, rank 1 three, and engines are faster in another order there.
 */
static void test_ranks_with_other_numbers_of_rows(void **state)
{
    (void)state;
    struct fixture rank0, rank1;
    struct conv_shape two = shape, three = shape;

    three.n = 3;
    setup(&rank0, true);
    setup(&rank1, false);
    tuning_set_rows(rank0.tuning, 2, 2);
    tuning_set_rows(rank1.tuning, 3, 2);
    setenv("CUSIM_ENGINE_MS", "1,5,1,4,3", 1);
    assert_true(is_engine(choose(&rank0, two, deterministic(DTYPE_F32), 1u << CONV_FORWARD), 3, 5));
    give_table(&rank1, &rank0);
    setenv("CUSIM_ENGINE_MS", "1,5,1,3,4", 1);
    assert_true(is_engine(choose(&rank1, three, deterministic(DTYPE_F32), 1u << CONV_FORWARD), 3, 5));
    check_counts(&rank1, 1, 0, 0);
    unsetenv("CUSIM_ENGINE_MS");
    teardown(&rank0);
    teardown(&rank1);
}

static void check_key(struct fixture *f, struct cuda_conv_options o, unsigned pass, const char *end)
{
    char key[256];

    choose(f, shape, o, 1u << pass);
    snprintf(key, sizeof key, "cudnn %zu simulated device (2, 5, 6, 3) 3x3/1 pad 1 to 4 groups 1 %s",
             cuda_dnn_version(), end);
    if (!tuning_lookup(f->tuning, key))
        fail_msg("no entry \"%s\"", key);
}

static void test_keys(void **state)
{
    (void)state;
    struct fixture f;
    struct cuda_conv_options o = deterministic(DTYPE_F32);

    setup(&f, true);
    check_key(&f, o, CONV_FORWARD, "f32 forward");
    check_key(&f, o, CONV_BACKWARD_DATA, "f32 backward_data");
    o.allow_tf32 = true;
    check_key(&f, o, CONV_FORWARD, "tf32 forward");
    o = deterministic(DTYPE_BF16);
    o.f32_grad = true;
    check_key(&f, o, CONV_BACKWARD_WEIGHTS, "bf16 backward_weights to f32");
    o.f32_grad = false;
    check_key(&f, o, CONV_BACKWARD_WEIGHTS, "bf16 backward_weights");
    o.deterministic = false;
    check_key(&f, o, CONV_FORWARD, "bf16 forward in any order");
    teardown(&f);
}

/* The first is taken, and it is said. (The simulated devices of this program are small.) */
static void test_no_memory_to_measure(void **state)
{
    (void)state;
    enum { MOST = 1024 };
    struct fixture f;
    struct conv_shape large = {64, 32, 32, 16, 32, 32, 16, 1, 1, 1, 0};
    void *eaten[MOST];
    int n = 0;

    setup(&f, true);
    while (n < MOST && cudaMalloc(&eaten[n], 1 << 20) == cudaSuccess)
        n++;
    assert_true(n > 0 && n < MOST);
    cudaGetLastError();
    assert_true(is_engine(choose(&f, large, deterministic(DTYPE_F32), 1u << CONV_FORWARD), 1, 2));
    assert_non_null(strstr(said(&f), "f32 forward could not be measured, cuDNN's first engine is taken: "));
    assert_non_null(strstr(said(&f), "out of memory"));
    check_counts(&f, 0, 1, 0);
    while (n > 0)
        CUDA_OK(cudaFree(eaten[--n]));
    teardown(&f);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_was_measured_is_taken_again),
        cmocka_unit_test(test_an_engine_that_is_not_offered),
        cmocka_unit_test(test_without_an_entry),
#ifdef BF_SIM
        cmocka_unit_test(test_the_fastest_that_is_allowed),
        cmocka_unit_test(test_the_table_wins_over_the_clock),
        cmocka_unit_test(test_the_table_does_not_make_it_allowed),
        cmocka_unit_test(test_ranks_with_other_numbers_of_rows),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_no_memory_to_measure),
#endif
    };

#ifdef BF_SIM
    setenv("CUSIM_MEMORY_MB", "64", 1);
#endif
    return device_missing() ? EXIT_SKIPPED : cmocka_run_group_tests(tests, NULL, NULL);
}
