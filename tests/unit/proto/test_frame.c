/* test_frame - lines come out whole and in order however the bytes are cut; a line that is too long is
 * reported once. */
#include "proto/frame.h"

#include "tests/unit/cm.h"
#include <stdlib.h>
#include <string.h>

static void expect_line(struct frame *f, const char *want)
{
    char *line;
    size_t len;

    assert_int_equal(frame_next(f, &line, &len), FRAME_LINE);
    assert_string_equal(line, want);
    assert_int_equal(len, strlen(want));
}

static void expect(struct frame *f, enum frame_result want)
{
    char *line;
    size_t len;

    assert_int_equal(frame_next(f, &line, &len), want);
}

static void test_every_cut(void **state)
{
    static const char stream[] = "{\"a\":1}\n\n\r\nsecond\r\nthird\n";

    (void)state;
    for (size_t step = 1; step <= sizeof stream; step++) {
        static const char *const want[] = {"{\"a\":1}", "second", "third"};
        struct frame f;
        size_t n_lines = 0;
        frame_init(&f);
        for (size_t at = 0; at < sizeof stream - 1; at += step) {
            size_t n = sizeof stream - 1 - at < step ? sizeof stream - 1 - at : step;
            char *line;
            size_t len;
            frame_push(&f, stream + at, n);
            while (frame_next(&f, &line, &len) == FRAME_LINE)
                assert_string_equal(line, want[n_lines++]);
        }
        assert_int_equal(n_lines, 3);
        assert_int_equal(f.in.len, 0);
        frame_free(&f);
    }
}

static void test_unfinished_line_waits(void **state)
{
    struct frame f;

    (void)state;
    frame_init(&f);
    expect(&f, FRAME_NONE);
    frame_push(&f, "half", 4);
    expect(&f, FRAME_NONE);
    frame_push(&f, " done\nnext\n", 11);
    expect_line(&f, "half done");
    expect_line(&f, "next");
    expect(&f, FRAME_NONE);
    frame_free(&f);
}

/* Exactly the maximum passes, one byte more does not; both when the line arrives at once and in pieces. */
static void test_limit(void **state)
{
    char *big = malloc(FRAME_MAX_BYTES + 2);

    (void)state;
    memset(big, 'x', FRAME_MAX_BYTES + 2);
    for (size_t piece = FRAME_MAX_BYTES + 2; piece >= 4096; piece /= 7)
        for (size_t extra = 0; extra < 2; extra++) {
            struct frame f;
            size_t n = FRAME_MAX_BYTES + extra, too_long = 0, lines = 0;
            enum frame_result r;
            char *line;
            size_t len;
            frame_init(&f);
            for (size_t at = 0; at < n; at += piece) {
                frame_push(&f, big + at, n - at < piece ? n - at : piece);
                while ((r = frame_next(&f, &line, &len)) != FRAME_NONE)
                    too_long += r == FRAME_TOO_LONG;
            }
            frame_push(&f, "\nok\n", 4);
            while ((r = frame_next(&f, &line, &len)) != FRAME_NONE) {
                too_long += r == FRAME_TOO_LONG;
                lines += r == FRAME_LINE;
            }
            assert_int_equal(too_long, extra);
            assert_int_equal(lines, 2 - extra);
            frame_free(&f);
        }
    free(big);
}

/* While a line that is too long goes by, nothing of it is kept. */
static void test_skipping_keeps_nothing(void **state)
{
    char chunk[65536];
    struct frame f;
    int reports = 0;

    (void)state;
    memset(chunk, 'x', sizeof chunk);
    frame_init(&f);
    for (int i = 0; i < 64; i++) {
        char *line;
        size_t len;
        frame_push(&f, chunk, sizeof chunk);
        while (frame_next(&f, &line, &len) == FRAME_TOO_LONG)
            reports++;
        assert_true(f.in.len <= FRAME_MAX_BYTES + sizeof chunk);
    }
    assert_int_equal(reports, 1);
    assert_int_equal(f.in.len, 0);
    frame_push(&f, "tail\nafter\n", 11);
    expect_line(&f, "after");
    frame_free(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_cut),
        cmocka_unit_test(test_unfinished_line_waits),
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_skipping_keeps_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
