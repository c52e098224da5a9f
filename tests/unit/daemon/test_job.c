/* test_job - every state with every event, what an event does to the record, replay, and events as JSON. */
#include "daemon/job.h"
#include "common/json.h"

#include "tests/unit/cm.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The table written down a second time, from the protocol's description: from, event, to. What is not here
 * must be refused. */
static const struct {
    enum job_state from;
    enum job_event_type event;
    enum job_state to;
} allowed[] = {
    {JOB_NEW, JOB_EV_SUBMITTED, JOB_QUEUED},
    {JOB_QUEUED, JOB_EV_STARTING, JOB_STARTING},
    {JOB_QUEUED, JOB_EV_CANCEL_REQUESTED, JOB_CANCELLED},
    {JOB_QUEUED, JOB_EV_FAILED, JOB_FAILED},
    {JOB_QUEUED, JOB_EV_PAUSED, JOB_PAUSED},
    {JOB_PAUSED, JOB_EV_RESUMED, JOB_QUEUED},
    {JOB_PAUSED, JOB_EV_CANCEL_REQUESTED, JOB_CANCELLED},
    {JOB_FAILED, JOB_EV_REQUEUED, JOB_QUEUED},
    {JOB_CANCELLED, JOB_EV_REQUEUED, JOB_QUEUED},
    {JOB_STARTING, JOB_EV_YIELD_REQUESTED, JOB_PREEMPTING},
    {JOB_RUNNING, JOB_EV_YIELD_REQUESTED, JOB_PREEMPTING},
    {JOB_PREEMPTING, JOB_EV_YIELD_REQUESTED, JOB_PREEMPTING},
    {JOB_PREEMPTING, JOB_EV_STARTED, JOB_PREEMPTING},
    {JOB_PREEMPTING, JOB_EV_ATTACHED, JOB_PREEMPTING},
    {JOB_PREEMPTING, JOB_EV_CHECKPOINTED, JOB_PREEMPTING},
    {JOB_PREEMPTING, JOB_EV_CANCEL_REQUESTED, JOB_PREEMPTING},
    {JOB_PREEMPTING, JOB_EV_YIELDED, JOB_QUEUED},
    {JOB_PREEMPTING, JOB_EV_PAUSED, JOB_PAUSED},
    {JOB_PREEMPTING, JOB_EV_RESTARTING, JOB_QUEUED},
    {JOB_PREEMPTING, JOB_EV_SUCCEEDED, JOB_SUCCEEDED},
    {JOB_PREEMPTING, JOB_EV_FAILED, JOB_FAILED},
    {JOB_PREEMPTING, JOB_EV_CANCELLED, JOB_CANCELLED},
    {JOB_STARTING, JOB_EV_STARTED, JOB_STARTING},
    {JOB_STARTING, JOB_EV_ATTACHED, JOB_RUNNING},
    {JOB_STARTING, JOB_EV_CHECKPOINTED, JOB_STARTING},
    {JOB_STARTING, JOB_EV_CANCEL_REQUESTED, JOB_STARTING},
    {JOB_STARTING, JOB_EV_RESTARTING, JOB_QUEUED},
    {JOB_STARTING, JOB_EV_SUCCEEDED, JOB_SUCCEEDED},
    {JOB_STARTING, JOB_EV_FAILED, JOB_FAILED},
    {JOB_STARTING, JOB_EV_CANCELLED, JOB_CANCELLED},
    {JOB_RUNNING, JOB_EV_STARTED, JOB_RUNNING},
    {JOB_RUNNING, JOB_EV_ATTACHED, JOB_RUNNING},
    {JOB_RUNNING, JOB_EV_CHECKPOINTED, JOB_RUNNING},
    {JOB_RUNNING, JOB_EV_CANCEL_REQUESTED, JOB_RUNNING},
    {JOB_RUNNING, JOB_EV_RESTARTING, JOB_QUEUED},
    {JOB_RUNNING, JOB_EV_SUCCEEDED, JOB_SUCCEEDED},
    {JOB_RUNNING, JOB_EV_FAILED, JOB_FAILED},
    {JOB_RUNNING, JOB_EV_CANCELLED, JOB_CANCELLED},
};

static enum job_state expected(enum job_state from, enum job_event_type event)
{
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++)
        if (allowed[i].from == from && allowed[i].event == event)
            return allowed[i].to;
    return JOB_N_STATES;
}

static struct job_event make_event(enum job_event_type type, int64_t time_ms)
{
    struct job_event ev;

    job_event_init(&ev, type, 7, time_ms, "because of %s", job_event_name(type));
    ev.n_ranks = 3;
    ev.min_ranks = 1;
    ev.max_restarts = 2;
    ev.max_ranks = 5;
    ev.gpus_per_rank = 1;
    ev.n_nodes = 2;
    ev.array = 6;
    ev.array_index = 1;
    ev.n_after = 2;
    ev.after[0] = 3;
    ev.after[1] = 5;
    ev.not_before_ms = time_ms + 50;
    ev.yield_to = JOB_YIELD_PAUSE;
    ev.priority = -4;
    ev.time_limit_s = 2.5;
    ev.uid = 1000;
    ev.attempt = 1;
    ev.step = 40;
    ev.process = (struct job_process){.pid = 99, .start_ticks = 12345, .boot_id = "boot"};
    strcpy(ev.name, "name");
    strcpy(ev.user, "alice");
    strcpy(ev.node, "node1");
    strcpy(ev.token, "secret");
    return ev;
}

