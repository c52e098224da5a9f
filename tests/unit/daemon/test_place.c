/* test_place - places as text and back, and what is no place. */
#include "daemon/place.h"

#include "tests/unit/cm.h"
#include <stdlib.h>
#include <string.h>

static void test_there_and_back(void **state)
{
    static const char *const texts[] = {"vm:1", "a:2,b:1", "gpu-01.cluster:2@0+3,b_2:1@63", "n:65536"};

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct place p = {0};
        assert_int_equal(place_parse(&p, texts[i], NULL), 0);
        char *text = place_text(&p);
        assert_string_equal(text, texts[i]);
        free(text);
        place_free(&p);
    }
}

static void test_pieces(void **state)
{
    struct place p = {0};
    char brief[64];

    (void)state;
    assert_int_equal(place_parse(&p, "a:2@0+3,b:1,c:4", NULL), 0);
    assert_true(p.n == 3 && p.v[0].ranks == 2 && p.v[0].gpus == 9 && p.v[1].gpus == 0);
    assert_string_equal(p.v[2].node, "c");
    assert_int_equal(place_ranks(&p), 7);
    place_brief(&p, brief, sizeof brief);
    assert_string_equal(brief, "a, b and 1 more");
    char *gpus = place_gpu_list(p.v[0].gpus, ',');
    assert_string_equal(gpus, "0,3");
    free(gpus);
    place_free(&p);
}

static void test_what_is_no_place(void **state)
{
    static const char *const texts[] = {"",        "a",      "a:",     "a:0",    ":1",      "a:1,",
                                        "a:1@",    "a:1@64", "a:1@1+", "a:1 2",  "-a:1",    "a b:1",
                                        "a:1;b:2", "a:-1",   "a:1@x",  "a:1@1,", "a:1@1@2", "$(x):1"};

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct place p = {0};
        struct err e = ERR_INIT;
        if (place_parse(&p, texts[i], &e) != -1)
            fail_msg("\"%s\" was taken", texts[i]);
        assert_true(p.n == 0 && !p.v && strstr(e.msg, "NODE:RANKS"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_what_is_no_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
