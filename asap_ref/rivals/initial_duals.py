"""Query duals that nobody had to learn: the rivals of the amortizer, and attention from them.

    zero       f = 0
    gaussian   the dual of the two normal distributions that have the mean and covariance of queries and keys
    sorting    the sum of the exact one-dimensional potentials along the coordinates of the head

Each is followed by the same two-sided transform as ASAP's prediction, so that all cost one Sinkhorn iteration.
Warm starts from Gaussians and sorting are Thornton & Cuturi's (2022). Theirs are for the squared distance; with
the bilinear cost here the |x|² / 2 falls away. Ours (derived): the *entropic* Gaussian dual in place of the
unregularised one, and sorting in more than one dimension, where it is exact only if coordinates do not interact.

Gaussian. With x = q / sqrt(d), y = k, means a and b, covariances Sa and Sb,

    f_i = -x_i·b - (x_i - a)ᵀ A (x_i - a) / 2,      A Sa A + epsilon A = Sb,
    A = R h(R Sa R) R,  R = Sb^(1/2),  h(s) = 1 / (epsilon / 2 + sqrt(s + epsilon² / 4)).

The equation for A is that of the entropic plan between normals (Janati et al. 2020). For large epsilon A is
Sb / epsilon: the cumulant features of features.py are the first terms of this dual.

Shapes: q (..., n, d), k (..., m, d), v (..., m, p), duals (..., n).
"""

from __future__ import annotations

import math

from asap_ref.fast.from_dual import attention_from_dual
from asap_ref.fast.threads import over_problems
from asap_ref.method import attention as readable
from asap_ref.method.slices import sliced_potentials_vjp
from asap_ref.support.arrays import array_namespace, transpose
from asap_ref.support.contracts import fast_form_of, operator, vjp_of
from asap_ref.support.masks import without_padding
from asap_ref.support.settings import CHOICES

STARTS = CHOICES["start"]
RIDGE = 1e-5  # added to Sb, relative to its mean variance: the gradient divides by Sb


@operator
def initial_dual(q: "... n d", k: "... m d", *, start="gaussian", epsilon=1.0, query_mask=None, key_mask=None):
    """Query dual from a closed form, up to a constant.

    O(n) for zero, O((n + m) d² + d³) for Gaussian, O(d (n + m) log(n + m)) for sorting. Source: Thornton & Cuturi
    2022; the changes to it are at the top of the file.

    Parameters
    ----------
    start : {"zero", "gaussian", "sorting"}
        Sorting is the limit epsilon -> 0 and does not use epsilon.

    Returns
    -------
    array (..., n)
        Zero at masked queries.

    Examples
    --------
    >>> import numpy as np
    >>> q, k = np.random.default_rng(0).standard_normal((2, 500, 1))
    >>> from asap_ref import attention_scores, sinkhorn
    >>> exact = sinkhorn(attention_scores(q, k), n_iter=200).query
    >>> bool(np.corrcoef(initial_dual(q, k), exact)[0, 1] > 0.999)
    True
    """
    return initial_dual_vjp(q, k, start=start, epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)[0]


@vjp_of(initial_dual)
def initial_dual_vjp(q, k, *, start="gaussian", epsilon=1.0, query_mask=None, key_mask=None):
    """Closed-form query dual and its VJP, ``vjp(df) -> (dq, dk)``.

    Examples
    --------
    >>> import numpy as np
    >>> q, k = np.random.default_rng(0).standard_normal((2, 5, 3))
    >>> f, vjp = initial_dual_vjp(q, k)
    >>> [d.shape for d in vjp(f)]
    [(5, 3), (5, 3)]
    """
    xp = array_namespace(q, k)
    q, k, _ = without_padding(q, k, k, query_mask, key_mask)
    if start == "zero":
        return xp.zeros_like(q[..., 0]), lambda df: (xp.zeros_like(q), xp.zeros_like(k))
    if start == "sorting":
        return _sorting_vjp(q, k, query_mask, key_mask)
    return _gaussian_vjp(q, k, epsilon, query_mask, key_mask)


def _sorting_vjp(q, k, query_mask, key_mask):
    """The coordinates are an orthonormal basis, so their slices sum to the scores."""
    xp = array_namespace(q, k)
    given = {"query_mask": query_mask, "key_mask": key_mask}
    masks = {name: mask for name, mask in given.items() if mask is not None}
    basis = xp.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    (phi, psi), potentials_vjp = sliced_potentials_vjp(q, k, basis, **masks)  # (..., d, n)

    def vjp(df):
        d_phi = xp.broadcast_to(df[..., None, :], phi.shape)
        return potentials_vjp((d_phi, xp.zeros_like(psi)))[:2]

    return xp.sum(phi, axis=-2), vjp


def _gaussian_vjp(q, k, epsilon, query_mask, key_mask):
    xp = array_namespace(q, k)
    scale = 1 / math.sqrt(q.shape[-1])
    x, y = scale * q, k
    wx, wy = _weights(x, query_mask), _weights(y, key_mask)  # (..., n, 1), (..., m, 1), of sum one
    b = xp.sum(wy * y, axis=-2, keepdims=True)  # (..., 1, d)
    u, z = x - xp.sum(wx * x, axis=-2, keepdims=True), y - b
    Sa, Sb = transpose(u) @ (wx * u), transpose(z) @ (wy * z)  # (..., d, d)
    A, gradients = _entropic_map_vjp(Sa, Sb, epsilon)
    keep = 1.0 if query_mask is None else xp.astype(query_mask, q.dtype)
    uA = u @ A
    f = -keep * (xp.sum(x * b, axis=-1) + 0.5 * xp.sum(uA * u, axis=-1))

    def vjp(df):
        df = (keep * df)[..., None]  # (..., n, 1)
        dSa, dSb = gradients(-0.5 * transpose(u) @ (df * u))
        du = -df * uA + 2 * wx * (u @ dSa)
        dx = du - wx * xp.sum(du, axis=-2, keepdims=True) - df * b
        db = -xp.sum(df * x, axis=-2, keepdims=True)
        return scale * dx, wy * (
            2 * z @ dSb + db
        )  # what dSb sends through the mean of k vanishes, z being centred

    return f, vjp


