"""Sinkhorn cut to a few over-relaxed iterations: the strongest rival that nobody has to calibrate.

    f  =  the dual of softmax, or a closed form (initial_duals.py)
    n_iter times:  f  <-  f + omega (T(f) - f)       T the two-sided entropic c-transform (extensions/relaxation.py)
    then the plan of T(f), rows exact

n_iter = T and omega = 1 is a teacher of T + 1 iterations. With omega of 1.6 to 1.8 four iterations halve the error of
five plain ones. Source: over-relaxation: Thibault et al. 2021; the starts: Sinkformer, and Thornton & Cuturi 2022.

Shapes: q (..., n, d), k (..., m, d), v (..., m, p) -> (..., n, p).
"""

from __future__ import annotations

from asap_ref.extensions.relaxation import OverRelaxation
from asap_ref.fast.attention import fast_attention_from_dual
from asap_ref.fast.scaling import BIG, softmax_start
from asap_ref.fast.threads import over_problems
from asap_ref.method.attention import attention_from_dual, attention_from_dual_vjp
from asap_ref.method.transport import attention_scores, attention_scores_vjp, entropic_c_transform_vjp
from asap_ref.rivals.initial_duals import STARTS, initial_dual_vjp
from asap_ref.support.arrays import array_namespace, matvec, vecmat
from asap_ref.support.contracts import fast_form_of, operator, vjp_of
from asap_ref.support.masks import column_mass, valid_pairs, without_padding
from asap_ref.support.settings import check_choice, check_positive


@operator
def over_relaxed_attention(
    q: "... n d",
    k: "... m d",
    v: "... m p",
    *,
    n_iter=3,
    omega=1.7,
    initial="softmax",
    epsilon=1.0,
    query_mask=None,
    key_mask=None,
):
    """Attention by a few over-relaxed Sinkhorn iterations.

    O(n m (d + p + T)), and the start.

    Parameters
    ----------
    n_iter : int
        Over-relaxed iterations before the two-sided transform.
    omega : float
        Below 2; 1 is Sinkhorn.
    initial : {"softmax", "zero", "gaussian", "sorting"}

    Returns
    -------
    array (..., n, p)
        Rows of the plan are exact.

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref.method.attention import sinkhorn_attention
    >>> q, k, v = 1.5 * np.random.default_rng(0).standard_normal((3, 30, 4))
    >>> teacher = sinkhorn_attention(q, k, v, n_iter=200)
    >>> error = [np.abs(over_relaxed_attention(q, k, v, omega=omega) - teacher).max() for omega in (1.0, 1.7)]
    >>> bool(error[1] < 0.7 * error[0])
    True
    """
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    omega = _checked(omega, initial)
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    f, _ = _start_vjp(q, k, initial, settings)
    return attention_from_dual(q, k, v, f, refinement=OverRelaxation(n_iter, omega), **settings)


@vjp_of(over_relaxed_attention)
def over_relaxed_attention_vjp(
    q, k, v, *, n_iter=3, omega=1.7, initial="softmax", epsilon=1.0, query_mask=None, key_mask=None
):
    """The same and its VJP, ``vjp(d_out) -> (dq, dk, dv)``, through the start as well. Derived.

    Examples
    --------
    >>> import numpy as np
    >>> q, k = np.random.default_rng(0).standard_normal((2, 6, 3))
    >>> out, vjp = over_relaxed_attention_vjp(q, k, k, initial="gaussian")
    >>> [d.shape for d in vjp(out)]
    [(6, 3), (6, 3), (6, 3)]
    """
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    omega = _checked(omega, initial)
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    f, start_vjp = _start_vjp(q, k, initial, settings)
    return attention_from_dual_vjp(q, k, v, f, start_vjp, refinement=OverRelaxation(n_iter, omega), **settings)


def _checked(omega, initial):
    check_choice(initial, "initial", "over_relaxed_attention", ("softmax", *STARTS))
    omega = check_positive(omega, "omega", "over_relaxed_attention")
    if omega >= 2:
        raise ValueError(
            f"over_relaxed_attention: omega must be below 2, where iterations are stable, got {omega}"
        )
    return omega


def _start_vjp(q, k, initial, settings):
    """Query dual to start from, and ``vjp(df) -> (dq, dk)``."""
    if initial != "softmax":
        return initial_dual_vjp(q, k, start=initial, **settings)
    xp = array_namespace(q, k)
    S, scores_vjp = attention_scores_vjp(q, k)
    f, transform_vjp = entropic_c_transform_vjp(S, xp.zeros_like(S[..., 0, :]), onto="query", **settings)
    return f, lambda df: scores_vjp(transform_vjp(df)[0])


@fast_form_of(over_relaxed_attention)
def fast_over_relaxed_attention(
    q, k, v, *, n_iter=3, omega=1.7, initial="softmax", epsilon=1.0, query_mask=None, key_mask=None
):
    """From softmax in scaling form, two products with a vector an iteration; from a closed form in ASAP's tiles."""
    settings = {"epsilon": epsilon, "query_mask": query_mask, "key_mask": key_mask}
    omega = _checked(omega, initial)
    q, k, v = without_padding(q, k, v, query_mask, key_mask)
    if initial != "softmax":
        f, _ = initial_dual_vjp(q, k, start=initial, **settings)
        masks, refinement = (query_mask, key_mask), OverRelaxation(n_iter, omega)
        return fast_attention_from_dual(q, k, v, f, *masks, epsilon=epsilon, refinement=refinement)

    def part(q, k, v, query_mask, key_mask):
        return _in_scaling_form(q, k, v, n_iter, omega, epsilon, query_mask, key_mask)

    return over_problems(part, [q, k, v], [query_mask, key_mask])


def _in_scaling_form(q, k, v, n_iter, omega, epsilon, query_mask, key_mask):
    """With K the softmax plan: b = r / (Kᵀ a), then a = a (a K b)^(-omega), and at the end rows over their sums."""
    xp, S = array_namespace(q, k, v), attention_scores(q, k)
    valid = valid_pairs(query_mask, key_mask)
    K, r = softmax_start(S, epsilon, valid).K, column_mass(S, query_mask, key_mask)
    row_padding = column_padding = 0.0
    if valid is not None:  # there K is zero: with one in place of its sums, and of r, the scalings stay one
        row_padding, column_padding = (xp.astype(~xp.any(valid, axis=axis), S.dtype) for axis in (-1, -2))
        r = xp.where(column_padding > 0, xp.ones_like(column_padding), r)
    a, good = xp.ones_like(K[..., 0]), True
    big = BIG[str(K.dtype).rpartition(".")[-1]]
    for left in range(n_iter, -1, -1):
        b = r / (vecmat(a, K) + column_padding)
        rows = matvec(K, b) + row_padding
        if left:
            a = a * (a * rows) ** -omega
            good = good & xp.all((a < big) & (a > 1 / big), axis=-1)
        good = good & xp.all((b < big) & (b > 1 / big), axis=-1)
    out = (K @ (b[..., None] * v)) / rows[..., None]
    if bool(xp.all(good)):
        return out
    settings = {"epsilon": epsilon, "query_mask": query_mask, "key_mask": key_mask}
    f, _ = _start_vjp(q, k, "softmax", settings)
    slow = attention_from_dual(q, k, v, f, refinement=OverRelaxation(n_iter, omega), **settings)  # for any scores
    return xp.where(good[..., None, None], out, slow)
