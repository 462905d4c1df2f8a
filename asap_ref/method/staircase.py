"""Potentials between samples of different size, with weights, or padded: the staircase of merged quantile levels.

Sort x and y, and let A_i and B_j be their cumulative weights, each ending at 1. Walking up the merged levels
(the north-west rule) pairs the mass: x_(i) holds the levels from A_(i-1) to A_i, and Q(level), the quantile
function of y, says whom it meets. Potentials for the cost c(x, y) = -x y follow as in the square case
(potentials.py), minus the area under the map that takes x to y:

    phi_(i+1) = phi_(i) - (Q(A_i -) + Q(A_i +)) / 2 * (x_(i+1) - x_(i))
    psi_(j) = -x_(i) y_(j) - phi_(i)       for an i that meets j

The two limits of Q differ only where a level of x is also a level of y; any slope between them is optimal, and
their mean is the symmetric choice (ours, derived). With equal sizes every level meets another: the trapezoid.
For the squared cost the slope is the mean of x_(i) - Q(A_i -) and x_(i+1) - Q(A_i +).

Uniform levels are i/n' and j/m', with n' and m' the tokens that are not padding. They are compared as the
integers i m' and j n', without rounding, so that padding moves nothing. No n x m matrix is formed.

Shapes: x (..., n), y (..., m); the indices of a staircase are (..., n - 1) and (..., m).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from asap_ref.method.masks import keep
from asap_ref.support.arrays import array_namespace


class Side(NamedTuple):
    """One sample, sorted, padding last."""

    values: Any  # (..., n) ascending, 0 at padding
    valid: Any  # (..., n) boolean
    count: Any  # (..., 1) integer: n'
    weights: Any  # (..., n), 0 at padding
    share: Any  # (..., n) weights that sum to 1
    order: Any  # (..., n) where each sorted value came from
    rank: Any  # (..., n) where each input value went


class Steps(NamedTuple):
    """Who meets whom, as indices into the sorted samples. All three ascend."""

    below: Any  # (..., n - 1) the y of Q(A_i -)
    above: Any  # (..., n - 1) the y of Q(A_i +)
    match: Any  # (..., m) an x that y_(j) meets


def staircase_potentials(x, y, cost, x_weights, y_weights, x_mask, y_mask):
    """(phi, psi), (..., n) and (..., m); see `kantorovich_potentials_1d`."""
    a, b = _sides(x, y, x_weights, y_weights, x_mask, y_mask)
    phi, psi, _ = _walk(a, b, cost, weighted=x_weights is not None or y_weights is not None)
    return _unsorted(phi, a), _unsorted(psi, b)


def staircase_potentials_vjp(x, y, cost, x_weights, y_weights, x_mask, y_mask):
    """(phi, psi) and ``vjp((d_phi, d_psi)) -> (d_x, d_y)``; see `kantorovich_potentials_1d_vjp`."""
    xp = array_namespace(x, y)
    a, b = _sides(x, y, x_weights, y_weights, x_mask, y_mask)
    phi, psi, (below, above, match) = _walk(a, b, cost, weighted=x_weights is not None or y_weights is not None)

    def vjp(cotangent):
        d_phi, d_psi = (
            keep(xp.take_along_axis(d, s.order, axis=-1), s.valid) for d, s in zip(cotangent, (a, b), strict=True)
        )
        xs, ys, n, m = a.values, b.values, x.shape[-1], y.shape[-1]
        # psi_j = c(x_i, y_j) - phi_i at the i that y_j meets
        met = xp.take_along_axis(xs, match, axis=-1)
        d_met, d_ys = (d_psi * slope for slope in cost_slopes(met, ys, cost))
        d_xs = _sum_into(d_met, match, n)
        d_phi = d_phi - _sum_into(d_psi, match, n)
        # phi = centre(running total of steps)
        d_phi = d_phi - a.share * xp.sum(d_phi, axis=-1, keepdims=True)
        # step_i reaches every phi after it; d_phi sums to zero, so what comes after i is minus what came up to i
        d_step = keep(-xp.cumulative_sum(d_phi, axis=-1)[..., :-1], a.valid[..., 1:])
        # step_i = slope_i * (x_(i+1) - x_i)
        d_slope = d_step * (xs[..., :-1] - xs[..., 1:]) / 2
        y_below, y_above = (xp.take_along_axis(ys, side, axis=-1) for side in (below, above))
        d_run = d_step * slopes(xs, y_below, y_above, cost)
        zero = xp.zeros_like(x[..., :1])
        d_xs = d_xs + xp.concat([zero, d_run], axis=-1) - xp.concat([d_run, zero], axis=-1)
        if cost == "sqeuclidean":
            d_xs = d_xs - xp.concat([zero, d_slope], axis=-1) - xp.concat([d_slope, zero], axis=-1)
        d_ys = d_ys + _sum_into(d_slope, below, m) + _sum_into(d_slope, above, m)
        return _unsorted(d_xs, a), _unsorted(d_ys, b)

    return (_unsorted(phi, a), _unsorted(psi, b)), vjp


def _walk(a, b, cost, *, weighted):
    """Sorted phi (..., n), sorted psi (..., m), and the steps taken."""
    xp = array_namespace(a.values)
    xs, ys = a.values, b.values
    steps = _weighted_steps(a, b) if weighted else _uniform_steps(a, b)
    y_below, y_above = (xp.take_along_axis(ys, side, axis=-1) for side in (steps.below, steps.above))
    rises = slopes(xs, y_below, y_above, cost) * (xs[..., 1:] - xs[..., :-1])  # (..., n - 1)
    rises = keep(rises, a.valid[..., 1:])
    phi = xp.cumulative_sum(rises, axis=-1, include_initial=True)
    if weighted:
        steps = _settle_weightless(a, b, steps, phi, cost)
    met = xp.take_along_axis(xs, steps.match, axis=-1)  # (..., m)
    phi = phi - xp.sum(a.share * phi, axis=-1, keepdims=True)
    psi = cost_of(met, ys, cost) - xp.take_along_axis(phi, steps.match, axis=-1)
    return phi, psi, steps


# ------------------------------------------------------------------------------------------------------- cost


def cost_of(x, y, cost):
    """c(x, y) of pairs."""
    return -x * y if cost == "bilinear" else (x - y) ** 2 / 2


def cost_slopes(x, y, cost):
    """Its derivatives in x and in y."""
    return (-y, -x) if cost == "bilinear" else (x - y, y - x)


def slopes(xs, y_below, y_above, cost):
    """Slopes of phi between sorted xs (..., n): means of dc/dx at both ends, (..., n - 1)."""
    below, above = (cost_slopes(x, y, cost)[0] for x, y in ((xs[..., :-1], y_below), (xs[..., 1:], y_above)))
    return (below + above) / 2


# ---------------------------------------------------------------------------------------------------- sorting


def _sides(x, y, x_weights, y_weights, x_mask, y_mask):
    xp = array_namespace(x, y)
    _check_weights("x_weights", x_weights, x_mask)
    _check_weights("y_weights", y_weights, y_mask)

    def spread(given, like):
        """Broadcast what may lack leading axes; where nothing is given, every sample counts, and alike."""
        return xp.ones_like(like) if given is None else xp.broadcast_to(given, like.shape)

    x_valid, y_valid = (spread(mask, like=xp.isnan(z) | True) for z, mask in ((x, x_mask), (y, y_mask)))
    # a side without tokens leaves the other nothing to meet
    x_valid, y_valid = (
        x_valid & xp.any(y_valid, axis=-1, keepdims=True),
        y_valid & xp.any(x_valid, axis=-1, keepdims=True),
    )
    return _side(x, x_valid, spread(x_weights, x)), _side(y, y_valid, spread(y_weights, y))


def _check_weights(name, weights, mask):
    if weights is None:
        return
    xp, weights = array_namespace(weights), keep(weights, mask)
    if not bool(xp.all((weights >= 0) & xp.isfinite(weights))):
        raise ValueError(f"kantorovich_potentials_1d: {name} must be finite and at least 0, got {weights}")
    empty = xp.sum(weights, axis=-1) == 0
    if bool(xp.any(empty if mask is None else empty & xp.any(mask, axis=-1))):
        raise ValueError(f"kantorovich_potentials_1d: {name} must not sum to zero, got {weights}")


def _side(x, valid, weights):
    xp = array_namespace(x)
    x, weights = keep(x, valid), keep(weights, valid)
    order = xp.argsort(x, axis=-1, stable=True)
    padding = xp.astype(~xp.take_along_axis(valid, order, axis=-1), xp.uint8)
    order = xp.take_along_axis(order, xp.argsort(padding, axis=-1, stable=True), axis=-1)
    values, valid, weights = (xp.take_along_axis(z, order, axis=-1) for z in (x, valid, weights))
    total = xp.sum(weights, axis=-1, keepdims=True)
    share = weights / xp.where(total > 0, total, xp.ones_like(total))
    count = xp.sum(xp.astype(valid, order.dtype), axis=-1, keepdims=True)
    return Side(values, valid, count, weights, share, order, xp.argsort(order, axis=-1))


def _unsorted(x, side):
    """Back in the order of the input, zero at padding."""
    xp = array_namespace(x)
    return xp.take_along_axis(keep(x, side.valid), side.rank, axis=-1)


# ----------------------------------------------------------------------------------------------------- levels


def _uniform_steps(a, b):
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


def _weighted_steps(a, b):
    A, B = _levels(a.weights), _levels(b.weights)
    below, _ = _ranks(A, B)
    match, above = _ranks(B, A)
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


def _ranks(a, b):
    """For ascending a (..., n) and b (..., m): how many b are < a_i, (..., n), and how many a <= b_j, (..., m).

    ``searchsorted`` for batches: in the merged order, a before b where they tie, what is not of one's own kind
    is of the other.
    """
    xp = array_namespace(a, b)
    n, m = a.shape[-1], b.shape[-1]
    place = xp.argsort(xp.argsort(xp.concat([a, b], axis=-1), axis=-1, stable=True), axis=-1)
    own = dict(dtype=place.dtype, device=a.device)
    return place[..., :n] - xp.arange(n, **own), place[..., n:] - xp.arange(m, **own)


def _settle_weightless(a, b, steps, phi, cost):
    """Let a y of weight zero whose level meets one of x choose the better side, which keeps it feasible.

    The x on both sides of the level are candidates; c - phi is straight between them, and the lower end is feasible.
    """
    xp = array_namespace(phi)
    _, beyond = _ranks(_levels(a.weights), _levels(b.weights))
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


def _sum_into(values, index, size):
    """Add values (..., s) up at their ascending indices, (..., size): the transpose of taking them there."""
    xp = array_namespace(values)
    _, ends = _ranks(
        index, xp.broadcast_to(xp.arange(size, dtype=index.dtype, device=index.device), (*index.shape[:-1], size))
    )
    running = xp.cumulative_sum(values, axis=-1, include_initial=True)  # (..., s + 1)
    upto = xp.take_along_axis(running, ends, axis=-1)
    return upto - xp.concat([xp.zeros_like(upto[..., :1]), upto[..., :-1]], axis=-1)