def _entropic_map_vjp(Sa, Sb, epsilon):
    """A with A Sa A + epsilon A = Sb, and ``vjp(dA) -> (dSa, dSb)``, all symmetric (..., d, d).

    Differentiating the equation, K δA + δA Kᵀ = δSb - A δSa A with K = A Sa + epsilon / 2. The columns of W = R U,
    U the eigenvectors of R Sa R, are eigenvectors of K with eigenvalues r = sqrt(s + epsilon² / 4). So the adjoint
    equation Kᵀ X + X K = dA is a division in the basis W; then dSb = X, dSa = -A X A.
    """
    xp = array_namespace(Sa, Sb)
    d = Sa.shape[-1]
    identity = xp.eye(d, dtype=Sa.dtype, device=Sa.device)
    variance = xp.sum(Sb * identity, axis=(-2, -1))[..., None, None] / d
    eigenvalues, V = _eigh(Sb + RIDGE * variance * identity)
    positive = eigenvalues > 0  # all of them, unless all keys are one
    root = xp.sqrt(xp.where(positive, eigenvalues, xp.zeros_like(eigenvalues)))
    inverse = xp.where(positive, 1 / xp.where(positive, root, xp.ones_like(root)), xp.zeros_like(root))
    R = (V * root[..., None, :]) @ transpose(V)
    s, U = _eigh(R @ Sa @ R)
    r = xp.sqrt(xp.where(s > 0, s, xp.zeros_like(s)) + epsilon**2 / 4)
    W = R @ U
    A = (W / (epsilon / 2 + r)[..., None, :]) @ transpose(W) + 0 * (Sa + Sb)  # not finite where they are not

    def vjp(dA):
        W_inverse = transpose(U) @ (V * inverse[..., None, :]) @ transpose(V)
        X = (transpose(W) @ dA @ W) / (r[..., :, None] + r[..., None, :])
        X = transpose(W_inverse) @ X @ W_inverse
        trace = xp.sum(X * identity, axis=(-2, -1))[..., None, None]
        return -A @ X @ A, X + RIDGE / d * trace * identity

    return A, vjp


def _eigh(S):
    """Eigenvalues and eigenvectors; infinity and NaN, which make LAPACK give up, count as zero."""
    xp = array_namespace(S)
    return xp.linalg.eigh(xp.where(xp.isfinite(S), S, xp.zeros_like(S)))


def _weights(x, mask):
    """1 / n' at valid tokens, 0 at the others: (..., n, 1)."""
    xp = array_namespace(x)
    if mask is None:
        return xp.ones_like(x[..., :1]) / x.shape[-2]
    valid = xp.astype(xp.broadcast_to(mask, x.shape[:-1])[..., None], x.dtype)
    count = xp.sum(valid, axis=-2, keepdims=True)
    return valid / xp.where(count > 0, count, xp.ones_like(count))


# --------------------------------------------------------------------------------------------------- attention


@operator
def initial_attention(
    q: "... n d", k: "... m d", v: "... m p", *, start="gaussian", epsilon=1.0, query_mask=None, key_mask=None
):
    """Attention from a closed-form dual and its two-sided transform: ASAP without an amortizer.

    One Sinkhorn iteration, O(n m (d + p)), and the start. Source: as `initial_dual`.

    Parameters
    ----------
    start
        As in `initial_dual`.

    Returns
    -------
    array (..., n, p)
        Rows of the plan are exact; columns are as good as the start.

    Examples
    --------
    >>> import numpy as np
    >>> q, k = np.random.default_rng(0).standard_normal((2, 6, 3))
    >>> initial_attention(q, k, np.ones((6, 1)))[:, 0].round(6)
    array([1., 1., 1., 1., 1., 1.])
    """
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    return readable.attention_from_dual(q, k, v, initial_dual(q, k, start=start, **settings), **settings)


@vjp_of(initial_attention)
def initial_attention_vjp(q, k, v, *, start="gaussian", epsilon=1.0, query_mask=None, key_mask=None):
    """Attention from a closed-form dual and its VJP, ``vjp(d_out) -> (dq, dk, dv)``. Derived.

    Examples
    --------
    >>> import numpy as np
    >>> q, k = np.random.default_rng(0).standard_normal((2, 6, 3))
    >>> out, vjp = initial_attention_vjp(q, k, k, start="sorting")
    >>> [d.shape for d in vjp(out)]
    [(6, 3), (6, 3), (6, 3)]
    """
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    dual, start_vjp = initial_dual_vjp(q, k, start=start, **settings)
    return readable.attention_from_dual_vjp(q, k, v, dual, start_vjp, **settings)


@fast_form_of(initial_attention)
def fast_initial_attention(q, k, v, *, start="gaussian", epsilon=1.0, query_mask=None, key_mask=None):
    """Product, exponential, product (fast/from_dual.py)."""

    def part(q, k, v, query_mask, key_mask):
        q, k, v = without_padding(q, k, v, query_mask, key_mask)
        f = initial_dual(q, k, start=start, epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
        return attention_from_dual(q, k, v, f, query_mask, key_mask, epsilon=epsilon)

    return over_problems(part, [q, k, v], [query_mask, key_mask])
