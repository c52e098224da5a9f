"""Jobs in the daemon, with the fake launcher: submission, order, events, durability, crash and recovery."""
import os
import subprocess

import pytest

from daemonlib import FINAL, RpcError, spec, wait_until


def events_until(rpc, done):
    """Durable events from the watch until done(event)."""
    seen = []
    while True:
        note = rpc.next_note()
        assert note is not None, "the daemon hung up"
        assert note["method"] == "job.event"
        if note["params"]["type"] == "progress":
            continue
        seen.append(note["params"])
        if done(note["params"]):
            return seen


def ended(job):
    return lambda ev: ev["id"] == job and ev["state"] in FINAL


def types(events):
    return [ev["type"] for ev in events]


# --- the ordinary life ---

def test_life_of_a_job(daemon):
    with daemon.rpc() as rpc, daemon.rpc() as watcher:
        assert watcher.call("job.watch")["seq"] == 0
        job = rpc.submit(spec("life"))
        events = events_until(watcher, ended(job))
        assert types(events) == ["submitted", "starting", "started", "attached", "succeeded"]
        assert [ev["seq"] for ev in events] == [1, 2, 3, 4, 5]
        assert [ev["state"] for ev in events] == ["queued", "starting", "starting", "running", "succeeded"]
        assert all(ev["reason"] for ev in events)
        assert not any("token" in ev for ev in events)
        record = rpc.call("job.get", id=job)
        assert record["state"] == "succeeded" and record["attempts"] == 1
        assert record["submitted_ms"] <= record["started_ms"] <= record["ended_ms"]
        assert record["spec"]["resources"]["max_ranks"] == 1  # resolved: defaults are filled in
        assert record["progress"]["step"] == 10 and record["allocation"] is None
        assert "token" not in str(record)
        assert record["paths"]["run_dir"] == str(daemon.run_dir(job))
        assert (daemon.run_dir(job) / "job.json").exists()


def test_progress_reaches_watchers_and_the_record(make_daemon):
    daemon = make_daemon(behaviour="run_ms=3000,steps=60")
    with daemon.rpc() as rpc, daemon.rpc() as watcher:
        watcher.call("job.watch")
        job = rpc.submit()
        note = watcher.next_note()["params"]
        while note["type"] != "progress" or note["step"] < 3:
            note = watcher.next_note()["params"]
        assert note["id"] == job and note["n_steps"] == 60 and note["seq"] == 4
        assert rpc.call("job.get", id=job)["progress"]["step"] >= 3
        assert "step" in rpc.call("job.explain", id=job)["text"]
        assert rpc.call("job.checkpoint", id=job)["state"] == "running"
        event = events_until(watcher, lambda ev: ev["type"] == "checkpointed")[-1]
        assert rpc.call("job.get", id=job)["checkpoint_step"] == event["step"]


def test_spec_errors_come_all_at_once(daemon):
    bad = spec(train={"batch_size": 0, "epochs": -1}, nonsense=1)
    with daemon.rpc() as rpc:
        with pytest.raises(RpcError) as caught:
            rpc.submit(bad)
        assert caught.value.code == 1002
        errors = caught.value.data["errors"]
        pointers = {e["pointer"] for e in errors}
        assert {"/train/batch_size", "/train/epochs", "/nonsense"} <= pointers
        assert rpc.call("spec.validate", spec=bad)["errors"] == errors
        assert rpc.call("spec.validate", spec=spec())["errors"] == []
        assert rpc.call("job.list")["jobs"] == []


def test_list_pages_and_filters(make_daemon):
    daemon = make_daemon(behaviour="run_ms=60000", slots=2)
    with daemon.rpc() as rpc:
        ids = [rpc.submit(spec(f"j{i}")) for i in range(25)]
        seen, cursor = [], {}
        while True:
            page = rpc.call("job.list", limit=10, **cursor)
            seen += [job["id"] for job in page["jobs"]]
            if "cursor" not in page:
                break
            cursor = {"cursor": page["cursor"]}
        assert seen == ids[::-1]
        assert [job["id"] for job in rpc.call("job.list", state="running")["jobs"]] == ids[1::-1] or \
            rpc.wait_state(ids[1], "running")
        assert len(rpc.call("job.list", state="queued")["jobs"]) == 23
        assert rpc.call("job.list", user="nobody-at-all")["jobs"] == []
        counts = rpc.call("daemon.info")["jobs"]
        assert counts["queued"] == 23 and counts["starting"] + counts["running"] == 2
        node, = rpc.call("node.list")["nodes"]
        assert node["slots_free"] == 0 and node["jobs"] == ids[:2]


