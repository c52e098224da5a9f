#!/usr/bin/env python3
"""PyTorch as referee: trains referee_job.py's job in one process on the whole mini-batch, in the usual wrong ways
over simulated ranks, and with batchformer-worker on 1, 2, 3 and 4 ranks, all from the same weights file; compares
losses, gradients and weights.

    deploy/install-packages build run test referee
    cmake --preset release && cmake --build --preset release
    tests/golden/referee.py

Writes tests/golden/data/referee.json (loss curves that tests/e2e/test_referee.py holds the worker against) and
bench/results/referee.json (everything measured), and prints the tables of docs/results.md. Nearly all the time goes
into PyTorch's convolutions in fp64. Finished runs are kept in build/referee and not done again: remove it after a
change.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # PyTorch splits a convolution over images by itself

import numpy as np  # noqa: E402
import torch  # noqa: E402

import referee_job as job  # noqa: E402
import ways  # noqa: E402
from nets import CifarResNet, Net  # noqa: E402
from referee_tables import RESULTS, tables  # noqa: E402
from workerlib import deviation, losses, read_safetensors, run, worst  # noqa: E402

ROOT = job.ROOT
CURVES = ROOT / "tests/golden/data/referee.json"
RANKS = (1, 2, 3, 4)

MISTAKES = [  # name in the files, function of ways.py, numbers of ranks
    ("local_attention", ways.local_attention, (2, 4)),
    ("gather_without_gradient", ways.gather_without_gradient, (2, 4)),
    ("whole_loss_averaged", ways.whole_loss_averaged, (2, 4)),
    ("mean_for_sum", ways.mean_for_sum, (2, 4)),
    ("mean_of_means", ways.mean_of_means, (3,)),
    ("local_batch_norm", ways.local_batch_norm, (2, 4)),
]


def build_net(dtype):
    net = Net(CifarResNet(3, 1), job.WIDTH, 4, job.CLASSES, "linear")
    state = {n: torch.from_numpy(v.copy()) for n, v in job.initial_weights().items()}
    mine = {net.public_name(n): n for n in net.state_dict() if "num_batches" not in n}
    assert mine.keys() == state.keys(), "the weights file does not have PyTorch's names"
    net.load_state_dict({mine[n]: v for n, v in state.items()}, strict=False)
    return net.train().to(dtype)


def snapshot(net, what):
    return {net.public_name(n): what(p).detach().double().numpy().copy() for n, p in net.named_parameters()}


def train(spec, dtype, way=ways.exact, ranks=1, steps=job.STEPS):
    """→ {"losses", "grads" of step 1, "weights" after the last step}."""
    data, net = job.Data(spec), build_net(dtype)
    offset = torch.zeros((), dtype=dtype)
    if spec["loss"]["kind"] == "balanced_softmax":
        offset = torch.log(torch.tensor(data.class_counts, dtype=torch.float64)).to(dtype)
    optim = spec["optim"]
    sgd = torch.optim.SGD(net.parameters(), lr=1, momentum=optim["momentum"], weight_decay=optim["weight_decay"])
    rows = job.slices(data.batch_size, ranks)
    out = {"losses": []}
    for step in range(steps):
        images, y = torch.from_numpy(data.images(step)).to(dtype), torch.from_numpy(data.labels(step))
        sgd.zero_grad()
        loss, objective = way(net, images, y, offset, rows)
        objective.backward()
        out["losses"].append(loss.item())
        if step == 0:
            out["grads"] = snapshot(net, lambda p: p.grad)
        sgd.param_groups[0]["lr"] = job.learning_rate(spec, step, data.steps_per_epoch)
        sgd.step()
    out["weights"] = snapshot(net, lambda p: p)
    return out


def train_worker(spec, ranks):
    """The same by batchformer-worker, from the weights file."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        spec = {**spec, "init": {"weights": job.write_weights(folder / "initial.safetensors")}}
        first, last = folder / "first.safetensors", folder / "last.safetensors"
        run(folder, spec, "--max-steps", 1, "--dump-step", f"1:{first}", ranks=ranks, run_dir="first", timeout=600)
        where, _ = run(folder, spec, "--max-steps", job.STEPS, "--dump-step", f"{job.STEPS}:{last}", ranks=ranks,
                       run_dir="last", timeout=600)
        curve = losses(where)
        return {"losses": [curve[s] for s in range(1, job.STEPS + 1)],
                "grads": stripped(read_safetensors(first), "grad."),
                "weights": stripped(read_safetensors(last), "param.")}


