"""Who meets whom: merged quantile levels of two sorted samples.

Uniform levels are i/n' and j/m', with n' and m' the tokens that are not padding. They are compared as the
integers i m' and j n', without rounding, so that padding moves nothing. Weights have levels that are sums.

Shapes: levels (..., n) and (..., m); the indices of a staircase are (..., n - 1) and (..., m).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from asap_ref.staircase.cost import cost_slopes
from asap_ref.support.arrays import array_namespace


class Steps(NamedTuple):
    """Who meets whom, as indices into the sorted samples. All three ascend."""

    below: Any  # (..., n - 1) the y of Q(A_i -)
    above: Any  # (..., n - 1) the y of Q(A_i +)
    match: Any  # (..., m) an x that y_(j) meets


def uniform_steps(a, b):
    """Levels i/n' and j/m', compared as the integers i m' and j n'."""
    xp = array_namespace(a.values)
    n, m = a.values.shape[-1], b.values.shape[-1]
    index = dict(dtype=a.count.dtype, device=a.values.device)
    check_levels(n, m, a.count)
    n_, m_ = (xp.where(c > 0, c, xp.ones_like(c)) for c in (a.count, b.count))  # (..., 1)
    i, j = xp.arange(1, n, **index), xp.arange(1, m + 1, **index)
    return Steps(
        xp.clip((i * m_ - 1) // n_, 0, m - 1),  # B_j < A_i for so many j (clipped where x is padding)
        xp.clip(i * m_ // n_, 0, m - 1),  # B_j <= A_i for so many
        xp.clip((j * n_ - 1) // m_, 0, n - 1),  # A_i < B_j for so many i
    )


def check_levels(n, m, index):
    """Raise if products of n and m overflow the integers of an array: JAX's do unless it is told to use 64 bits."""
    dtype = index.dtype
    if n * m > array_namespace(index).iinfo(dtype).max:
        raise ValueError(
            f"kantorovich_potentials_1d: {n} times {m} levels overflow {dtype}; use 64-bit integers "
            "(jax: jax.config.update('jax_enable_x64', True))"
        )


def weighted_steps(a, b):
    """Levels of weights: cumulative, each sample ending at 1."""
    A, B = _levels(a.weights), _levels(b.weights)
    below, _ = ranks(A, B)
    match, above = ranks(B, A)
    return Steps(below[..., :-1], _at_most(above[..., :-1], b.count - 1), match)


def _levels(weights):
    """Cumulative weights, ascending to 1. Where sums are exact (counts, say), equal levels come out equal.

    The last ones are 1 by decree: not every module divides a number by itself to exactly 1 (JAX does not).
    """
    xp = array_namespace(weights)
    levels = xp.sort(xp.cumulative_sum(weights, axis=-1), axis=-1)  # parallel sums may step back by a rounding
    top = levels[..., -1:]
    share = levels / xp.where(top > 0, top, xp.ones_like(top))
    return xp.where((levels < top) & (share < 1), share, xp.ones_like(share))


def ranks(a, b):
    """For ascending a (..., n) and b (..., m): how many b are < a_i, (..., n), and how many a <= b_j, (..., m).

    ``searchsorted`` for batches: in the merged order, a before b where they tie, what is not of one's own kind
    is of the other.
    """
    xp = array_namespace(a, b)
    n, m = a.shape[-1], b.shape[-1]
    place = xp.argsort(xp.argsort(xp.concat([a, b], axis=-1), axis=-1, stable=True), axis=-1)
    own = dict(dtype=place.dtype, device=a.device)
    return place[..., :n] - xp.arange(n, **own), place[..., n:] - xp.arange(m, **own)


def settle_weightless(a, b, steps, phi, cost):
    """Let a y of weight zero whose level meets one of x choose the better side, which keeps it feasible.

    The x on both sides of the level are candidates; c - phi is straight between them, and the lower end is feasible.
    """
    xp = array_namespace(phi)
    _, beyond = ranks(_levels(a.weights), _levels(b.weights))
    left, right = steps.match, _at_most(beyond, a.count - 1)
    xs_left, xs_right, phi_left, phi_right = (
        xp.take_along_axis(z, side, axis=-1) for z in (a.values, phi) for side in (left, right)
    )
    middle = sum(cost_slopes(x, b.values, cost)[0] for x in (xs_left, xs_right)) / 2
    better = middle * (xs_right - xs_left) < phi_right - phi_left  # c - phi falls from left to right
    return steps._replace(match=xp.where(better, right, left))


def _at_most(index, last):
    xp = array_namespace(index)
    index = xp.where(index > last, last, index)
    return xp.where(index > 0, index, xp.zeros_like(index))


def sum_into(values, index, size):
    """Add values (..., s) up at their ascending indices, (..., size): the transpose of taking them there.

    The standard has no scatter-add. These are differences of running totals; what rounding took from the totals, which
    is more than an entry where many are added up, is added up beside them.
    """
    xp = array_namespace(values)
    _, ends = ranks(
        index, xp.broadcast_to(xp.arange(size, dtype=index.dtype, device=index.device), (*index.shape[:-1], size))
    )
    running = xp.cumulative_sum(values, axis=-1, include_initial=True)  # (..., s + 1)
    lost = xp.cumulative_sum(values - (running[..., 1:] - running[..., :-1]), axis=-1, include_initial=True)
    first = xp.zeros_like(ends[..., :1])
    begins = xp.concat([first, ends[..., :-1]], axis=-1)
    return sum(
        xp.take_along_axis(total, ends, axis=-1) - xp.take_along_axis(total, begins, axis=-1)
        for total in (running, lost)
    )
