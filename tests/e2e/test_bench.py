"""The programs that measure, on tiny sizes: that their documents are whole, that what they count is right, and that they
refuse what they cannot do. How long things take is nobody's business here."""
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from buildlib import ROOT, bin_dir
from workerlib import ENV as WORKER_ENV, MPI_ENV

ENV = {**os.environ, **WORKER_ENV}

TINY = ("--arch", "resnet8", "--width", "0.5", "--size", "12", "--channels", "3", "--batch", "6", "--classes", "5")
PYTHON = "/usr/bin/python3"


def call(program, *args, ranks=0):
    cmd = [str(bin_dir() / program), *map(str, args)]
    if ranks:
        cmd = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks), *cmd]
    return subprocess.run(cmd, capture_output=True, text=True, env={**ENV, **(MPI_ENV if ranks else {})}, timeout=300)


def document(program, *args, ranks=0):
    p = call(program, *args, ranks=ranks)
    assert p.returncode == 0, p.stderr
    return json.loads(p.stdout)


def step(*args, ranks=0):
    return document("bench_step", *TINY, "--warm", 1, "--steps", 2, "--watched", 2, *args, ranks=ranks)


def linear(rows, i, o):
    return 3 * 2 * rows * i * o


def resnet8_flop(batch, size, channels, classes):
    """Width ½: 8, 16 and 32 channels; forward, gradient of the weights, and but for the first of the input."""
    def conv(pixels, ci, co, gradients=2):
        return (1 + gradients) * 2 * batch * pixels * pixels * 9 * ci * co
    half, quarter = size // 2, size // 4
    convs = conv(size, channels, 8, 1) + 2 * conv(size, 8, 8) + conv(half, 8, 16) + conv(half, 16, 16) + \
        conv(quarter, 16, 32) + conv(quarter, 32, 32)
    return convs, layer_flop(batch, 32) + linear(2 * batch, 32, classes)


def layer_flop(rows, c):
    """Query, key and value, output, two feed-forward layers; attention 2 products forward and 5 backward."""
    return linear(rows, c, 3 * c) + linear(rows, c, c) + 2 * linear(rows, c, c) + (4 + 10) * rows * rows * c


@pytest.fixture(scope="module")
def one():
    return step()


@pytest.mark.sanitize
def test_step_counts_what_a_step_does(one):
    convs, rest = resnet8_flop(6, 12, 3, 5)
    assert one["flop"] == convs + rest
    kinds = {k["op"]: k for k in one["kinds"]}
    assert kinds["conv2d"]["nodes"] == 7 and kinds["bn_apply"]["nodes"] == 7 and kinds["attention"]["nodes"] == 1
    assert kinds["conv2d"]["forward"]["flop"] + kinds["conv2d"]["backward"]["flop"] == convs
    # x (6,12,12,3), w (8,3,3,3), y (6,12,12,8): each once, four bytes an element
    first = next(n for n in one["nodes"] if n["name"] == "conv1")
    assert first["forward"]["bytes"] == 4 * (6 * 144 * 3 + 8 * 27 + 6 * 144 * 8)
    assert first["backward"]["flop"] == first["forward"]["flop"], "no gradient of the images"


