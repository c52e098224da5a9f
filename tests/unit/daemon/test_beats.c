/* test_beats - who is heard on which connection, ages that count only time in which the coordinator was
 * there, and what clients are shown. Time is given; the processes are this one's children. */
#include "daemon/beats.h"
#include "common/err.h"
#include "common/json.h"
#include "daemon/proc.h"

#include "tests/unit/cm.h"
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct beat_limits limits = {.lost_ms = 10000, .stall_ms = 300000};

static struct progress_hello hello_of(int64_t rank)
{
    return (struct progress_hello){.job = 1, .attempt = 1, .rank = rank, .pid = 100 + rank, .host = "vm"};
}

static struct progress_beat beat_of(int64_t step)
{
    return (
        struct progress_beat){.phase = "forward", .step = step, .n_steps = 30, .step_ms = 20, .work_ms = 10};
}

static const char *state_of(const cJSON *rows, int rank)
{
    return json_find(cJSON_GetArrayItem(rows, rank), "state")->valuestring;
}

static void test_connections(void **state)
{
    struct beats *b = beats_create(2, 0);
    struct progress_hello h = hello_of(1), beyond = hello_of(2);
    struct progress_beat v = beat_of(7);
    cJSON *rows;

    (void)state;
    assert_int_equal(beats_hello(b, &beyond, 5, NULL), -1);
    assert_int_equal(beats_hello(b, &h, 5, NULL), 0);
    beats_beat(b, 1, 4, &v); /* another connection's */
    beats_beat(b, 2, 5, &v);
    rows = beats_to_json(b);
    assert_int_equal(cJSON_GetArraySize(rows), 0);
    cJSON_Delete(rows);
    beats_beat(b, 1, 5, &v);
    assert_int_equal(beats_hello(b, &h, 9, NULL), 5);
    beats_beat(b, 1, 5, &(struct progress_beat){.phase = "data", .step = 99});
    rows = beats_to_json(b);
    assert_int_equal(cJSON_GetArraySize(rows), 2);
    assert_string_equal(state_of(rows, 0), "absent");
    assert_true(json_find(cJSON_GetArrayItem(rows, 1), "step")->valuedouble == 7);
    assert_true(json_find(cJSON_GetArrayItem(rows, 1), "pid")->valuedouble == 101);
    assert_true(cJSON_IsNull(json_find(cJSON_GetArrayItem(rows, 0), "host")));
    cJSON_Delete(rows);
    beats_destroy(b);
    beats_destroy(NULL);
}

static void test_time_that_was_slept_away(void **state)
{
    struct beats *b = beats_create(2, 0);
    struct beat_verdict v;
    struct progress_beat at = beat_of(7);
    int64_t now = 0;

    (void)state;
    for (int64_t r = 0; r < 2; r++) {
        struct progress_hello h = hello_of(r);
        beats_hello(b, &h, 10 + (uint64_t)r, NULL);
        beats_beat(b, r, 10 + (uint64_t)r, &at);
    }
    now += 3600000; /* the coordinator was stopped for an hour */
    beats_tick(b, now, &limits, &v);
    assert_int_equal(v.end, BEAT_GO_ON);
    at.step++;
    beats_beat(b, 0, 10, &at); /* what had piled up is read */
    for (int i = 0; i < 17; i++) {
        now += BEATS_TICK_MS;
        beats_beat(b, 0, 10, &at);
        beats_tick(b, now, &limits, &v);
        assert_int_equal(v.end, BEAT_GO_ON);
    }
    for (int i = 0; i < 2; i++) { /* 1 s for the hour and 9.5 s by ticks: rank 1 is lost */
        now += BEATS_TICK_MS;
        beats_beat(b, 0, 10, &at);
        beats_tick(b, now, &limits, &v);
    }
    assert_int_equal(v.end, BEAT_END_LOST);
    assert_int_equal(v.rank, 1);
    beats_destroy(b);
}

/* Three ticks make the silence long enough for a look into /proc; 30 more the limit. */
static void tick_on(struct beats *b, int64_t *now, int n, struct beat_verdict *v)
{
    for (int i = 0; i < n; i++)
        beats_tick(b, *now += BEATS_TICK_MS, &limits, v);
}

static void wait_for_state(const struct job_process *p, char want)
{
    for (int i = 0; i < 10000 && proc_state(p) != want; i++)
        usleep(1000);
    assert_int_equal(proc_state(p), want);
}

