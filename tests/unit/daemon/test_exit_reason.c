/* test_exit_reason - what mpirun really prints (Open MPI 4.1.4) turned into sentences, and every kind of end
 * decided. */
#include "daemon/exit_reason.h"

#include "tests/unit/cm.h"
#include <string.h>

#define BOX "--------------------------------------------------------------------------\n"

static const char signalled[] =
    "step 5\n" BOX "Primary job  terminated normally, but 1 process returned\n"
    "a non-zero exit code. Per user-direction, the job has been aborted.\n" BOX BOX
    "mpirun noticed that process rank 1 with PID 0 on node vm exited on signal 9 "
    "(Killed).\n" BOX;

static const char exited[] =
    "2026-01-31T09:30:00.123Z ERROR worker: /data/train.idx: no such file\n" BOX
    "Primary job  terminated normally, but 1 process returned\n"
    "a non-zero exit code. Per user-direction, the job has been aborted.\n" BOX BOX
    "mpirun detected that one or more processes exited with non-zero status, thus causing\n"
    "the job to be terminated. The first process to do so was:\n\n"
    "  Process name: [[21491,1],1]\n  Exit code:    1\n" BOX;

static const char not_launched[] =
    BOX "mpirun was unable to launch the specified application as it could not access\nor execute an "
        "executable:\n\n"
        "Executable: /nonexistent/x\nNode: vm\n\nwhile attempting to start process rank 0.\n" BOX
        "2 total processes failed to start\n";

static void test_parse_signal(void **state)
{
    char out[300];

    (void)state;
    assert_true(exit_parse_signal(signalled, out, sizeof out));
    assert_string_equal(out, "rank 1 on vm was killed by signal 9 (Killed)");
    assert_true(exit_parse_signal(
        "mpirun noticed that process rank 12 with PID 77 on node a-b.c exited on signal 11.", out,
        sizeof out));
    assert_string_equal(out, "rank 12 on a-b.c was killed by signal 11");
    assert_false(exit_parse_signal(exited, out, sizeof out));
    assert_false(exit_parse_signal("", out, sizeof out));
    assert_false(exit_parse_signal("noticed that process rank x with PID", out, sizeof out));
    assert_false(exit_parse_signal("mpirun noticed that process rank 1 with PID 5 on node", out, sizeof out));
}

static void test_last_line(void **state)
{
    char out[300];

    (void)state;
    exit_last_line(exited, out, sizeof out);
    assert_string_equal(out, "2026-01-31T09:30:00.123Z ERROR worker: /data/train.idx: no such file");
    exit_last_line(signalled, out, sizeof out);
    assert_string_equal(out, "step 5");
    exit_last_line(BOX "the only words\nmore\n" BOX, out, sizeof out);
    assert_string_equal(out, "the only words");
    exit_last_line("  trimmed \r\n\n   \n", out, sizeof out);
    assert_string_equal(out, "trimmed");
    exit_last_line("no newline", out, sizeof out);
    assert_string_equal(out, "no newline");
    exit_last_line("", out, sizeof out);
    assert_string_equal(out, "");
}

struct row {
    const char *what;
    const char *done, *done_reason, *result, *result_reason;
    bool known, cancelling;
    int status, signal;
    int64_t n_restarts, checkpoint;
    bool yielding;
    enum job_yield_to to;
    const char *log, *stopped_for, *lost_for;
    enum job_event_type want;
    const char *says;
};

