"""Sinkhorn in the log domain, and its gradient by hand in O(n m + (n + m) T) memory.

Start from softmax, then make columns and rows right in turn:

    f = -epsilon LSE_j(S_ij / epsilon)                                  half step 0, onto queries: softmax
    T times:  g = c-transform of f onto keys                            columns right
              f = c-transform of g onto queries                         rows right

The last half step is on f, so rows are exact and the column error measures convergence. T iterations are
what the Sinkformer code (Sander et al. 2022) counts as 2T + 1 half steps. Shapes are those of transport.py.

Backward, through every half step (ours). After half step h the plan of the duals at hand,
``P_h = exp((f + g + S) / epsilon)``, is normalised on the side just updated, and P_h is all its derivative needs:

    onto queries:  dS -= df[:, None] * P_h;               dg -= P_hᵀ df;             df = 0
    onto keys:     dS -= (P_h / mass) * dg[None, :];      df -= (P_h / mass) dg;     dg = 0

The last zeros: that dual was overwritten, and its old value counts only through the other, made from it. Every P_h is
one matrix K = exp((f_ref + g_ref + S) / epsilon), rows scaled by a = exp((f - f_ref) / epsilon) and columns by
b = exp((g - g_ref) / epsilon). So each half step is a matrix-vector product with K, and what it subtracts from dS is
(column vector)(row vector) * K: all 2T + 1 of them together are one matrix product,

    dS = -K * (A Bᵀ),    columns of A (n, 2T + 1): a * df, or a;    of B (m, 2T + 1): b, or b * dg / mass.

Where duals wander so far that a or b could overflow, K is formed anew from the duals at hand: a new *segment*. Where
they do not, there is but one, and K is the last plan: read so, `_segments` may be skipped.
"""

from __future__ import annotations

from asap_ref.method.transport import Duals, entropic_c_transform, half_step_plan
from asap_ref.support.arrays import array_namespace, matvec, transpose, vecmat
from asap_ref.support.contracts import operator, vjp_of
from asap_ref.support.masks import column_mass, keep, queries_with_a_key


@operator
def sinkhorn(scores: "... n m", *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None, init: "... n" = None):
    """Sinkhorn's algorithm in the log domain: the duals of a doubly-stochastic plan.

    O(T n m) time, O(n m + (n + m) T) memory. Source: Cuturi 2013; log domain: Peyré & Cuturi, section 4.4; the softmax
    start: Sander et al. 2022 (Sinkformer).

    Parameters
    ----------
    n_iter : int
        T, the number of iterations; 0 is softmax, or with ``init`` that dual and zeros, whose rows are not exact.
    init : array (..., n)
        A query dual to start from instead of that of softmax.

    Returns
    -------
    Duals
        f (..., n) and g (..., m). `marginal_error` of their `transport_plan` says how far they converged.

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref import transport_plan
    >>> scores = np.asarray([[4.0, 1.0], [3.0, 2.0]])
    >>> transport_plan(scores, sinkhorn(scores, n_iter=50)).round(3)
    array([[0.731, 0.269],
           [0.269, 0.731]])
    """
    return _half_steps(scores, n_iter, epsilon, query_mask, key_mask, init)[-1][1]


@vjp_of(sinkhorn)
def sinkhorn_vjp(scores, *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None, init=None):
    """Sinkhorn and its VJP, unrolled: ``vjp(Duals(df, dg)) -> (d_scores,)``, or ``(d_scores, d_init)``.

    As at the top of the file (ours). O(T n m) time, O(n m + (n + m) T) memory instead of O(T n m) for every P_h.

    Examples
    --------
    >>> import numpy as np
    >>> duals, vjp = sinkhorn_vjp(np.zeros((2, 2)), n_iter=3)
    >>> (d_scores,) = vjp(Duals(np.ones(2), np.ones(2)))  # adding s to all scores takes s from f + g
    >>> round(float(d_scores.sum()), 12)
    -2.0
    """
    xp = array_namespace(scores, init)
    masks = dict(query_mask=query_mask, key_mask=key_mask)
    steps = _half_steps(scores, n_iter, epsilon, query_mask, key_mask, init)
    mass = column_mass(scores, **masks)

    def vjp(cotangent):
        df, dg = cotangent
        d_scores = xp.zeros_like(scores)
        differentiable = steps if init is None else steps[1:]  # what was given was not computed from the scores
        for segment in _segments(differentiable, epsilon):
            updated, reference = segment[0]
            # exp((f_ref + g_ref + S) / epsilon): the reference is fresh from a half step
            known = reference.key if updated == "query" else reference.query
            K = half_step_plan(scores, known, onto=updated, epsilon=epsilon, **masks)  # (..., n, m)
            A, B = [], []
            for onto, (f, g) in segment:
                a = xp.exp((f - reference.query) / epsilon)  # (..., n)
                b = xp.exp((g - reference.key) / epsilon)  # (..., m)
                if onto == "query":
                    column, row = a * df, b
                    dg, df = dg - b * vecmat(column, K), 0.0
                else:
                    column, row = a, b * dg / mass  # mass = n'/m': a number, or (..., 1)
                    df, dg = df - a * matvec(K, row), 0.0
                A.append(column)
                B.append(row)
            d_scores = d_scores - K * (xp.stack(A, axis=-1) @ transpose(xp.stack(B, axis=-1)))
        return (d_scores,) if init is None else (d_scores, keep(df, queries_with_a_key(query_mask, key_mask)))

    return steps[-1][1], vjp


def _half_steps(scores, n_iter, epsilon, query_mask, key_mask, init):
    """[(side, duals after that half step), ...]: (..., n) and (..., m) each, 2T + 1 of them."""
    xp = array_namespace(scores, init)
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    g = xp.zeros_like(scores[..., 0, :])
    if init is None:
        f = entropic_c_transform(scores, g, onto="query", **settings)
    else:
        f = keep(init, queries_with_a_key(query_mask, key_mask))
    steps = [("query", Duals(f, g))]
    for _ in range(n_iter):
        g = entropic_c_transform(scores, f, onto="key", **settings)
        steps.append(("key", Duals(f, g)))
        f = entropic_c_transform(scores, g, onto="query", **settings)
        steps.append(("query", Duals(f, g)))
    return steps


def _segments(steps, epsilon):
    """The half steps from last to first, cut where the duals have left the range one kernel can serve.

    Within a segment each dual stays within ``safe * epsilon`` of the reference. An entry that underflows in
    K is then negligible in every P_h of the segment: tiny(dtype) * exp(2 safe) is below 1e-29.
    """
    segment, reference = [], None
    for side, duals in reversed(steps):
        xp = array_namespace(duals.query)
        safe = 10.0 if duals.query.dtype == xp.float32 else 100.0
        if reference is not None and _exceed(duals, reference, safe * epsilon):
            yield segment
            segment = []
        if not segment:
            reference = duals
        segment.append((side, duals))
    if segment:
        yield segment


def _exceed(duals, reference, limit):
    xp = array_namespace(*duals)
    far = [xp.any(xp.abs(now - then) > limit) for now, then in zip(duals, reference, strict=True)]
    return bool(far[0] | far[1])  # joined first: one wait for the device
