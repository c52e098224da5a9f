"""Stopping anywhere and going on: the same bits at the same number of ranks, the same curve at another."""
import gzip
import json
import os
import shutil
import signal

import numpy as np
import pytest

from workerlib import (checkpoints, idx_spec, log, losses, make_spec, metrics, read_safetensors, result, run, start, wait_for,
                       worst, write_idx, write_safetensors)

RANKS = 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 12 steps without a break."""
    where, _ = run(tmp_path_factory.mktemp("whole"), make_spec(), ranks=RANKS)
    return where


def assert_same_run(where, whole):
    """Bit for bit, and every line once."""
    assert losses(where) == losses(whole)
    steps = [m["step"] for m in metrics(where, "step")]
    assert steps == sorted(set(steps))
    for kind, keys in (("epoch", ["step", "epoch_loss"]), ("eval", ["step", "split", "val_top1", "test_top1"])):
        a, b = ([[m.get(k) for k in keys] for m in metrics(w, kind)] for w in (where, whole))
        assert a == b
    assert (where / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    last = "checkpoints/step-00000012/"
    for name in ("model.safetensors", "state.safetensors"):
        assert (where / last / name).read_bytes() == (whole / last / name).read_bytes()
    a, b = result(where), result(whole)
    assert a["status"] == "succeeded" and a["best"] == b["best"] and a["eval"] == b["eval"]
    assert a["validation"] == b["validation"]


@pytest.mark.sanitize
@pytest.mark.parametrize("at", [2, 4, 7, 12])
def test_bit_for_bit(tmp_path, whole, at):
    """In the middle of an epoch, between epochs, between checkpoints, and at the very end."""
    where, _ = run(tmp_path, make_spec(), "--max-steps", at, ranks=RANKS)
    r = result(where)
    if at < 12:
        assert r["status"] == "stopped" and r["steps"] == at and "max-steps" in r["reason"]
        assert checkpoints(where)[-1] == at and not (where / "model.safetensors").exists()
    run(tmp_path, make_spec(), "--resume", ranks=RANKS)
    assert_same_run(where, whole)


def test_twice(tmp_path, whole):
    where, _ = run(tmp_path, make_spec(), "--max-steps", 3, ranks=RANKS)
    run(tmp_path, make_spec(), "--max-steps", 8, "--resume", ranks=RANKS)
    run(tmp_path, make_spec(), "--resume", ranks=RANKS)
    assert_same_run(where, whole)


def test_resume_of_nothing_starts(tmp_path, whole):
    where, _ = run(tmp_path, make_spec(), "--resume", ranks=RANKS)
    assert_same_run(where, whole)


@pytest.mark.parametrize("ranks", [None, 1, 3])
def test_other_number_of_ranks(tmp_path, whole, ranks):
    where, _ = run(tmp_path, make_spec(), "--max-steps", 6, ranks=RANKS)
    run(tmp_path, make_spec(), "--resume", ranks=ranks)
    a, b = losses(where), losses(whole)
    assert a.keys() == b.keys()
    assert all(a[s] == b[s] for s in range(1, 7))
    assert all(abs(a[s] - b[s]) <= 1e-3 * abs(b[s]) for s in a)
    assert worst(read_safetensors(whole / "model.safetensors"), read_safetensors(where / "model.safetensors")) < (
        1e-3, "")


@pytest.mark.sanitize
@pytest.mark.parametrize("point", ["checkpoint.mid_write", "checkpoint.before_rename"])
def test_killed_while_writing_a_checkpoint(tmp_path, whole, point):
    """In the second checkpoint; the first is whole and the run goes on from it to the same end."""
    where, _ = run(tmp_path, make_spec(), ranks=RANKS, env={"BATCHFORMER_FAULT": f"{point}:kill@2"}, expect=None)
    assert checkpoints(where) == [5]
    assert [p for p in (where / "checkpoints").iterdir() if p.name.startswith(".tmp-")]
    run(tmp_path, make_spec(), "--resume", ranks=RANKS)
    assert_same_run(where, whole)
    assert not [p for p in (where / "checkpoints").iterdir() if p.name.startswith(".tmp-")]


@pytest.mark.parametrize("ranks", [None, 2])
def test_checkpoint_that_cannot_be_written(tmp_path, ranks):
    where, p = run(tmp_path, make_spec(), ranks=ranks, env={"BATCHFORMER_FAULT": "checkpoint.before_rename:error@2"},
                   expect=1)
    r = result(where)
    assert r["status"] == "failed" and "checkpoint of step 10" in r["reason"]
    assert p.stderr.count("ERROR") == 1 and checkpoints(where) == [5]


def test_resumed_while_it_still_runs(tmp_path):
    """As ranks do for some seconds that have lost their mpirun: who resumes waits for their end, then goes on."""
    endless = make_spec(train__epochs=100000, eval__every_epochs=0)
    where, first = start(tmp_path, endless)
    wait_for(lambda: checkpoints(where), "a checkpoint")
    os.kill(first.pid, signal.SIGSTOP)
    try:
        _, p = run(tmp_path, endless, expect=1)
        assert "already holds a run" in p.stderr
        _, second = start(tmp_path, endless, "--resume", "--max-steps", 1000000)
        try:
            line = second.stderr.readline()
            assert f"in use by process {first.pid}: waiting" in line, line + second.stderr.read()
            made = losses(where)
            first.kill()
            wait_for(lambda: max(losses(where)) > max(made) + 20, "the second goes on")
        finally:
            second.kill()
            second.communicate()
    finally:
        first.kill()
        first.communicate()
    steps = [m["step"] for m in metrics(where, "step")]
    assert steps == list(range(1, len(steps) + 1))
    assert "going on from the checkpoint" in log(where)


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "manifest.json"])
def test_flipped_byte(tmp_path, whole, name):
    where, _ = run(tmp_path, make_spec(), "--max-steps", 11, ranks=RANKS)
    assert checkpoints(where) == [10, 11]
    damaged = where / "checkpoints/step-00000011" / name
    flip(damaged, len(damaged.read_bytes()) // 2)
    run(tmp_path, make_spec(), "--resume", ranks=RANKS)
    assert_same_run(where, whole)
    text = log(where)
    assert "checkpoint of step 11 is damaged" in text and name in text and "going on from the checkpoint of step 10" in text


def test_all_damaged(tmp_path):
    where, _ = run(tmp_path, make_spec(), "--max-steps", 11)
    for step in checkpoints(where):
        flip(where / f"checkpoints/step-{step:08d}/model.safetensors", -1)
    _, p = run(tmp_path, make_spec(), "--resume", ranks=2, expect=1)
    assert "no checkpoint is whole" in p.stderr and "model.safetensors" in p.stderr and "checksum" in p.stderr


def test_changed_data(tmp_path):
    """The same spec, other bytes behind the path."""
    data = tmp_path / "data"
    write_idx(data)
    run(tmp_path, idx_spec(data), "--max-steps", 1)
    images = data / "train-images-idx3-ubyte.gz"
    raw = bytearray(gzip.decompress(images.read_bytes()))
    raw[-1] ^= 1
    images.write_bytes(gzip.compress(bytes(raw)))
    _, p = run(tmp_path, idx_spec(data), "--resume", expect=2)
    assert "the data have checksum" in p.stderr


def test_changed_spec(tmp_path):
    """What shapes the function is bound; a spec that does not fit leaves the run as it is."""
    where, _ = run(tmp_path, make_spec(), "--max-steps", 4)
    before = {n: (where / n).read_bytes() for n in ("job.json", "result.json", "metrics.jsonl")}
    for changes, pointer in (({"seed": 4}, "/seed"), ({"optim__lr": 0.2}, "/optim/lr"),
                             ({"model__width": 0.5}, "/model/width"), ({"batchformer__layers": 2}, "/batchformer/layers"),
                             ({"train__batch_size": 12}, "/train/batch_size")):
        _, p = run(tmp_path, make_spec(**changes), "--resume", expect=2)
        assert pointer in p.stderr, p.stderr
        assert before == {n: (where / n).read_bytes() for n in before}
    run(tmp_path, make_spec(train__epochs=4, name="longer", resources={"ranks": 2, "max_ranks": 2}), "--resume", ranks=2)
    assert result(where)["steps"] == 16 and list(losses(where)) == list(range(1, 17))
    assert json.loads((where / "job.json").read_text())["train"]["epochs"] == 4
    _, p = run(tmp_path, make_spec(train__epochs=2), "--resume", expect=2)
    assert "step 16" in p.stderr and "step 8" in p.stderr


def test_norm_per_rank_is_evaluated_with_one_set_of_statistics(tmp_path):
    """Stopping and going on changes nothing, although only rank 0's running statistics are saved."""
    spec = make_spec(model__norm="batch")
    whole, _ = run(tmp_path, spec, ranks=3, run_dir="whole")
    where, _ = run(tmp_path, spec, "--max-steps", 6, ranks=3)
    run(tmp_path, spec, "--resume", ranks=3)
    assert_same_run(where, whole)


