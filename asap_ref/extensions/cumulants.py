"""Cumulant features: ``LSE_j(S_ij)`` to second order in the spread of this sequence's keys (derived).

    q·mean(k),    |q|²,    qᵀ Cov(k) q        with q / sqrt(d) in place of q

Were the keys normal, their log-sum-exp would be a combination of these; the dual is near minus that.

Shapes: q (..., n, d), k (..., m, d) -> features (..., 3, n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from asap_ref.fast.form import fast_form
from asap_ref.fast.quadratic_form import QuadraticForm, mean_and_covariance
from asap_ref.support.arrays import array_namespace, transpose
from asap_ref.support.family import Family
from asap_ref.support.masks import centred, keep_tokens, of_features
from asap_ref.support.settings import check_flag


@dataclass(frozen=True)
class Cumulants(Family, name="cumulants"):
    """``q·mean(k)``, ``|q|²`` and ``qᵀ Cov(k) q``.

    Examples
    --------
    >>> q = k = np.ones((1, 5, 4))
    >>> Cumulants().features(q, k).shape
    (1, 3, 5)
    """

    count = 3
    default = True

    @classmethod
    def fitted(cls, setting, axes):
        """Take them; the setting of `fit_amortizer` is True."""
        check_flag(setting, cls.name, "fit_amortizer")
        return cls()

    def features(self, q, k, *, query_mask=None, key_mask=None):
        """(..., n, d), (..., m, d) -> (..., 3, n); O((n + m) d²)."""
        xp = array_namespace(q, k)
        u = keep_tokens(q, query_mask) / math.sqrt(q.shape[-1])
        mean, _, cov, _ = mean_and_covariance(k, key_mask)
        features = [xp.sum(u * mean, axis=-1), xp.sum(u * u, axis=-1), xp.sum((u @ cov) * u, axis=-1)]
        return centred(xp.stack(features, axis=-2), of_features(query_mask))

    def features_vjp(self, q, k, *, query_mask=None, key_mask=None):
        """Features, and ``vjp(d_features) -> (dq, dk, {})``."""
        xp = array_namespace(q, k)
        scale = 1 / math.sqrt(q.shape[-1])

        def vjp(d_features):
            d = centred(d_features, of_features(query_mask))
            d_dot, d_square, d_cov = (d[..., i, :, None] for i in range(3))  # (..., n, 1)
            u = scale * keep_tokens(q, query_mask)
            mean, spread, cov, m = mean_and_covariance(k, key_mask)
            d_u = d_dot * mean + 2 * d_square * u + 2 * d_cov * (u @ cov)
            # cov's gradient is sum_i d_i u_i u_iᵀ; what it sends through the mean of k vanishes, k being centred
            dk = 2 / m * spread @ (transpose(u * d_cov) @ u) + xp.sum(d_dot * u, axis=-2, keepdims=True) / m
            return scale * d_u, keep_tokens(dk, key_mask), {}

        return self.features(q, k, query_mask=query_mask, key_mask=key_mask), vjp


@fast_form.register
def _(family: Cumulants, weights, d):
    dot, square, of_cov = (weights[:, i, None, None] for i in range(3))  # (H, 1, 1)
    return QuadraticForm.of(
        len(weights), d, cov=of_cov / d, form=square / d * np.eye(d), mixed=dot / math.sqrt(d) * np.eye(d)
    )
