"""The prediction made fast: `Amortizer.predict` up to a constant, with the fewest passes. NumPy only.

The keys need their values sorted but not their order, nothing is centred (the constant is free), the slice's weight
is applied before the one scatter, and all slices of a head are summed there. Cumulants and quadratic features are
one quadratic form of the query together, so the latter cost nothing.

Padding is moved to the end of each sort by giving it the largest value of its sequence: steps between equal values
are zero. Who meets whom is a matter of the two counts alone (staircase.py), and with equal counts of neighbours.

Shapes: q (..., H, n, d), k (..., H, m, d) -> query dual (..., H, n); B problems in a piece, L slices.
"""

from __future__ import annotations

import math

import numpy as np

from asap_ref.arrays import transpose
from asap_ref.features import N_CUMULANTS, key_moments
from asap_ref.masks import keep
from asap_ref.workers import spread, worker_count


def predict(q, k, amortizer, *, query_mask=None, key_mask=None):
    """Query dual up to a constant, zero at padding; q and k are zero there already."""
    directions, weights, _ = amortizer.parameters(q)
    leading, n = q.shape[:-2], q.shape[-2]
    count, L = math.prod(leading), directions.shape[-1]
    flat_q, flat_k = (x.reshape(count, *x.shape[-2:]) for x in (q, k))
    flat_masks = [
        None if mask is None else np.broadcast_to(mask, (*leading, mask.shape[-1])).reshape(count, -1)
        for mask in (query_mask, key_mask)
    ]

    def of_problems(x):  # one a head -> one a problem
        return np.broadcast_to(x, (*leading, *x.shape[1:])).reshape(count, *x.shape[1:])

    w = of_problems(weights[:, :L])
    per_head = directions.ndim == 3
    theta = of_problems(directions) if per_head else directions

    def part(piece):
        masks = (None if mask is None else mask[piece] for mask in flat_masks)
        return _of_slices(flat_q[piece], flat_k[piece], w[piece], theta[piece] if per_head else theta, *masks)

    step = max(min(2**16 // max(n * L, 1), math.ceil(count / worker_count())), 1)
    pieces = [slice(i, i + step) for i in range(0, count, step)] or [slice(0, 0)]
    dual = np.concatenate(spread(part, pieces)).reshape(*leading, n)
    return keep(dual + _of_polynomials(q, k, amortizer, key_mask), query_mask)


# ------------------------------------------------------------------------------------------------------- slices


def _of_slices(q, k, w, directions, query_mask, key_mask):
    """What the slice potentials add: (B, n, d), (B, m, d), (B, L), masks (B, n) and (B, m) -> (B, n)."""
    n, d = q.shape[-2:]
    theta = np.ascontiguousarray(transpose(directions)) * d**-0.25
    x = _padding_last(theta @ transpose(q), query_mask)  # (B, L, n)
    y = _padding_last(theta @ transpose(k), key_mask)  # (B, L, m)
    y.sort(axis=-1)
    order = np.argsort(x, axis=-1)
    order += n * np.arange(order.size // n).reshape(*order.shape[:-1], 1)  # into the flat array: one gather
    x = x.reshape(-1)[order]
    steps = _met(y, n, query_mask, key_mask) * (x[..., 1:] - x[..., :-1])
    steps *= -0.5 * w[..., None]
    phi = np.zeros_like(x)
    np.cumsum(steps, axis=-1, out=phi[..., 1:])
    unsorted = np.empty_like(phi)
    unsorted.reshape(-1)[order] = phi
    return unsorted.sum(-2)


def _padding_last(x, mask):
    """Give padding the largest value of its sequence, on each slice: (B, L, n), (B, n) -> (B, L, n)."""
    if mask is None:
        return x
    top = np.where(mask[:, None, :], x, -np.inf).max(-1, keepdims=True)
    top = np.where(mask.any(-1)[:, None, None], top, np.zeros_like(top))
    return np.where(mask[:, None, :], x, top)


def _met(y, n, query_mask, key_mask):
    """Sum of the two keys that the queries before and after a step meet: sorted (B, L, m) -> (B, L, n - 1)."""
    m = y.shape[-1]
    n_, m_ = (
        np.asarray([[size]]) if mask is None else np.maximum(mask.sum(-1, keepdims=True), 1)
        for mask, size in ((query_mask, n), (key_mask, m))
    )
    if n == m and np.array_equal(*np.broadcast_arrays(n_, m_)):
        return y[..., :-1] + y[..., 1:]
    i = np.arange(1, n)
    # as _uniform_steps of staircase.py; where the query is padding, the step is zero and the key any
    below, above = (np.minimum((i * m_ - one) // n_, m - 1)[:, None, :] for one in (1, 0))
    return np.take_along_axis(y, below, axis=-1) + np.take_along_axis(y, above, axis=-1)


# -------------------------------------------------------------------------------------------------- polynomials


def _of_polynomials(q, k, amortizer, key_mask):
    """What cumulants and quadratic features add: uᵀ form u + linear u with u = q / sqrt(d), (..., n)."""
    directions, weights, R = amortizer.parameters(q)
    if not amortizer.cumulants and R is None:
        return 0.0
    d = q.shape[-1]
    u = q / math.sqrt(d)
    mean, _, cov, _ = key_moments(k, key_mask)  # (..., 1, d), (..., d, d)
    start, form, linear = directions.shape[-1], 0.0, 0.0
    if amortizer.cumulants:
        w_dot, w_square, w_cov = (weights[:, start + i, None, None] for i in range(N_CUMULANTS))
        form = w_cov * cov + w_square * np.eye(d, dtype=q.dtype)
        linear = w_dot * mean
        start += N_CUMULANTS
    if R is not None:
        r = R.shape[-1]
        upper = np.triu_indices(r)
        square = np.zeros((len(weights), r, r), q.dtype)
        stop = start + r + len(upper[0])
        square[:, *upper] = weights[:, start + r : stop]
        mixed = weights[:, stop:].reshape(-1, r, r)  # [b, a] weighs u_a mean_b
        form = form + math.sqrt(d) * (R @ square @ transpose(R))
        linear = (
            linear
            + d**0.25 * transpose(R @ weights[:, start : start + r, None])
            + mean @ (R @ mixed @ transpose(R))
        )
    return np.sum((u @ form + linear) * u, axis=-1)
