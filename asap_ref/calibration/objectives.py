"""Two losses of a predicted dual, gradients by hand: for those who train a map of their own by descent.

The linear map needs no descent: `fit_amortizer` solves for it, for kl to second order (kl.py), and a
teacher of more iterations takes the place of the semi-dual (figures/choices/left_out.md).

With C the plan of (f_hat, its c-transform onto keys), divided by n'/m' so that its columns sum to one, and c* and c_hat
the column sums of the teacher's and the student's plan:

    kl     KL(P_teacher || P_hat) / n'              d/df_hat = C (c* - c_hat) / (n' epsilon)                 (paper)
    dual   minus the semi-dual of f_hat, over n'    d/df_hat = ((n'/m') C 1 - 1) / n'                        (derived)

The kl gradient is the column error pulled back through one softmax. The semi-dual

    D(f_hat) = sum_i f_hat_i + (n'/m') sum_j g_j,    g the c-transform of f_hat onto keys,

is concave and needs no teacher: its maximum is the fully converged plan (OA-OT's idea, arXiv 2604.15114).

Shapes: S (..., n, m), f_hat (..., n) -> loss (...,), gradient (..., n).
"""

from __future__ import annotations

from asap_ref.method.transport import entropic_c_transform, half_step_plan
from asap_ref.support.arrays import array_namespace, matvec
from asap_ref.support.contracts import operator
from asap_ref.support.masks import column_mass, keep, queries_with_a_key, token_count


@operator
def kl_loss_and_gradient(
    scores: "... n m",
    query_dual: "... n",
    teacher_columns: "... m",
    *,
    epsilon=1.0,
    query_mask=None,
    key_mask=None,
):
    """KL divergence from teacher to student, up to a constant, and its gradient in the predicted query dual.

    O(nm). Source: asap_ref/oracle/README.md, "The amortizer", 2.

    Parameters
    ----------
    query_dual : array (..., n)
        The prediction f_hat.
    teacher_columns : array (..., m)
        Column sums c* of the teacher's plan; its rows sum to one.

    Returns
    -------
    (array (...), array (..., n))
        ``KL(P_teacher || P_hat) / n'`` less the terms in which f_hat does not appear, and the gradient.

    Examples
    --------
    >>> import numpy as np
    >>> loss, gradient = kl_loss_and_gradient(np.zeros((2, 2)), np.zeros(2), np.ones(2))
    >>> gradient  # the plan is doubly stochastic already
    array([0., 0.])
    """
    xp = array_namespace(scores, query_dual)
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    g = entropic_c_transform(scores, query_dual, onto="key", **settings)
    f = entropic_c_transform(scores, g, onto="query", **settings)
    C = half_step_plan(scores, query_dual, onto="key", **settings) / _with_axis(
        column_mass(scores, query_mask, key_mask)
    )
    columns = xp.sum(half_step_plan(scores, g, onto="query", **settings), axis=-2)
    n = token_count(query_dual, query_mask)
    loss = -(xp.sum(f, axis=-1) + xp.sum(teacher_columns * g, axis=-1)) / epsilon / _without_axis(n)
    return loss, matvec(C, teacher_columns - columns) / (n * epsilon)


@operator
def dual_loss_and_gradient(scores: "... n m", query_dual: "... n", *, epsilon=1.0, query_mask=None, key_mask=None):
    """Minus the semi-dual a query, and its gradient in the predicted query dual; arguments as above, no teacher.

    Examples
    --------
    >>> import numpy as np
    >>> loss, gradient = dual_loss_and_gradient(np.zeros((2, 2)), np.asarray([1.0, -1.0]))
    >>> bool(gradient[0] > 0 > gradient[1])  # the first is too large
    True
    """
    xp = array_namespace(scores, query_dual)
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    g = entropic_c_transform(scores, query_dual, onto="key", **settings)
    rows = xp.sum(half_step_plan(scores, query_dual, onto="key", **settings), axis=-1)
    n = token_count(query_dual, query_mask)
    mass = column_mass(scores, query_mask, key_mask)
    alive = queries_with_a_key(query_mask, key_mask)
    loss = -(xp.sum(keep(query_dual, alive), axis=-1) + xp.sum(g * mass, axis=-1)) / _without_axis(n)
    return loss, keep(rows - 1, alive) / n


def _with_axis(x):
    return x if isinstance(x, float) else x[..., None]


def _without_axis(x):
    return x if isinstance(x, int) else x[..., 0]
