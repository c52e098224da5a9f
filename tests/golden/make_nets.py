#!/usr/bin/env python3
"""Writes tests/golden/data/net_*.json: one training step of whole networks with the BatchFormer in PyTorch.

Run by hand with Debian's python3-torch and python3-torchvision; the tests read the results only. Weights, images
and labels are functions of names and counters (philox.py), so a fixture holds just the loss, every gradient's norm
and 32 random ±1 projections of it, and the running statistics after the step. The root of the mean square of the
projections' deviations estimates the norm of the gradient's deviation.
"""

import json
import math
import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision

import philox
from nets import CifarResNet, Net

SEED = 11
OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")


def initial_value(name, p, cifar):
    n = p.numel()
    if p.dim() == 4:
        fan = (p.shape[1] if cifar else p.shape[0]) * p.shape[2] * p.shape[3]
        v = philox.normal(SEED, name, n, math.sqrt(2.0 / fan))
    elif name.endswith("in_proj_weight"):
        v = philox.uniform(SEED, name, n, math.sqrt(6.0 / (4 * p.shape[1])))
    elif "norm" in name or "bn" in name or "downsample.1" in name:
        v = np.full(n, 1.0 if name.endswith("weight") else 0.0, np.float32)
    elif name.endswith("in_proj_bias") or name.endswith("out_proj.bias"):
        v = np.zeros(n, np.float32)
    else:  # nn.Linear's default, also for its bias
        v = philox.uniform(SEED, name, n, 1 / math.sqrt(initial_value.fan_in[name]))
    return torch.from_numpy(v.copy()).reshape(p.shape)


def linear_fan_in(model):
    fans = {}
    for name, m in model.named_modules():
        if isinstance(m, nn.Linear):
            for leaf in ("weight", "bias"):
                fans[model.public_name(f"{name}.{leaf}")] = m.in_features
    return fans


def projections(name, g):
    """32 sums of ±g: bit k of word i of the stream decides the sign of element i in projection k."""
    g = g.detach().double().numpy().reshape(-1)
    w = philox.words(SEED, philox.stream("sign." + name), g.size)
    return [float(np.dot(1.0 - 2.0 * ((w >> np.uint32(k)) & np.uint32(1)), g)) for k in range(32)]


def make(fixture, model, cifar, batch, size, channels, classes, priors=None):
    names = {model.public_name(n): p for n, p in model.named_parameters()}
    initial_value.fan_in = linear_fan_in(model)
    with torch.no_grad():
        for name, p in names.items():
            p.copy_(initial_value(name, p, cifar))
    n = batch * size * size * channels
    x = (philox.words(SEED, philox.stream("images"), n) >> np.uint32(8)).astype(np.float32) / 2**24 * 2 - 1
    x = torch.from_numpy(x.reshape(batch, size, size, channels)).permute(0, 3, 1, 2).contiguous()
    y = torch.arange(batch) % classes
    model.train().double()  # the reference is computed in float64
    logits = model(x.double())
    if priors:
        logits = logits + torch.log(torch.tensor(priors, dtype=torch.float64))
    loss = F.cross_entropy(logits, torch.cat([y, y]))
    loss.backward()
    doc = {
        "loss": loss.item(),
        "grads": {n: {"norm": p.grad.norm().item(), "proj": projections(n, p.grad)} for n, p in names.items()},
        "buffers": {
            model.public_name(n): {"norm": b.norm().item(), "sum": b.sum().item()}
            for n, b in model.named_buffers()
            if "num_batches" not in n
        },
    }
    with open(os.path.join(OUT, fixture + ".json"), "w") as f:
        json.dump(doc, f)
    print(fixture, doc["loss"], len(doc["grads"]))


def torchvision_net(name, classes):
    backbone = getattr(torchvision.models, name)(weights=None)
    width = backbone.fc.in_features
    backbone.fc = nn.Identity()
    return Net(backbone, width, 4, classes, "fc")


def small_stem(net):
    """For small images: 3×3, stride 1, no max pooling."""
    net.backbone.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    net.backbone.maxpool = nn.Identity()
    return net


def state_dict_names():
    """Names and shapes that a torchvision user expects."""
    doc = {}
    for name in ("resnet18", "resnet50"):
        sd = getattr(torchvision.models, name)(weights=None).state_dict()
        doc[name] = {k: list(v.shape) for k, v in sd.items() if "num_batches" not in k}
    with open(os.path.join(OUT, "torchvision_names.json"), "w") as f:
        json.dump(doc, f)


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_num_threads(1)
    counts = [float(500 // (c + 1)) for c in range(10)]
    make("net_resnet20", Net(CifarResNet(3, 1), 64, 4, 10, "linear"), True, 24, 28, 1, 10, counts)
    make("net_resnet18", torchvision_net("resnet18", 7), False, 6, 64, 3, 7)
    make("net_resnet50", torchvision_net("resnet50", 7), False, 6, 64, 3, 7)
    make("net_cifar-resnet18", small_stem(torchvision_net("resnet18", 7)), False, 6, 16, 3, 7)
    state_dict_names()


main()
