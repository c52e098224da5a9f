/* test_beat_judge - tables of ranks and what is said of them: lost, stopped, hung, slow, and above all when
 * nothing is. */
#include "daemon/beat_judge.h"

#include "tests/unit/cm.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_RANKS = 4 };

static const struct beat_limits limits = {.lost_ms = 10000, .stall_ms = 300000};

/* One rank: heard age ago, moved then; where. */
struct rank {
    int64_t age_ms, moved_ms;
    const char *phase, *waits_in;
    int64_t collectives, in_ms, n_steps;
    double step_ms, work_ms;
    enum beat_process process;
    int64_t over_ms;
    bool unknown;
};

struct row {
    const char *what;
    int64_t n;
    struct rank ranks[MAX_RANKS];
    enum beat_end end;
    int64_t rank;
    const char *says;   /* the whole sentence */
    const char *states; /* of the ranks, separated by blanks; NULL: not looked at */
};

#define FORWARD "forward"
#define GATHER "all-gather of features"
/* A rank that steps along, and one that has waited in a gather for t ms. */
#define STEPS                                                                                                \
    {                                                                                                        \
        .age_ms = 400, .moved_ms = 400, .phase = FORWARD, .collectives = 90                                  \
    }
#define WAITS(t)                                                                                             \
    {                                                                                                        \
        .age_ms = 400, .moved_ms = (t), .phase = FORWARD, .waits_in = GATHER, .collectives = 80,             \
        .in_ms = (t)-400                                                                                     \
    }

