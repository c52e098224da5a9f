"""The whole CUDA worker on simulated GPUs (README.md): kernels, graph capture, streams and NCCL's order, all checked while
it trains. What is compared with the CPU worker is mathematics; nothing here says anything about a real GPU.
"""
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from buildlib import bin_dir  # noqa: E402
from workerlib import deviation, losses, make_spec, read_safetensors, result, run, worst  # noqa: E402

SIM = "batchformer-worker-sim"
pytestmark = pytest.mark.skipif(not (bin_dir() / SIM).exists(), reason="built without CUDA's headers")

STEPS = 6  # the third and later ones are replays of the recorded step


def spec_of(gpus, **changes):
    return make_spec(**{"train__epochs": 8, "optim__lr": 0.02, "eval__every_epochs": 0,
                        "resources": {"gpus_per_rank": gpus}, **changes})


def train(folder, spec, ranks, name, *args, steps=STEPS, dump=None, env=None):
    """(dump of one step, run directory); ranks None: the CPU worker, alone."""
    dump = dump or steps
    where, _ = run(folder, spec, "--max-steps", steps, "--dump-step", f"{dump}:{folder}/{name}.st", *args, ranks=ranks,
                   run_dir=name, env=env, program=SIM if ranks else "batchformer-worker")
    return read_safetensors(folder / f"{name}.st"), where


def curve_deviation(a, b):
    a, b = losses(a), losses(b)
    assert set(a) == set(b) and a
    return max(abs(a[s] - b[s]) / abs(a[s]) for s in a)


@pytest.fixture(scope="module")
def cpu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpu")
    return {dump: train(folder, spec_of(0), None, f"d{dump}", dump=dump) for dump in (1, STEPS)}


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    return {dump: train(folder, spec_of(1), 1, f"d{dump}", dump=dump) for dump in (1, STEPS)}


def test_it_computes_what_the_cpu_does(cpu, gpu):
    for dump in (1, STEPS):
        assert abs(cpu[dump][0]["loss"] - gpu[dump][0]["loss"]) <= 1e-5 * cpu[dump][0]["loss"]
        assert worst(cpu[dump][0], gpu[dump][0], "grad.") < (1e-3, "")
        assert worst(cpu[dump][0], gpu[dump][0], "param.") < (1e-3, "")
    assert curve_deviation(cpu[1][1], gpu[1][1]) <= 1e-5


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("changes", [{}, {"batchformer__gather": "features"}], ids=["kv", "features"])
def test_any_number_of_ranks_is_one(tmp_path, gpu, ranks, changes):
    for dump in (1, STEPS):
        many, where = train(tmp_path, spec_of(1, **changes), ranks, f"r{dump}", dump=dump)
        assert abs(gpu[dump][0]["loss"] - many["loss"]) <= 1e-5 * many["loss"]
        assert worst(gpu[dump][0], many, "grad.") < (1e-3, "")
    assert curve_deviation(gpu[1][1], where) <= 1e-5


@pytest.mark.parametrize("env", [{"CUSIM_EAGER": "1"}, {"CUSIM_SEED": "1"}, {"CUSIM_SEED": "2"}],
                         ids=lambda e: "-".join(f"{k}{v}" for k, v in e.items()))
def test_any_legal_order_of_the_streams_gives_the_same_bits(tmp_path, gpu, env):
    """On two ranks, beside a run with the lazy order."""
    lazy, _ = train(tmp_path, spec_of(1), 2, "lazy")
    other, _ = train(tmp_path, spec_of(1), 2, "other", env=env)
    assert all((lazy[n] == other[n]).all() for n in lazy)


def test_checkpoints_go_from_cpu_to_gpu_and_back(tmp_path, cpu):
    for i, (ranks, end) in enumerate(((None, 2), (2, 4), (None, STEPS))):
        spec = spec_of(1 if ranks else 0)
        where, _ = run(tmp_path, spec, "--max-steps", end, *(["--resume"] if i else []), ranks=ranks,
                       program=SIM if ranks else "batchformer-worker")
    assert curve_deviation(cpu[1][1], where) <= 1e-5


def test_resume_at_home_is_bit_for_bit(tmp_path):
    whole, _ = train(tmp_path, spec_of(1), 2, "whole")
    run(tmp_path, spec_of(1), "--max-steps", 3, ranks=2, run_dir="parts", program=SIM)
    parts, _ = train(tmp_path, spec_of(1), 2, "parts", "--resume")
    assert all((whole[n] == parts[n]).all() for n in whole)


def test_bf16(tmp_path, gpu):
    """Activations of 8 bits of mantissa: the same direction, not the same digits; and any number of ranks."""
    one, where = train(tmp_path, spec_of(1, train__precision="bf16"), 1, "one", dump=1)
    many, _ = train(tmp_path, spec_of(1, train__precision="bf16"), 2, "many", dump=1)
    assert abs(one["loss"] - gpu[1][0]["loss"]) <= 2e-2 * one["loss"]
    assert abs(many["loss"] - one["loss"]) <= 2e-2 * one["loss"]
    for n in ("grad.linear.weight", "grad.batchformer.linear1.weight"):
        assert deviation(gpu[1][0][n], one[n]) < 0.1 and deviation(one[n], many[n]) < 0.1
    assert curve_deviation(gpu[1][1], where) <= 5e-2
    assert deviation(gpu[1][0]["loss"], one["loss"]) > 1e-7, "it was fp32"


def test_whole_run_to_the_result(tmp_path):
    where, _ = run(tmp_path, spec_of(1, train__epochs=2, eval__every_epochs=1), ranks=2, program=SIM)
    on_cpu, _ = run(tmp_path, spec_of(0, train__epochs=2, eval__every_epochs=1), run_dir="cpu")
    a, b = result(on_cpu), result(where)
    assert b["status"] == "succeeded" and abs(a["eval"]["loss"] - b["eval"]["loss"]) <= 1e-3 * a["eval"]["loss"]


def test_more_ranks_than_gpus(tmp_path):
    _, p = run(tmp_path, spec_of(1), ranks=2, expect=1, env={"CUSIM_DEVICES": "1"}, program=SIM)
    assert "2 ranks run on this host, and it has 1 GPUs for them" in p.stderr
