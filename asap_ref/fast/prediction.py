"""The prediction made fast: `Amortizer.predict` up to a constant, with the fewest passes.

The keys need their values sorted but not their order, nothing is centred (the constant is free), the slice's weight
is applied before the one gather back, and all slices of a head are summed there. Cumulants and quadratic features are
one quadratic form of the query together, whose constants are worked out once, so that the latter cost nothing.

Padding is moved to the end of each sort by giving it the largest value of its sequence: steps between equal values
are zero. Who meets whom is a matter of the two counts alone (staircase.py), and with equal counts of neighbours.

Shapes: q (..., H, n, d), k (..., H, m, d) -> query dual (..., H, n); L slices. On NumPy the problems are spread over
threads, (B, n, d) in a piece; on CuPy kernels take over (kernels/prediction.py); elsewhere the arrays are whole.
"""

from __future__ import annotations

import math

import numpy as np

from asap_ref.fast import kernels
from asap_ref.fast.threads import spread, worker_count
from asap_ref.method.features import N_CUMULANTS, key_moments
from asap_ref.method.masks import keep, keep_tokens, token_count
from asap_ref.method.staircase import check_levels
from asap_ref.support.arrays import array_namespace, one_pass, scattered, transpose


def predict(q, k, amortizer, *, query_mask=None, key_mask=None, p=None):
    """Query dual up to a constant, zero at padding; q and k are zero there already.

    For CuPy arrays padding may hold anything, halves are computed in float32, and p is the dimension of the values.
    """
    amortizer.check_heads(q)
    if kernels.can_launch(q):
        f_hat = _from_kernels(q, k, amortizer, query_mask, key_mask, p)
        if f_hat is not None:
            return f_hat
        q, k = (keep_tokens(kernels.computed_in(x), mask) for x, mask in ((q, query_mask), (k, key_mask)))
    if amortizer.hidden is not None:  # its units need the features one by one
        return amortizer.predict(q, k, query_mask=query_mask, key_mask=key_mask)
    constants = _constants(amortizer, q)
    if not isinstance(q, np.ndarray):
        return _dual(q, k, constants, query_mask, key_mask)
    leading, n = q.shape[:-2], q.shape[-2]
    count, L = math.prod(leading), constants[0].shape[-1]
    flat_q, flat_k = (x.reshape(count, *x.shape[-2:]) for x in (q, k))
    masks = [
        None if mask is None else np.broadcast_to(mask, (*leading, mask.shape[-1])).reshape(count, mask.shape[-1])
        for mask in (query_mask, key_mask)
    ]

    def part(piece):
        heads = np.arange(count)[piece] % leading[-1]
        theta, *others = constants
        own = [theta if theta.ndim == 2 else theta[heads], *(None if x is None else x[heads] for x in others)]
        return _dual(flat_q[piece], flat_k[piece], own, *(None if mask is None else mask[piece] for mask in masks))

    step = max(min(2**16 // max(n * L, 1), math.ceil(count / worker_count())), 1)
    pieces = [slice(i, i + step) for i in range(0, count, step)] or [slice(0, 0)]
    return np.concatenate(spread(part, pieces)).reshape(*leading, n)


def _constants(amortizer, like):
    return amortizer.placed(like, "prediction", lambda: (*_of_slice_weights(amortizer), *_of_others(amortizer)))


def _from_kernels(q, k, amortizer, query_mask, key_mask, p):
    """Query dual, or None where they cannot hold the problem or have no form of a family."""
    if amortizer.hidden is not None:
        return None
    constants = _constants(amortizer, kernels.number_like(q))
    return kernels.predict(q, k, constants, query_mask=query_mask, key_mask=key_mask, p=p)


def _dual(q, k, constants, query_mask, key_mask):
    theta, w, *others = constants
    dual = _of_slices(q, k, theta, w, query_mask, key_mask)
    if others[0] is not None:
        dual = _sum(dual, *_of_polynomials(q, k, *others, query_mask, key_mask))
    return keep(dual, query_mask)


@one_pass
def _sum(xp, x, y, z):
    return x + y + z


# ------------------------------------------------------------------------------------------------------- slices


def _of_slice_weights(amortizer):
    """Scaled directions (d, L) or (H, d, L), and weights (H, L) times the -1/2 of the mean of two keys."""
    d, L = amortizer.directions.shape[-2:]
    return amortizer.directions * d**-0.25, -0.5 * amortizer.weights[:, :L]


def _of_slices(q, k, theta, w, query_mask, key_mask):
    """What the slice potentials add: (..., n, d), (..., m, d) -> (..., n)."""
    xp = array_namespace(q, k)
    x = _padding_last(_projected(q, theta), query_mask)  # (..., L, n)
    y = xp.sort(_padding_last(_projected(k, theta), key_mask), axis=-1, stable=False)  # (..., L, m)
    xs, back = _sorted(x)
    steps = _steps(xs[..., :-1], xs[..., 1:], *_met(y, q.shape[-2], query_mask, key_mask), w[..., None])
    phi = xp.concat([xp.zeros_like(xs[..., :1]), xp.cumulative_sum(steps, axis=-1)], axis=-1)
    return xp.sum(back(phi), axis=-2)


@one_pass
def _steps(xp, x_before, x, y_before, y, w):
    """Steps of phi from one query to the next, times the weight of the slice."""
    return (y_before + y) * (x - x_before) * w


def _projected(x, theta):
    """Tokens on each slice: (..., n, d) -> (..., L, n)."""
    if isinstance(x, np.ndarray) or theta.ndim == 3:
        return transpose(theta) @ transpose(x)
    # one product for all problems: a batch of them with one factor in common is several launches elsewhere
    xp = array_namespace(x)
    return transpose(xp.reshape(xp.reshape(x, (-1, x.shape[-1])) @ theta, (*x.shape[:-1], theta.shape[-1])))


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
    """Sorted values of float32, and where they came from: NumPy sorts several times faster than it argsorts.

    As float64 the values leave 29 bits unused at the end: their places go there, and take part in the sort only
    between equal values. Below half a unit in the last place of float32, they vanish when rounded to it again.
    """
    packed = x.astype(np.float64)
    places = packed.view(np.int64)
    places |= np.arange(x.shape[-1])
    packed.sort(axis=-1)
    return packed.astype(np.float32), places & (2**29 - 1)


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

    def key(i):  # as _uniform_steps of staircase.py; where the query is padding, the step is zero and the key any
        index = xp.clip(i // n_, 0, m - 1)
        index = index if index.ndim == 1 else index[..., None, :]
        return xp.take_along_axis(y, xp.broadcast_to(index, (*y.shape[:-1], n - 1)), axis=-1)

    return key(i * m_ - 1), key(i * m_)


# -------------------------------------------------------------------------------------------------- polynomials


def _of_others(amortizer):
    """Work out a (H, 1, 1), A, B (H, d, d), c (H, 1, d) and the constants of moments from the weights; or None each."""
    if not amortizer.cumulants and amortizer.basis is None:
        return (None,) * 8
    d, start = amortizer.directions.shape[-2:]
    weights = np.asarray(amortizer.weights, dtype=np.float64)
    H = len(weights)
    a, A, B, c = np.zeros((H, 1, 1)), np.zeros((H, d, d)), np.zeros((H, d, d)), np.zeros((H, 1, d))
    if amortizer.cumulants:
        dot, square, a = (weights[:, start + i, None, None] for i in range(N_CUMULANTS))
        A, B = square * np.eye(d), dot * np.eye(d)
        start += N_CUMULANTS
    if amortizer.basis is not None:
        R = np.asarray(amortizer.basis, dtype=np.float64)  # (d, r) or (H, d, r)
        r = R.shape[-1]
        upper = np.triu_indices(r)
        sizes = [r, len(upper[0]), r * r]
        linear, square, mixed, rest = np.split(weights[:, start:], np.cumsum(sizes), axis=-1)
        form = np.zeros((H, r, r))
        form[:, *upper] = square
        A = A + math.sqrt(d) * (R @ form @ transpose(R))
        B = B + R @ mixed.reshape(H, r, r) @ transpose(R)  # [b, a] weighs u_a mean_b
        c = d**0.25 * transpose(R @ linear[..., None])
    moments = (None,) * 4
    if amortizer.moments:
        bilinear, of_keys, of_queries = np.split(rest, np.cumsum([3 * r * r, len(upper[0])]), axis=-1)
        forms = np.zeros((2, H, r, r))
        forms[0][:, *upper], forms[1][:, *upper] = of_keys, of_queries
        scaled = np.zeros((H, 1, 1)) + d**-0.25 * R
        moments = scaled, *forms, bilinear.reshape(H, 3 * r, r)  # [b, a] weighs u_a s_b
    return a / d, A / d, B / math.sqrt(d), c / math.sqrt(d), *moments


def _of_polynomials(q, k, a, A, B, c, R, forms_k, forms_q, bilinear, query_mask, key_mask):
    """What cumulants, quadratic and moment features add, two of (..., n): qᵀ (a Cov + A + G) q, (mean B + c + h) q."""
    xp = array_namespace(q, k)
    mean, _, cov, _ = key_moments(k, key_mask)  # (..., 1, d), (..., d, d)
    form, row = _scaled_sum(a, cov, A), mean @ B + c
    if R is not None:
        G, h = _of_moments(*key_moments(q, query_mask)[0:3:2], cov, R, forms_k, forms_q, bilinear)
        form, row = form + G, row + h
    return xp.vecdot(q @ form, q, axis=-1), (q @ transpose(row))[..., 0]


def _of_moments(mean_q, cov_q, cov_k, R, forms_k, forms_q, bilinear):
    """G (..., d, d) and h (..., 1, d) of the moment features: their form is made on the basis R, then lifted."""
    xp = array_namespace(mean_q, R)
    Cu, Cw = (transpose(R) @ C @ R for C in (cov_q, cov_k))  # (..., r, r)
    diagonals = (xp.linalg.diagonal(C)[..., None, :] for C in (Cw, Cu))
    s = xp.concat([mean_q @ R, *diagonals], axis=-1)  # (..., 1, 3r)
    return R @ (forms_k * Cw + forms_q * Cu) @ transpose(R), s @ bilinear @ transpose(R)


@one_pass
def _scaled_sum(xp, a, x, y):
    return a * x + y
