"""The amortizer: a linear map, one weight vector per head, from features of the tokens to the query dual.

    f_hat = Phiᵀ w,    Phi (..., F, n) features of the tokens (features.py),  w (F,) weights of a head

The paper has a light parametric map there; that it is linear, and one per head, is ours. f_hat has the unit of a score;
only its differences count.

Families of features and weights are calibrated once, on data (regression.py), and kept with the epsilon of their
teacher in an `Amortizer`, whose class is in calibration/amortizer.py; ``families_and_weights(q)`` gives them, like q.

Shapes: q (..., H, n, d), k (..., H, m, d), weights (H, F), query dual (..., H, n).
"""

from __future__ import annotations

from asap_ref.method.features import dual_features, dual_features_vjp
from asap_ref.support.arrays import array_namespace
from asap_ref.support.contracts import operator, vjp_of
from asap_ref.support.family import check_weights


@operator
def amortized_query_dual(
    q: "... H n d", k: "... H m d", families: "...", weights: "H F", *, query_mask=None, key_mask=None
):
    """Predict the query dual, ``f_hat = Phiᵀ w``, at the cost of `dual_features`.

    Parameters
    ----------
    families : sequence of Family
        Of the features Phi, as in `dual_features`.
    weights : array (H, F)
        One for each head and feature.

    Returns
    -------
    array (..., H, n)
        Mean zero over the valid tokens.

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
    """Predicted query dual and its VJP, ``vjp(d_dual) -> (dq, dk, d_families, d_weights)`` (ours).

    d_families is as in `dual_features_vjp`.

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
        dq, dk, d_families = features_vjp(weights[:, :, None] * d_dual[..., None, :])
        d_weights = (features @ d_dual[..., None])[..., 0]  # (..., H, F)
        shared = tuple(range(d_weights.ndim - 2))
        return dq, dk, d_families, array_namespace(weights).sum(d_weights, axis=shared)

    return (weights[:, None, :] @ features)[..., 0, :], vjp
