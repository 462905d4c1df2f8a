"""Features in which the quadratic form of a query follows the means and covariances of its sequence (derived).

For normal distributions of queries and keys the dual is a quadratic form of the query whose matrix is a function of
both covariances, and whose linear term is one of both means (initial_duals.py). The quadratic features have a
matrix that is the same for all sequences. These let it vary, to first order, entry by entry:

    u_a s_b           for each entry s_b of mean(u), diag Cov(w) and diag Cov(u)
    u_a u_b Cov(w)_ab    for a <= b
    u_a u_b Cov(u)_ab    for a <= b

At inference they fold into one quadratic form a sequence, and cost next to nothing (prediction.py).

Shapes: u (..., r, n) queries and w (..., r, m) keys on a basis, zero at padding; features (..., 3 r² + r (r + 1), n).
"""

from __future__ import annotations

from asap_ref.method.masks import centred, keep, token_count
from asap_ref.support.arrays import array_namespace, transpose


def count_moments(rank):
    """Count the features.

    Examples
    --------
    >>> count_moments(2)
    18
    """
    return 3 * rank * rank + rank * (rank + 1)


def moment_features(u, w, *, query_mask=None, key_mask=None):
    """Features of queries u and keys w on the basis, centred over the valid queries.

    Examples
    --------
    >>> import numpy as np
    >>> moment_features(np.ones((2, 5)), np.ones((2, 7))).shape
    (18, 5)
    """
    return moment_features_vjp(u, w, query_mask=query_mask, key_mask=key_mask)[0]


def moment_features_vjp(u, w, *, query_mask=None, key_mask=None):
    """Features and their VJP, ``vjp(d_features) -> (d_u, d_w)``.

    Examples
    --------
    >>> import numpy as np
    >>> features, vjp = moment_features_vjp(np.ones((2, 5)), np.ones((2, 7)))
    >>> [d.shape for d in vjp(features)]
    [(2, 5), (2, 7)]
    """
    xp = array_namespace(u, w)
    r, n = u.shape[-2:]
    of_queries, of_keys = (None if mask is None else mask[..., None, :] for mask in (query_mask, key_mask))
    mean, z, Cu, n_ = _moments(u, of_queries)
    _, y, Cw, m_ = _moments(w, of_keys)
    identity = xp.eye(r, dtype=u.dtype, device=u.device)
    s = xp.concat(
        [mean, *(xp.sum(C * identity, axis=-1, keepdims=True) for C in (Cw, Cu))], axis=-2
    )  # (..., 3r, 1)
    bilinear = xp.reshape(s[..., :, None, :] * u[..., None, :, :], (*u.shape[:-2], 3 * r * r, n))
    squares = [C[..., a, a:, None] * u[..., a : a + 1, :] * u[..., a:, :] for C in (Cw, Cu) for a in range(r)]

    def vjp(d_features):
        d = centred(d_features, of_queries)
        D = xp.reshape(d[..., : 3 * r * r, :], (*d.shape[:-2], 3 * r, r, n))
        d_u = xp.sum(D * s[..., :, None, :], axis=-3)
        d_s = xp.sum(D * u[..., None, :, :], axis=(-2, -1))  # (..., 3r)
        dC, start = [], 3 * r * r
        for i, C in enumerate((Cw, Cu)):
            upper, start = _upper(d, start, r)  # (..., r, r, n): the feature of a and b, a <= b
            both = upper + xp.moveaxis(upper, -3, -2)
            d_u = d_u + xp.sum(both * C[..., None] * u[..., None, :, :], axis=-2)
            of_diagonal = d_s[..., (i + 1) * r : (i + 2) * r, None] * identity
            dC.append(xp.sum(upper * u[..., :, None, :] * u[..., None, :, :], axis=-1) + of_diagonal)
        # what a covariance sends through the mean vanishes, z and y being centred
        d_w, d_spread = ((dc + transpose(dc)) @ x / N for dc, x, N in zip(dC, (y, z), (m_, n_), strict=True))
        return keep(d_u + d_s[..., :r, None] / n_ + d_spread, of_queries), keep(d_w, of_keys)

    return centred(xp.concat([bilinear, *squares], axis=-2), of_queries), vjp


def _moments(x, mask):
    """Mean (..., r, 1), x less its mean (..., r, n), covariance (..., r, r), and n', over valid tokens."""
    xp = array_namespace(x)
    count = token_count(x, mask)  # an integer, or (..., 1, 1)
    mean = xp.sum(x, axis=-1, keepdims=True) / count
    spread = keep(x - mean, mask)
    return mean, spread, spread @ transpose(spread) / count, count


def _upper(d, start, r):
    """Rows of d (..., F, n) from ``start`` on, one a pair a <= b, as a triangle (..., r, r, n); and where they end."""
    xp = array_namespace(d)
    rows = []
    for a in range(r):
        stop = start + r - a
        rows.append(xp.concat([xp.zeros_like(d[..., :a, :]), d[..., start:stop, :]], axis=-2))
        start = stop
    return xp.stack(rows, axis=-3), start
