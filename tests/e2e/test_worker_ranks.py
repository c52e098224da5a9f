"""Every number of ranks computes the same function: losses, gradients and weights of R ranks against those of one.

Gradients are compared, not just losses: a gather that loses the remote gradient leaves the loss identical.
"""
import pytest

from workerlib import losses, make_spec, read_safetensors, result, run, worst

LOSS, GRAD, WEIGHT = 1e-4, 1e-4, 1e-3


def dump(folder, spec, step, ranks):
    """Dump of a step of a run that goes on to its end; the run directory comes with it."""
    name = f"r{ranks}s{step}"
    where, _ = run(folder, spec, "--dump-step", f"{step}:{folder}/{name}.st", ranks=ranks, run_dir=name)
    return read_safetensors(folder / f"{name}.st"), where


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return {step: dump(folder, make_spec(), step, None) for step in (1, 5)}


@pytest.mark.sanitize
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
def test_same_function(tmp_path, alone, ranks):
    """With dropout 0.5 and augmentation on, and 24 rows that 5 ranks cannot share evenly."""
    for step in (1, 5):
        one, one_dir = alone[step]
        many, many_dir = dump(tmp_path, make_spec(), step, ranks)
        assert abs(many["loss"] - one["loss"]) <= LOSS * abs(one["loss"])
        assert worst(one, many, "grad.") < (GRAD, "")
    a, b = losses(one_dir), losses(many_dir)
    assert a.keys() == b.keys()
    assert all(abs(a[s] - b[s]) <= 1e-3 * abs(a[s]) for s in a)
    assert worst(read_safetensors(one_dir / "model.safetensors"), read_safetensors(many_dir / "model.safetensors")) < (
        WEIGHT, "")
    assert result(many_dir)["world_size"] == ranks
    assert result(many_dir)["eval"]["loss"] == pytest.approx(result(one_dir)["eval"]["loss"], rel=1e-3)


def test_one_rank_under_mpirun_is_bitwise_alone(tmp_path, alone):
    many, _ = dump(tmp_path, make_spec(), 5, 1)
    one, _ = alone[5]
    assert all((one[n] == many[n]).all() for n in one)


@pytest.mark.parametrize("changes", [{"batchformer__gather": "features"}, {"batchformer__gather": "kv"},
                                     {"batchformer__enabled": False}, {"batchformer__layers": 2},
                                     {"loss": {"kind": "balanced_softmax"}}])
def test_same_function_of_variants(tmp_path, changes):
    spec = make_spec(**changes, train__epochs=2)
    one, _ = dump(tmp_path, spec, 5, None)
    many, _ = dump(tmp_path, spec, 5, 3)
    assert abs(many["loss"] - one["loss"]) <= LOSS * abs(one["loss"])
    assert worst(one, many, "grad.") < (GRAD, "")


def test_local_scope_and_norm_are_another_function(tmp_path, alone):
    """The comparison can fail: what looks at one rank's rows only gives other gradients."""
    one, _ = alone[1]
    for name, changes in (("scope", {"batchformer__scope": "local"}), ("norm", {"model__norm": "batch"})):
        where, _ = run(tmp_path, make_spec(**changes), "--dump-step", f"1:{tmp_path}/{name}.st", ranks=2, run_dir=name)
        assert worst(one, read_safetensors(tmp_path / f"{name}.st"), "grad.") > (100 * GRAD, "")


def test_same_ranks_same_bits(tmp_path):
    a, _ = run(tmp_path, make_spec(), ranks=2, run_dir="a")
    b, _ = run(tmp_path, make_spec(), ranks=2, run_dir="b")
    assert losses(a) == losses(b)
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
