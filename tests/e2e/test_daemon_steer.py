"""What people ask of a job that is there: pause, resume, requeue, cancel, in every state, with the fake launcher."""
import pytest

from daemonlib import RpcError, spec


def refused(rpc, method, job, words):
    with pytest.raises(RpcError) as caught:
        rpc.call(method, id=job)
    assert caught.value.code == 1003 and words in caught.value.message


def test_pause_while_it_waits(make_daemon):
    daemon = make_daemon(behaviour="run_ms=60000", slots=1)
    with daemon.rpc() as rpc:
        running, waiting = rpc.submit(), rpc.submit()
        rpc.wait_state(running, "running")
        assert rpc.call("job.pause", id=waiting)["state"] == "paused"
        assert rpc.call("job.pause", id=waiting)["state"] == "paused"
        assert "paused" in rpc.call("job.explain", id=waiting)["text"]
        rpc.call("job.cancel", id=running)
        rpc.wait_state(running, "cancelled")
        assert rpc.call("job.get", id=waiting)["state"] == "paused"
        assert rpc.call("job.resume", id=waiting)["state"] == "queued"
        rpc.wait_state(waiting, "running")
        refused(rpc, "job.resume", waiting, "is not paused")


def test_pause_while_it_runs(make_daemon):
    daemon = make_daemon(behaviour="run_ms=60000", slots=1)
    with daemon.rpc() as rpc:
        job = rpc.submit()
        rpc.wait_state(job, "running")
        rpc.call("job.checkpoint", id=job)
        answer = rpc.call("job.pause", id=job)
        assert answer["state"] == "preempting"
        record = rpc.wait_state(job, "paused")
        assert record["allocation"] is None and record["reason"].startswith("paused")
        other = rpc.submit()
        rpc.wait_state(other, "running")  # the slot is free
        rpc.call("job.cancel", id=other)
        rpc.call("job.resume", id=job)
        record = rpc.wait_state(job, "running")
        assert record["attempts"] == 1 and record["launches"] == 2  # a pause is no fault
        assert rpc.call("job.cancel", id=job)["cancelling"]
        refused(rpc, "job.pause", job, "cancelled")


def test_pause_survives_a_crash(make_daemon):
    daemon = make_daemon(behaviour="run_ms=60000", slots=2)
    with daemon.rpc() as rpc:
        paused, waiting = rpc.submit(), rpc.submit()
        rpc.wait_state(paused, "running")
        rpc.call("job.pause", id=paused)
        rpc.wait_state(paused, "paused")
    daemon.kill()
    daemon.start()
    with daemon.rpc() as rpc:
        assert rpc.call("job.get", id=paused)["state"] == "paused"
        rpc.wait_state(waiting, "running")
        rpc.call("job.resume", id=paused)
        rpc.wait_state(paused, "running")


def test_requeue(make_daemon):
    daemon = make_daemon(behaviour="run_ms=60000", slots=1)
    with daemon.rpc() as rpc:
        first, second = rpc.submit(), rpc.submit(spec(scheduling={"priority": 5}))
        rpc.wait_state(first, "running", "queued")
        rpc.wait_state(second, "running", "queued")
        running, waiting = (first, second) if rpc.call("job.get", id=first)["state"] == "running" else (second, first)
        rpc.wait_state(running, "running")
        assert rpc.call("job.requeue", id=waiting)["state"] == "queued"  # it is there already
        assert rpc.call("job.requeue", id=running)["state"] == "preempting"
        rpc.wait_state(second, "running")  # the higher priority
        rpc.call("job.cancel", id=second)
        rpc.wait_state(second, "cancelled")
        record = rpc.wait_state(first, "running")
        assert record["attempts"] == 1
        rpc.call("job.cancel", id=first)
        rpc.wait_state(first, "cancelled")
        assert rpc.call("job.requeue", id=first)["state"] == "queued"
        assert rpc.wait_state(first, "running")["ended_ms"] is None


def test_requeue_of_what_failed_has_all_restarts_again(make_daemon):
    daemon = make_daemon(behaviour="lose=3,run_ms=10")
    with daemon.rpc() as rpc:
        job = rpc.submit(spec(scheduling={"max_restarts": 1}))
        record = rpc.wait_state(job, "failed")
        assert record["attempts"] == 2
        rpc.call("job.requeue", id=job)
        record = rpc.wait_state(job, "succeeded")
        assert record["attempts"] == 2  # one more fault, one restart
        for method in ("job.requeue", "job.resume"):
            refused(rpc, method, job, "has succeeded")


def test_a_fault_is_waited_out(make_daemon):
    daemon = make_daemon(behaviour="lose=2,run_ms=10", options=["--retry-ms", 300])
    with daemon.rpc() as rpc:
        rpc.call("job.watch")
        job = rpc.submit()
        rpc.wait_state(job, "succeeded")
        rpc.call("job.watch", since=0)
        events = []
        while not events or events[-1]["state"] != "succeeded":
            note = rpc.next_note()["params"]
            if note["type"] != "progress" and (not events or note["seq"] > events[-1]["seq"]):
                events.append(note)
        faults = [ev for ev in events if ev["type"] == "restarting"]
        starts = [ev for ev in events if ev["type"] == "starting"]
        for k, fault in enumerate(faults):
            assert fault["not_before_ms"] - fault["time"] == 300 << k
            assert starts[k + 1]["time"] >= fault["not_before_ms"]