def test_cancel(make_daemon):
    daemon = make_daemon(behaviour="run_ms=60000", slots=1)
    with daemon.rpc() as rpc:
        running, queued = rpc.submit(), rpc.submit()
        rpc.wait_state(running, "running")
        text = rpc.call("job.explain", id=queued)["text"]
        assert f"job {queued} needs 1 rank and 0 of 1 slot" in text and f"job {running}" in text
        assert rpc.call("job.cancel", id=queued)["state"] == "cancelled"
        answer = rpc.call("job.cancel", id=running)
        assert answer["state"] == "running" and answer["cancelling"]
        record = rpc.wait_state(running, "cancelled")
        assert "cancelled by " in record["reason"]
        for job in (queued, running):
            with pytest.raises(RpcError) as caught:
                rpc.call("job.cancel", id=job)
            assert caught.value.code == 1003


def test_stated_failure_is_final_and_a_lost_rank_is_not(make_daemon, tmp_path):
    (tmp_path / "a").mkdir()
    failing = make_daemon(directory=tmp_path / "a", behaviour="fail=1")
    with failing.rpc() as rpc:
        record = rpc.wait_state(rpc.submit(), "failed")
        assert record["reason"] == "told to fail" and record["attempts"] == 1
    (tmp_path / "b").mkdir()
    losing = make_daemon(directory=tmp_path / "b", behaviour="lose=2")
    with losing.rpc() as rpc:
        rpc.call("job.watch")
        job = rpc.submit()
        events = events_until(rpc, ended(job))
        assert types(events).count("restarting") == 2
        assert events[-1]["state"] == "succeeded" and rpc.call("job.get", id=job)["attempts"] == 3
        restarts = [ev["reason"] for ev in events if ev["type"] == "restarting"]
        assert "attempt 2 of 4" in restarts[0] and "attempt 3 of 4" in restarts[1]
        job = rpc.submit(spec(scheduling={"max_restarts": 1}))
        record = rpc.wait_state(job, "failed")
        assert "no restart is left after attempt 2 of 2" in record["reason"]


def test_start_that_fails_is_not_tried_again(make_daemon):
    daemon = make_daemon(behaviour="start=0")
    with daemon.rpc() as rpc:
        record = rpc.wait_state(rpc.submit(), "failed")
        assert "could not be started" in record["reason"] and record["attempts"] == 1


# --- scheduling ---

def test_order_is_priority_then_age_and_slots_hold(make_daemon):
    daemon = make_daemon(behaviour="run_ms=20,steps=1", slots=1)
    with daemon.rpc() as rpc:
        rpc.call("job.watch")
        first = rpc.submit()
        jobs = {rpc.submit(spec(scheduling={"priority": p})): p for p in (0, 5, 0, 9)}
        last = max(job for job, p in jobs.items() if p == 0)
        events = events_until(rpc, ended(last))
        order = [ev["id"] for ev in events if ev["type"] == "starting"]
        running = 0
        for ev in events:
            running += {"starting": 1, "succeeded": -1}.get(ev["type"], 0)
            assert 0 <= running <= 1
        by_rule = sorted(jobs, key=lambda j: (-jobs[j], j))
        assert [j for j in order if j != first] == by_rule or order[0] != first


def test_more_ranks_than_slots(make_daemon):
    daemon = make_daemon(slots=2)
    with daemon.rpc() as rpc:
        rpc.call("job.watch")
        job = rpc.submit(spec(resources={"ranks": 5, "max_ranks": 5, "min_ranks": 2}))
        events = events_until(rpc, ended(job))
        assert [ev["ranks"] for ev in events if ev["type"] == "starting"] == [2]
        with pytest.raises(RpcError) as caught:
            rpc.submit(spec(resources={"ranks": 5, "max_ranks": 5, "min_ranks": 3}))
        assert caught.value.code == 1002
        error, = caught.value.data["errors"]
        assert error["pointer"] == "/resources/min_ranks"
        assert "3 found" in error["message"] and "at most 2" in error["message"]


def test_drain(make_daemon):
    daemon = make_daemon(behaviour="run_ms=60000", slots=1)
    with daemon.rpc() as rpc:
        running, queued = rpc.submit(), rpc.submit()
        rpc.wait_state(running, "running")
        assert rpc.call("daemon.drain")["draining"]
        with pytest.raises(RpcError) as caught:
            rpc.submit()
        assert caught.value.code == 1005 and "draining" in caught.value.message
        rpc.call("job.cancel", id=running)
        rpc.wait_state(running, "cancelled")
        assert rpc.call("job.get", id=queued)["state"] == "queued"
        assert "draining" in rpc.call("job.explain", id=queued)["text"]


