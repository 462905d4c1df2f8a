"""Features of queries and keys from which the query dual is predicted.

Five families, all but the first optional and derived:

    slices      the L slice potentials (paper)
    cumulants   q·mean(k), |q|² and qᵀ Cov(k) q: ``LSE_j(S_ij)`` to second order in the spread of this sequence's keys
    quadratic   u, u uᵀ and u mean(w)ᵀ, entry by entry, with u and w the queries and keys on a basis of r directions:
                the same expansion where the moments are not measured in the sequence but learned, one a head
    moments     the same with coefficients that follow the sequence's means and covariances (moments.py)
    hidden      units of a trained layer whose inputs are the features before it (mlp.py)

A dual has a free constant, so each feature is centred over the valid tokens of its sequence; padding has features
zero.

Shapes: q (..., n, d), k (..., m, d), directions (d, L) and basis (d, r), either of them with an axis H of heads before;
features Phi (..., F, n).
"""

from __future__ import annotations

import math

from asap_ref.extensions.mlp import hidden_units, hidden_units_vjp
from asap_ref.extensions.moments import count_moments, moment_features, moment_features_vjp
from asap_ref.method.masks import centred, keep_tokens, token_count
from asap_ref.method.slices import check_directions, sliced_potentials, sliced_potentials_vjp
from asap_ref.support.arrays import array_namespace, transpose
from asap_ref.support.contracts import operator

N_CUMULANTS = 3


@operator(q="n d", k="m d", directions=None, basis=None, hidden=(None, None), query_mask="n", key_mask="m")
def dual_features(
    q, k, directions, *, cumulants=True, basis=None, moments=False, hidden=None, query_mask=None, key_mask=None
):
    """Features from which the query dual is predicted, each centred over its valid tokens.

    Parameters
    ----------
    q : array (..., n, d)
    k : array (..., m, d)
    directions : array (d, L) or (H, d, L)
    cumulants : bool
        Whether to append q·mean(k), |q|² and qᵀ Cov(k) q (derived).
    basis : array (d, r) or (H, d, r), optional
        Directions on which the quadratic family is formed (derived); without it there is none.
    moments : bool
        Whether the moment family is formed on that basis too (derived).
    hidden : Hidden(weight (H, U, F'), bias (H, U)), optional
        The layer that makes the hidden family of the first F' features before it (derived); q and k then have an axis
        of heads.
    query_mask, key_mask : boolean arrays (..., n) and (..., m), optional
        True at valid tokens.

    Returns
    -------
    array (..., F, n)
        F = L, and 3 more with cumulants, r + r (r + 1) / 2 + r² more with a basis, 3 r² + r (r + 1) more
        with moments, U more with a hidden layer. Zero at
        masked queries.

    Raises
    ------
    TypeError, ValueError
        On mixed modules or dtypes, wrong shapes, or non-finite input.

    Notes
    -----
    O(L (n + m) (d + log(n + m))), O((n + m) d²) for the cumulants, O(n r (d + r)) for the quadratic and the
    moment family and O(n U F') for the hidden one.
    Source: slices: paper and asap_ref/oracle/README.md, "Slices".

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref.method.slices import slice_directions
    >>> rng = np.random.default_rng(0)
    >>> q, k = rng.standard_normal((2, 1, 5, 4))
    >>> dual_features(q, k, slice_directions(4, 8)).shape
    (1, 11, 5)
    """
    xp = array_namespace(q, k, directions)
    masks = dict(query_mask=query_mask, key_mask=key_mask)
    families = [sliced_potentials(q, k, directions, **masks)[0]]
    if cumulants:
        families.append(_cumulant_features(q, k, **masks))
    if basis is not None:
        families.append(_quadratic_features(q, k, basis, **masks))
        if moments:
            u, w = (_projected(x, basis, mask) for x, mask in ((q, query_mask), (k, key_mask)))
            families.append(moment_features(u, w, **masks))
    features = xp.concat(families, axis=-2) if len(families) > 1 else families[0]
    if hidden is None:
        return features
    return xp.concat([features, hidden_units(features, hidden, mask=query_mask)], axis=-2)


