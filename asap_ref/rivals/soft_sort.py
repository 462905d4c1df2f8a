"""Sorting as a matrix, and its soft form that has a gradient.

    hard:  U_rj = 1 where token j is the r-th smallest, else 0              a permutation
    soft:  U_rj = softmax_j(-(x_j - s_r)² / t),  s the sorted x             tends to it as t falls

Row r of U says which token holds rank r. Rows sum to one at any temperature t; columns only in the limit.

Shapes: x (..., n), U (..., n, n) with ranks along the rows and tokens along the columns.
"""

from __future__ import annotations

from asap_ref.support.arrays import array_namespace, softmax
from asap_ref.support.contracts import operator, vjp_of
from asap_ref.support.settings import check_positive


@operator
def soft_sort(x: "... n", *, temperature=0.001, hard=False, mask: "... n" = None):
    """Soft permutation that sorts x in ascending order, ``U @ x`` being the softly sorted sample.

    O(n²). Source: SoftSort, Prillo & Eisenschlos 2020, with squared distances as in the ESPFormer code
    (Shahbazi et al. 2025), which sorts in descending order; that changes nothing in a plan. The limit of the
    soft form shares a tied rank between its tokens, the hard one does not.

    Parameters
    ----------
    x
        The sample.
    temperature : float
        t, in the units of x²; positive. The default is that of the ESPFormer code.
    hard : bool
        The limit t -> 0, exactly: a permutation, ties in the order of the tokens.
    mask
        True at valid tokens. They hold the first ranks; rows and columns beyond are zero.

    Returns
    -------
    array (..., n, n)
        Rows (ranks) of valid tokens sum to one.

    Examples
    --------
    >>> import numpy as np
    >>> soft_sort(np.asarray([2.0, 0.0, 1.0]), hard=True)
    array([[0., 1., 0.],
           [0., 0., 1.],
           [1., 0., 0.]])
    >>> soft_sort(np.asarray([2.0, 0.0, 1.0]), temperature=1.0).sum(axis=-1).round(6)
    array([1., 1., 1.])
    """
    return _soft_sort(x, temperature, hard, mask)[0]


@vjp_of(soft_sort)
def soft_sort_vjp(x, *, temperature=0.001, hard=False, mask=None):
    """Soft permutation and its VJP, ``vjp(dU) -> (dx,)``.

    The gradient follows the tokens and their sorted copies, whose order is locally fixed; at a tie it is a
    one-sided derivative. The hard permutation is locally constant: its gradient is zero. Derived.

    Examples
    --------
    >>> import numpy as np
    >>> U, vjp = soft_sort_vjp(np.asarray([1.0, 0.0]), temperature=1.0)
    >>> (dx,) = vjp(np.asarray([[1.0, 0.0], [0.0, 0.0]]))
    >>> bool(np.isclose(dx.sum(), 0))  # a shift of all tokens changes nothing
    True
    """
    xp = array_namespace(x)
    U, gap, order = _soft_sort(x, temperature, hard, mask)
    t = float(temperature)

    def vjp(dU):
        if hard:
            return (xp.zeros_like(x),)
        d_exponent = U * (dU - xp.sum(U * dU, axis=-1, keepdims=True))
        d_gap = (-2 / t) * gap * d_exponent  # gap_rj = x_j - s_r
        d_sorted = -xp.sum(d_gap, axis=-1)
        rank = xp.argsort(order, axis=-1)
        return (xp.sum(d_gap, axis=-2) + xp.take_along_axis(d_sorted, rank, axis=-1),)

    return U, vjp


def _soft_sort(x, temperature, hard, mask):
    """(U (..., n, n), x_j - s_r (..., n, n) or None, order (..., n))."""
    xp = array_namespace(x)
    t = check_positive(temperature, "temperature", "soft_sort")
    valid = None
    if mask is not None:
        mask = xp.broadcast_to(mask, x.shape)
        x = xp.where(mask, x, xp.zeros_like(x))
        order = xp.argsort(xp.where(mask, x, xp.inf), axis=-1, stable=True)  # padding goes last
        valid = xp.take_along_axis(mask, order, axis=-1)[..., :, None] & mask[..., None, :]
    else:
        order = xp.argsort(x, axis=-1, stable=True)
    if hard:
        tokens = xp.arange(x.shape[-1], dtype=order.dtype, device=x.device)
        chosen = order[..., :, None] == tokens
        return xp.astype(chosen if valid is None else chosen & valid, x.dtype), None, order
    gap = x[..., None, :] - xp.take_along_axis(x, order, axis=-1)[..., :, None]
    exponent = -(gap * gap) / t
    return softmax(exponent, axis=-1, valid=valid), gap, order