# --- durability ---

def test_idempotency_key(make_daemon):
    daemon = make_daemon()
    with daemon.rpc() as rpc:
        first = rpc.submit(idempotency_key="k")
        assert rpc.submit(idempotency_key="k") == first
        assert rpc.submit(idempotency_key="other") != first
        rpc.send([{"jsonrpc": "2.0", "id": i, "method": "job.submit",
                   "params": {"spec": spec(), "idempotency_key": "same tick"}} for i in range(5)])
        assert len({answer["result"]["id"] for answer in rpc.read()}) == 1
    daemon.kill()
    daemon.start()
    with daemon.rpc() as rpc:
        assert rpc.submit(idempotency_key="k") == first


@pytest.mark.parametrize("n_kills", [3])
def test_killed_again_and_again_nothing_is_lost_or_doubled(make_daemon, n_kills):
    daemon = make_daemon(behaviour="run_ms=150,steps=3", slots=2)
    acknowledged, events, since = [], [], 0
    for round_ in range(n_kills):
        with daemon.rpc() as rpc, daemon.rpc() as watcher:
            watcher.call("job.watch", since=since)
            for i in range(8):
                acknowledged.append(rpc.submit(spec(f"r{round_}-{i}", scheduling={"max_restarts": 20}),
                                               idempotency_key=f"{round_}-{i}"))
            target = acknowledged[round_ * 8]
            got = events_until(watcher, lambda ev: ev["id"] == target and ev["type"] == "attached")
            events += got
            since = got[-1]["seq"]
            daemon.kill()
        daemon.start()
    with daemon.rpc() as rpc:
        rpc.call("job.watch", since=since)
        open_jobs = set(acknowledged) - {ev["id"] for ev in events if ev["state"] in FINAL}

        def all_ended(ev):
            if ev["state"] in FINAL:
                open_jobs.discard(ev["id"])
            return not open_jobs
        events += events_until(rpc, all_ended)
        jobs = rpc.call("job.list", limit=500)["jobs"]
    seqs = [ev["seq"] for ev in events]
    assert seqs == list(range(1, len(seqs) + 1))  # none lost, none doubled, across three lives
    assert sorted(job["id"] for job in jobs) == acknowledged == sorted(set(acknowledged))
    assert {job["state"] for job in jobs} == {"succeeded"}
    for job in acknowledged:
        mine = [ev for ev in events if ev["id"] == job]
        assert types(mine).count("succeeded") == 1 and types(mine).count("submitted") == 1
        attempts = [ev["attempt"] for ev in mine if ev["type"] == "starting"]
        assert attempts == list(range(1, len(attempts) + 1))


def test_watch_from_the_past_of_one_job(make_daemon):
    daemon = make_daemon(behaviour="run_ms=1,steps=1")
    with daemon.rpc() as rpc:
        jobs = [rpc.submit() for _ in range(60)]
        for job in jobs:
            rpc.wait_state(job, "succeeded")
        rpc.call("job.watch", id=jobs[30], since=0)
        mine = events_until(rpc, ended(jobs[30]))
        assert types(mine) == ["submitted", "starting", "started", "attached", "succeeded"]
        rpc.call("job.watch", since=0)
        last = rpc.call("daemon.info")["stats"]["events"]
        everything = events_until(rpc, lambda ev: ev["seq"] == last)
        assert [ev["seq"] for ev in everything] == list(range(1, last + 1))


def test_slow_watcher_misses_nothing(make_daemon):
    daemon = make_daemon(behaviour="run_ms=1,steps=1", slots=8)
    with daemon.rpc() as rpc, daemon.rpc() as watcher:
        watcher.call("job.watch", since=0)
        jobs = []
        for _ in range(10):  # far more than a socket's buffer holds
            rpc.send([{"jsonrpc": "2.0", "id": i, "method": "job.submit", "params": {"spec": spec("x" * 100)}}
                      for i in range(100)])
            jobs += [answer["result"]["id"] for answer in rpc.read()]
        wait_until(lambda: rpc.call("daemon.info")["jobs"]["succeeded"] == len(jobs), "all jobs have run")
        last = rpc.call("daemon.info")["stats"]["events"]
        seen = events_until(watcher, lambda ev: ev["seq"] == last)
        assert [ev["seq"] for ev in seen] == list(range(1, last + 1))


