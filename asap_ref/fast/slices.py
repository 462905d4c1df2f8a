"""What the slice potentials add to the dual, in the fewest passes.

The keys need their values sorted but not their order, nothing is centred (the constant is free), the slice's weight
is applied before the one gather back, and all slices of a head are summed there.

Padding is moved to the end of each sort by giving it the largest value of its sequence: steps between equal values
are zero. Who meets whom is a matter of the two counts alone (staircase/levels.py), and with equal counts of neighbours.

Shapes: q (..., H, n, d), k (..., H, m, d) -> (..., H, n); L slices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from asap_ref.fast import plain_slices
from asap_ref.fast.form import fast_form
from asap_ref.fast.packing import packed_with_places, unpacked
from asap_ref.method.features import Slices
from asap_ref.staircase.levels import check_levels
from asap_ref.support.arrays import array_namespace, one_pass, scattered, times, transpose
from asap_ref.support.masks import token_count


@dataclass(frozen=True)
class WeightedSlices:
    """The sum of the slice potentials, each times its weight."""

    theta: Any  # (d, L) or (H, d, L) scaled directions
    w: Any  # (H, L, 1) weights times the -1/2 of the mean of two keys

    @property
    def width(self):
        """L."""
        return self.w.shape[-2]

    def __call__(self, q, k, query_mask, key_mask):
        """(..., n, d), (..., m, d) -> one of (..., n), up to a constant; anything at padding."""
        if plain_slices.plain(q, k, query_mask, key_mask):
            return (plain_slices.weighted_sum(q, k, self.theta, self.w),)
        return (array_namespace(q, k).sum(self.potentials(q, k, query_mask, key_mask), axis=-2),)

    def potentials(self, q, k, query_mask, key_mask):
        """Each slice by itself: (..., n, d), (..., m, d) -> (..., L, n)."""
        xp = array_namespace(q, k)
        x = _padding_last(_projected(q, self.theta), query_mask)  # (..., L, n)
        y = xp.sort(_padding_last(_projected(k, self.theta), key_mask), axis=-1, stable=False)  # (..., L, m)
        xs, back = _sorted(x)
        steps = _steps(xs[..., :-1], xs[..., 1:], *_met(y, q.shape[-2], query_mask, key_mask), self.w)
        phi = xp.concat([xp.zeros_like(xs[..., :1]), xp.cumulative_sum(steps, axis=-1)], axis=-1)
        return back(phi)


@fast_form.register
def _(family: Slices, weights, d):
    return WeightedSlices(family.directions * d**-0.25, -0.5 * weights[..., None])


@one_pass
def _steps(xp, x_before, x, y_before, y, w):
    """Steps of phi from one query to the next, times the weight of the slice."""
    return (y_before + y) * (x - x_before) * w


def _projected(x, theta):
    """Tokens on each slice: (..., n, d) -> (..., L, n)."""
    if theta.ndim == 3:
        return transpose(theta) @ transpose(x)
    projected = transpose(times(x, theta))
    return np.ascontiguousarray(projected) if isinstance(x, np.ndarray) else projected  # in rows, to be sorted


def _padding_last(x, mask):
    """Give padding the largest value of its sequence, on each slice: (..., L, n), (..., n) -> (..., L, n)."""
    if mask is None:
        return x
    xp = array_namespace(x)
    mask = mask[..., None, :]
    top = xp.max(xp.where(mask, x, -xp.inf), axis=-1, keepdims=True)
    return xp.where(mask, x, xp.where(top == -xp.inf, xp.zeros_like(top), top))


def _sorted(x):
    """Sort along the last axis; also give the function that brings such an array back into the order of x."""
    xp = array_namespace(x)
    rows, n = math.prod(x.shape[:-1]), x.shape[-1]

    def gathered(x, index):
        return xp.reshape(xp.take(xp.reshape(x, (-1,)), xp.reshape(index, (-1,)), axis=0), index.shape)

    packed = isinstance(x, np.ndarray) and x.dtype == np.float32 and n <= 2**28
    xs, order = sorted_with_places(x) if packed else (None, xp.argsort(x, axis=-1, stable=False))
    # as indices into the flat array, where rows lie n apart, a gather is one plain take
    starts = xp.reshape(n * xp.arange(rows, dtype=order.dtype, device=x.device), (*x.shape[:-1], 1))
    order = order + starts

    def back(sorted_x):
        unsorted = scattered(sorted_x, order)
        if unsorted is None:
            return gathered(sorted_x, xp.argsort(order, axis=-1, stable=False) + starts)
        return unsorted

    return gathered(x, order) if xs is None else xs, back


def sorted_with_places(x):
    """Sorted values of float32, and where they came from: NumPy sorts several times faster than it argsorts."""
    packed = packed_with_places(x, np.arange(x.shape[-1]))
    packed.sort(axis=-1)
    return unpacked(packed)


def _met(y, n, query_mask, key_mask):
    """Keys that the queries before and after a step meet: sorted (..., L, m) -> two (..., L, n - 1)."""
    xp = array_namespace(y)
    m = y.shape[-1]
    if n == m and query_mask is key_mask:
        return y[..., :-1], y[..., 1:]
    i = xp.arange(1, n, device=y.device)
    check_levels(n, m, i)
    n_, m_ = (
        size if mask is None else xp.astype(token_count(xp.astype(mask, y.dtype), mask), i.dtype)
        for size, mask in ((n, query_mask), (m, key_mask))
    )
    if n == m and isinstance(y, np.ndarray) and np.all(n_ == m_):  # on a device to ask would be to wait
        return y[..., :-1], y[..., 1:]

    def key(
        i,
    ):  # as uniform_steps of staircase/levels.py; of a query that is padding any key, since its step is zero
        index = xp.clip(i // n_, 0, m - 1)
        index = index if index.ndim == 1 else index[..., None, :]
        return xp.take_along_axis(y, xp.broadcast_to(index, (*y.shape[:-1], n - 1)), axis=-1)

    return key(i * m_ - 1), key(i * m_)
