"""Bitwise: with train.determinism "bitwise" nothing that a run computes tells on how many ranks it ran. Compared are
whole files (checkpoints, weights, dumps) and every number in metrics.jsonl, the evaluations included.
"""
import copy

import pytest

from test_exactness import REAL
from workerlib import has_bf16, losses, make_spec, metrics, read_safetensors, result, run

STEPS = 12
VARIANTS = {
    "dropout and augmentation": {},
    "balanced softmax, two layers": {"loss": {"kind": "balanced_softmax"}, "batchformer__layers": 2},
    "no module, nesterov, clipping": {"batchformer": {"enabled": False}, "optim__nesterov": True,
                                      "train__max_grad_norm": 0.5},
    "odd shards": {"train__batch_size": 23, "train__micro_shards": 5, "eval__batch_size": 31},
    "module at evaluation": {"batchformer__eval": True, "optim__momentum": 0},
    "adamw, moving average": {"optim": {"kind": "adamw", "lr": 0.003, "ema": 0.8}},
    "lars, clipping": {"optim": {"kind": "lars", "lr": 0.5, "trust_coefficient": 0.02}, "train__max_grad_norm": 1},
}
if has_bf16():
    VARIANTS |= {
        "bf16": {"train__precision": "bf16"},
        "bf16, odd shards, module at evaluation": {"train__precision": "bf16", "train__batch_size": 23,
                                                   "train__micro_shards": 5, "eval__batch_size": 31,
                                                   "batchformer__eval": True, "batchformer__layers": 2},
    }


def spec_of(**changes):
    return make_spec(**{"train__determinism": "bitwise", "train__epochs": 4, "checkpoint__every_steps": 4,
                        "checkpoint__keep": 99, **changes})


def train(folder, spec, ranks, name, *args, steps=STEPS):
    where, _ = run(folder, spec, "--max-steps", steps, "--dump-step", f"{steps}:{folder}/{name}.st", *args, ranks=ranks,
                   run_dir=name)
    return where


def numbers(run_dir):
    """Everything in metrics.jsonl but what a clock says."""
    return [{k: v for k, v in line.items() if k != "time" and not k.endswith(("images_per_s", "_wait_s"))}
            for line in metrics(run_dir)]


def files(folder, name):
    """Every file that holds tensors, by its name."""
    return {str(p.relative_to(folder / name)): p.read_bytes()
            for p in sorted((folder / name).rglob("*.safetensors"))} | {"dump": (folder / f"{name}.st").read_bytes()}


def same_run(folder_a, a, folder_b, b):
    assert numbers(folder_a / a) == numbers(folder_b / b)
    x, y = files(folder_a, a), files(folder_b, b)
    assert x.keys() == y.keys() and len(x) > 2
    assert [n for n in x if x[n] != y[n]] == []


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    for name, changes in VARIANTS.items():
        train(folder, spec_of(**changes), None, name)
    return folder


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bits_do_not_know_the_number_of_ranks(tmp_path, one, variant, ranks):
    train(tmp_path, spec_of(**VARIANTS[variant]), ranks, "many")
    same_run(one, variant, tmp_path, "many")


@pytest.mark.parametrize("ranks", [(1, 3, 2), (4, 1, 3)])
def test_bits_survive_other_ranks_on_the_way(tmp_path, one, ranks):
    """A third of the steps on each number of ranks, stopped in the middle of epochs."""
    name = "dropout and augmentation"
    for i, (r, end) in enumerate(zip(ranks, (5, 9, STEPS))):
        last = ["--dump-step", f"{STEPS}:{tmp_path}/parts.st"] if end == STEPS else []
        run(tmp_path, spec_of(), "--max-steps", end, *(["--resume"] if i else []), *last, ranks=r, run_dir="parts")
    assert losses(one / name) == losses(tmp_path / "parts")
    assert result(one / name)["receipts"] == result(tmp_path / "parts")["receipts"] != []
    final = f"checkpoints/step-{STEPS:08d}"
    for path in (f"{final}/model.safetensors", f"{final}/state.safetensors"):
        assert (one / name / path).read_bytes() == (tmp_path / "parts" / path).read_bytes()
    assert (one / f"{name}.st").read_bytes() == (tmp_path / "parts.st").read_bytes()


def test_whole_run_to_the_result(tmp_path):
    """To the end: test set, weights for inference."""
    spec = spec_of(train__epochs=2)
    one, _ = run(tmp_path, spec, ranks=None, run_dir="one")
    many, _ = run(tmp_path, spec, ranks=3, run_dir="many")
    assert (one / "model.safetensors").read_bytes() == (many / "model.safetensors").read_bytes()
    assert result(one)["eval"] == result(many)["eval"] and result(one)["final"] == result(many)["final"]


@pytest.mark.parametrize("ranks", [2, 3])
def test_full_size_on_real_images(tmp_path, ranks):
    spec = copy.deepcopy(REAL)
    spec["train"]["determinism"] = "bitwise"
    train(tmp_path, spec, 1, "one", steps=4)
    train(tmp_path, spec, ranks, "many", steps=4)
    same_run(tmp_path, "one", tmp_path, "many")


def test_the_comparison_can_fail(tmp_path, one):
    """The default mode, and another number of micro-shards, round otherwise: what is compared above sees it."""
    name = "dropout and augmentation"
    for changes in ({"train__determinism": "default"}, {"train__micro_shards": 8}):
        train(tmp_path, spec_of(**changes), None, "other")
        a, b = read_safetensors(one / f"{name}.st"), read_safetensors(tmp_path / "other.st")
        assert any((a[n] != b[n]).any() for n in a)
        for p in (tmp_path / "other", tmp_path / "other.st"):
            p.rename(tmp_path / f"{p.name}.{len(changes)}.{sorted(changes)[0]}")


def test_more_ranks_than_shards(tmp_path):
    _, p = run(tmp_path, spec_of(train__micro_shards=2), ranks=3, expect=2)
    assert "3 ranks for 2 micro-shards (/train/micro_shards): at most 2 ranks are accepted" in p.stderr
