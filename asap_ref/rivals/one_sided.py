"""One-sided ASAP, an ablation: predict the key dual and normalise rows once.

    g_hat = prediction from (k, q)                 the roles of queries and keys exchanged
    P     = softmax_j((S_ij + g_hat_j) / epsilon)  rows exact; columns as good as the prediction

This is softmax attention with a bias for each key, and the cheapest form an amortized dual can take: the error of
the prediction goes into the columns as it is, where the two-sided transform first repairs them once (derived).

The amortizer is fitted on exchanged pairs, ``fit_amortizer([(k, q), ...])``. Its teacher starts from the softmax
over queries, so its plan is that of the usual teacher where both have converged, and near it otherwise.

Shapes: q (..., H, n, d), k (..., H, m, d), v (..., H, m, p).
"""

from __future__ import annotations

import math

from asap_ref.fast import kernels
from asap_ref.fast.attention import softmax_attention
from asap_ref.fast.prediction import predicted_dual
from asap_ref.method.transport import attention_scores, attention_scores_vjp
from asap_ref.support.arrays import array_namespace, softmax, transpose
from asap_ref.support.contracts import fast_form_of, operator, vjp_of
from asap_ref.support.masks import valid_pairs, without_padding


@operator
def one_sided_attention(
    q: "... H n d", k: "... H m d", v: "... H m p", amortizer, *, query_mask=None, key_mask=None
):
    """Softmax attention with a predicted key dual as bias.

    O(n m (d + p) + L m (d + log m)). Source: asap_ref/oracle/README.md, "Two-sided entropic c-transform" (derived).

    Parameters
    ----------
    amortizer : Amortizer
        Of as many heads, fitted on exchanged pairs (k, q).

    Returns
    -------
    array (..., H, n, p)

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref import fit_amortizer
    >>> q, k = np.random.default_rng(0).standard_normal((2, 64, 1, 8, 4))
    >>> amortizer = fit_amortizer([(k, q)], n_slices=4)
    >>> plan = one_sided_attention(q, k, np.broadcast_to(np.eye(8), (64, 1, 8, 8)), amortizer)
    >>> bool(np.abs(plan.sum(-2) - 1).mean() < 0.1)  # columns nearly right
    True
    """
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    g = amortizer.predict(k, q, query_mask=key_mask, key_mask=query_mask)
    return _biased_softmax(attention_scores(q, k), g, amortizer.epsilon, query_mask, key_mask) @ v


@vjp_of(one_sided_attention)
def one_sided_attention_vjp(q, k, v, amortizer, *, query_mask=None, key_mask=None):
    """One-sided attention and its VJP, ``vjp(d_out) -> (dq, dk, dv)``; the amortizer is held fixed. Derived.

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref import fit_amortizer
    >>> q, k = np.random.default_rng(0).standard_normal((2, 8, 1, 5, 4))
    >>> out, vjp = one_sided_attention_vjp(q, k, k, fit_amortizer([(k, q)], n_slices=4))
    >>> [d.shape for d in vjp(out)]
    [(8, 1, 5, 4), (8, 1, 5, 4), (8, 1, 5, 4)]
    """
    xp = array_namespace(q, k, v)
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    S, scores_vjp = attention_scores_vjp(q, k)
    g, predict_vjp = amortizer.predict_vjp(k, q, query_mask=key_mask, key_mask=query_mask)
    P = _biased_softmax(S, g, amortizer.epsilon, query_mask, key_mask)

    def vjp(d_out):
        dP = d_out @ transpose(v)
        dS = P * (dP - xp.sum(P * dP, axis=-1, keepdims=True)) / amortizer.epsilon
        dq, dk = scores_vjp(dS)
        dk_bias, dq_bias = predict_vjp(xp.sum(dS, axis=-2))
        return dq + dq_bias, dk + dk_bias, transpose(P) @ d_out

    return P @ v, vjp


def _biased_softmax(S, g, epsilon, query_mask, key_mask):
    return softmax((S + g[..., None, :]) / epsilon, axis=-1, valid=valid_pairs(query_mask, key_mask))


def _from_kernels(q, k, v, amortizer, *, query_mask=None, key_mask=None, found=None):
    g = predicted_dual(k, q, amortizer, query_mask=key_mask, key_mask=query_mask, p=v.shape[-1])
    settings = {"epsilon": amortizer.epsilon, "query_mask": query_mask, "key_mask": key_mask, "found": found}
    return kernels.attention_from_key_dual(q, k, v, g, **settings)


@kernels.on_device(_from_kernels)
@fast_form_of(one_sided_attention)
def fast_one_sided_attention(q, k, v, amortizer, *, query_mask=None, key_mask=None):
    """Fast softmax attention, with the bias as one more coordinate of the keys."""
    xp, d = array_namespace(q, k, v), q.shape[-1]
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    g = predicted_dual(k, q, amortizer, query_mask=key_mask, key_mask=query_mask)
    # the bias rides inside the product as one more coordinate, whose scale softmax_attention divides away again
    q1 = xp.concat([q / math.sqrt(d), xp.ones_like(q[..., :1])], axis=-1) * (math.sqrt(d + 1) / amortizer.epsilon)
    k1 = xp.concat([k, g[..., None]], axis=-1)
    return softmax_attention(q1, k1, v, query_mask=query_mask, key_mask=key_mask)
