"""Sinkhorn made fast: stabilised scaling, where an iteration is two matrix-vector products.

With a kernel ``K = exp((S + f_ref + g_ref) / epsilon)`` formed once, the duals of an iteration are

    f = f_ref + epsilon log a,    g = g_ref + epsilon log b,
    b = r / (Kᵀ a),   r = n'/m'           onto keys: columns right
    a = 1 / (K b)                         onto queries: rows right

and the plan P is a K b, rows scaled by a and columns by b: no exponential in the loop, and the plan is never
formed. The first reference is the softmax start, K = softmax(S / epsilon) and a = b = 1. Where a scaling leaves the
range that is safe for the dtype (or a row or column of K has vanished), that half step is taken in the log domain,
its duals become the reference, and K is formed anew: a new *segment*. Source: absorption, Peyré & Cuturi section 4.4
and Schmitzer 2019; the fall-back to the log domain is ours.

The gradient is that of sinkhorn.py, with a and b at hand. A half step adds a product of rank one times K, and what
comes through the plan, P * (d_out vᵀ), is one of the rank of the values. So all is a single product,

    epsilon dS = K * ([a d_out, -A] [b v, B]ᵀ),

to which earlier segments add their own -K * (A Bᵀ). The gradient of the query dual, row sums of P * (d_out vᵀ), is
that of d_out * out; that of the key dual, its column sums, is that of v * dv: narrow arrays, both. Derived.
Where a loss looks at the duals themselves, df and dg are given and nothing comes through the plan.

`sinkhorn.sinkhorn` stays the definition; this is tested against it. Shapes as in transport.py. Everything is array
API code, on any module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asap_ref.method.transport import Duals, entropic_c_transform, half_step_plan
from asap_ref.support.arrays import array_namespace, matvec, one_pass, transpose, vecmat
from asap_ref.support.masks import column_mass, keep, valid_pairs

# Scalings may reach BIG before they are absorbed. An entry of K that underflows would at most have grown by BIG²:
# 1e-38 * 1e16 in float32 and 1e-308 * 1e200 in float64 are nothing beside rows that sum to one.
BIG = {"float32": 1e8, "float64": 1e100}


# Half steps between two looks at the scalings: those between are taken on trust, and thrown away where it was
# misplaced. A look makes the host wait for a device, and on NumPy costs as much as a small step.
LOOK_EVERY = 16


@dataclass
class Segment:
    """One kernel and the half steps that were taken with it: [(side, a, b), ...]."""

    K: Any
    reference: Duals
    steps: list


def scale(scores, *, n_iter, epsilon, query_mask=None, key_mask=None, init=None):
    """Run Sinkhorn in scaling form and return its segments; the last step of the last one is the result.

    It starts from softmax, or from the query dual ``init``, then with at least one iteration.
    """
    xp = array_namespace(scores)
    settings = {"epsilon": epsilon, "query_mask": query_mask, "key_mask": key_mask}
    r = column_mass(scores, query_mask, key_mask)
    row_padding = column_padding = None
    valid = valid_pairs(query_mask, key_mask)
    if valid is not None:  # there K is zero: with one in place of its sums, and of r, the scalings stay one
        row_padding, column_padding = (xp.astype(~xp.any(valid, axis=axis), scores.dtype) for axis in (-1, -2))
        r = xp.where(column_padding > 0, xp.ones_like(column_padding), r)

    def segment_from(side, duals):
        K = half_step_plan(scores, duals.key if side == "query" else duals.query, onto=side, **settings)
        return Segment(K, duals, [(side, *(xp.ones_like(dual) for dual in duals))])

    def half_steps(segment, sides):
        """Yield (side, a, b) for each side in turn, on trust."""
        _, a, b = segment.steps[-1]
        for side in sides:
            if side == "key":
                sums = vecmat(a, segment.K)
                b = r / (sums if column_padding is None else sums + column_padding)
            else:
                sums = matvec(segment.K, b)
                a = 1 / (sums if row_padding is None else sums + row_padding)
            yield side, a, b

    def in_log_domain(side, f, g):
        """Take the half step from the duals f and g that scaling could not take, and begin a segment there."""
        if side == "key":
            g = entropic_c_transform(scores, f, onto="key", **settings)
        else:
            f = entropic_c_transform(scores, g, onto="query", **settings)
        return segment_from(side, Duals(f, g))

    if init is None:
        segments = [softmax_start(scores, epsilon, valid)]
        sides = ["key", "query"] * n_iter
    else:  # from a dual that may be anywhere, the first half step is taken in the log domain
        segments = [in_log_domain("key", init, None)]
        sides = ["query", *["key", "query"] * (n_iter - 1)]
    while sides:
        steps = list(half_steps(segments[-1], sides[:LOOK_EVERY]))
        good = _count_safe(steps)
        segments[-1].steps += steps[:good]
        if good < len(steps):
            segments.append(in_log_domain(sides[good], *scaled_duals(segments, epsilon)))
            good += 1
        sides = sides[good:]
    return segments


def softmax_start(scores, epsilon, valid):
    """The first segment: K = softmax(S / epsilon), which stands for f = -epsilon LSE(S / epsilon) and g = 0."""
    xp = array_namespace(scores)
    X = scores if epsilon == 1.0 else scores / epsilon
    X = X if valid is None else xp.where(valid, X, -xp.inf)
    some = None if valid is None else xp.any(valid, axis=-1, keepdims=True)  # else it is a row of padding
    top = xp.max(X, axis=-1, keepdims=True)
    top = top if valid is None else xp.where(some, top, 0.0)
    E = _exp_of_difference(X, top)
    total = xp.sum(E, axis=-1, keepdims=True)
    total = total if valid is None else xp.where(some, total, 1.0)
    f, g = -epsilon * (top + xp.log(total))[..., 0], xp.zeros_like(scores[..., 0, :])
    return Segment(E / total, Duals(f, g), [("query", xp.ones_like(f), xp.ones_like(g))])


@one_pass
def _exp_of_difference(xp, x, y):
    return xp.exp(x - y)


def _count_safe(steps):
    """Count the steps before the first whose scaling left the range that is safe for its dtype."""
    made = [b if side == "key" else a for side, a, b in steps]
    xp = array_namespace(*made)
    big = BIG[str(made[0].dtype).rpartition(".")[-1]]

    def safe(x):
        return bool(xp.all((x < big) & (x > 1 / big)))

    if safe(made[0] if len(made) == 1 else xp.concat(made, axis=-1)):  # one look for all
        return len(made)
    return next(i for i, x in enumerate(made) if not safe(x))


def scaled_duals(segments, epsilon):
    """Query and key dual after the last half step."""
    _, a, b = segments[-1].steps[-1]
    xp = array_namespace(a, b)
    f, g = segments[-1].reference
    return Duals(f + epsilon * xp.log(a), g + epsilon * xp.log(b))


def scaled_sinkhorn_vjp(scores, *, n_iter, epsilon=1.0, query_mask=None, key_mask=None):
    """`sinkhorn_vjp` from the softmax start in scaling form: (Duals, ``vjp(Duals(df, dg)) -> (d_scores,)``)."""
    masks = {"query_mask": query_mask, "key_mask": key_mask}
    segments, mass = scale(scores, n_iter=n_iter, epsilon=epsilon, **masks), column_mass(scores, **masks)

    def vjp(cotangent):
        return through_iterations(segments, *cotangent, mass)[:1]

    return Duals(*map(keep, scaled_duals(segments, epsilon), masks.values())), vjp


def scaled_attention(segments, v):
    """P v: (..., m, p) -> (..., n, p)."""
    K, (_, a, b) = segments[-1].K, segments[-1].steps[-1]
    return a[..., :, None] * (K @ (b[..., :, None] * v))


def scaled_attention_vjp(segments, v, out, d_out, mass):
    """Gradient of out = P v, as (epsilon dS, dv, epsilon d_init): (..., n, m), (..., m, p), (..., n); mass is n'/m'."""
    xp = array_namespace(v, d_out)
    K, (_, a, b) = segments[-1].K, segments[-1].steps[-1]
    left, right = a[..., :, None] * d_out, b[..., :, None] * v
    dv = b[..., :, None] * (transpose(K) @ left)
    df, dg = xp.sum(d_out * out, axis=-1), xp.sum(v * dv, axis=-1)
    d_scores, d_init = through_iterations(segments, df, dg, mass, (transpose(left), transpose(right)))
    return d_scores, dv, d_init


def through_iterations(segments, df, dg, mass, products=None):
    """Pull gradients df and dg of the last duals back to scores (..., n, m) and start (..., n), all times any factor.

    The softmax start depends on the scores alone: of its df nothing is left.
    Products, (..., p, n) and (..., p, m), are of what reaches dS past the duals: K * (leftᵀ right) of the last kernel.
    """
    xp = array_namespace(df, dg)
    d_scores = None
    for segment in reversed(segments):
        K, A, B = segment.K, [], []
        for side, a, b in reversed(segment.steps):
            if side == "query":
                A.append(a * df)
                B.append(b)
                dg, df = dg - b * vecmat(A[-1], K), 0.0
            else:
                A.append(a)
                B.append(b * dg / mass)
                df, dg = df - a * matvec(K, B[-1]), 0.0
        A, B = -xp.stack(A, axis=-2), xp.stack(B, axis=-2)  # (..., half steps, n), (..., half steps, m)
        if d_scores is None:
            if products is not None:
                A, B = (xp.concat(parts, axis=-2) for parts in zip(products, (A, B), strict=True))
            d_scores = K * (transpose(A) @ B)
        else:
            d_scores = d_scores + K * (transpose(A) @ B)
    return d_scores, df
