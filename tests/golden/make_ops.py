#!/usr/bin/python3
"""Writes tests/golden/data/ops_*.bin: inputs, outputs and gradients of operators, as PyTorch computes them in fp64.

Run it by hand when a case is added (Debian's python3-torch is enough); the tests only read the files. Each case is
known to tests/ops/test_ops_golden.c by its name, which also holds its attributes.

A file is "BFGOLD1\\n", a little-endian u32 count, and that many tensors: u32 length of the name, the name, u32 type
(0 f32, 1 f64, 2 i32), u32 dimensions, i64 sizes, the elements. Names are CASE.in0 …, CASE.dout, CASE.out, CASE.din0 …
"""
import os
import struct

import numpy as np
import torch
import torch.nn.functional as F

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
TYPES = {np.dtype("float32"): 0, np.dtype("float64"): 1, np.dtype("int32"): 2}


class Fixture:
    def __init__(self, name):
        self.path = os.path.join(DATA, name)
        self.tensors = []

    def add(self, name, value):
        value = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if value.dtype == np.float64 and value.shape != (1,):
            value = value.astype(np.float32)
        self.tensors.append((name, np.ascontiguousarray(value)))

    def write(self):
        with open(self.path, "wb") as f:
            f.write(b"BFGOLD1\n" + struct.pack("<I", len(self.tensors)))
            for name, v in self.tensors:
                f.write(struct.pack("<I", len(name)) + name.encode())
                f.write(struct.pack("<II", TYPES[v.dtype], v.ndim) + struct.pack(f"<{v.ndim}q", *v.shape))
                f.write(v.tobytes())


def draw(*shape, scale=1.0, shift=0.0):
    """Numbers that fp32 holds exactly, as fp64: what is rounded is the result only."""
    return (torch.randn(*shape) * scale + shift).float().double().requires_grad_()


def nhwc(t):
    return t.permute(0, 2, 3, 1)


def record(fx, case, ins, out, dout=None, show=lambda t: t):
    """ins: list of (tensor, wants_gradient). Runs backward from dout. `show` lays a tensor out as we store it."""
    if dout is None:
        dout = torch.randn(out.shape).float().double()
    out.backward(dout)
    for i, (t, wants) in enumerate(ins):
        fx.add(f"{case}.in{i}", show(t))
        if wants:
            fx.add(f"{case}.din{i}", show(t.grad))
    fx.add(f"{case}.dout", show(dout))
    fx.add(f"{case}.out", show(out))


def image_or_same(t):
    return nhwc(t) if t.dim() == 4 else t


