"""Calibration: the weights of the amortizer, from queries and keys and a Sinkhorn teacher.

Ridge regression to the *closure-ready* dual f^(T-1) of a Sinkhorn teacher of T iterations, whose two-sided
c-transform is exactly the teacher's plan. It needs only sums over tokens, ``Phi Phiᵀ``, ``Phi f`` and ``f f``, so
batches stream, and statistics of parts add up to those of the whole. Features and target are centred over the
tokens of each sequence: the constant of a dual is free.

Shapes: q (..., H, n, d), k (..., H, m, d), features (..., H, F, n), target (..., H, n), weights (H, F).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asap_ref.amortizer import Amortizer
from asap_ref.arrays import array_namespace, to_numpy
from asap_ref.contracts import check_choice, check_count, check_epsilon
from asap_ref.features import dual_features
from asap_ref.masks import centred, keep_tokens
from asap_ref.sinkhorn import sinkhorn
from asap_ref.slices import slice_directions
from asap_ref.transport import attention_scores


@dataclass(frozen=True)
class SufficientStatistics:
    """All that ridge regression needs of the data: sums over tokens, one a head, float64 on the host.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> features, target = rng.standard_normal((2, 1, 3, 5)), rng.standard_normal((2, 1, 5))
    >>> whole = SufficientStatistics.of(features, target)
    >>> first, second = (SufficientStatistics.of(features[i], target[i]) for i in (0, 1))
    >>> np.allclose(whole.gram, (first + second).gram), whole.count == (first + second).count
    (True, True)
    """

    gram: np.ndarray  # (H, F, F)  sum of Phi Phiᵀ
    cross: np.ndarray  # (H, F)    sum of Phi f
    square: np.ndarray  # (H,)     sum of f f
    count: int  # tokens

    @classmethod
    def of(cls, features, target, *, mask=None):
        """Sums over features (..., H, F, n) and target (..., H, n), both zero where the mask (..., n) is False."""
        # (..., H, F, n) -> (H, F, ... n), in float64: float32 sums over many tokens lose the small slices
        phi, f = (np.asarray(to_numpy(x), dtype=np.float64) for x in (features, target))
        phi = np.moveaxis(phi, (-3, -2), (0, 1)).reshape(*phi.shape[-3:-1], -1)
        valid = np.ones(f.shape, bool) if mask is None else np.broadcast_to(to_numpy(mask), f.shape)
        count = int(valid.sum()) // f.shape[-2]  # a head
        f = np.moveaxis(f, -2, 0).reshape(f.shape[-2], -1)
        return cls(phi @ phi.mT, (phi @ f[..., None])[..., 0], np.sum(f * f, axis=-1), count)

    def __add__(self, other):
        return SufficientStatistics(
            self.gram + other.gram,
            self.cross + other.cross,
            self.square + other.square,
            self.count + other.count,
        )

    def ridge(self, strength):
        """Weights (H, F) that minimise |f - Phiᵀ w|² + strength * sum_a (Phi Phiᵀ)_aa w_a².

        The penalty is relative to each feature's own size, so it does not depend on units.
        """
        size = np.diagonal(self.gram, axis1=-2, axis2=-1)  # (H, F)
        size = np.where(size > 0, size, 1.0)  # a feature that never varies gets weight 0
        scale = np.sqrt(size)
        correlation = self.gram / (scale[..., :, None] * scale[..., None, :])
        correlation = correlation + strength * np.eye(size.shape[-1])
        return np.linalg.solve(correlation, (self.cross / scale)[..., None])[..., 0] / scale

    def r_squared(self, weights):
        """Share of the dual's variance (over tokens, within sequences) that the weights explain, (H,)."""
        explained = 2 * np.sum(weights * self.cross, -1) - np.einsum("hf,hfg,hg->h", weights, self.gram, weights)
        return np.where(self.square > 0, explained / np.where(self.square > 0, self.square, 1.0), 1.0)


def fit_amortizer(
    batches,
    *,
    n_slices=32,
    n_iter=20,
    epsilon=1.0,
    objective="regression",
    cumulants=True,
    kind="orthogonal",
    ridge=1e-4,
    seed=0,
):
    """Calibrate an amortizer on queries and keys, against a Sinkhorn teacher of n_iter iterations.

    Parameters
    ----------
    batches : iterable of (q, k) or (q, k, query_mask, key_mask)
        q (batch, H, n, d) and k (batch, H, m, d), of any array module; masks as in attention, or None. Sizes may
        differ from batch to batch. Read once, one batch in memory. Only valid tokens count.
    n_slices : int
        L, the number of slice directions.
    n_iter : int
        T, the teacher's iterations; at least 1. The target is its closure-ready dual f^(T-1).
    epsilon : float
        Regularisation of the teacher.
    objective : {"regression"}
        Ridge regression to the closure-ready dual (paper).
    cumulants : bool
        Whether to use the second-cumulant features (derived).
    kind, seed
        As in `slice_directions`.
    ridge : float
        Penalty, relative to each feature's second moment (ours).

    Returns
    -------
    Amortizer

    Raises
    ------
    TypeError, ValueError
        On wrong settings, empty batches, or batches that disagree in heads or dimension.

    Notes
    -----
    One Sinkhorn run a batch, O(T n m), dominates; the statistics are O(H F²) and the solve O(H F³).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> q, k = rng.standard_normal((2, 64, 2, 6, 4))  # 64 sequences, 2 heads, 6 tokens, dimension 4
    >>> amortizer = fit_amortizer([(q, k)], n_slices=8, n_iter=10)
    >>> amortizer.weights.shape
    (2, 11)
    """
    check_count(n_iter, "n_iter", "fit_amortizer", least=1)
    epsilon = check_epsilon(epsilon, "fit_amortizer")
    check_choice(objective, "objective", "fit_amortizer", ("regression",))
    if not ridge >= 0:
        raise ValueError(f"fit_amortizer: ridge must be at least 0, got {ridge}")
    statistics, directions = None, None
    for batch in batches:
        q, k, query_mask, key_mask = (*batch, None, None) if len(batch) == 2 else batch
        masks = dict(query_mask=query_mask, key_mask=key_mask)
        xp = array_namespace(q, k)
        if directions is None:
            directions = slice_directions(q.shape[-1], n_slices, kind=kind, seed=seed)
        theta = xp.asarray(directions, dtype=q.dtype, device=q.device)
        features = dual_features(q, k, theta, cumulants=cumulants, **masks)
        S = attention_scores(keep_tokens(q, query_mask), keep_tokens(k, key_mask))
        target = centred(sinkhorn(S, n_iter=n_iter - 1, epsilon=epsilon, **masks).query, query_mask)
        part = SufficientStatistics.of(features, target, mask=query_mask)
        statistics = part if statistics is None else statistics + part
    if statistics is None or statistics.count == 0:
        raise ValueError("fit_amortizer: batches is empty; give at least one (q, k)")
    weights = statistics.ridge(ridge)
    return Amortizer(
        directions,
        weights,
        cumulants=cumulants,
        epsilon=epsilon,
        n_iter=n_iter,
        objective=objective,
        r_squared=statistics.r_squared(weights),
    )
