/* test_journal - group commit, persist before apply before answer, order within a job, refusals, a disk that
 * refuses. */
#include "daemon/journal.h"
#include "proto/rpc_msg.h"

#include "tests/unit/cm.h"
#include "tests/unit/daemon/tmp_state.h"
#include <stdio.h>

struct world {
    uv_loop_t loop;
    struct tmp_state tmp;
    struct store *store;
    struct jobs jobs;
    struct journal *journal;
    char story[4096]; /* what happened, in order */
    int n_rounds;
};

static void tell(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void tell(struct world *w, const char *fmt, ...)
{
    size_t n = strlen(w->story);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(w->story + n, sizeof w->story - n, fmt, ap);
    va_end(ap);
}

static void on_applied(void *ctx, struct job *job, const struct job_event *ev)
{
    struct world *w = ctx;

    assert_int_equal(ev->state, job->state);
    assert_int_equal(journal_last_seq(w->journal), ev->seq);
    tell(w, "%lld:%s ", (long long)job->id, job_event_name(ev->type));
}

static void on_round(void *ctx)
{
    ((struct world *)ctx)->n_rounds++;
}

static void on_done(void *ctx, int code, int64_t id, const char *why)
{
    struct world *w = ctx;

    assert_true(code == 0 || (why && *why));
    tell(w, "done(%d,%lld) ", code, (long long)id);
}

static void open_world(struct world *w)
{
    struct err e = ERR_INIT;

    w->store = store_open(w->tmp.db, &e);
    assert_non_null(w->store);
    uv_loop_init(&w->loop);
    w->journal =
        journal_create(&w->loop, w->store, &w->jobs, NULL,
                       (struct journal_listener){.ctx = w, .applied = on_applied, .round_done = on_round},
                       &e);
    if (!w->journal)
        fail_msg("%s", e.msg);
}

static void close_world(struct world *w)
{
    journal_destroy(w->journal);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&w->loop), 0);
    jobs_free(&w->jobs);
    store_close(w->store);
    w->story[0] = 0;
    w->n_rounds = 0;
}

static void begin(struct world *w)
{
    memset(w, 0, sizeof *w);
    tmp_state_make(&w->tmp);
    open_world(w);
}

static void end(struct world *w)
{
    close_world(w);
    tmp_state_remove(&w->tmp);
}

static void submit(struct world *w, const char *key)
{
    struct journal_job job = {.spec = "{}"};

    job_event_init(&job.ev, JOB_EV_SUBMITTED, 0, 1, "submitted");
    journal_submit(w->journal, &job, 1, key, on_done, w);
}

static void append(struct world *w, int64_t job, enum job_event_type type, bool asked)
{
    struct job_event ev;

    job_event_init(&ev, type, job, 2, "event");
    journal_append(w->journal, &ev, asked ? on_done : NULL, w);
}

/* One turn of the loop that does not wait. */
static void turn(struct world *w)
{
    uv_run(&w->loop, UV_RUN_NOWAIT);
}

static void expect_story(struct world *w, const char *want)
{
    assert_string_equal(w->story, want);
    w->story[0] = 0;
}

static int64_t commits(const struct world *w)
{
    int64_t committed, failed;

    journal_counts(w->journal, &committed, &failed);
    return committed;
}

static void test_one_commit_for_many(void **state)
{
    struct world w;

    (void)state;
    begin(&w);
    for (int i = 0; i < 500; i++)
        submit(&w, NULL);
    assert_string_equal(w.story, ""); /* nothing is applied or answered before the commit */
    assert_int_equal(w.jobs.n, 0);
    turn(&w);
    assert_int_equal(commits(&w), 1);
    assert_int_equal(w.n_rounds, 1);
    assert_int_equal(w.jobs.n, 500);
    assert_int_equal(w.jobs.counts[JOB_QUEUED], 500);
    end(&w);
}

static void test_events_of_one_job_keep_their_order(void **state)
{
    struct world w;

    (void)state;
    begin(&w);
    submit(&w, NULL);
    submit(&w, NULL);
    turn(&w);
    expect_story(&w, "1:submitted done(0,1) 2:submitted done(0,2) ");
    append(&w, 1, JOB_EV_STARTING, false);
    append(&w, 1, JOB_EV_ATTACHED, false);
    append(&w, 2, JOB_EV_STARTING, false);
    append(&w, 1, JOB_EV_SUCCEEDED, true);
    turn(&w);
    expect_story(&w, "1:starting 2:starting 1:attached 1:succeeded done(0,1) ");
    assert_int_equal(w.jobs.n_active, 1);
    end(&w);
}

