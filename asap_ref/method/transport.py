"""Entropic transport between queries and keys: c-transforms, Sinkhorn, plans, and their gradients.

Shapes: ``scores`` S is (..., n, m), a similarity (the transport cost is -S); the *query dual* f is
(..., n), the *key dual* g is (..., m). The plan they stand for is

    P_ij = exp((f_i + g_j + S_ij) / epsilon),

and (f + t, g - t) stands for the same one. Every valid row of a doubly-stochastic plan sums to 1 (it is
attention) and every valid column to n'/m', with n' and m' the numbers of valid queries and keys. Masked
rows and columns of a plan, and masked entries of duals, are exactly zero.

Everything here works in the log domain, so scores may have any size. It is the definition; the fast forms
are tested against it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from asap_ref.support.arrays import array_namespace, logsumexp, softmax, transpose
from asap_ref.support.contracts import check_choice, operator


class Duals(NamedTuple):
    """The two dual vectors of an entropic transport problem: query (..., n) and key (..., m)."""

    query: Any
    key: Any


# ---------------------------------------------------------------------------------------------- masks


def valid_pairs(query_mask, key_mask):
    """(..., n), (..., m) -> (..., n, m): where query and key are both valid; None if nothing is masked."""
    if query_mask is None or key_mask is None:
        return (
            None
            if query_mask is key_mask
            else (key_mask[..., None, :] if query_mask is None else query_mask[..., :, None])
        )
    return query_mask[..., :, None] & key_mask[..., None, :]


def column_mass(scores, query_mask=None, key_mask=None):
    """n'/m', what each valid column of a plan sums to: a float, or (..., 1) where masks differ."""
    xp = array_namespace(scores)
    n, m = scores.shape[-2:]
    if query_mask is None and key_mask is None:
        return n / m
    like = xp.asarray(0.0, dtype=scores.dtype, device=scores.device)
    one = like[None] + 1
    queries = n * one if query_mask is None else xp.sum(xp.astype(query_mask, like.dtype), axis=-1, keepdims=True)
    keys = m * one if key_mask is None else xp.sum(xp.astype(key_mask, like.dtype), axis=-1, keepdims=True)
    return xp.where((queries > 0) & (keys > 0), queries / xp.where(keys > 0, keys, one), one)


def _log(mass):
    return math.log(mass) if isinstance(mass, float) else array_namespace(mass).log(mass)


def _negative_lse(exponents, axis, valid):
    """-LSE over the valid pairs, and 0 where there are none, so that the duals of padding are 0."""
    if valid is None:
        return -logsumexp(exponents, axis=axis)
    xp = array_namespace(exponents)
    lse = logsumexp(xp.where(valid, exponents, -xp.inf), axis=axis)
    return xp.where(xp.any(valid, axis=axis), -lse, xp.zeros_like(lse))


def _keep(x, mask):
    """Zero at masked tokens."""
    xp = array_namespace(x)
    return x if mask is None else xp.where(mask, x, xp.zeros_like(x))


# ----------------------------------------------------------------------------------------------- scores


@operator(q="n d", k="m d")
def attention_scores(q, k):
    """Scaled dot products ``S = q kᵀ / sqrt(d)``, (..., n, d), (..., m, d) -> (..., n, m).

    Raises TypeError or ValueError on mixed modules or dtypes, wrong shapes, or non-finite input. O(n m d).
    Source: Vaswani et al. 2017, equation 1.

    Examples
    --------
    >>> import numpy as np
    >>> attention_scores(np.ones((2, 4)), np.ones((1, 4)))
    array([[2.],
           [2.]])
    """
    return (q / math.sqrt(q.shape[-1])) @ transpose(k)


@operator(q="n d", k="m d")
def attention_scores_vjp(q, k):
    """Scores and their VJP, ``vjp(dS) -> (dq, dk)``; arguments, errors and cost as `attention_scores`.

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


# ------------------------------------------------------------------------------ the entropic c-transform


