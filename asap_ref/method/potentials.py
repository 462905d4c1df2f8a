"""Exact one-dimensional Kantorovich potentials by sorting.

In one dimension optimal transport is sorting: the i-th smallest x goes to the i-th smallest y. Potentials
phi, psi certify it: phi_i + psi_j <= c(x_i, y_j) everywhere, with equality on matched pairs. For the cost
c(x, y) = -x y and samples sorted ascending,

    phi_(1) = 0,    phi_(i+1) = phi_(i) - (y_(i) + y_(i+1)) / 2 * (x_(i+1) - x_(i)),
    psi_(i) = -x_(i) y_(i) - phi_(i):

phi is minus the area under the monotone map that takes x to y; a constant is free, and is chosen last, so that phi has
mean zero. Any slope between y_(i) and y_(i+1) is optimal; the trapezoid is the symmetric choice (ours, derived). No
n x n matrix is formed. For the squared cost (x - y)² / 2 the same walk adds up mean displacements:
((x_(i) - y_(i)) + (x_(i+1) - y_(i+1))) / 2 takes the place of the slope. To add x² / 2 to the bilinear potential is the
same, but loses the digits of samples far from zero.

Samples of different size, with weights, or padded, take the same walk on uneven steps (staircase/).

Shapes: x (..., n), y (..., m); the last axis is the sample. Below the public functions n = m.
"""

from __future__ import annotations

from asap_ref.staircase.cost import cost_of, cost_slopes, slopes
from asap_ref.staircase.walk import staircase_potentials, staircase_potentials_vjp
from asap_ref.support.arrays import array_namespace
from asap_ref.support.contracts import operator, vjp_of


@operator
def kantorovich_potentials_1d(
    x: "... n",
    y: "... m",
    *,
    cost="bilinear",
    x_weights: "... n" = None,
    y_weights: "... m" = None,
    x_mask: "... n" = None,
    y_mask: "... m" = None,
):
    """Exact Kantorovich potentials between two samples on the line.

    O((n + m) log(n + m)) time, O(n + m) memory. Source: one-dimensional transport, Peyré & Cuturi section 2.6;
    asap_ref/oracle/README.md, "Exact 1D Kantorovich potentials". The mean among the optimal slopes (the trapezoid,
    for equal sizes) is our choice; for equal sizes it treats x and y alike.

    Parameters
    ----------
    x, y, x_mask, y_mask
        The samples; leading axes are independent problems. True at samples, False at padding.
    cost : {"bilinear", "sqeuclidean"}
        ``c(x, y) = -x y`` or ``(x - y)² / 2`` (mind the half). They differ by terms in x and y alone.
    x_weights, y_weights
        Mass of each sample, not negative, not all zero, up to a factor; uniform when not given. Settings: no gradient.

    Returns
    -------
    (phi, psi) : arrays (..., n) and (..., m)
        phi has (weighted) mean zero and ``phi_i + psi_j <= c(x_i, y_j)``, with equality on pairs that meet: no
        duality gap. Samples of weight zero get values that keep this true, padding gets zero.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.asarray([1.0, 3.0, 2.0]), np.asarray([0.0, 2.0, 1.0])
    >>> phi, psi = kantorovich_potentials_1d(x, y)
    >>> float(phi.sum() + psi.sum()), float(-np.sort(x) @ np.sort(y))  # no duality gap
    (-8.0, -8.0)
    """
    extra = (x_weights, y_weights, x_mask, y_mask)
    if _is_square(x, y, extra):
        return _potentials(x, y, cost)[0]
    return staircase_potentials(x, y, cost, *extra)


