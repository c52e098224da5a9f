#!/usr/bin/env python3
"""PyTorch on CPUs doing what bench_step does: the same network, mini-batch and optimiser (torch_nets.py).

    torch_cpu.py [--threads 2] [--ranks 1]
    torchrun --nproc-per-node R torch_cpu.py --once REQUEST      one request; says when the first step was done

Run by bench/run, which keeps the process between measurements, so that what was compiled stays. The first line that it
writes says what it is; then it reads requests, one JSON object a line,

    {"arch": "resnet20", "precision": "fp32", "batch": 128, "size": 28, "channels": 1, "classes": 10, "batchformer": true,
     "heads": 4, "dropout": 0.5, "layout": "channels_last", "mode": "eager", "warm": 3, "steps": 20, "seconds": 0}

and answers each with a line: images_per_s and step_ms (median, min, max), parameters, losses of all steps, peak_rss_bytes of each
rank (VmHWM, since the process began), import_rss_bytes (what was resident when torch was imported and nothing made), or
{"error": …}. Between requests it waits on stdin and uses no CPU.

arch "layer" is torch.nn.TransformerEncoderLayer alone on N × C features, N = batch, C = "features", forward and backward
to the features and the weights, without an optimiser. "layout": contiguous or channels_last; of layer sequence_first or
batch_first. "mode": eager, compile or max-autotune. "precision": fp32 or bf16 (autocast). "seconds" above 0: as many
steps as fit, 5 at least.

--ranks R: R processes of --threads each, DistributedDataParallel over gloo, which averages gradients. Batch norm and the
BatchFormer then see their own rank's rows only: PyTorch has no synchronised batch norm on CPUs, and what gathers features
with their gradients is not in it. So it does less than the worker.
"""
import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import torch


def status_bytes(key):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


IMPORT_RSS = status_bytes("VmRSS")

import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from torch_nets import Layer, Net, sgd  # noqa: E402

MIN_STEPS, MAX_STEPS = 5, 2000
KEYS = ("arch", "precision", "batch", "size", "channels", "classes", "features", "batchformer", "heads", "dropout", "layout",
        "mode")
LAYOUTS = {"layer": ("sequence_first", "batch_first"), "": ("contiguous", "channels_last")}


def check(q):
    layouts = LAYOUTS.get(q["arch"], LAYOUTS[""])
    for key, accepted in (("layout", layouts), ("mode", ("eager", "compile", "max-autotune")), ("precision", ("fp32", "bf16"))):
        if q[key] not in accepted:
            raise ValueError(f"{key}: {q[key]!r} found; {', '.join(accepted)} are accepted")
    if q["arch"] == "layer" and size() > 1:
        raise ValueError(f"arch layer: {size()} ranks found, 1 is accepted")


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def size():
    return dist.get_world_size() if dist.is_initialized() else 1


def compiled(net, mode):
    if mode == "eager":
        return net
    if not hasattr(torch, "compile"):
        raise RuntimeError(f"PyTorch {torch.__version__} has no torch.compile")
    return torch.compile(net, mode=None if mode == "compile" else mode, dynamic=False)


