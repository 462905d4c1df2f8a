"""Three attentions that differ in one line, the plan: softmax, Sinkhorn and ASAP, each forward and backward.

    S = q kᵀ / sqrt(d)        scores
    P = plan(S)               rows sum to 1; columns nearly to n'/m': Sinkhorn as T grows, ASAP if f_hat is good
    out = P v

                                                                                 LSE or softmax over n x m
    softmax     P = softmax_j(S_ij)                                                                      1
    Sinkhorn    P = exp((f + g + S) / epsilon),    f and g from T iterations                        2T + 3
    ASAP        P = exp((f + g + S) / epsilon),    g and f from f_hat = Phiᵀ w by two half steps         4

At epsilon = 1, Sinkhorn of T = 0 is softmax. All three are quadratic, by S and P v: what ASAP saves is the factor T.
(Two passes would do for ASAP: f only makes its rows exact, and is formed to be seen.)
An amortizer may refine f_hat before the half steps (ours; it does so only if told to): read as if it were not there.

Shapes: q (..., n, d), k (..., m, d), v (..., m, p) -> out (..., n, p). Leading axes are batch and head.
"""

from __future__ import annotations

from asap_ref.method.amortizer import amortized_query_dual, amortized_query_dual_vjp
from asap_ref.method.sinkhorn import sinkhorn, sinkhorn_vjp
from asap_ref.method.transport import (
    attention_scores,
    attention_scores_vjp,
    transport_plan,
    transport_plan_vjp,
    two_sided_c_transform,
    two_sided_c_transform_vjp,
)
from asap_ref.support.arrays import array_namespace, softmax, transpose
from asap_ref.support.contracts import operator, vjp_of
from asap_ref.support.masks import valid_pairs, without_padding


@operator
def softmax_attention(q: "... n d", k: "... m d", v: "... m p", *, query_mask=None, key_mask=None):
    """Row-softmax attention: half step 0 of Sinkhorn at epsilon = 1.

    O(n m (d + p)). Source: Vaswani et al. 2017, equation 1.

    Returns
    -------
    array (..., n, p)

    Examples
    --------
    >>> import numpy as np
    >>> softmax_attention(np.zeros((2, 3)), np.zeros((2, 3)), np.asarray([[1.0], [3.0]]))
    array([[2.],
           [2.]])
    """
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    return softmax(attention_scores(q, k), axis=-1, valid=valid_pairs(query_mask, key_mask)) @ v


@vjp_of(softmax_attention)
def softmax_attention_vjp(q, k, v, *, query_mask=None, key_mask=None):
    """Softmax attention and its VJP, ``vjp(d_out) -> (dq, dk, dv)`` (ours).

    Examples
    --------
    >>> import numpy as np
    >>> out, vjp = softmax_attention_vjp(np.zeros((2, 3)), np.zeros((2, 3)), np.asarray([[1.0], [3.0]]))
    >>> vjp(np.ones((2, 1)))[2]
    array([[1.],
           [1.]])
    """
    xp = array_namespace(q, k, v)
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    S, scores_vjp = attention_scores_vjp(q, k)
    P = softmax(S, axis=-1, valid=valid_pairs(query_mask, key_mask))

    def vjp(d_out):
        dP = d_out @ transpose(v)
        dS = P * (dP - xp.sum(P * dP, axis=-1, keepdims=True))
        return *scores_vjp(dS), transpose(P) @ d_out

    return P @ v, vjp


@operator
def sinkhorn_attention(
    q: "... n d", k: "... m d", v: "... m p", *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None
):
    """Doubly-stochastic attention by Sinkhorn's iteration, the teacher of ASAP.

    O(n m (d + p + T)). Source: Sander et al. 2022 (Sinkformer).

    Parameters
    ----------
    n_iter : int
        T; 0 is softmax attention at temperature epsilon.

    Returns
    -------
    array (..., n, p)

    Examples
    --------
    >>> import numpy as np
    >>> q = np.asarray([[1.0], [0.0]])
    >>> sinkhorn_attention(q, q, np.eye(2), n_iter=50).sum(axis=0).round(6)  # with v = I the output is the plan itself
    array([1., 1.])
    """
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    S = attention_scores(q, k)
    return transport_plan(S, sinkhorn(S, n_iter=n_iter, **settings), **settings) @ v


@vjp_of(sinkhorn_attention)
def sinkhorn_attention_vjp(q, k, v, *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None):
    """Sinkhorn attention and its VJP, ``vjp(d_out) -> (dq, dk, dv)`` (ours).

    Unrolled through all iterations on both sides (the Sinkformer's text model stops the gradient on the key
    side; we do not). O(n m) memory beyond the O((n + m) T) duals.

    Examples
    --------
    >>> import numpy as np
    >>> q = np.asarray([[1.0], [0.0]])
    >>> out, vjp = sinkhorn_attention_vjp(q, q, q, n_iter=5)
    >>> vjp(np.ones((2, 1)))[2].round(6)  # columns of the plan sum to 1
    array([[1.],
           [1.]])
    """
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    S, scores_vjp = attention_scores_vjp(q, k)
    duals, duals_vjp = sinkhorn_vjp(S, n_iter=n_iter, **settings)
    P, plan_vjp = transport_plan_vjp(S, duals, **settings)

    def vjp(d_out):
        dP = d_out @ transpose(v)
        dS_direct, d_duals = plan_vjp(dP)
        (dS_through_duals,) = duals_vjp(d_duals)
        return *scores_vjp(dS_direct + dS_through_duals), transpose(P) @ d_out

    return P @ v, vjp