@operator(scores="n m", dual=None, query_mask="n", key_mask="m")
def entropic_c_transform(scores, dual, *, onto="key", epsilon=1.0, query_mask=None, key_mask=None):
    r"""Transform one dual into the best other one: half a Sinkhorn iteration.

    Onto keys, ``g_j = epsilon log(n'/m') - epsilon LSE_i((f_i + S_ij) / epsilon)``: the columns of the plan
    get their mass. Onto queries, ``f_i = -epsilon LSE_j((g_j + S_ij) / epsilon)``: the rows get theirs.

    Parameters
    ----------
    scores : array (..., n, m)
        Similarity S, the negative of the transport cost.
    dual : array (..., n) if onto="key", (..., m) if onto="query"
        The dual that is known.
    onto : {"key", "query"}
        The side whose dual is computed.
    epsilon : float
        Regularisation, in the units of the scores; positive.
    query_mask, key_mask : boolean array (..., n) and (..., m), optional
        True at valid tokens.

    Returns
    -------
    array (..., m) if onto="key", (..., n) if onto="query"
        The other dual, zero at masked tokens.

    Raises
    ------
    TypeError, ValueError
        On mixed modules or dtypes, wrong shapes, non-finite input, or epsilon <= 0.

    Notes
    -----
    O(nm) time and memory. Source: Peyré & Cuturi, "Computational Optimal Transport", section 4.4 (soft
    minimum); asap_ref/oracle/README.md, "Sinkhorn". The masked and rectangular marginals are derived, not the paper's.

    Examples
    --------
    >>> import numpy as np
    >>> scores = np.zeros((2, 4))
    >>> entropic_c_transform(scores, np.zeros(2), onto="key")  # log(2/4) - log(2)
    array([-1.38629436, -1.38629436, -1.38629436, -1.38629436])
    """
    _check_dual(scores, dual, onto)
    valid = valid_pairs(query_mask, key_mask)
    if onto == "key":
        log_mass = _log(column_mass(scores, query_mask, key_mask))
        g = epsilon * (log_mass + _negative_lse((dual[..., :, None] + scores) / epsilon, -2, valid))
        return _keep(g, key_mask)
    f = epsilon * _negative_lse((dual[..., None, :] + scores) / epsilon, -1, valid)
    return _keep(f, query_mask)