def conv(fx):
    cases = [  # name, n, ci, h, w, co, k, stride, pad, groups
        ("conv_3x3", 2, 16, 8, 7, 16, 3, 1, 1, 1),
        ("conv_3x3_s2", 2, 16, 8, 8, 32, 3, 2, 1, 1),
        ("conv_3x3_s2_odd", 1, 8, 7, 9, 12, 3, 2, 1, 1),
        ("conv_stem3", 2, 3, 8, 8, 16, 3, 1, 1, 1),
        ("conv_stem1", 2, 1, 8, 8, 16, 3, 1, 1, 1),
        ("conv_7x7_s2", 1, 3, 18, 18, 16, 7, 2, 3, 1),
        ("conv_1x1", 2, 20, 5, 5, 24, 1, 1, 0, 1),
        ("conv_1x1_s2", 2, 16, 7, 7, 32, 1, 2, 0, 1),
        ("conv_groups", 2, 32, 6, 6, 32, 3, 1, 1, 8),
        ("conv_groups_s2", 2, 12, 6, 6, 8, 3, 2, 1, 4),
    ]
    for name, n, ci, h, w, co, k, s, p, g in cases:
        x, wt = draw(n, ci, h, w), draw(co, ci // g, k, k, scale=0.2)
        out = F.conv2d(x, wt, stride=s, padding=p, groups=g)
        dout = torch.randn(out.shape).float().double()
        out.backward(dout)
        for key, t in (("in0", nhwc(x)), ("din0", nhwc(x.grad)), ("in1", wt), ("din1", wt.grad), ("dout", nhwc(dout)),
                       ("out", nhwc(out))):
            fx.add(f"{name}.{key}", t)


def pixels(fx):
    for name, k, s, p, h in (("maxpool_3x3_s2", 3, 2, 1, 9), ("maxpool_2x2", 2, 2, 0, 6)):
        x = draw(2, 5, h, h)
        record(fx, name, [(x, True)], F.max_pool2d(x, k, s, p), show=image_or_same)
    x = (torch.randint(0, 3, (2, 4, 7, 7)).double()).requires_grad_()  # many ties
    record(fx, "maxpool_ties", [(x, True)], F.max_pool2d(x, 3, 2, 1), show=image_or_same)
    x = draw(3, 6, 4, 5)
    record(fx, "mean_spatial", [(x, True)], F.adaptive_avg_pool2d(x, 1).flatten(1), show=image_or_same)
    for name, c, co, s, h in (("shortcut", 16, 32, 2, 6), ("shortcut_odd", 3, 8, 2, 5)):
        x = draw(2, c, h, h)
        front = (co - c) // 2
        record(fx, name, [(x, True)], F.pad(x[:, :, ::s, ::s], (0, 0, 0, 0, front, co - c - front)),
               show=image_or_same)


def batchnorm(fx):
    """The whole of training-mode batch norm: what bn_stats and bn_apply do together."""
    for name, shape, residual, relu, shift in (
            ("bn", (4, 16, 5, 5), False, False, 0.3),
            ("bn_relu", (4, 20, 5, 5), False, True, 0.0),
            ("bn_residual_relu", (6, 16, 6, 6), True, True, 0.0),
            ("bn_features", (33, 7), False, False, 1.0),
            ("bn_far_mean", (4, 8, 6, 6), False, False, 30.0)):
        c = shape[1]
        x, res = draw(*shape, shift=shift), draw(*shape)
        gamma, beta = draw(c, scale=0.3, shift=1), draw(c, scale=0.3)
        mean, var = draw(c).detach(), draw(c, scale=0.1, shift=1).detach()
        for key, t in (("mean", mean), ("var", var)):
            fx.add(f"{name}.{key}", t.clone())
        out = F.batch_norm(x, mean, var, gamma, beta, training=True, momentum=0.1, eps=1e-5)
        out = out + res if residual else out
        out = F.relu(out) if relu else out
        dout = torch.randn(out.shape).float().double()
        out.backward(dout)
        for key, t in (("x", x), ("dx", x.grad), ("gamma", gamma), ("dgamma", gamma.grad), ("beta", beta),
                       ("dbeta", beta.grad), ("mean_after", mean), ("var_after", var), ("dout", dout), ("out", out)):
            fx.add(f"{name}.{key}", image_or_same(t))
        if residual:
            fx.add(f"{name}.res", image_or_same(res))
            fx.add(f"{name}.dres", image_or_same(res.grad))


def norm(fx):
    for name, residual, relu in (("bn_infer", False, False), ("bn_infer_residual_relu", True, True)):
        x, res, gamma, beta, mean = draw(2, 9, 3, 3), draw(2, 9, 3, 3), draw(9), draw(9), draw(9)
        var = draw(9, scale=0.1, shift=1)
        out = F.batch_norm(x, mean.detach(), var.detach(), gamma, beta, training=False, eps=1e-5)
        out = F.relu(out + res) if relu else out
        for i, t in enumerate([x, gamma, beta, mean, var] + ([res] if residual else [])):
            fx.add(f"{name}.in{i}", image_or_same(t))
        fx.add(f"{name}.out", image_or_same(out))
    for name, m, c in (("layernorm", 9, 64), ("layernorm_odd", 40, 33)):
        x, gamma, beta = draw(m, c, shift=2), draw(c), draw(c)
        record(fx, name, [(x, True), (gamma, True), (beta, True)], F.layer_norm(x, (c,), gamma, beta, 1e-5))


def attention(fx):
    """multi_head_attention_forward with identity projections: q, k and v as they are."""
    for name, n, keys, c, heads in (("attention_4heads", 12, 12, 32, 4), ("attention_slice", 5, 14, 24, 3)):
        q, kv = draw(n, c), draw(keys, 2 * c)
        eye = torch.eye(c, dtype=torch.float64)
        k, v = kv[:, :c], kv[:, c:]
        out, _ = F.multi_head_attention_forward(
            q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), c, heads, torch.cat([eye, eye, eye]), None, None, None,
            False, 0.0, eye, None, training=True, need_weights=False)
        record(fx, name, [(q, True), (kv, True)], out.squeeze(1))


def misc(fx):
    x, w, b = draw(9, 20), draw(13, 20), draw(13)
    record(fx, "linear", [(x, True), (w, True)], F.linear(x, w))
    x, w = draw(9, 20), draw(13, 20)
    record(fx, "linear_bias", [(x, True), (w, True), (b, True)], F.linear(x, w, b))
    x = draw(30, 21, scale=2)
    record(fx, "relu", [(x, True)], F.relu(x))
    x = draw(30, 21, scale=2)
    record(fx, "gelu", [(x, True)], F.gelu(x))
    a, b = draw(7, 19), draw(7, 19)
    record(fx, "add", [(a, True), (b, True)], a + b)
    a, b = draw(3, 5), draw(4, 5)
    record(fx, "concat", [(a, True), (b, True)], torch.cat([a, b]))
    x = draw(9, 4)
    record(fx, "slice", [(x, True)], x[2:6])
    for name, m, k, offset in (("xent", 16, 10, False), ("xent_offset", 12, 100, True)):
        z, y = draw(m, k, scale=3), torch.randint(0, k, (m,))
        prior = draw(k).detach()
        ins = [(z, True), (y.int(), False)] + ([(prior, False)] if offset else [])
        loss = F.cross_entropy(z + prior if offset else z, y, reduction="sum") / (2 * m)
        record(fx, name, ins, loss.reshape(1), torch.tensor([0.75], dtype=torch.float64))


def main():
    torch.manual_seed(20)
    for name, fill in (("ops_conv.bin", (conv,)), ("ops_norm.bin", (batchnorm, norm)),
                       ("ops_misc.bin", (pixels, attention, misc))):
        fx = Fixture(name)
        for f in fill:
            f(fx)
        fx.write()


if __name__ == "__main__":
    main()