@operator
def asap_attention(q: "... H n d", k: "... H m d", v: "... H m p", amortizer, *, query_mask=None, key_mask=None):
    """Doubly-stochastic attention without a loop: predict the query dual, rebuild the plan from it.

    O(n m (d + p) + L (n + m) (d + log(n + m))). Source: arXiv 2605.12879 (paper).

    Parameters
    ----------
    amortizer : Amortizer
        Families of features and weights (H, F), as from `fit_amortizer`, with the epsilon of their teacher.

    Returns
    -------
    array (..., H, n, p)
        Rows of the plan are exact; columns are as good as the prediction.

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref import fit_amortizer
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 64, 1, 8, 4))
    >>> teacher, asap = sinkhorn_attention(q, k, v), asap_attention(q, k, v, fit_amortizer([(q, k)], n_slices=4))
    >>> bool(np.abs(asap - teacher).max() < 0.1 * np.abs(teacher).max())
    True
    """
    masks = dict(query_mask=query_mask, key_mask=key_mask)
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    f_hat = amortized_query_dual(q, k, *amortizer.families_and_weights(q), **masks)
    settings = dict(epsilon=amortizer.epsilon, refinement=amortizer.refinement(q) if amortizer.refine else None)
    return attention_from_dual(q, k, v, f_hat, **settings, **masks)


@vjp_of(asap_attention)
def asap_attention_vjp(q, k, v, amortizer, *, query_mask=None, key_mask=None):
    """ASAP attention and its VJP, ``vjp(d_out) -> (dq, dk, dv)`` (ours).

    The gradient follows the scores, the two-sided transform, and the sorts behind the prediction; the
    amortizer itself is held fixed (`amortized_query_dual_vjp` has the gradients of its weights).

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref import fit_amortizer
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 8, 1, 5, 4))
    >>> out, vjp = asap_attention_vjp(q, k, v, fit_amortizer([(q, k)], n_slices=4))
    >>> [d.shape for d in vjp(out)]
    [(8, 1, 5, 4), (8, 1, 5, 4), (8, 1, 5, 4)]
    """
    masks = dict(query_mask=query_mask, key_mask=key_mask)
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    f_hat, f_hat_vjp = amortized_query_dual_vjp(q, k, *amortizer.families_and_weights(q), **masks)
    settings = dict(epsilon=amortizer.epsilon, refinement=amortizer.refinement(q) if amortizer.refine else None)
    return attention_from_dual_vjp(q, k, v, f_hat, lambda df: f_hat_vjp(df)[:2], **settings, **masks)


def attention_from_dual(q, k, v, f_hat, *, refinement=None, epsilon=1.0, query_mask=None, key_mask=None):
    """Attention from a query dual f_hat (..., n) by its two-sided transform.

    A ``refinement``, which the paper does not have, improves the dual first: a function of scores and dual with a
    ``vjp`` (extensions/relaxation.py).
    """
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    S = attention_scores(q, k)
    f = f_hat if refinement is None else refinement(S, f_hat, **settings)
    return transport_plan(S, two_sided_c_transform(S, f, **settings), **settings) @ v


def attention_from_dual_vjp(
    q, k, v, f_hat, f_hat_vjp, *, refinement=None, epsilon=1.0, query_mask=None, key_mask=None
):
    """The same and its VJP, where ``f_hat_vjp(df) -> (dq, dk)`` is that of the prediction.

    Gradients reach the scores from the plan itself, through its duals, and through a refinement if there is one; and q
    and k once more through the prediction.
    """
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    S, scores_vjp = attention_scores_vjp(q, k)
    f, refinement_vjp = (f_hat, None) if refinement is None else refinement.vjp(S, f_hat, **settings)
    duals, duals_vjp = two_sided_c_transform_vjp(S, f, **settings)
    P, plan_vjp = transport_plan_vjp(S, duals, **settings)

    def vjp(d_out):
        dP = d_out @ transpose(v)
        dS_direct, d_duals = plan_vjp(dP)
        dS_through_duals, df = duals_vjp(d_duals)
        dS = dS_direct + dS_through_duals
        if refinement is not None:
            dS_through_refinement, df = refinement_vjp(df)
            dS = dS + dS_through_refinement
        dq, dk = scores_vjp(dS)
        dq_dual, dk_dual = f_hat_vjp(df)
        return dq + dq_dual, dk + dk_dual, transpose(P) @ d_out

    return P @ v, vjp
