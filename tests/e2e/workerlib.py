"""What the tests of batchformer-worker share: a small job, starting ranks, and reading what a run leaves behind."""
import gzip
import json
import os
import pathlib
import struct
import subprocess
import time

import numpy as np

from buildlib import ROOT, bin_dir


# Ranks share few cores, and the tests run as whoever they run as.
ENV = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "OMPI_ALLOW_RUN_AS_ROOT": "1",
       "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
       "LSAN_OPTIONS": f"suppressions={ROOT}/tests/lsan.supp:print_suppressions=0"}

# Open MPI unloads its components at the end, so what they leak comes from nameless addresses that no suppression
# matches. Sanitized ranks therefore look for every other fault; runs without a launcher look for leaks, too.
MPI_ENV = {"ASAN_OPTIONS": "detect_leaks=0"}


def make_spec(**changes):
    """A job of 4 steps an epoch that takes well under a second. Keys are dotted paths with '__' for the dot."""
    spec = {
        "version": 1, "name": "small", "task": "long_tailed", "seed": 3,
        "data": {"format": "synthetic",
                 "synthetic": {"height": 12, "width": 12, "channels": 3, "classes": 4, "train_per_class": 60,
                               "test_per_class": 20},
                 "long_tail": {"kind": "exp", "factor": 4}, "holdout_per_class": 10,
                 "augment": {"crop_padding": 2, "flip": True}},
        "model": {"arch": "resnet8", "width": 0.25},
        "batchformer": {"enabled": True, "heads": 4, "dropout": 0.5},
        "optim": {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "schedule": {"kind": "cosine", "warmup_epochs": 0.5}},
        "train": {"epochs": 3, "batch_size": 24, "log_every_steps": 1},
        "eval": {"every_epochs": 1, "batch_size": 32},
        "checkpoint": {"every_steps": 5, "keep": 2},
    }
    for path, value in changes.items():
        at = spec
        *parents, last = path.split("__")
        for key in parents:
            at = at.setdefault(key, {})
        at[last] = value
    return spec


def has_bf16():
    """Whether the CPU worker takes train.precision "bf16" here: oneDNN does with AVX-512."""
    flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    return {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= set(flags)


def command(job, run_dir, *args, ranks=None, program="batchformer-worker"):
    """ranks None: no launcher at all."""
    head = [] if ranks is None else ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
    return head + [str(bin_dir() / program), "--job", str(job), "--run-dir", str(run_dir),
                   *map(str, args)]


def environment(ranks, more):
    return {**os.environ, **ENV, **({} if ranks is None else MPI_ENV), **(more or {})}


def write_job(folder, spec, name="job.json"):
    path = pathlib.Path(folder) / name
    path.write_text(json.dumps(spec))
    return path


def run(folder, spec, *args, ranks=None, run_dir="run", env=None, timeout=120, expect=0,
        program="batchformer-worker"):
    """Runs a job to its end and checks its exit status (None: any). Returns (run directory, CompletedProcess)."""
    folder = pathlib.Path(folder)
    job, where = write_job(folder, spec), folder / run_dir
    p = subprocess.run(command(job, where, *args, ranks=ranks, program=program), capture_output=True, text=True, timeout=timeout,
                       env=environment(ranks, env))
    assert expect is None or p.returncode == expect, f"exit status {p.returncode}\n{p.stdout}\n{p.stderr}"
    return where, p


def start(folder, spec, *args, ranks=None, run_dir="run", env=None):
    """Starts a job; returns (run directory, Popen)."""
    folder = pathlib.Path(folder)
    job, where = write_job(folder, spec), folder / run_dir
    p = subprocess.Popen(command(job, where, *args, ranks=ranks), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         text=True, env=environment(ranks, env))
    return where, p


def wait_for(condition, what, timeout=60):
    """Polls until condition() is true; its value is returned."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {timeout} s: {what}")


def metrics(run_dir, kind=None):
    path = pathlib.Path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [m for m in lines if kind is None or m["kind"] == kind]


def losses(run_dir):
    return {m["step"]: m["loss"] for m in metrics(run_dir, "step")}


def result(run_dir):
    return json.loads((pathlib.Path(run_dir) / "result.json").read_text())


def log(run_dir, rank=0):
    return (pathlib.Path(run_dir) / "log" / f"rank-{rank:04d}.log").read_text()


def checkpoints(run_dir):
    folder = pathlib.Path(run_dir) / "checkpoints"
    return sorted(int(p.name[5:]) for p in folder.glob("step-*")) if folder.exists() else []


DTYPES = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4"}


def read_safetensors(path):
    """{name: array}; written independently of the C reader."""
    data = pathlib.Path(path).read_bytes()
    n, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    header.pop("__metadata__", None)
    out = {}
    for name, t in header.items():
        begin, end = (8 + n + o for o in t["data_offsets"])
        out[name] = np.frombuffer(data[begin:end], DTYPES[t["dtype"]]).reshape(t["shape"])
    return out


def write_safetensors(path, tensors):
    header, blobs, at = {}, [], 0
    for name, a in tensors.items():
        code = next(k for k, v in DTYPES.items() if np.dtype(v) == a.dtype)
        blob = np.ascontiguousarray(a).tobytes()
        header[name] = {"dtype": code, "shape": list(a.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_idx(folder, damage=None, images=None):
    """A tiny data set of the MNIST family; damage names the file that is cut short; images(part, n) makes others than
    noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, n in (("train", 80), ("t10k", 20)):
        labels = np.arange(n, dtype=np.uint8) % 2
        pixels = images(part, n) if images else rng.integers(0, 256, (n, 12, 12), dtype=np.uint8)
        for kind, a, magic in (("images-idx3", pixels, 0x803), ("labels-idx1", labels, 0x801)):
            data = struct.pack(">I", magic) + b"".join(struct.pack(">I", d) for d in a.shape) + a.tobytes()
            name = f"{part}-{kind}-ubyte"
            (folder / f"{name}.gz").write_bytes(gzip.compress(data[:-10] if damage == name else data))


def idx_spec(path):
    spec = make_spec(train__epochs=1)
    spec["data"] = {"format": "idx", "path": str(path), "holdout_per_class": 5}
    return spec


def deviation(a, b):
    """‖a - b‖ / ‖a‖ in double precision."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12))


def worst(a, b, prefix=""):
    """(largest deviation, name) over the tensors of a whose names begin so; both must have the same."""
    names = {n for n in a if n.startswith(prefix)}
    assert names and names == {n for n in b if n.startswith(prefix)}
    return max((deviation(a[n], b[n]), n) for n in names)
