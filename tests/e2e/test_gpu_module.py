"""The GPU backend is a module beside the worker (batchformer-cuda.so): where it is looked for, what is said when it cannot
be used, and that a rank on CPUs has nothing to do with it.
"""
import json
import pathlib
import shutil
import subprocess

import pytest

from buildlib import bin_dir
from workerlib import environment, make_spec, result, write_job

MODULE = "batchformer-cuda.so"


@pytest.fixture
def worker(tmp_path):
    """A copy of the worker, alone in a directory."""
    folder = tmp_path / "install" / "bin"
    folder.mkdir(parents=True)
    return pathlib.Path(shutil.copy(bin_dir() / "batchformer-worker", folder))


def needs(program):
    out = subprocess.run(["readelf", "-d", str(program)], capture_output=True, text=True, check=True).stdout
    return [line.split("[")[1].split("]")[0] for line in out.splitlines() if "(NEEDED)" in line]


def probe(worker):
    return json.loads(subprocess.run([str(worker), "--probe"], capture_output=True, check=True, env=environment(None, {})).stdout)


def train_on_gpu(tmp_path, worker):
    job = write_job(tmp_path, make_spec(resources={"ranks": 1, "gpus_per_rank": 1}))
    return subprocess.run([str(worker), "--job", str(job), "--run-dir", str(tmp_path / "run")], capture_output=True, text=True,
                          timeout=120, env=environment(None, {}))


def test_a_cpu_worker_links_nothing_of_cuda():
    assert not [n for n in needs(bin_dir() / "batchformer-worker") if n.startswith(("libcud", "libcublas", "libnccl"))]


@pytest.mark.sanitize
def test_no_module(tmp_path, worker):
    p = train_on_gpu(tmp_path, worker)
    assert p.returncode == 2
    for text in ("/resources/gpus_per_rank: 1 found, 0 is accepted", f"{worker.parent}/{MODULE}",
                 f"lib/batchformer/{MODULE}", "WITH_CUDA=ON"):
        assert text in p.stderr
    found = probe(worker)
    assert found["gpus"] == [] and MODULE in found["gpus_trouble"] and found["cores"] >= 1


def test_cpu_jobs_need_no_module(tmp_path, worker):
    job = write_job(tmp_path, make_spec(train__epochs=1))
    subprocess.run([str(worker), "--job", str(job), "--run-dir", str(tmp_path / "run")], capture_output=True, timeout=120,
                   check=True, env=environment(None, {}))
    assert result(tmp_path / "run")["status"] == "succeeded"


@pytest.mark.sanitize
def test_a_module_that_cannot_be_loaded(tmp_path, worker):
    (worker.parent / MODULE).write_bytes(b"not a library")
    p = train_on_gpu(tmp_path, worker)
    assert p.returncode == 1 and f"the GPU module {worker.parent}/{MODULE} cannot be loaded" in p.stderr
    assert "cuDNN" in p.stderr and result(tmp_path / "run")["status"] == "failed"


def test_a_library_that_is_no_module(tmp_path, worker):
    """The worker's directory comes first: what lies there counts, whatever is in lib/batchformer."""
    other = worker.parent / MODULE
    source = tmp_path / "other.c"
    source.write_text("int other(void) { return 0; }\nint other(void);\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(other), str(source)], check=True)
    p = train_on_gpu(tmp_path, worker)
    assert p.returncode == 1 and f"{other} is not batchformer's GPU module" in p.stderr


@pytest.mark.parametrize("version, message", [("0.0.0", "is of version 0.0.0, this worker of")])
def test_a_module_of_another_version(tmp_path, worker, version, message):
    other = worker.parent.parent / "lib" / "batchformer" / MODULE
    other.parent.mkdir(parents=True)
    source = tmp_path / "other.c"
    source.write_text(f'const struct {{ const char *version; }} batchformer_gpu = {{"{version}"}};\n')
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(other), str(source)], check=True)
    p = train_on_gpu(tmp_path, worker)
    assert p.returncode == 1 and message in p.stderr and str(other.name) in p.stderr


@pytest.mark.skipif(not (bin_dir() / MODULE).exists(), reason="built without CUDA")
@pytest.mark.parametrize("where", ["bin", "lib/batchformer"])
def test_the_module_is_found(worker, where):
    folder = worker.parent.parent / where
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(bin_dir() / MODULE, folder)
    assert probe(worker)["cuda_runtime"] > 0
