"""Several jobs that belong together: sweeps, and jobs that come after others. With the fake launcher."""
import json

import pytest

from clilib import bfctl
from daemonlib import RpcError, spec


def test_a_sweep_is_an_array_of_jobs(make_daemon):
    daemon = make_daemon(behaviour="run_ms=10", slots=2)
    with daemon.rpc() as rpc:
        doc = spec("grid", sweep={"seed": [3, 4], "batchformer.enabled": [True, False]})
        answer = rpc.call("job.submit", spec=doc, idempotency_key="grid-1")
        ids = answer["ids"]
        assert answer["id"] == ids[0] and ids == list(range(ids[0], ids[0] + 4))
        for index, job in enumerate(ids):
            record = rpc.wait_state(job, "succeeded")
            assert record["array"] == {"id": ids[0], "index": index}
            assert record["spec"]["sweep"] is None
            assert record["spec"]["seed"] == [3, 3, 4, 4][index]
            assert record["spec"]["batchformer"]["enabled"] is [True, False, True, False][index]
        assert rpc.call("job.submit", spec=doc, idempotency_key="grid-1") == answer
        alone = rpc.submit()
        assert "array" not in rpc.call("job.get", id=alone)
        assert alone == ids[-1] + 1


def test_a_sweep_is_taken_whole_or_not_at_all(daemon):
    with daemon.rpc() as rpc:
        with pytest.raises(RpcError) as caught:
            rpc.submit(spec(sweep={"train.epochs": [1, 0, -1]}))
        assert caught.value.code == 1002
        assert [e["pointer"] for e in caught.value.data["errors"]] == ["/train/epochs"] * 2
        assert rpc.call("job.list")["jobs"] == []
        assert rpc.call("spec.validate", spec=spec(sweep={"seed": [1, 2, 3]}))["jobs"] == 3


def test_bfctl_submits_a_sweep(daemon, tmp_path):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(spec(sweep={"seed": [1, 2, 3]})))
    address = f"unix:{daemon.socket}"
    out = bfctl("--address", address, "submit", str(path), "--watch")
    assert out.returncode == 0 and out.stdout.split() == ["1", "2", "3"]
    out = bfctl("--address", address, "--json", "submit", str(path))
    assert json.loads(out.stdout) == {"ids": [4, 5, 6]}
    out = bfctl("validate", str(path))
    assert out.returncode == 0 and "a sweep of 3 jobs" in out.stderr
    out = bfctl("run", str(path))
    assert out.returncode == 2 and "a sweep found" in out.stderr


def test_bfctl_steers_a_whole_array(make_daemon):
    daemon = make_daemon(behaviour="run_ms=600000", slots=1)
    address = f"unix:{daemon.socket}"
    with daemon.rpc() as rpc:
        ids = rpc.call("job.submit", spec=spec(sweep={"seed": [1, 2, 3]}))["ids"]
        alone = rpc.submit()
        rpc.wait_state(ids[0], "running")
        out = bfctl("--address", address, "pause", "--array", str(ids[1]))
        assert out.returncode == 0
        assert out.stdout.splitlines() == [f"{ids[2]} paused", f"{ids[1]} paused", f"{ids[0]} preempting"]
        rpc.wait_state(ids[0], "paused")
        rpc.wait_state(alone, "running")
        out = bfctl("--address", address, "cancel", "--array", str(ids[0]))
        assert out.returncode == 0 and out.stdout.splitlines() == [f"{job} cancelled" for job in ids[::-1]]
        out = bfctl("--address", address, "cancel", "--array", str(ids[0]))
        assert out.returncode == 1 and "has ended already" in out.stderr and out.stdout == ""
        out = bfctl("--address", address, "cancel", "--array", str(alone))
        assert out.returncode == 1 and f"job {alone} is in no array" in out.stderr
        assert rpc.call("job.get", id=alone)["state"] == "running"


def test_a_job_waits_for_those_before_it(make_daemon):
    daemon = make_daemon(behaviour="run_ms=60000", slots=4)
    with daemon.rpc() as rpc:
        first = rpc.submit()
        second = rpc.submit(spec(scheduling={"after": [first]}))
        third = rpc.submit(spec(scheduling={"after": [second, first]}))
        rpc.wait_state(first, "running")
        assert rpc.call("job.get", id=second)["state"] == "queued"
        assert f"until job {first} has succeeded, which is running" in rpc.call("job.explain", id=second)["text"]
        rpc.call("job.cancel", id=first)
        record = rpc.wait_state(third, "cancelled")
        assert "which had to succeed first, was cancelled" in record["reason"]
        assert f"job {first}, which had to succeed first" in rpc.call("job.get", id=second)["reason"]


def test_order_of_dependent_jobs(make_daemon):
    daemon = make_daemon(behaviour="run_ms=20,steps=1", slots=4)
    with daemon.rpc() as rpc:
        first = rpc.submit()
        second = rpc.submit(spec(scheduling={"after": [first], "priority": 9}))
        third = rpc.submit(spec(scheduling={"after": [first, second]}))
        done = rpc.wait_state(third, "succeeded")
        times = [rpc.call("job.get", id=job) for job in (first, second)] + [done]
        for before, after in zip(times, times[1:]):
            assert before["ended_ms"] <= after["started_ms"]


def test_after_names_jobs_that_exist(daemon):
    with daemon.rpc() as rpc:
        with pytest.raises(RpcError) as caught:
            rpc.submit(spec(scheduling={"after": [77]}))
        error, = caught.value.data["errors"]
        assert caught.value.code == 1002 and error["pointer"] == "/scheduling/after/0" and "77 found" in error["message"]