class Trainer:
    """One network in one setting, kept between measurements."""

    def __init__(self, q):
        check(q)
        torch.manual_seed(0)
        self.q, self.layer = q, q["arch"] == "layer"
        first, end = q["batch"] * rank() // size(), q["batch"] * (rank() + 1) // size()
        self.labels = torch.arange(first, end) % q["classes"]
        if self.layer:
            self.net = Layer(q["features"], q["classes"], q["heads"], q["dropout"], q["layout"] == "batch_first")
            self.x, self.optim = torch.randn(q["batch"], q["features"], requires_grad=True), None
        else:
            self.net = Net(q["arch"], q["channels"], q["classes"], q["batchformer"], q["heads"], q["dropout"])
            self.x = torch.rand(end - first, q["channels"], q["size"], q["size"]) * 2 - 1
            if q["layout"] == "channels_last":
                self.net = self.net.to(memory_format=torch.channels_last)
                self.x = self.x.contiguous(memory_format=torch.channels_last)
            self.optim = sgd(self.net)
        self.both = not self.layer and q["batchformer"]
        net = self.net
        if size() > 1:
            net = torch.nn.parallel.DistributedDataParallel(net, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.forward = compiled(net, q["mode"])

    def step(self):
        bf16 = self.q["precision"] == "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
            logits = self.forward(self.x)
        loss = F.cross_entropy(logits.float(), torch.cat([self.labels, self.labels]) if self.both else self.labels)
        if self.optim:
            self.optim.zero_grad(set_to_none=True)
        else:
            self.x.grad = None
            for p in self.net.parameters():
                p.grad = None
        loss.backward()
        if self.optim:
            self.optim.step()
        return loss.item()

    def timed(self, n):
        times, losses = [], []
        for _ in range(n):
            start = time.perf_counter()
            losses.append(self.step())
            times.append(time.perf_counter() - start)
        return times, losses

    def measure(self, q):
        self.net.train()
        warm, losses = self.timed(q["warm"])
        n = q["steps"]
        if q["seconds"] and warm:
            n = max(MIN_STEPS, min(MAX_STEPS, int(q["seconds"] / warm[-1])))
        if size() > 1:
            told = [n]
            dist.broadcast_object_list(told)  # rank 0's
            n = told[0]
        times, more = self.timed(n)
        return times, losses + more


def spread(v, everything=False):
    return {"median": statistics.median(v), "min": min(v), "max": max(v), **({"all": v} if everything else {})}


def gathered(value):
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value)
    return values


def answer(trainers, q):
    key = tuple(q.get(k) for k in KEYS)
    if key not in trainers:
        trainers[key] = Trainer(q)
    times, losses = trainers[key].measure(q)
    if not times:
        return {"error": "no step was asked for"}
    return {"images_per_s": spread([q["batch"] / t for t in times]), "step_ms": spread([1e3 * t for t in times], True),
            "parameters": sum(p.numel() for p in trainers[key].net.parameters()), "losses": losses, "peak_rss_bytes": gathered(status_bytes("VmHWM")), "import_rss_bytes": IMPORT_RSS,
            "pids": gathered(os.getpid())}


def requests():
    """Rank 0's lines, on every rank."""
    if rank() == 0:
        for line in sys.stdin:
            q = [json.loads(line)]
            if size() > 1:
                dist.broadcast_object_list(q)
            yield q[0]
        if size() > 1:
            dist.broadcast_object_list([None])
        return
    while True:
        q = [None]
        dist.broadcast_object_list(q)
        if q[0] is None:
            return
        yield q[0]


def serve():
    trainers = {}
    for q in requests():
        try:
            a = answer(trainers, q)
        except Exception as e:  # no memory, no torch.compile, no compiler for it, a bad request: a row that says so
            a = {"error": f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"}
        if rank() == 0:
            print(json.dumps(a), flush=True)
        if "error" in a and size() > 1:  # the ranks may no longer be at the same place
            return


def once(q):
    """The first step under torchrun, which is our parent."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    Trainer(q).step()
    now = time.time()
    if rank() == 0:
        print(json.dumps({"first_step_at": now}), flush=True)
    if dist.is_initialized():
        dist.barrier()  # a rank that leaves while another still talks to it makes that one fail
        dist.destroy_process_group()


def serve_ranks(args):
    others = []
    with tempfile.TemporaryDirectory() as folder:
        meet = args.meet or f"{folder}/meet"
        if args.rank == 0:
            others = [subprocess.Popen([sys.executable, __file__, "--threads", str(args.threads), "--ranks", str(args.ranks),
                                        "--rank", str(r), "--meet", meet], stdin=subprocess.DEVNULL)
                      for r in range(1, args.ranks)]
        dist.init_process_group("gloo", init_method=f"file://{meet}", rank=args.rank, world_size=args.ranks)
        introduce(args)
        serve()
        dist.destroy_process_group()
        for other in others:
            other.wait()


def introduce(args):
    if args.rank == 0:
        print(json.dumps({"torch": torch.__version__, "threads": args.threads, "ranks": args.ranks,
                          "import_rss_bytes": IMPORT_RSS}), flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--ranks", type=int, default=1)
    p.add_argument("--once", type=json.loads, metavar="REQUEST")
    p.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    p.add_argument("--meet", help=argparse.SUPPRESS)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    if args.once:
        once(args.once)
    elif args.ranks > 1:
        serve_ranks(args)
    else:
        introduce(args)
        serve()


if __name__ == "__main__":
    main()
