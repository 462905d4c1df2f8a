"""Sliced-transport attention (ESPFormer): sort on every slice, match equal ranks, average the plans.

    x_l, y_l = d^(-1/2) (q theta_l, k theta_l)             slice l; theta_l the coordinates of the head by default
    A, B     = soft_sort(x_l), soft_sort(y_l)              ranks x tokens
    G_l      = Aᵀ W B                                      plan of the slice; W matches ranks, identity if n' = m'
    w        = softmax_l(-beta sum_ij D_ij (G_l)_ij)       slices that transport cheaply count more
    out      = sum_l w_l G_l v

D are the Euclidean distances of the scaled queries and keys. No iteration, but an n x n matrix a slice, three
times over (A, B and G), and products of n³ operations. The columns of a soft permutation do not quite sum to
one, so neither do the rows and columns of a plan; with hard sorting both marginals are exact.

Choices. From the published code: scaling, squared distances in the sort, the sum (not the mean) of D G, so that
beta acts more sharply on longer sequences. Ours (derived): for n' != m' the code is given a matrix that
interpolates between the two sorted grids; we take the quantile coupling, W_rs = n' |[r/n', (r+1)/n'] ∩
[s/m', (s+1)/m']|, so that hard sorting gives the optimal plan of the slice with exact marginals. Masks are exact
as well: padding has no rank.

Shapes: q (..., n, d), k (..., m, d), v (..., m, p), directions (d, L) or (H, d, L), slices (..., L, n).
"""

from __future__ import annotations

from asap_ref.fast.threads import over_problems, over_problems_vjp
from asap_ref.rivals.soft_sort import soft_sort_vjp
from asap_ref.support.arrays import array_namespace, softmax, transpose
from asap_ref.support.contracts import operator, vjp_of
from asap_ref.support.masks import column_mass, without_padding
from asap_ref.support.settings import check_count, check_positive


@operator
def sliced_attention(
    q: "... n d",
    k: "... m d",
    v: "... m p",
    directions: "d L | H d L" = None,
    *,
    temperature=0.001,
    inverse_temperature=1.0,
    hard=False,
    slices_at_once=None,
    query_mask=None,
    key_mask=None,
):
    """Sliced-transport attention with soft sorting, as ESPFormer has it.

    O(L n m min(n, m)) time. Source: Shahbazi et al. 2025 (ESPFormer) and its code;
    asap_ref/oracle/README.md, "Sliced-transport attention".

    Parameters
    ----------
    directions
        Slices, for all heads or for each. The coordinates of the head when not given: the projections that
        make queries and keys then learn the slices.
    temperature : float
        t of the soft sort.
    inverse_temperature : float
        beta >= 0; 0 is the mean over slices. The published experiments use 0.1 to 10.
    hard : bool
        Sort exactly, the limit t -> 0.
    slices_at_once : int, optional
        How many slices to hold in memory: all when not given.

    Returns
    -------
    array (..., n, p)

    Examples
    --------
    >>> import numpy as np
    >>> q = np.asarray([[0.0], [1.0], [2.0]])
    >>> sliced_attention(q, q[::-1], np.eye(3), hard=True)  # with v = I the output is the plan itself
    array([[0., 0., 1.],
           [0., 1., 0.],
           [1., 0., 0.]])
    """
    settings = _settings(temperature, inverse_temperature, hard, slices_at_once)

    def part(x, y, q, k, v, query_mask, key_mask):
        xp = array_namespace(q)
        D = _distances(q, k)
        W = _rank_coupling(D, query_mask, key_mask)
        costs, outs = [], []
        for group in _groups(x, slices_at_once):
            G, _ = _slice_plans_vjp(x[..., group], y[..., group], W, query_mask, key_mask, **settings)
            costs.append(xp.sum(D[..., None, :, :] * G, axis=(-2, -1)))  # (..., l)
            outs.append(G @ v[..., None, :, :])  # (..., l, n, p)
        w = softmax(-inverse_temperature * xp.concat(costs, axis=-1), axis=-1)
        return xp.sum(w[..., None, None] * xp.concat(outs, axis=-3), axis=-3)

    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    arrays = [_project(q, directions), _project(k, directions), q, k, v]
    return over_problems(part, arrays, [query_mask, key_mask])


