"""What is claimed of the worker on GPUs, as tests that do not know what the GPUs are: tests/sim runs them on simulated
ones, tests/gpu on real ones. Who imports them defines the fixture `gpus` (module scope, a Gpus).

The CPU worker is the referee; a GPU is as right as that one is (test_referee.py, tests/mpi).
"""
import dataclasses
import shutil

import pytest

from workerlib import deviation, has_bf16, losses, make_spec, read_safetensors, result, run, worst

STEPS = 6  # the third and later ones are replays of the recorded step


@dataclasses.dataclass
class Gpus:
    program: str = "batchformer-worker"
    count: int = 1          # ranks that can have a GPU of their own
    many_rows: int = 8192   # of the large mini-batch
    timeout: int = 120      # seconds a run may take
    env: dict = dataclasses.field(default_factory=dict)

    def need(self, ranks):
        if ranks > self.count:
            pytest.skip(f"{ranks} ranks need a GPU each, and there are {self.count}")


def spec_of(gpus_per_rank, **changes):
    return make_spec(**{"train__epochs": 8, "optim__lr": 0.02, "eval__every_epochs": 0,
                        "resources": {"gpus_per_rank": gpus_per_rank}, **changes})


def run_on(gpus, folder, spec, ranks, *args, env=None, **more):
    """run() of workerlib; ranks None: the CPU worker, alone."""
    if ranks is None:
        return run(folder, spec, *args, env=env, timeout=gpus.timeout, **more)
    return run(folder, spec, *args, ranks=ranks, program=gpus.program, env={**gpus.env, **(env or {})},
               timeout=gpus.timeout, **more)


def train(gpus, folder, spec, ranks, name, *args, steps=STEPS, dump=None, env=None):
    """(dump of one step, run directory)"""
    where, _ = run_on(gpus, folder, spec, ranks, "--max-steps", steps, "--dump-step",
                      f"{dump or steps}:{folder}/{name}.st", *args, run_dir=name, env=env)
    return read_safetensors(folder / f"{name}.st"), where


def curve_deviation(a, b):
    a, b = losses(a), losses(b)
    assert set(a) == set(b) and a
    return max(abs(a[s] - b[s]) / abs(a[s]) for s in a)


def differing(a, b):
    """Names of the tensors whose bits are not the same."""
    assert set(a) == set(b) and a
    return [n for n in a if (a[n] != b[n]).any()]


