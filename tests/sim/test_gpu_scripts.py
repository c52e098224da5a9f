"""What runs where there is a GPU, tests/gpu/run and bench/gpu, tried on simulated ones, so that no line of them meets a
GPU untested. NVIDIA's tools are played by scripts.
"""
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from buildlib import ROOT, bin_dir  # noqa: E402

SIM = "batchformer-worker-sim"
pytestmark = pytest.mark.skipif(not (bin_dir() / SIM).exists(), reason="built without CUDA's headers")

TOOLS = {
    # its options, each with a value, then the program
    "compute-sanitizer": 'while [ "${1#--}" != "$1" ]; do shift 2; done; "$@" && echo "========= ERROR SUMMARY: 0 errors"',
    "nvidia-smi": "echo 1000; while sleep 0.05; do echo 1500; done",
    "nsys": '[ "$1" = profile ] || echo "Processing…" \'[{"Name": "a kernel", "Time (%)": 100}]\'',
}


@pytest.fixture
def env(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in TOOLS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def call(script, *args, env=None, expect=0):
    p = subprocess.run([sys.executable, str(ROOT / script), "--build", str(bin_dir().parent), *map(str, args)], text=True,
                       capture_output=True, timeout=300, env=env)
    assert p.returncode == expect, f"exit status {p.returncode}\n{p.stdout}\n{p.stderr}"
    return p


def parts(doc):
    return {p["name"]: p for p in doc["parts"]}


def test_all_parts_of_the_test_script(tmp_path, env):
    call("tests/gpu/run", "--program", SIM, "--out", tmp_path / "out.json", "--select", "bf16 and not ranks", env=env)
    doc = json.loads((tmp_path / "out.json").read_text())
    assert doc["simulated"] and doc["verdict"] == "passed" and doc["probe"]["gpus"]
    assert {n: p["verdict"] for n, p in parts(doc).items()} == dict.fromkeys(
        ("probe", "ctest", "memcheck", "racecheck", "synccheck", "worker"), "passed")
    assert {c["name"] for c in parts(doc)["ctest"]["cases"]} == {"test_cuda_dnn", "test_cuda_blas", "test_backend_parity"}
    assert parts(doc)["memcheck"]["summary"] == ["ERROR SUMMARY: 0 errors"]
    assert {c["name"] for c in parts(doc)["worker"]["cases"] if c["verdict"] == "passed"} >= {"test_bf16"}


def test_a_failure_is_one(tmp_path, env):
    """A sanitizer that finds something, and no test that is selected."""
    (tmp_path / "bin/compute-sanitizer").write_text("#!/bin/bash\necho '========= Invalid read'; exit 9\n")
    p = call("tests/gpu/run", "--program", SIM, "--out", tmp_path / "out.json", "--only", "memcheck,worker", "--select",
             "no_such_test", env=env, expect=1)
    doc = json.loads((tmp_path / "out.json").read_text())
    assert doc["verdict"] == "failed" and "Invalid read" in p.stdout
    assert parts(doc)["memcheck"]["why"] == "exit status 9" and parts(doc)["worker"]["verdict"] == "failed"


@pytest.mark.parametrize("script", ["tests/gpu/run", "bench/gpu"])
def test_without_a_gpu_the_reason_of_the_probe_is_given(tmp_path, env, script):
    """Of the simulator, whose GPUs are hidden."""
    p = call(script, "--program", SIM, "--out", tmp_path / "out.json", env={**env, "CUSIM_DEVICES": "0"}, expect=77)
    assert "no GPU to" in p.stderr and "this process sees no GPU" in p.stderr


def test_the_bench(tmp_path, env):
    p = call("bench/gpu", "--program", SIM, "--steps", 2, "--rounds", 1, "--python", "/no/python", "--out",
             tmp_path / "out.json", env=env)
    doc = json.loads((tmp_path / "out.json").read_text())
    for row in doc["rows"]:
        assert row["arms"]["batchformer"]["images_per_s"]["median"] > 0
        assert row["arms"]["batchformer"]["peak_bytes"] == 500 << 20
        assert row["arms"]["PyTorch eager"]["error"].startswith("peer absent") and row["ratio"]["PyTorch eager"] is None
    assert doc["simulated"] and p.stdout.startswith("SIMULATED")
    assert doc["nsys"]["kernels"][0]["Name"] == "a kernel"
    assert {r["op"] for r in doc["ops"]["rows"]} >= {"conv2d", "bn_apply", "attention", "linear", "softmax_xent"}
    convolutions = doc["ops"]["convolutions"]
    assert sum(k.endswith(" forward") for k in convolutions) > 10
    assert all(v.startswith("eng") for v in convolutions.values())
    assert doc["ops"]["products"]
    assert sum(r["share"] for r in doc["ops"]["rows"]) == pytest.approx(1)


def test_the_bench_beside_pytorch(tmp_path, env):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("no PyTorch")
    call("bench/gpu", "--program", SIM, "--steps", 1, "--rounds", 1, "--python", sys.executable, "--peer-device", "cpu",
         "--out", tmp_path / "out.json", env=env)
    row = json.loads((tmp_path / "out.json").read_text())["rows"][1]
    assert row["ratio"]["PyTorch eager"]["median"] > 0


def test_simulated_results_are_not_kept(env):
    p = call("bench/gpu", "--program", SIM, "--steps", 1, "--rounds", 1, "--python", "/no/python", "--out",
             ROOT / "bench/results/gpu.json", env=env, expect=2)
    assert "do not belong into bench/results" in p.stderr and not (ROOT / "bench/results/gpu.json").exists()
