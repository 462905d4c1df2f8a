"""Two attentions on the same queries, keys and values: how far apart their outputs are, and the column sums of each.

Shapes: q (B, H, n, d), k (B, H, m, d), v (B, H, m, p), plan (B, H, n, m).
"""

from __future__ import annotations

import numpy as np

from asap_ref.model.recording import record
from asap_ref.support.arrays import array_namespace, to_numpy


def fidelity(teacher, attentions, batch):
    """Compare attentions with a Sinkhorn teacher's, layer by layer, on the teacher's own q, k, v: the short form.

    Parameters
    ----------
    teacher : Transformer
        With Sinkhorn attention.
    attentions : sequence of Attention
        One for each layer.
    batch : inputs

    Returns
    -------
    list of dict
        For each layer, a list with one number a head of ``output_error`` and ``column_error``.

    Examples
    --------
    >>> from asap_ref.model.mechanism import Attention
    >>> from asap_ref.model.transformer import Architecture, Transformer
    >>> teacher = Transformer.create(Architecture(n_layers=1), Attention("sinkhorn", {"n_iter": 5}))
    >>> images = np.random.default_rng(0).standard_normal((32, 8, 8))
    >>> fidelity(teacher, teacher.attentions, images)[0]["output_error"][:3]
    [0.0, 0.0, 0.0]
    """
    if len(attentions) != len(teacher.attentions):
        raise ValueError(f"fidelity: {len(attentions)} attentions for {len(teacher.attentions)} layers")
    report = []
    for layer, (q, k, v, query_mask, key_mask) in enumerate(record(teacher, batch)):
        masks = {"query_mask": query_mask, "key_mask": key_mask}
        error = output_error(teacher.attentions[layer], attentions[layer], [(q, k, v, query_mask, key_mask)])
        columns = column_distance(plan_of(attentions[layer], q, k, **masks), **masks)
        report.append({"layer": layer, "output_error": error.tolist(), "column_error": columns.mean(0).tolist()})
    return report


def output_error(expected, found, calls):
    """Relative error of an attention's output against another's over (q, k, v, query_mask, key_mask): (H,)."""
    difference = size = 0.0
    for q, k, v, query_mask, key_mask in calls:
        out, other = (as_float64(a(q, k, v, query_mask=query_mask, key_mask=key_mask)) for a in (expected, found))
        axes = (0, 2, 3)  # all but the head
        difference, size = difference + np.sum((other - out) ** 2, axes), size + np.sum(out**2, axes)
    return np.sqrt(difference / size)


def plan_of(attention, q, k, *, query_mask=None, key_mask=None):
    """Plan of any attention, NumPy float64 (..., n, m): what it gives when the values are the identity."""
    xp = array_namespace(q, k)
    identity = xp.broadcast_to(xp.eye(k.shape[-2], dtype=q.dtype, device=q.device), (*k.shape[:-1], k.shape[-2]))
    return as_float64(attention(q, k, identity, query_mask=query_mask, key_mask=key_mask))


def column_distance(plan, *, query_mask=None, key_mask=None):
    """Mean distance of a plan's column sums from n'/m': NumPy (B, H, n, m) -> (B, H)."""
    valid_queries = valid_tokens(plan[..., :1], query_mask)
    valid_keys = valid_tokens(plan[..., 0, :, None], key_mask)
    n_valid, m_valid = valid_queries.sum(-1, keepdims=True), valid_keys.sum(-1, keepdims=True)
    distance = np.abs(plan.sum(-2) - n_valid / np.maximum(m_valid, 1)) * (valid_keys & (n_valid > 0))
    return distance.sum(-1) / np.maximum(m_valid[..., 0], 1)


def valid_tokens(x, mask):
    """Which tokens of x (B, H, n, d) count: NumPy booleans (B, H, n)."""
    return np.broadcast_to(True if mask is None else to_numpy(mask), x.shape[:-1])


def as_float64(x):
    """Copy an array of any module to NumPy, in float64."""
    return to_numpy(x).astype(np.float64)
