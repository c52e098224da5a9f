"""Ranks that are lost, stopped, hung or slow: real workers under real mpirun, and a coordinator that finds out."""
import os
import signal
import time

import pytest

from daemonlib import events_of, processes_with_env, wait_until
from workerlib import ENV, MPI_ENV, losses, make_spec, read_safetensors, run

LOST_MS = 3000


@pytest.fixture
def system(make_daemon):
    def make(fault=None, ranks=2, **limits):
        options = [f"--{k.replace('_', '-')}={v}" for k, v in {"lost_ms": LOST_MS, **limits}.items()]
        env = {**ENV, **MPI_ENV, **({"BATCHFORMER_FAULT": fault} if fault else {})}
        return make_daemon(launcher="mpirun", slots=ranks, options=options, env=env)
    return make


def job(epochs=10 ** 6, ranks=2, **changes):
    """By default one that is not done before the test is, on any machine."""
    return make_spec(**{"train__epochs": epochs, "eval__every_epochs": 10 ** 6, "checkpoint__every_steps": 20,
                        "resources": {"ranks": ranks}, **changes})


def table(rpc, number):
    return {row["rank"]: row for row in rpc.call("job.get", id=number)["per_rank"]}


def beating(rpc, number, ranks, step):
    """Waits until every rank has told of that step."""
    def look():
        rows = table(rpc, number)
        return rows if len(rows) == ranks and all((r["step"] or 0) >= step for r in rows.values()) else None
    return wait_until(look, lambda: f"every rank beats beyond step {step}: {rpc.call('job.get', id=number)}", 90)


def pid_of(system, number, rank):
    """From the processes, not from what is reported."""
    of_job = set(system.processes(number)) & set(processes_with_env(f"OMPI_COMM_WORLD_RANK={rank}"))
    pid, = of_job
    return pid


def restarts(rpc, number):
    rpc.call("job.watch", id=number, since=0)
    found = []
    while True:
        ev = rpc.next_note()["params"]
        if ev["type"] == "restarting":
            found.append(ev["reason"])
        if ev["type"] != "progress" and ev["state"] in ("succeeded", "failed", "cancelled"):
            return ev["state"], found


def goes_on(rpc, number):
    """The reason of the first restart, when the job has come beyond the step that it went on from; then it is cancelled."""
    rpc.call("job.watch", id=number, since=0)
    reason, step = None, -1
    while True:
        ev = rpc.next_note()["params"]
        assert ev["state"] not in ("succeeded", "failed", "cancelled"), ev
        if ev["type"] == "restarting":
            assert reason is None, (reason, ev["reason"])
            reason, step = ev["reason"], ev["step"]
        elif ev["type"] == "progress" and reason and ev["step"] > step:
            break
    rpc.call("job.cancel", id=number)
    rpc.wait_state(number, "cancelled")
    return reason


def test_every_rank_is_seen(system):
    daemon = system()
    with daemon.rpc() as rpc:
        number = rpc.submit(job())
        rows = beating(rpc, number, 2, 25)
        for rank, row in rows.items():
            assert row["pid"] == pid_of(daemon, number, rank) and row["host"] == os.uname().nodename
            assert row["step_ms"] >= row["work_ms"] > 0 and row["age_s"] < 60
            assert row["phase"] in ("data", "forward", "backward", "vote", "update", "log", "checkpoint")
        rpc.call("job.cancel", id=number)
        rpc.wait_state(number, "cancelled")
        assert rpc.call("job.get", id=number)["per_rank"] == []


@pytest.mark.parametrize("rank,ranks", [(1, 3), (0, 2)])
def test_a_stopped_rank_is_named_and_the_job_goes_on(system, rank, ranks):
    daemon = system(ranks=ranks)
    with daemon.rpc() as rpc:
        number = rpc.submit(job(ranks=ranks))
        beating(rpc, number, ranks, 25)
        os.kill(pid_of(daemon, number, rank), signal.SIGSTOP)
        reason = goes_on(rpc, number)
        assert f"rank {rank} on {os.uname().nodename} has been silent for" in reason
        assert "(stopped by a signal), in " in reason and "at step " in reason
        others = "1 rank waits for it in " if ranks == 2 else "2 ranks wait for it in "
        assert others in reason
        assert "restarting from step " in reason and reason.endswith("attempt 2 of 4")
        wait_until(lambda: not daemon.processes(number), "no process of the job is left")


