"""Entropic transport between queries and keys: c-transforms, plans, and their gradients.

    maximise over P >= 0    sum_ij P_ij S_ij - epsilon sum_ij P_ij (log P_ij - 1),
    where every row of P sums to 1 (it is attention), and every column to n'/m'

Scores S are a similarity: the transport cost is c = -S. epsilon is the temperature, n' and m' are the numbers of valid
queries and keys. The multipliers of the rows are the *query dual* f, those of the columns the *key dual* g, and the
plan they stand for is

    P_ij = exp((f_i + g_j + S_ij) / epsilon),

for which (f + s, g - s) stand as well, whatever the number s. Masked rows and columns of a plan, and masked entries of
duals, are exactly zero. Everything is in the log domain, so scores may have any size.

Shapes: ``scores`` S (..., n, m), f (..., n), g (..., m).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from asap_ref.support.arrays import array_namespace, logsumexp, softmax, transpose
from asap_ref.support.contracts import operator, vjp_of
from asap_ref.support.masks import column_mass, keep, valid_pairs
from asap_ref.support.printing import values_if_short


class Duals(NamedTuple):
    """The two dual vectors of an entropic transport problem: query (..., n) and key (..., m).

    Examples
    --------
    >>> import numpy as np
    >>> Duals(np.zeros((64, 100)), np.zeros((64, 80)))  # short ones are printed as they are
    Duals(query=(64, 100) of float64, key=(64, 80) of float64)
    """

    query: Any
    key: Any

    __repr__ = values_if_short


@operator
def attention_scores(q: "... n d", k: "... m d"):
    """Scaled dot products ``S = q kᵀ / sqrt(d)``, (..., n, m).

    O(n m d). Source: Vaswani et al. 2017, equation 1.

    Returns
    -------
    array (..., n, m)

    Examples
    --------
    >>> import numpy as np
    >>> attention_scores(np.ones((2, 4)), np.ones((1, 4)))
    array([[2.],
           [2.]])
    """
    return (q / math.sqrt(q.shape[-1])) @ transpose(k)


@vjp_of(attention_scores)
def attention_scores_vjp(q, k):
    """Scores and their VJP, ``vjp(dS) -> (dq, dk) = (dS k, dSᵀ q) / sqrt(d)``.

    Examples
    --------
    >>> import numpy as np
    >>> S, vjp = attention_scores_vjp(np.ones((1, 4)), np.ones((1, 4)))
    >>> vjp(np.ones((1, 1)))[0]
    array([[0.5, 0.5, 0.5, 0.5]])
    """
    scale = 1 / math.sqrt(q.shape[-1])

    def vjp(dS):
        return scale * (dS @ k), scale * (transpose(dS) @ q)

    return attention_scores(q, k), vjp


@operator
def entropic_c_transform(
    scores: "... n m", dual: "...", *, onto="key", epsilon=1.0, query_mask=None, key_mask=None
):
    r"""Transform one dual into the best other one: half a Sinkhorn iteration.

    Onto keys, ``g_j = epsilon log(n'/m') - epsilon LSE_i((f_i + S_ij) / epsilon)``: the columns of the plan
    get their mass. Onto queries, ``f_i = -epsilon LSE_j((g_j + S_ij) / epsilon)``: the rows get theirs. LSE is the
    logarithm of a sum of exponentials.

    It is the soft minimum over the other side of cost less dual, hence its name. O(n m) time and memory. Source: Peyré
    & Cuturi, "Computational Optimal Transport", section 4.4; oracle, "Sinkhorn"; masks and n != m are ours.

    Parameters
    ----------
    dual : array (..., n) or (..., m)
        The dual of the other side: f onto keys, g onto queries.
    onto : {"key", "query"}
        The side whose dual is computed.

    Returns
    -------
    array (..., m) or (..., n)
        The dual of that side.

    Examples
    --------
    >>> import numpy as np
    >>> entropic_c_transform(np.zeros((2, 4)), np.zeros(2), onto="key").round(3)  # log(2/4) - log(2)
    array([-1.386, -1.386, -1.386, -1.386])
    """
    _check_dual(scores, dual, onto)
    valid = valid_pairs(query_mask, key_mask)
    if onto == "key":
        log_mass = _log(column_mass(scores, query_mask, key_mask))  # of n'/m': a number, or (..., 1)
        g = epsilon * (log_mass + _negative_lse((dual[..., :, None] + scores) / epsilon, -2, valid))
        return keep(g, key_mask)
    return epsilon * _negative_lse((dual[..., None, :] + scores) / epsilon, -1, valid)


@vjp_of(entropic_c_transform)
def entropic_c_transform_vjp(scores, dual, *, onto="key", epsilon=1.0, query_mask=None, key_mask=None):
    """Entropic c-transform and its VJP, ``vjp(d_out) -> (d_scores, d_dual)`` (ours).

    The derivative of ``epsilon LSE(x / epsilon)`` is a softmax W along the axis that is summed (epsilon cancels):
    ``d_scores_ij = -W_ij d_out_j`` onto keys, ``-W_ij d_out_i`` onto queries. d_dual sums it over the index of d_out.

    Examples
    --------
    >>> import numpy as np
    >>> g, vjp = entropic_c_transform_vjp(np.zeros((2, 2)), np.zeros(2), onto="key")
    >>> vjp(np.asarray([1.0, 0.0]))[1]
    array([-0.5, -0.5])
    """
    xp = array_namespace(scores, dual)
    out = entropic_c_transform(scores, dual, onto=onto, epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)

    def vjp(d_out):
        known = dual[..., :, None] if onto == "key" else dual[..., None, :]
        summed, other = (-2, -1) if onto == "key" else (-1, -2)
        W = softmax((known + scores) / epsilon, axis=summed, valid=valid_pairs(query_mask, key_mask))
        d_scores = -W * xp.expand_dims(d_out, axis=summed)
        return d_scores, xp.sum(d_scores, axis=other)

    return out, vjp


def half_step_plan(scores, dual, *, onto, epsilon=1.0, query_mask=None, key_mask=None):
    """The plan right after a half step: of a dual and its c-transform onto side ``onto``, whose sums are exact.

    Onto queries, rows are ``softmax_j((g_j + S_ij) / epsilon)``; onto keys, columns
    ``n'/m' softmax_i((f_i + S_ij) / epsilon)``. A softmax is normalised in any precision, where the exponential of
    duals that are rounded already is off by a factor of exp(their rounding / epsilon).
    """
    known, axis = (dual[..., None, :], -1) if onto == "query" else (dual[..., :, None], -2)
    plan = softmax((known + scores) / epsilon, axis=axis, valid=valid_pairs(query_mask, key_mask))
    if onto == "query":
        return plan
    mass = column_mass(scores, query_mask, key_mask)
    return plan * (mass if isinstance(mass, float) else mass[..., None])


@operator
def transport_plan(scores: "... n m", duals: ("... n", "... m"), *, epsilon=1.0, query_mask=None, key_mask=None):
    """The plan that a pair of duals stands for, ``P_ij = exp((f_i + g_j + S_ij) / epsilon)``.

    With f* the c-transform of g onto queries, it is computed as ``softmax_j((g_j + S_ij) / epsilon)``, which is
    ``exp((f*_i + g_j + S_ij) / epsilon)``, times ``exp((f_i - f*_i) / epsilon)``. Where f is f*, as after `sinkhorn`,
    this factor is 1, and rows are exact at any scale and epsilon. Duals of other scores give a wrong plan, which is not
    noticed unless it overflows (FloatingPointError). O(n m), two passes. Source: Peyré & Cuturi, Proposition 4.3.

    Parameters
    ----------
    duals : Duals
        Computed with the same scores, epsilon and masks.

    Returns
    -------
    array (..., n, m)

    Examples
    --------
    >>> import numpy as np
    >>> transport_plan(np.zeros((2, 2)), Duals(np.log([0.5, 0.5]), np.zeros(2)))
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    f, g = duals
    settings = dict(onto="query", epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    excess = keep(f - entropic_c_transform(scores, g, **settings), query_mask)  # f - f*
    return half_step_plan(scores, g, **settings) * array_namespace(f).exp(excess / epsilon)[..., :, None]


@vjp_of(transport_plan)
def transport_plan_vjp(scores, duals, *, epsilon=1.0, query_mask=None, key_mask=None):
    """Plan and its VJP, ``vjp(dP) -> (d_scores, Duals(df, dg))`` (ours).

    An exponential is its own derivative: d_scores is ``P * dP``, divided by epsilon, df and dg its row and column sums.

    Examples
    --------
    >>> import numpy as np
    >>> P, vjp = transport_plan_vjp(np.zeros((1, 2)), Duals(np.zeros(1), np.zeros(2)))
    >>> vjp(np.ones((1, 2)))[1]
    Duals(query=array([2.]), key=array([1., 1.]))
    """
    xp = array_namespace(scores, *duals)
    P = transport_plan(scores, duals, epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)

    def vjp(dP):
        d_scores = P * dP / epsilon
        return d_scores, Duals(xp.sum(d_scores, axis=-1), xp.sum(d_scores, axis=-2))

    return P, vjp


@operator
def two_sided_c_transform(scores: "... n m", query_dual: "... n", *, epsilon=1.0, query_mask=None, key_mask=None):
    """Rebuild both duals from a (predicted) query dual: one Sinkhorn iteration from a good start.

    O(n m). The closing step of ASAP (paper). Fed the query dual of iteration T - 1 it returns exactly the
    duals of a teacher of T iterations: that dual is called *closure-ready*.

    Parameters
    ----------
    query_dual
        A prediction f_hat of f, up to a constant.

    Returns
    -------
    Duals
        g = c-transform of f_hat onto keys; f = c-transform of g onto queries, which replaces f_hat: rows are exact.

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref import sinkhorn
    >>> S = np.asarray([[3.0, 0.0], [1.0, 2.0]])
    >>> np.allclose(two_sided_c_transform(S, sinkhorn(S, n_iter=4).query), sinkhorn(S, n_iter=5))
    True
    """
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    g = entropic_c_transform(scores, query_dual, onto="key", **settings)
    f = entropic_c_transform(scores, g, onto="query", **settings)
    return Duals(f, g)


@vjp_of(two_sided_c_transform)
def two_sided_c_transform_vjp(scores, query_dual, *, epsilon=1.0, query_mask=None, key_mask=None):
    """Two-sided c-transform and its VJP, ``vjp(Duals(df, dg)) -> (d_scores, d_query_dual)`` (ours).

    The two half steps backwards: f depends on g, so its gradient first joins that of g.

    Examples
    --------
    >>> import numpy as np
    >>> duals, vjp = two_sided_c_transform_vjp(np.zeros((2, 2)), np.zeros(2))
    >>> vjp(Duals(np.asarray([1.0, 0.0]), np.zeros(2)))[1]
    array([0.5, 0.5])
    """
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    g, g_vjp = entropic_c_transform_vjp(scores, query_dual, onto="key", **settings)
    f, f_vjp = entropic_c_transform_vjp(scores, g, onto="query", **settings)

    def vjp(cotangent):
        df, dg = cotangent
        d_scores_f, dg_from_f = f_vjp(df)
        d_scores_g, d_query_dual = g_vjp(dg + dg_from_f)
        return d_scores_f + d_scores_g, d_query_dual

    return Duals(f, g), vjp


def _log(mass):
    return math.log(mass) if isinstance(mass, float) else array_namespace(mass).log(mass)


def _negative_lse(exponents, axis, valid):
    """-LSE over the valid pairs, and 0 where there are none: the dual of a query without a key."""
    if valid is None:
        return -logsumexp(exponents, axis=axis)
    xp = array_namespace(exponents)
    lse = logsumexp(xp.where(valid, exponents, -xp.inf), axis=axis)
    return xp.where(xp.any(valid, axis=axis), -lse, xp.zeros_like(lse))


def _check_dual(scores, dual, onto):
    *leading, n, m = scores.shape
    side, length = ("query", n) if onto == "key" else ("key", m)
    expected = (*leading, length)
    if tuple(dual.shape) != expected:
        raise ValueError(
            f"entropic_c_transform: onto={onto!r} takes a {side} dual of shape {expected} for scores of shape "
            f"{tuple(scores.shape)}, got {tuple(dual.shape)}"
        )