@vjp_of(sliced_attention)
def sliced_attention_vjp(
    q,
    k,
    v,
    directions=None,
    *,
    temperature=0.001,
    inverse_temperature=1.0,
    hard=False,
    slices_at_once=None,
    query_mask=None,
    key_mask=None,
):
    """Sliced-transport attention and its VJP, ``vjp(d_out) -> (dq, dk, dv)``, and d_directions if given.

    With the plan P = sum_l w_l G_l and c_l = sum D G_l:

        dw_l = <d_out, G_l v>,   dc = -beta w (dw - sum_l w_l dw_l)
        dG_l = w_l d_out vᵀ + dc_l D,   dD = sum_l dc_l G_l,   dv = Pᵀ d_out

    Without ``slices_at_once`` the soft permutations and plans of all slices are kept for the backward pass, as
    automatic differentiation would: O(L n²) memory. With it they are formed again, group by group: O(n²) memory
    for a third more products, and up to twice the time (measured). Derived.

    Examples
    --------
    >>> import numpy as np
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 5, 4))
    >>> out, vjp = sliced_attention_vjp(q, k, v, temperature=0.1)
    >>> [d.shape for d in vjp(out)]
    [(5, 4), (5, 4), (5, 4)]
    """
    settings = _settings(temperature, inverse_temperature, hard, slices_at_once)
    beta = float(inverse_temperature)

    def part(x, y, q, k, v, query_mask, key_mask):
        xp = array_namespace(q)
        D = _distances(q, k)
        W = _rank_coupling(D, query_mask, key_mask)
        groups = _groups(x, slices_at_once)
        costs, outs, kept = [], [], []

        def plans(group):
            return _slice_plans_vjp(x[..., group], y[..., group], W, query_mask, key_mask, **settings)

        for group in groups:
            G, plans_vjp = plans(group)
            costs.append(xp.sum(D[..., None, :, :] * G, axis=(-2, -1)))
            outs.append(G @ v[..., None, :, :])
            if slices_at_once is None:
                kept.append((G, plans_vjp))
            del G, plans_vjp  # else the last group would outlive the loop
        w = softmax(-beta * xp.concat(costs, axis=-1), axis=-1)  # (..., L)
        outs = xp.concat(outs, axis=-3)  # (..., L, n, p)

        def vjp(d_out):
            dw = xp.sum(outs * d_out[..., None, :, :], axis=(-2, -1))
            dc = -beta * w * (dw - xp.sum(w * dw, axis=-1, keepdims=True))
            dP = d_out @ transpose(v)  # (..., n, m)
            P, dD, dx, dy = xp.zeros_like(D), xp.zeros_like(D), [], []
            for i, group in enumerate(groups):
                G, plans_vjp = kept[i] if kept else plans(group)
                w_l, dc_l = w[..., group, None, None], dc[..., group, None, None]
                P = P + xp.sum(w_l * G, axis=-3)
                dD = dD + xp.sum(dc_l * G, axis=-3)
                for total, d in zip(
                    (dx, dy), plans_vjp(w_l * dP[..., None, :, :] + dc_l * D[..., None, :, :]), strict=True
                ):
                    total.append(d)
            dq, dk = _distances_vjp(q, k, D, dD)
            return xp.concat(dx, axis=-1), xp.concat(dy, axis=-1), dq, dk, transpose(P) @ d_out

        return xp.sum(w[..., None, None] * outs, axis=-3), vjp

    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    arrays = [_project(q, directions), _project(k, directions), q, k, v]
    out, part_vjp = over_problems_vjp(part, arrays, [query_mask, key_mask])

    def vjp(d_out):
        dx, dy, dq, dk, dv = part_vjp(d_out)
        dq_slices, d_directions_q = _project_vjp(q, directions, dx)
        dk_slices, d_directions_k = _project_vjp(k, directions, dy)
        gradients = (dq + dq_slices, dk + dk_slices, dv)
        return gradients if directions is None else (*gradients, d_directions_q + d_directions_k)

    return out, vjp


def _settings(temperature, inverse_temperature, hard, slices_at_once):
    check_positive(inverse_temperature, "inverse_temperature", "sliced_attention", or_zero=True)
    if slices_at_once is not None:
        check_count(slices_at_once, "slices_at_once", "sliced_attention", least=1)
    return {"temperature": check_positive(temperature, "temperature", "sliced_attention"), "hard": hard}


