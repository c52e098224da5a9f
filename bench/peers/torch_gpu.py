#!/usr/bin/env python3
"""PyTorch doing what the worker does: a ResNet, torch.nn.TransformerEncoderLayer over the mini-batch, one classifier on
both streams, cross entropy, SGD; the mini-batch comes from pinned host memory in every step.

Run by bench/gpu, which keeps one process alive, so that what was compiled stays. Reads requests, one JSON object a line:

    {"arch": "resnet50", "batch": 512, "size": 224, "channels": 3, "classes": 1000, "precision": "bf16",
     "compile": false, "warm": 5, "steps": 20}

and answers each with a line: {"images_per_s": …, "peak_bytes": …} or {"error": …}. PyTorch is given what is usual for
speed: channels-last, autocast, cuDNN's benchmark mode (which may take engines that are not deterministic), a fused
optimiser where there is one, no waiting for the device within the steps.
"""
import contextlib
import json
import sys
import time

import torch
import torch.nn.functional as F

from torch_nets import Net, sgd


class Trainer:
    """One network, kept between measurements."""

    def __init__(self, q, device):
        torch.manual_seed(0)
        self.q, self.device = q, device
        self.net = Net(q["arch"], q["channels"], q["classes"]).to(device, memory_format=torch.channels_last)
        self.optim = sgd(self.net)
        self.forward = torch.compile(self.net) if q["compile"] else self.net

    def step(self, images, labels):
        x = images.to(self.device, non_blocking=True)
        y = labels.to(self.device, non_blocking=True)
        bf16 = self.q["precision"] == "bf16"
        with torch.autocast(self.device, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
            logits = self.forward(x)
        loss = F.cross_entropy(logits.float(), torch.cat([y, y]))
        self.optim.zero_grad(set_to_none=True)
        loss.backward()
        self.optim.step()
        return loss.detach()

    def measure(self, q):
        cuda = self.device == "cuda"
        images = torch.randn(q["batch"], q["channels"], q["size"], q["size"]).contiguous(memory_format=torch.channels_last)
        labels = torch.arange(q["batch"]) % q["classes"]
        if cuda:
            images, labels = images.pin_memory(), labels.pin_memory()
            torch.cuda.reset_peak_memory_stats()
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = q["precision"] == "tf32"
        torch.backends.cudnn.benchmark = True
        for _ in range(q["warm"]):
            loss = self.step(images, labels)
        loss.item()
        start = time.perf_counter()
        for _ in range(q["steps"]):
            loss = self.step(images, labels)
        value = loss.item()  # waits
        seconds = time.perf_counter() - start
        return {"images_per_s": q["batch"] * q["steps"] / seconds, "loss": value,
                "peak_bytes": torch.cuda.max_memory_reserved() if cuda else None}


def main():
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"error": f"PyTorch {torch.__version__} sees no GPU"}), flush=True)
        return
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(json.dumps({"torch": torch.__version__, "device": name, "cuda": torch.version.cuda,
                      "cudnn": torch.backends.cudnn.version()}), flush=True)
    trainers = {}
    for line in sys.stdin:
        q = json.loads(line)
        key = tuple(q[k] for k in ("arch", "batch", "size", "channels", "classes", "precision", "compile"))
        try:
            if key not in trainers:
                trainers[key] = Trainer(q, device)
            answer = trainers[key].measure(q)
        except Exception as e:  # out of memory, no torch.compile, no compiler for it: a row that says so
            trainers.pop(key, None)
            answer = {"error": f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"}
        if device == "cuda":
            torch.cuda.empty_cache()  # the worker runs next, on the same memory
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
