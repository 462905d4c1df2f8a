"""The attentions of method/attention.py made fast; same names, arguments, errors and results.

Softmax and all that start from a query dual are "product, one exponential, product" over tiles of rows that stay in
the cache: ASAP is prediction.py followed by from_dual.py. Sinkhorn runs in scaling form (scaling.py). On NumPy,
problems are spread over threads (threads.py); on CuPy all of them are a few kernels (kernels/); on other array modules,
and where the kernels cannot hold a problem, the same expressions run on whole arrays.
"""

from __future__ import annotations

import math

import numpy as np

from asap_ref.fast import kernels
from asap_ref.fast.exponential import exp_in_place
from asap_ref.fast.from_dual import attention_from_dual, divisor, tiles
from asap_ref.fast.prediction import predicted_dual
from asap_ref.fast.scaling import scale, scaled_attention, scaled_attention_vjp
from asap_ref.fast.threads import over_problems, over_problems_vjp, within_a_chunk
from asap_ref.method import attention as readable
from asap_ref.method.transport import attention_scores, attention_scores_vjp
from asap_ref.support.arrays import array_namespace, one_pass, transpose
from asap_ref.support.contracts import fast_form_of
from asap_ref.support.masks import column_mass, keep_tokens, valid_pairs, without_padding


def _on_numpy(x):
    return isinstance(x, np.ndarray)


# --------------------------------------------------------------------------------------------------- softmax


@kernels.on_device(kernels.softmax_attention)
@fast_form_of(readable.softmax_attention)
def softmax_attention(q, k, v, *, query_mask=None, key_mask=None):
    """In tiles of rows, normalised after the second product."""
    if not _on_numpy(q):
        return _softmax_whole(q, k, v, query_mask, key_mask)
    if within_a_chunk(q, k):
        return readable.softmax_attention(q, k, v, query_mask=query_mask, key_mask=key_mask)
    return over_problems(_softmax_tiles, [q, k, v], [query_mask, key_mask])


def _softmax_whole(q, k, v, query_mask, key_mask):
    """In whole arrays: the rows are normalised after the second product, where they are narrow."""
    xp = array_namespace(q, k, v)
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    S, valid = attention_scores(q, k), valid_pairs(query_mask, key_mask)
    S = S if valid is None else xp.where(valid, S, -xp.inf)
    # a query without a key attends to none
    some = None if valid is None else xp.any(valid, axis=-1, keepdims=True)
    top = xp.max(S, axis=-1, keepdims=True)
    E = _exp_of_difference(S, top if valid is None else xp.where(some, top, xp.zeros_like(top)))
    total = xp.sum(E, axis=-1, keepdims=True)
    return E @ v / (total if valid is None else xp.where(some, total, xp.ones_like(total)))


@one_pass
def _exp_of_difference(xp, x, y):
    return xp.exp(x - y)


def _softmax_tiles(q, k, v, query_mask, key_mask):
    """(B, n, d), (B, m, d), (B, m, p), masks (B, n) and (B, m) -> (B, n, p)."""
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    if key_mask is not None:  # padding takes the place of a token: the maximum of a row is that of its tokens
        a_token = np.take_along_axis(k, key_mask.argmax(-1)[:, None, None], axis=-2)
        k = np.where(key_mask[..., None], k, a_token)
    kt = np.ascontiguousarray(transpose(k / math.sqrt(q.shape[-1])))  # read once for every tile
    counted = keep_tokens(np.ones_like(v[..., :1]), key_mask)  # (B, m, 1)
    out, total = (np.empty((*q.shape[:-1], columns), dtype=q.dtype) for columns in (v.shape[-1], 1))
    for rows in tiles(q.shape[-2], len(q) * k.shape[-2], least=32):
        E = q[:, rows] @ kt
        E -= E.max(-1, keepdims=True)
        exp_in_place(E)
        np.matmul(E, v, out=out[:, rows])
        np.matmul(E, counted, out=total[:, rows])
    return keep_tokens(out / divisor(total, key_mask), query_mask)


@fast_form_of(readable.softmax_attention_vjp)
def softmax_attention_vjp(q, k, v, *, query_mask=None, key_mask=None):
    """On threads."""
    masks = {"query_mask": query_mask, "key_mask": key_mask}
    if kernels.can_launch(q) and (made := kernels.sinkhorn_attention_vjp(q, k, v, n_iter=0, **masks)):
        return made
    if not _on_numpy(q) or within_a_chunk(q, k):
        return readable.softmax_attention_vjp(q, k, v, query_mask=query_mask, key_mask=key_mask)

    def part(q, k, v, query_mask, key_mask):
        return readable.softmax_attention_vjp(q, k, v, query_mask=query_mask, key_mask=key_mask)

    return over_problems_vjp(part, [q, k, v], [query_mask, key_mask])


# -------------------------------------------------------------------------------------------------- Sinkhorn


@kernels.on_device(kernels.sinkhorn_where_it_pays)
@fast_form_of(readable.sinkhorn_attention)
def sinkhorn_attention(q, k, v, *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None):
    """In scaling form (scaling.py)."""

    def part(q, k, v, query_mask, key_mask):
        q, k, v = without_padding(q, k, v, query_mask, key_mask)
        segments = scale(
            attention_scores(q, k), n_iter=n_iter, epsilon=epsilon, query_mask=query_mask, key_mask=key_mask
        )
        return scaled_attention(segments, v)

    return over_problems(part, [q, k, v], [query_mask, key_mask])


