"""Calibration: the weights are a ridge regression of the closure-ready dual on the features.

    minimise over w    sum |f - Phiᵀ w|²    (paper)    + sum_a strength_a G_aa w_a²,    G = sum Phi Phiᵀ    (ours),
    where              f = f^(T-1)          (ours), and sums are over sequences, for each head

The query dual f^(T-1) of a teacher's last iteration but one is *closure-ready*: its two-sided transform is exactly the
duals of the teacher, of T iterations. So that is what ASAP should predict. Dual and features are centred in each
sequence (ours).

The error is quadratic in w: all that it takes of the data are the sums of ``Phi Phiᵀ``, ``Phi f`` and ``f f``. Batches
stream through them in bounded memory, and sums of parts add up to those of the whole. Then

    w = regression_statistics(q, k, families).ridge(strength)        (H, F): (G + diag(strength_a G_aa)) w = sum Phi f

`fit_amortizer` does so, and chooses the strength (calibration/penalty.py): larger where features have fewer tokens. The
paper's other objective, the divergence of the plans, is a regression in another metric (calibration/kl.py).

Shapes: features (..., H, F, n), target (..., H, n), weights (H, F).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from asap_ref.method.features import dual_features
from asap_ref.method.sinkhorn import sinkhorn
from asap_ref.method.transport import attention_scores
from asap_ref.support.arrays import to_numpy
from asap_ref.support.masks import centred, keep_tokens
from asap_ref.support.settings import check_count
from asap_ref.support.sums import Sums


@dataclass(frozen=True, eq=False, repr=False)
class SufficientStatistics(Sums):
    """All that ridge regression needs of the data: sums over tokens, per head, float64 on the host.

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

    @classmethod
    def of(cls, features, target, *, mask=None):
        """Sums over tokens; features (..., H, F, n), target (..., H, n) are zero at padding, the mask only counts."""
        # in float64: float32 sums over many tokens lose the features that are small
        phi, f = (np.asarray(to_numpy(x), dtype=np.float64) for x in (features, target))
        *leading, H, F, n = phi.shape
        tokens = math.prod(leading) * n
        valid = np.ones(f.shape, bool) if mask is None else np.broadcast_to(to_numpy(mask), f.shape)
        phi = np.moveaxis(phi, (-3, -2), (0, 1)).reshape(H, F, tokens)
        f = np.moveaxis(f, -2, 0).reshape(H, tokens)
        return cls(phi @ phi.mT, (phi @ f[..., None])[..., 0], np.sum(f * f, axis=-1), int(valid.sum()) // H)

    def ridge(self, strength):
        """Weights (H, F) that minimise ``|f - Phiᵀ w|² + sum_a strength_a (Phi Phiᵀ)_aa w_a²``.

        The penalty, one number or (F,), is relative to each feature's own size, so it does not depend on units.
        """
        size = np.diagonal(self.gram, axis1=-2, axis2=-1)  # (H, F)
        size = np.where(size > 0, size, 1.0)  # a feature that never varies gets weight 0
        scale = np.sqrt(size)
        correlation = self.gram / (scale[..., :, None] * scale[..., None, :])
        right = (self.cross / scale)[..., None]  # (H, F, 1)
        if np.max(strength) < 1e-12:  # features may depend on each other: the smallest of the best weights
            solution = np.linalg.pinv(correlation, rtol=1e-12, hermitian=True) @ right
        else:
            solution = np.linalg.solve(correlation + np.eye(size.shape[-1]) * strength, right)
        return solution[..., 0] / scale

    def r_squared(self, weights):
        """Share of the dual's variance within sequences that the weights explain, as the sums weigh tokens, (H,)."""
        explained = 2 * np.sum(weights * self.cross, -1) - np.einsum("hf,hfg,hg->h", weights, self.gram, weights)
        return np.where(self.square > 0, explained / np.where(self.square > 0, self.square, 1.0), 1.0)


def regression_statistics(q, k, families, *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None):
    """Sums of the regression: features against the closure-ready dual of a teacher of n_iter iterations.

    Examples
    --------
    >>> from asap_ref import Slices
    >>> q, k = np.random.default_rng(0).standard_normal((2, 10, 1, 5, 4))
    >>> statistics = regression_statistics(q, k, [Slices(np.eye(4))], n_iter=3)
    >>> statistics
    <SufficientStatistics: heads 1, features 4, tokens 50>
    >>> statistics.ridge(1e-3).shape
    (1, 4)
    """
    check_count(n_iter, "n_iter", "regression_statistics", least=1)  # T = 0 is softmax: nothing to predict
    masks = dict(query_mask=query_mask, key_mask=key_mask)
    features = dual_features(q, k, families, **masks)
    S = attention_scores(keep_tokens(q, query_mask), keep_tokens(k, key_mask))
    f = sinkhorn(S, n_iter=n_iter - 1, epsilon=epsilon, **masks).query
    return SufficientStatistics.of(features, centred(f, query_mask), mask=query_mask)
