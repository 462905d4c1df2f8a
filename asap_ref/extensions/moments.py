"""Moment features: a quadratic form of the query that follows the means and covariances of its sequence (derived).

For normal distributions of queries and keys the dual is a quadratic form of the query whose matrix is a function of
both covariances, and whose linear term is one of both means (initial_duals.py). The quadratic features have a
matrix that is the same for all sequences. These let it vary, to first order, entry by entry:

    u_a s_b           for each entry s_b of mean(u), diag Cov(w) and diag Cov(u)
    u_a u_b Cov(w)_ab    for a <= b
    u_a u_b Cov(u)_ab    for a <= b

At inference they fold into one quadratic form a sequence, and cost next to nothing.

Shapes: q (..., n, d), k (..., m, d), on the basis u (..., r, n), w (..., r, m) -> features (..., F, n).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asap_ref.extensions.quadratic import OnBasis
from asap_ref.fast.form import fast_form
from asap_ref.fast.quadratic_form import Lifted, QuadraticForm, mean_and_covariance
from asap_ref.support.arrays import array_namespace, transpose
from asap_ref.support.family import Family
from asap_ref.support.masks import centred, keep, of_features


@dataclass(frozen=True)
class Moments(OnBasis, Family, name="moments"):
    """u_a s_b, then u_a u_b Cov(w)_ab and u_a u_b Cov(u)_ab for a <= b.

    Examples
    --------
    >>> import numpy as np
    >>> Moments(np.eye(4)[:, :2]).count
    18
    """

    @property
    def count(self):
        """F = 3 r² + r (r + 1)."""
        r = self.basis.shape[-1]
        return 3 * r * r + r * (r + 1)

    def features_vjp(self, q, k, *, query_mask=None, key_mask=None):
        """Features, and ``vjp(d_features) -> (dq, dk, {})``: the basis is a setting. O(n r (d + r))."""
        u, w = self.project(q, query_mask), self.project(k, key_mask)
        features, of_projected = _of_projected_vjp(u, w, query_mask, key_mask)

        def vjp(d_features):
            d_u, d_w = of_projected(d_features)
            return self.lift(d_u), self.lift(d_w), {}

        return features, vjp


def _of_projected_vjp(u, w, query_mask, key_mask):
    """Features of u (..., r, n) and w (..., r, m), and ``vjp(d_features) -> (d_u, d_w)``."""
    xp = array_namespace(u, w)
    r, n = u.shape[-2:]
    of_queries, of_keys = of_features(query_mask), of_features(key_mask)
    mean, z, Cu, n_ = mean_and_covariance(transpose(u), query_mask)  # (..., 1, r), (..., n, r), (..., r, r)
    _, y, Cw, m_ = mean_and_covariance(transpose(w), key_mask)
    identity = xp.eye(r, dtype=u.dtype, device=u.device)
    diagonals = (xp.sum(C * identity, axis=-1, keepdims=True) for C in (Cw, Cu))
    s = xp.concat([transpose(mean), *diagonals], axis=-2)  # (..., 3r, 1)
    bilinear = xp.reshape(s[..., :, None, :] * u[..., None, :, :], (*u.shape[:-2], 3 * r * r, n))
    squares = [C[..., a, a:, None] * u[..., a : a + 1, :] * u[..., a:, :] for C in (Cw, Cu) for a in range(r)]

    def vjp(d_features):
        d = centred(d_features, of_queries)
        D = xp.reshape(d[..., : 3 * r * r, :], (*d.shape[:-2], 3 * r, r, n))
        d_u = xp.sum(D * s[..., :, None, :], axis=-3)
        d_s = xp.sum(D * u[..., None, :, :], axis=(-2, -1))  # (..., 3r)
        dC, start = [], 3 * r * r
        for i, C in enumerate((Cw, Cu)):
            upper, start = _upper(d, start, r)  # (..., r, r, n): the feature of a and b, a <= b
            both = upper + xp.moveaxis(upper, -3, -2)
            d_u = d_u + xp.sum(both * C[..., None] * u[..., None, :, :], axis=-2)
            of_diagonal = d_s[..., (i + 1) * r : (i + 2) * r, None] * identity
            dC.append(xp.sum(upper * u[..., :, None, :] * u[..., None, :, :], axis=-1) + of_diagonal)
        # what a covariance sends through the mean vanishes, z and y being centred
        d_w, d_spread = (
            (dc + transpose(dc)) @ transpose(x) / N for dc, x, N in zip(dC, (y, z), (m_, n_), strict=True)
        )
        return keep(d_u + d_s[..., :r, None] / n_ + d_spread, of_queries), keep(d_w, of_keys)

    return centred(xp.concat([bilinear, *squares], axis=-2), of_queries), vjp


def _upper(d, start, r):
    """Rows of d (..., F, n) from ``start`` on, one a pair a <= b, as a triangle (..., r, r, n); and where they end."""
    xp = array_namespace(d)
    rows = []
    for a in range(r):
        stop = start + r - a
        rows.append(xp.concat([xp.zeros_like(d[..., :a, :]), d[..., start:stop, :]], axis=-2))
        start = stop
    return xp.stack(rows, axis=-3), start


@fast_form.register
def _(family: Moments, weights, d):
    R = np.asarray(family.basis, dtype=np.float64)  # (d, r) or (H, d, r)
    H, r = len(weights), R.shape[-1]
    upper = np.triu_indices(r)
    bilinear, of_keys, of_queries = np.split(weights, np.cumsum([3 * r * r, len(upper[0])]), axis=-1)
    forms = np.zeros((2, H, r, r))
    forms[0][:, *upper], forms[1][:, *upper] = of_keys, of_queries
    scaled = np.zeros((H, 1, 1)) + d**-0.25 * R
    return QuadraticForm.of(len(weights), d, lifted=(Lifted(scaled, *forms, bilinear.reshape(H, 3 * r, r)),))