@fast_form_of(readable.sinkhorn_attention_vjp)
def sinkhorn_attention_vjp(q, k, v, *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None):
    """In scaling form (scaling.py)."""

    def part(q, k, v, query_mask, key_mask):
        q, k, v = without_padding(q, k, v, query_mask, key_mask)
        out, vjp = _scaled_vjp(q, k, v, query_mask, key_mask, n_iter=n_iter, epsilon=epsilon)
        return out, lambda d_out: vjp(d_out)[:3]

    if kernels.can_launch(q):
        settings = {"n_iter": n_iter, "epsilon": epsilon, "query_mask": query_mask, "key_mask": key_mask}
        if made := kernels.sinkhorn_attention_vjp(q, k, v, **settings):
            return made
    return over_problems_vjp(part, [q, k, v], [query_mask, key_mask])


def _scaled_vjp(q, k, v, query_mask, key_mask, *, n_iter, epsilon, init=None):
    """Attention by iterations from softmax or a dual ``init`` (..., n), and ``vjp(d_out) -> (dq, dk, dv, d_init)``."""
    masks = {"query_mask": query_mask, "key_mask": key_mask}
    S, scores_vjp = attention_scores_vjp(q, k)
    segments = scale(S, n_iter=n_iter, epsilon=epsilon, init=init, **masks)
    out, mass = scaled_attention(segments, v), column_mass(S, **masks)

    def vjp(d_out):
        d_scores, dv, d_init = scaled_attention_vjp(segments, v, out, d_out, mass)
        dq, dk = scores_vjp(d_scores)
        return dq / epsilon, dk / epsilon, dv, d_init / epsilon

    return out, vjp


# ------------------------------------------------------------------------------------------------------ ASAP


def _asap_from_kernels(q, k, v, amortizer, *, query_mask=None, key_mask=None, found=None):
    masks = {"query_mask": query_mask, "key_mask": key_mask}
    f_hat = predicted_dual(q, k, amortizer, p=v.shape[-1], **masks)
    iterations = {}
    if amortizer.refine:
        refinement = amortizer.refinement(f_hat)
        iterations = {"refine": refinement.n_iter, "omega": refinement.omega}
    settings = {"epsilon": amortizer.epsilon, "found": found}
    return kernels.attention_from_query_dual(q, k, v, f_hat, **settings, **iterations, **masks)


@kernels.on_device(_asap_from_kernels)
@fast_form_of(readable.asap_attention)
def asap_attention(q, k, v, amortizer, *, query_mask=None, key_mask=None):
    """Product, exponential, product, in O(n) memory (from_dual.py), from a prediction in the fewest passes."""
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    f_hat = predicted_dual(q, k, amortizer, query_mask=query_mask, key_mask=key_mask)
    refinement = amortizer.refinement(q) if amortizer.refine else None
    masks = (query_mask, key_mask)
    return fast_attention_from_dual(q, k, v, f_hat, *masks, epsilon=amortizer.epsilon, refinement=refinement)


def fast_attention_from_dual(q, k, v, f_hat, query_mask, key_mask, *, epsilon=1.0, refinement=None):
    """`method.attention.attention_from_dual` in tiles (from_dual.py), on threads; only over-relaxation refines here."""
    refine, omega = (refinement.n_iter, refinement.omega) if refinement else (0, 1.0)

    def part(q, k, v, f_hat, omega, query_mask, key_mask):
        settings = {"epsilon": epsilon, "refine": refine, "omega": omega}
        return attention_from_dual(q, k, v, f_hat[..., 0], query_mask, key_mask, **settings)

    if not isinstance(omega, float):
        omega = omega[:, None, None]  # (H, 1, 1)
    if not _on_numpy(q):
        return part(q, k, v, f_hat[..., None], omega, query_mask, key_mask)
    of_each = np.broadcast_to(np.asarray(omega, q.dtype), (*q.shape[:-2], 1, 1))
    return over_problems(part, [q, k, v, f_hat[..., None], of_each], [query_mask, key_mask])


@fast_form_of(readable.asap_attention_vjp)
def asap_attention_vjp(q, k, v, amortizer, *, query_mask=None, key_mask=None):
    """On NumPy one iteration in scaling form (scaling.py) from the prediction, on threads, unless it is refined."""
    masks, epsilon = {"query_mask": query_mask, "key_mask": key_mask}, amortizer.epsilon
    if amortizer.refine or not _on_numpy(q):
        return readable.asap_attention_vjp(q, k, v, amortizer, **masks)
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    f_hat, predict_vjp = amortizer.predict_vjp(q, k, **masks)

    def part(q, k, v, f_hat, *masks):
        out, vjp = _scaled_vjp(q, k, v, *masks, n_iter=1, epsilon=epsilon, init=f_hat[..., 0])

        def with_axis(d_out):
            *others, df = vjp(d_out)
            return *others, df[..., None]

        return out, with_axis

    out, from_dual_vjp = over_problems_vjp(part, [q, k, v, f_hat[..., None]], [query_mask, key_mask])

    def vjp(d_out):
        dq, dk, dv, df = from_dual_vjp(d_out)
        dq_dual, dk_dual = predict_vjp(df[..., 0])
        return dq + dq_dual, dk + dk_dual, dv

    return out, vjp