@vjp_of(kantorovich_potentials_1d)
def kantorovich_potentials_1d_vjp(
    x, y, *, cost="bilinear", x_weights=None, y_weights=None, x_mask=None, y_mask=None
):
    """Exact potentials and their VJP, ``vjp((d_phi, d_psi)) -> (d_x, d_y)``.

    Sorting is locally a fixed permutation, so the gradient follows the order of the samples; where two
    samples tie it is one of the one-sided derivatives. Derived.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.asarray([1.0, 3.0]), np.asarray([0.0, 2.0])
    >>> (phi, psi), vjp = kantorovich_potentials_1d_vjp(x, y)
    >>> vjp((np.asarray([1.0, 0.0]), np.zeros(2)))
    (array([-0.5,  0.5]), array([0.5, 0.5]))
    """
    extra = (x_weights, y_weights, x_mask, y_mask)
    if not _is_square(x, y, extra):
        return staircase_potentials_vjp(x, y, cost, *extra)
    xp = array_namespace(x, y)
    (phi, psi), (x_order, y_order) = _potentials(x, y, cost)
    x_rank, y_rank = xp.argsort(x_order, axis=-1), xp.argsort(y_order, axis=-1)

    def vjp(cotangent):
        d_phi, d_psi = (
            xp.take_along_axis(d, order, axis=-1) for d, order in zip(cotangent, (x_order, y_order), strict=True)
        )
        xs, ys = xp.take_along_axis(x, x_order, axis=-1), xp.take_along_axis(y, y_order, axis=-1)
        # psi = c(x, y) - phi on matched pairs
        d_xs, d_ys = (d_psi * slope for slope in cost_slopes(xs, ys, cost))
        d_phi = d_phi - d_psi
        # phi = centre(running total of steps)
        d_phi = d_phi - xp.mean(d_phi, axis=-1, keepdims=True)
        # step_i reaches every phi after it; d_phi sums to zero, so what comes after i is minus what came up to i
        d_step = -xp.cumulative_sum(d_phi, axis=-1)[..., :-1]
        # step_i = slope_i * (x_(i+1) - x_i)
        d_slope = d_step * (xs[..., :-1] - xs[..., 1:]) / 2
        d_run = d_step * slopes(xs, ys[..., :-1], ys[..., 1:], cost)
        zero = xp.zeros_like(x[..., :1])
        d_xs = d_xs + xp.concat([zero, d_run], axis=-1) - xp.concat([d_run, zero], axis=-1)
        d_ends = xp.concat([zero, d_slope], axis=-1) + xp.concat([d_slope, zero], axis=-1)
        d_xs, d_ys = d_xs if cost == "bilinear" else d_xs - d_ends, d_ys + d_ends
        return xp.take_along_axis(d_xs, x_rank, axis=-1), xp.take_along_axis(d_ys, y_rank, axis=-1)

    return (phi, psi), vjp


def _is_square(x, y, extra):
    return x.shape[-1] == y.shape[-1] and all(given is None for given in extra)


def _potentials(x, y, cost):
    """((phi, psi), (order of x, order of y)), all (..., n)."""
    xp = array_namespace(x, y)
    x_order, y_order = xp.argsort(x, axis=-1, stable=True), xp.argsort(y, axis=-1, stable=True)
    xs, ys = xp.take_along_axis(x, x_order, axis=-1), xp.take_along_axis(y, y_order, axis=-1)

    steps = slopes(xs, ys[..., :-1], ys[..., 1:], cost) * (xs[..., 1:] - xs[..., :-1])  # (..., n - 1)
    phi = xp.concat([xp.zeros_like(xs[..., :1]), xp.cumulative_sum(steps, axis=-1)], axis=-1)  # (..., n)
    phi = phi - xp.mean(phi, axis=-1, keepdims=True)
    psi = cost_of(xs, ys, cost) - phi

    x_rank, y_rank = xp.argsort(x_order, axis=-1), xp.argsort(y_order, axis=-1)  # back to the input order
    potentials = (xp.take_along_axis(phi, x_rank, axis=-1), xp.take_along_axis(psi, y_rank, axis=-1))
    return potentials, (x_order, y_order)