static void test_every_state_with_every_event(void **state)
{
    (void)state;
    for (int s = JOB_NEW; s < JOB_N_STATES; s++)
        for (int t = 0; t < JOB_N_EVENTS; t++) {
            struct job job = {.id = 7, .state = (enum job_state)s, .attempt = 5}, before = job;
            struct job_event ev = make_event((enum job_event_type)t, 10);
            struct err e = ERR_INIT;
            enum job_state want = expected((enum job_state)s, (enum job_event_type)t);
            assert_int_equal(job_next((enum job_state)s, (enum job_event_type)t), want);
            int rc = job_apply(&job, &ev, &e);
            assert_int_equal(rc, want == JOB_N_STATES ? -1 : 0);
            if (rc < 0) {
                assert_memory_equal(&job, &before, sizeof job);
                assert_non_null(strstr(e.msg, job_state_name((enum job_state)s)));
                assert_non_null(strstr(e.msg, job_event_name((enum job_event_type)t)));
            } else {
                assert_int_equal(job.state, want);
                assert_string_equal(job.reason, ev.reason);
                job_free(&job);
            }
        }
}

static void apply(struct job *job, enum job_event_type type, int64_t time_ms)
{
    struct job_event ev = make_event(type, time_ms);

    assert_int_equal(job_apply(job, &ev, NULL), 0);
}

static void test_record(void **state)
{
    struct job job = {0};

    (void)state;
    apply(&job, JOB_EV_SUBMITTED, 100);
    assert_true(job.id == 7 && job.n_ranks == 3 && job.min_ranks == 1 && job.max_restarts == 2 &&
                job.priority == -4);
    assert_true(job.max_ranks == 5 && job.gpus_per_rank == 1 && job.n_nodes == 2 && job.array == 6 &&
                job.array_index == 1 && job.n_after == 2 && job.after[0] == 3 && job.after[1] == 5);
    assert_true(job.uid == 1000 && job.time_limit_s == 2.5 && job.submitted_ms == 100 &&
                job.checkpoint_step == -1);
    assert_true(job.held_ranks == 0 && job.attempt == 0 && job.started_ms == 0);
    apply(&job, JOB_EV_STARTING, 200);
    assert_true(job.held_ranks == 3 && job.attempt == 1 && job.started_ms == 200);
    assert_string_equal(job.token, "secret");
    apply(&job, JOB_EV_STARTED, 210);
    assert_true(job.process.pid == 99);
    apply(&job, JOB_EV_ATTACHED, 220);
    apply(&job, JOB_EV_CHECKPOINTED, 230);
    assert_true(job.checkpoint_step == 40);
    apply(&job, JOB_EV_RESTARTING, 300);
    assert_true(job.held_ranks == 0 && job.process.pid == 0 && job.token[0] == 0 &&
                job.checkpoint_step == 40);
    assert_true(job.n_restarts == 1 && job.not_before_ms == 350 && job.used_ms == 100);
    apply(&job, JOB_EV_STARTING, 400);
    assert_true(job.started_ms == 200 && job.attempt_ms == 400 && job.not_before_ms == 0);
    apply(&job, JOB_EV_CANCEL_REQUESTED, 410);
    assert_true(job.cancelling && job.held_ranks == 3);
    assert_string_equal(job.cancel_user, "alice");
    apply(&job, JOB_EV_CANCELLED, 500);
    assert_true(!job.cancelling && job.held_ranks == 0 && job.ended_ms == 500 && job.token[0] == 0);
    job_free(&job);
}

/* To yield costs no restart; the time spent counts, the time that it waits does not. */
static void test_yields_and_requeues(void **state)
{
    struct job job = {0};

    (void)state;
    apply(&job, JOB_EV_SUBMITTED, 100);
    apply(&job, JOB_EV_STARTING, 200);
    apply(&job, JOB_EV_ATTACHED, 210);
    apply(&job, JOB_EV_YIELD_REQUESTED, 250);
    assert_true(job.held_ranks == 3 && job.yield_to == JOB_YIELD_PAUSE);
    apply(&job, JOB_EV_PAUSED, 300);
    assert_true(job.state == JOB_PAUSED && job.held_ranks == 0 && job.yield_to == JOB_YIELD_QUEUE);
    apply(&job, JOB_EV_RESUMED, 1000);
    apply(&job, JOB_EV_STARTING, 1100);
    apply(&job, JOB_EV_YIELD_REQUESTED, 1150);
    apply(&job, JOB_EV_YIELDED, 1200);
    assert_true(job.n_yields == 1 && job.n_restarts == 0 && job.used_ms == 200);
    apply(&job, JOB_EV_STARTING, 1300);
    apply(&job, JOB_EV_RESTARTING, 1400);
    apply(&job, JOB_EV_CANCEL_REQUESTED, 1500);
    assert_true(job.state == JOB_CANCELLED && job.ended_ms == 1500 && job.n_restarts == 1);
    apply(&job, JOB_EV_REQUEUED, 1600);
    assert_true(job.state == JOB_QUEUED && job.ended_ms == 0 && job.n_restarts == 0 && !job.cancelling &&
                job.not_before_ms == 0 && job.attempt == 1);
    job_free(&job);
}