def pid_of(where, rank):
    return int(log(where, rank).split("pid ")[1].split()[0])


@pytest.mark.sanitize
@pytest.mark.parametrize("number, ranks, rank", [(signal.SIGTERM, None, 0), (signal.SIGINT, None, 0),
                                                 (signal.SIGTERM, 3, 2), (signal.SIGUSR1, 2, 0)])
def test_signal_stops_with_a_checkpoint(tmp_path, number, ranks, rank):
    """To one rank; all leave at the same step, and the run can go on."""
    spec = make_spec(train__epochs=100000, checkpoint__every_steps=0, eval__every_epochs=0)
    where, p = start(tmp_path, spec, ranks=ranks)
    try:
        wait_for(lambda: metrics(where, "step"), "a first step")
        os.kill(pid_of(where, rank), number)
        _, stderr = p.communicate(timeout=60)
    finally:
        p.kill()
    r = result(where)
    assert p.returncode == 130, stderr
    assert r["status"] == "stopped" and ("another rank" if rank else signal.Signals(number).name) in r["reason"]
    assert checkpoints(where) == [r["steps"]] and max(losses(where)) == r["steps"]
    run(tmp_path, spec, "--resume", "--max-steps", r["steps"] + 2, ranks=ranks)
    assert list(losses(where)) == list(range(1, r["steps"] + 3))


