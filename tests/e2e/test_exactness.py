"""The promise itself, on real images: world sizes 1, 2, 3 and 4, a global batch of 96, 20 steps with dropout 0.5 and
augmentation on. Losses, gradients and weights agree; a run that changes its number of ranks on the way goes on with
the same curve.
"""
import pytest

from workerlib import deviation, losses, read_safetensors, run, worst

LOSS, GRAD, WEIGHT = 1e-4, 1e-4, 1e-3
RANKS = [2, 3, 4]
SPEC = {
    "version": 1, "name": "exactness", "task": "long_tailed", "seed": 5,
    "data": {"format": "idx", "path": "/usr/share/datasets/fashion-mnist",
             "long_tail": {"kind": "exp", "factor": 100, "max_per_class": 600},
             "augment": {"crop_padding": 2, "flip": True}},
    "model": {"arch": "resnet8"},
    "batchformer": {"enabled": True, "dropout": 0.5},
    "loss": {"kind": "balanced_softmax"},
    "optim": {"lr": 0.05, "schedule": {"kind": "cosine", "warmup_epochs": 0.5}},
    "train": {"epochs": 2, "batch_size": 96, "log_every_steps": 1},
    "eval": {"every_epochs": 0},
    "checkpoint": {"every_steps": 10},
}


def train(folder, ranks, name, dump=1, *args):
    where, _ = run(folder, SPEC, "--max-steps", 20, "--dump-step", f"{dump}:{folder}/{name}.st", *args, ranks=ranks,
                   run_dir=name)
    return read_safetensors(folder / f"{name}.st"), where


def weights(where):
    return read_safetensors(where / "checkpoints" / "step-00000020" / "model.safetensors")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Step → (dump, run directory) of one rank without a launcher."""
    folder = tmp_path_factory.mktemp("one")
    return {step: train(folder, None, f"s{step}", step) for step in (1, 5)}


def same_curve(a, b, tolerance):
    a, b = losses(a), losses(b)
    assert set(a) == set(b) == set(range(1, 21))
    assert max(abs(a[s] - b[s]) / abs(a[s]) for s in a) <= tolerance


@pytest.mark.parametrize("ranks", RANKS)
def test_any_number_of_ranks_is_one(tmp_path, one, ranks):
    for step in (1, 5):
        alone, alone_dir = one[step]
        many, many_dir = train(tmp_path, ranks, f"r{ranks}s{step}", step)
        assert worst(alone, many, "grad.") < (GRAD, "")
    same_curve(alone_dir, many_dir, LOSS)
    a, b = weights(alone_dir), weights(many_dir)
    assert max(deviation(a[n], b[n]) for n in a if a[n].dtype.kind == "f") <= WEIGHT


@pytest.mark.parametrize("before, after", [(1, 3), (4, 2), (3, 1)])
def test_ranks_change_on_the_way(tmp_path, one, before, after):
    run(tmp_path, SPEC, "--max-steps", 10, ranks=before)
    where, _ = run(tmp_path, SPEC, "--max-steps", 20, "--resume", ranks=after)
    same_curve(one[1][1], where, LOSS)
    a, b = weights(one[1][1]), weights(where)
    assert max(deviation(a[n], b[n]) for n in a if a[n].dtype.kind == "f") <= WEIGHT


def test_resume_at_home_is_bit_for_bit(tmp_path):
    _, whole = train(tmp_path, 2, "whole")
    run(tmp_path, SPEC, "--max-steps", 10, ranks=2, run_dir="parts")
    parts, _ = run(tmp_path, SPEC, "--max-steps", 20, "--resume", ranks=2, run_dir="parts")
    assert losses(whole) == losses(parts)
    a, b = weights(whole), weights(parts)
    assert all((a[n] == b[n]).all() for n in a)
