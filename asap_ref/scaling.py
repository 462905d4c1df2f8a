"""Sinkhorn made fast: stabilised scaling, where an iteration is two matrix-vector products.

With a kernel ``K = exp((S + f_ref + g_ref) / epsilon)`` formed once, the duals of an iteration are

    f = f_ref + epsilon log a,    g = g_ref + epsilon log b,
    b = r / (Kᵀ a),   r = n'/m'           onto keys: columns right
    a = 1 / (K b)                         onto queries: rows right

and the plan is a K b, rows scaled by a and columns by b: no exponential in the loop. The first reference is the
softmax start, K = softmax(S / epsilon) and a = b = 1. Where a scaling leaves the range that is safe for the dtype
(or a row or column of K has vanished), that half step is taken in the log domain, its duals become the reference,
and K is formed anew: a new *segment*. Source: absorption, Peyré & Cuturi section 4.4 and Schmitzer 2019; the
fall-back to the log domain is ours.

The gradient is that of sinkhorn.py, with a and b at hand:  dS = -sum over segments of K * (A Bᵀ).

`sinkhorn.sinkhorn` stays the definition; this is tested against it. Shapes as in transport.py. Everything is array
API code, on any module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asap_ref.arrays import array_namespace, transpose
from asap_ref.transport import Duals, column_mass, entropic_c_transform, transport_plan, valid_pairs

# Scalings may reach BIG before they are absorbed. An entry of K that underflows would at most have grown by BIG²:
# 1e-38 * 1e16 in float32 and 1e-308 * 1e200 in float64 are nothing beside rows that sum to one.
BIG = {"float32": 1e8, "float64": 1e100}


@dataclass
class Segment:
    """One kernel and the half steps that were taken with it: [(side, a, b), ...]."""

    K: Any
    reference: Duals
    steps: list


def scale(scores, *, n_iter, epsilon, query_mask=None, key_mask=None):
    """Run Sinkhorn in scaling form and return its segments; the last step of the last one is the result."""
    xp = array_namespace(scores)
    settings = {"epsilon": epsilon, "query_mask": query_mask, "key_mask": key_mask}
    r = column_mass(scores, query_mask, key_mask)
    row_padding = column_padding = 0.0
    valid = valid_pairs(query_mask, key_mask)
    if valid is not None:  # there K is zero: with one in place of its sums, and of r, the scalings stay one
        row_padding, column_padding = (xp.astype(~xp.any(valid, axis=axis), scores.dtype) for axis in (-1, -2))
        r = xp.where(column_padding > 0, xp.ones_like(column_padding), r)
    big = BIG[str(scores.dtype).rpartition(".")[-1]]
    segments = []

    def begin_segment(side, duals):
        K = transport_plan(scores, duals, **settings)
        a, b = (xp.ones_like(dual) for dual in duals)
        segments.append(Segment(K, duals, [(side, a, b)]))
        return a, b

    def safe(x):
        return bool(xp.all((x < big) & (x > 1 / big)))

    g = xp.zeros_like(scores[..., 0, :])
    a, b = begin_segment("query", Duals(entropic_c_transform(scores, g, onto="query", **settings), g))
    for _ in range(n_iter):
        b_new = r / (_times(transpose(segments[-1].K), a) + column_padding)
        if safe(b_new):
            b = b_new
            segments[-1].steps.append(("key", a, b))
        else:
            f, _ = _duals(segments[-1], a, b, epsilon)
            g = entropic_c_transform(scores, f, onto="key", **settings)
            a, b = begin_segment("key", Duals(f, g))

        a_new = 1 / (_times(segments[-1].K, b) + row_padding)
        if safe(a_new):
            a = a_new
            segments[-1].steps.append(("query", a, b))
        else:
            _, g = _duals(segments[-1], a, b, epsilon)
            f = entropic_c_transform(scores, g, onto="query", **settings)
            a, b = begin_segment("query", Duals(f, g))
    return segments


def scaled_duals(segments, epsilon):
    """Query and key dual after the last half step."""
    _, a, b = segments[-1].steps[-1]
    return _duals(segments[-1], a, b, epsilon)


def scaled_plan(segments):
    """Plan after the last half step, (..., n, m)."""
    _, a, b = segments[-1].steps[-1]
    return a[..., :, None] * segments[-1].K * b[..., None, :]


def scaling_vjp(segments, df, dg, mass):
    """Gradient of the scores (..., n, m), times epsilon, for a cotangent of the duals; mass is n'/m'."""
    xp = array_namespace(df, dg)
    d_scores = 0.0
    for segment in reversed(segments):
        K, A, B = segment.K, [], []
        for side, a, b in reversed(segment.steps):
            if side == "query":
                A.append(a * df)
                B.append(b)
                dg, df = dg - b * _times(transpose(K), A[-1]), xp.zeros_like(df)
            else:
                A.append(a)
                B.append(b * dg / mass)
                df, dg = df - a * _times(K, B[-1]), xp.zeros_like(dg)
        d_scores = d_scores - K * (xp.stack(A, axis=-1) @ xp.stack(B, axis=-2))
    return d_scores


def _duals(segment, a, b, epsilon):
    xp = array_namespace(a, b)
    f, g = segment.reference
    return Duals(f + epsilon * xp.log(a), g + epsilon * xp.log(b))


def _times(matrix, vector):
    """(..., n, m), (..., m) -> (..., n)."""
    return (matrix @ vector[..., None])[..., 0]