def test_usr1_through_mpirun(tmp_path):
    """mpirun forwards SIGUSR1 to all ranks."""
    where, p = start(tmp_path, make_spec(train__epochs=100000, checkpoint__every_steps=0), ranks=2)
    try:
        wait_for(lambda: metrics(where, "step"), "a first step")
        p.send_signal(signal.SIGUSR1)
        p.communicate(timeout=60)
    finally:
        p.kill()
    assert p.returncode == 130 and result(where)["status"] == "stopped"


def test_usr2_writes_a_checkpoint_and_goes_on(tmp_path):
    where, p = start(tmp_path, make_spec(train__epochs=100000, checkpoint__every_steps=0), ranks=2)
    try:
        wait_for(lambda: metrics(where, "step"), "a first step")
        os.kill(pid_of(where, 1), signal.SIGUSR2)
        step = wait_for(lambda: checkpoints(where), "a checkpoint")[0]
        wait_for(lambda: max(losses(where)) > step, "a step beyond the checkpoint")
        assert p.poll() is None
    finally:
        p.terminate()
        p.communicate(timeout=60)


def test_init_weights(tmp_path, whole):
    """The inference weights of a run start another: training goes on from them, the module from scratch."""
    model = whole / "model.safetensors"
    where, _ = run(tmp_path, make_spec(init={"weights": str(model)}, optim__lr=1e-12, train__epochs=1,
                                       optim__weight_decay=0), ranks=2)
    before, after = read_safetensors(model), read_safetensors(where / "model.safetensors")
    trained = {n: a for n, a in before.items() if "running_" not in n and "num_batches" not in n}
    assert all(np.allclose(after[n], a, rtol=1e-5, atol=1e-8) for n, a in trained.items())
    assert "batchformer.self_attn.in_proj_weight is not in the file" in log(where)


def test_init_weights_of_other_classes(tmp_path, whole):
    spec = make_spec(data__synthetic__classes=5, init={"weights": str(tmp_path / "w.safetensors")}, train__epochs=1)
    shutil.copy(whole / "model.safetensors", tmp_path / "w.safetensors")
    _, p = run(tmp_path, spec, ranks=2, expect=1)
    assert "linear.weight" in p.stderr and "(4, 16)" in p.stderr and "(5, 16)" in p.stderr and "accepted" in p.stderr
    tensors = read_safetensors(tmp_path / "w.safetensors")
    write_safetensors(tmp_path / "w.safetensors", {n: a for n, a in tensors.items() if not n.startswith("linear.")})
    where, _ = run(tmp_path, spec, run_dir="dropped")
    assert "linear.weight is not in the file" in log(where)


def test_init_weights_missing_tensor(tmp_path, whole):
    tensors = read_safetensors(whole / "model.safetensors")
    del tensors["layer1.0.bn2.running_var"]
    write_safetensors(tmp_path / "w.safetensors", tensors)
    _, p = run(tmp_path, make_spec(init={"weights": str(tmp_path / "w.safetensors")}), expect=1)
    assert "layer1.0.bn2.running_var" in p.stderr and "missing" in p.stderr
