"""The attentions of attention.py made fast; same names, arguments, errors and results.

Softmax and ASAP are "product, one exponential, product" over tiles of rows that stay in the cache. For ASAP
(derived) the predicted query dual rides inside the first product as one extra column, the column sums are taken
from the tile while it is hot, and both normalisations are folded into the second product:

    E = exp([q / sqrt(d), f_hat] [k, 1]ᵀ / epsilon)        (n, m), in tiles of rows
    s = column sums of E                                    exp(-g / epsilon), up to n'/m'
    O = E [v / s, 1 / s]                                    (n, p + 1)
    out = O[:, :p] / O[:, p]

No stabiliser is needed where the prediction is any good, since f_hat brings the exponents near -g. Where a sum
leaves the safe range all the same, that problem is done again by the readable form, in the log domain.

Sinkhorn runs in scaling form (scaling.py). On NumPy, problems are spread over threads (workers.py); on other
array modules the same expressions run on whole arrays, or the readable form does where tiles mean nothing.
"""

from __future__ import annotations

import math

import numpy as np

from asap_ref import attention as readable
from asap_ref.arrays import array_namespace, transpose
from asap_ref.contracts import inside, operator
from asap_ref.features import N_CUMULANTS
from asap_ref.scaling import scale, scaled_plan, scaling_vjp
from asap_ref.transport import (
    attention_scores,
    attention_scores_vjp,
    column_mass,
    transport_plan,
    two_sided_c_transform,
)
from asap_ref.workers import over_problems, over_problems_vjp, spread, worker_count

TILE = 2**17  # entries of a tile of scores: 512 KiB in float32


def _on_numpy(x):
    return isinstance(x, np.ndarray)


# --------------------------------------------------------------------------------------------------- softmax


@operator(q="n d", k="m d", v="m p", query_mask="n", key_mask="m")
def softmax_attention(q, k, v, *, query_mask=None, key_mask=None):
    """Row-softmax attention in tiles: `attention.softmax_attention`, fast.

    Examples
    --------
    >>> softmax_attention(np.zeros((2, 3)), np.zeros((2, 3)), np.asarray([[1.0], [3.0]]))
    array([[2.],
           [2.]])
    """
    if not _on_numpy(q) or query_mask is not None or key_mask is not None:
        return readable.softmax_attention(q, k, v, query_mask=query_mask, key_mask=key_mask)
    return over_problems(_softmax_tiles, [q, k, v], [])


def _softmax_tiles(q, k, v):
    """(B, n, d), (B, m, d), (B, m, p) -> (B, n, p)."""
    kt = transpose(k / math.sqrt(q.shape[-1]))
    v = np.concatenate([v, np.ones_like(v[..., :1])], axis=-1)
    out = np.empty((*q.shape[:-1], v.shape[-1]), dtype=q.dtype)
    for rows in _tiles(q, k):
        E = q[:, rows] @ kt
        E -= E.max(-1, keepdims=True)
        np.matmul(np.exp(E, out=E), v, out=out[:, rows])
    return out[..., :-1] / out[..., -1:]


@operator(q="n d", k="m d", v="m p", query_mask="n", key_mask="m")
def softmax_attention_vjp(q, k, v, *, query_mask=None, key_mask=None):
    """Softmax attention and its VJP on threads: `attention.softmax_attention_vjp`, fast.

    Examples
    --------
    >>> q = np.zeros((2, 3))
    >>> softmax_attention_vjp(q, q, q)[1](np.ones((2, 3)))[2].sum()
    np.float64(6.0)
    """
    if not _on_numpy(q):
        return readable.softmax_attention_vjp(q, k, v, query_mask=query_mask, key_mask=key_mask)

    def part(q, k, v, query_mask, key_mask):
        return readable.softmax_attention_vjp(q, k, v, query_mask=query_mask, key_mask=key_mask)

    return over_problems_vjp(part, [q, k, v], [query_mask, key_mask])


# -------------------------------------------------------------------------------------------------- Sinkhorn


@operator(q="n d", k="m d", v="m p", query_mask="n", key_mask="m")
def sinkhorn_attention(q, k, v, *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None):
    """Sinkhorn attention in scaling form: `attention.sinkhorn_attention`, fast.

    Examples
    --------
    >>> q = np.asarray([[1.0], [0.0]])
    >>> sinkhorn_attention(q, q, np.eye(2), n_iter=50).sum(axis=0).round(6)
    array([1., 1.])
    """

    def part(q, k, v, query_mask, key_mask):
        q, k, v = readable.without_padding(q, k, v, query_mask, key_mask)
        segments = scale(
            attention_scores(q, k), n_iter=n_iter, epsilon=epsilon, query_mask=query_mask, key_mask=key_mask
        )
        _, a, b = segments[-1].steps[-1]
        return a[..., :, None] * (segments[-1].K @ (b[..., :, None] * v))

    if not _on_numpy(q):
        return part(q, k, v, query_mask, key_mask)
    return over_problems(part, [q, k, v], [query_mask, key_mask])


