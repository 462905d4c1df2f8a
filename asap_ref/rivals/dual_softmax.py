"""Dual softmax: the row softmax times the column softmax, rows made right again; what matching networks use.

    P_ij  ~  softmax_j(S_ij / epsilon) softmax_i(S_ij / epsilon)  =  softmax_j((2 S_ij + g_j) / epsilon)

with g the entropic c-transform of zero onto keys: the row softmax's own normaliser does not depend on j, and goes. So
it is softmax attention on doubled scores with a bias a key. Source: mutual softmax of matching networks (Rocco et al.
2018; Sun et al. 2021, LoFTR); as an attention, and its rows normalised: derived.

Shapes: q (..., n, d), k (..., m, d), v (..., m, p) -> (..., n, p).
"""

from __future__ import annotations

import math

from asap_ref.fast.attention import softmax_attention
from asap_ref.fast.threads import over_problems
from asap_ref.method.transport import (
    attention_scores,
    attention_scores_vjp,
    entropic_c_transform,
    entropic_c_transform_vjp,
)
from asap_ref.support.arrays import array_namespace, softmax, transpose
from asap_ref.support.contracts import fast_form_of, operator, vjp_of
from asap_ref.support.masks import keep, valid_pairs, without_padding


@operator
def dual_softmax_attention(
    q: "... n d", k: "... m d", v: "... m p", *, epsilon=1.0, query_mask=None, key_mask=None
):
    """Attention by the product of row and column softmax.

    O(n m (d + p)): one pass more than softmax attention.

    Returns
    -------
    array (..., n, p)
        Rows of the plan are exact; columns are not, but no column takes all.

    Examples
    --------
    >>> import numpy as np
    >>> q = np.asarray([[3.0], [1.0]])
    >>> dual_softmax_attention(q, np.asarray([[1.0], [0.0]]), np.eye(2)).round(2)  # the plan; of softmax: .95, .73
    array([[0.97, 0.03],
           [0.39, 0.61]])
    """
    return dual_softmax_attention_vjp(q, k, v, epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)[0]


@vjp_of(dual_softmax_attention)
def dual_softmax_attention_vjp(q, k, v, *, epsilon=1.0, query_mask=None, key_mask=None):
    """The same and its VJP, ``vjp(d_out) -> (dq, dk, dv)``: that of softmax, twice, and through the bias. Derived.

    Examples
    --------
    >>> import numpy as np
    >>> out, vjp = dual_softmax_attention_vjp(*np.ones((3, 4, 2)))
    >>> vjp(out)[2].round(6)[0]
    array([1., 1.])
    """
    xp, settings = array_namespace(q, k, v), dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    S, scores_vjp = attention_scores_vjp(q, k)
    g, bias_vjp = entropic_c_transform_vjp(S, xp.zeros_like(S[..., 0]), onto="key", **settings)
    P = softmax((2 * S + g[..., None, :]) / epsilon, axis=-1, valid=valid_pairs(query_mask, key_mask))

    def vjp(d_out):
        dP = d_out @ transpose(v)
        dX = P * (dP - xp.sum(P * dP, axis=-1, keepdims=True)) / epsilon
        dS, _ = bias_vjp(keep(xp.sum(dX, axis=-2), key_mask))
        return *scores_vjp(2 * dX + dS), transpose(P) @ d_out

    return P @ v, vjp


@fast_form_of(dual_softmax_attention)
def fast_dual_softmax_attention(q, k, v, *, epsilon=1.0, query_mask=None, key_mask=None):
    """A chunk of problems at a time on NumPy; then fast softmax attention, the bias one more coordinate of the keys."""

    def part(q, k, v, query_mask, key_mask):
        return _through_softmax(q, k, v, epsilon, query_mask, key_mask)

    return over_problems(part, [q, k, v], [query_mask, key_mask])


def _through_softmax(q, k, v, epsilon, query_mask, key_mask):
    xp, d = array_namespace(q, k, v), q.shape[-1]
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    S = attention_scores(q, k)
    settings = {"epsilon": epsilon, "query_mask": query_mask, "key_mask": key_mask}
    g = entropic_c_transform(S, xp.zeros_like(S[..., 0]), onto="key", **settings)
    q1 = xp.concat([2 * q / math.sqrt(d), xp.ones_like(q[..., :1])], axis=-1) * (math.sqrt(d + 1) / epsilon)
    return softmax_attention(
        q1, xp.concat([k, g[..., None]], axis=-1), v, query_mask=query_mask, key_mask=key_mask
    )