def stripped(tensors, prefix):
    return {n[len(prefix):]: v for n, v in tensors.items() if n.startswith(prefix)}


def whole(tensors):
    return np.concatenate([np.asarray(tensors[n], np.float64).ravel() for n in sorted(tensors)])


def compare(one, other, start):
    """Deviations of a run from the reference; `start` are the weights that both began with."""
    worst_grad, where = worst(one["grads"], other["grads"])
    moved = np.linalg.norm(whole(one["weights"]) - start)
    off = np.linalg.norm(whole(one["weights"]) - whole(other["weights"]))
    return {"loss_step1": abs(one["losses"][0] - other["losses"][0]) / one["losses"][0],
            "grad_step1": deviation(whole(one["grads"]), whole(other["grads"])),
            "grad_step1_worst": worst_grad, "grad_step1_worst_tensor": where,
            "curve_20": job.curve_deviation(one["losses"][:20], other["losses"][:20]),
            "curve": job.curve_deviation(one["losses"], other["losses"]),
            "weights": deviation(whole(one["weights"]), whole(other["weights"])),
            "weights_of_way": float(off / moved)}


def say(*text):
    print(f"[{time.strftime('%H:%M:%S')}]", *text, file=sys.stderr, flush=True)


# ---- the machine ----

def version_of(package):
    p = subprocess.run(["dpkg-query", "-W", "-f=${Version}", package], capture_output=True, text=True)
    return p.stdout or None


def blas():
    """Which BLAS PyTorch found: it decides how long fp64 takes."""
    maps = Path("/proc/self/maps").read_text()
    return sorted({Path(f).name for f in re.findall(r"\S*/lib\w*blas\S*", maps)})


def facts():
    lscpu = subprocess.run(["lscpu"], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout
    return {"date": time.strftime("%Y-%m-%d"), "cpu": re.search(r"Model name:\s*(.*)", lscpu).group(1),
            "cores": os.cpu_count(), "torch": version_of("python3-torch"),
            "onednn": version_of("libdnnl2"), "open_mpi": version_of("libopenmpi3"),
            "numpy": np.__version__, "blas": blas(), "command": " ".join(["tests/golden/referee.py", *sys.argv[1:]])}


# ---- measurements ----

def tasks():
    """name → arguments of train(): everything that PyTorch computes here, the most wanted first."""
    spec, todo = job.make_spec(), {}
    todo["exact"] = (spec, torch.float64)
    todo["torch_fp32"] = (spec, torch.float32)
    for name, way, numbers in MISTAKES:
        for ranks in numbers:
            todo[f"{name}_{ranks}"] = (spec, torch.float64, way, ranks)
    todo["balanced_softmax"] = (job.make_spec(loss="balanced_softmax"), torch.float64)
    for lr in job.HIGHER_LR:
        todo[f"exact_lr{lr}"] = (job.make_spec(lr), torch.float64)
        todo[f"torch_fp32_lr{lr}"] = (job.make_spec(lr), torch.float32)
    return todo


def worker_tasks():
    todo = {f"worker_{ranks}": (job.make_spec(), ranks) for ranks in RANKS}
    for lr in job.HIGHER_LR:
        todo.update({f"worker_{ranks}_lr{lr}": (job.make_spec(lr), ranks) for ranks in RANKS})
    return todo


def kept(folder, name, function, args):
    """A run, or what an earlier call left of it in folder."""
    path = Path(folder) / f"{name}.pickle"
    if path.exists():
        return pickle.loads(path.read_bytes())
    started = time.monotonic()
    out = function(*args)
    path.with_suffix(".part").write_bytes(pickle.dumps(out))
    path.with_suffix(".part").rename(path)
    say(f"{name}: {time.monotonic() - started:.0f} s, last loss {out['losses'][-1]:.6f}")
    return out


def run_all(folder, processes):
    """One process and one thread for each of PyTorch's runs; the worker's go beside them, one after the other."""
    with multiprocessing.get_context("spawn").Pool(processes, quick_memory) as pool:
        later = {n: pool.apply_async(kept, (folder, n, train, args)) for n, args in tasks().items()}
        done = {n: kept(folder, n, train_worker, args) for n, args in worker_tasks().items()}
        done.update({n: r.get() for n, r in later.items()})
    return done


def quick_memory():
    """PyTorch gives 100 MB back to the system after each convolution in fp64 and half the time would go into getting
    them again; glibc's malloc can keep them (M_MMAP_MAX, M_TRIM_THRESHOLD)."""
    torch.set_num_threads(1)
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-4, 0)
    mallopt(-1, 2**31 - 1)