@operator(q="n d", k="m d", directions=None, basis=None, hidden=(None, None), query_mask="n", key_mask="m")
def dual_features_vjp(
    q, k, directions, *, cumulants=True, basis=None, moments=False, hidden=None, query_mask=None, key_mask=None
):
    """Features and their VJP, ``vjp(d_features) -> (d_q, d_k, d_directions)``.

    Same arguments, errors and cost as `dual_features`; the basis and the hidden layer, which are settings, have no
    gradient. Derived.

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
    families, backward = [phi], []  # backward: of the families beside the slices
    if cumulants:
        families.append(_cumulant_features(q, k, **masks))
        backward.append(_cumulant_features_vjp(q, k, **masks))
    if basis is not None:
        families.append(_quadratic_features(q, k, basis, **masks))
        backward.append(_quadratic_features_vjp(q, k, basis, **masks))
        if moments:
            family, family_vjp = _moment_features_vjp(q, k, basis, **masks)
            families.append(family)
            backward.append(family_vjp)
    features = xp.concat(families, axis=-2) if backward else phi
    if hidden is not None:
        units, units_vjp = hidden_units_vjp(features, hidden, mask=query_mask)

    def vjp(d_features):
        if hidden is not None:
            F = features.shape[-2]
            d_features = d_features[..., :F, :] + units_vjp(d_features[..., F:, :])[0]
        start = phi.shape[-2]
        d_q, d_k, d_directions = potentials_vjp((d_features[..., :start, :], xp.zeros_like(psi)))
        for family, family_vjp in zip(families[1:], backward, strict=True):
            stop = start + family.shape[-2]
            d_q_more, d_k_more = family_vjp(d_features[..., start:stop, :])
            d_q, d_k, start = d_q + d_q_more, d_k + d_k_more, stop
        return d_q, d_k, d_directions

    return features if hidden is None else xp.concat([features, units], axis=-2), vjp


def count_features(n_slices, cumulants, rank, moments=False, units=0):
    """F, the number of features.

    Examples
    --------
    >>> count_features(16, True, 0), count_features(16, True, 2)
    (19, 28)
    """
    quadratic = rank + rank * (rank + 1) // 2 + rank * rank + count_moments(rank) * moments
    return n_slices + N_CUMULANTS * cumulants + quadratic + units


# ----------------------------------------------------------------------------------------------- cumulants


def _cumulant_features(q, k, query_mask, key_mask):
    """(..., n, d), (..., m, d) -> (..., 3, n)."""
    xp = array_namespace(q, k)
    u = keep_tokens(q, query_mask) / math.sqrt(q.shape[-1])
    mean, _, cov, _ = key_moments(k, key_mask)
    features = [xp.sum(u * mean, axis=-1), xp.sum(u * u, axis=-1), xp.sum((u @ cov) * u, axis=-1)]
    return centred(xp.stack(features, axis=-2), _of_features(query_mask))


def _cumulant_features_vjp(q, k, query_mask, key_mask):
    xp = array_namespace(q, k)
    scale = 1 / math.sqrt(q.shape[-1])

    def vjp(d_features):
        d = centred(d_features, _of_features(query_mask))
        d_dot, d_square, d_cov = (d[..., i, :, None] for i in range(N_CUMULANTS))  # (..., n, 1)
        u = scale * keep_tokens(q, query_mask)
        mean, spread, cov, m = key_moments(k, key_mask)
        d_u = d_dot * mean + 2 * d_square * u + 2 * d_cov * (u @ cov)
        # cov's gradient is sum_i d_i u_i u_iᵀ; what it sends through the mean of k vanishes, k being centred
        d_k = 2 / m * spread @ (transpose(u * d_cov) @ u) + xp.sum(d_dot * u, axis=-2, keepdims=True) / m
        return scale * d_u, keep_tokens(d_k, key_mask)

    return vjp


def key_moments(k, mask):
    """Mean (..., 1, d), k less its mean (..., m, d), covariance (..., d, d), and m', over valid keys."""
    xp = array_namespace(k)
    k = keep_tokens(k, mask)
    m = k.shape[-2] if mask is None else token_count(k[..., 0], mask)[..., None]  # an integer, or (..., 1, 1)
    mean = xp.ones_like(k[..., None, :, 0]) @ k / m  # a product is the fastest sum of rows
    spread = keep_tokens(k - mean, mask)
    return mean, spread, transpose(spread) @ spread / m, m


