"""Sufficient statistics: all that ridge regression of the dual on the features needs to know of the data.

They are sums over tokens, ``Phi Phiᵀ``, ``Phi f`` and ``f f``, so batches stream through them in bounded memory, and
statistics of parts add up to those of the whole. Any choice among the features can be fitted from the same sums.

Shapes: features (..., H, F, n), target (..., H, n), weights (H, F).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from asap_ref.support.arrays import to_numpy
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
        """Weights (H, F) that minimise |f - Phiᵀ w|² + strength * sum_a (Phi Phiᵀ)_aa w_a².

        The penalty is relative to each feature's own size, so it does not depend on units.
        """
        size = np.diagonal(self.gram, axis1=-2, axis2=-1)  # (H, F)
        size = np.where(size > 0, size, 1.0)  # a feature that never varies gets weight 0, by the penalty
        scale = np.sqrt(size)
        correlation = self.gram / (scale[..., :, None] * scale[..., None, :])
        right = (self.cross / scale)[..., None]  # (H, F, 1)
        if strength == 0:  # features may depend on each other: of all the best weights, the smallest
            solution = np.linalg.pinv(correlation, hermitian=True) @ right
        else:
            solution = np.linalg.solve(correlation + strength * np.eye(size.shape[-1]), right)
        return solution[..., 0] / scale

    def r_squared(self, weights):
        """Share of the dual's variance (over tokens, within sequences) that the weights explain, (H,)."""
        explained = 2 * np.sum(weights * self.cross, -1) - np.einsum("hf,hfg,hg->h", weights, self.gram, weights)
        return np.where(self.square > 0, explained / np.where(self.square > 0, self.square, 1.0), 1.0)
