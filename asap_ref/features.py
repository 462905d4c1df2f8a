"""Features of queries and keys from which the query dual is predicted.

The L centred slice potentials (paper) and, optionally, three second-cumulant features (derived): expanding
``LSE_j(S_ij)`` to second order in the spread of the keys gives q·mean(k) and qᵀ Cov(k) q, and |q|² stands for
what the expansion leaves. A dual has a free constant, so each feature is centred over the valid tokens of its
sequence; padding has features zero.

Shapes: q (..., n, d), k (..., m, d), directions (d, L) or (H, d, L), features Phi (..., F, n).
"""

from __future__ import annotations

import math

from asap_ref.arrays import array_namespace, transpose
from asap_ref.contracts import operator
from asap_ref.masks import centred, keep_tokens, token_count
from asap_ref.slices import sliced_potentials, sliced_potentials_vjp

N_CUMULANTS = 3


@operator(q="n d", k="m d", directions=None, query_mask="n", key_mask="m")
def dual_features(q, k, directions, *, cumulants=True, query_mask=None, key_mask=None):
    """Features from which the query dual is predicted, each centred over its valid tokens.

    Parameters
    ----------
    q : array (..., n, d)
    k : array (..., m, d)
    directions : array (d, L) or (H, d, L)
    cumulants : bool
        Whether to append q·mean(k), |q|² and qᵀ Cov(k) q (derived).
    query_mask, key_mask : boolean arrays (..., n) and (..., m), optional
        True at valid tokens.

    Returns
    -------
    array (..., F, n)
        F = L, or L + 3 with cumulants. Zero at masked queries.

    Raises
    ------
    TypeError, ValueError
        On mixed modules or dtypes, wrong shapes, or non-finite input.

    Notes
    -----
    O(L (n + m) (d + log(n + m))), and O((n + m) d²) for the cumulants. Source: METHOD "Slices".

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
    masks = dict(query_mask=query_mask, key_mask=key_mask)
    phi, _ = sliced_potentials(q, k, directions, **masks)
    return xp.concat([phi, _cumulant_features(q, k, **masks)], axis=-2) if cumulants else phi


@operator(q="n d", k="m d", directions=None, query_mask="n", key_mask="m")
def dual_features_vjp(q, k, directions, *, cumulants=True, query_mask=None, key_mask=None):
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
    masks = dict(query_mask=query_mask, key_mask=key_mask)
    (phi, psi), potentials_vjp = sliced_potentials_vjp(q, k, directions, **masks)
    if not cumulants:
        return phi, lambda d_phi: potentials_vjp((d_phi, xp.zeros_like(psi)))
    n_slices = directions.shape[-1]
    extra, cumulants_vjp = _cumulant_features_vjp(q, k, **masks)

    def vjp(d_features):
        d_q, d_k, d_directions = potentials_vjp((d_features[..., :n_slices, :], xp.zeros_like(psi)))
        d_q_extra, d_k_extra = cumulants_vjp(d_features[..., n_slices:, :])
        return d_q + d_q_extra, d_k + d_k_extra, d_directions

    return xp.concat([phi, extra], axis=-2), vjp


def _cumulant_features(q, k, query_mask, key_mask):
    """(..., n, d), (..., m, d) -> (..., 3, n)."""
    xp = array_namespace(q, k)
    u = keep_tokens(q, query_mask) / math.sqrt(q.shape[-1])
    mean, _, cov, _ = _moments(k, key_mask)
    features = [xp.sum(u * mean, axis=-1), xp.sum(u * u, axis=-1), xp.sum((u @ cov) * u, axis=-1)]
    return centred(xp.stack(features, axis=-2), _of_features(query_mask))


def _cumulant_features_vjp(q, k, query_mask, key_mask):
    xp = array_namespace(q, k)
    scale = 1 / math.sqrt(q.shape[-1])

    def vjp(d_features):
        d = centred(d_features, _of_features(query_mask))
        d_dot, d_square, d_cov = (d[..., i, :, None] for i in range(N_CUMULANTS))  # (..., n, 1)
        u = scale * keep_tokens(q, query_mask)
        mean, spread, cov, m = _moments(k, key_mask)
        d_u = d_dot * mean + 2 * d_square * u + 2 * d_cov * (u @ cov)
        # cov's gradient is sum_i d_i u_i u_iᵀ; what it sends through the mean of k vanishes, k being centred
        d_k = 2 / m * spread @ (transpose(u * d_cov) @ u) + xp.sum(d_dot * u, axis=-2, keepdims=True) / m
        return scale * d_u, keep_tokens(d_k, key_mask)

    return _cumulant_features(q, k, query_mask, key_mask), vjp


def _moments(k, mask):
    """Mean (..., 1, d), k less its mean (..., m, d), covariance (..., d, d), and m', over valid keys."""
    xp = array_namespace(k)
    k = keep_tokens(k, mask)
    m = k.shape[-2] if mask is None else token_count(k[..., 0], mask)[..., None]  # an integer, or (..., 1, 1)
    mean = xp.sum(k, axis=-2, keepdims=True) / m
    spread = keep_tokens(k - mean, mask)
    return mean, spread, transpose(spread) @ spread / m, m


def _of_features(mask):
    """(..., n) -> (..., 1, n): one mask for all features."""
    return mask if mask is None else mask[..., None, :]
