"""The attentions of attention.py made fast; same names, arguments, errors and results.

Softmax and ASAP are "product, one exponential, product" over tiles of rows that stay in the cache. For ASAP
(derived) the predicted query dual rides inside the first product as one extra column, the column sums are taken
from the tile while it is hot, and both normalisations are folded into the second product:

    E = exp([q / sqrt(d), f_hat] [k, 1]ᵀ / epsilon)        (n, m), in tiles of rows
    s = column sums of E                                    exp(-g / epsilon), up to n'/m'
    O = E [v / s, 1 / s]                                    (n, p + 1)
    out = O[:, :p] / O[:, p]

Padding costs a mask and no pass: masked queries do not count in s, and masked keys have 1 / s = 0. No stabiliser is
needed where the prediction is any good, since f_hat brings the exponents near -g. Where a sum leaves the safe range
all the same, that problem is done again by the readable form, in the log domain. The prediction is prediction.py.

Sinkhorn runs in scaling form (scaling.py). On NumPy, problems are spread over threads (workers.py); on other
array modules the same expressions run on whole arrays, or the readable form does where tiles mean nothing.
"""

from __future__ import annotations

import functools
import math
import operator as operators

import numpy as np

from asap_ref import attention as readable
from asap_ref.arrays import array_namespace, transpose
from asap_ref.contracts import inside, operator
from asap_ref.masks import keep, keep_tokens
from asap_ref.prediction import predict
from asap_ref.scaling import scale, scaled_plan, scaling_vjp
from asap_ref.transport import (
    attention_scores,
    attention_scores_vjp,
    column_mass,
    transport_plan,
    two_sided_c_transform,
    valid_pairs,
)
from asap_ref.workers import over_problems, over_problems_vjp

TILE = 2**17  # entries of a tile of scores: 512 KiB in float32
SLAB = 2**30  # entries of scores on a device at once: 4 GiB in float32


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
    if not _on_numpy(q):
        return _softmax_whole(q, k, v, query_mask, key_mask)
    return over_problems(_softmax_tiles, [q, k, v], [query_mask, key_mask])


def _softmax_whole(q, k, v, query_mask, key_mask):
    """In whole arrays: the rows are normalised after the second product, where they are narrow."""
    xp = array_namespace(q, k, v)
    q, k, v = readable.without_padding(q, k, v, query_mask, key_mask)
    S, valid = attention_scores(q, k), valid_pairs(query_mask, key_mask)
    S = S if valid is None else xp.where(valid, S, -xp.inf)
    top = xp.max(S, axis=-1, keepdims=True)
    E = xp.exp(S - (top if valid is None else xp.where(top == -xp.inf, xp.zeros_like(top), top)))
    out = E @ xp.concat([v, xp.ones_like(v[..., :1])], axis=-1)
    total = out[..., -1:]
    return out[..., :-1] / (total if valid is None else xp.where(total > 0, total, xp.ones_like(total)))


def _softmax_tiles(q, k, v, query_mask, key_mask):
    """(B, n, d), (B, m, d), (B, m, p), masks (B, n) and (B, m) -> (B, n, p)."""
    q, k, v = readable.without_padding(q, k, v, query_mask, key_mask)
    if key_mask is not None:  # padding takes the place of a token: the maximum of a row is that of its tokens
        a_token = np.take_along_axis(k, key_mask.argmax(-1)[:, None, None], axis=-2)
        k = np.where(key_mask[..., None], k, a_token)
    kt = np.ascontiguousarray(transpose(k / math.sqrt(q.shape[-1])))  # read once for every tile
    v = np.concatenate([v, keep_tokens(np.ones_like(v[..., :1]), key_mask)], axis=-1)
    out = np.empty((*q.shape[:-1], v.shape[-1]), dtype=q.dtype)
    for rows in _tiles(q, k):
        E = q[:, rows] @ kt
        E -= E.max(-1, keepdims=True)
        np.matmul(np.exp(E, out=E), v, out=out[:, rows])
    return keep_tokens(out[..., :-1] / _divisor(out[..., -1:], key_mask), query_mask)


