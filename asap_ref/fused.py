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

import math

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
)
from asap_ref.workers import over_problems, over_problems_vjp

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
    if not _on_numpy(q):
        return readable.softmax_attention(q, k, v, query_mask=query_mask, key_mask=key_mask)
    return over_problems(_softmax_tiles, [q, k, v], [query_mask, key_mask])


def _softmax_tiles(q, k, v, query_mask, key_mask):
    """(B, n, d), (B, m, d), (B, m, p), masks (B, n) and (B, m) -> (B, n, p)."""
    q, k, v = readable.without_padding(q, k, v, query_mask, key_mask)
    if key_mask is not None:  # padding takes the place of a token: the maximum of a row is that of its tokens
        a_token = np.take_along_axis(k, key_mask.argmax(-1)[:, None, None], axis=-2)
        k = np.where(key_mask[..., None], k, a_token)
    kt = transpose(k / math.sqrt(q.shape[-1]))
    v = np.concatenate([v, keep_tokens(np.ones_like(v[..., :1]), key_mask)], axis=-1)
    out = np.empty((*q.shape[:-1], v.shape[-1]), dtype=q.dtype)
    for rows in _tiles(q, k):
        E = q[:, rows] @ kt
        E -= E.max(-1, keepdims=True)
        np.matmul(np.exp(E, out=E), v, out=out[:, rows])
    return keep_tokens(out[..., :-1] / (out[..., -1:] + _none_left(key_mask, q)), query_mask)


def _none_left(mask, like):
    """One where a sequence is all padding, (B, 1, 1), to keep a sum that is zero from being divided by."""
    return 0 if mask is None else (~mask.any(-1))[:, None, None].astype(like.dtype)


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
    if not _on_numpy(q):
        return readable.asap_attention(q, k, v, amortizer, query_mask=query_mask, key_mask=key_mask)
    q, k, v = readable.without_padding(q, k, v, query_mask, key_mask)
    f_hat = predict(q, k, amortizer, query_mask=query_mask, key_mask=key_mask)
    epsilon = amortizer.epsilon

    def refined(q, k, v, f_hat, query_mask, key_mask):
        S, n_iter = attention_scores(q, k), 1 + amortizer.refine
        masks = {"query_mask": query_mask, "key_mask": key_mask}
        segments = scale(S, n_iter=n_iter, epsilon=epsilon, init=f_hat[..., 0], **masks)
        _, a, b = segments[-1].steps[-1]
        return a[..., :, None] * (segments[-1].K @ (b[..., :, None] * v))

    def part(q, k, v, f_hat, query_mask, key_mask):
        f_hat = f_hat[..., 0]
        out, good = _asap_tiles(q, k, v, f_hat, query_mask, key_mask, epsilon, block)
        for bad in np.flatnonzero(~good):  # the log domain survives what the tiles did not
            problem = [None if x is None else x[bad] for x in (q, k, v, f_hat, query_mask, key_mask)]
            out[bad] = _asap_from_dual(*problem, epsilon)
        return out

    return over_problems(
        refined if amortizer.refine else part, [q, k, v, f_hat[..., None]], [query_mask, key_mask]
    )


def _asap_tiles(q, k, v, f_hat, query_mask, key_mask, epsilon, block):
    """(B, n, d), (B, m, d), (B, m, p), (B, n) -> (B, n, p), and whether each problem stayed in range, (B,).

    Padding is zero in q, k and v.
    """
    n, m, p = q.shape[-2], k.shape[-2], v.shape[-1]
    f_hat = f_hat if query_mask is None else np.where(query_mask, f_hat, -np.inf)
    f_hat = keep(f_hat - f_hat.max(-1, keepdims=True, initial=np.finfo(q.dtype).min), query_mask)
    q1 = np.concatenate([q / (math.sqrt(q.shape[-1]) * epsilon), f_hat[..., None] / epsilon], axis=-1)
    k1t = transpose(np.concatenate([k, np.ones_like(k[..., :1])], axis=-1))
    counted = keep(np.ones_like(f_hat), query_mask)[:, None, :]  # (B, 1, n)
    tiles = _tiles(q, k, block)
    keeping = block is None and n * m <= 2**24  # else form each tile again instead of keeping it
    kept = np.empty((len(q), n, m), q.dtype) if keeping else None

    def tile(rows):
        E = np.matmul(q1[:, rows], k1t, out=kept[:, rows] if keeping else None)
        return np.exp(E, out=E)

    s = _none_left(query_mask, q)
    for rows in tiles:
        s = s + np.matmul(counted[..., rows], tile(rows))  # (B, 1, m): as a product, at BLAS speed
    s = s[..., 0, :]
    inverse = 1 / s
    b = keep(inverse, key_mask)[..., None]
    v1 = np.concatenate([v * b, b], axis=-1)  # (B, m, p + 1)
    out = np.empty((len(q), n, p + 1), q.dtype)
    for rows in tiles:
        np.matmul(kept[:, rows] if keeping else tile(rows), v1, out=out[:, rows])
    total = out[..., p:] + _none_left(key_mask, q)
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
