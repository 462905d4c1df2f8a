"""Slice potentials of short sequences, all sorted at once by a sorting network. NumPy, float32, no padding.

A sort of 17 numbers is over before it has begun, and a layer asks for thousands of them. So they stand side by side,
tokens along the first axis, and a network of compare-exchanges, the same for all, sorts every column: a
compare-exchange is a minimum and a maximum of two rows, at the speed of vector instructions. Merge exchange (Batcher;
Knuth, volume 3, algorithm 5.2.2M) needs about n log²(n) / 4 of them: 74 for 17 tokens. Each is a few calls of NumPy
however few columns there are, so that it pays where there are many. Measured, at 17 tokens all this takes a third less
than sorting row by row where there are 1,300 columns (sequences, heads and slices), and half where there are 3,800; at
24 tokens a sixth and a quarter less. From 32 tokens on sorting row by row is as fast.

Shapes: q (b, H, n, d), k (b, H, m, d), theta (H, d, L) or (d, L), w (H, L, 1) -> (b, H, n).
"""

from __future__ import annotations

import functools
import math

import numpy as np

from asap_ref.fast.packing import packed_with_places, unpacked

SHORT = 24  # tokens
MANY = 768  # columns to sort: sequences times slices


def pays(q, k, theta, query_mask, key_mask):
    """Say whether sequences are short, many, and plain: in float32, without padding."""
    plain = isinstance(q, np.ndarray) and q.ndim == 4 and q.dtype == np.float32
    short = plain and query_mask is None and key_mask is None and max(q.shape[-2], k.shape[-2]) <= SHORT
    return short and q.shape[0] * q.shape[1] * theta.shape[-1] >= MANY


def weighted_sum(q, k, theta, w):
    """Sum over the slices of the potentials, each times its weight, up to a constant: the steps of slices.py."""
    x, y = _projected(q, theta), sorted_columns(_projected(k, theta))  # (n, H, L, b), (m, H, L, b)
    n, m = len(x), len(y)
    shape = n, x.shape[1], x.shape[-1]
    places = np.arange(math.prod(shape)).reshape(n, -1, 1, shape[-1])  # of a token, in all that are to come out
    xs, places = unpacked(sorted_columns(packed_with_places(x, places)))
    level = m * np.arange(1, n)  # staircase/levels.py
    before, after = (y[:-1], y[1:]) if n == m else (y[(level - 1) // n], y[np.minimum(level // n, m - 1)])
    steps = before + after
    steps *= xs[1:] - xs[:-1]
    steps *= w
    phi = np.empty(xs.shape)  # float64, as bincount takes it
    phi[0] = 0
    for i in range(n - 1):  # along the first axis NumPy's own cumulative sum is slow
        np.add(phi[i], steps[i], out=phi[i + 1])
    # back to their places, and summed over the slices there
    total = np.bincount(places.reshape(-1), phi.reshape(-1), math.prod(shape)).reshape(shape)
    return total.transpose(2, 1, 0).astype(x.dtype)


def _projected(x, theta):
    """One product for all sequences of a head, a token at a time, so that tokens come out in front: (n, H, L, b)."""
    b, H, n, _ = x.shape
    out = np.empty((n, H, theta.shape[-1], b), x.dtype)  # left to itself, NumPy would lay it out as x
    return np.matmul(theta.swapaxes(-2, -1), x.transpose(2, 1, 3, 0), out=out)


def sorted_columns(x):
    """Sort x (n, ...) along its first axis; x itself is used up."""
    rows, spare = list(x), np.empty_like(x[0])
    for i, j in merge_exchange(len(x)):
        np.minimum(rows[i], rows[j], out=spare)
        np.maximum(rows[i], rows[j], out=rows[j])
        rows[i], spare = spare, rows[i]
    return np.concatenate(rows).reshape(x.shape)  # which np.stack does at twice the price


@functools.cache
def merge_exchange(n):
    """Pairs (i, j), i < j, whose compare-exchanges in this order sort any n numbers.

    Examples
    --------
    >>> merge_exchange(3)
    ((0, 2), (0, 1), (1, 2))
    """
    pairs, top = [], 1 << max((n - 1).bit_length() - 1, 0)
    p = top if n > 1 else 0
    while p:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return tuple(pairs)
