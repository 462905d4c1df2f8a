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
    """A form made on r directions R from the covariances there, then lifted to all: see the top of the module."""

    R: Any  # (H, d, r)
    F_k: Any  # (H, r, r)
    F_q: Any  # (H, r, r)
    Z: Any  # (H, 3r, r): [b, a] weighs u_a s_b

    def __call__(self, q, cov_k, query_mask):
        """Parts of G (..., d, d) and h (..., 1, d), for queries (..., n, d) and the keys' covariance (..., d, d)."""
        xp, Rt = array_namespace(q, self.R), transpose(self.R)
        mean_u, _, Cu, _ = mean_and_covariance(times(q, self.R), query_mask)  # (..., 1, r), (..., r, r)
        Cw = Rt @ times(cov_k, self.R)
        diagonals = (xp.linalg.diagonal(C)[..., None, :] for C in (Cw, Cu))
        s = xp.concat([mean_u, *diagonals], axis=-1)  # (..., 1, 3r)
        G = self.R @ times(self.F_k * Cw + self.F_q * Cu, Rt)
        return G, times(times(s, self.Z), Rt)


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
        """(..., n, d), (..., m, d) -> one of (..., n); padding is zero in q and k."""
        mean_k, _, cov_k, _ = mean_and_covariance(k, key_mask)
        G, h = _scaled_sum(self.a, cov_k, self.A), times(mean_k, self.B) + self.c
        for form in self.lifted:
            more_G, more_h = form(q, cov_k, query_mask)
            G, h = G + more_G, h + more_h
        return (_sum_of_products(q, q @ G + h),)


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
    xp = array_namespace(x)
    x = keep_tokens(x, mask)
    count = x.shape[-2] if mask is None else token_count(x[..., 0], mask)[..., None]  # an integer, or (..., 1, 1)
    mean = xp.ones_like(x[..., None, :, 0]) @ x / count  # a product is the fastest sum of rows
    spread = keep_tokens(x - mean, mask)
    # the product of an array with itself is several times slower on NumPy, where it is small
    other = spread.copy() if isinstance(spread, np.ndarray) else spread
    return mean, spread, xp.matrix_transpose(spread) @ other / count, count