@operator(scores="n m", dual=None, query_mask="n", key_mask="m")
def entropic_c_transform_vjp(scores, dual, *, onto="key", epsilon=1.0, query_mask=None, key_mask=None):
    """Entropic c-transform and its VJP, ``vjp(d_out) -> (d_scores, d_dual)``.

    The derivative of a log-sum-exp is a softmax W (over queries if onto="key", over keys if onto="query"):
    ``d_scores = -W * d_out`` and ``d_dual = -W d_out``, W multiplied along the axis that was summed.
    Same arguments, errors and cost as `entropic_c_transform`. Derived (asap_ref/oracle/README.md, "Sinkhorn").

    Examples
    --------
    >>> import numpy as np
    >>> g, vjp = entropic_c_transform_vjp(np.zeros((2, 2)), np.zeros(2), onto="key")
    >>> d_scores, d_dual = vjp(np.asarray([1.0, 0.0]))
    >>> d_dual
    array([-0.5, -0.5])
    """
    xp = array_namespace(scores, dual)
    out = entropic_c_transform(scores, dual, onto=onto, epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    valid = valid_pairs(query_mask, key_mask)

    def vjp(d_out):
        known = dual[..., :, None] if onto == "key" else dual[..., None, :]
        summed, kept = (-2, -1) if onto == "key" else (-1, -2)
        exponents = (known + scores) / epsilon
        if valid is not None:
            exponents = xp.where(valid, exponents, -xp.inf)
        d_scores = -softmax(exponents, axis=summed) * xp.expand_dims(d_out, axis=summed)
        return d_scores, xp.sum(d_scores, axis=kept)

    return out, vjp


def _check_dual(scores, dual, onto):
    check_choice(onto, "onto", "entropic_c_transform", ("key", "query"))
    *leading, n, m = scores.shape
    expected = (*leading, n if onto == "key" else m)
    if tuple(dual.shape) != expected:
        side = "query" if onto == "key" else "key"
        raise ValueError(
            f"entropic_c_transform: onto={onto!r} takes a {side} dual of shape {expected} for scores of shape "
            f"{tuple(scores.shape)}, got {tuple(dual.shape)}"
        )


# --------------------------------------------------------------------------------------------- the plan


@operator(scores="n m", duals=("n", "m"), query_mask="n", key_mask="m")
def transport_plan(scores, duals, *, epsilon=1.0, query_mask=None, key_mask=None):
    """The plan that a pair of duals stands for, ``P_ij = exp((f_i + g_j + S_ij) / epsilon)``.

    Parameters
    ----------
    scores : array (..., n, m)
    duals : Duals
        Query dual (..., n) and key dual (..., m).
    epsilon, query_mask, key_mask
        As in `entropic_c_transform`, and the same as the duals were computed with.

    Returns
    -------
    array (..., n, m)
        Zero in masked rows and columns.

    Raises
    ------
    TypeError, ValueError
        On mixed modules or dtypes, wrong shapes, non-finite input, or epsilon <= 0.
    FloatingPointError
        If the duals do not belong to the scores and the plan overflows.

    Notes
    -----
    O(nm). Source: Peyré & Cuturi, Proposition 4.3; asap_ref/oracle/README.md, "Shapes and marginals".

    Examples
    --------
    >>> import numpy as np
    >>> scores = np.asarray([[3.0, 0.0], [0.0, 3.0]])
    >>> from asap_ref.method.sinkhorn import sinkhorn
    >>> P = transport_plan(scores, sinkhorn(scores))
    >>> P.sum(axis=0), P.sum(axis=1)
    (array([1., 1.]), array([1., 1.]))
    """
    xp = array_namespace(scores, *duals)
    f, g = duals
    # g + S first, as in the c-transform that made f: its rounding then cancels, and rows are exact in float32 too
    exponents = (f[..., :, None] + (g[..., None, :] + scores)) / epsilon
    valid = valid_pairs(query_mask, key_mask)
    return xp.exp(exponents if valid is None else xp.where(valid, exponents, -xp.inf))


@operator(scores="n m", duals=("n", "m"), query_mask="n", key_mask="m")
def transport_plan_vjp(scores, duals, *, epsilon=1.0, query_mask=None, key_mask=None):
    """Plan and its VJP, ``vjp(dP) -> (d_scores, Duals(df, dg))``.

    With ``M = P * dP``: ``d_scores = M / epsilon``, df and dg are its row and column sums.
    Same arguments, errors and cost as `transport_plan`.

    Examples
    --------
    >>> import numpy as np
    >>> P, vjp = transport_plan_vjp(np.zeros((1, 2)), Duals(np.zeros(1), np.zeros(2)))
    >>> d_scores, d_duals = vjp(np.ones((1, 2)))
    >>> d_duals.query
    array([2.])
    """
    xp = array_namespace(scores, *duals)
    P = transport_plan(scores, duals, epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)

    def vjp(dP):
        d_scores = P * dP / epsilon
        return d_scores, Duals(xp.sum(d_scores, axis=-1), xp.sum(d_scores, axis=-2))

    return P, vjp


# ------------------------------------------------------------------------ the two-sided entropic c-transform


@operator(scores="n m", query_dual="n", query_mask="n", key_mask="m")
def two_sided_c_transform(scores, query_dual, *, epsilon=1.0, query_mask=None, key_mask=None):
    """Rebuild both duals from a (predicted) query dual: one Sinkhorn iteration from a good start.

    Parameters
    ----------
    scores : array (..., n, m)
    query_dual : array (..., n)
        A prediction of f, up to a constant.
    epsilon, query_mask, key_mask
        As in `entropic_c_transform`.

    Returns
    -------
    Duals
        g = c-transform of the prediction onto keys, then f = c-transform of g onto queries: rows are exact.

    Raises
    ------
    TypeError, ValueError
        On mixed modules or dtypes, wrong shapes, non-finite input, or epsilon <= 0.

    Notes
    -----
    O(nm). The closing step of ASAP (paper). Fed the query dual of iteration T - 1 it returns exactly the
    duals of a teacher of T iterations: that dual is called *closure-ready*.

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref.method.sinkhorn import sinkhorn
    >>> scores = np.asarray([[3.0, 0.0], [1.0, 2.0]])
    >>> start = sinkhorn(scores, n_iter=4).query
    >>> np.allclose(two_sided_c_transform(scores, start).key, sinkhorn(scores, n_iter=5).key)
    True
    """
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    g = entropic_c_transform(scores, query_dual, onto="key", **settings)
    f = entropic_c_transform(scores, g, onto="query", **settings)
    return Duals(f, g)


@operator(scores="n m", query_dual="n", query_mask="n", key_mask="m")
def two_sided_c_transform_vjp(scores, query_dual, *, epsilon=1.0, query_mask=None, key_mask=None):
    """Two-sided c-transform and its VJP, ``vjp(Duals(df, dg)) -> (d_scores, d_query_dual)``.

    The two half steps backwards: f depends on g, so its gradient first joins that of g.
    Same arguments, errors and cost as `two_sided_c_transform`. Derived.

    Examples
    --------
    >>> import numpy as np
    >>> duals, vjp = two_sided_c_transform_vjp(np.zeros((2, 2)), np.zeros(2))
    >>> d_scores, d_query_dual = vjp(Duals(np.asarray([1.0, 0.0]), np.zeros(2)))
    >>> d_query_dual
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


@operator(plan="n m", query_mask="n", key_mask="m")
def marginal_error(plan, *, query_mask=None, key_mask=None):
    """Largest deviation of a plan's row sums from 1 and of its column sums from n'/m'.

    Parameters
    ----------
    plan : array (..., n, m)
    query_mask, key_mask : boolean arrays (..., n) and (..., m), optional

    Returns
    -------
    (array (...), array (...))
        Row error and column error, one per leading index. After `sinkhorn` the row error is rounding and
        the column error says how far it is from convergence.

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref.method.sinkhorn import sinkhorn
    >>> scores = np.asarray([[4.0, 0.0], [3.0, 0.0]])
    >>> rows, columns = marginal_error(transport_plan(scores, sinkhorn(scores, n_iter=0)))
    >>> print(f"{float(rows):.2f} {float(columns):.2f}")
    0.00 0.93
    """
    xp = array_namespace(plan)
    mass = column_mass(plan, query_mask, key_mask)
    pairs = valid_pairs(query_mask, key_mask)
    rows, columns = xp.abs(xp.sum(plan, axis=-1) - 1), xp.abs(xp.sum(plan, axis=-2) - mass)
    if pairs is not None:  # a token that has none to meet on the other side counts as masked
        rows, columns = _keep(rows, xp.any(pairs, axis=-1)), _keep(columns, xp.any(pairs, axis=-2))
    return xp.max(rows, axis=-1), xp.max(columns, axis=-1)
