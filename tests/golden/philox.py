"""Philox4x32-10 and the parameter initialisation of worker/engine/params.c, in numpy, so that PyTorch starts from
the very same weights without shipping them."""

import numpy as np

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = 0x9E3779B9, 0xBB67AE85
LOW = np.uint64(0xFFFFFFFF)


def stream(name):
    """FNV-1a, 32 bits."""
    h = 2166136261
    for b in name.encode():
        h = ((h ^ b) * 16777619) & 0xFFFFFFFF
    return h


def philox(seed, stream_id, c0, c1=0, c2=0, c3=0):
    """Blocks for an array of counters c0 → uint32 array (len(c0), 4)."""
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) ^ stream_id
    c0 = np.asarray(c0, np.uint64)
    c1, c2, c3 = (np.full_like(c0, v) if np.isscalar(v) else np.asarray(v, np.uint64) for v in (c1, c2, c3))
    for _ in range(10):
        a, b = M0 * c0, M1 * c2
        n0 = (b >> np.uint64(32)) ^ c1 ^ np.uint64(k0)
        n2 = (a >> np.uint64(32)) ^ c3 ^ np.uint64(k1)
        c0, c1, c2, c3 = n0, b & LOW, n2, a & LOW
        k0, k1 = (k0 + W0) & 0xFFFFFFFF, (k1 + W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def words(seed, stream_id, n, c1=0):
    """n consecutive 32-bit words of a stream."""
    return philox(seed, stream_id, np.arange((n + 3) // 4), c1).reshape(-1)[:n]


def uniform(seed, name, n, bound):
    """INIT_UNIFORM: U(-bound, bound)."""
    u, _ = _pairs(seed, name, n)
    return (bound * (2 * u - 1)).astype(np.float32)


def normal(seed, name, n, std):
    """INIT_NORMAL: N(0, std²) by Box-Muller."""
    u, v = _pairs(seed, name, n)
    return (std * np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)).astype(np.float32)


def _pairs(seed, name, n):
    w = philox(seed, stream(name), np.arange((n + 1) // 2), 0, 0x1417).reshape(-1, 2)[:n]
    w = (w.astype(np.float64) + 1) / 4294967296.0
    return w[:, 0], w[:, 1]
