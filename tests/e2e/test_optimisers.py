"""Optimisers other than SGD and the moving average of weights, as a run shows them: what is in checkpoints, going on from
them, what is evaluated and exported. tests/ops/test_optim_golden.c has the arithmetic, test_bitwise.py the ranks."""
import json

import numpy as np
import pytest

from clilib import bfctl
from workerlib import (ENV, MPI_ENV, checkpoints, losses, make_spec, metrics, read_safetensors, result, run, worst,
                       write_safetensors)

DECAY = 0.75
OPTIMISERS = {
    "adam": {"kind": "adam", "lr": 0.003, "weight_decay": 1e-3},
    "adamw": {"kind": "adamw", "lr": 0.003, "ema": DECAY},
    "lars": {"kind": "lars", "lr": 0.5, "trust_coefficient": 0.02, "nesterov": True},
    "sgd": {"kind": "sgd", "lr": 0.05, "ema": DECAY},
}
STATES = {"adam": {"exp_avg", "exp_avg_sq"}, "adamw": {"exp_avg", "exp_avg_sq", "ema"}, "lars": {"momentum"},
          "sgd": {"momentum", "ema"}}


def spec_of(name, **changes):
    return make_spec(optim={**OPTIMISERS[name], "schedule": {"kind": "cosine", "warmup_epochs": 0.5}}, **changes)


def held(run_dir, step, name="state"):
    return read_safetensors(run_dir / f"checkpoints/step-{step:08d}/{name}.safetensors")


def validations(run_dir):
    return [(m["step"], m["val_top1"], m["val_loss"]) for m in metrics(run_dir, "eval") if "val_loss" in m]