def test_step_document_is_consistent(one):
    names = [n["name"] for n in one["nodes"]]
    assert names[0] == "conv1" and "layer3.0.conv2" in names and "batchformer.self_attn.attention" in names
    for k in one["kinds"]:
        of_kind = [n for n in one["nodes"] if n["op"] == k["op"]]
        assert len(of_kind) == k["nodes"]
        for direction in ("forward", "backward"):
            assert k[direction]["ms"] == pytest.approx(sum(n[direction]["ms"] for n in of_kind))
    assert sum(k["share"] for k in one["kinds"]) <= 1 + 1e-9
    assert one["watched_ms"] == pytest.approx(
        sum(one["beside_ms"].values()) + sum(k[d]["ms"] for k in one["kinds"] for d in ("forward", "backward")))
    assert len(one["step_ms"]["all"]) == 2 and len(one["losses"]) == 1 + 2 + 2
    assert one["images_per_s"]["min"] <= one["images_per_s"]["median"] <= one["images_per_s"]["max"]
    assert len(one["peak_rss_bytes"]) == 1 and one["peak_rss_bytes"][0] > one["arena_bytes"] > 0
    assert one["unshared_bytes"] >= one["arena_bytes"]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_step_is_the_same_on_any_number_of_ranks(one, ranks):
    more = step(ranks=ranks)
    assert more["ranks"] == ranks and len(more["peak_rss_bytes"]) == ranks
    assert more["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert more["parameters"] == one["parameters"]


def test_step_learns():
    losses = document("bench_step", *TINY, "--dropout", 0, "--warm", 0, "--steps", 30, "--watched", 0)["losses"]
    assert losses[-1] < 0.7 * losses[0]


def test_step_without_the_module_and_as_a_table():
    plain = step("--batchformer", 0)
    assert plain["flop"] == resnet8_flop(6, 12, 3, 5)[0] + linear(6, 32, 5)
    assert not any(k["op"] == "attention" for k in plain["kinds"])
    p = call("bench_step", *TINY, "--warm", 0, "--steps", 1, "--table")
    assert p.returncode == 0 and "images/s" in p.stdout and "layer2.0.conv1" in p.stdout


def test_layer_alone():
    d = document("bench_step", "--arch", "layer", "--batch", 24, "--features", 16, "--classes", 3, "--warm", 1, "--steps", 2)
    assert d["flop"] == layer_flop(24, 16) + linear(24, 16, 3)
    assert d["losses"][0] == pytest.approx(d["losses"][1], rel=0.5), "nothing is updated"
    assert d["parameters"] == 24 * 16 + 16 * 48 + 48 + 3 * (16 * 16 + 16) + 4 * 16 + 16 * 3 + 3


def test_bf16_runs_or_is_refused(one):
    p = call("bench_step", *TINY, "--precision", "bf16", "--warm", 1, "--steps", 2)
    if p.returncode == 1:
        assert p.stderr.startswith("bench_step: ") and not p.stdout
    else:
        assert p.returncode == 0, p.stderr
        assert json.loads(p.stdout)["losses"][0] == pytest.approx(one["losses"][0], rel=0.05)


@pytest.mark.parametrize("program, args, status, says", [
    ("bench_step", ["--batch", "0"], 2, '--batch: "0" found'),
    ("bench_step", ["--speed", "9"], 2, '"--speed" found'),
    ("bench_step", ["--width"], 2, "--width: no value found"),
    ("bench_step", ["--arch", "vgg"], 1, '--arch: "vgg" found'),
    ("bench_step", ["--precision", "tf32"], 1, "tf32 found, which needs a GPU"),
    ("bench_step", ["--dropout", "1"], 1, "--dropout: 1 found"),
    ("bench_op", ["--seconds", "0"], 2, '--seconds: "0" found'),
    ("bench_comm", [], 1, "no launcher of MPI found"),
    ("bench_comm", ["--factor", "1"], 2, "--factor 1"),
])
def test_what_cannot_be_is_refused(program, args, status, says):
    p = call(program, *args)
    assert p.returncode == status and says in p.stderr and not p.stdout


@pytest.mark.sanitize
def test_op_has_every_operator_of_the_step(one):
    d = document("bench_op", *TINY, "--seconds", 0.0001, "--steps", 1, "--peaks", 0)
    assert sum(r["flop"] * r["nodes"] for r in d["rows"]) == one["flop"]
    forward = sum(r["nodes"] for r in d["rows"] if not r["backward"])
    assert forward == sum(k["nodes"] for k in one["kinds"])
    convs = [r for r in d["rows"] if r["op"] == "conv2d"]
    assert sum(r["nodes"] for r in convs) == 2 * 7
    for r in convs:
        passes = [p["pass"] for p in r["onednn"]["passes"]]
        first = "(6, 12, 12, 3)" in r["what"]
        assert passes == ([] if not passes else ["weights"] if first and r["backward"] else
                          ["data", "weights"] if r["backward"] else ["forward"])
        best = sum(p["ms"][p["best"]] for p in r["onednn"]["passes"])
        assert r["onednn"]["ms"] == pytest.approx(best)
        assert all(p["ms"][p["best"]] == min(p["ms"].values()) for p in r["onednn"]["passes"])
        assert r["of_onednn"] == pytest.approx(best / r["alone_ms"])
    alone = sum(r["nodes"] * r["alone_ms"] for r in convs)
    assert d["convolutions_of_onednn"] == pytest.approx(sum(r["nodes"] * r["onednn"]["ms"] for r in convs) / alone)
    assert d["convolutions_share"] + d["everything_else_share"] == pytest.approx(1)


def test_op_measures_the_machine():
    d = document("bench_op", *TINY, "--seconds", 0.0001, "--steps", 1, "--peer", 0)
    peak = d["peak"]
    assert peak["fp32_gflop_per_s"] > 0 and peak["memory_gb_per_s"] > 0 and peak["l3_gb_per_s"] > 0
    row = next(r for r in d["rows"] if r["op"] == "conv2d")
    assert row["bound"] == "fp32 products" and "onednn" not in row
    assert row["share_of_peak"] == pytest.approx(row["gflop_per_s"] / peak["fp32_gflop_per_s"])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_comm_has_every_size(ranks):
    d = document("bench_comm", "--least", 1024, "--most", 16384, "--seconds", 0.001, ranks=ranks)
    kinds = ("all_reduce", "all_gather", "reduce_scatter")
    assert [(r["what"], r["bytes"]) for r in d["rows"]] == [(k, b) for k in kinds for b in (1024, 4096, 16384)]
    assert d["ranks"] == ranks
    for r in d["rows"]:
        for side in ("ours", "mpi"):
            assert r[side]["us"]["min"] <= r[side]["us"]["median"] <= r[side]["us"]["max"]
            sent = (2 if r["what"] == "all_reduce" else 1) * (ranks - 1) / ranks * r["bytes"]
            assert r[side]["gb_per_s"] == pytest.approx(sent / r[side]["us"]["median"] / 1e3)


# ---- PyTorch's side ----

def torch_major():
    p = subprocess.run([PYTHON, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    return int(p.stdout.split(".")[0]) if p.returncode == 0 else 0


TORCH = torch_major()
needs_torch = pytest.mark.skipif(not TORCH, reason=f"{PYTHON} has no torch")
NET = {"arch": "resnet8", "precision": "fp32", "batch": 6, "size": 12, "channels": 3, "classes": 5, "batchformer": True,
       "heads": 4, "dropout": 0.0, "layout": "contiguous", "mode": "eager", "warm": 1, "steps": 3, "seconds": 0}
LAYER = {**NET, "arch": "layer", "features": 16, "batch": 24, "classes": 3, "layout": "sequence_first"}


def peer(*requests, ranks=1):
    p = subprocess.run([PYTHON, str(ROOT / "bench/peers/torch_cpu.py"), "--threads", "1", "--ranks", str(ranks)],
                       input="".join(json.dumps(q) + "\n" for q in requests), capture_output=True, text=True, env=ENV,
                       timeout=300)
    assert p.returncode == 0, p.stderr
    about, *answers = map(json.loads, p.stdout.splitlines())
    assert about["torch"] and len(answers) == len(requests)
    return answers


@needs_torch
def test_peer_has_the_same_network():
    last, layer = peer({**NET, "layout": "channels_last"}, LAYER)
    full = document("bench_step", *TINY[:2], *TINY[4:], "--warm", 0, "--steps", 1, "--watched", 0)
    assert last["parameters"] == full["parameters"]
    ours = document("bench_step", "--arch", "layer", "--batch", 24, "--features", 16, "--classes", 3, "--warm", 0, "--steps", 1)
    assert layer["parameters"] == ours["parameters"] - 24 * 16, "ours counts the features"
    assert len(last["losses"]) == 4 and len(last["step_ms"]["all"]) == 3
    assert last["peak_rss_bytes"][0] >= last["import_rss_bytes"] > 0


@needs_torch
def test_peer_layouts_and_precisions_are_the_same_function():
    a, b, c, d, e = peer(NET, {**NET, "layout": "channels_last"}, {**NET, "precision": "bf16"}, LAYER,
                         {**LAYER, "layout": "batch_first"})
    assert a["losses"] == pytest.approx(b["losses"], rel=1e-4)
    if TORCH > 1:
        assert a["losses"][0] == pytest.approx(c["losses"][0], rel=0.05)
    else:  # its autocast does not know all operators of an encoder layer
        assert "expected scalar type" in c["error"]
    assert d["losses"] == pytest.approx(e["losses"], rel=1e-5)


@needs_torch
def test_peer_on_two_ranks_and_its_refusals():
    a, b = peer(NET, NET, ranks=2)
    assert len(a["peak_rss_bytes"]) == 2 and len(set(a["pids"])) == 2
    assert b["losses"][0] < a["losses"][0], "the network goes on from where it was"
    bad = peer({**NET, "layout": "batch_first"}, {**NET, "arch": "vgg"}, {**LAYER, "layout": "contiguous"}, NET)
    assert "layout" in bad[0]["error"] and "vgg" in bad[1]["error"] and "layout" in bad[2]["error"]
    assert "losses" in bad[3]


# ---- bench/run ----

def load_run():
    loader = importlib.machinery.SourceFileLoader("bench_run", str(ROOT / "bench/run"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench_run", loader))
    sys.path.insert(0, str(ROOT / "bench"))
    loader.exec_module(module)
    return module


def test_run_has_the_cases_it_says():
    run = load_run()
    names = [c["case"] for c in run.cases()]
    assert len(set(names)) == len(names) and set(run.QUICK) <= set(names)
    p = subprocess.run([sys.executable, str(ROOT / "bench/run"), "--list"], capture_output=True, text=True)
    assert p.stdout.split() == names
    p = subprocess.run([sys.executable, str(ROOT / "bench/run"), "--only", "nothing has that"], capture_output=True, text=True)
    assert p.returncode == 1 and "--list" in p.stderr


def test_run_says_what_was_refused():
    run = load_run()
    rows = [{"case": "a", "kind": "step", "refused": "no kernel | for it"}, {"case": "b", "kind": "layer", "skipped": "9 GiB"}]
    c = {**run.layer(8, 4), "arch": "vgg"}
    row = run.cpulib.compare(bin_dir(), None, c, [], None, run.cpulib.Lock(None))
    assert '--arch: "vgg" found' in row["refused"]
    text = run.table(rows)
    assert "| a | refused: no kernel / for it |" in text and "| b | skipped: 9 GiB |" in text


@needs_torch
def test_run_compares(tmp_path):
    out = tmp_path / "out.json"
    p = subprocess.run([sys.executable, str(ROOT / "bench/run"), "--only", "layer-n512-c64-fp32-d0.5", "--rounds", "2", "--seconds", "0.05", "--python", PYTHON, "--build", str(bin_dir().parent), "--lock",
                        str(tmp_path / "lock"), "--out", str(out)], capture_output=True, text=True, env=ENV, timeout=600)
    doc = json.loads(out.read_text())
    row, = doc["rows"]
    assert "named by --python" in doc["peer_from"] and doc["cpu"] and doc["peer"]["torch"]
    ok = [s for s in row["settings"] if "error" not in s]
    assert {s["mode"] for s in ok} >= {"eager"} and {s["layout"] for s in ok} == {"batch_first", "sequence_first"}
    assert row["best_setting"] in {s["setting"] for s in ok}
    assert row["ratio"]["median"] == pytest.approx(row["ours"]["median"] / row["peer"]["median"])
    assert row["ratio"]["min"] <= row["ratio"]["max"] and len(row["ours"]["runs"]) == 2
    assert row["memory_ratio"] == pytest.approx(row["ours_peak_rss_bytes"] / row["peer_peak_rss_bytes"])
    assert p.returncode == 0 and f"| {row['case']} |" in p.stdout, p.stderr