@operator(q="n d", k="m d", v="m p", query_mask="n", key_mask="m")
def sinkhorn_attention_vjp(q, k, v, *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None):
    """Sinkhorn attention and its VJP in scaling form: `attention.sinkhorn_attention_vjp`, fast.

    Examples
    --------
    >>> q = np.asarray([[1.0], [0.0]])
    >>> out, vjp = sinkhorn_attention_vjp(q, q, q, n_iter=5)
    >>> vjp(np.ones((2, 1)))[2].round(6)
    array([[1.],
           [1.]])
    """

    def part(q, k, v, query_mask, key_mask):
        xp = array_namespace(q, k, v)
        masks = {"query_mask": query_mask, "key_mask": key_mask}
        q, k, v = readable.without_padding(q, k, v, query_mask, key_mask)
        S, scores_vjp = attention_scores_vjp(q, k)
        segments = scale(S, n_iter=n_iter, epsilon=epsilon, **masks)
        P = scaled_plan(segments)

        def vjp(d_out):
            M = P * (d_out @ transpose(v))
            dS = scaling_vjp(segments, xp.sum(M, axis=-1), xp.sum(M, axis=-2), column_mass(S, **masks))
            return *scores_vjp((M + dS) / epsilon), transpose(P) @ d_out

        return P @ v, vjp

    if not _on_numpy(q):
        return part(q, k, v, query_mask, key_mask)
    return over_problems_vjp(part, [q, k, v], [query_mask, key_mask])


# ------------------------------------------------------------------------------------------------------ ASAP


@operator(q="H n d", k="H m d", v="H m p", query_mask="n", key_mask="m")
def asap_attention(q, k, v, amortizer, *, query_mask=None, key_mask=None, block=None):
    """ASAP attention, product, exponential, product: `attention.asap_attention`, fast.

    Parameters
    ----------
    block : int, optional
        Rows of a tile. With it, tiles are formed twice and none is kept: O(n block) memory, for sequences
        whose plan would not fit. Chosen by size when not given.

    Examples
    --------
    >>> from asap_ref.calibration import fit_amortizer
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 64, 1, 8, 4))
    >>> amortizer = fit_amortizer([(q, k)], n_slices=4)
    >>> slow = readable.asap_attention(q, k, v, amortizer)
    >>> bool(np.allclose(asap_attention(q, k, v, amortizer), slow))
    True
    """
    uneven = query_mask is not None or key_mask is not None or q.shape[-2] != k.shape[-2]
    if not _on_numpy(q) or uneven:
        return readable.asap_attention(q, k, v, amortizer, query_mask=query_mask, key_mask=key_mask)
    f_hat = predict(q, k, amortizer)

    def refined(q, k, v, f_hat):
        segments = scale(
            attention_scores(q, k), n_iter=1 + amortizer.refine, epsilon=amortizer.epsilon, init=f_hat[..., 0]
        )
        _, a, b = segments[-1].steps[-1]
        return a[..., :, None] * (segments[-1].K @ (b[..., :, None] * v))

    if amortizer.refine:
        return over_problems(refined, [q, k, v, f_hat[..., None]], [])

    def part(q, k, v, f_hat):
        out, good = _asap_tiles(q, k, v, f_hat[..., 0], amortizer.epsilon, block)
        for bad in np.flatnonzero(~good):  # the log domain survives what the tiles did not
            out[bad] = _asap_from_dual(q[bad], k[bad], v[bad], f_hat[bad, :, 0], amortizer.epsilon)
        return out

    return over_problems(part, [q, k, v, f_hat[..., None]], [])


def _asap_tiles(q, k, v, f_hat, epsilon, block):
    """(B, n, d), (B, n, d), (B, n, p), (B, n) -> (B, n, p), and whether each problem stayed in range, (B,)."""
    n, m, p = q.shape[-2], k.shape[-2], v.shape[-1]
    f_hat = f_hat - f_hat.max(-1, keepdims=True)
    q1 = np.concatenate([q / (math.sqrt(q.shape[-1]) * epsilon), f_hat[..., None] / epsilon], axis=-1)
    k1t = transpose(np.concatenate([k, np.ones_like(k[..., :1])], axis=-1))
    tiles = _tiles(q, k, block)
    keep = block is None and n * m <= 2**24  # else form each tile again instead of keeping it
    kept = np.empty((len(q), n, m), q.dtype) if keep else None

    def tile(rows):
        E = np.matmul(q1[:, rows], k1t, out=kept[:, rows] if keep else None)
        return np.exp(E, out=E)

    s = 0
    for rows in tiles:
        E = tile(rows)
        s = s + np.matmul(np.ones((1, E.shape[-2]), E.dtype), E)[..., 0, :]  # (B, m): as a product, at BLAS speed
    inverse = 1 / s
    v1 = np.concatenate([v * inverse[..., None], inverse[..., None]], axis=-1)  # (B, m, p + 1)
    out = np.empty((len(q), n, p + 1), q.dtype)
    for rows in tiles:
        np.matmul(kept[:, rows] if keep else tile(rows), v1, out=out[:, rows])
    tiny, huge = np.finfo(q.dtype).tiny * 1e6, np.finfo(q.dtype).max * 1e-6
    sums = np.concatenate([s, out[..., p], inverse], axis=-1)
    good = np.all((sums > tiny) & (sums < huge), axis=-1)
    return out[..., :p] / out[..., p:], good & np.isfinite(out).all((-1, -2))


