"""What a mask means: True is a token, False is padding, which must not be seen in any result or gradient.

Masks are boolean, (..., n) for queries and (..., m) for keys, and broadcast along leading axes. None masks nothing.
What padding holds (NaN, say) does not matter: it is set to zero before anything is computed from it.
"""

from __future__ import annotations

from asap_ref.support.arrays import array_namespace


def keep(x, mask):
    """Keep x (..., n) where the mask is True, zero at padding."""
    xp = array_namespace(x)
    return x if mask is None else xp.where(mask, x, xp.zeros_like(x))


def keep_tokens(x, mask):
    """Keep the rows of x (..., n, d) where the mask (..., n) is True, zero at padding."""
    return x if mask is None else keep(x, mask[..., None])


def without_padding(q, k, v, query_mask, key_mask):
    """Zero masked tokens: their plan entries are 0, but 0 times what padding holds (NaN, say) need not be."""
    return keep_tokens(q, query_mask), keep_tokens(k, key_mask), keep_tokens(v, key_mask)


def valid_pairs(query_mask, key_mask):
    """(..., n), (..., m) -> (..., n, m): where query and key are both valid; None if nothing is masked."""
    if query_mask is None:
        return None if key_mask is None else key_mask[..., None, :]
    queries = query_mask[..., :, None]
    return queries if key_mask is None else queries & key_mask[..., None, :]


def queries_with_a_key(query_mask, key_mask):
    """(..., n), (..., m) -> (..., n or 1): valid queries of sequences that have a key; None if nothing is masked."""
    valid = valid_pairs(query_mask, key_mask)
    return None if valid is None else array_namespace(valid).any(valid, axis=-1)


def column_mass(scores, query_mask=None, key_mask=None):
    """n'/m', what each valid column of a plan sums to: a float, or (..., 1) where there are masks."""
    xp = array_namespace(scores)
    n, m = scores.shape[-2:]
    if query_mask is None and key_mask is None:
        return n / m
    like = xp.asarray(0.0, dtype=scores.dtype, device=scores.device)
    one = like[None] + 1
    queries = n * one if query_mask is None else xp.sum(xp.astype(query_mask, like.dtype), axis=-1, keepdims=True)
    keys = m * one if key_mask is None else xp.sum(xp.astype(key_mask, like.dtype), axis=-1, keepdims=True)
    return xp.where((queries > 0) & (keys > 0), queries / xp.where(keys > 0, keys, one), one)


def token_count(x, mask):
    """Count the tokens of x (..., n): n, or (..., 1) in its dtype and at least 1, to divide by."""
    xp = array_namespace(x)
    if mask is None:
        return x.shape[-1]
    count = xp.sum(xp.astype(mask, x.dtype), axis=-1, keepdims=True)
    return xp.where(count > 0, count, xp.ones_like(count))


def centred(x, mask):
    """Take from x (..., n) its mean over tokens; zero at padding. It is its own VJP."""
    xp = array_namespace(x)
    if mask is None:
        return x - xp.mean(x, axis=-1, keepdims=True)
    x = keep(x, mask)
    return keep(x - xp.sum(x, axis=-1, keepdims=True) / token_count(x, mask), mask)


def of_features(mask):
    """One mask for all features: (..., n) -> (..., 1, n)."""
    return None if mask is None else mask[..., None, :]
