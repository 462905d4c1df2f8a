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

from dataclasses import dataclass, field
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
    steps: list = field(default_factory=list)


def scale(scores, *, n_iter, epsilon, query_mask=None, key_mask=None, init=None):
    """Run Sinkhorn in scaling form and return its segments; the last step of the last one is the result."""
    xp = array_namespace(scores, init)
    settings = {"epsilon": epsilon, "query_mask": query_mask, "key_mask": key_mask}
    r = column_mass(scores, query_mask, key_mask)
    # at padding K is zero: adding one to its sums keeps its scalings at one
    valid = valid_pairs(query_mask, key_mask)
    row_padding = column_padding = 0.0
    if valid is not None:
        row_padding, column_padding = (xp.astype(~xp.any(valid, axis=axis), scores.dtype) for axis in (-1, -2))
        r = r + 0 * column_padding
        r = xp.where(column_padding > 0, xp.ones_like(r), r)
    big = BIG[str(scores.dtype).rpartition(".")[-1]]

    def safe(x):
        return bool(xp.all((x < big) & (x > 1 / big)))

    f = entropic_c_transform(scores, xp.zeros_like(scores[..., 0, :]), onto="query", **settings)
    reference = Duals(f if init is None else init, xp.zeros_like(scores[..., 0, :]))
    if (
        init is not None and n_iter
    ):  # K of an arbitrary start may overflow: take its first half step in the log domain
        reference = Duals(init, entropic_c_transform(scores, init, onto="key", **settings))
    segments = [Segment(transport_plan(scores, reference, **settings), reference)]
    ones = Duals(*(xp.ones_like(x) for x in reference))
    a, b = ones
    segments[-1].steps.append(("query" if init is None else "start" if not n_iter else "key", a, b))

    def half_step(side, a, b):
        segment = segments[-1]
        if side == "key":
            b_new = r / (_times(transpose(segment.K), a) + column_padding)
            if safe(b_new):
                return a, b_new
        else:
            a_new = 1 / (_times(segment.K, b) + row_padding)
            if safe(a_new):
                return a_new, b
        f, g = _duals(segment, a, b, epsilon)
        if side == "key":
            g = entropic_c_transform(scores, f, onto="key", **settings)
        else:
            f = entropic_c_transform(scores, g, onto="query", **settings)
        segments.append(Segment(transport_plan(scores, Duals(f, g), **settings), Duals(f, g)))
        return ones

    for t in range(n_iter):
        for side in ("key", "query"):
            if t == 0 and side == "key" and init is not None:
                continue  # taken above
            a, b = half_step(side, a, b)
            segments[-1].steps.append((side, a, b))
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
    """Gradient of the scores, (..., n, m), for a cotangent of the duals, and that of the start."""
    xp = array_namespace(df, dg)
    d_scores = 0.0
    for segment in reversed(segments):
        K, A, B = segment.K, [], []
        for side, a, b in reversed(segment.steps):
            if side == "query":
                A.append(a * df)
                B.append(b)
                dg, df = dg - b * _times(transpose(K), A[-1]), xp.zeros_like(df)
            elif side == "key":
                A.append(a)
                B.append(b * dg / mass)
                df, dg = df - a * _times(K, B[-1]), xp.zeros_like(dg)
        if A:
            d_scores = d_scores - K * (xp.stack(A, axis=-1) @ xp.stack(B, axis=-2))
    return d_scores, df


def _duals(segment, a, b, epsilon):
    xp = array_namespace(a, b)
    f, g = segment.reference
    return Duals(f + epsilon * xp.log(a), g + epsilon * xp.log(b))


def _times(matrix, vector):
    """(..., n, m), (..., m) -> (..., n)."""
    return (matrix @ vector[..., None])[..., 0]
