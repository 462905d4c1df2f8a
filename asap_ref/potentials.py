"""Exact one-dimensional Kantorovich potentials by sorting.

In one dimension optimal transport is sorting: the i-th smallest x goes to the i-th smallest y. Potentials
phi, psi certify it: phi_i + psi_j <= c(x_i, y_j) everywhere, with equality on matched pairs. For the cost
c(x, y) = -x y and samples sorted ascending,

    phi_(1) = 0,    phi_(i+1) = phi_(i) - (y_(i) + y_(i+1)) / 2 * (x_(i+1) - x_(i)),
    psi_(i) = -x_(i) y_(i) - phi_(i):

phi is minus the area under the monotone map that takes x to y. Any slope between y_(i) and y_(i+1) is
optimal; the trapezoid is the symmetric choice (ours, derived). No n x n matrix is formed.

Shapes: x, y are (..., n); the last axis is the sample.
"""

from __future__ import annotations

from asap_ref.arrays import array_namespace
from asap_ref.contracts import check_choice, operator


@operator(x="n", y="m")
def kantorovich_potentials_1d(x, y, *, cost="bilinear"):
    """Exact Kantorovich potentials between two samples on the line, uniform weights.

    Parameters
    ----------
    x, y : array (..., n)
        The samples; leading axes are independent problems.
    cost : {"bilinear", "sqeuclidean"}
        ``c(x, y) = -x y`` or ``(x - y)² / 2`` (mind the half). They differ by terms in x and y alone.

    Returns
    -------
    (phi, psi) : arrays (..., n)
        phi has mean zero and ``phi_i + psi_j <= c(x_i, y_j)``, with equality on matched pairs.

    Raises
    ------
    TypeError, ValueError
        On mixed modules or dtypes, wrong shapes, an unknown cost, or non-finite input.

    Notes
    -----
    O(n log n) time, O(n) memory. Source: one-dimensional transport, Peyré & Cuturi section 2.6; METHOD "Exact
    1D Kantorovich potentials". The trapezoid among the optimal slopes is our choice; it treats x and y alike.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.asarray([1.0, 3.0, 2.0]), np.asarray([0.0, 2.0, 1.0])
    >>> phi, psi = kantorovich_potentials_1d(x, y)
    >>> phi
    array([ 0.83333333, -1.16666667,  0.33333333])
    >>> bool(np.all(phi[:, None] + psi[None, :] <= -np.outer(x, y) + 1e-12))
    True
    >>> float(phi.sum() + psi.sum()), float(-np.sort(x) @ np.sort(y))  # no duality gap
    (-8.0, -8.0)
    """
    return _potentials(x, y, cost)[0]


@operator(x="n", y="m")
def kantorovich_potentials_1d_vjp(x, y, *, cost="bilinear"):
    """Exact potentials and their VJP, ``vjp((d_phi, d_psi)) -> (d_x, d_y)``.

    Sorting is locally a fixed permutation, so the gradient follows the order of the samples; where two
    samples tie it is one of the one-sided derivatives. Same arguments, errors and cost as
    `kantorovich_potentials_1d`. Derived.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.asarray([1.0, 3.0]), np.asarray([0.0, 2.0])
    >>> (phi, psi), vjp = kantorovich_potentials_1d_vjp(x, y)
    >>> d_x, d_y = vjp((np.asarray([1.0, 0.0]), np.zeros(2)))
    >>> d_x, d_y
    (array([-0.5,  0.5]), array([0.5, 0.5]))
    """
    xp = array_namespace(x, y)
    (phi, psi), (x_order, y_order) = _potentials(x, y, cost)
    x_rank, y_rank = xp.argsort(x_order, axis=-1), xp.argsort(y_order, axis=-1)

    def vjp(cotangent):
        d_phi, d_psi = (
            xp.take_along_axis(d, order, axis=-1) for d, order in zip(cotangent, (x_order, y_order), strict=True)
        )
        xs, ys = xp.take_along_axis(x, x_order, axis=-1), xp.take_along_axis(y, y_order, axis=-1)
        # psi = c(x, y) - phi on matched pairs
        if cost == "bilinear":
            d_xs, d_ys = -ys * d_psi, -xs * d_psi
        else:
            d_xs, d_ys = (xs - ys) * d_psi, (ys - xs) * d_psi
        d_phi = d_phi - d_psi
        # phi = centre(running total of steps, plus x²/2 for the squared cost)
        d_phi = d_phi - xp.mean(d_phi, axis=-1, keepdims=True)
        if cost == "sqeuclidean":
            d_xs = d_xs + xs * d_phi
        # step_i reaches every phi after it; d_phi sums to zero, so what comes after i is minus what came up to i
        d_step = -xp.cumulative_sum(d_phi, axis=-1)[..., :-1]
        # step_i = -(y_i + y_(i+1)) / 2 * (x_(i+1) - x_i)
        d_slope = d_step * (xs[..., :-1] - xs[..., 1:]) / 2
        d_run = -d_step * (ys[..., :-1] + ys[..., 1:]) / 2
        zero = xp.zeros_like(x[..., :1])
        d_xs = d_xs + xp.concat([zero, d_run], axis=-1) - xp.concat([d_run, zero], axis=-1)
        d_ys = d_ys + xp.concat([zero, d_slope], axis=-1) + xp.concat([d_slope, zero], axis=-1)
        return xp.take_along_axis(d_xs, x_rank, axis=-1), xp.take_along_axis(d_ys, y_rank, axis=-1)

    return (phi, psi), vjp


def _potentials(x, y, cost):
    """((phi, psi), (order of x, order of y)), all (..., n)."""
    xp = array_namespace(x, y)
    check_choice(cost, "cost", "kantorovich_potentials_1d", ("bilinear", "sqeuclidean"))
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"kantorovich_potentials_1d: x has {x.shape[-1]} samples and y has {y.shape[-1]}; "
            "samples of different size are not supported: give both the same number"
        )
    x_order, y_order = xp.argsort(x, axis=-1, stable=True), xp.argsort(y, axis=-1, stable=True)
    xs, ys = xp.take_along_axis(x, x_order, axis=-1), xp.take_along_axis(y, y_order, axis=-1)

    steps = -(ys[..., :-1] + ys[..., 1:]) / 2 * (xs[..., 1:] - xs[..., :-1])  # (..., n - 1)
    phi = xp.concat([xp.zeros_like(xs[..., :1]), xp.cumulative_sum(steps, axis=-1)], axis=-1)  # (..., n)
    matched_cost = -xs * ys
    if cost == "sqeuclidean":
        phi = phi + xs * xs / 2
        matched_cost = (xs - ys) ** 2 / 2
    phi = phi - xp.mean(phi, axis=-1, keepdims=True)
    psi = matched_cost - phi

    x_rank, y_rank = xp.argsort(x_order, axis=-1), xp.argsort(y_order, axis=-1)  # back to the input order
    potentials = (xp.take_along_axis(phi, x_rank, axis=-1), xp.take_along_axis(psi, y_rank, axis=-1))
    return potentials, (x_order, y_order)
