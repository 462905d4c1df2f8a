"""One quadratic form of the query, into which polynomial features and their weights fold: exact, and nearly free.

    qᵀ G q + h·q        G = a Cov(k) + A + sum of R (F_k * Rᵀ Cov(k) R + F_q * Rᵀ Cov(q) R) Rᵀ
                        h = mean(k) B + c + sum of s Z Rᵀ,    s = mean(q) R, diag Rᵀ Cov(k) R, diag Rᵀ Cov(q) R

a, A, B, c, and R, F_k, F_q, Z of each lifted form are constants of a head, worked out once from the weights; only the
means and covariances are the sequence's. Forms of several families add up to one.

Shapes: q (..., H, n, d), k (..., H, m, d) -> (..., H, n); the constants have an axis H in front.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from asap_ref.support.arrays import array_namespace, one_pass, times, transpose
from asap_ref.support.masks import keep_tokens, token_count


@dataclass(frozen=True)
class Lifted:
    """A form made on r directions R from the covariances there, then lifted: see the top of the module."""

    R: Any  # (H, d, r)
    F_k: Any  # (H, r, r)
    F_q: Any  # (H, r, r)
    Z: Any  # (H, 3r, r): [b, a] weighs u_a s_b

    def on_directions(self, u, Cw, query_mask):
        """The form (..., r, r) and linear term (..., 1, r) there, of u = q R (..., n, r) and Cw = Rᵀ Cov(k) R."""
        xp = array_namespace(u, self.F_k)
        mean_u, _, Cu, _ = mean_and_covariance(u, query_mask)
        diagonals = (xp.linalg.diagonal(C)[..., None, :] for C in (Cw, Cu))
        s = xp.concat([mean_u, *diagonals], axis=-1)  # (..., 1, 3r)
        return self.F_k * Cw + self.F_q * Cu, times(s, self.Z)


@dataclass(frozen=True)
class QuadraticForm:
    """The constants of the form; calling it gives its value at every query."""

    a: Any  # (H, 1, 1) of Cov(k)
    A: Any  # (H, d, d)
    B: Any  # (H, d, d) of mean(k)
    c: Any  # (H, 1, d)
    lifted: tuple[Lifted, ...] = ()
    width = 1

    @classmethod
    def of(cls, heads, d, *, cov=0.0, form=0.0, mixed=0.0, linear=0.0, lifted=()):
        """Make it of a, A, B, c, where they are not zero, for so many heads of dimension d."""
        square = np.zeros((heads, d, d))
        return cls(square[:, :1, :1] + cov, square + form, square + mixed, square[:, :1] + linear, lifted)

    def __add__(self, other):
        sums = (x + y for x, y in zip(self._constants(), other._constants(), strict=True))
        return QuadraticForm(*sums, self.lifted + other.lifted)

    def _constants(self):
        return self.a, self.A, self.B, self.c

    def __call__(self, q, k, query_mask, key_mask):
        """(..., n, d), (..., m, d) -> arrays (..., n) that add up to the value; padding is zero in q and k."""
        (n, d), m = q.shape[-2:], k.shape[-2]
        mean_k, spread_k, count_k = mean_and_spread(k, key_mask)
        h = times(mean_k, self.B) + self.c
        if 4 * n * m > (n + m) * d:
            return self._by_matrix(q, h, covariance(spread_k, count_k), query_mask)
        return self._by_token(q, h, spread_k, count_k, query_mask)

    def _by_matrix(self, q, h, cov_k, query_mask):
        """All forms as one G, and one h."""
        G = _scaled_sum(self.a, cov_k, self.A)
        for form in self.lifted:
            R, Rt = form.R, transpose(form.R)
            M, h_u = form.on_directions(times(q, R), Rt @ times(cov_k, R), query_mask)
            G, h = G + R @ times(M, Rt), h + times(h_u, Rt)
        return _sum_of_products(q, q @ G), (q @ transpose(h))[..., 0]

    def _by_token(self, q, h, spread_k, count_k, query_mask):
        """Without any array (..., d, d), where that is more than all tokens: qᵀ Cov(k) q is the mean of (q·spread)²."""
        w = q @ transpose(spread_k)  # (..., n, m)
        parts = [_sum_of_products(w, w * (self.a / count_k)), _sum_of_products(q, times(q, self.A))]
        for form in self.lifted:
            u, w = times(q, form.R), times(spread_k, form.R)
            M, h_u = form.on_directions(u, transpose(w) @ w / count_k, query_mask)
            parts += [_sum_of_products(u, u @ M), (u @ transpose(h_u))[..., 0]]
        return *parts, (q @ transpose(h))[..., 0]


def _sum_of_products(x, y):
    """x·y of each row, (..., n, d) -> (..., n); on NumPy by BLAS, which narrow rows do not slow down."""
    xp = array_namespace(x, y)
    if isinstance(x, np.ndarray):
        return times(x * y, np.ones((x.shape[-1], 1), x.dtype))[..., 0]
    return xp.vecdot(x, y, axis=-1)


@one_pass
def _scaled_sum(xp, a, x, y):
    return a * x + y


def mean_and_covariance(x, mask):
    """Mean and covariance over tokens: (..., n, d) -> mean (..., 1, d), x less its mean, Cov (..., d, d), and n'."""
    mean, spread, count = mean_and_spread(x, mask)
    return mean, spread, covariance(spread, count), count


def mean_and_spread(x, mask):
    """Mean over tokens, x less its mean, and the count of tokens, an integer or (..., 1, 1)."""
    xp = array_namespace(x)
    x = keep_tokens(x, mask)
    count = x.shape[-2] if mask is None else token_count(x[..., 0], mask)[..., None]
    mean = xp.ones_like(x[..., None, :, 0]) @ x / count  # a product is the fastest sum of rows
    spread = keep_tokens(x - mean, mask)
    return mean, spread, count


def covariance(spread, count):
    """Covariance (..., d, d) of tokens that are less their mean."""
    # the product of an array with itself is several times slower on NumPy, where it is small
    other = spread.copy() if isinstance(spread, np.ndarray) else spread
    return array_namespace(spread).matrix_transpose(spread) @ other / count