static const struct row rows[] = {
    {.what = "nobody has ever spoken",
     .n = 3,
     .ranks = {{.unknown = true}, {.unknown = true}, {.unknown = true}},
     .states = "absent absent absent"},
    {.what = "all step along", .n = 3, .ranks = {STEPS, STEPS, STEPS}, .states = "ok ok ok"},
    {.what = "one is silent, not for long",
     .n = 3,
     .ranks = {WAITS(9500), {.age_ms = 9999, .moved_ms = 9999, .phase = FORWARD}, WAITS(9500)},
     .states = "ok silent ok"},
    {.what = "stopped",
     .n = 3,
     .ranks = {WAITS(9900),
               {.age_ms = 10000, .moved_ms = 10100, .phase = FORWARD, .process = BEAT_PROCESS_STOPPED},
               WAITS(9900)},
     .end = BEAT_END_STOPPED,
     .rank = 1,
     .says =
         "rank 1 on node1 has been silent for 10 s at step 512 (stopped by a signal), in forward; 2 ranks "
         "wait for it in all-gather of features",
     .states = "ok stopped ok"},
    {.what = "stopped in the middle of a collective",
     .n = 2,
     .ranks = {WAITS(11000),
               {.age_ms = 11000,
                .moved_ms = 11000,
                .phase = FORWARD,
                .waits_in = GATHER,
                .process = BEAT_PROCESS_STOPPED}},
     .end = BEAT_END_STOPPED,
     .rank = 1,
     .says = "rank 1 on node1 has been silent for 11 s at step 512 (stopped by a signal), in all-gather of "
             "features; 1 rank waits for it in all-gather of features"},
    {.what = "stopped for less than the limit",
     .n = 2,
     .ranks = {WAITS(9000),
               {.age_ms = 9000, .moved_ms = 9000, .phase = FORWARD, .process = BEAT_PROCESS_STOPPED}},
     .states = "ok stopped"},
    {.what = "the only rank is stopped",
     .n = 1,
     .ranks = {{.age_ms = 10500, .moved_ms = 11000, .phase = "data", .process = BEAT_PROCESS_STOPPED}},
     .end = BEAT_END_STOPPED,
     .rank = 0,
     .says = "rank 0 on node0 has been silent for 10 s at step 512 (stopped by a signal), in data"},
    {.what = "its process is gone",
     .n = 2,
     .ranks = {{.age_ms = 12000, .moved_ms = 12000, .phase = "checkpoint", .process = BEAT_PROCESS_GONE},
               WAITS(12000)},
     .end = BEAT_END_LOST,
     .rank = 0,
     .says = "rank 0 on node0 has been silent for 12 s at step 512 (its process is gone), in checkpoint; 1 "
             "rank waits for it in all-gather of features"},
    {.what = "on another machine",
     .n = 3,
     .ranks = {WAITS(15000), WAITS(15000), {.age_ms = 15000, .moved_ms = 15500, .phase = "backward"}},
     .end = BEAT_END_LOST,
     .rank = 2,
     .says = "rank 2 on node2 has been silent for 15 s at step 512 (its machine does not answer), in "
             "backward; 2 ranks wait for it in all-gather of features"},
    {.what = "all are silent and elsewhere: the coordinator's own network, for all it knows",
     .n = 2,
     .ranks = {{.age_ms = 60000, .moved_ms = 60000, .phase = FORWARD},
               {.age_ms = 60000, .moved_ms = 60000, .phase = FORWARD}},
     .states = "silent silent"},
    {.what = "silent, but the others still finish steps: its link is broken, not the rank",
     .n = 2,
     .ranks = {STEPS, {.age_ms = 60000, .moved_ms = 60000, .phase = FORWARD}},
     .states = "ok silent"},
    {.what = "likewise, and just then somebody stops it",
     .n = 2,
     .ranks = {STEPS,
               {.age_ms = 60000, .moved_ms = 60000, .phase = FORWARD, .process = BEAT_PROCESS_STOPPED}},
     .states = "ok stopped"},
    {.what = "silent here and alive: not lost",
     .n = 2,
     .ranks = {WAITS(60000),
               {.age_ms = 60000, .moved_ms = 60000, .phase = FORWARD, .process = BEAT_PROCESS_RUNS}},
     .states = "ok silent"},
    {.what = "of two, the one that has been silent for longer",
     .n = 3,
     .ranks = {{.age_ms = 10500, .moved_ms = 10500, .phase = FORWARD, .process = BEAT_PROCESS_STOPPED},
               {.age_ms = 11500, .moved_ms = 11500, .phase = FORWARD, .process = BEAT_PROCESS_STOPPED},
               WAITS(11000)},
     .end = BEAT_END_STOPPED,
     .rank = 1},
    {.what = "at its end and silent: it has said so",
     .n = 2,
     .ranks = {{.age_ms = 90000, .moved_ms = 90000, .phase = "end", .process = BEAT_PROCESS_GONE},
               {.age_ms = 400, .moved_ms = 90000, .phase = "finish"}},
     .states = "left ok"},

    {.what = "loops",
     .n = 3,
     .ranks = {WAITS(300000),
               {.age_ms = 900, .moved_ms = 300100, .phase = FORWARD, .collectives = 80, .in_ms = 299000},
               WAITS(300000)},
     .end = BEAT_END_STALLED,
     .rank = 1,
     .says = "rank 1 on node1 has not moved for 300 s at step 512, in forward; 2 ranks wait for it in "
             "all-gather of features",
     .states = "ok stalled ok"},
    {.what = "loops, half-way to the limit",
     .n = 2,
     .ranks = {{.age_ms = 900, .moved_ms = 160000, .phase = "backward", .in_ms = 160000}, WAITS(160000)},
     .states = "stalled ok"},
    {.what = "the only rank loops",
     .n = 1,
     .ranks = {{.age_ms = 100, .moved_ms = 300000, .phase = "update", .in_ms = 300000}},
     .end = BEAT_END_STALLED,
     .rank = 0,
     .says = "rank 0 on node0 has not moved for 300 s at step 512, in update"},
    {.what = "steps are that long",
     .n = 2,
     .ranks = {{.age_ms = 100,
                .moved_ms = 390000,
                .phase = FORWARD,
                .in_ms = 390000,
                .n_steps = 3,
                .step_ms = 20000},
               WAITS(390000)},
     .states = "stalled ok"},
    {.what = "twenty steps that long",
     .n = 2,
     .ranks = {{.age_ms = 100,
                .moved_ms = 400000,
                .phase = FORWARD,
                .in_ms = 400000,
                .n_steps = 3,
                .step_ms = 20000},
               WAITS(400000)},
     .end = BEAT_END_STALLED,
     .rank = 0},
    {.what = "writes a checkpoint, which may take longer",
     .n = 2,
     .ranks = {{.age_ms = 100, .moved_ms = 599000, .phase = "checkpoint", .in_ms = 599000}, WAITS(599000)},
     .states = "ok ok"},
    {.what = "writes a checkpoint for ever",
     .n = 2,
     .ranks = {{.age_ms = 100, .moved_ms = 1200000, .phase = "checkpoint", .in_ms = 1200000}, WAITS(1200000)},
     .end = BEAT_END_STALLED,
     .rank = 0,
     .says = "rank 0 on node0 has not moved for 1200 s at step 512, in checkpoint; 1 rank waits for it in "
             "all-gather of features"},
    {.what = "waits for its data",
     .n = 2,
     .ranks = {WAITS(599000), {.age_ms = 100, .moved_ms = 599000, .phase = "data", .in_ms = 599000}}},
    {.what = "waits for its data for ever",
     .n = 2,
     .ranks = {WAITS(600000), {.age_ms = 100, .moved_ms = 600000, .phase = "data", .in_ms = 600000}},
     .end = BEAT_END_STALLED,
     .rank = 1},
    {.what = "all wait for each other: who came last",
     .n = 3,
     .ranks = {WAITS(310000), WAITS(305000), WAITS(309000)},
     .end = BEAT_END_STALLED,
     .rank = 1,
     .says = "all ranks have waited for 305 s at step 512 in all-gather of features; rank 1 on node1 came "
             "last"},
    {.what = "all wait, one has finished fewer collectives",
     .n = 3,
     .ranks = {WAITS(310000),
               WAITS(305000),
               {.age_ms = 100,
                .moved_ms = 311000,
                .phase = "vote",
                .waits_in = "vote",
                .collectives = 79,
                .in_ms = 310000}},
     .end = BEAT_END_STALLED,
     .rank = 2},
    {.what = "a rank has not come back after a restart of the coordinator",
     .n = 3,
     .ranks = {WAITS(300000), {.unknown = true}, WAITS(300000)},
     .end = BEAT_END_STALLED,
     .rank = 1,
     .says = "rank 1 has not reported, and no rank has moved for 300 s; 2 ranks wait for it in all-gather of "
             "features",
     .states = "ok absent ok"},
    {.what = "the others wait for one that lives and says nothing",
     .n = 2,
     .ranks = {WAITS(301000),
               {.age_ms = 301000, .moved_ms = 301000, .phase = FORWARD, .process = BEAT_PROCESS_RUNS}},
     .end = BEAT_END_STALLED,
     .rank = 1},
    {.what = "one does not wait and one is silent: the former is seen to be where it is",
     .n = 3,
     .ranks = {WAITS(301000),
               {.age_ms = 301000, .moved_ms = 301000, .phase = FORWARD, .process = BEAT_PROCESS_RUNS},
               {.age_ms = 100, .moved_ms = 301000, .phase = FORWARD, .in_ms = 301000}},
     .end = BEAT_END_STALLED,
     .rank = 2},
    {.what = "one rank moves: nobody hangs",
     .n = 2,
     .ranks = {STEPS, {.age_ms = 100, .moved_ms = 900000, .phase = FORWARD, .in_ms = 900000}},
     .states = "ok ok"},

    {.what = "slow",
     .n = 4,
     .ranks = {{.phase = FORWARD, .n_steps = 20, .step_ms = 40, .work_ms = 20},
               {.phase = FORWARD, .n_steps = 20, .step_ms = 40, .work_ms = 22},
               {.phase = FORWARD, .n_steps = 20, .step_ms = 40, .work_ms = 38, .over_ms = 5000},
               {.phase = FORWARD, .n_steps = 20, .step_ms = 40, .work_ms = 21}},
     .states = "ok ok slow ok"},
    {.what = "slow for a moment",
     .n = 2,
     .ranks = {{.phase = FORWARD, .n_steps = 99, .step_ms = 40, .work_ms = 38, .over_ms = 4999},
               {.phase = FORWARD, .n_steps = 99, .step_ms = 40, .work_ms = 20}},
     .states = "ok ok"},
    {.what = "slow until just now",
     .n = 2,
     .ranks = {{.phase = FORWARD, .n_steps = 99, .step_ms = 40, .work_ms = 25, .over_ms = 9000},
               {.phase = FORWARD, .n_steps = 99, .step_ms = 40, .work_ms = 20}},
     .states = "ok ok"},
    {.what = "of two ranks the faster one is the measure",
     .n = 2,
     .ranks = {{.phase = FORWARD, .n_steps = 99, .step_ms = 40, .work_ms = 38, .over_ms = 9000},
               {.phase = FORWARD, .n_steps = 99, .step_ms = 40, .work_ms = 20}},
     .states = "slow ok"},
    {.what = "not many steps yet",
     .n = 2,
     .ranks = {{.phase = FORWARD, .n_steps = 19, .step_ms = 40, .work_ms = 38, .over_ms = 9000},
               {.phase = FORWARD, .n_steps = 19, .step_ms = 40, .work_ms = 20}},
     .states = "ok ok"},
    {.what = "twice next to nothing is nothing",
     .n = 2,
     .ranks = {{.phase = FORWARD, .n_steps = 99, .step_ms = 2, .work_ms = 0.9, .over_ms = 9000},
               {.phase = FORWARD, .n_steps = 99, .step_ms = 2, .work_ms = 0.4}},
     .states = "ok ok"},
    {.what = "a single rank has nobody to be slower than",
     .n = 1,
     .ranks = {{.phase = FORWARD, .n_steps = 99, .step_ms = 2000, .work_ms = 2000, .over_ms = 9000}},
     .states = "ok"},
    {.what = "numbers that make no sense are not used",
     .n = 3,
     .ranks = {{.phase = FORWARD, .n_steps = 99, .step_ms = NAN, .work_ms = NAN},
               {.phase = FORWARD, .n_steps = 99, .step_ms = -5, .work_ms = -5},
               {.phase = FORWARD, .n_steps = 99, .step_ms = 5, .work_ms = 4}},
     .states = "ok ok ok"},
};

