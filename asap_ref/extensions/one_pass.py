"""What one pass over the scores knows: features of softmax's own plan (derived). Between prediction and iteration.

    f0            dual of softmax, -t LSE_j(S_ij / t)
    P0 c0         with P0 = softmax_j(S_ij / t), and c0 its column sums: how crowded are the keys a query attends to
    P0 log c0     the first step of Sinkhorn from there, linearised

for each temperature t, in the units of epsilon. They need the scores, which the other families do not: a product and an
exponential more, about the price of one refining iteration. Where plans are sharp and local, a query's dual depends on
who is near it, and there these say more than any number of slices.

Shapes: q (..., n, d), k (..., m, d), temperatures (K,) -> features (..., 3 K, n).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from asap_ref.fast.form import Weighted, fast_form
from asap_ref.method.transport import attention_scores_vjp
from asap_ref.support.arrays import array_namespace, logsumexp, matvec, softmax, vecmat
from asap_ref.support.family import Family
from asap_ref.support.masks import centred, keep, keep_tokens, of_features, queries_with_a_key, valid_pairs
from asap_ref.support.settings import check_positive


@dataclass(frozen=True)
class OnePass(Family, name="one_pass"):
    """f0, P0 c0 and P0 log c0 at each temperature.

    Examples
    --------
    >>> OnePass(np.asarray([1.0, 2.0])).count
    6
    """

    temperatures: Any  # (K,)

    @classmethod
    def fitted(cls, setting, axes):
        """Take the temperatures as they are given: ``one_pass=1.0``, or several."""
        given = setting if isinstance(setting, list | tuple) else [setting]
        return cls(np.asarray([check_positive(t, "one_pass", "fit_amortizer") for t in given]))

    @property
    def count(self):
        """F = 3 K."""
        return 3 * self.temperatures.shape[0]

    def check(self, q):
        """Raise unless there is an axis of temperatures."""
        if self.temperatures.ndim != 1:
            raise ValueError(f"temperatures has shape {tuple(self.temperatures.shape)}, expected (K,)")

    def features_vjp(self, q, k, *, query_mask=None, key_mask=None):
        """Features, and ``vjp(d_features) -> (dq, dk, {})``: temperatures are a setting. O(K n m + n m d)."""
        xp = array_namespace(q, k)
        q, k = keep_tokens(q, query_mask), keep_tokens(k, key_mask)
        S, scores_vjp = attention_scores_vjp(q, k)
        made = [_at_temperature_vjp(S, self.temperatures[i], query_mask, key_mask) for i in range(self.count // 3)]

        def vjp(d_features):
            d = centred(d_features, of_features(query_mask))
            dS = sum(at_vjp(*(d[..., 3 * i + j, :] for j in range(3))) for i, (_, at_vjp) in enumerate(made))
            dq, dk = scores_vjp(dS)
            return keep_tokens(dq, query_mask), keep_tokens(dk, key_mask), {}

        rows = [row for features, _ in made for row in features]
        return centred(xp.stack(rows, axis=-2), of_features(query_mask)), vjp


def _at_temperature_vjp(S, t, query_mask, key_mask):
    """Three of (..., n), and ``vjp`` of theirs -> dS (..., n, m)."""
    xp = array_namespace(S)
    X, valid = S / t, valid_pairs(query_mask, key_mask)
    P = softmax(X, axis=-1, valid=valid)  # zero in masked rows and columns
    c = xp.sum(P, axis=-2)  # (..., m)
    safe = xp.where(c > 0, c, xp.ones_like(c))  # a key that nobody attends to weighs nothing
    lse = logsumexp(X if valid is None else xp.where(valid, X, -xp.inf), axis=-1)
    f0 = keep(-t * lse, queries_with_a_key(query_mask, key_mask))

    def vjp(d_f0, d_crowd, d_log):
        d_c = vecmat(d_crowd, P) + vecmat(d_log, P) / safe
        dP = (
            d_crowd[..., None] * c[..., None, :]
            + d_log[..., None] * xp.log(safe)[..., None, :]
            + d_c[..., None, :]
        )
        return P * (dP - xp.sum(P * dP, axis=-1, keepdims=True)) / t - P * d_f0[..., None]

    return (f0, matvec(P, c), matvec(P, xp.log(safe))), vjp


@dataclass(frozen=True)
class _InFewSequences(Weighted):
    """As it stands; but of a token it holds its scores, so that only few sequences go into a piece."""

    width = 1024


@fast_form.register
def _(family: OnePass, weights, d):
    return _InFewSequences(family, weights[..., None])
