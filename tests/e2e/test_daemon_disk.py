"""A full disk: new work is refused with the reason, what runs and what is read goes on, and all recovers by itself."""
import subprocess

import pytest

from daemonlib import FINAL, RpcError, events_of, spec, wait_until
from disklib import SmallDisk


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(name, kib) → a mounted SmallDisk; only root may mount."""
    made = []

    def make(name, kib):
        disk = SmallDisk(tmp_path / name, kib)
        made.append(disk)
        if not disk.mounted:
            pytest.skip(f"no file system can be mounted: {disk.why}")
        return disk
    yield make
    for disk in made:
        disk.unmount()


def refused(call, *says):
    with pytest.raises(RpcError) as caught:
        call()
    assert caught.value.code == 1005
    for text in says:
        assert text in caught.value.message


def progress_of(rpc, job):
    """Steps that the job reports, as they come."""
    while True:
        note = rpc.next_note()["params"]
        if note["type"] == "progress" and note["id"] == job:
            yield note["step"]


def check(daemon):
    run = subprocess.run([daemon.argv()[0], "--check", "--state-dir", daemon.state], capture_output=True, text=True,
                         timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_state_directory_is_full(make_daemon, small_disk, tmp_path):
    disk = small_disk("disk", 4096)
    daemon = make_daemon(start=False, behaviour="run_ms=600000,steps=60000,survive=1", slots=2)
    daemon.state = disk.path / "state"
    daemon.start()
    with daemon.rpc() as rpc, daemon.rpc() as watcher:
        running, other, queued = (rpc.submit(spec(name)) for name in ("a", "b", "c"))
        for job in (running, other):
            rpc.wait_state(job, "running")
        before = rpc.call("daemon.info")["stats"]["events"]
        disk.fill()

        full = f"{disk.path}/state/state.db: committing: the disk is full"
        for key in ({}, {"idempotency_key": "k"}, {"idempotency_key": "k"}):
            refused(lambda: rpc.submit(spec("refused"), **key), full, f"are free in {daemon.state}", "make room")
        refused(lambda: rpc.call("job.cancel", id=queued), full)
        # What happens to running jobs is kept: here a checkpoint that was asked for.
        failed = rpc.call("daemon.info")["stats"]["commits_failed"]
        rpc.call("job.checkpoint", id=running)
        wait_until(lambda: rpc.call("daemon.info")["stats"]["commits_failed"] >= failed + 2, "it refuses twice")
        assert "the disk is full" in rpc.call("daemon.info")["trouble"]
        assert daemon.log_text().count("events cannot be written") == 1  # once a minute

        # Reading goes on, and so do the jobs.
        assert [job["name"] for job in rpc.call("job.list")["jobs"]] == ["c", "b", "a"]
        assert rpc.call("job.get", id=queued)["state"] == "queued"
        assert rpc.call("job.explain", id=queued)["text"]
        watcher.call("job.watch", since=0)
        seen = []
        while len(seen) < before:
            note = watcher.next_note()["params"]
            seen += [note["seq"]] if note["type"] != "progress" else []
        assert seen == list(range(1, before + 1))
        steps = progress_of(watcher, other)
        first = next(steps)
        assert next(steps) > first

        disk.free()
        while (note := watcher.next_note()["params"])["type"] == "progress":
            pass
        assert (note["type"], note["id"], note["seq"]) == ("checkpointed", running, before + 1)
        assert rpc.submit(spec("taken"), idempotency_key="k") == queued + 1  # the refused ones have cost no number
        assert rpc.call("daemon.info")["trouble"] is None
        assert "events can be written again" in daemon.log_text()
        assert rpc.call("job.cancel", id=queued)["state"] == "cancelled"
    daemon.kill()
    check(daemon)
    daemon.start()
    with daemon.rpc() as rpc:
        states = {job["name"]: job["state"] for job in rpc.call("job.list")["jobs"]}
        assert states == {"a": "running", "b": "running", "c": "cancelled", "taken": "queued"}
    daemon.stop()


@pytest.fixture
def on_small_disk(make_daemon, small_disk):
    """A daemon with all that it has on a small disk, and a job that has succeeded."""
    disk = small_disk("disk", 2048)
    daemon = make_daemon(start=False, behaviour="run_ms=50")
    daemon.state = disk.path / "state"
    daemon.start()
    with daemon.rpc() as rpc:
        job = rpc.submit()
        rpc.wait_state(job, "succeeded")
    yield daemon, disk, job
    daemon.stop()
    check(daemon)


def test_a_crash_and_a_start_on_a_full_disk(on_small_disk):
    """What it needs is still there: it serves what there is, and takes work when there is room."""
    daemon, disk, job = on_small_disk
    daemon.kill()
    disk.fill()
    daemon.start()
    with daemon.rpc() as rpc:
        assert rpc.call("job.get", id=job)["state"] == "succeeded"
        refused(rpc.submit, "the disk is full")
        disk.free()
        rpc.wait_state(rpc.submit(), "succeeded")


def test_an_orderly_end_and_a_start_on_a_full_disk(on_small_disk):
    """It cannot even open its database: it says so and leaves everything as it is."""
    daemon, disk, job = on_small_disk
    daemon.stop()
    disk.fill()
    run = subprocess.run(daemon.argv(), env=daemon.env, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and str(daemon.state) in run.stderr and "disk is full" in run.stderr, run.stderr
    disk.free()
    daemon.start()
    with daemon.rpc() as rpc:
        assert rpc.call("job.get", id=job)["state"] == "succeeded"
        rpc.wait_state(rpc.submit(), "succeeded")


@pytest.fixture
def crowded(make_daemon, small_disk):
    """A daemon whose runs, but not its database, lie on a disk that is full, and a job that waits for room there."""
    disk = small_disk("state/runs", 256)
    daemon = make_daemon(behaviour="run_ms=50,survive=1")
    disk.fill()
    with daemon.rpc() as rpc:
        job = rpc.submit()
        wait_until(lambda: "waits for room on the disk" in rpc.call("job.explain", id=job)["text"], "it waits")
        record = rpc.call("job.get", id=job)
        assert record["state"] == "starting" and record["attempts"] == 1
        assert f"{daemon.state}/runs/{job}" in rpc.call("job.explain", id=job)["text"]
        assert "No space left on device" in rpc.call("job.explain", id=job)["text"]
    yield daemon, disk, job
    daemon.stop()


def test_a_run_directory_has_no_room(crowded):
    daemon, disk, job = crowded
    with daemon.rpc() as rpc:
        disk.free()
        events = events_of(rpc, job)
    assert [ev["type"] for ev in events] == ["submitted", "starting", "started", "attached", "succeeded"]
    assert daemon.log_text().count(f"job {job}: its start waits for room on the disk") == 1


def test_cancelled_while_it_waits_for_room(crowded):
    daemon, _, job = crowded
    with daemon.rpc() as rpc:
        rpc.call("job.cancel", id=job)
        record = rpc.wait_state(job, "cancelled")
        assert record["attempts"] == 1 and not (daemon.run_dir(job) / "fake.log").exists()


def test_the_daemon_dies_while_a_job_waits_for_room(crowded):
    daemon, disk, job = crowded
    daemon.kill()
    daemon.start()
    with daemon.rpc() as rpc:
        assert rpc.call("job.get", id=job)["state"] == "starting"
        disk.free()
        assert rpc.wait_state(job, "succeeded")["attempts"] == 1


def test_an_orderly_end_while_a_job_waits_for_room(crowded):
    daemon, disk, job = crowded
    with daemon.rpc() as rpc:
        rpc.call("daemon.shutdown")
    assert daemon.process.wait(60) == 0
    disk.free()
    daemon.start()
    with daemon.rpc() as rpc:
        assert rpc.wait_state(job, "succeeded")["attempts"] == 1


@pytest.mark.sanitize
def test_room_comes_back(make_daemon):
    """The same by a fault point, for those who may not mount: the first try finds no room."""
    daemon = make_daemon(env={"BATCHFORMER_FAULT": "actions.launch:error"})
    with daemon.rpc() as rpc:
        first, second = rpc.submit(), rpc.submit()
        for job in (first, second):
            record = rpc.wait_state(job, *FINAL)
            assert record["state"] == "succeeded" and record["attempts"] == 1
    assert f"job {first}: its start waits for room on the disk" in daemon.log_text()


def test_shutdown_with_cancel_while_a_job_waits_for_room(crowded):
    daemon, disk, job = crowded
    with daemon.rpc() as rpc:
        rpc.call("daemon.shutdown", cancel=True)
    assert daemon.process.wait(60) == 0
    disk.free()
    daemon.start()
    with daemon.rpc() as rpc:
        assert rpc.call("job.get", id=job)["state"] == "cancelled"