def check_ways():
    """Over one rank every way is the exact one: what they differ in later is the mistake alone."""
    spec = job.make_spec()
    one = train(spec, torch.float64, steps=1)
    for name, way, _ in MISTAKES:
        other = train(spec, torch.float64, way, 1, steps=1)
        assert job.curve_deviation(one["losses"], other["losses"]) < 1e-12, name
        assert worst(one["grads"], other["grads"]) < (1e-8, ""), name


# ---- what comes of them ----

def rows_of(done):
    """The job at the referee's learning rate, each run against PyTorch in fp64."""
    start = whole({n: v for n, v in job.initial_weights().items() if "running" not in n})
    runs = [("torch_fp32", 1, "torch_fp32")] + [("worker", r, f"worker_{r}") for r in RANKS]
    runs += [(name, r, f"{name}_{r}") for name, _, numbers in MISTAKES for r in numbers]
    return [{"name": name, "ranks": ranks, **compare(done["exact"], done[run_name], start),
             "losses": done[run_name]["losses"]} for name, ranks, run_name in runs]


def rows_of_worker(done):
    """The worker's runs against its own on one rank."""
    start = whole({n: v for n, v in job.initial_weights().items() if "running" not in n})
    return [{"name": "worker", "ranks": r, **compare(done["worker_1"], done[f"worker_{r}"], start)}
            for r in RANKS[1:]]


def rows_of_rate(done, lr):
    """Higher learning rates, where fp32 trajectories part: how far from fp64 are PyTorch's fp32 and the worker?"""
    one, rows = np.array(done[f"exact_lr{lr}"]["losses"]), []
    for name, ranks in [("torch_fp32", 1)] + [("worker", r) for r in RANKS]:
        curve = done[f"torch_fp32_lr{lr}" if name == "torch_fp32" else f"worker_{ranks}_lr{lr}"]["losses"]
        off = np.abs(np.array(curve) - one) / one
        over = np.flatnonzero(off > 1e-4)
        rows.append({"name": name, "ranks": ranks, "curve": float(off.max()), "losses": curve,
                     "first_step_over_1e-4": int(over[0]) + 1 if len(over) else None})
    return {"lr": lr, "torch_fp64": one.tolist(), "rows": rows}


def write_files(done):
    spec = job.make_spec()
    data = job.Data(spec)
    names = ["exact", "balanced_softmax"] + [f"{name}_{r}" for name, _, numbers in MISTAKES for r in numbers]
    about = facts()
    CURVES.write_text(json.dumps({
        "what": "PyTorch in fp64, one process, by tests/golden/referee.py; name_R: that way over R simulated ranks",
        "torch": about["torch"], "spec": spec,
        "initial_weights_sha256": job.hash_of(job.initial_weights().values()),
        "first_batch_sha256": job.hash_of([data.images(0), data.labels(0)]),
        "losses": {n: done[n]["losses"] for n in names}}, indent=1) + "\n")
    doc = {**about, "spec": spec, "reference": "PyTorch, fp64, one process", "torch_fp64": done["exact"]["losses"],
           "rows": rows_of(done), "worker_against_one_rank": rows_of_worker(done),
           "higher_rates": [rows_of_rate(done, lr) for lr in job.HIGHER_LR]}
    RESULTS.write_text(json.dumps(doc, indent=1) + "\n")
    return doc


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--keep", default=str(ROOT / "build/referee"), metavar="DIR",
                   help="finished runs are kept here and taken from here (default: build/referee)")
    p.add_argument("--processes", type=int, default=os.cpu_count(), metavar="N",
                   help="of PyTorch at a time, 3 GB each (default: one a core)")
    a = p.parse_args()
    Path(a.keep).mkdir(parents=True, exist_ok=True)
    check_ways()
    print("\n".join(tables(write_files(run_all(a.keep, a.processes)))))


if __name__ == "__main__":
    main()
