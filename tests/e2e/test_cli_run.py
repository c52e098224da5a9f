"""bfctl run: the private coordinator from its start to its end, with a stand-in for batchformerd."""
import json
import os
import shutil
import signal
import time

import pytest

from clilib import ROOT, bfctl, bfctl_start, bin_dir

HERE = os.path.dirname(os.path.abspath(__file__))
SMOKE = ROOT / "deploy/examples/smoke.json"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A directory with bfctl and the stand-in beside it."""
    directory = tmp_path / "bin"
    directory.mkdir()
    shutil.copy(bin_dir() / "bfctl", directory / "bfctl")
    shutil.copy(os.path.join(HERE, "fake_batchformerd.py"), directory / "batchformerd")
    os.chmod(directory / "batchformerd", 0o755)
    monkeypatch.setenv("FAKE_DAEMON_LIB", HERE)
    monkeypatch.setenv("BF_BIN_DIR", str(directory))
    monkeypatch.setenv("FAKE_DAEMON", "succeed")
    return directory


def wait_until(condition, what, timeout=30):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.02)


def start_and_wait_for(text, *args):
    process = bfctl_start(*args)
    for line in process.stderr:
        if text in line:
            return process
    raise AssertionError(f"bfctl ended without saying: {text}")


def test_a_job_that_succeeds(programs, tmp_path):
    state = tmp_path / "state"
    run = bfctl("run", SMOKE, "--state-dir", state, "--set", "name=tried")
    assert run.returncode == 0, run.stderr
    out = run.stdout
    assert out.splitlines()[0] == "job 1 (tried) succeeded"
    for part in ("top-1 62.50 %", "many 75.00 %", "medium - (no class)", "few 25.00 %", "with, in training only",
                 "many: more than 100 training images", "top-1 50.00 % on the hold-out, after epoch 3", "1234",
                 "1 m 01 s", "2 ranks", str(state / "runs/1")):
        assert part in out, part
    assert "step 5/10" in run.stderr and "running on 2 ranks" in run.stderr
    args = json.loads((state / "args").read_text())
    assert args == ["--state-dir", str(state), "--listen", f"unix:{state}/batchformer.sock", "--slots", "2",
                    "--lifeline"]
    assert (state / "lifeline-ended").exists(), "bfctl did not wait for its coordinator"
    assert (state / "batchformerd.log").exists()


def test_json_is_one_document(programs, tmp_path):
    run = bfctl("--json", "run", SMOKE, "--state-dir", tmp_path / "s")
    out = json.loads(run.stdout)
    assert run.stdout.count("\n") == 1
    assert (out["id"], out["state"], out["name"]) == (1, "succeeded", "smoke")
    assert out["result"]["eval"]["top1"] == 0.625
    assert out["run_dir"] == str(tmp_path / "s/runs/1")


def test_a_job_that_fails(programs, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_DAEMON", "fail")
    run = bfctl("run", SMOKE, "--state-dir", tmp_path / "s")
    assert run.returncode == 1
    assert run.stdout.splitlines()[0] == "job 1 (smoke) failed: rank 1 on here was killed by signal 9"


def test_default_state_dir(programs, tmp_path):
    run = bfctl("run", SMOKE, env={"XDG_STATE_HOME": str(tmp_path / "xdg")})
    assert run.returncode == 0, run.stderr
    made = list((tmp_path / "xdg/batchformer").glob("run-*"))
    assert len(made) == 1 and (made[0] / "runs/1").is_dir()


def test_invalid_spec_starts_nothing(programs, tmp_path):
    run = bfctl("run", SMOKE, "--state-dir", tmp_path / "s", "--set", "train.epochs=0")
    assert run.returncode == 2 and "/train/epochs: 0 found" in run.stderr
    assert not (tmp_path / "s").exists()


def test_stricter_coordinator(programs, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_DAEMON", "strict")
    run = bfctl("run", SMOKE, "--state-dir", tmp_path / "s")
    assert (run.returncode, run.stdout) == (2, "")
    assert "/resources/ranks: no such luck" in run.stderr
    assert (tmp_path / "s/lifeline-ended").exists()


def test_deep_state_dir_gets_a_short_socket(programs, tmp_path):
    state = tmp_path / ("d" * 120)
    run = bfctl("run", SMOKE, "--state-dir", state)
    assert run.returncode == 0, run.stderr
    args = json.loads((state / "args").read_text())
    listen = args[args.index("--listen") + 1]
    assert listen.startswith("unix:/tmp/batchformer-")
    assert not os.path.exists(os.path.dirname(listen.removeprefix("unix:"))), "the socket's directory was left behind"


def test_interrupt_cancels(programs, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_DAEMON", "hang")
    state = tmp_path / "s"
    process = start_and_wait_for("running on 2 ranks", "run", SMOKE, "--state-dir", state)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "cancelling job 1" in err
    assert out.splitlines()[0] == "job 1 (smoke) cancelled: cancelled by tester"
    assert (state / "cancelled").exists() and (state / "lifeline-ended").exists()


def test_second_interrupt_leaves_at_once(programs, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_DAEMON", "deaf")
    state = tmp_path / "s"
    process = start_and_wait_for("running on 2 ranks", "run", SMOKE, "--state-dir", state)
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if "cancelling job 1" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    wait_until((state / "lifeline-ended").exists, "the coordinator saw the end of its lifeline")


def test_when_bfctl_dies_the_lifeline_ends(programs, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_DAEMON", "hang")
    state = tmp_path / "s"
    process = start_and_wait_for("running on 2 ranks", "run", SMOKE, "--state-dir", state)
    process.kill()
    process.communicate(timeout=30)
    wait_until((state / "lifeline-ended").exists, "the coordinator saw the end of its lifeline")


def test_coordinator_that_dies(programs, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_DAEMON", "die")
    run = bfctl("run", SMOKE, "--state-dir", tmp_path / "s")
    assert (run.returncode, run.stdout) == (1, "")
    assert "ended unexpectedly" in run.stderr and str(tmp_path / "s/batchformerd.log") in run.stderr


def test_coordinator_that_does_not_start(programs, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_DAEMON", "refuse")
    run = bfctl("run", SMOKE, "--state-dir", tmp_path / "s")
    assert run.returncode == 1
    assert "the disk is on fire" in run.stderr


def test_coordinator_that_is_not_there(programs, tmp_path):
    (programs / "batchformerd").unlink()
    run = bfctl("run", SMOKE, "--state-dir", tmp_path / "s")
    assert run.returncode == 1
    assert "batchformerd was not found beside bfctl" in run.stderr


def test_state_dir_that_cannot_be_made(programs, tmp_path):
    (tmp_path / "file").write_text("")
    run = bfctl("run", SMOKE, "--state-dir", tmp_path / "file/s")
    assert run.returncode == 1
    assert str(tmp_path / "file") in run.stderr
