"""The job that PyTorch and batchformer-worker both train, in numpy: its spec, initial weights, images and their order.

A second implementation of what worker/data says of splits, order and normalisation, for referee.py, which trains
with PyTorch, and for tests/e2e/test_referee.py, which must do without it.
"""

import gzip
import hashlib
import json
import math
import pathlib
import sys

import numpy as np

import philox

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))
from workerlib import write_safetensors  # noqa: E402

STEPS = 50
LR = 0.0005  # at which 50 steps of this net in fp32 stay within 1e-4 of fp64, PyTorch's own included
HIGHER_LR = (0.1,)  # the main job's
INIT_SEED = 2022  # not the job's: a worker that draws its own weights must be noticed
WIDTH, CLASSES = 64, 10


def make_spec(lr=LR, loss="cross_entropy", **changes):
    """deploy/examples/fashion-lt.json without what is drawn at random in a step: dropout and augmentation."""
    spec = json.loads((ROOT / "deploy/examples/fashion-lt.json").read_text())
    spec.update(name="referee", eval={"every_epochs": 0}, checkpoint={"every_steps": 0}, resources={})
    spec["data"]["augment"] = None
    spec["batchformer"]["dropout"] = 0
    spec["loss"]["kind"] = loss
    spec["optim"]["lr"] = lr
    spec["train"]["log_every_steps"] = 1
    for path, value in changes.items():
        section, key = path.split("__")
        spec[section][key] = value
    return spec


# ---- initial weights ----

def shapes():
    """Names as torchvision's and torch.nn.TransformerEncoderLayer's state_dicts have them → shapes."""
    out = {}

    def norm(name, c, batch=True):
        for leaf in ("weight", "bias") + (("running_mean", "running_var") if batch else ()):
            out[f"{name}.{leaf}"] = (c,)

    def conv(name, number, ci, co):
        out[f"{name}conv{number}.weight"] = (co, ci, 3, 3)
        norm(f"{name}bn{number}", co)

    conv("", 1, 1, 16)
    ci = 16
    for stage, co in ((1, 16), (2, 32), (3, 64)):
        for block in range(3):
            conv(f"layer{stage}.{block}.", 1, ci, co)
            conv(f"layer{stage}.{block}.", 2, co, co)
            ci = co
    for name, rows in (("self_attn.in_proj_", 3 * WIDTH), ("self_attn.out_proj.", WIDTH), ("linear1.", WIDTH),
                       ("linear2.", WIDTH)):
        out[f"batchformer.{name}weight"], out[f"batchformer.{name}bias"] = (rows, WIDTH), (rows,)
    norm("batchformer.norm1", WIDTH, batch=False)
    norm("batchformer.norm2", WIDTH, batch=False)
    out["linear.weight"], out["linear.bias"] = (CLASSES, WIDTH), (CLASSES,)
    return out


def initial_weights():
    """Uniform throughout: nothing but +, × and √, which have the same bits on every machine."""
    out = {}
    for name, shape in shapes().items():
        leaf = name.rsplit(".", 1)[1]
        if "bn" in name or "norm" in name:
            v = np.full(shape, 1.0 if leaf in ("weight", "running_var") else 0.0, np.float32)
        else:
            bound = math.sqrt(6 / (shape[1] * 9)) if len(shape) == 4 else math.sqrt(1 / WIDTH)
            v = philox.uniform(INIT_SEED, name, int(np.prod(shape)), bound).reshape(shape)
        out[name] = v
    return out


def write_weights(path):
    write_safetensors(path, initial_weights())
    return str(path)


def hash_of(arrays):
    h = hashlib.sha256()
    for a in arrays:
        h.update(np.ascontiguousarray(a).tobytes())
    return h.hexdigest()


# ---- data ----

def read_idx(folder, name):
    path = pathlib.Path(folder) / name
    data = gzip.decompress(path.with_name(name + ".gz").read_bytes()) if not path.exists() else path.read_bytes()
    n_dims = data[3]
    dims = np.frombuffer(data, ">u4", n_dims, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * n_dims).reshape(dims)


def kept(labels, tail):
    """Positions of the long-tailed training split, class after class (longtail.h)."""
    rng = np.random.RandomState(0)
    out = []
    for c in range(CLASSES):
        of_class = np.flatnonzero(labels == c)
        rng.shuffle(of_class)
        out.append(of_class[:int(tail["max_per_class"] * (1 / tail["factor"]) ** (c / (CLASSES - 1)))])
    return out


def permutation(seed, epoch, n):
    """Fisher-Yates with Philox draws (sampler.h)."""
    i = np.arange(n)
    words = philox.words(seed, philox.stream("data.order"), n, epoch)
    swap = (words.astype(np.uint64) * (i + 1).astype(np.uint64) >> np.uint64(32)).astype(np.int64)
    perm = i.tolist()
    for k in range(n - 1, 0, -1):
        perm[k], perm[swap[k]] = perm[swap[k]], perm[k]
    return np.array(perm)


class Data:
    """images(step) is float32 (N, 1, H, W), as every rank's rows together; labels(step) is (N)."""

    def __init__(self, spec):
        folder = spec["data"]["path"]
        images = read_idx(folder, "train-images-idx3-ubyte")
        labels = read_idx(folder, "train-labels-idx1-ubyte")
        pixels = images.astype(np.float64) / 255
        self.mean, self.std = np.float32(pixels.mean()), np.float32(pixels.std())
        parts = kept(labels, spec["data"]["long_tail"])
        self.class_counts = [len(p) for p in parts]
        at = np.concatenate(parts)
        self.x, self.y = images[at], labels[at].astype(np.int64)
        self.seed, self.batch_size = spec["seed"], spec["train"]["batch_size"]
        self.steps_per_epoch = len(at) // self.batch_size
        self.epoch, self.perm = None, None

    def rows(self, step):
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.epoch, self.perm = epoch, permutation(self.seed, epoch, len(self.y))
        return self.perm[batch * self.batch_size:][:self.batch_size]

    def images(self, step):
        x = self.x[self.rows(step)].astype(np.float32)
        shift, scale = np.float32(255.0 * float(self.mean)), np.float32(1 / (255.0 * float(self.std)))
        return ((x - shift) * scale)[:, None]

    def labels(self, step):
        return self.y[self.rows(step)]


def learning_rate(spec, step, steps_per_epoch):
    """Linear warm-up, then half a cosine (schedule.h)."""
    lr, warmup = spec["optim"]["lr"], round(spec["optim"]["schedule"]["warmup_epochs"] * steps_per_epoch)
    if step < warmup:
        return lr * (step + 1) / warmup
    t = (step - warmup) / (spec["train"]["epochs"] * steps_per_epoch - warmup)
    return lr * (1 + math.cos(math.pi * t)) / 2


def slices(n, ranks):
    """Rows of each rank (sampler.h)."""
    return [slice(n * r // ranks, n * (r + 1) // ranks) for r in range(ranks)]


# ---- comparisons ----

def curve_deviation(a, b):
    """max |a - b| / |a| over the steps."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.max(np.abs(a - b) / np.abs(a)))
