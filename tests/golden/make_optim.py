#!/usr/bin/python3
"""Writes tests/golden/data/optim.bin: some steps of each optimiser as torch.optim makes them in fp64, LARS as the plain
formula has it (PyTorch has none), each with a moving average of the weights.

Run it by hand when a case is added; tests/ops/test_optim_golden.c only reads the file and holds the same settings by
the cases' names. The format is make_ops.py's. Names are start.PARAM, gradK.PARAM for step K from 1, and after the last
step CASE.PARAM and CASE.STATE.PARAM.
"""
import numpy as np
import torch

from make_ops import Fixture, draw

STEPS = 6
RATES = [0.02, 0.04, 0.04, 0.03, 0.01, 0.002]
DECAY = 0.05
MODULE = "batchformer.w"  # half the rate, no decay
EMA = 0.75

SHAPES = {"conv.weight": (8, 3, 3, 3), "bn.weight": (8,), "bn.bias": (8,), MODULE: (6, 9), "fc.weight": (4, 40),
          "fc.bias": (4,)}


def start():
    weights = {n: draw(*shape, scale=0.3).detach() for n, shape in SHAPES.items()}
    weights["fc.weight"].zero_()  # a tensor without a direction: LARS has no ratio for it yet
    return weights


def gradients():
    return [{n: draw(*shape, scale=0.5 / (k + 1)).detach() for n, shape in SHAPES.items()} for k in range(STEPS)]


def scale_of(name):
    return 0.5 if name == MODULE else 1.0


class Torch:
    """An optimiser of torch.optim; states: our name → torch's."""

    def __init__(self, make, states):
        self.make, self.names = make, states

    def begin(self, weights):
        self.params = {n: w.clone().requires_grad_() for n, w in weights.items()}
        groups = [{"params": [p], "lr": 0.0, "weight_decay": 0.0 if n == MODULE else DECAY, "name": n}
                  for n, p in self.params.items()]
        self.optim = self.make(groups)

    def step(self, grads, rate, max_norm):
        for n, p in self.params.items():
            p.grad = grads[n].clone()
        if max_norm:
            torch.nn.utils.clip_grad_norm_(self.params.values(), max_norm)
        for group in self.optim.param_groups:
            group["lr"] = rate * scale_of(group["name"])
        self.optim.step()

    def weights(self):
        return {n: p.detach().clone() for n, p in self.params.items()}

    def states(self):
        return {ours: {n: self.optim.state[p][torchs] for n, p in self.params.items()}
                for ours, torchs in self.names.items()}


class Lars:
    """You, Gitman, Ginsburg, arXiv 1708.03888, with the rate outside of the momentum; in numpy. Tensors of one dimension
    neither adapt nor decay."""

    def __init__(self, momentum, nesterov, trust_coefficient, eps):
        self.momentum, self.nesterov, self.trust_coefficient, self.eps = momentum, nesterov, trust_coefficient, eps

    def begin(self, weights):
        self.w = {n: w.numpy().copy() for n, w in weights.items()}
        self.m = {n: np.zeros_like(w) for n, w in self.w.items()}

    def step(self, grads, rate, max_norm):
        grads = {n: g.numpy() for n, g in grads.items()}
        length = np.sqrt(sum((g ** 2).sum() for g in grads.values()))
        clip = min(1.0, max_norm / (length + 1e-6)) if max_norm else 1.0
        for n, w in self.w.items():
            g, decay = clip * grads[n], 0.0 if n == MODULE or w.ndim == 1 else DECAY
            w_norm, g_norm, trust = np.linalg.norm(w), np.linalg.norm(g), 1.0
            if w.ndim > 1 and w_norm > 0 and g_norm > 0:
                trust = self.trust_coefficient * w_norm / (g_norm + decay * w_norm + self.eps)
            d = trust * (g + decay * w)
            self.m[n] = self.momentum * self.m[n] + d
            self.w[n] = w - rate * scale_of(n) * (d + self.momentum * self.m[n] if self.nesterov else self.m[n])

    def weights(self):
        return {n: torch.from_numpy(w.copy()) for n, w in self.w.items()}

    def states(self):
        return {"momentum": {n: torch.from_numpy(m) for n, m in self.m.items()}}


MOMENTS = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
BETAS = {"betas": (0.8, 0.95), "eps": 1e-6}

CASES = {  # name → optimiser, max_grad_norm (0: none)
    "sgd": (Torch(lambda g: torch.optim.SGD(g, momentum=0.9, nesterov=True), {"momentum": "momentum_buffer"}), 0),
    "adam": (Torch(lambda g: torch.optim.Adam(g, **BETAS), MOMENTS), 0),
    "adamw": (Torch(lambda g: torch.optim.AdamW(g, **BETAS), MOMENTS), 0),
    "adamw_clip": (Torch(lambda g: torch.optim.AdamW(g), MOMENTS), 1.5),
    "lars": (Lars(0.9, False, 0.02, 1e-8), 0),
    "lars_clip": (Lars(0.5, True, 0.5, 1e-3), 1.5),
}


def run(case, weights, grads):
    """→ weights, {state: tensors} after the last step, the average among them."""
    optimiser, max_norm = case
    optimiser.begin(weights)
    average = weights
    for k in range(STEPS):
        optimiser.step(grads[k], RATES[k], max_norm)
        average = {n: EMA * average[n] + (1 - EMA) * w for n, w in optimiser.weights().items()}
    return optimiser.weights(), {**optimiser.states(), "ema": average}


def main():
    torch.manual_seed(31)
    fx, weights, grads = Fixture("optim.bin"), start(), gradients()
    for n in SHAPES:
        fx.add(f"start.{n}", weights[n])
        for k in range(STEPS):
            fx.add(f"grad{k + 1}.{n}", grads[k][n])
    for name, case in CASES.items():
        after, states = run(case, weights, grads)
        for n in SHAPES:
            fx.add(f"{name}.{n}", after[n])
            for state, tensors in states.items():
                fx.add(f"{name}.{state}.{n}", tensors[n])
    fx.write()


if __name__ == "__main__":
    main()
