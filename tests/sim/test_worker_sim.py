"""The whole CUDA worker on simulated GPUs (README.md): kernels, graph capture, streams and NCCL's order, all checked while
it trains. What is compared with the CPU worker is mathematics; nothing here says anything about a real GPU.
"""
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
pytest.register_assert_rewrite("gpuclaims")
from buildlib import bin_dir  # noqa: E402
from gpuclaims import *  # noqa: E402, F401, F403 (its tests and fixtures are this module's)
from gpuclaims import Gpus, differing, run_on, spec_of, train  # noqa: E402

SIM = "batchformer-worker-sim"
pytestmark = pytest.mark.skipif(not (bin_dir() / SIM).exists(), reason="built without CUDA's headers")


@pytest.fixture(scope="module")
def gpus():
    return Gpus(program=SIM, count=3, many_rows=256)


@pytest.mark.parametrize("env", [{"CUSIM_EAGER": "1"}, {"CUSIM_SEED": "1"}, {"CUSIM_SEED": "2"}],
                         ids=lambda e: "-".join(f"{k}{v}" for k, v in e.items()))
def test_any_legal_order_of_the_streams_gives_the_same_bits(gpus, tmp_path, env):
    """On two ranks, beside a run with the lazy order."""
    lazy, _ = train(gpus, tmp_path, spec_of(1), 2, "lazy")
    other, _ = train(gpus, tmp_path, spec_of(1), 2, "other", env=env)
    assert differing(lazy, other) == []


def test_more_ranks_than_gpus(gpus, tmp_path):
    _, p = run_on(gpus, tmp_path, spec_of(1), 2, expect=1, env={"CUSIM_DEVICES": "1"})
    assert "2 ranks run on this host, and it has 1 GPUs for them" in p.stderr