def _asap_from_dual(q, k, v, f_hat, epsilon):
    """One problem in the log domain: (n, d), (m, d), (m, p), (n,) -> (n, p)."""
    S = attention_scores(q, k)
    return transport_plan(S, two_sided_c_transform(S, f_hat, epsilon=epsilon), epsilon=epsilon) @ v


def _tiles(q, k, block=None):
    """Slices of rows, so that a tile of scores of the chunk has about TILE entries."""
    n, m = q.shape[-2], k.shape[-2]
    rows = block or max(min(n, TILE // max(m * len(q), 1)), min(n, 32))
    return [slice(i, min(i + rows, n)) for i in range(0, n, rows)]


# ------------------------------------------------------------------------------------------------ prediction


def predict(q, k, amortizer):
    """Query dual up to a constant, square and unmasked, NumPy: `Amortizer.predict`, with the fewest passes.

    The keys need their values sorted but not their order, nothing is centred (the constant is free), the slice's
    weight is applied before the one scatter, and all slices of a head are summed there. Cumulants and quadratic
    features are one quadratic form of the query together, so the latter cost nothing.
    """
    directions, weights, _ = amortizer.parameters(q)
    leading, n, d = q.shape[:-2], q.shape[-2], q.shape[-1]
    count, L = math.prod(leading), directions.shape[-1]
    flat_q, flat_k = q.reshape(count, n, d), k.reshape(count, n, d)
    polynomial = _polynomial(q, k, amortizer)

    def of_problems(x):  # one a head -> one a problem
        return np.broadcast_to(x, (*leading, *x.shape[1:])).reshape(count, *x.shape[1:])

    w = of_problems(weights[:, :L])
    per_head = directions.ndim == 3
    theta = of_problems(directions) if per_head else directions

    def part(piece):
        return _predict_part(flat_q[piece], flat_k[piece], w[piece], theta[piece] if per_head else theta)

    step = max(min(2**16 // max(n * L, 1), math.ceil(count / worker_count())), 1)
    pieces = [slice(i, i + step) for i in range(0, count, step)] or [slice(0, 0)]
    return np.concatenate(spread(part, pieces)).reshape(*leading, n) + polynomial


def _predict_part(q, k, w, directions):
    """(B, n, d), (B, n, d), (B, L) -> (B, n)."""
    n, d = q.shape[-2:]
    theta = np.ascontiguousarray(transpose(directions)) * d**-0.25
    x, y = theta @ transpose(q), theta @ transpose(k)  # (B, L, n)
    y.sort(axis=-1)
    order = np.argsort(x, axis=-1)
    order += n * np.arange(order.size // n).reshape(*order.shape[:-1], 1)  # into the flat array: one gather
    x = x.reshape(-1)[order]
    steps = (y[..., :-1] + y[..., 1:]) * (x[..., 1:] - x[..., :-1])
    steps *= -0.5 * w[..., None]
    phi = np.zeros_like(x)
    np.cumsum(steps, axis=-1, out=phi[..., 1:])
    unsorted = np.empty_like(phi)
    unsorted.reshape(-1)[order] = phi
    return unsorted.sum(-2)


def _polynomial(q, k, amortizer):
    """What cumulants and quadratic features add to the dual: uᵀ form u + linear u with u = q / sqrt(d), (..., n)."""
    directions, weights, R = amortizer.parameters(q)
    n, d = q.shape[-2:]
    u, mean = q / math.sqrt(d), k.mean(-2, keepdims=True)  # (..., n, d), (..., 1, d)
    start, form, linear = directions.shape[-1], 0.0, 0.0
    if amortizer.cumulants:
        w_dot, w_square, w_cov = (weights[:, start + i, None, None] for i in range(N_CUMULANTS))
        spread = k - mean
        form = w_cov * (transpose(spread) @ spread / n) + w_square * np.eye(d, dtype=q.dtype)
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
    if isinstance(form, float):
        return 0.0
    return np.sum((u @ form + linear) * u, axis=-1)


@operator(q="H n d", k="H m d", v="H m p", query_mask="n", key_mask="m")
def asap_attention_vjp(q, k, v, amortizer, *, query_mask=None, key_mask=None):
    """ASAP attention and its VJP: the readable one, which fine-tuning can afford."""
    return inside(readable.asap_attention_vjp, q, k, v, amortizer, query_mask=query_mask, key_mask=key_mask)
