"""Potentials of any two samples and either cost: the staircase of merged quantile levels.

Sort x and y, and let A_i and B_j be their cumulative weights, each ending at 1. Walking up the merged levels
(the north-west rule) pairs the mass: x_(i) holds the levels from A_(i-1) to A_i, and Q(level), the quantile
function of y, says whom it meets. Potentials for the cost c(x, y) = -x y follow as for equal sizes
(method/potentials.py), minus the area under the map that takes x to y:

    phi_(i+1) = phi_(i) - (Q(A_i -) + Q(A_i +)) / 2 * (x_(i+1) - x_(i))
    psi_(j) = -x_(i) y_(j) - phi_(i)       for an i that meets j

The two limits of Q differ only where a level of x is also a level of y; any slope between them is optimal, and
their mean is the symmetric choice (ours, derived). With equal sizes every level meets another: the trapezoid.

For the squared cost (x - y)² / 2 the same walk adds up mean displacements: the slope is the mean of x_(i) - Q(A_i -)
and x_(i+1) - Q(A_i +). To add x² / 2 to the bilinear potential is the same, but loses the digits of samples far from
zero.

Samples are sorted in samples.py, who meets whom is worked out in levels.py. No n x m matrix is formed.

Shapes: x (..., n), y (..., m); the indices of a staircase are (..., n - 1) and (..., m).
"""

from __future__ import annotations

from asap_ref.staircase.cost import cost_of, cost_slopes, slopes
from asap_ref.staircase.levels import settle_weightless, sum_into, uniform_steps, weighted_steps
from asap_ref.staircase.samples import sides, unsorted
from asap_ref.support.arrays import array_namespace
from asap_ref.support.masks import keep


def staircase_potentials(x, y, cost, x_weights, y_weights, x_mask, y_mask):
    """(phi, psi), (..., n) and (..., m); see `kantorovich_potentials_1d`."""
    a, b = sides(x, y, x_weights, y_weights, x_mask, y_mask)
    phi, psi, _ = _walk(a, b, cost, weighted=x_weights is not None or y_weights is not None)
    return unsorted(phi, a), unsorted(psi, b)


def staircase_potentials_vjp(x, y, cost, x_weights, y_weights, x_mask, y_mask):
    """(phi, psi) and ``vjp((d_phi, d_psi)) -> (dx, dy)``; see `kantorovich_potentials_1d_vjp`."""
    xp = array_namespace(x, y)
    a, b = sides(x, y, x_weights, y_weights, x_mask, y_mask)
    phi, psi, (below, above, match) = _walk(a, b, cost, weighted=x_weights is not None or y_weights is not None)

    def vjp(cotangent):
        d_phi, d_psi = (
            keep(xp.take_along_axis(d, s.order, axis=-1), s.valid) for d, s in zip(cotangent, (a, b), strict=True)
        )
        xs, ys, n, m = a.values, b.values, x.shape[-1], y.shape[-1]
        # psi_j = c(x_i, y_j) - phi_i at the i that y_j meets
        met = xp.take_along_axis(xs, match, axis=-1)
        d_met, d_ys = (d_psi * slope for slope in cost_slopes(met, ys, cost))
        d_xs = sum_into(d_met, match, n)
        d_phi = d_phi - sum_into(d_psi, match, n)
        # phi = centre(running total of steps)
        d_phi = d_phi - a.share * xp.sum(d_phi, axis=-1, keepdims=True)
        # step_i reaches every phi after it; d_phi sums to zero, so what comes after i is minus what came up to i
        d_step = keep(-xp.cumulative_sum(d_phi, axis=-1)[..., :-1], a.valid[..., 1:])
        # step_i = slope_i * (x_(i+1) - x_i)
        d_end = d_step * (xs[..., :-1] - xs[..., 1:]) / 2
        y_below, y_above = (xp.take_along_axis(ys, side, axis=-1) for side in (below, above))
        d_run = d_step * slopes(xs, y_below, y_above, cost)
        zero = xp.zeros_like(x[..., :1])
        d_xs = d_xs + xp.concat([zero, d_run], axis=-1) - xp.concat([d_run, zero], axis=-1)
        if cost == "sqeuclidean":
            d_xs = d_xs - xp.concat([zero, d_end], axis=-1) - xp.concat([d_end, zero], axis=-1)
        d_ys = d_ys + sum_into(d_end, below, m) + sum_into(d_end, above, m)
        return unsorted(d_xs, a), unsorted(d_ys, b)

    return (unsorted(phi, a), unsorted(psi, b)), vjp


def _walk(a, b, cost, *, weighted):
    """Sorted phi (..., n), sorted psi (..., m), and the steps taken."""
    xp = array_namespace(a.values)
    xs, ys = a.values, b.values
    steps = weighted_steps(a, b) if weighted else uniform_steps(a, b)
    y_below, y_above = (xp.take_along_axis(ys, side, axis=-1) for side in (steps.below, steps.above))
    rises = slopes(xs, y_below, y_above, cost) * (xs[..., 1:] - xs[..., :-1])  # (..., n - 1)
    rises = keep(rises, a.valid[..., 1:])
    phi = xp.cumulative_sum(rises, axis=-1, include_initial=True)
    if weighted:
        steps = settle_weightless(a, b, steps, phi, cost)
    met = xp.take_along_axis(xs, steps.match, axis=-1)  # (..., m)
    phi = phi - xp.sum(a.share * phi, axis=-1, keepdims=True)
    psi = cost_of(met, ys, cost) - xp.take_along_axis(phi, steps.match, axis=-1)
    return phi, psi, steps