def _groups(x, slices_at_once):
    """Cut the slices of x (..., n, L) into groups."""
    L = x.shape[-1]
    step = slices_at_once or L
    return [slice(i, min(i + step, L)) for i in range(0, L, step)]


# ----------------------------------------------------------------------------------------- slices and their plans


def _project(tokens, directions):
    """(..., n, d), (..., d, L) -> (..., n, L), scaled by d^(-1/2) as in the source."""
    d = tokens.shape[-1]
    if directions is None:
        return d**-0.5 * tokens
    if directions.ndim < 2 or directions.shape[-2] != d or directions.ndim > tokens.ndim:
        raise ValueError(
            f"directions has shape {tuple(directions.shape)}, expected (d, L) or (H, d, L) with d = {d}, "
            "as in q and k"
        )
    return d**-0.5 * (tokens @ directions)


def _project_vjp(tokens, directions, d_slices):
    """Gradients of tokens (..., n, d) and of directions; the latter summed over the axes they broadcast along."""
    xp = array_namespace(tokens)
    scale = tokens.shape[-1] ** -0.5
    if directions is None:
        return scale * d_slices, None
    d_directions = scale * (transpose(tokens) @ d_slices)  # (..., d, L)
    extra = d_directions.ndim - directions.ndim
    if extra:
        d_directions = xp.sum(d_directions, axis=tuple(range(extra)))
    for axis in range(directions.ndim - 2):
        if directions.shape[axis] == 1:
            d_directions = xp.sum(d_directions, axis=axis, keepdims=True)
    return scale * (d_slices @ transpose(directions)), d_directions


def _slice_plans_vjp(x, y, W, query_mask, key_mask, **settings):
    """Plans of slices x (..., n, l), y (..., m, l): G (..., l, n, m), and ``vjp(dG) -> (dx, dy)``."""
    query_mask, key_mask = (None if mask is None else mask[..., None, :] for mask in (query_mask, key_mask))
    A, A_vjp = soft_sort_vjp(transpose(x), mask=query_mask, **settings)  # (..., l, n, n)
    B, B_vjp = soft_sort_vjp(transpose(y), mask=key_mask, **settings)  # (..., l, m, m)

    def vjp(dG):
        (dx,) = A_vjp((B if W is None else W @ B) @ transpose(dG))
        (dy,) = B_vjp((A if W is None else transpose(W) @ A) @ dG)
        return transpose(dx), transpose(dy)

    return transpose(A) @ (B if W is None else W @ B), vjp


def _rank_coupling(D, query_mask, key_mask):
    """W (..., 1, n, m): how much of query rank r falls to key rank s; None where that is the identity."""
    xp = array_namespace(D)
    n, m = D.shape[-2:]
    if n == m and query_mask is None and key_mask is None:
        return None
    ratio = column_mass(D, query_mask, key_mask)  # n'/m'
    if not isinstance(ratio, float):
        ratio = ratio[..., None, None]  # (..., 1) -> (..., 1, 1, 1), the first of them for the slices
    r = xp.arange(n, dtype=D.dtype, device=D.device)[None, :, None]
    s = xp.arange(m, dtype=D.dtype, device=D.device)
    overlap = xp.minimum(r + 1, ratio * (s + 1)) - xp.maximum(r, ratio * s)
    return xp.where(overlap > 0, overlap, xp.zeros_like(overlap))


# ------------------------------------------------------------------------------------------------- slice weights


def _distances(q, k):
    """Euclidean distances of scaled queries and keys, coordinate by coordinate: (..., n, d) -> (..., n, m).

    Not by way of |q|² - 2 q·k + |k|²: that cancels where tokens are close, and the square root shows it.
    """
    xp = array_namespace(q, k)
    d = q.shape[-1]
    square = 0
    for c in range(d):
        square = square + (q[..., :, None, c] - k[..., None, :, c]) ** 2
    return xp.sqrt(square / d)


def _distances_vjp(q, k, D, dD):
    """(dq, dk). Where a query and a key coincide the distance has a kink; zero is taken there."""
    xp = array_namespace(q, k)
    apart = D > 0
    R = xp.where(apart, dD / xp.where(apart, q.shape[-1] * D, xp.ones_like(D)), xp.zeros_like(D))
    return (
        xp.sum(R, axis=-1, keepdims=True) * q - R @ k,
        xp.sum(R, axis=-2)[..., :, None] * k - transpose(R) @ q,
    )