static void fill(const struct rank *from, struct beat_row *to)
{
    *to = (struct beat_row){.known = !from->unknown,
                            .age_ms = from->age_ms,
                            .moved_ms = from->moved_ms,
                            .process = from->process,
                            .over_ms = from->over_ms,
                            .at = {.step = 512,
                                   .collectives = from->collectives,
                                   .in_ms = from->in_ms,
                                   .n_steps = from->n_steps,
                                   .step_ms = from->step_ms,
                                   .work_ms = from->work_ms}};
    snprintf(to->at.phase, sizeof to->at.phase, "%s", from->phase ? from->phase : "");
    snprintf(to->at.waits_in, sizeof to->at.waits_in, "%s", from->waits_in ? from->waits_in : "");
}

static void test_tables(void **state)
{
    static const char *const hosts[MAX_RANKS] = {"node0", "node1", "node2", "node3"};
    static const char *const nowhere[MAX_RANKS] = {"", "", "", ""};

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct row *r = &rows[i];
        struct beat_row table[MAX_RANKS];
        struct beat_verdict v;
        char text[400], states[128] = "";

        for (int64_t k = 0; k < r->n; k++)
            fill(&r->ranks[k], &table[k]);
        beat_judge(table, r->n, &limits, &v);
        beat_verdict_say(&v, table, r->n, r->ranks[v.rank > 0 ? v.rank : 0].unknown ? nowhere : hosts, text,
                         sizeof text);
        for (int64_t k = 0; k < r->n; k++)
            snprintf(states + strlen(states), sizeof states - strlen(states), "%s%s", k ? " " : "",
                     beat_state_name(table[k].state));
        if (v.end != r->end || (r->end != BEAT_GO_ON && v.rank != r->rank))
            fail_msg("%s: end %d of rank %lld: \"%s\"", r->what, v.end, (long long)v.rank, text);
        if (r->states && strcmp(states, r->states) != 0)
            fail_msg("%s: states are %s", r->what, states);
        if (r->says && strcmp(text, r->says) != 0)
            fail_msg("%s: \"%s\"", r->what, text);
        assert_true((text[0] != 0) == (v.end != BEAT_GO_ON));
    }
}

static void test_ratio(void **state)
{
    struct beat_row table[3] = {{.known = true, .at = {.phase = FORWARD, .n_steps = 30, .work_ms = 10}},
                                {.known = true, .at = {.phase = FORWARD, .n_steps = 30, .work_ms = 25}},
                                {.known = true, .at = {.phase = FORWARD, .n_steps = 3, .work_ms = 90}}};
    struct beat_verdict v;

    (void)state;
    beat_judge(table, 3, &limits, &v);
    assert_true(table[0].ratio == 1 && table[1].ratio == 2.5 && isnan(table[2].ratio));
}

/* A sentence is cut, never longer than its room. */
static void test_long_names(void **state)
{
    static char host[300];
    const char *hosts[1] = {host};
    struct beat_row row = {.known = true, .age_ms = 20000, .process = BEAT_PROCESS_STOPPED};
    struct beat_verdict v;
    char text[64];

    (void)state;
    memset(host, 'h', sizeof host - 1);
    beat_judge(&row, 1, &limits, &v);
    beat_verdict_say(&v, &row, 1, hosts, text, sizeof text);
    assert_int_equal(strlen(text), sizeof text - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_ratio),
        cmocka_unit_test(test_long_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
