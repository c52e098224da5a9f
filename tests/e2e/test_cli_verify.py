"""bfctl verify: real ranks on a very small job. Its figures are held against figures computed here, and a job that is
not the same function for every number of ranks must be found."""
import json
import os
import pathlib
import shutil
import signal

import pytest

from clilib import bfctl, bfctl_start, bin_dir
from workerlib import ENV, deviation, log, losses, make_spec, read_safetensors, wait_for, worst, write_job

STEPS = 5  # across the border between two epochs of four steps


@pytest.fixture
def scratch(tmp_path):
    """Where bfctl makes its scratch directory."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


def verify(tmp_path, *args, spec=None, as_json=False, path=None):
    job = write_job(tmp_path, spec or make_spec(), "spec.json")
    env = {**ENV, "TMPDIR": str(tmp_path / "tmp"), **({"PATH": path} if path else {})}
    return bfctl(*(["--json"] if as_json else []), "verify", job, *args, env=env)


def left_behind(scratch):
    return list(scratch.glob("batchformer-verify-*"))


def test_agreement(tmp_path, scratch):
    kept = tmp_path / "kept"
    run = verify(tmp_path, "--ranks", "1,2", "--steps", STEPS, "--keep", kept, as_json=True)
    assert run.returncode == 0, run.stderr
    for part in ("1 rank, from the start …", "2 ranks, from the start …", "1 rank, up to step 4 …",
                 "2 ranks, step 5 from the same weights …", f"kept in {kept}"):
        assert part in run.stderr
    doc = json.loads(run.stdout)
    assert run.stdout.count("\n") == 1
    assert (doc["reference"], doc["steps"], doc["determinism"], doc["verdict"]) == (1, STEPS, "default", "within")
    assert doc["not_world_size_independent"] == []
    one, two = doc["world_sizes"]
    assert (one["ranks"], two["ranks"]) == (1, 2)

    # What ran is what it says: each world size, and the last step from the checkpoint of the step before.
    spec = json.loads((kept / "last-2/job.json").read_text())
    assert [spec["resources"][k] for k in ("ranks", "min_ranks", "max_ranks")] == [2, 2, 2]
    assert (kept / "last-2/log/rank-0001.log").exists() and not (kept / "last-1/log/rank-0001.log").exists()
    before = (kept / "before-last/metrics.jsonl").read_text()
    assert (kept / "last-2/metrics.jsonl").read_text().startswith(before)
    assert "step 4" in log(kept / "last-2")

    # Its figures are those of another program.
    dumps = {name: read_safetensors(kept / name / "dump.safetensors")
             for name in ("start-1", "start-2", "last-1", "last-2")}
    for world, a, b in ((two["same_weights"], "last-1", "last-2"), (two["from_start"], "start-1", "start-2")):
        for key, prefix in (("gradient", "grad."), ("weights", "param.")):
            if key not in world:
                assert (key, world) == ("weights", two["same_weights"])
                continue
            value, name = worst(dumps[a], dumps[b], prefix)
            assert world[key]["tensor"] == name.removeprefix(prefix)
            assert world[key]["deviation"] == pytest.approx(value, rel=1e-9)
            names = [n for n in dumps[a] if n.startswith(prefix)]
            assert world[key]["elements"] == sum(dumps[a][n].size for n in names)
            assert world[key]["elements_different"] == sum(
                (dumps[a][n].view("u4") != dumps[b][n].view("u4")).sum() for n in names) > 0
    curves = {name: losses(kept / name) for name in dumps}
    assert two["from_start"]["loss"]["elements"] == STEPS and two["same_weights"]["loss"]["elements"] == 1
    assert two["from_start"]["loss"]["deviation"] == max(
        abs(curves["start-2"][s] - v) / v for s, v in curves["start-1"].items())
    assert two["same_weights"]["loss"]["deviation"] == pytest.approx(
        deviation(curves["last-1"][STEPS], curves["last-2"][STEPS]), abs=1e-15)
    assert all(one["resumed"][p]["elements_different"] == 0 for p in ("loss", "gradient", "weights"))
    assert one["resumed"]["weights"]["tensor"] is None

    # The other command on the same runs, receipts included where the worker writes them.
    assert bfctl("diff", kept / "start-1", kept / "last-1").returncode == 0
    apart = bfctl("diff", kept / "start-1", kept / "start-2")
    assert apart.returncode == 1 and "/resources/ranks: 1 and 2" in apart.stdout
    assert "first difference: step" in apart.stdout
    assert not left_behind(scratch)


def test_a_tolerance_of_nothing_is_exceeded(tmp_path, scratch):
    run = verify(tmp_path, "--ranks", "2,1", "--steps", 1, "--tolerance", 0)
    assert run.returncode == 1, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "job small, 1 step, compared with 2 ranks: largest deviation and where it is"
    rows = [line.split() for line in lines if line.startswith("    1  ")]
    assert [row[1] for row in rows] == ["same", "from"]
    assert (rows[0][-1], rows[1][-1]) == ("ok", "ABOVE")
    assert "from the start: loss 0, weights 0 (all as one)," in run.stdout
    assert lines[-1] == "ABOVE tolerance"
    assert not left_behind(scratch)


@pytest.mark.parametrize("key, value, reason", [
    ("batchformer.scope", "local", "attends over its own rows only"),
    ("model.norm", "batch", "statistics from each rank's rows"),
])
def test_what_depends_on_the_ranks_by_definition(tmp_path, scratch, key, value, reason):
    args = ["--ranks", "1,2", "--steps", 1, "--set", f"{key}={value}"]
    run = verify(tmp_path, *args, as_json=True)
    assert run.returncode == 1, run.stderr
    doc = json.loads(run.stdout)
    row, = doc["not_world_size_independent"]
    assert (row["pointer"], row["value"]) == ("/" + key.replace(".", "/"), value) and reason in row["reason"]
    same = doc["world_sizes"][1]["same_weights"]
    assert same["verdict"] == doc["world_sizes"][1]["verdict"] == doc["verdict"] == "above"
    assert same["gradient"]["deviation"] > 10 * doc["tolerances"]["same_weights"]["gradient"]["deviation"]


def test_that_is_said_in_words(tmp_path, scratch):
    run = verify(tmp_path, "--ranks", "1,2", "--steps", 1, "--set", "batchformer.scope=local",
                 "--set", "batchformer.enabled=true")
    assert run.returncode == 1
    assert 'not independent of the number of ranks: batchformer.scope is "local": each rank attends' in run.stdout
    off = verify(tmp_path, "--ranks", "1,2", "--steps", 1, "--set", "batchformer.scope=local",
                 "--set", "batchformer.enabled=false")
    assert off.returncode == 0 and "not independent" not in off.stdout, off.stdout + off.stderr


def test_bitwise(tmp_path, scratch):
    spec = make_spec(train__determinism="bitwise")
    if bfctl("validate", write_job(tmp_path, spec, "spec.json")).returncode != 0:
        pytest.skip("train.determinism \"bitwise\" is not available in this version")
    run = verify(tmp_path, "--ranks", "1,2", "--steps", 2, spec=spec, as_json=True)
    assert run.returncode == 0, run.stderr
    doc = json.loads(run.stdout)
    assert doc["determinism"] == "bitwise"
    assert doc["tolerances"]["from_start"]["gradient"] == {"elements_different": 0}
    assert doc["world_sizes"][1]["from_start"]["weights"]["elements_different"] == 0
    assert verify(tmp_path, "--tolerance", "1e-3", spec=spec).returncode == 2


def test_a_job_that_is_too_short(tmp_path, scratch):
    run = verify(tmp_path, "--ranks", "1,2", "--steps", 13)
    assert (run.returncode, run.stdout) == (2, "")
    assert "1 rank, from the start: --dump-step: step 13 found, this run makes steps 1 to 12" in run.stderr
    kept, = left_behind(scratch)
    assert f"kept in {kept}" in run.stderr
    assert f"the end of {kept}/start-1/log/launcher.log" in run.stderr


def test_a_run_that_fails(tmp_path, scratch):
    spec = make_spec()
    spec["data"] = {"format": "idx", "path": str(tmp_path / "no-data")}
    run = verify(tmp_path, "--ranks", "1,2", spec=spec, as_json=True)
    assert run.returncode == 1
    assert "1 rank, from the start" in json.loads(run.stdout)["error"]["message"]
    assert str(tmp_path / "no-data") in run.stderr


@pytest.mark.parametrize("args, part", [
    (["--ranks", "1"], "--ranks: '1' found, at least two world sizes are accepted"),
    (["--ranks", ""], "--ranks: '' found"),
    (["--ranks", "1,1"], "1 is there twice"),
    (["--ranks", "0,2"], "--ranks: '0,2' found"),
    (["--ranks", "1,,2"], "--ranks: '1,,2' found"),
    (["--ranks", "1,2,"], "--ranks: '1,2,' found"),
    (["--ranks", "1;2"], "--ranks: '1;2' found"),
    (["--ranks", "1,2000"], "from 1 to 1024"),
    (["--ranks", "1,99999999999999999999"], "from 1 to 1024"),
    (["--ranks", ",".join(map(str, range(1, 18)))], "at most 16 world sizes"),
    (["--ranks", "1,25"], "with 25 ranks: /resources/ranks: 25 found, more ranks than rows in a batch"),
    (["--steps", "0"], "--steps: '0' found"),
    (["--tolerance", "x"], "--tolerance: 'x' found"),
    (["--tolerance", "-1"], "--tolerance: '-1' found"),
    (["--tolerance", "nan"], "--tolerance: 'nan' found"),
    (["--keep", "."], "--keep: . is not empty"),
    (["--set", "train.epochs=0"], "/train/epochs: 0 found"),
])
def test_usage(tmp_path, scratch, args, part):
    run = verify(tmp_path, *args)
    assert (run.returncode, run.stdout) == (2, "")
    assert part in run.stderr
    assert not left_behind(scratch)


def test_programs_that_are_missing(tmp_path, scratch, monkeypatch):
    (tmp_path / "bin").mkdir()
    run = verify(tmp_path, path=str(tmp_path / "bin"))
    assert run.returncode == 1 and "mpirun was not found in $PATH" in run.stderr
    shutil.copy(bin_dir() / "bfctl", tmp_path / "bin")
    monkeypatch.setenv("BF_BIN_DIR", str(tmp_path / "bin"))
    run = verify(tmp_path)
    assert run.returncode == 1 and "batchformer-worker was not found beside bfctl" in run.stderr


def processes_with(text):
    """Command lines that hold the text, of processes that live."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path, scratch, number):
    job = write_job(tmp_path, make_spec(train__epochs=100000), "spec.json")
    process = bfctl_start("verify", job, "--ranks", "2,1", "--steps", 400000,
                          env={**os.environ, **ENV, "TMPDIR": str(scratch)})
    try:
        # Not only started but training: the ranks then have MPI up and signals in hand.
        wait_for(lambda: any(p.stat().st_size for p in scratch.glob("batchformer-verify-*/start-2/metrics.jsonl")),
                 "the ranks train")
        assert len([p for p in processes_with(str(scratch)) if "mpirun" not in p]) == 2
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err.endswith("bfctl: interrupted\n")
    wait_for(lambda: not processes_with(str(scratch)), "no rank is left")
    assert not left_behind(scratch)