static void test_processes(void **state)
{
    struct beats *b = beats_create(1, 0);
    struct progress_hello h = hello_of(0);
    struct progress_beat at = beat_of(7);
    struct job_process process;
    struct beat_verdict v;
    char text[300];
    int64_t now = 0;
    pid_t child = fork();

    (void)state;
    if (child == 0)
        for (;;)
            pause();
    assert_int_equal(proc_identify(child, &process), 0);
    beats_hello(b, &h, 3, &process);
    beats_beat(b, 0, 3, &at);
    tick_on(b, &now, 30, &v);
    assert_int_equal(v.end, BEAT_GO_ON); /* silent, and alive */
    kill(child, SIGSTOP);
    wait_for_state(&process, 'T');
    tick_on(b, &now, 1, &v);
    assert_int_equal(v.end, BEAT_END_STOPPED);
    beats_say(b, &v, text, sizeof text);
    assert_string_equal(text,
                        "rank 0 on vm has been silent for 15 s at step 7 (stopped by a signal), in forward");
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    assert_int_equal(proc_state(&process), 0);
    tick_on(b, &now, 1, &v);
    assert_int_equal(v.end, BEAT_END_LOST);
    beats_destroy(b);
}

static void test_slow_is_told_once(void **state)
{
    struct beats *b = beats_create(3, 0);
    struct progress_beat at = beat_of(7);
    struct beat_verdict v;
    char text[200];

    (void)state;
    for (int64_t r = 0; r < 3; r++) {
        struct progress_hello h = hello_of(r);
        at.work_ms = r == 2 ? 18 : 10;
        beats_hello(b, &h, 10 + (uint64_t)r, NULL);
        beats_beat(b, r, 10 + (uint64_t)r, &at);
    }
    assert_int_equal(beats_slowest(b), -1);
    int64_t now = 0;
    beats_tick(b, now += BEATS_TICK_MS, &limits, &v);
    assert_int_equal(beats_next_slow(b), -1); /* not for long enough */
    for (int64_t ms = 0; ms < BEAT_SLOW_FOR_MS; ms += BEATS_TICK_MS) {
        for (int64_t r = 0; r < 3; r++) {
            at.work_ms = r == 2 ? 18 : 10;
            beats_beat(b, r, 10 + (uint64_t)r, &at);
        }
        beats_tick(b, now += BEATS_TICK_MS, &limits, &v);
    }
    assert_int_equal(beats_next_slow(b), 2);
    assert_int_equal(beats_next_slow(b), -1);
    assert_int_equal(beats_slowest(b), 2);
    beats_say_slow(b, 2, text, sizeof text);
    assert_string_equal(text,
                        "rank 2 on vm is slow: its own work in a step takes 18.0 ms, 1.8 times the median");
    beats_destroy(b);
}

static void test_many_ranks(void **state)
{
    enum { N = 2000 };
    struct beats *b = beats_create(N, 0);
    struct beat_verdict v;

    (void)state;
    for (int64_t r = 0; r < N; r++) {
        struct progress_hello h = hello_of(r);
        struct progress_beat at = beat_of(7);
        at.work_ms = r == 1234 ? 99 : 10 + (double)(r % 7) / 10;
        beats_hello(b, &h, 10 + (uint64_t)r, NULL);
        if (r != 1999)
            beats_beat(b, r, 10 + (uint64_t)r, &at);
    }
    beats_tick(b, BEATS_TICK_MS, &limits, &v);
    assert_int_equal(v.end, BEAT_GO_ON);
    cJSON *rows = beats_to_json(b);
    assert_int_equal(cJSON_GetArraySize(rows), BEATS_MAX_ROWS);
    assert_true(json_find(rows->child, "rank")->valuedouble == 1999); /* absent */
    assert_true(json_find(rows->child->next, "rank")->valuedouble == 1234);
    assert_true(json_find(rows->child->next, "ratio")->valuedouble > 9);
    assert_true(json_find(rows->child->next->next, "work_ms")->valuedouble == 10.6);
    cJSON_Delete(rows);
    beats_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_connections), cmocka_unit_test(test_time_that_was_slept_away),
        cmocka_unit_test(test_processes),   cmocka_unit_test(test_slow_is_told_once),
        cmocka_unit_test(test_many_ranks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
