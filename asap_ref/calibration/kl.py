"""The divergence of the plans as an objective: a regression in a metric of its own, its definition and its fast form.

To first order what a prediction is off, delta = Phiᵀ w - f, moves the key dual by dg = -Cᵀ delta, C the plan of f and
its transform g, over n'/m': its columns sum to one. The transform of g + dg moves the query dual by
df_i = -epsilon log sum_j P_ij exp(dg_j / epsilon), P the teacher's plan. Hence, with c the column sums of P,

    epsilon KL = sum_ij P_ij (-df_i - dg_j) = sum_i (epsilon log sum_j P_ij exp(dg_j / epsilon)) - c·dg,
    2 KL(P || P_hat)  ->  sum_i Var_{P_i}(dg) / epsilon²  =  (dg·(c dg) - |P dg|²) / epsilon²,

a squared norm of delta, as |delta|² is in method/regression.py (the objective: paper; its solution in one step:
derived). What the dual is off counts by what it does to the plan, and not at all where the closing half steps undo it.

Shapes: q (..., H, n, d), k (..., H, m, d), plans (..., n, m), X (..., F + 1, n): the features, and the dual.
"""

from __future__ import annotations

from dataclasses import replace

from asap_ref.fast.regression import fast_statistics, features_and_dual, product
from asap_ref.fast.scaling import scale, scaled_duals
from asap_ref.method.features import dual_features
from asap_ref.method.regression import SufficientStatistics
from asap_ref.method.sinkhorn import sinkhorn
from asap_ref.method.transport import Duals, attention_scores, transport_plan, two_sided_c_transform
from asap_ref.support.arrays import array_namespace, transpose
from asap_ref.support.masks import column_mass, keep_tokens


def kl_statistics(q, k, families, *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None):
    """Sums in the metric of the divergence: see the top of the module. Tokens are queries, as in regression.

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref import Slices
    >>> q, k = np.random.default_rng(0).standard_normal((2, 10, 1, 5, 4))
    >>> kl_statistics(q, k, [Slices(np.eye(4))], n_iter=3).ridge(1e-3).shape
    (1, 4)
    """
    masks = dict(query_mask=query_mask, key_mask=key_mask)
    features = dual_features(q, k, families, **masks)
    S = attention_scores(keep_tokens(q, query_mask), keep_tokens(k, key_mask))
    f = sinkhorn(S, n_iter=n_iter - 1, epsilon=epsilon, **masks).query
    X = array_namespace(q).concat([features, f[..., None, :]], axis=-2)  # (..., F + 1, n)
    Y, Z = _factors(X, *_plans_around(S, f, epsilon=epsilon, **masks))
    of_keys, of_queries = (SufficientStatistics.of(M[..., :-1, :], M[..., -1, :]) for M in (Y, Z))
    count = SufficientStatistics.of(X[..., :0, :], f, mask=query_mask).count
    difference = of_keys + of_queries.scaled(-1)
    return replace(difference.scaled(epsilon**-2), count=count)


def _plans_around(S, f, *, epsilon, query_mask=None, key_mask=None):
    """C and P of the derivation, both (..., n, m)."""
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    duals = two_sided_c_transform(S, f, **settings)
    mass = column_mass(S, query_mask, key_mask)
    C = transport_plan(S, Duals(f, duals.key), **settings)
    return C / (mass if isinstance(mass, float) else mass[..., None]), transport_plan(S, duals, **settings)


def _factors(X, C, P):
    """Y (..., F, m) and Z (..., F, n) of X (..., F, n): the metric of the divergence is (Y Yᵀ - Z Zᵀ) / epsilon²."""
    xp = array_namespace(X, C, P)
    c = xp.sum(P, axis=-2, keepdims=True)  # (..., 1, m)
    Y = X @ C
    total = xp.sum(c, axis=-1, keepdims=True)
    # a constant makes no difference but in the digits that the difference of the two products costs
    Y = Y - xp.sum(Y * c, axis=-1, keepdims=True) / xp.where(total > 0, total, xp.ones_like(total))
    return Y * xp.sqrt(c), Y @ transpose(P)


def fast_kl_statistics(q, k, families, *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None):
    """Sums of `kl_statistics`, up to rounding: as those of regression are made fast (fast/regression.py)."""
    given = (q, k, families, n_iter, epsilon, query_mask, key_mask)
    return fast_statistics(kl_statistics, _products, *given)


def _products(q, k, families, query_mask, key_mask, *, n_iter, epsilon):
    q, k = keep_tokens(q, query_mask), keep_tokens(k, key_mask)
    masks = {"query_mask": query_mask, "key_mask": key_mask}
    S = attention_scores(q, k)
    last = scale(S, n_iter=n_iter, epsilon=epsilon, **masks)[-1]
    if len(last.steps) > 1:  # a and b make columns right, a_next and b then rows
        (_, a, b), (_, a_next, _) = last.steps[-2:]
        f = last.reference.query + epsilon * array_namespace(S).log(a)
        K = last.K * b[..., None, :]
        mass = column_mass(S, **masks)
        C = K * (a / mass)[..., None]
        P = K * a_next[..., None]
    else:  # the very last half step was one in the log domain
        f = scaled_duals(scale(S, n_iter=n_iter - 1, epsilon=epsilon, **masks), epsilon).query
        C, P = _plans_around(S, f, epsilon=epsilon, **masks)
    Y, Z = _factors(features_and_dual(q, k, families, f, **masks), C, P)
    return (product(Y) - product(Z)) / epsilon**2
