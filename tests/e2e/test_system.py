"""Everything together: the real daemon, real mpirun, real workers. What must survive is the training itself."""
import os
import signal

import numpy as np
import pytest

from daemonlib import processes_with_env, wait_until
from workerlib import ENV, MPI_ENV, losses, make_spec, read_safetensors, run


def job(**changes):
    """A job of some seconds on two ranks: longer than a worker takes to find a coordinator that was restarted."""
    return make_spec(**{"train__epochs": 1200, "eval__every_epochs": 400, "checkpoint__every_steps": 50,
                        "resources": {"ranks": 2}, **changes})


@pytest.fixture
def system(make_daemon):
    return make_daemon(launcher="mpirun", env={**ENV, **MPI_ENV})


def steps(rpc, number):
    return (rpc.call("job.get", id=number).get("progress") or {}).get("step") or 0


def processes(system, number):
    """pids of everything that runs for this job of this daemon."""
    of_daemon = set(processes_with_env(f"BATCHFORMER_LINK=unix:{system.socket}"))
    return sorted(of_daemon & set(processes_with_env(f"BATCHFORMER_JOB={number}")))


def ranks_of(system, number):
    def is_rank(pid):
        try:
            return b"OMPI_COMM_WORLD_RANK" in open(f"/proc/{pid}/environ", "rb").read()
        except OSError:
            return False
    return [p for p in processes(system, number) if is_rank(p)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same job without daemon or disturbance."""
    where, _ = run(tmp_path_factory.mktemp("undisturbed"), job(), ranks=2)
    return where


def same_training(a, b):
    assert losses(a) == losses(b)
    x, y = read_safetensors(a / "model.safetensors"), read_safetensors(b / "model.safetensors")
    assert x.keys() == y.keys() and all(np.array_equal(x[n], y[n]) for n in x)


def nothing_left(system, number):
    wait_until(lambda: not processes(system, number), "no process of the job is left")


def test_submitted_job_trains_as_by_hand(system, undisturbed):
    with system.rpc() as rpc:
        number = rpc.submit(job())
        record = rpc.wait_state(number, "succeeded", "failed", "cancelled", timeout=120)
        assert record["state"] == "succeeded", record["reason"]
        series = rpc.call("job.metrics", id=number, names=["loss"])["series"]["loss"]
    same_training(undisturbed, system.run_dir(number))
    assert [s for s, _ in series] == sorted(losses(undisturbed))
    nothing_left(system, number)


def test_daemon_killed_while_training(system, undisturbed):
    with system.rpc() as rpc:
        number, waiting = rpc.submit(job()), rpc.submit(job(train__epochs=2))
        wait_until(lambda: steps(rpc, number) > 10, "the job makes steps")
    before = sorted(ranks_of(system, number))
    assert len(before) == 2
    system.kill()
    assert sorted(ranks_of(system, number)) == before  # training goes on without a coordinator
    system.start()
    with system.rpc() as rpc:
        wait_until(lambda: steps(rpc, number) > 0, "the worker has attached again")
        for n in (number, waiting):
            record = rpc.wait_state(n, "succeeded", "failed", "cancelled", timeout=120)
            assert (record["state"], record["attempts"]) == ("succeeded", 1), record["reason"]
    same_training(undisturbed, system.run_dir(number))


def test_rank_killed_while_training(system, undisturbed):
    with system.rpc() as rpc:
        number = rpc.submit(job())
        wait_until(lambda: steps(rpc, number) > 60, "the job has a checkpoint")
        os.kill(ranks_of(system, number)[-1], signal.SIGKILL)
        record = rpc.wait_state(number, "succeeded", "failed", "cancelled", timeout=120)
        assert record["state"] == "succeeded", record["reason"]
        assert record["attempts"] == 2
        rpc.call("job.watch", id=number, since=0)
        reasons = []
        while not reasons or "succeeded" not in reasons[-1][0]:
            note = rpc.next_note()["params"]
            reasons.append((note["type"], note.get("reason", "")))
    restart = next(r for t, r in reasons if t == "restarting")
    assert "killed by signal 9" in restart and "from step" in restart and "attempt 2 of 4" in restart
    same_training(undisturbed, system.run_dir(number))
    nothing_left(system, number)


def test_cancel_leaves_nothing(system):
    with system.rpc() as rpc:
        number = rpc.submit(job(train__epochs=9000))
        wait_until(lambda: steps(rpc, number) > 5, "the job makes steps")
        rpc.call("job.cancel", id=number)
        rpc.wait_state(number, "cancelled")
    nothing_left(system, number)


def test_missing_data_is_final(system, tmp_path):
    """A failure that a restart cannot mend is reported once, with the place."""
    doc = job()
    doc["data"] = {"format": "idx", "path": str(tmp_path / "nowhere")}
    with system.rpc() as rpc:
        number = rpc.submit(doc)
        record = rpc.wait_state(number, "succeeded", "failed", "cancelled")
        assert record["state"] == "failed" and record["attempts"] == 1
        assert "nowhere" in record["reason"] and "/data/path" in record["reason"]
        assert rpc.call("daemon.info")["version"]
