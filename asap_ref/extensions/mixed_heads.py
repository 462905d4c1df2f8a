"""Attention whose heads do not all have the same mechanism: each part attends for the heads it is given.

    out[..., h, :, :] = attention of the part that has h

A compiled model uses it where some heads of a layer stay with Sinkhorn because ASAP was not good enough there.

Shapes: q (..., H, n, d), k (..., H, m, d), v (..., H, m, p) -> out (..., H, n, p).
"""

from __future__ import annotations

import numpy as np

from asap_ref.support.arrays import array_namespace
from asap_ref.support.contracts import operator, vjp_of


@operator
def mixed_attention(q: "... H n d", k: "... H m d", v: "... H m p", parts, *, query_mask=None, key_mask=None):
    """Attend head by head with the mechanism that each head was given.

    The cost is that of the parts, and a copy of q, k and v. Ours (derived).

    Parameters
    ----------
    parts : sequence of (attention, heads)
        An `Attention` (or another callable with a ``vjp``) and the indices of the heads it attends for; every head
        is in one part, or it is a ValueError.

    Returns
    -------
    array (..., H, n, p)

    Examples
    --------
    >>> from asap_ref import Attention
    >>> q = np.random.default_rng(0).standard_normal((3, 4, 2))
    >>> parts = [(Attention("softmax"), [0, 2]), (Attention("sinkhorn", {"n_iter": 3}), [1])]
    >>> mixed_attention(q, q, q, parts).shape
    (3, 4, 2)
    """
    order = _check_parts(parts, q.shape[-3])
    outputs = []
    for attention, heads in parts:
        query, key = pick_mask(query_mask, heads), pick_mask(key_mask, heads)
        outputs.append(attention(*(pick_heads(x, heads) for x in (q, k, v)), query_mask=query, key_mask=key))
    return pick_heads(array_namespace(q).concat(outputs, axis=-3), order)


@vjp_of(mixed_attention)
def mixed_attention_vjp(q, k, v, parts, *, query_mask=None, key_mask=None):
    """Mixed attention and its VJP, ``vjp(d_out) -> (dq, dk, dv)``; arguments as `mixed_attention`.

    Examples
    --------
    >>> from asap_ref import Attention
    >>> q = np.random.default_rng(0).standard_normal((2, 4, 2))
    >>> out, vjp = mixed_attention_vjp(q, q, q, [(Attention("softmax"), [1]), (Attention("sinkhorn"), [0])])
    >>> [d.shape for d in vjp(out)]
    [(2, 4, 2), (2, 4, 2), (2, 4, 2)]
    """
    xp = array_namespace(q, k, v)
    order = _check_parts(parts, q.shape[-3])
    outputs, backward = [], []
    for attention, heads in parts:
        query, key = pick_mask(query_mask, heads), pick_mask(key_mask, heads)
        out, vjp = attention.vjp(*(pick_heads(x, heads) for x in (q, k, v)), query_mask=query, key_mask=key)
        outputs.append(out)
        backward.append((vjp, heads))

    def vjp(d_out):
        gradients = [
            part_vjp(pick_heads(d_out, heads)) for part_vjp, heads in backward
        ]  # (dq, dk, dv), part by part
        return tuple(pick_heads(xp.concat(list(parts), axis=-3), order) for parts in zip(*gradients, strict=True))

    return pick_heads(xp.concat(outputs, axis=-3), order), vjp


def _check_parts(parts, n_heads):
    """Where each head's output stands once those of the parts are put one after the other."""
    for part in parts if isinstance(parts, list | tuple) else [parts]:
        if not (isinstance(part, list | tuple) and len(part) == 2 and hasattr(part[0], "vjp")):
            what = repr(part) if isinstance(part, int | float | str | None) else type(part).__name__
            raise TypeError(f"mixed_attention: parts must be a list of (Attention, heads), got {what} in it")
        attention, heads = part
        counts = hasattr(heads, "__len__") and all(isinstance(h, int | np.integer) for h in heads)
        if not (counts and len(heads)):
            raise TypeError(
                f"mixed_attention: parts gives {attention.__class__.__name__} the heads {heads!r}, expected a list "
                "of at least one integer"
            )
    given = [int(h) for _, heads in parts for h in heads]
    if sorted(given) != list(range(n_heads)):
        raise ValueError(f"parts has heads {given}, expected each of 0 to {n_heads - 1} once")
    return np.argsort(given).tolist()


def pick_heads(x, heads):
    """Take some of the heads: (..., H, n, d) -> (..., H', n, d)."""
    xp = array_namespace(x)
    return xp.take(x, xp.asarray([int(h) for h in heads], device=x.device), axis=-3)


def pick_mask(mask, heads):
    """Take some of the heads of a mask that tells them apart; one for all heads stays as it is."""
    return (
        mask
        if mask is None or mask.ndim < 2 or mask.shape[-2] == 1
        else pick_heads(mask[..., None], heads)[..., 0]
    )