@pytest.fixture(scope="module")
def cpu(gpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpu")
    return {dump: train(gpus, folder, spec_of(0), None, f"d{dump}", dump=dump) for dump in (1, STEPS)}


@pytest.fixture(scope="module")
def gpu(gpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    return {dump: train(gpus, folder, spec_of(1), 1, f"d{dump}", dump=dump) for dump in (1, STEPS)}


def test_it_computes_what_the_cpu_does(cpu, gpu):
    for dump in (1, STEPS):
        assert abs(cpu[dump][0]["loss"] - gpu[dump][0]["loss"]) <= 1e-5 * cpu[dump][0]["loss"]
        assert worst(cpu[dump][0], gpu[dump][0], "grad.") < (1e-3, "")
        assert worst(cpu[dump][0], gpu[dump][0], "param.") < (1e-3, "")
    assert curve_deviation(cpu[1][1], gpu[1][1]) <= 1e-5


# eps lies far above gradients that are zero but for rounding (the bias of keys): of those Adam would make full steps.
OPTIMISERS = {
    "adamw": {"kind": "adamw", "lr": 0.003, "eps": 1e-5},
    "lars, moving average": {"kind": "lars", "lr": 0.5, "trust_coefficient": 0.02, "nesterov": True, "ema": 0.8},
}


def states(run_dir):
    return read_safetensors(run_dir / f"checkpoints/step-{STEPS:08d}/state.safetensors")


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_every_optimiser_is_the_cpus(gpus, tmp_path, optimiser):
    """Weights and all that is kept of them, over recorded steps as well: the number of the update is not recorded."""
    changes = {"optim": OPTIMISERS[optimiser], "train__max_grad_norm": 1}
    a, cpu = train(gpus, tmp_path, spec_of(0, **changes), None, "cpu")
    b, gpu = train(gpus, tmp_path, spec_of(1, **changes), 1, "gpu")
    c, called = train(gpus, tmp_path, spec_of(1, **changes), 1, "called", env={"BATCHFORMER_CUDA_GRAPHS": "0"})
    assert curve_deviation(cpu, gpu) <= 1e-5
    assert worst(a, b, "param.") < (1e-3, "") and worst(states(cpu), states(gpu)) < (1e-3, "")
    assert differing(b, c) == [] and differing(states(gpu), states(called)) == []
    parts, _ = run_on(gpus, tmp_path, spec_of(1, **changes), 1, "--max-steps", 3, run_dir="parts")
    run_on(gpus, tmp_path, spec_of(1, **changes), 1, "--max-steps", STEPS, "--resume", run_dir="parts")
    assert differing(states(gpu), states(parts)) == []


def test_a_large_mini_batch(gpus, tmp_path):
    """Every row attends to every other, so 8192 rows are 67 million weights a head, which no buffer holds."""
    rows = gpus.many_rows
    changes = {"data__synthetic": {"height": 8, "width": 8, "channels": 1, "classes": 8,
                                   "train_per_class": rows // 8 + 10, "test_per_class": 2},
               "data__long_tail": None, "train__batch_size": rows, "batchformer__dropout": 0.2}
    a, _ = train(gpus, tmp_path, spec_of(0, **changes), None, "cpu", steps=1)
    b, _ = train(gpus, tmp_path, spec_of(1, **changes), 1, "gpu", steps=1)
    assert abs(a["loss"] - b["loss"]) <= 1e-5 * a["loss"]
    assert worst(a, b, "grad.") < (1e-3, "")


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("changes", [{}, {"batchformer__gather": "features"}], ids=["kv", "features"])
def test_any_number_of_ranks_is_one(gpus, tmp_path, gpu, ranks, changes):
    gpus.need(ranks)
    for dump in (1, STEPS):
        many, where = train(gpus, tmp_path, spec_of(1, **changes), ranks, f"r{dump}", dump=dump)
        assert abs(gpu[dump][0]["loss"] - many["loss"]) <= 1e-5 * many["loss"]
        assert worst(gpu[dump][0], many, "grad.") < (1e-3, "")
    assert curve_deviation(gpu[1][1], where) <= 1e-5


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_recorded_steps_are_the_steps_that_were_recorded(gpus, tmp_path, precision):
    spec = spec_of(1, train__precision=precision, train__autotune=False)
    recorded, _ = train(gpus, tmp_path, spec, 1, "recorded")
    called, _ = train(gpus, tmp_path, spec, 1, "called", env={"BATCHFORMER_CUDA_GRAPHS": "0"})
    assert differing(recorded, called) == []


def test_checkpoints_go_from_cpu_to_gpu_and_back(gpus, tmp_path, cpu):
    ranks = min(2, gpus.count)
    for i, (n, end) in enumerate(((None, 2), (ranks, 4), (None, STEPS))):
        where, _ = run_on(gpus, tmp_path, spec_of(1 if n else 0), n, "--max-steps", end, *(["--resume"] if i else []))
    assert curve_deviation(cpu[1][1], where) <= 1e-5


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("autotune", [False, True], ids=["first", "measured"])
def test_resume_at_home_is_bit_for_bit(gpus, tmp_path, ranks, autotune):
    """Two runs may measure differently: where they measure, the second is given what the first found."""
    gpus.need(ranks)
    spec = spec_of(1, train__autotune=autotune)
    whole, where = train(gpus, tmp_path, spec, ranks, "whole")
    (tmp_path / "parts").mkdir()
    if autotune:
        shutil.copy(where / "plans.json", tmp_path / "parts")
    run_on(gpus, tmp_path, spec, ranks, "--max-steps", 3, "--resume", run_dir="parts")
    parts, _ = train(gpus, tmp_path, spec, ranks, "parts", "--resume")
    assert differing(whole, parts) == []
    assert (where / "plans.json").exists() == autotune


def close_in_direction(exact, rounded, loss_tolerance, grad_tolerance):
    assert abs(rounded["loss"] - exact["loss"]) <= loss_tolerance * exact["loss"]
    for n in ("grad.linear.weight", "grad.batchformer.linear1.weight"):
        assert deviation(exact[n], rounded[n]) < grad_tolerance


def test_bf16(gpus, tmp_path, gpu):
    """Activations of 8 bits of mantissa: the same direction, not the same digits."""
    one, where = train(gpus, tmp_path, spec_of(1, train__precision="bf16"), 1, "one", dump=1)
    close_in_direction(gpu[1][0], one, 2e-2, 0.1)
    assert curve_deviation(gpu[1][1], where) <= 5e-2
    assert deviation(gpu[1][0]["loss"], one["loss"]) > 1e-7, "it was fp32"


@pytest.mark.parametrize("gather", ["kv", "features"])
def test_bf16_on_two_ranks(gpus, tmp_path, gather):
    gpus.need(2)
    spec = spec_of(1, train__precision="bf16", batchformer__gather=gather)
    one, two = (train(gpus, tmp_path, spec, n, f"r{n}", dump=1)[0] for n in (1, 2))
    close_in_direction(one, two, 2e-2, 0.1)
    assert worst(one, two, "grad.") < (0.1, "")


@pytest.mark.skipif(not has_bf16(), reason="the CPU worker's bf16 needs AVX-512")
def test_bf16_is_the_cpus(gpus, tmp_path):
    """The same roundings in the same places, but for what lies within an operator. Winograd's algorithm alone, which
    GPUs do not take here, does not round weights."""
    a, _ = train(gpus, tmp_path, spec_of(0, train__precision="bf16", train__winograd=False), None, "cpu", dump=1)
    b, _ = train(gpus, tmp_path, spec_of(1, train__precision="bf16"), 1, "gpu", dump=1)
    assert abs(a["loss"] - b["loss"]) <= 1e-3 * a["loss"]
    assert worst(a, b, "grad.") < (5e-2, "")


def test_tf32(gpus, tmp_path, gpu):
    """Operands of 10 bits of mantissa, everything else fp32."""
    one, where = train(gpus, tmp_path, spec_of(1, train__precision="tf32"), 1, "one", dump=1)
    close_in_direction(gpu[1][0], one, 5e-3, 0.05)
    assert curve_deviation(gpu[1][1], where) <= 2e-2


def test_whole_run_to_the_result(gpus, tmp_path):
    changes = {"train__epochs": 2, "eval__every_epochs": 1}
    where, _ = run_on(gpus, tmp_path, spec_of(1, **changes), min(2, gpus.count))
    on_cpu, _ = run_on(gpus, tmp_path, spec_of(0, **changes), None, run_dir="cpu")
    a, b = result(on_cpu), result(where)
    assert b["status"] == "succeeded" and abs(a["eval"]["loss"] - b["eval"]["loss"]) <= 1e-3 * a["eval"]["loss"]