static const struct row rows[] = {
    {.what = "done", .done = "succeeded", .known = true, .want = JOB_EV_SUCCEEDED, .says = "finished"},
    {.what = "done, then a crash at exit",
     .done = "succeeded",
     .known = true,
     .status = 139,
     .want = JOB_EV_SUCCEEDED},
    {.what = "done while being cancelled",
     .done = "succeeded",
     .cancelling = true,
     .want = JOB_EV_SUCCEEDED,
     .says = "before the cancellation took effect"},
    {.what = "result only", .result = "succeeded", .want = JOB_EV_SUCCEEDED},
    {.what = "status 0, no word", .known = true, .want = JOB_EV_SUCCEEDED, .says = "status 0"},
    {.what = "stated failure",
     .done = "failed",
     .done_reason = "bad data",
     .known = true,
     .status = 1,
     .want = JOB_EV_FAILED,
     .says = "bad data"},
    {.what = "stated failure, coordinator away",
     .result = "failed",
     .result_reason = "bad data",
     .want = JOB_EV_FAILED,
     .says = "bad data"},
    {.what = "failure without a link",
     .known = true,
     .status = 1,
     .log = exited,
     .want = JOB_EV_FAILED,
     .says = "no such file"},
    {.what = "usage",
     .known = true,
     .status = 2,
     .log = "worker: bad option\n",
     .want = JOB_EV_FAILED,
     .says = "bad option"},
    {.what = "failure without a word",
     .known = true,
     .status = 1,
     .want = JOB_EV_FAILED,
     .says = "said nothing"},
    {.what = "strange status",
     .known = true,
     .status = 77,
     .log = "hm\n",
     .want = JOB_EV_FAILED,
     .says = "status 77: hm"},
    {.what = "not launched",
     .known = true,
     .status = 132,
     .log = not_launched,
     .want = JOB_EV_FAILED,
     .says = "unable to launch the specified application as it could not access or execute an executable: "
             "Executable: /nonexistent/x"},
    {.what = "killed rank",
     .known = true,
     .status = 137,
     .log = signalled,
     .checkpoint = 1200,
     .want = JOB_EV_RESTARTING,
     .says = "rank 1 on vm was killed by signal 9 (Killed); restarting from step 1200, attempt 2 of 4"},
    {.what = "killed rank whose peer complained",
     .done = "failed",
     .done_reason = "peer gone",
     .known = true,
     .status = 137,
     .log = signalled,
     .checkpoint = -1,
     .want = JOB_EV_RESTARTING,
     .says = "restarting from the beginning, attempt 2 of 4"},
    {.what = "killed rank, nothing printed",
     .known = true,
     .status = 137,
     .want = JOB_EV_RESTARTING,
     .says = "killed by signal 9"},
    {.what = "peer lost",
     .done = "failed",
     .done_reason = "rank 2 is gone",
     .known = true,
     .status = 4,
     .want = JOB_EV_RESTARTING,
     .says = "a rank was lost"},
    {.what = "mpirun killed",
     .known = true,
     .signal = 9,
     .want = JOB_EV_RESTARTING,
     .says = "mpirun was killed by signal 9"},
    {.what = "stopped by others",
     .done = "stopped",
     .known = true,
     .status = 130,
     .want = JOB_EV_RESTARTING,
     .says = "from outside"},
    {.what = "stopped through mpirun, whose status says nothing",
     .done = "stopped",
     .known = true,
     .status = 1,
     .log = "stopped: stopped by SIGTERM after step 553\n",
     .checkpoint = 553,
     .want = JOB_EV_RESTARTING,
     .says = "stopped from outside; restarting from step 553"},
    {.what = "stopped while nobody looked",
     .result = "stopped",
     .want = JOB_EV_RESTARTING,
     .says = "stopped from outside"},
    {.what = "nobody saw", .want = JOB_EV_RESTARTING, .says = "while the coordinator was away"},
    {.what = "last attempt",
     .known = true,
     .status = 137,
     .log = signalled,
     .n_restarts = 3,
     .want = JOB_EV_FAILED,
     .says = "rank 1 on vm was killed by signal 9 (Killed); no restart is left after attempt 4 of 4"},
    {.what = "cancelled",
     .done = "stopped",
     .known = true,
     .status = 130,
     .cancelling = true,
     .want = JOB_EV_CANCELLED,
     .says = "cancelled by bob at step 17"},
    {.what = "cancelled and killed",
     .known = true,
     .signal = 9,
     .cancelling = true,
     .want = JOB_EV_CANCELLED},
    {.what = "cancelled, failed on the way",
     .done = "failed",
     .done_reason = "x",
     .known = true,
     .status = 1,
     .cancelling = true,
     .want = JOB_EV_CANCELLED},
    {.what = "yielded",
     .done = "stopped",
     .known = true,
     .status = 130,
     .checkpoint = 40,
     .yielding = true,
     .want = JOB_EV_YIELDED,
     .says = "has given its ranks back; it goes on from step 40"},
    {.what = "paused, killed because it was slow",
     .known = true,
     .signal = 9,
     .checkpoint = -1,
     .yielding = true,
     .to = JOB_YIELD_PAUSE,
     .want = JOB_EV_PAUSED,
     .says = "paused; it begins anew"},
    {.what = "lost a rank while it yielded: that is no restart",
     .known = true,
     .status = 4,
     .n_restarts = 3,
     .yielding = true,
     .want = JOB_EV_YIELDED},
    {.what = "succeeded before it yielded", .done = "succeeded", .yielding = true, .want = JOB_EV_SUCCEEDED},
    {.what = "failed while it yielded",
     .done = "failed",
     .done_reason = "disk full",
     .known = true,
     .status = 1,
     .yielding = true,
     .want = JOB_EV_FAILED,
     .says = "disk full"},
    {.what = "cancelled while it yielded",
     .done = "stopped",
     .cancelling = true,
     .yielding = true,
     .want = JOB_EV_CANCELLED},
    {.what = "time limit",
     .done = "stopped",
     .known = true,
     .status = 130,
     .stopped_for = "the time limit of 5 s was reached",
     .want = JOB_EV_FAILED,
     .says = "the time limit of 5 s was reached"},
    {.what = "lost: more than what the end that we made of it says",
     .done = "stopped",
     .known = true,
     .status = 137,
     .log = signalled,
     .checkpoint = 500,
     .lost_for = "rank 3 on node2 has been silent for 10 s",
     .want = JOB_EV_RESTARTING,
     .says = "rank 3 on node2 has been silent for 10 s; restarting from step 500, attempt 2 of 4"},
    {.what = "lost, and another rank complains",
     .done = "failed",
     .done_reason = "rank 1: all-reduce: nobody came",
     .known = true,
     .status = 1,
     .checkpoint = -1,
     .lost_for = "rank 0 on vm has not moved for 300 s",
     .want = JOB_EV_RESTARTING,
     .says = "has not moved for 300 s; restarting from the beginning, attempt 2 of 4"},
    {.what = "lost once too often",
     .known = true,
     .status = 137,
     .n_restarts = 3,
     .lost_for = "rank 0 on vm has not moved for 300 s",
     .want = JOB_EV_FAILED,
     .says = "has not moved for 300 s; no restart is left after attempt 4 of 4"},
    {.what = "finished after all",
     .result = "succeeded",
     .lost_for = "rank 0 on vm has been silent for 10 s",
     .want = JOB_EV_SUCCEEDED},
    {.what = "cancelled while it was ended",
     .known = true,
     .status = 137,
     .cancelling = true,
     .lost_for = "rank 0 on vm has been silent for 10 s",
     .want = JOB_EV_CANCELLED},
    {.what = "asked to yield while it was ended",
     .done = "failed",
     .done_reason = "all-reduce: nobody came",
     .known = true,
     .status = 1,
     .checkpoint = 40,
     .yielding = true,
     .lost_for = "rank 0 on vm has been silent for 10 s",
     .want = JOB_EV_YIELDED,
     .says = "goes on from step 40"},
    {.what = "time limit of a run that was being ended",
     .known = true,
     .status = 137,
     .stopped_for = "the time limit of 5 s was reached",
     .lost_for = "rank 0 on vm has been silent for 10 s",
     .want = JOB_EV_FAILED,
     .says = "the time limit of 5 s was reached"},
};

