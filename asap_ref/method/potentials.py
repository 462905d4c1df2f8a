"""Exact one-dimensional Kantorovich potentials by sorting.

In one dimension optimal transport is sorting: the i-th smallest x goes to the i-th smallest y. Potentials
phi, psi certify it: phi_i + psi_j <= c(x_i, y_j) everywhere, with equality on matched pairs. They are the duals f, g of
this problem at epsilon = 0. For the cost c(x, y) = -x y, so S = x y, and samples sorted ascending,

    phi_(1) = 0,    phi_(i+1) = phi_(i) - (y_(i) + y_(i+1)) / 2 * (x_(i+1) - x_(i)),
    psi_(i) = -x_(i) y_(i) - phi_(i):

phi is minus the area under the monotone map that takes x to y. A constant is free: phi gets mean zero, and psi follows.
Any slope of phi from -y_(i+1) to -y_(i) is optimal; the trapezoid is the symmetric choice (ours). No n x n matrix is
formed.

That is all that slices of equal length need, and it is below. Samples of different size, with weights, padded, or of
the squared cost take the same walk on uneven steps (staircase/, which may be skipped).

Shapes: x (..., n), y (..., m); the last axis is the sample. In the helpers at the end n = m.
"""

from __future__ import annotations

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
    oracle, "Exact 1D Kantorovich potentials". The mean among the optimal slopes (the trapezoid, for equal sizes) is
    ours; for equal sizes it treats x and y alike.

    Parameters
    ----------
    x, y
        The samples; leading axes are independent problems.
    cost : {"bilinear", "sqeuclidean"}
        ``c(x, y) = -x y`` or ``(x - y)² / 2`` (mind the half). They differ by terms in x and y alone.
    x_weights, y_weights
        Mass of each sample, not negative, not all zero, up to a factor; uniform when not given. They get no gradient.
    x_mask, y_mask
        True at samples, False at padding.

    Returns
    -------
    (phi, psi) : arrays (..., n) and (..., m)
        phi has (weighted) mean zero and ``phi_i + psi_j <= c(x_i, y_j)``, with equality on matched pairs: no
        duality gap. Samples of weight zero get values that keep this true, padding gets zero.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.asarray([1.0, 3.0, 2.0]), np.asarray([0.0, 2.0, 1.0])
    >>> phi, psi = kantorovich_potentials_1d(x, y)
    >>> float(phi.sum() + psi.sum()), float(-np.sort(x) @ np.sort(y))  # no duality gap
    (-8.0, -8.0)
    """
    others = (x_weights, y_weights, x_mask, y_mask)
    if not _is_plain(x, y, cost, others):
        return staircase_potentials(x, y, cost, *others)
    xp = array_namespace(x, y)
    (xs, _, x_rank), (ys, _, y_rank) = _sorted(x), _sorted(y)
    phi, psi = _potentials(xs, ys)
    return xp.take_along_axis(phi, x_rank, axis=-1), xp.take_along_axis(psi, y_rank, axis=-1)


@vjp_of(kantorovich_potentials_1d)
def kantorovich_potentials_1d_vjp(
    x, y, *, cost="bilinear", x_weights=None, y_weights=None, x_mask=None, y_mask=None
):
    """Exact potentials and their VJP, ``vjp((d_phi, d_psi)) -> (dx, dy)`` (ours).

    Sorting is locally a fixed permutation, so the gradient follows the order of the samples; where two
    samples tie it is one of the one-sided derivatives.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.asarray([1.0, 3.0]), np.asarray([0.0, 2.0])
    >>> (phi, psi), vjp = kantorovich_potentials_1d_vjp(x, y)
    >>> vjp((np.asarray([1.0, 0.0]), np.zeros(2)))
    (array([-0.5,  0.5]), array([0.5, 0.5]))
    """
    others = (x_weights, y_weights, x_mask, y_mask)
    if not _is_plain(x, y, cost, others):
        return staircase_potentials_vjp(x, y, cost, *others)
    xp = array_namespace(x, y)
    (xs, x_order, x_rank), (ys, y_order, y_rank) = _sorted(x), _sorted(y)
    phi, psi = _potentials(xs, ys)

    def vjp(cotangent):
        d_phi, d_psi = cotangent
        d_phi = xp.take_along_axis(d_phi, x_order, axis=-1)  # (..., n), as the samples are sorted
        d_psi = xp.take_along_axis(d_psi, y_order, axis=-1)
        # psi = -x y - phi
        d_phi, d_xs, d_ys = d_phi - d_psi, -d_psi * ys, -d_psi * xs
        # phi = centre(running total of steps)
        d_phi = d_phi - xp.mean(d_phi, axis=-1, keepdims=True)
        # step_i reaches every phi after it; d_phi sums to zero, so what comes after i is minus what came up to i
        d_step = -xp.cumulative_sum(d_phi, axis=-1)[..., :-1]  # (..., n - 1)
        # step_i = -(y_i + y_(i+1)) / 2 * (x_(i+1) - x_i)
        d_run = -d_step * (ys[..., :-1] + ys[..., 1:]) / 2  # of x_(i+1), and minus that of x_i
        d_end = -d_step * (xs[..., 1:] - xs[..., :-1]) / 2  # of y_i and of y_(i+1)
        zero = xp.zeros_like(xs[..., :1])
        d_xs = d_xs + xp.concat([zero, d_run], axis=-1) - xp.concat([d_run, zero], axis=-1)  # (..., n)
        d_ys = d_ys + xp.concat([zero, d_end], axis=-1) + xp.concat([d_end, zero], axis=-1)
        return xp.take_along_axis(d_xs, x_rank, axis=-1), xp.take_along_axis(d_ys, y_rank, axis=-1)

    return (xp.take_along_axis(phi, x_rank, axis=-1), xp.take_along_axis(psi, y_rank, axis=-1)), vjp


def _is_plain(x, y, cost, others):
    return x.shape[-1] == y.shape[-1] and cost == "bilinear" and all(given is None for given in others)


def _sorted(x):
    """The sample ascending, the order that sorts it, and its inverse, the rank of each x: (..., n) each."""
    xp = array_namespace(x)
    order = xp.argsort(x, axis=-1, stable=True)
    return xp.take_along_axis(x, order, axis=-1), order, xp.argsort(order, axis=-1)


def _potentials(xs, ys):
    """Potentials phi and psi of sorted samples, (..., n) each: the lines at the top of the file."""
    xp = array_namespace(xs, ys)
    steps = -(ys[..., :-1] + ys[..., 1:]) / 2 * (xs[..., 1:] - xs[..., :-1])  # (..., n - 1)
    phi = xp.concat([xp.zeros_like(xs[..., :1]), xp.cumulative_sum(steps, axis=-1)], axis=-1)  # (..., n)
    phi = phi - xp.mean(phi, axis=-1, keepdims=True)
    return phi, -xs * ys - phi
