"""Features of queries and keys from which the query dual is predicted.

The L centred slice potentials (paper) and, optionally, three second-cumulant features (derived): expanding
``LSE_j(S_ij)`` to second order in the spread of the keys gives q·mean(k) and qᵀ Cov(k) q, and |q|² stands for
what the expansion leaves. A dual has a free constant, so each feature is centred over the tokens of its sequence.

Shapes: q (..., n, d), k (..., m, d), directions (d, L), features Phi (..., F, n).
"""

from __future__ import annotations

import math

from asap_ref.arrays import array_namespace, transpose
from asap_ref.contracts import operator
from asap_ref.slices import sliced_potentials, sliced_potentials_vjp

N_CUMULANTS = 3


@operator(q="n d", k="m d", directions=None)
def dual_features(q, k, directions, *, cumulants=True):
    """Features from which the query dual is predicted, each centred over its tokens.

    Parameters
    ----------
    q : array (..., n, d)
    k : array (..., m, d)
    directions : array (d, L)
    cumulants : bool
        Whether to append q·mean(k), |q|² and qᵀ Cov(k) q (derived).

    Returns
    -------
    array (..., F, n)
        F = L, or L + 3 with cumulants.

    Raises
    ------
    TypeError, ValueError
        On mixed modules or dtypes, wrong shapes, or non-finite input.

    Notes
    -----
    O(L n (d + log n)), and O((n + m) d²) for the cumulants. Source: METHOD "Slices".

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref.slices import slice_directions
    >>> rng = np.random.default_rng(0)
    >>> q, k = rng.standard_normal((2, 1, 5, 4))
    >>> dual_features(q, k, slice_directions(4, 8)).shape
    (1, 11, 5)
    """
    xp = array_namespace(q, k, directions)
    phi, _ = sliced_potentials(q, k, directions)
    return xp.concat([phi, _cumulant_features(q, k)], axis=-2) if cumulants else phi


@operator(q="n d", k="m d", directions=None)
def dual_features_vjp(q, k, directions, *, cumulants=True):
    """Features and their VJP, ``vjp(d_features) -> (d_q, d_k, d_directions)``.

    Same arguments, errors and cost as `dual_features`. Derived.

    Examples
    --------
    >>> import numpy as np
    >>> q, k = np.ones((2, 1, 3, 2))
    >>> features, vjp = dual_features_vjp(q, k, np.eye(2))
    >>> [d.shape for d in vjp(features)]
    [(1, 3, 2), (1, 3, 2), (2, 2)]
    """
    xp = array_namespace(q, k, directions)
    (phi, psi), potentials_vjp = sliced_potentials_vjp(q, k, directions)
    if not cumulants:
        return phi, lambda d_phi: potentials_vjp((d_phi, xp.zeros_like(psi)))
    n_slices = directions.shape[1]
    extra, cumulants_vjp = _cumulant_features_vjp(q, k)

    def vjp(d_features):
        d_q, d_k, d_directions = potentials_vjp((d_features[..., :n_slices, :], xp.zeros_like(psi)))
        d_q_extra, d_k_extra = cumulants_vjp(d_features[..., n_slices:, :])
        return d_q + d_q_extra, d_k + d_k_extra, d_directions

    return xp.concat([phi, extra], axis=-2), vjp


def _cumulant_features(q, k):
    """(..., n, d), (..., m, d) -> (..., 3, n)."""
    xp = array_namespace(q, k)
    q = q / math.sqrt(q.shape[-1])
    mean = xp.mean(k, axis=-2, keepdims=True)  # (..., 1, d)
    cov = transpose(k - mean) @ (k - mean) / k.shape[-2]  # (..., d, d)
    features = [xp.sum(q * mean, axis=-1), xp.sum(q * q, axis=-1), xp.sum((q @ cov) * q, axis=-1)]
    features = xp.stack(features, axis=-2)
    return features - xp.mean(features, axis=-1, keepdims=True)


def _cumulant_features_vjp(q, k):
    xp = array_namespace(q, k)
    scale = 1 / math.sqrt(q.shape[-1])
    m = k.shape[-2]

    def vjp(d_features):
        d = d_features - xp.mean(d_features, axis=-1, keepdims=True)
        d_dot, d_square, d_cov = (d[..., i, :, None] for i in range(N_CUMULANTS))  # (..., n, 1)
        u = scale * q
        mean = xp.mean(k, axis=-2, keepdims=True)
        centred = k - mean
        cov = transpose(centred) @ centred / m
        d_u = d_dot * mean + 2 * d_square * u + 2 * d_cov * (u @ cov)
        # cov's gradient is sum_i d_i u_i u_iᵀ; what it sends through the mean of k vanishes, k being centred
        d_k = 2 / m * centred @ (transpose(u * d_cov) @ u) + xp.sum(d_dot * u, axis=-2, keepdims=True) / m
        return scale * d_u, d_k

    return _cumulant_features(q, k), vjp
