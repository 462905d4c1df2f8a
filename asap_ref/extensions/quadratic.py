"""Quadratic features: the second-order form of a query with coefficients that are learned, one set a head (derived).

    u,    u_a u_b for a <= b,    u_a mean(w)_b        u, w: queries and keys on a basis of r directions

Where the cumulants measure the moments of the keys in the sequence, these learn what they are in all of them. At
inference they fold into one quadratic form, and cost next to nothing.

Shapes: q (..., n, d), k (..., m, d), basis (d, r) or (H, d, r) -> features (..., r + r (r + 1) / 2 + r², n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from asap_ref.fast.form import fast_form
from asap_ref.fast.quadratic_form import QuadraticForm, mean_and_covariance
from asap_ref.support.arrays import array_namespace, transpose
from asap_ref.support.family import Family
from asap_ref.support.masks import centred, keep_tokens, of_features
from asap_ref.support.settings import check_count


@dataclass(frozen=True)
class OnBasis:
    """What families share that are formed on r directions; tokens are scaled there as slices are."""

    basis: Any  # (d, r) or (H, d, r)

    @classmethod
    def fitted(cls, setting, axes):
        """Take r leading principal directions; r is the setting of `fit_amortizer`, at most d."""
        check_count(setting, cls.name, "fit_amortizer", least=0)
        return cls(axes(setting))

    def project(self, x, mask):
        """(..., n, d) -> (..., r, n), zero at padding."""
        return x.shape[-1] ** -0.25 * transpose(self.basis) @ transpose(keep_tokens(x, mask))

    def lift(self, d_u):
        """The adjoint of `project`: (..., r, n) -> (..., n, d)."""
        return self.basis.shape[-2] ** -0.25 * transpose(d_u) @ transpose(self.basis)


@dataclass(frozen=True)
class Quadratic(OnBasis, Family, name="quadratic"):
    """u, then u_a u_b for a <= b, then u_a mean(w)_b.

    Examples
    --------
    >>> import numpy as np
    >>> Quadratic(np.eye(4)[:, :2]).count
    9
    """

    @property
    def count(self):
        """F = r + r (r + 1) / 2 + r²."""
        r = self.basis.shape[-1]
        return r + r * (r + 1) // 2 + r * r

    def features(self, q, k, *, query_mask=None, key_mask=None):
        """(..., n, d), (..., m, d) -> (..., F, n); O(n r (d + r))."""
        xp = array_namespace(q, k, self.basis)
        u, w = self._queries_and_mean_key(q, k, query_mask, key_mask)
        r = u.shape[-2]
        squares = [u[..., a : a + 1, :] * u[..., a:, :] for a in range(r)]
        mixed = [u * w[..., b : b + 1, :] for b in range(r)]
        return centred(xp.concat([u, *squares, *mixed], axis=-2), of_features(query_mask))

    def features_vjp(self, q, k, *, query_mask=None, key_mask=None):
        """Features, and ``vjp(d_features) -> (dq, dk, {})``: the basis is a setting."""
        xp = array_namespace(q, k, self.basis)

        def vjp(d_features):
            d = centred(d_features, of_features(query_mask))
            u, w = self._queries_and_mean_key(q, k, query_mask, key_mask)
            r = u.shape[-2]
            d_u, start = d[..., :r, :], r
            rows = []  # what the squares send to their first factor, one row of u at a time
            for a in range(r):
                d_square = d[..., start : start + r - a, :]
                rows.append(xp.sum(d_square * u[..., a:, :], axis=-2))
                d_second = d_square * u[..., a : a + 1, :]
                d_u = d_u + xp.concat([xp.zeros_like(u[..., :a, :]), d_second], axis=-2)
                start += r - a
            d_u = d_u + xp.stack(rows, axis=-2)
            d_w = []
            for b in range(r):
                d_mixed = d[..., start + b * r : start + (b + 1) * r, :]
                d_u = d_u + d_mixed * w[..., b : b + 1, :]
                d_w.append(xp.sum(d_mixed * u, axis=(-2, -1)))
            *_, m = mean_and_covariance(k, key_mask)
            dk = self.lift(xp.stack(d_w, axis=-1)[..., None]) / m + xp.zeros_like(k)  # the same for each key
            return keep_tokens(self.lift(d_u), query_mask), keep_tokens(dk, key_mask), {}

        return self.features(q, k, query_mask=query_mask, key_mask=key_mask), vjp

    def _queries_and_mean_key(self, q, k, query_mask, key_mask):
        """(..., r, n) and (..., r, 1)."""
        mean, *_ = mean_and_covariance(k, key_mask)
        return self.project(q, query_mask), self.project(mean, None)


@fast_form.register
def _(family: Quadratic, weights, d):
    R = np.asarray(family.basis, dtype=np.float64)  # (d, r) or (H, d, r)
    H, r = len(weights), R.shape[-1]
    upper = np.triu_indices(r)
    linear, square, mixed = np.split(weights, np.cumsum([r, len(upper[0])]), axis=-1)
    form = np.zeros((H, r, r))
    form[:, *upper] = square
    return QuadraticForm.of(
        H,
        d,
        form=R @ form @ transpose(R) / math.sqrt(d),
        mixed=R @ mixed.reshape(H, r, r) @ transpose(R) / math.sqrt(d),  # [b, a] weighs u_a mean_b
        linear=d**-0.25 * transpose(R @ linear[..., None]),
    )