/* Any sequence of events, accepted or not, gives the same job when its journal form is read back and
 * replayed. */
static void test_replay_of_random_histories(void **state)
{
    unsigned seed = 1, n_jobs = 0;

    (void)state;
    for (int run = 0; run < 500; run++) {
        struct job live = {0}, replayed = {0};
        for (int i = 0; i < 30; i++) {
            seed = seed * 1103515245u + 12345u;
            struct job_event ev = make_event((enum job_event_type)((seed >> 16) % JOB_N_EVENTS), 100 + i),
                             back;
            ev.has_progress = ev.type >= JOB_EV_RESTARTING;
            ev.progress = (struct progress){.phase = "train", .step = i, .loss = 0.5, .checkpoint_step = -1};
            ev.state = job_next(live.state, ev.type);
            if (ev.state == JOB_N_STATES)
                continue;
            assert_int_equal(job_apply(&live, &ev, NULL), 0);
            assert_int_equal(live.state, ev.state);
            cJSON *v = job_event_to_journal(&ev);
            char *text = json_text(v);
            cJSON_Delete(v);
            v = json_parse(text, strlen(text), NULL);
            back = (struct job_event){.seq = ev.seq, .job = ev.job, .time_ms = ev.time_ms};
            assert_int_equal(job_event_from_journal(v, &back, NULL), 0);
            cJSON_Delete(v);
            free(text);
            assert_int_equal(job_apply(&replayed, &back, NULL), 0);
        }
        assert_int_equal(replayed.state, live.state);
        if (live.state == JOB_NEW)
            continue; /* nobody submitted it */
        n_jobs++;
        assert_string_equal(replayed.reason, live.reason);
        assert_string_equal(replayed.token, live.token);
        assert_memory_equal(&replayed.process, &live.process, sizeof live.process);
        assert_true(replayed.held_ranks == live.held_ranks &&
                    replayed.checkpoint_step == live.checkpoint_step);
        assert_true(replayed.cancelling == live.cancelling && replayed.ended_ms == live.ended_ms);
        assert_true(replayed.n_restarts == live.n_restarts && replayed.n_yields == live.n_yields &&
                    replayed.used_ms == live.used_ms && replayed.not_before_ms == live.not_before_ms &&
                    replayed.yield_to == live.yield_to && replayed.n_after == live.n_after);
        for (int64_t i = 0; i < live.n_after; i++)
            assert_int_equal(replayed.after[i], live.after[i]);
        assert_int_equal(!!replayed.progress, !!live.progress);
        if (live.progress)
            assert_int_equal(replayed.progress->step, live.progress->step);
        job_free(&live);
        job_free(&replayed);
    }
    assert_in_range(n_jobs, 300, 500);
}

static void test_clients_see_no_secrets(void **state)
{
    (void)state;
    for (int t = 0; t < JOB_N_EVENTS; t++) {
        struct job_event ev = make_event((enum job_event_type)t, 10);
        ev.seq = 3;
        ev.state = JOB_QUEUED;
        cJSON *v = job_event_to_client(&ev);
        char *text = json_text(v);
        assert_null(strstr(text, "secret"));
        assert_null(strstr(text, "boot"));
        assert_int_equal(json_find(v, "seq")->valueint, 3);
        assert_int_equal(json_find(v, "id")->valueint, 7);
        assert_string_equal(json_find(v, "type")->valuestring, job_event_name((enum job_event_type)t));
        free(text);
        cJSON_Delete(v);
    }
}

static void test_journal_of_a_newer_version(void **state)
{
    static const char text[] = "{\"type\":\"teleported\",\"state\":\"queued\",\"reason\":\"\"}";
    cJSON *v = json_parse(text, strlen(text), NULL);
    struct job_event ev = {0};
    struct err e = ERR_INIT;

    (void)state;
    assert_int_equal(job_event_from_journal(v, &ev, &e), -1);
    assert_non_null(strstr(e.msg, "teleported"));
    cJSON_Delete(v);
}

static void test_long_reason_is_cut(void **state)
{
    char long_text[2000];
    struct job_event ev;

    (void)state;
    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = 0;
    job_event_init(&ev, JOB_EV_FAILED, 1, 1, "%s", long_text);
    assert_int_equal(strlen(ev.reason), JOB_MAX_REASON - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_state_with_every_event),
        cmocka_unit_test(test_record),
        cmocka_unit_test(test_yields_and_requeues),
        cmocka_unit_test(test_replay_of_random_histories),
        cmocka_unit_test(test_clients_see_no_secrets),
        cmocka_unit_test(test_journal_of_a_newer_version),
        cmocka_unit_test(test_long_reason_is_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