def _divisor(sums, mask):
    """Sums (..., n, m) to divide by: plus one where a sequence is all padding (..., n'), as they are zero there."""
    if mask is None:
        return sums
    xp = array_namespace(sums)
    return sums + xp.astype(~xp.any(mask, axis=-1), sums.dtype)[..., None, None]


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
    q, k, v = readable.without_padding(q, k, v, query_mask, key_mask)
    f_hat = predict(q, k, amortizer, query_mask=query_mask, key_mask=key_mask)
    epsilon = amortizer.epsilon

    def refined(q, k, v, f_hat, query_mask, key_mask):
        S, n_iter = attention_scores(q, k), 1 + amortizer.refine
        masks = {"query_mask": query_mask, "key_mask": key_mask}
        segments = scale(S, n_iter=n_iter, epsilon=epsilon, init=f_hat[..., 0], **masks)
        _, a, b = segments[-1].steps[-1]
        return a[..., :, None] * (segments[-1].K @ (b[..., :, None] * v))

    def in_tiles(q, k, v, f_hat, query_mask, key_mask):
        f_hat = f_hat[..., 0]
        out, good = _asap_tiles(q, k, v, f_hat, query_mask, key_mask, epsilon, block)
        for bad in np.flatnonzero(~good):  # the log domain survives what the tiles did not
            problem = [None if x is None else x[bad] for x in (q, k, v, f_hat, query_mask, key_mask)]
            out[bad] = _asap_from_dual(*problem, epsilon)
        return out

    if _on_numpy(q):
        part = refined if amortizer.refine else in_tiles
        return over_problems(part, [q, k, v, f_hat[..., None]], [query_mask, key_mask])
    if amortizer.refine:
        return refined(q, k, v, f_hat[..., None], query_mask, key_mask)
    out, good = _asap_slabs(q, k, v, f_hat, query_mask, key_mask, epsilon, block)
    xp = array_namespace(out)
    if bool(xp.all(good)):
        return out
    return xp.where(good[..., None, None], out, _asap_from_dual(q, k, v, f_hat, query_mask, key_mask, epsilon))