def test_a_restarted_job_trains_as_an_undisturbed_one(system, tmp_path):
    """Rank 1 hangs in its 50th step, once: the second attempt, which goes on from step 40, ends before it makes so many."""
    doc = job(epochs=20, checkpoint__every_steps=40)
    undisturbed, _ = run(tmp_path, doc, ranks=2)
    daemon = system(fault="train.step.1:loop@50", stall_s=6)
    with daemon.rpc() as rpc:
        number = rpc.submit(doc)
        state, (reason,) = restarts(rpc, number)
        assert state == "succeeded" and "rank 1 on " in reason and "restarting from step 40" in reason
    again = daemon.run_dir(number)
    assert losses(undisturbed) == losses(again)
    x, y = (read_safetensors(d / "model.safetensors") for d in (undisturbed, again))
    assert x.keys() == y.keys() and all((x[n] == y[n]).all() for n in x)


def test_a_single_rank_that_is_stopped(system):
    daemon = system(ranks=1)
    with daemon.rpc() as rpc:
        number = rpc.submit(job(ranks=1))
        beating(rpc, number, 1, 25)
        os.kill(pid_of(daemon, number, 0), signal.SIGSTOP)
        reason = goes_on(rpc, number)
        assert "rank 0 on " in reason and "(stopped by a signal)" in reason


def test_a_killed_rank_is_named_by_its_signal(system):
    daemon = system(lost_ms=60000)
    with daemon.rpc() as rpc:
        number = rpc.submit(job())
        beating(rpc, number, 2, 25)
        os.kill(pid_of(daemon, number, 1), signal.SIGKILL)
        reason = goes_on(rpc, number)
        assert "rank 1 on " in reason and "was killed by signal 9" in reason


def test_a_looping_rank_is_hung(system):
    """Steps 1 to 49 are made; a checkpoint is there from step 40, so the second attempt never comes to its 50th."""
    daemon = system(fault="train.step.1:loop@50", stall_s=6)
    with daemon.rpc() as rpc:
        number = rpc.submit(job(epochs=20, checkpoint__every_steps=40))
        state, (reason,) = restarts(rpc, number)
        assert state == "succeeded", reason
        assert f"rank 1 on {os.uname().nodename} has not moved for " in reason and "at step 49, in data" in reason
        assert "; 1 rank waits for it in " in reason
        assert reason.endswith("restarting from step 40, attempt 2 of 4")
        wait_until(lambda: not daemon.processes(number), "no process of the job is left")


def test_a_slow_rank_is_reported_and_not_ended(system):
    daemon = system(fault="train.step.1:nap@1", lost_ms=60000)
    with daemon.rpc() as rpc:
        number = rpc.submit(job())

        def slow():
            rows = table(rpc, number)
            return rows if rows and rows[1]["state"] == "slow" else None
        rows = wait_until(slow, "rank 1 is slow", 90)
        assert rows[0]["state"] == "ok" and rows[1]["ratio"] > 1.5 and rows[1]["work_ms"] >= 100
        assert rows[0]["ratio"] == 1
        assert "; rank 1 on " in rpc.call("job.explain", id=number)["text"]
        beating(rpc, number, 2, rows[1]["step"] + 20)
        record = rpc.call("job.get", id=number)
        assert (record["state"], record["attempts"]) == ("running", 1), record["reason"]
        rpc.call("job.cancel", id=number)
        rpc.wait_state(number, "cancelled")
    assert daemon.log_text().count("rank 1 on ") == 1, "it is logged once"


