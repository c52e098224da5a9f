"""A step that is not finite: all ranks end together, and the message names step, tensor and rank."""
import json
import re

import numpy as np
import pytest

from workerlib import checkpoints, idx_spec, make_spec, read_safetensors, result, run, write_idx, write_safetensors

DIVERGES = dict(optim__lr=1e6, optim__schedule={"kind": "constant"}, train__epochs=50)
FORM = re.compile(r"step (\d+): (.+?),? is not finite on rank (\d+)(?: and (\d+) more)? \(element (\d+) of (\d+) is "
                  r"(-?inf|nan)\); the loss is \S+; (.+)")


def reason_of(where, p):
    r = result(where)
    assert r["status"] == "failed" and r["reason"] in p.stderr and p.stderr.count("ERROR") == 1
    m = FORM.fullmatch(r["reason"])
    assert m, r["reason"]
    assert int(m[1]) == r["steps"] + 1
    return m


@pytest.mark.sanitize
@pytest.mark.parametrize("ranks", [None, 2])
def test_divergence_names_step_tensor_and_rank(tmp_path, ranks):
    where, p = run(tmp_path, make_spec(**DIVERGES), ranks=ranks, expect=1)
    m = reason_of(where, p)
    model = json.loads((where / "job.json").read_text())["model"]["arch"]
    assert model == "resnet8" and re.search(r"(conv|bn|layer|linear)", m[2]), m[2]
    assert m[3] == "0" and m[8] == "lower optim.lr or set train.max_grad_norm"
    assert int(m[1]) > 1 and int(m[5]) < int(m[6])


def test_nothing_is_saved_from_the_second_try(tmp_path):
    """The diagnosis updates running statistics once more: the last checkpoint is the one of before it, and resuming
    fails at the same step with the same words."""
    spec = make_spec(**DIVERGES, checkpoint__every_steps=1)
    where, p = run(tmp_path, spec, ranks=2, expect=1)
    steps = result(where)["steps"]
    assert checkpoints(where)[-1] == steps
    path = where / f"checkpoints/step-{steps:08d}/model.safetensors"
    first, before = result(where)["reason"], path.read_bytes()
    _, p = run(tmp_path, spec, "--resume", ranks=2, expect=1)
    assert result(where)["reason"] == first and path.read_bytes() == before


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    where, _ = run(tmp_path_factory.mktemp("weights"), make_spec(train__epochs=1))
    return read_safetensors(where / "model.safetensors")


@pytest.mark.parametrize("ranks", [None, 2])
def test_nan_in_init_weights(tmp_path, weights, ranks):
    tensors = {n: a.copy() for n, a in weights.items()}
    tensors["layer2.0.conv2.weight"].flat[77] = np.nan
    write_safetensors(tmp_path / "w.safetensors", tensors)
    where, p = run(tmp_path, make_spec(init={"weights": str(tmp_path / "w.safetensors")}), ranks=ranks, expect=1)
    m = reason_of(where, p)
    assert m[1] == "1" and m[2] == "parameter layer2.0.conv2.weight, before the step"
    assert int(m[5]) == 77 and int(m[6]) == tensors["layer2.0.conv2.weight"].size and m[7] == "nan"
    assert m[3] == "0" and m[4] == (None if ranks is None else "1") and m[8] == "look at init.weights"
    assert checkpoints(where) == []


def test_one_ranks_rows_blow_up(tmp_path):
    """All images are black but one, and one filter is so large that only that image is too much for fp32. The sums of
    batch norm carry it to every rank at once; the message must name the rank that has the image."""
    write_idx(tmp_path / "data", images=lambda part, n: bright(n) if part == "train" else np.zeros((n, 12, 12), np.uint8))
    spec = idx_spec(tmp_path / "data")
    spec["data"].update(holdout_per_class=0, normalize=False)
    spec["train"].update(batch_size=80, epochs=2)
    run(tmp_path, spec, "--max-steps", 1, run_dir="plain")
    tensors = read_safetensors(tmp_path / "plain/checkpoints/step-00000001/model.safetensors")
    tensors = {n: a.copy() for n, a in tensors.items() if not n.startswith("batchformer.")}
    tensors["conv1.weight"][:] = 3e38
    write_safetensors(tmp_path / "w.safetensors", tensors)
    spec["init"] = {"weights": str(tmp_path / "w.safetensors")}
    found = {}
    for ranks in (None, 2, 3):
        where, p = run(tmp_path, spec, ranks=ranks, run_dir=f"run{ranks}", expect=1)
        found[ranks] = reason_of(where, p)
    for m in found.values():
        assert m[1] == "1" and m[2] == "the output of conv1" and m[4] is None and m[7] == "inf"
    row = int(found[None][5]) * 80 // int(found[None][6])
    for ranks in (2, 3):
        m = found[ranks]
        firsts = [80 * r // ranks for r in range(ranks + 1)]
        rank = int(m[3])
        assert firsts[rank] <= row < firsts[rank + 1]
        mine = firsts[rank + 1] - firsts[rank]
        assert int(m[6]) == int(found[None][6]) // 80 * mine and int(m[5]) * mine // int(m[6]) == row - firsts[rank]


def bright(n):
    images = np.zeros((n, 12, 12), np.uint8)
    images[n // 3] = 255
    return images


def test_no_checkpoint_of_weights_that_an_update_overflowed(tmp_path):
    """A bias of the keys shifts all scores of a query alike: a huge one leaves loss and gradient finite, and decay at
    a huge rate makes it overflow in the update."""
    changes = dict(checkpoint__every_steps=1, batchformer__weight_decay=1, batchformer__lr_scale=1e4, optim__lr=10,
                   optim__schedule={"kind": "constant"})
    where, _ = run(tmp_path, make_spec(train__epochs=1), run_dir="first")
    path = where / "checkpoints/step-00000004/model.safetensors"
    tensors = {n: a.copy() for n, a in read_safetensors(path).items() if a.dtype == np.float32}
    width = tensors["batchformer.self_attn.out_proj.bias"].size
    tensors["batchformer.self_attn.in_proj_bias"][width:2 * width] = 1e35
    write_safetensors(tmp_path / "w.safetensors", tensors)
    spec = make_spec(**changes, init={"weights": str(tmp_path / "w.safetensors")})
    where, p = run(tmp_path, spec, ranks=2, expect=1)
    assert result(where)["reason"].startswith("step 1: the update left weights that are not finite"), result(where)
    assert checkpoints(where) == []