# ----------------------------------------------------------------------------------------------- quadratic


def _quadratic_features(q, k, basis, query_mask, key_mask):
    """u, then u_a u_b for a <= b, then u_a w_b: (..., n, d), (..., m, d) -> (..., r + r (r + 1) / 2 + r², n)."""
    xp = array_namespace(q, k, basis)
    u, w = _on_basis(q, k, basis, query_mask, key_mask)
    r = u.shape[-2]
    squares = [u[..., a : a + 1, :] * u[..., a:, :] for a in range(r)]
    mixed = [u * w[..., b : b + 1, :] for b in range(r)]
    return centred(xp.concat([u, *squares, *mixed], axis=-2), _of_features(query_mask))


def _quadratic_features_vjp(q, k, basis, query_mask, key_mask):
    xp = array_namespace(q, k, basis)

    def vjp(d_features):
        d = centred(d_features, _of_features(query_mask))
        u, w = _on_basis(q, k, basis, query_mask, key_mask)
        r = u.shape[-2]
        d_u, start = d[..., :r, :], r
        rows = []  # what the squares send to their first factor, one row of u at a time
        for a in range(r):
            d_square = d[..., start : start + r - a, :]
            rows.append(xp.sum(d_square * u[..., a:, :], axis=-2))
            d_second = d_square * u[..., a : a + 1, :]
            d_u = d_u + xp.concat([xp.zeros_like(u[..., :a, :]), d_second], axis=-2)
            start += r - a
        d_u = d_u + xp.stack(rows, axis=-2)
        d_w = []
        for b in range(r):
            d_mixed = d[..., start + b * r : start + (b + 1) * r, :]
            d_u = d_u + d_mixed * w[..., b : b + 1, :]
            d_w.append(xp.sum(d_mixed * u, axis=(-2, -1)))
        scale, m = q.shape[-1] ** -0.25, token_count(k[..., 0], key_mask)
        d_mean = xp.stack(d_w, axis=-1)[..., None, :] / (m if key_mask is None else m[..., None])  # (..., 1, r)
        d_k = scale * (d_mean @ transpose(basis)) + xp.zeros_like(k)
        return scale * keep_tokens(transpose(d_u) @ transpose(basis), query_mask), keep_tokens(d_k, key_mask)

    return vjp


def _on_basis(q, k, basis, query_mask, key_mask):
    """Queries on the basis, (..., r, n), and the mean key on it, (..., r, 1); scaled as slices are."""
    check_directions("basis", basis, q)
    scale = q.shape[-1] ** -0.25
    mean, *_ = key_moments(k, key_mask)
    project = scale * transpose(basis)
    return project @ transpose(keep_tokens(q, query_mask)), project @ transpose(mean)


def _moment_features_vjp(q, k, basis, query_mask, key_mask):
    u, w = (_projected(x, basis, mask) for x, mask in ((q, query_mask), (k, key_mask)))
    features, of_projected = moment_features_vjp(u, w, query_mask=query_mask, key_mask=key_mask)
    project = q.shape[-1] ** -0.25 * transpose(basis)
    return features, lambda d_features: tuple(transpose(d) @ project for d in of_projected(d_features))


def _projected(x, basis, mask):
    """Tokens on the basis, scaled as slices are: (..., n, d) -> (..., r, n)."""
    return x.shape[-1] ** -0.25 * transpose(basis) @ transpose(keep_tokens(x, mask))


def _of_features(mask):
    """(..., n) -> (..., 1, n): one mask for all features."""
    return mask if mask is None else mask[..., None, :]