static void test_what_is_not_possible_is_refused(void **state)
{
    struct world w;

    (void)state;
    begin(&w);
    submit(&w, NULL);
    turn(&w);
    w.story[0] = 0;
    append(&w, 1, JOB_EV_CANCEL_REQUESTED, true);
    append(&w, 1, JOB_EV_CANCEL_REQUESTED, true); /* the first one has cancelled it by then */
    append(&w, 1, JOB_EV_ATTACHED, false);        /* nobody asked: dropped */
    append(&w, 9, JOB_EV_FAILED, true);           /* no such job */
    turn(&w);
    turn(&w);
    assert_non_null(strstr(w.story, "1:cancel_requested done(0,1) "));
    assert_non_null(strstr(w.story, "done(1003,1)"));
    assert_non_null(strstr(w.story, "done(1003,9)"));
    assert_null(strstr(w.story, "attached"));
    end(&w);
}

static void test_key_in_the_same_round(void **state)
{
    struct world w;

    (void)state;
    begin(&w);
    submit(&w, "k");
    submit(&w, "k");
    turn(&w);
    expect_story(&w, "1:submitted done(0,1) done(0,1) ");
    assert_int_equal(w.jobs.n, 1);
    end(&w);
}

static void test_disk_that_refuses(void **state)
{
    struct world w;

    (void)state;
    begin(&w);
    submit(&w, NULL);
    turn(&w);
    append(&w, 1, JOB_EV_STARTING, false);
    turn(&w);
    w.story[0] = 0;
    setenv("BATCHFORMER_FAULT", "store.commit:error@3",
           1); /* counts from its first look, which is the next one */
    append(&w, 1, JOB_EV_ATTACHED, false);
    turn(&w);
    expect_story(&w, "1:attached ");
    append(&w, 1, JOB_EV_CHECKPOINTED, false);
    turn(&w);
    expect_story(&w, "1:checkpointed ");
    submit(&w, "k");                        /* a request: fails and is forgotten */
    append(&w, 1, JOB_EV_SUCCEEDED, false); /* a report: kept */
    turn(&w);
    expect_story(&w, "done(1005,0) ");
    assert_int_equal(w.jobs.n, 1);
    assert_int_equal(jobs_find(&w.jobs, 1)->state, JOB_RUNNING);
    submit(&w, "k"); /* the disk works again: a new request takes the report along */
    turn(&w);
    unsetenv("BATCHFORMER_FAULT");
    expect_story(&w, "1:succeeded 2:submitted done(0,2) ");
    end(&w);
}

static void test_replay(void **state)
{
    struct world w;

    (void)state;
    begin(&w);
    for (int i = 0; i < 3; i++)
        submit(&w, NULL);
    turn(&w);
    append(&w, 2, JOB_EV_STARTING, false);
    append(&w, 3, JOB_EV_CANCEL_REQUESTED, false);
    turn(&w);
    int64_t last = journal_last_seq(w.journal);
    assert_int_equal(last, 5);
    close_world(&w);
    open_world(&w);
    assert_string_equal(w.story, ""); /* a replay tells and answers nobody */
    assert_int_equal(journal_last_seq(w.journal), last);
    assert_int_equal(w.jobs.n, 3);
    assert_int_equal(w.jobs.n_active, 2);
    assert_int_equal(jobs_find(&w.jobs, 1)->state, JOB_QUEUED);
    assert_int_equal(jobs_find(&w.jobs, 2)->state, JOB_STARTING);
    assert_int_equal(jobs_find(&w.jobs, 3)->state, JOB_CANCELLED);
    submit(&w, NULL);
    turn(&w);
    expect_story(&w, "4:submitted done(0,4) ");
    end(&w);
}

static void test_pending_events_are_written_at_the_end(void **state)
{
    struct world w;

    (void)state;
    begin(&w);
    submit(&w, NULL);
    close_world(&w);
    open_world(&w);
    assert_int_equal(w.jobs.n, 1);
    end(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_commit_for_many),
        cmocka_unit_test(test_events_of_one_job_keep_their_order),
        cmocka_unit_test(test_what_is_not_possible_is_refused),
        cmocka_unit_test(test_key_in_the_same_round),
        cmocka_unit_test(test_disk_that_refuses),
        cmocka_unit_test(test_replay),
        cmocka_unit_test(test_pending_events_are_written_at_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
