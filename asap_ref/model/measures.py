"""What two attentions give on the same queries, keys and values: how far their outputs are, and the plan of each.

Shapes: q (B, H, n, d), k (B, H, m, d), v (B, H, m, p), plan (B, H, n, m).
"""

from __future__ import annotations

import numpy as np

from asap_ref.support.arrays import array_namespace, to_numpy
from asap_ref.support.masks import keep, token_count


def output_error(expected, found, calls):
    """Relative error of an attention's output against another's over (q, k, v, query_mask, key_mask): (H,)."""
    difference = size = 0.0
    for q, k, v, query_mask, key_mask in calls:
        out, other = (as_float64(a(q, k, v, query_mask=query_mask, key_mask=key_mask)) for a in (expected, found))
        axes = (0, 2, 3)  # all but the head
        difference, size = difference + np.sum((other - out) ** 2, axes), size + np.sum(out**2, axes)
    return root_of_ratio(difference, size)


def relative_error(expected, found):
    """Relative error of outputs (B, H, n, p) against others, NumPy float64, head by head: (H,)."""
    axes = (0, 2, 3)  # all but the head
    return root_of_ratio(np.sum((found - expected) ** 2, axes), np.sum(expected**2, axes))


def root_of_ratio(difference, size):
    """Relative error of sums of squares; that of nothing (a head whose values are zero) is 0, or infinite."""
    nothing = np.where(difference > 0, np.inf, 0.0)
    return np.sqrt(np.where(size > 0, difference / np.where(size > 0, size, 1.0), nothing))


def plan_of(attention, q, k, *, query_mask=None, key_mask=None):
    """Plan of any attention, NumPy float64 (..., n, m): what it gives when the values are the identity."""
    xp = array_namespace(q, k)
    identity = xp.broadcast_to(xp.eye(k.shape[-2], dtype=q.dtype, device=q.device), (*k.shape[:-1], k.shape[-2]))
    return as_float64(attention(q, k, identity, query_mask=query_mask, key_mask=key_mask))


def column_sums(attention, q, k, *, query_mask=None, key_mask=None):
    """Column sums Pᵀ 1 of the plan of any attention, NumPy float64 (..., m); the plan is not formed.

    They are what its VJP gives to values of one column.
    """
    ones = array_namespace(q, k).ones_like
    out, vjp = attention.vjp(q, k, ones(k[..., :1]), query_mask=query_mask, key_mask=key_mask)
    return as_float64(vjp(ones(out))[2])[..., 0]


def column_distance(sums, n, *, query_mask=None, key_mask=None):
    """Mean distance of a plan's column sums (B, H, m) from n'/m', n queries: (B, H); 0 where no query is valid."""
    query_mask, key_mask = (None if mask is None else to_numpy(mask) for mask in (query_mask, key_mask))
    queries = np.sum(np.ones(n) if query_mask is None else query_mask, axis=-1, keepdims=True, dtype=np.float64)
    keys = token_count(sums, key_mask)
    distance = np.sum(keep(np.abs(sums - queries / keys), key_mask), axis=-1, keepdims=True) / keys
    return np.where(queries > 0, distance, 0.0)[..., 0]


def column_error(model, calls):
    """Mean distance of column sums from n'/m', over layers, heads and sequences, where each layer is given its call."""
    found = (column_errors(*pair) for pair in zip(model.attentions, calls, strict=True))
    return float(np.mean([np.mean(each) for each in found]))


def column_errors(attention, call):
    """The same of one layer, of each sequence and head: (B, H)."""
    q, k, _, query_mask, key_mask = call
    masks = {"query_mask": query_mask, "key_mask": key_mask}
    return column_distance(column_sums(attention, q, k, **masks), q.shape[-2], **masks)


def valid_tokens(x, mask):
    """Which tokens of x (B, H, n, d) count: NumPy booleans (B, H, n)."""
    return np.broadcast_to(True if mask is None else to_numpy(mask), x.shape[:-1])


def as_float64(x):
    """Copy an array of any module to NumPy, in float64."""
    return to_numpy(x).astype(np.float64)
