"""bfctl diff: run directories written by hand, each with one difference in a known place, and what it says of them."""
import json

import pytest

from clilib import FakeCoordinator, RpcError, bfctl

SPEC = {"version": 1, "name": "one", "seed": 0, "optim": {"lr": 0.1, "milestones": [1, 2]}, "train": {"epochs": 3},
        "resources": {"ranks": 1}}
KEYS = ("order", "weights", "buffers", "optimizer")


def receipt(step, **changes):
    """A receipt whose values are functions of the step; changes replace some."""
    hashes = {k: f"{step:08x}" + k.encode().hex().ljust(24, "0")[:24] for k in KEYS}
    return {"step": step, "loss": "%.17g" % (1 / step), **hashes, **changes}


def loss_line(step, loss=None):
    return {"kind": "step", "step": step, "epoch": 0, "loss": 1 / step if loss is None else loss, "lr": 0.1}


def write_run(folder, receipts=None, losses=None, spec=SPEC, manifest=False):
    """receipts and losses None: no such file. manifest: the receipts are in checkpoints, the result has none."""
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(spec))
    if receipts is not None and manifest:
        for step, known in ((8, receipts[:1]), (100, receipts)):
            (folder / f"checkpoints/step-{step:08d}").mkdir(parents=True)
            (folder / f"checkpoints/step-{step:08d}/manifest.json").write_text(json.dumps({"receipts": known}))
        (folder / "result.json").write_text(json.dumps({"status": "stopped"}))
    elif receipts is not None:
        (folder / "result.json").write_text(json.dumps({"status": "succeeded", "receipts": receipts}))
    if losses is not None:
        lines = [{"kind": "epoch", "step": 1, "epoch_loss": 2}, *losses, {"kind": "eval", "step": 9, "split": "test"}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def receipts_to(last, **at):
    """Receipts at 32, 64, …; at["s64"] are changes at step 64."""
    return [receipt(s, **at.get(f"s{s}", {})) for s in range(32, last + 1, 32)]


def losses_to(last, **at):
    return [loss_line(s, at.get(f"s{s}")) for s in range(1, last + 1)]


def diff(a, b, code):
    """(text, document)"""
    text, doc = bfctl("diff", a, b), bfctl("--json", "diff", a, b)
    assert text.returncode == doc.returncode == code, text.stdout + text.stderr
    assert doc.stdout.count("\n") == 1
    return text.stdout, json.loads(doc.stdout)


def fails(a, b, *parts):
    run = bfctl("diff", a, b)
    assert (run.returncode, run.stdout) == (1, "")
    for part in parts:
        assert str(part) in run.stderr
    assert "message" in json.loads(bfctl("--json", "diff", a, b).stdout)["error"]


def test_no_difference(tmp_path):
    a = write_run(tmp_path / "a", receipts_to(128), losses_to(128))
    b = write_run(tmp_path / "b", receipts_to(128), losses_to(100))
    text, doc = diff(a, b, 0)
    assert text.startswith("no difference: 4 receipts up to step 128 and 100 logged losses up to step 100 agree\n")
    assert (doc["same"], doc["first_difference"], doc["spec"], doc["spec_aside"]) == (True, None, [], [])
    assert doc["runs"][0]["receipts_from"] == str(a / "result.json")


def test_order_differs(tmp_path):
    a = write_run(tmp_path / "a", receipts_to(160), losses_to(100))
    b = write_run(tmp_path / "b", receipts_to(160, s128={"order": "f" * 32}, s160={"weights": "0" * 32}), losses_to(100))
    text, doc = diff(a, b, 1)
    assert text.splitlines() == ["first difference: step 128: data order",
                                 "receipts agree up to step 96; logged losses agree up to step 100"]
    assert doc["first_difference"] == {"step": 128, "source": "receipts", "in": ["order"]}
    assert doc["receipts"]["differ"] == {"order": {"a": receipt(128)["order"], "b": "f" * 32}}
    assert not doc["same"]


@pytest.mark.parametrize("key, name", [("order", "data order"), ("loss", "loss"), ("weights", "weights"),
                                       ("buffers", "buffers"), ("optimizer", "optimizer state")])
def test_each_part_of_a_receipt_counts(tmp_path, key, name):
    a = write_run(tmp_path / "a", receipts_to(64))
    b = write_run(tmp_path / "b", receipts_to(64, s64={key: "7" * 32}))
    text, doc = diff(a, b, 1)
    assert text.splitlines()[0] == f"first difference: step 64: {name}"
    assert doc["first_difference"]["in"] == [key]


def test_a_loss_narrows_it_down(tmp_path):
    other = {"weights": "1" * 32, "optimizer": "2" * 32}
    value = 1 / 37 * (1 + 2 ** -52)
    a = write_run(tmp_path / "a", receipts_to(96), losses_to(96))
    b = write_run(tmp_path / "b", receipts_to(96, s64=other, s96=other), losses_to(96, s37=value, s50=9.0))
    text, doc = diff(a, b, 1)
    assert text.splitlines() == [
        f"first difference: step 37: loss {1 / 37:.17g} and {value:.17g}",
        "logged losses agree up to step 36; receipts agree up to step 32; at step 64 they differ in weights, "
        "optimizer state"]
    assert doc["first_difference"] == {"step": 37, "source": "losses", "in": ["loss"]}
    assert doc["losses"]["differ"] == {"a": 1 / 37, "b": value}
    assert doc["receipts"]["first_difference"] == 64


def test_receipts_of_the_newest_checkpoint(tmp_path):
    a = write_run(tmp_path / "a", receipts_to(64), manifest=True)
    b = write_run(tmp_path / "b", receipts_to(96))
    text, doc = diff(a, b, 0)
    assert text.splitlines()[0] == "no difference: 2 receipts up to step 64 agree; no logged losses are common"
    assert f"{a} has steps up to 64, {b} up to 96" in text
    assert doc["runs"][0]["receipts_from"] == str(a / "checkpoints/step-00000100/manifest.json")


def test_runs_of_different_length_have_common_steps(tmp_path):
    a = write_run(tmp_path / "a", [receipt(s) for s in (8, 16, 24, 32)])
    b = write_run(tmp_path / "b", [receipt(s) for s in (16, 32, 48)])
    text, doc = diff(a, b, 0)
    assert doc["receipts"]["compared"] == 2 and doc["receipts"]["last_compared"] == 32
    c = write_run(tmp_path / "c", [receipt(16, buffers="0" * 32), receipt(32)])
    assert diff(a, c, 1)[1]["first_difference"]["step"] == 16


def test_losses_alone(tmp_path):
    a = write_run(tmp_path / "a", losses=losses_to(20))
    b = write_run(tmp_path / "b", losses=losses_to(20))
    assert diff(a, b, 0)[0] == "no difference: 20 logged losses up to step 20 agree; no receipts are common\n"
    c = write_run(tmp_path / "c", losses=losses_to(20, s1=3.0))
    assert "the first common ones differ" in diff(a, c, 1)[0]


def test_no_common_step(tmp_path):
    a = write_run(tmp_path / "a", receipts_to(64))
    fails(a, write_run(tmp_path / "b", losses=losses_to(64)), "nothing was compared, no step is common",
          "2 receipts (steps 32 to 64)", "64 losses (steps 1 to 64)")
    fails(a, write_run(tmp_path / "c", [receipt(48)]), "no step is common")


def test_nothing_to_compare_in_a_run(tmp_path):
    a, b = write_run(tmp_path / "a", receipts_to(64)), write_run(tmp_path / "b")
    fails(a, b, b, "neither receipts", "nor logged losses")
    fails(a, write_run(tmp_path / "c", [], []), tmp_path / "c", "neither receipts")


def test_spec_differs(tmp_path):
    other = json.loads(json.dumps(SPEC))
    other["optim"] = {"lr": 0.2, "milestones": [1, 3], "a/b~": True}
    other["name"], other["resources"]["ranks"] = "two", 4
    a = write_run(tmp_path / "a", receipts_to(64))
    b = write_run(tmp_path / "b", receipts_to(64), spec=other)
    text, doc = diff(a, b, 0)
    assert text.splitlines() == [
        "the specs differ:", "  /optim/lr: 0.1 and 0.2", "  /optim/milestones: [1,2] and [1,3]",
        "  /optim/a~1b~0: nothing and true",
        "also different, but not in what is computed:", '  /name: "one" and "two"', "  /resources/ranks: 1 and 4",
        "no difference: 2 receipts up to step 64 agree; no logged losses are common"]
    assert doc["spec"][0] == {"pointer": "/optim/lr", "a": 0.1, "b": 0.2}
    assert doc["spec"][2] == {"pointer": "/optim/a~1b~0", "b": True}
    assert [row["pointer"] for row in doc["spec_aside"]] == ["/name", "/resources/ranks"]


def test_a_torn_last_line_is_a_run_that_goes_on(tmp_path):
    a, b = (write_run(tmp_path / n, losses=losses_to(20)) for n in "ab")
    with (a / "metrics.jsonl").open("a") as f:
        f.write('{"kind":"step","step":21,"lo')
    assert diff(a, b, 0)[1]["losses"]["compared"] == 20


@pytest.mark.parametrize("name, text, part", [
    ("job.json", "{", "job.json"),
    ("result.json", '{"receipts": [', "result.json"),
    ("result.json", '{"receipts": {}}', "result.json: /receipts"),
    ("result.json", json.dumps({"receipts": [receipt(64), receipt(64)]}), "result.json: /receipts/1/step"),
    ("result.json", json.dumps({"receipts": [receipt(64, weights="12")]}), "/receipts/0/weights"),
    ("result.json", json.dumps({"receipts": [receipt(64, loss=0.5)]}), "/receipts/0/loss"),
    ("metrics.jsonl", '{"kind":"step","step":1,"loss":1}\n{"kind":"step"\n', "metrics.jsonl, line 2"),
    ("metrics.jsonl", '{"kind":"step","loss":1}\n', "metrics.jsonl, line 1: /step"),
])
def test_damaged_files_are_named(tmp_path, name, text, part):
    a = write_run(tmp_path / "a", receipts_to(64), losses_to(64))
    b = write_run(tmp_path / "b", receipts_to(64), losses_to(64))
    (b / name).write_text(text)
    fails(a, b, tmp_path / "b", part)


def test_a_damaged_manifest_is_named(tmp_path):
    a = write_run(tmp_path / "a", receipts_to(64), manifest=True)
    (a / "checkpoints/step-00000100/manifest.json").write_text("[]x")
    fails(a, a, "step-00000100/manifest.json")


@pytest.mark.parametrize("key, value", [("weights", "g" * 32), ("order", "A" * 32), ("buffers", "0" * 31), ("loss", ""),
                                        ("loss", "1.5 about")])
def test_a_damaged_receipt_is_named(tmp_path, key, value):
    a = write_run(tmp_path / "a", receipts_to(64, s64={key: value}))
    fails(a, a, f'/receipts/1/{key}: "{value}" found')


def test_a_directory_that_is_not_there(tmp_path):
    fails(tmp_path / "nowhere", tmp_path / "nowhere", tmp_path / "nowhere/job.json", "No such file")


def test_a_job_id_is_asked_of_the_coordinator(tmp_path):
    a, b = (write_run(tmp_path / n, receipts_to(64)) for n in "ab")

    def get(_, params):
        if params["id"] != 7:
            raise RpcError(1001, "no such job")
        return {"id": 7, "paths": {"run_dir": str(b)}}

    with FakeCoordinator(tmp_path, {"job.get": get}) as coordinator:
        run = bfctl("--json", "diff", a, "7", address=coordinator.address)
        assert run.returncode == 0, run.stderr
        assert [r["run_dir"] for r in json.loads(run.stdout)["runs"]] == [str(a), str(b)]
        run = bfctl("diff", a, "8", address=coordinator.address)
        assert run.returncode == 1 and "no such job" in run.stderr
    assert bfctl("diff", a, "7", address=coordinator.address).returncode == 3


def test_order_that_begins_elsewhere_is_left_out(tmp_path):
    """A run that went on from a checkpoint without receipts has another running hash of the same data."""
    a = write_run(tmp_path / "a", receipts_to(64))
    b = write_run(tmp_path / "b", [receipt(64, order="f" * 32)])
    path = b / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "order_from": 40}))
    text, doc = diff(a, b, 0)
    assert f"data order is not compared: its record begins after step 0 in {a} and after step 40 in {b}" in text
    assert doc["order_compared"] is False


@pytest.mark.parametrize("determinism, said", [("default", True), ("bitwise", False)])
def test_rounding_of_other_world_sizes_is_explained(tmp_path, determinism, said):
    sides = []
    for name, ranks, changes in (("a", 1, {}), ("b", 3, {"s64": {"weights": "0" * 32}})):
        side = write_run(tmp_path / name, receipts_to(64, **changes),
                         spec={**SPEC, "train": {"epochs": 3, "determinism": determinism}})
        path = side / "result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "world_size": ranks}))
        sides.append(side)
    text, _ = diff(*sides, 1)
    assert ("1 and 3 ranks round differently" in text) is said
