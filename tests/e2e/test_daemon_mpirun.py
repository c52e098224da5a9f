"""Jobs as real processes: mpirun starts a small worker that speaks the worker's protocol (fake_worker.py)."""
import os
import signal
import subprocess

import pytest

from daemonlib import HERE, RpcError, events_of, processes_with_env, spec, wait_until

WORKER = HERE / "fake_worker.py"


@pytest.fixture
def mpi_daemon(make_daemon):
    def make(**kwargs):
        options = ["--worker", WORKER, *kwargs.pop("options", [])]
        return make_daemon(launcher="mpirun", options=options, **kwargs)
    return make


def alive(daemon, job):
    return daemon.processes(job)


def starts(daemon, job):
    path = daemon.run_dir(job) / "starts.log"
    return path.read_text().splitlines() if path.exists() else []


def ranks_of(daemon, job, rank):
    return sorted(set(alive(daemon, job)) & set(processes_with_env(f"OMPI_COMM_WORLD_RANK={rank}")))


def test_a_job_runs(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=8+every=3", ranks=2))
        events = events_of(rpc, job)
        kinds = [ev["type"] for ev in events]
        assert kinds[:2] == ["submitted", "starting"] and kinds[-1] == "succeeded"
        assert {"started", "attached"} <= set(kinds)
        assert [ev["step"] for ev in events if ev["type"] == "checkpointed"] == [3, 6]
        record = rpc.call("job.get", id=job)
        assert record["checkpoint_step"] == 6 and record["progress"]["step"] == 8
        assert len(starts(daemon, job)) == 1 and "resume False" in starts(daemon, job)[0]
        assert alive(daemon, job) == []


def test_the_token_stays_secret(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=1000+ms=20", ranks=1))
        pid = rpc.wait_state(job, "running")["allocation"]["pid"]
        env = open(f"/proc/{pid}/environ", "rb").read().split(b"\0")
        token = [v for v in env if v.startswith(b"BATCHFORMER_TOKEN=")][0].split(b"=")[1]
        assert len(token) == 64
        for other in alive(daemon, job):
            assert token not in open(f"/proc/{other}/cmdline", "rb").read()
        seen = str(rpc.call("job.get", id=job)) + str(rpc.call("job.list")) + daemon.log_text()
        assert token.decode() not in seen
        wrong = token[:-1] + (b"0" if token[-1:] != b"0" else b"1")
        for bad in (wrong, b"", token[:-1], token + b"0"):
            with daemon.rpc() as stranger:
                with pytest.raises(RpcError) as caught:
                    stranger.call("worker.attach", job=job, attempt=1, token=bad.decode(), pid=1, host="h", ranks=1)
                assert caught.value.code in (1004, -32602)
                with pytest.raises(RpcError):
                    stranger.call("worker.done", status="failed", reason="forged")


def test_stated_failure(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        record = rpc.wait_state(rpc.submit(spec("fail=1", ranks=2)), "failed")
        assert record["reason"] == "the data are bad" and record["attempts"] == 1


def test_worker_that_ends_without_a_word(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        record = rpc.wait_state(rpc.submit(spec("silent=1+status=1", ranks=1)), "failed")
        assert record["reason"] == "about to end with status 1" and record["attempts"] == 1
        record = rpc.wait_state(rpc.submit(spec("status=7", ranks=1)), "failed")
        assert "status 7" in record["reason"] and record["attempts"] == 1
        job = rpc.submit(spec("status=4", ranks=1, scheduling={"max_restarts": 1}))
        record = rpc.wait_state(job, "failed")
        assert record["attempts"] == 2 and "a rank was lost" in record["reason"]


@pytest.mark.parametrize("option,says", [("--worker", "the worker cannot be run as"),
                                         ("--mpirun", "mpirun cannot be run as")])
def test_missing_program(make_daemon, option, says):
    daemon = make_daemon(launcher="mpirun", options=["--worker", WORKER, option, "/nonexistent/program"])
    with daemon.rpc() as rpc:
        job = rpc.submit()
        record = rpc.wait_state(job, "failed")
        assert says in record["reason"] and "/nonexistent/program" in record["reason"]
        assert record["attempts"] == 1


def test_no_mpirun_in_the_path(mpi_daemon):
    daemon = mpi_daemon(env={"PATH": "/nonexistent"})
    with daemon.rpc() as rpc:
        assert "mpirun was not found in $PATH" in rpc.wait_state(rpc.submit(), "failed")["reason"]


def test_lost_rank_restarts_from_the_checkpoint(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=40+ms=100+every=4+die=1", ranks=2))
        events = events_of(rpc, job)
        restart, = [ev for ev in events if ev["type"] == "restarting"]
        assert "killed by signal 9" in restart["reason"] and "attempt 2 of 4" in restart["reason"]
        assert f"restarting from step {restart['step']}," in restart["reason"] and restart["step"] >= 4
        assert events[-1]["state"] == "succeeded"
        first, second = starts(daemon, job)
        assert "attempt 1" in first and "attempt 2" in second and "resume True" in second
        assert alive(daemon, job) == []


def test_rank_killed_from_outside(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=60+ms=50+every=5", ranks=2))
        rpc.wait_state(job, "running")
        victim, = wait_until(lambda: ranks_of(daemon, job, 1), "rank 1 lives")
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: rpc.call("job.get", id=job)["attempts"] == 2, "a second attempt")
        rpc.call("job.cancel", id=job)
        rpc.wait_state(job, "cancelled")
        assert "double" not in starts(daemon, job)
        assert alive(daemon, job) == []


def test_mpirun_killed(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=60+ms=50", ranks=2, scheduling={"max_restarts": 0}))
        pid = rpc.wait_state(job, "running")["allocation"]["pid"]
        os.kill(pid, signal.SIGKILL)
        record = rpc.wait_state(job, "failed")
        assert "mpirun was killed by signal 9" in record["reason"]
        assert "no restart is left after attempt 1 of 1" in record["reason"]
        assert alive(daemon, job) == []


def test_mpirun_that_hangs_without_ranks_is_killed(make_daemon, tmp_path):
    """As Open MPI's does at times when a rank is killed while it connects; also after the coordinator was killed."""
    hanging = tmp_path / "mpirun"
    hanging.write_text("#!/bin/sh\nexec sleep 100000\n")
    hanging.chmod(0o755)
    daemon = make_daemon(launcher="mpirun", options=["--worker", WORKER, "--mpirun", hanging, "--hang-ms", 1000])
    with daemon.rpc() as rpc:
        job = rpc.submit(spec(ranks=1, scheduling={"max_restarts": 1}))
        wait_until(lambda: rpc.call("job.get", id=job)["attempts"] == 2, "a second attempt")
        wait_until(lambda: "is running as" in daemon.log_text().rsplit("attempt 2", 1)[1], "its mpirun")
    daemon.kill()
    daemon.start()
    with daemon.rpc() as rpc:
        record = rpc.wait_state(job, "failed")
        assert "mpirun had no rank any more and did not end; no restart is left" in record["reason"]
        assert daemon.log_text().count("mpirun has been without a rank for 1000 ms: SIGKILL to attempt") == 2
        assert alive(daemon, job) == []


def test_mpirun_without_ranks_after_a_success(make_daemon, tmp_path):
    """What the ranks have said counts."""
    hanging = tmp_path / "mpirun"
    hanging.write_text('#!/bin/sh\nmpirun "$@"\nexec sleep 100000\n')
    hanging.chmod(0o755)
    daemon = make_daemon(launcher="mpirun", options=["--worker", WORKER, "--mpirun", hanging, "--hang-ms", 1000])
    with daemon.rpc() as rpc:
        record = rpc.wait_state(rpc.submit(spec("steps=3", ranks=1)), "succeeded", "failed")
        assert (record["state"], record["attempts"]) == ("succeeded", 1), record["reason"]
        assert "mpirun has been without a rank" in daemon.log_text()


def test_cancel(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=100000+ms=20", ranks=2))
        rpc.wait_state(job, "running")
        wait_until(lambda: (rpc.call("job.get", id=job)["progress"] or {"step": 0})["step"] > 2, "it makes steps")
        rpc.call("job.cancel", id=job)
        record = rpc.wait_state(job, "cancelled")
        assert "cancelled by" in record["reason"] and "at step" in record["reason"]
        assert alive(daemon, job) == []
        assert "SIGTERM to" not in daemon.log_text()  # asking was enough


def test_cancel_of_a_deaf_job_kills_it(mpi_daemon):
    daemon = mpi_daemon(options=["--stop-ms", 300, "--kill-ms", 300])
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=100000+ms=20+deaf=1", ranks=2))
        rpc.wait_state(job, "running")
        rpc.call("job.cancel", id=job)
        rpc.wait_state(job, "cancelled")
        assert "SIGTERM" in daemon.log_text()
        assert alive(daemon, job) == []


def test_cancel_of_a_silent_job(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=100000+ms=20+silent=1", ranks=2))
        wait_until(lambda: starts(daemon, job), "rank 0 works")
        assert rpc.call("job.get", id=job)["state"] == "starting"
        rpc.call("job.cancel", id=job)
        rpc.wait_state(job, "cancelled")
        assert alive(daemon, job) == []


def test_time_limit(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=100000+ms=20", ranks=1, scheduling={"time_limit_s": 1}))
        record = rpc.wait_state(job, "failed")
        assert record["reason"] == "the time limit of 1 s was reached" and record["attempts"] == 1
        assert alive(daemon, job) == []


def test_checkpoint_on_request(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=100000+ms=20", ranks=1))
        with pytest.raises(RpcError) as caught:
            rpc.call("job.checkpoint", id=rpc.submit(spec(ranks=2)))
        assert caught.value.code == 1003
        rpc.wait_state(job, "running")
        rpc.call("job.checkpoint", id=job)
        wait_until(lambda: rpc.call("job.get", id=job)["checkpoint_step"] > 0, "a checkpoint was reported")


# --- logs and metrics ---

def test_logs(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=30+ms=30", ranks=1))
        rpc.wait_state(job, "running")
        (daemon.run_dir(job) / "log/rank-0000.log").write_bytes(b"2026-01-01T00:00:00.000Z from rank 0 \xff\n")
        result = rpc.call("job.logs", id=job, follow=True)
        lines = [entry["line"] for entry in result["lines"]]
        while True:
            note = rpc.next_note()
            assert note["method"] == "job.log" and note["params"]["id"] == job
            if note["params"].get("end"):
                break
            lines.append(note["params"]["line"])
        assert [line for line in lines if line.startswith("step ")] == [f"step {i}" for i in range(1, 31)]
        assert "2026-01-01T00:00:00.000Z from rank 0 \ufffd" in lines
        only, = rpc.call("job.logs", id=job, rank=0)["lines"]
        assert only["rank"] == 0 and "from rank 0" in only["line"]
        last, = rpc.call("job.logs", id=job, rank="launcher", tail=1)["lines"]
        assert last["line"] == "step 30"
        assert rpc.call("job.logs", id=job, rank=5)["lines"] == []


def test_metrics(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=1", ranks=1))
        rpc.wait_state(job, "succeeded")
        assert rpc.call("job.metrics", id=job)["series"] == {}
        lines = [f'{{"kind":"step","step":{i},"epoch":0,"loss":{1 / i},"lr":0.1,"time":"t"}}' for i in range(1, 6)]
        lines.insert(3, "half a li")
        lines.append('{"kind":"eval","split":"validation","step":5,"epoch":1,"val_top1":0.5}')
        (daemon.run_dir(job) / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind":"step","step":6,"lo')
        series = rpc.call("job.metrics", id=job)["series"]
        assert series["loss"] == [[i, 1 / i] for i in range(1, 6)]
        assert series["val_top1"] == [[5, 0.5]]
        assert set(rpc.call("job.metrics", id=job, names=["loss"])["series"]) == {"loss"}
        assert rpc.call("job.metrics", id=job, names=["lr"], since_step=4)["series"] == {"lr": [[4, .1], [5, .1]]}
        assert rpc.call("job.get", id=job)["metrics"]["eval"]["values"] == {"val_top1": 0.5}
        many = "".join(f'{{"kind":"step","step":{i},"loss":0.123456789}}\n' for i in range(1, 30001))
        (daemon.run_dir(job) / "metrics.jsonl").write_text(many)
        got, since = [], 0
        while since is not None:
            page = rpc.call("job.metrics", id=job, since_step=since)
            got += page["series"]["loss"]
            since = page.get("next_step")
        assert [point[0] for point in got] == list(range(1, 30001))


# --- the coordinator dies ---

def test_running_job_survives_the_coordinator(mpi_daemon):
    daemon = mpi_daemon(slots=1)
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=100000+ms=20", ranks=1))
        queued = rpc.submit(spec("steps=2", ranks=1))
        rpc.wait_state(job, "running")
    before = alive(daemon, job)
    daemon.kill()
    assert alive(daemon, job) == before
    daemon.start()
    with daemon.rpc() as rpc:
        assert rpc.call("job.get", id=job)["state"] == "running"
        assert rpc.call("job.get", id=queued)["state"] == "queued"
        wait_until(lambda: rpc.call("job.get", id=job)["progress"], "the worker has come back")
        assert alive(daemon, job) == before and len(starts(daemon, job)) == 1
        rpc.call("job.cancel", id=job)
        rpc.wait_state(job, "cancelled")
        assert alive(daemon, job) == []
        rpc.wait_state(queued, "succeeded")


def test_orderly_end_leaves_jobs_running_and_the_next_one_takes_them_up(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=60+ms=50", ranks=2))
        rpc.wait_state(job, "running")
        rpc.call("daemon.shutdown")
    assert daemon.process.wait(20) == 0
    assert alive(daemon, job)
    daemon.start()
    with daemon.rpc() as rpc:
        assert rpc.wait_state(job, "succeeded")["attempts"] == 1
        assert len(starts(daemon, job)) == 1


def test_job_that_ends_while_the_coordinator_is_away(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        good = rpc.submit(spec("steps=30+ms=20", ranks=1))
        bad = rpc.submit(spec("steps=30+ms=20+fail=1", ranks=1))
        for job in (good, bad):
            rpc.wait_state(job, "running")
    daemon.kill()
    wait_until(lambda: not alive(daemon, good) and not alive(daemon, bad), "both have ended")
    daemon.start()
    with daemon.rpc() as rpc:
        assert rpc.wait_state(good, "succeeded")["attempts"] == 1
        assert rpc.wait_state(bad, "failed")["reason"] == "the data are bad"
        assert len(starts(daemon, good)) == 1


def test_job_that_is_killed_while_the_coordinator_is_away(mpi_daemon):
    daemon = mpi_daemon()
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=40+ms=50+every=1", ranks=2))
        record = rpc.wait_state(job, "running")
        wait_until(lambda: rpc.call("job.get", id=job)["checkpoint_step"] > 0, "a checkpoint")
    daemon.kill()
    os.kill(record["allocation"]["pid"], signal.SIGKILL)
    daemon.start()
    with daemon.rpc() as rpc:
        events = events_of(rpc, job)
        restart, = [ev for ev in events if ev["type"] == "restarting"]
        assert "ended while the coordinator was away" in restart["reason"]
        assert "restarting from step" in restart["reason"]
        assert events[-1]["state"] == "succeeded"
        assert "double" not in starts(daemon, job) and len(starts(daemon, job)) == 2
        assert alive(daemon, job) == []


@pytest.mark.parametrize("nth", [2, 3, 4])
def test_crash_around_the_start_runs_nothing_twice(mpi_daemon, nth):
    """Killed at the commit of "starting" (nothing runs yet), of "started" or of "attached" (processes run)."""
    daemon = mpi_daemon(env={"BATCHFORMER_FAULT": f"store.commit:kill@{nth}"})
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=60+ms=30", ranks=2))
    assert daemon.process.wait(30) == -9
    daemon.env.pop("BATCHFORMER_FAULT")
    daemon.start()
    with daemon.rpc() as rpc:
        record = rpc.wait_state(job, "succeeded")
        assert record["attempts"] == 1
        assert len(starts(daemon, job)) == 1, starts(daemon, job)
        assert alive(daemon, job) == []


def test_lifeline_takes_the_job_along(mpi_daemon):
    daemon = mpi_daemon(start=False, options=["--lifeline"])
    ours, theirs = os.pipe()
    daemon.stdin = ours
    daemon.start()
    os.close(ours)
    with daemon.rpc() as rpc:
        job = rpc.submit(spec("steps=100000+ms=20", ranks=2))
        rpc.wait_state(job, "running")
    os.close(theirs)
    assert daemon.process.wait(40) == 0
    daemon.stdin = subprocess.DEVNULL
    assert alive(daemon, job) == []
