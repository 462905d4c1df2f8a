"""The amortizer: a linear map, one weight vector a head, from features of the tokens to the query dual.

    f_hat = Phiᵀ w,    Phi (..., F, n) features of the tokens (features.py),  w (F,) weights of a head.

Families of features and weights are calibrated once, on data (regression.py), and kept with the epsilon of their
teacher in an `Amortizer` (calibration/amortizer.py), whose ``predict`` is the function below.

Shapes: q (..., H, n, d), k (..., H, m, d), weights (H, F), query dual (..., H, n).
"""

from __future__ import annotations

from asap_ref.method.features import check_families, dual_features, dual_features_vjp
from asap_ref.support.arrays import array_namespace
from asap_ref.support.contracts import operator, vjp_of


@operator
def amortized_query_dual(
    q: "... H n d", k: "... H m d", families: "...", weights: "...", *, query_mask=None, key_mask=None
):
    """Predict the query dual, ``f_hat = Phiᵀ w`` (paper), at the cost of `dual_features`.

    Parameters
    ----------
    families, weights : sequence of Family, array (H, F)
        Of the features Phi, as in `dual_features`; one for each head and feature.

    Returns
    -------
    array (..., H, n)
        Mean zero over the valid tokens, zero at the others.

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref import Slices
    >>> q, k = np.random.default_rng(0).standard_normal((2, 1, 2, 5, 4))
    >>> amortized_query_dual(q, k, [Slices(np.eye(4))], np.ones((2, 4))).shape
    (1, 2, 5)
    """
    check_weights(q, families, weights)
    features = dual_features(q, k, families, query_mask=query_mask, key_mask=key_mask)
    return (weights[:, None, :] @ features)[..., 0, :]


@vjp_of(amortized_query_dual)
def amortized_query_dual_vjp(q, k, families, weights, *, query_mask=None, key_mask=None):
    """Predicted query dual and its VJP, ``vjp(d_dual) -> (d_q, d_k, d_families, d_weights)``.

    d_families is as in `dual_features_vjp`. Derived.

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref import Slices
    >>> q, k = np.random.default_rng(0).standard_normal((2, 1, 2, 5, 4))
    >>> dual, vjp = amortized_query_dual_vjp(q, k, [Slices(np.eye(4))], np.ones((2, 4)))
    >>> vjp(dual)[3].shape
    (2, 4)
    """
    check_weights(q, families, weights)
    features, features_vjp = dual_features_vjp(q, k, families, query_mask=query_mask, key_mask=key_mask)

    def vjp(d_dual):
        d_q, d_k, d_families = features_vjp(weights[:, :, None] * d_dual[..., None, :])
        d_weights = (features @ d_dual[..., None])[..., 0]  # (..., H, F)
        shared = tuple(range(d_weights.ndim - 2))
        return d_q, d_k, d_families, array_namespace(weights).sum(d_weights, axis=shared)

    return (weights[:, None, :] @ features)[..., 0, :], vjp


def check_weights(q, families, weights):
    """Raise unless the families fit q (..., H, n, d), and the weights are (H, F)."""
    check_families(families, q)
    expected = (q.shape[-3], sum(family.count for family in families))
    if tuple(weights.shape) != expected:
        raise ValueError(f"weights has shape {tuple(weights.shape)}, expected (H, F) = {expected}")