static void test_decisions(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct row *r = &rows[i];
        struct job job = {.attempt = 1,
                          .state = r->yielding ? JOB_PREEMPTING : JOB_RUNNING,
                          .yield_to = r->to,
                          .n_restarts = r->n_restarts,
                          .max_restarts = 3,
                          .cancelling = r->cancelling,
                          .cancel_user = "bob"};
        struct exit_facts f = {.job = &job,
                               .done_status = r->done,
                               .done_reason = r->done_reason,
                               .result_status = r->result,
                               .result_reason = r->result_reason,
                               .status_known = r->known,
                               .status = r->status,
                               .signal = r->signal,
                               .launcher_log = r->log ? r->log : "",
                               .checkpoint_step = r->checkpoint,
                               .step = 17,
                               .stopped_for = r->stopped_for,
                               .lost_for = r->lost_for};
        struct exit_verdict v;
        exit_decide(&f, &v);
        if (v.type != r->want || (r->says && !strstr(v.reason, r->says)))
            fail_msg("%s: %s \"%s\"", r->what, job_event_name(v.type), v.reason);
        assert_true(v.reason[0] != 0);
    }
}

/* Evidence of any length makes a reason that fits. */
static void test_long_evidence(void **state)
{
    static char text[9000];
    struct job job = {.attempt = 1, .max_restarts = 3};
    struct exit_facts f = {.job = &job, .status_known = true, .launcher_log = text, .checkpoint_step = 5};
    struct exit_verdict v;

    (void)state;
    memset(text, 'y', sizeof text - 1);
    for (f.status = 0; f.status < 256; f.status++) {
        exit_decide(&f, &v);
        assert_true(strlen(v.reason) < sizeof v.reason);
        assert_true(v.type != JOB_EV_RESTARTING || strstr(v.reason, "attempt 2 of 4"));
    }
    f.done_status = "failed";
    f.done_reason = text;
    f.status = 1;
    exit_decide(&f, &v);
    assert_int_equal(strlen(v.reason), sizeof v.reason - 1);
}

