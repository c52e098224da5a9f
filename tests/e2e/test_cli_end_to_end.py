"""bfctl with the real coordinator, the real worker and real ranks: `run`, and the commands on a running daemon."""
import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

from clilib import ROOT, bfctl, bfctl_start, bin_dir

SMOKE = ROOT / "deploy/examples/smoke.json"
ENV = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
# Long enough to be caught in the middle, whatever the machine.
LONG = ["--set", "train.epochs=100000", "--set", "eval.every_epochs=0", "--set", "checkpoint.every_steps=0"]


def wait_until(condition, what, timeout=60):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.05)


def processes_that_name(text):
    """Command lines of the live processes that mention `text`, this one's children under pytest excepted."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        line = b" ".join(words).decode(errors="replace")
        if text in line and ("batchformer" in words[0].decode(errors="replace") or "mpirun" in line):
            found.append(line)
    return found


def start_and_wait_for_steps(state, *more):
    process = bfctl_start("run", SMOKE, "--state-dir", state, *LONG, *more, env={**os.environ, **ENV})
    for line in process.stderr:
        if "step " in line and "step 0/" not in line:
            return process
    raise AssertionError("bfctl ended early")


@pytest.mark.parametrize("ranks", [1, 3])
def test_run(tmp_path, ranks):
    state = tmp_path / "state"
    run = bfctl("run", SMOKE, "--state-dir", state, "--set", f"resources={{\"ranks\":{ranks}}}", env=ENV, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("job 1 (smoke) succeeded\n")
    for part in ("BatchFormer", "top-1", "by class size", "groups", "images/s", "wall time", "world size",
                 str(state / "runs/1")):
        assert part in run.stdout, part
    result = json.loads((state / "runs/1/result.json").read_text())
    assert result["world_size"] == ranks
    assert f"top-1 {result['eval']['top1'] * 100:.2f} %" in run.stdout
    assert processes_that_name(str(state)) == []


def test_run_of_a_job_that_fails(tmp_path):
    spec = json.loads(SMOKE.read_text())
    spec["data"] = {"format": "idx", "path": str(tmp_path / "no-data")}
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec))
    run = bfctl("run", path, "--state-dir", tmp_path / "state", env=ENV, timeout=120)
    assert run.returncode == 1
    assert run.stdout.startswith("job 1 (smoke) failed: ")
    assert "no-data" in run.stdout.splitlines()[0]


def test_interrupt_cancels_the_job(tmp_path):
    process = start_and_wait_for_steps(tmp_path / "state")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out.startswith("job 1 (smoke) cancelled")
    assert processes_that_name(str(tmp_path / "state")) == []


def test_nothing_is_left_when_bfctl_is_killed(tmp_path):
    process = start_and_wait_for_steps(tmp_path / "state")
    assert processes_that_name(str(tmp_path / "state")) != []
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: processes_that_name(str(tmp_path / "state")) == [], "every process of the run is gone")


@pytest.fixture
def coordinator(tmp_path):
    """The address of a daemon with two slots."""
    state = tmp_path / "daemon"
    address = f"unix:{tmp_path}/d.sock"
    log = open(tmp_path / "batchformerd.log", "wb")
    process = subprocess.Popen([bin_dir() / "batchformerd", "--state-dir", state, "--listen", address, "--slots", "2"],
                               stdin=subprocess.DEVNULL, stderr=log, env={**os.environ, **ENV})
    wait_until(lambda: bfctl("info", address=address).returncode == 0, "the daemon answers")
    yield address
    bfctl("shutdown", "--cancel", address=address)
    try:
        process.wait(timeout=60)
    finally:
        process.kill()
        log.close()


def test_commands_on_a_running_daemon(coordinator, tmp_path):
    def ask(*args, status=0):
        run = bfctl(*args, address=coordinator, timeout=120)
        assert run.returncode == status, (args, run.stdout, run.stderr)
        return run.stdout

    first = ask("submit", SMOKE).strip()
    assert first == "1"
    assert ask("watch", first).startswith("job 1 succeeded\n")
    second = ask("submit", SMOKE, *LONG, "--set", "name=long").strip()
    third = ask("submit", SMOKE, "--set", "name=waits").strip()

    def progress():
        job = json.loads(ask("--json", "show", second))
        return job["progress"] and job["progress"]["step"]
    wait_until(progress, "the second job makes steps")

    table = [line.split() for line in ask("list").splitlines()]
    rows = {row[0]: row for row in table[1:]}
    assert rows["1"][1:3] == ["smoke", "succeeded"]
    assert rows[second][1:3] == ["long", "running"] and "%" in rows[second]
    assert rows[third][1:3] == ["waits", "queued"]
    assert "slot" in ask("explain", third)
    assert "phase" in ask("explain", second)
    assert "running" in ask("checkpoint", second)
    wait_until(lambda: '"type":"checkpointed"' in events(coordinator, second), "a checkpoint was written")
    assert "loss" in ask("metrics", first)
    assert "*" in ask("metrics", first, "--plot")
    assert ask("logs", first).count("\n") > 3
    assert "[1]" in ask("logs", first) and "[1]" not in ask("logs", first, "--rank", "0")
    assert ask("nodes").splitlines()[1].split()[2:4] == ["2", "0"]
    assert "running: 1" in ask("info")
    ask("show", "99", status=1)
    ask("cancel", third)
    ask("cancel", second)
    ask("watch", second, status=1)
    assert ask("watch", third, status=1).startswith("job 3 cancelled")
    ask("cancel", second, status=1)
    ask("drain")
    run = bfctl("submit", SMOKE, address=coordinator)
    assert run.returncode == 1 and "drain" in run.stderr


def events(address, job):
    """What `watch --json` shows of a running job within a moment, as compact JSON lines."""
    process = bfctl_start("--json", "watch", job, address=address)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if '"type":"progress"' in line:
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    return "".join(lines) + rest