def test_full_disk_refuses_submissions_and_applies_nothing(make_daemon):
    daemon = make_daemon(env={"BATCHFORMER_FAULT": "store.commit:error"})
    with daemon.rpc() as rpc:
        with pytest.raises(RpcError) as caught:
            rpc.submit(idempotency_key="k")
        assert caught.value.code == 1005 and "committing" in caught.value.message
        assert rpc.call("job.list")["jobs"] == []
        job = rpc.submit(idempotency_key="k")  # the fault was for one commit
        rpc.wait_state(job, "succeeded")
        assert rpc.call("daemon.info")["stats"]["commits_failed"] == 1


@pytest.mark.parametrize("nth", [2, 3, 4, 5])
def test_report_that_cannot_be_written_is_written_later(make_daemon, nth):
    """The disk refuses one commit somewhere in a job's life; the job still ends, with every event in order."""
    daemon = make_daemon(env={"BATCHFORMER_FAULT": f"store.commit:error@{nth}"})
    with daemon.rpc() as rpc:
        rpc.call("job.watch", since=0)
        job = rpc.submit()
        events = events_until(rpc, ended(job))
        assert types(events) == ["submitted", "starting", "started", "attached", "succeeded"]
        assert [ev["seq"] for ev in events] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("point", ["store.commit", "store.committed", "journal.applied"])
def test_crash_at_each_commit(make_daemon, point, nth):
    """Before it, between it and what follows from it, and before the answer."""
    daemon = make_daemon(env={"BATCHFORMER_FAULT": f"{point}:kill@{nth}"})
    acknowledged = None
    try:
        with daemon.rpc() as rpc:
            acknowledged = rpc.submit(idempotency_key="k")
            while rpc.next_note():
                pass
    except (AssertionError, OSError):
        pass
    assert daemon.process.wait(30) == -9
    daemon.env.pop("BATCHFORMER_FAULT")
    daemon.start()
    with daemon.rpc() as rpc:
        if acknowledged:
            assert rpc.call("job.get", id=acknowledged)["id"] == acknowledged
        job = rpc.submit(idempotency_key="k")
        assert acknowledged in (None, job)
        rpc.wait_state(job, "succeeded")
        assert len(rpc.call("job.list")["jobs"]) == 1


# --- the end ---

def test_signals_end_it_in_order(make_daemon):
    for signo in (2, 15):
        daemon = make_daemon(behaviour="run_ms=60000")
        with daemon.rpc() as rpc:
            rpc.wait_state(rpc.submit(), "running")
        daemon.process.send_signal(signo)
        assert daemon.process.wait(20) == 0
        assert "ended in order" in daemon.log_text()


def test_shutdown_with_cancel(make_daemon):
    daemon = make_daemon(behaviour="run_ms=60000", slots=1)
    with daemon.rpc() as rpc:
        running, queued = rpc.submit(), rpc.submit()
        rpc.wait_state(running, "running")
        assert rpc.call("daemon.shutdown", cancel=True)["stopping"]
        assert daemon.process.wait(20) == 0
    daemon.start()
    with daemon.rpc() as rpc:
        assert rpc.call("job.get", id=running)["state"] == "cancelled"
        assert rpc.call("job.get", id=queued)["state"] in ("queued", "starting", "running")


def test_lifeline(make_daemon):
    daemon = make_daemon(start=False, behaviour="run_ms=60000", options=["--lifeline"])
    ours, theirs = os.pipe()
    daemon.stdin = ours
    daemon.start()
    os.close(ours)
    with daemon.rpc() as rpc:
        job = rpc.submit()
        rpc.wait_state(job, "running")
        daemon.process.send_signal(2)  # Ctrl-C reaches the whole foreground group: its holder decides
        os.write(theirs, b"ignored")
        assert rpc.call("job.get", id=job)["state"] == "running"
    os.close(theirs)
    assert daemon.process.wait(20) == 0
    daemon.stdin = subprocess.DEVNULL
    daemon.options.remove("--lifeline")
    daemon.start()
    with daemon.rpc() as rpc:
        assert rpc.call("job.get", id=job)["state"] == "cancelled"


def test_damaged_database(make_daemon):
    daemon = make_daemon()
    daemon.stop()
    database = daemon.state / "state.db"
    database.write_bytes(b"not a database at all" * 100)
    run = subprocess.run(daemon.argv(), capture_output=True, text=True, timeout=30)
    assert run.returncode == 1
    assert "state.db is damaged" in run.stderr and "move it" in run.stderr


def test_a_lost_database_gives_no_id_whose_run_is_on_disk(make_daemon):
    daemon = make_daemon()
    with daemon.rpc() as rpc:
        first = rpc.submit()
        rpc.wait_state(first, "succeeded")
    daemon.stop()
    for path in daemon.state.glob("state.db*"):
        path.unlink()
    daemon.start()
    with daemon.rpc() as rpc:
        assert rpc.submit() > first