@pytest.mark.sanitize
@pytest.mark.parametrize("name", OPTIMISERS)
def test_going_on_is_bit_for_bit(tmp_path, name):
    """On the same ranks, from within an epoch; evaluations and exported weights, too."""
    spec = spec_of(name)
    whole, _ = run(tmp_path, spec, ranks=2, run_dir="whole")
    parts, _ = run(tmp_path, spec, "--max-steps", 7, ranks=2, run_dir="parts")
    run(tmp_path, spec, "--resume", ranks=2, run_dir="parts")
    assert losses(whole) == losses(parts) and validations(whole) == validations(parts) != []
    for path in ("model.safetensors", "checkpoints/step-00000012/model.safetensors",
                 "checkpoints/step-00000012/state.safetensors"):
        assert (whole / path).read_bytes() == (parts / path).read_bytes(), path
    a, b = result(whole), result(parts)
    assert a["receipts"] == b["receipts"] != [] and a["eval"] == b["eval"] and a["best"] == b["best"]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_checkpoint_holds_each_state_of_each_weight(tmp_path, name):
    where, _ = run(tmp_path, spec_of(name), "--max-steps", 1)
    state, model = held(where, 1), held(where, 1, "model")
    weights = {n for n in model if not n.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert set(state) == {f"{s}.{n}" for s in STATES[name] for n in weights}
    assert all(state[f"{s}.{n}"].shape == model[n].shape for s in STATES[name] for n in weights)
    p = bfctl("--json", "estimate", tmp_path / "job.json", "--ranks", 1, "--machine", "cpu-core")
    est, = json.loads(p.stdout)["estimates"]
    assert est["memory_per_rank_bytes"]["optimizer"] == sum(v.nbytes for v in state.values())


def test_another_optimiser_is_refused(tmp_path):
    where, _ = run(tmp_path, spec_of("adamw"), "--max-steps", 3)
    before = {n: (where / n).read_bytes() for n in ("job.json", "result.json")}
    other_ema = {**spec_of("adamw"), "optim": {**spec_of("adamw")["optim"], "ema": None}}
    for spec, words in ((spec_of("sgd"), '/optim/kind is "adamw" in the checkpoint and "sgd" in this job'),
                        (spec_of("adam"), '/optim/kind is "adamw" in the checkpoint and "adam" in this job'),
                        (other_ema, "/optim/ema is 0.75 in the checkpoint and null in this job")):
        _, p = run(tmp_path, spec, "--resume", expect=2)
        assert words in p.stderr, p.stderr
        assert before == {n: (where / n).read_bytes() for n in before}


def test_the_average_follows_the_weights(tmp_path):
    """From those that the run begins with; a rate that fp32 cannot feel shows them."""
    spec = spec_of("sgd", checkpoint__every_steps=1, checkpoint__keep=99)
    where, _ = run(tmp_path, spec, "--max-steps", 5)
    still, _ = run(tmp_path, {**spec, "optim": {**spec["optim"], "lr": 1e-30}}, "--max-steps", 1, run_dir="still")
    average = {n: v.astype(np.float64) for n, v in held(still, 1, "model").items()}
    for step in range(1, 6):
        state, model = held(where, step), held(where, step, "model")
        names = [n[4:] for n in state if n.startswith("ema.")]
        average = {n: DECAY * average[n] + (1 - DECAY) * model[n] for n in names}
        assert worst(average, {n: state[f"ema.{n}"] for n in names}) < (1e-6, ""), step
        assert worst(average, model, "linear.weight") > (1e-4, "")


def test_the_average_is_evaluated_and_exported(tmp_path):
    """Training is that of the same job without it; batch norm's running statistics are those of training."""
    plain, _ = run(tmp_path, spec_of("lars"), run_dir="plain")
    lars = OPTIMISERS["lars"]
    slow, near = (make_spec(optim={**lars, "ema": d, "schedule": spec_of("lars")["optim"]["schedule"]})
                  for d in (0.9, 1e-7))
    slow, _ = run(tmp_path, slow, run_dir="slow")
    near, _ = run(tmp_path, near, run_dir="near")
    assert losses(plain) == losses(slow) == losses(near)
    hashes = [{(r["step"], r["weights"], r["buffers"]) for r in result(w)["receipts"]} for w in (plain, slow, near)]
    assert hashes[0] == hashes[1] == hashes[2]
    a, b, c = (validations(w) for w in (plain, slow, near))
    assert all(abs(x[2] - z[2]) < 1e-4 * x[2] for x, z in zip(a, c)) and len(a) == len(c) == 3
    assert all(abs(x[2] - y[2]) > 1e-3 * x[2] for x, y in zip(a, b))
    assert result(slow)["eval"]["weights"] == "ema" and "weights" not in result(plain)["eval"]
    model, state, last = read_safetensors(slow / "model.safetensors"), held(slow, 12), held(slow, 12, "model")
    assert model.keys() == read_safetensors(plain / "model.safetensors").keys()
    for n, v in model.items():
        want = state.get(f"ema.{n}", last[n])
        assert v.tobytes() == want.tobytes(), n
    assert any((model[n] != last[n]).any() for n in model)


def test_receipts_cover_all_that_is_kept(tmp_path):
    """The weights are the same, what is kept of them is not."""
    with_ema, _ = run(tmp_path, spec_of("adamw"), "--max-steps", 2, run_dir="with")
    spec = spec_of("adamw")
    del spec["optim"]["ema"]
    without, _ = run(tmp_path, spec, "--max-steps", 2, run_dir="without")
    a, b = result(with_ema)["receipts"], result(without)["receipts"]
    assert [r["weights"] for r in a] == [r["weights"] for r in b]
    assert all(x["optimizer"] != y["optimizer"] for x, y in zip(a, b)) and len(a) == len(b) == 2
    p = bfctl("diff", with_ema, without)
    assert p.returncode == 1 and "/optim/ema: 0.75 and null" in p.stdout and "optimizer state" in p.stdout


def test_no_checkpoint_of_what_an_update_overflowed(tmp_path):
    """Adam's mean of squares: a huge bias of the keys leaves loss and gradient finite, but decay makes a gradient of it
    whose square is not; the weights stay as they are."""
    where, _ = run(tmp_path, spec_of("sgd"), "--max-steps", 1, run_dir="first")
    tensors = {n: a.copy() for n, a in held(where, 1, "model").items() if a.dtype == np.float32}
    width = tensors["batchformer.self_attn.out_proj.bias"].size
    tensors["batchformer.self_attn.in_proj_bias"][width:2 * width] = 1e35
    write_safetensors(tmp_path / "w.safetensors", tensors)
    spec = spec_of("adam", init={"weights": str(tmp_path / "w.safetensors")}, batchformer__weight_decay=1,
                   checkpoint__every_steps=1)
    where, _ = run(tmp_path, spec, ranks=2, expect=1)
    assert result(where)["reason"].startswith("step 1: the update left values of the optimiser that are not finite")
    assert checkpoints(where) == []


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_any_number_of_ranks_is_one(tmp_path, name):
    one, _ = run(tmp_path, spec_of(name), run_dir="one")
    three, _ = run(tmp_path, spec_of(name), ranks=3, run_dir="three")
    a, b = losses(one), losses(three)
    assert a.keys() == b.keys() and all(abs(a[s] - b[s]) <= 1e-4 * a[s] for s in a)


def test_verify_takes_them(tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec_of("adamw")))
    p = bfctl("verify", path, "--ranks", "1,2", "--steps", "4", "--set", "train.determinism=bitwise", env={**ENV, **MPI_ENV})
    assert p.returncode == 0 and "all within tolerance" in p.stdout, p.stdout + p.stderr
