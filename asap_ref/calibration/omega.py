"""How far refining iterations should go: the over-relaxation omega of each head, from the first batch alone.

One number a head needs few tokens, so it is simply tried: with each of a few omegas the duals are refined and closed,
and their plan is compared with the teacher's,

    KL(P || P_hat) = (sum of (f - f_hat) + sum of c (g - g_hat)) / epsilon,      c the column sums of P,

over queries and over keys: two sums, and no plan. Through the best omega and its neighbours goes a parabola, whose
lowest point is taken. (derived)

What did not work: to first order T is affine, and the best omega that of a quadratic form of the errors of plain
iterations, without any trial; where plans are sharp that says 1.9, when 1.4 is best.

Shapes: q (..., H, n, d), k (..., H, m, d), omega (H,).
"""

from __future__ import annotations

import math

import numpy as np

from asap_ref.calibration.few import few_sequences
from asap_ref.extensions.relaxation import over_relaxed_dual
from asap_ref.fast.scaling import scale, scaled_duals
from asap_ref.method.transport import Duals, attention_scores, transport_plan, two_sided_c_transform
from asap_ref.support.arrays import array_namespace, to_numpy
from asap_ref.support.contracts import inside

TRIED = (0.8, 1.0, 1.2, 1.4, 1.6, 1.8)  # stable between 0 and 2 (extensions/relaxation.py)
ENOUGH = 2**22  # entries of scores, of the first sequences


def fitted_omega(amortizer, q, k, query_mask=None, key_mask=None):
    """Omega (H,) for the refining iterations of an amortizer, from the first sequences of a batch (batch, H, n, d)."""
    return inside(_fitted, amortizer, q, k, query_mask, key_mask)


def _fitted(amortizer, q, k, query_mask, key_mask):
    count = max(ENOUGH // math.prod((*q.shape[-3:-1], k.shape[-2])), 1)
    q, k, query_mask, key_mask = few_sequences(q, k, query_mask, key_mask, count=count)
    settings = {"epsilon": amortizer.epsilon, "query_mask": query_mask, "key_mask": key_mask}
    xp, S = array_namespace(q), attention_scores(q, k)
    f, g = scaled_duals(scale(S, n_iter=amortizer.n_iter, **settings), amortizer.epsilon)
    c = xp.sum(transport_plan(S, Duals(f, g), **settings), axis=-2)
    f_hat = amortizer.predict(q, k, query_mask=query_mask, key_mask=key_mask)

    def divergence(omega):
        refined = over_relaxed_dual(S, f_hat, omega, n_iter=amortizer.refine, **settings)
        closed = two_sided_c_transform(S, refined, **settings)
        by_query, by_key = f - closed.query, c * (g - closed.key)  # f and its closure are zero at padding
        kl = to_numpy(xp.sum(by_query, axis=-1) + xp.sum(by_key, axis=-1)).astype(np.float64)
        return kl.reshape(-1, kl.shape[-1]).sum(axis=0)  # (H,)

    return _lowest(TRIED, np.stack([divergence(omega) for omega in TRIED]))


def _lowest(x, y):
    """Where parabolas through the least of y (K, H) and its neighbours, at equally spaced x (K,), are lowest: (H,)."""
    step, heads = x[1] - x[0], np.arange(y.shape[-1])
    i = np.clip(np.argmin(y, axis=0), 1, len(x) - 2)
    before, at, after = (y[i + j, heads] for j in (-1, 0, 1))
    bend = before - 2 * at + after
    move = np.where(bend > 0, (before - after) / (2 * np.where(bend > 0, bend, 1.0)), np.sign(before - after))
    return np.asarray(x)[i] + step * np.clip(move, -1, 1)