/* A launcher that was killed because it hung says nothing by its own end; what it printed before counts. */
static void test_hung_launcher(void **state)
{
    struct job job = {.attempt = 1, .max_restarts = 3};
    struct exit_facts f = {.job = &job,
                           .status_known = true,
                           .signal = 9,
                           .hung = true,
                           .launcher_log = "",
                           .checkpoint_step = 5};
    struct exit_verdict v;

    (void)state;
    exit_decide(&f, &v);
    assert_int_equal(v.type, JOB_EV_RESTARTING);
    assert_string_equal(
        v.reason, "mpirun had no rank any more and did not end; restarting from step 5, attempt 2 of 4");
    f.launcher_log = signalled;
    exit_decide(&f, &v);
    assert_non_null(strstr(v.reason, "rank 1 on vm was killed"));
    f.result_status = "succeeded";
    exit_decide(&f, &v);
    assert_int_equal(v.type, JOB_EV_SUCCEEDED);
}

/* Of a job that was taken up after a restart of the coordinator the exit status is never known. */
static void test_peer_lost_that_nobody_saw(void **state)
{
    struct job job = {.attempt = 1, .max_restarts = 3};
    struct exit_facts f = {.job = &job,
                           .done_status = "failed",
                           .done_reason = "rank 0: all-reduce: nobody came",
                           .result_status = "failed",
                           .result_reason = "rank 0: all-reduce: nobody came",
                           .result_peer_lost = true,
                           .launcher_log = "",
                           .checkpoint_step = 5};
    struct exit_verdict v;

    (void)state;
    exit_decide(&f, &v);
    assert_int_equal(v.type, JOB_EV_RESTARTING);
    assert_string_equal(v.reason, "a rank was lost: rank 0: all-reduce: nobody came; restarting from step 5, "
                                  "attempt 2 of 4");
    f.result_peer_lost = false; /* any other stated failure is final */
    exit_decide(&f, &v);
    assert_int_equal(v.type, JOB_EV_FAILED);
}

static void test_lost_node(void **state)
{
    static const char log[] = "ssh: connect to host node-2 port 22: No route to host\n"
                              "ORTE was unable to reliably start one or more daemons.\n";
    struct place place = {0};

    (void)state;
    assert_int_equal(place_parse(&place, "head:1,node-1:1,node-2:1,node-22:1", NULL), 0);
    assert_string_equal(exit_find_lost_node(log, &place, "head"), "node-2");
    assert_null(exit_find_lost_node("node-2 is fine\n", &place, "head"));
    assert_null(exit_find_lost_node(log, &place, "node-2"));
    place_free(&place);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse_signal),
        cmocka_unit_test(test_last_line),
        cmocka_unit_test(test_decisions),
        cmocka_unit_test(test_long_evidence),
        cmocka_unit_test(test_lost_node),
        cmocka_unit_test(test_hung_launcher),
        cmocka_unit_test(test_peer_lost_that_nobody_saw),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
