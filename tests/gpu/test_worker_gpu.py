"""The whole CUDA worker on the GPUs there are: the claims of tests/e2e/gpuclaims.py. Run by tests/gpu/run.

$BF_GPU_PROGRAM is the worker, of the build directory; the simulator's is accepted, to test these tests.
"""
import json
import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
pytest.register_assert_rewrite("gpuclaims")
from buildlib import bin_dir  # noqa: E402
from gpuclaims import *  # noqa: E402, F401, F403 (its tests and fixtures are this module's)
from gpuclaims import Gpus  # noqa: E402


@pytest.fixture(scope="module")
def gpus():
    program = os.environ.get("BF_GPU_PROGRAM", "batchformer-worker")
    probe = json.loads(subprocess.run([str(bin_dir() / program), "--probe"], check=True, capture_output=True,
                                      text=True).stdout)
    usable = [g for g in probe["gpus"] if not g.get("trouble")]
    if not usable:
        pytest.skip(probe.get("gpus_trouble") or "; ".join(g["trouble"] for g in probe["gpus"]))
    simulated = program.endswith("-sim")
    return Gpus(program=program, count=len(usable), many_rows=256 if simulated else 8192)
