"""Calibration of the weights: a least-squares problem in one of two metrics, and the sums that are all of it.

The target is f = f^(T-1), the closure-ready dual: its two-sided transform is the plan P of a teacher of T iterations.

    regression    |delta|²                      delta = Phiᵀ w - f, what the prediction is off                  (paper)
    kl            2 KL(P || P_hat), to the second order in delta, at which it is a squared norm as well
                  (the objective: paper; its solution in one step: derived)

To first order delta moves the key dual by dg = -Cᵀ delta, C the plan of f and its transform g, over n'/m': its columns
sum to one. The transform of g + dg moves the query dual by df_i = -epsilon log sum_j P_ij exp(dg_j / epsilon). Hence,
with c the column sums of P,

    epsilon KL = sum_ij P_ij (-df_i - dg_j) = sum_i (epsilon log sum_j P_ij exp(dg_j / epsilon)) - c·dg,
    2 KL  ->  sum_i Var_{P_i}(dg) / epsilon²  =  (dg·(c dg) - |P dg|²) / epsilon².

What the dual is off counts there by what it does to the plan, and not at all where the closing half steps undo it.
Either way the error is quadratic in w: of the data it takes the sums of ``Phi Phiᵀ``, ``Phi f`` and ``f f`` in that
metric. Batches stream through them in bounded memory, statistics of parts add up to those of the whole, and any choice
among the features can be fitted from the same sums.

Shapes: features (..., H, F, n), target (..., H, n), weights (H, F).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from asap_ref.method.features import dual_features
from asap_ref.method.sinkhorn import sinkhorn
from asap_ref.method.transport import Duals, attention_scores, transport_plan, two_sided_c_transform
from asap_ref.support.arrays import array_namespace, to_numpy, transpose
from asap_ref.support.masks import centred, column_mass, keep_tokens
from asap_ref.support.printing import in_short
from asap_ref.support.saved import SavedArrays
from asap_ref.support.trees import EqualByValue


@dataclass(frozen=True, eq=False)
class SufficientStatistics(EqualByValue, SavedArrays):
    """All that ridge regression needs of the data: sums over tokens, one a head, float64 on the host.

    Examples
    --------
    >>> features, target = np.ones((2, 1, 3, 5)), np.ones((2, 1, 5))
    >>> SufficientStatistics.of(features[0], target[0]) + SufficientStatistics.of(features[1], target[1])
    <SufficientStatistics: heads 1, features 3, tokens 10>
    """

    gram: np.ndarray  # (H, F, F)  sum of Phi Phiᵀ
    cross: np.ndarray  # (H, F)    sum of Phi f
    square: np.ndarray  # (H,)     sum of f f
    count: int  # tokens

    def __repr__(self):
        H, F = self.cross.shape
        return in_short(self, f"heads {H}", f"features {F}", f"tokens {self.count:g}")

    @classmethod
    def of(cls, features, target, *, mask=None):
        """Sums over features (..., H, F, n) and target (..., H, n), both zero where the mask (..., n) is False."""
        # (..., H, F, n) -> (H, F, ... n), in float64: float32 sums over many tokens lose the small slices
        phi, f = (np.asarray(to_numpy(x), dtype=np.float64) for x in (features, target))
        H, F, tokens = *phi.shape[-3:-1], math.prod(phi.shape[:-3]) * phi.shape[-1]  # perhaps none
        phi = np.moveaxis(phi, (-3, -2), (0, 1)).reshape(H, F, tokens)
        valid = np.ones(f.shape, bool) if mask is None else np.broadcast_to(to_numpy(mask), f.shape)
        count = int(valid.sum()) // H  # a head
        f = np.moveaxis(f, -2, 0).reshape(H, tokens)
        return cls(phi @ phi.mT, (phi @ f[..., None])[..., 0], np.sum(f * f, axis=-1), count)

    def __add__(self, other):
        if not isinstance(other, SufficientStatistics):
            return NotImplemented
        if self.gram.shape != other.gram.shape:
            raise ValueError(
                f"statistics of {self.gram.shape[:2]} and of {other.gram.shape[:2]} heads and features cannot be "
                "merged; they must come from the same heads, slices and feature families"
            )
        gram, cross, square = self.gram + other.gram, self.cross + other.cross, self.square + other.square
        return SufficientStatistics(gram, cross, square, self.count + other.count)

    def of_slices(self, picked, candidates):
        """Statistics of some of the slices, (H, L) indices into the first ``candidates`` features, and all others."""
        others = np.arange(candidates, self.gram.shape[-1])
        return self.of_features(np.hstack([picked, np.tile(others, (len(picked), 1))]))

    def of_features(self, picked):
        """Statistics of some of the features only, (H, F') indices: one choice a head."""
        heads = np.arange(len(picked))[:, None]
        gram = self.gram[heads[:, :, None], picked[:, :, None], picked[:, None, :]]
        return SufficientStatistics(gram, self.cross[heads, picked], self.square, self.count)

    def scaled(self, factor):
        """Statistics in which each token counts ``factor`` times."""
        return SufficientStatistics(*(factor * x for x in (self.gram, self.cross, self.square, self.count)))

    def of_heads(self, heads):
        """Statistics of some of the heads only, by index."""
        heads = list(heads)
        return SufficientStatistics(self.gram[heads], self.cross[heads], self.square[heads], self.count)

    def ridge(self, strength):
        """Weights (H, F) that minimise ``|f - Phiᵀ w|² + sum_a strength_a (Phi Phiᵀ)_aa w_a²``.

        The penalty, one number or (F,), is relative to each feature's own size, so it does not depend on units.
        """
        size = np.diagonal(self.gram, axis1=-2, axis2=-1)  # (H, F)
        size = np.where(size > 0, size, 1.0)  # a feature that never varies gets weight 0, by the penalty
        scale = np.sqrt(size)
        correlation = self.gram / (scale[..., :, None] * scale[..., None, :])
        right = (self.cross / scale)[..., None]  # (H, F, 1)
        if not np.any(strength):  # features may depend on each other: of all the best weights, the smallest
            solution = np.linalg.pinv(correlation, hermitian=True) @ right
        else:
            solution = np.linalg.solve(correlation + np.eye(size.shape[-1]) * strength, right)
        return solution[..., 0] / scale

    def r_squared(self, weights):
        """Share of the dual's variance within sequences that the weights explain, in the metric of the sums, (H,)."""
        explained = 2 * np.sum(weights * self.cross, -1) - np.einsum("hf,hfg,hg->h", weights, self.gram, weights)
        return np.where(self.square > 0, explained / np.where(self.square > 0, self.square, 1.0), 1.0)


def regression_statistics(q, k, families, *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None):
    """Sums of the regression: features against the closure-ready dual of a teacher of n_iter iterations.

    Examples
    --------
    >>> from asap_ref import Slices
    >>> q, k = np.random.default_rng(0).standard_normal((2, 10, 1, 5, 4))
    >>> regression_statistics(q, k, [Slices(np.eye(4))], n_iter=3)
    <SufficientStatistics: heads 1, features 4, tokens 50>
    """
    masks = dict(query_mask=query_mask, key_mask=key_mask)
    features = dual_features(q, k, families, **masks)
    S = attention_scores(keep_tokens(q, query_mask), keep_tokens(k, key_mask))
    f = sinkhorn(S, n_iter=n_iter - 1, epsilon=epsilon, **masks).query
    return SufficientStatistics.of(features, centred(f, query_mask), mask=query_mask)


def kl_statistics(q, k, families, *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None):
    """Sums in the metric of the divergence: see the top of the module. Tokens are queries, as in regression.

    Examples
    --------
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
    Y, Z = kl_factors(X, *plans_around(S, f, epsilon=epsilon, **masks))
    of_keys, of_queries = (SufficientStatistics.of(M[..., :-1, :], M[..., -1, :]) for M in (Y, Z))
    count = SufficientStatistics.of(X[..., :0, :], f, mask=query_mask).count
    difference = of_keys + of_queries.scaled(-1)
    return replace(difference.scaled(epsilon**-2), count=count)


def plans_around(S, f, *, epsilon, query_mask=None, key_mask=None):
    """C and P of the derivation, both (..., n, m)."""
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    duals = two_sided_c_transform(S, f, **settings)
    mass = column_mass(S, query_mask, key_mask)
    C = transport_plan(S, Duals(f, duals.key), **settings)
    return C / (mass if isinstance(mass, float) else mass[..., None]), transport_plan(S, duals, **settings)


def kl_factors(X, C, P):
    """Y (..., F, m) and Z (..., F, n) of X (..., F, n): the metric of the divergence is (Y Yᵀ - Z Zᵀ) / epsilon²."""
    xp = array_namespace(X, C, P)
    c = xp.sum(P, axis=-2, keepdims=True)  # (..., 1, m)
    Y = X @ C
    total = xp.sum(c, axis=-1, keepdims=True)
    # a constant makes no difference but in the digits that the difference of the two products costs
    Y = Y - xp.sum(Y * c, axis=-1, keepdims=True) / xp.where(total > 0, total, xp.ones_like(total))
    return Y * xp.sqrt(c), Y @ transpose(P)