def test_a_short_stop_is_nothing(system):
    daemon = system(lost_ms=60000)
    with daemon.rpc() as rpc:
        number = rpc.submit(job())
        beating(rpc, number, 2, 25)
        pid = pid_of(daemon, number, 1)
        os.kill(pid, signal.SIGSTOP)
        seen = wait_until(lambda: (r := table(rpc, number))[1]["state"] == "stopped" and r, "it is seen to be stopped")
        assert seen[1]["age_s"] > 1
        os.kill(pid, signal.SIGCONT)
        rows = wait_until(lambda: (r := table(rpc, number))[1]["step"] > seen[1]["step"] and r, "it goes on")
        assert rows[1]["pid"] == pid
        record = rpc.call("job.get", id=number)
        assert (record["state"], record["attempts"]) == ("running", 1)
        rpc.call("job.cancel", id=number)
        rpc.wait_state(number, "cancelled")


def test_a_coordinator_that_was_stopped_kills_nothing(system):
    daemon = system()
    with daemon.rpc() as rpc:
        number = rpc.submit(job())
        before = beating(rpc, number, 2, 25)
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(2 * LOST_MS / 1000)  # the thing itself: longer than the limit
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        seen = beating(rpc, number, 2, max(r["step"] for r in before.values()) + 1)
        beating(rpc, number, 2, max(r["step"] for r in seen.values()) + 1)
        record = rpc.call("job.get", id=number)
        assert (record["state"], record["attempts"]) == ("running", 1), record["reason"]
        assert {r: row["pid"] for r, row in seen.items()} == {r: row["pid"] for r, row in before.items()}
        rpc.call("job.cancel", id=number)
        rpc.wait_state(number, "cancelled")
    assert "SIGKILL to attempt" not in daemon.log_text()


def test_a_new_coordinator_hears_every_rank_again(system):
    daemon = system()
    with daemon.rpc() as rpc:
        number = rpc.submit(job())
        before = beating(rpc, number, 2, 25)
    daemon.kill()
    daemon.start()
    with daemon.rpc() as rpc:
        after = beating(rpc, number, 2, max(r["step"] for r in before.values()) + 1)
        assert after[1]["pid"] == before[1]["pid"]
        os.kill(after[1]["pid"], signal.SIGSTOP)
        reason = wait_until(lambda: (r := rpc.call("job.get", id=number))["attempts"] == 2 and r, "it restarts")["reason"]
        assert reason
        rpc.call("job.cancel", id=number)
        state, reasons = restarts(rpc, number)
        assert state == "cancelled" and "rank 1 on " in reasons[0] and "stopped by a signal" in reasons[0]


def test_a_cancellation_of_a_stopped_job_stays_one(system):
    daemon = system(lost_ms=60000, stop_ms=500, kill_ms=500)
    with daemon.rpc() as rpc:
        number = rpc.submit(job())
        beating(rpc, number, 2, 25)
        os.kill(pid_of(daemon, number, 1), signal.SIGSTOP)
        rpc.call("job.cancel", id=number)
        assert rpc.wait_state(number, "cancelled")["attempts"] == 1
        assert [e["type"] for e in events_of(rpc, number)][-1] == "cancelled"


def test_strangers_cannot_beat(system):
    daemon = system()
    with daemon.rpc() as rpc:
        number = rpc.submit(job())
        beating(rpc, number, 2, 1)
        who = {"job": number, "attempt": 1, "token": "0" * 64, "rank": 1, "pid": os.getpid(), "host": "h"}
        errors = []
        for params in (who, {**who, "token": ""}, {**who, "job": number + 1}):
            try:
                rpc.call("worker.hello", **params)
            except Exception as e:
                errors.append(e.code)
        assert errors == [1004] * 3
        try:
            rpc.call("worker.beat", step=1, phase="x", waits_in=None, in_ms=0, collectives=0, n_steps=0, step_ms=None,
                     work_ms=None)
        except Exception as e:
            errors.append(e.code)
        assert errors[3:] == [1004]
        env = dict(v.split("=", 1) for v in open(f"/proc/{pid_of(daemon, number, 1)}/environ").read().split("\0")
                   if "=" in v)
        try:
            rpc.call("worker.hello", **{**who, "token": env["BATCHFORMER_TOKEN"], "rank": 2})
        except Exception as e:
            errors.append(e.code)
        assert errors[4:] == [1004], "there is no rank 2"
        rpc.call("job.cancel", id=number)
        rpc.wait_state(number, "cancelled")
