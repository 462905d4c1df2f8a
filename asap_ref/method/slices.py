"""Slices: directions on which queries and keys become samples on the line, and the potentials there.

A *slice* is a direction theta in R^d; queries and keys are projected on it after scaling each by d^(-1/4) (ours):

    x_li = d^(-1/4) theta_lᵀ q_i,    y_lj = d^(-1/4) theta_lᵀ k_j,    sum_l x_li y_lj = S_ij  on an orthonormal basis.

Each slice is a transport problem in one dimension, whose Kantorovich potentials are exact (potentials.py).

Why they tell of the dual (ours): each slice has phi_li + psi_lj <= -x_li y_lj. On an orthonormal basis their sums over
l are then, up to a constant, at most -S_ij: a feasible dual of the whole problem at epsilon = 0, if not the best. How
good each slice is, and what epsilon does, is left to the weights (amortizer.py).

Shapes: q (..., n, d), k (..., m, d), directions (d, L), or (H, d, L) where each head has its own.
"""

from __future__ import annotations

import math

import numpy as np

from asap_ref.method.potentials import kantorovich_potentials_1d, kantorovich_potentials_1d_vjp
from asap_ref.support.arrays import array_namespace, transpose
from asap_ref.support.contracts import operator, vjp_of
from asap_ref.support.masks import centred, keep_tokens, of_features
from asap_ref.support.settings import check_choice, check_count, check_directions, check_seed


def slice_directions(dim, n_slices, *, kind="orthogonal", seed=0):
    """Unit directions on which queries and keys are projected.

    O(d² L). Sliced transport projects on random directions (paper); the orthogonal blocks are the default (ours).

    Parameters
    ----------
    dim, n_slices : int
        The dimension d of a head, and the number L of directions.
    kind : {"orthogonal", "gaussian"}
        Blocks of d orthonormal directions, which cover the space more evenly, or independent ones, each uniform.
    seed : int or numpy.random.Generator

    Returns
    -------
    numpy.ndarray (dim, n_slices), float64
        Columns of length one. Always NumPy, so that every array module sees the same directions.

    Raises
    ------
    TypeError, ValueError
        If dim or n_slices is not a positive integer or the kind is unknown.

    Examples
    --------
    >>> theta = slice_directions(4, 4)
    >>> np.allclose(theta.T @ theta, np.eye(4))
    True
    """
    check_count(dim, "dim", "slice_directions", least=1)
    check_count(n_slices, "n_slices", "slice_directions", least=1)
    check_choice(kind, "kind", "slice_directions", ("orthogonal", "gaussian"))
    seed = check_seed(seed, "slice_directions")
    gaussian = np.random.default_rng(seed).standard_normal((math.ceil(n_slices / dim), dim, dim))
    if kind == "orthogonal":
        blocks, upper = np.linalg.qr(gaussian)
        # the signs that make QR unique, hence the directions uniform on the sphere
        blocks = blocks * np.sign(np.diagonal(upper, axis1=-2, axis2=-1))[:, None, :]
    else:
        blocks = gaussian / np.linalg.norm(gaussian, axis=-2, keepdims=True)
    return np.concatenate(list(blocks), axis=-1)[:, :n_slices]


@operator
def sliced_potentials(q: "... n d", k: "... m d", directions: "d L | H d L", *, query_mask=None, key_mask=None):
    """Kantorovich potentials of queries and keys on each slice; phi are the features of ASAP.

    O(L (n + m) (d + log(n + m))). Sliced dual projection (paper), scaled by d^(-1/4) (ours); oracle, "Slices".

    Parameters
    ----------
    directions
        As from `slice_directions`, converted to the module and dtype of q; where each of H heads has its own, q has H.

    Returns
    -------
    (phi, psi) : arrays (..., L, n) and (..., L, m)
        Potentials for the bilinear cost (ours), each of mean zero over its valid tokens.

    Examples
    --------
    >>> q, k = np.random.default_rng(0).standard_normal((2, 2, 5, 8))
    >>> phi, psi = sliced_potentials(q, k, slice_directions(8, 3))
    >>> phi.shape
    (2, 3, 5)
    """
    x, y, masks = _samples(q, k, directions, query_mask, key_mask)
    phi, psi = kantorovich_potentials_1d(x, y, **masks)
    return phi, centred(psi, masks["y_mask"])


@vjp_of(sliced_potentials)
def sliced_potentials_vjp(q, k, directions, *, query_mask=None, key_mask=None):
    """Sliced potentials and their VJP, ``vjp((d_phi, d_psi)) -> (dq, dk, d_directions)`` (ours).

    Examples
    --------
    >>> potentials, vjp = sliced_potentials_vjp(np.ones((1, 2, 2)), np.ones((1, 2, 2)), np.eye(2))
    >>> [d.shape for d in vjp(potentials)]
    [(1, 2, 2), (1, 2, 2), (2, 2)]
    """
    xp = array_namespace(q, k, directions)
    x, y, masks = _samples(q, k, directions, query_mask, key_mask)
    (phi, psi), potentials_vjp = kantorovich_potentials_1d_vjp(x, y, **masks)

    def vjp(cotangent):
        d_phi, d_psi = cotangent
        dx, dy = potentials_vjp((d_phi, centred(d_psi, masks["y_mask"])))  # (..., L, n), (..., L, m)
        scale = q.shape[-1] ** -0.25
        dq, dk = (scale * (transpose(d) @ transpose(directions)) for d in (dx, dy))
        tokens = keep_tokens(q, query_mask), keep_tokens(k, key_mask)
        d_directions = scale * transpose(dx @ tokens[0] + dy @ tokens[1])  # (..., d, L), one per problem
        shared = tuple(range(d_directions.ndim - directions.ndim))
        return dq, dk, xp.sum(d_directions, axis=shared)

    return (phi, centred(psi, masks["y_mask"])), vjp


def _samples(q, k, directions, query_mask, key_mask):
    """Queries and keys on the line, x (..., L, n) and y (..., L, m), and masks (..., 1, n) and (..., 1, m)."""
    check_directions("directions", directions, q)
    d = q.shape[-1]
    x, y = (
        d**-0.25 * (transpose(directions) @ transpose(keep_tokens(tokens, mask)))
        for tokens, mask in ((q, query_mask), (k, key_mask))
    )
    return x, y, dict(x_mask=of_features(query_mask), y_mask=of_features(key_mask))