def _asap_slabs(q, k, v, f_hat, query_mask, key_mask, epsilon, block):
    """As the formulas at the top have it, in one slab of rows where memory allows; the same results as `_asap_tiles`.

    Shapes are (..., n, d) and so on. What a slab holds does not matter to a device, as long as it is much.
    """
    xp = array_namespace(q, k, v)
    n, p = q.shape[-2], v.shape[-1]
    f_hat = f_hat if query_mask is None else xp.where(query_mask, f_hat, -xp.inf)
    f_hat = keep(f_hat - xp.max(f_hat, axis=-1, keepdims=True), query_mask)
    q1 = xp.concat([q / math.sqrt(q.shape[-1]), f_hat[..., None]], axis=-1) / epsilon
    k1t = transpose(xp.concat([k, xp.ones_like(k[..., :1])], axis=-1))
    counted = keep(xp.ones_like(f_hat), query_mask)[..., None, :]  # (..., 1, n)
    rows = block or max(SLAB // max(math.prod(q.shape[:-2]) * k.shape[-2], 1), 1)
    slabs = [slice(i, min(i + rows, n)) for i in range(0, n, rows)]
    whole = xp.exp(q1 @ k1t) if len(slabs) == 1 else None

    def over_slabs(function):
        """Call the function on the exponentials of each slab, which are formed anew each time."""
        return [function(rows, xp.exp(q1[..., rows, :] @ k1t) if whole is None else whole) for rows in slabs]

    s = functools.reduce(operators.add, over_slabs(lambda rows, E: counted[..., rows] @ E))
    s = _divisor(s, query_mask)[..., 0, :]
    b = keep(1 / s, key_mask)[..., None]
    v1 = xp.concat([v * b, b], axis=-1)  # (..., m, p + 1)
    out = over_slabs(lambda rows, E: E @ v1)
    out = out[0] if len(out) == 1 else xp.concat(out, axis=-2)
    total = _divisor(out[..., p:], key_mask)
    out = keep_tokens(out[..., :p] / total, query_mask)
    sums, info = xp.concat([s, total[..., 0]], axis=-1), xp.finfo(q.dtype)
    good = xp.all((sums > info.smallest_normal * 1e6) & (sums < info.max * 1e-6), axis=-1)
    return out, good & xp.all(xp.isfinite(out), axis=(-1, -2))


def _asap_tiles(q, k, v, f_hat, query_mask, key_mask, epsilon, block):
    """(B, n, d), (B, m, d), (B, m, p), (B, n) -> (B, n, p), and whether each problem stayed in range, (B,).

    Padding is zero in q, k and v.
    """
    n, m, p = q.shape[-2], k.shape[-2], v.shape[-1]
    f_hat = f_hat if query_mask is None else np.where(query_mask, f_hat, -np.inf)
    f_hat = keep(f_hat - f_hat.max(-1, keepdims=True, initial=np.finfo(q.dtype).min), query_mask)
    q1 = np.concatenate([q / (math.sqrt(q.shape[-1]) * epsilon), f_hat[..., None] / epsilon], axis=-1)
    k1t = np.concatenate([transpose(k), np.ones_like(k[..., None, :, 0])], axis=-2)
    counted = keep(np.ones_like(f_hat), query_mask)[:, None, :]  # (B, 1, n)
    tiles = _tiles(q, k, block)
    keeping = block is None and n * m <= 2**24  # else form each tile again instead of keeping it
    kept = np.empty((len(q), n, m), q.dtype) if keeping else None

    def tile(rows):
        E = np.matmul(q1[:, rows], k1t, out=kept[:, rows] if keeping else None)
        return np.exp(E, out=E)

    s = 0.0
    for rows in tiles:
        s = s + np.matmul(counted[..., rows], tile(rows))  # (B, 1, m): as a product, at BLAS speed
    s = _divisor(s, query_mask)[..., 0, :]
    inverse = 1 / s
    b = keep(inverse, key_mask)[..., None]
    v1 = np.concatenate([v * b, b], axis=-1)  # (B, m, p + 1)
    out = np.empty((len(q), n, p + 1), q.dtype)
    for rows in tiles:
        np.matmul(kept[:, rows] if keeping else tile(rows), v1, out=out[:, rows])
    total = _divisor(out[..., p:], key_mask)
    tiny, huge = np.finfo(q.dtype).tiny * 1e6, np.finfo(q.dtype).max * 1e-6
    sums = np.concatenate([s, total[..., 0], inverse], axis=-1)
    good = np.all((sums > tiny) & (sums < huge), axis=-1)
    return keep_tokens(out[..., :p] / total, query_mask), good & np.isfinite(out).all((-1, -2))


def _asap_from_dual(q, k, v, f_hat, query_mask, key_mask, epsilon):
    """One problem in the log domain: (n, d), (m, d), (m, p), (n,) -> (n, p)."""
    settings = {"epsilon": epsilon, "query_mask": query_mask, "key_mask": key_mask}
    S = attention_scores(q, k)
    return transport_plan(S, two_sided_c_transform(S, f_hat, **settings), **settings) @ v


def _tiles(q, k, block=None):
    """Slices of rows, so that a tile of scores of the chunk has about TILE entries."""
    n, m = q.shape[-2], k.shape[-2]
    rows = block or max(min(n, TILE // max(m * len(q), 1)), min(n, 32))
    return [slice(i, min(i + rows, n)) for i in range(0, n, rows)]


@operator(q="H n d", k="H m d", v="H m p", query_mask="n", key_mask="m")
def asap_attention_vjp(q, k, v, amortizer, *, query_mask=None, key_mask=None):
    """ASAP attention and its VJP: the readable one, which fine-tuning can afford."""
    return inside(readable.asap_attention_vjp, q, k, v, amortizer, query_mask=query_mask, key_mask=key_mask)
