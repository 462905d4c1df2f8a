r"""Over-relaxation: Sinkhorn iterations that go further than where one iteration leads.

    f  <-  f + omega (T(f) - f),      T the two-sided entropic c-transform, one Sinkhorn iteration

omega = 1 is Sinkhorn. Source: Thibault, Chizat, Dossal & Papadakis 2021 (arXiv 1711.01851) relax each half step; the
whole iteration is relaxed here, so that a single dual is kept (derived).

For which omega it is stable (derived). With C the plan of (f, its c-transform onto keys), its columns summing to one,
and P the plan of the transformed duals, its rows summing to one, the Jacobian of T is J = P Cᵀ. P and C are one
kernel, its rows and columns scaled, so J is similar to a symmetric matrix B Bᵀ; and its rows sum to one. So at every f
the eigenvalues of J are in [0, 1], and those of an over-relaxed iteration,

    1 - omega (1 - lambda),     in [1 - omega, 1].

Those of the constant, which is free, are one; the others are below one in modulus for 0 < omega < 2, and only then
whatever the scores: where some lambda is nearly zero, as in any plan that is nearly of low rank, omega > 2 diverges.
That is a local statement, and good for any start that is a prediction. For every start: the entries of J are not
negative, so that errors, by their largest entry, grow at most by 2 omega - 1 an iteration above omega = 1, and never
below. Errors with lambda near one are those that Sinkhorn is slow in, and relaxation speeds up; what it leaves of
those with lambda near zero, the transform that follows takes away.

Shapes: S (..., n, m), f (..., n), omega one number or one for each leading axis, as (H,).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asap_ref.method.transport import Duals, two_sided_c_transform, two_sided_c_transform_vjp
from asap_ref.support.arrays import array_namespace
from asap_ref.support.contracts import operator, vjp_of
from asap_ref.support.masks import keep


@operator
def over_relaxed_dual(
    scores: "... n m", query_dual: "... n", omega: "...", *, n_iter=1, epsilon=1.0, query_mask=None, key_mask=None
):
    """Query dual after over-relaxed Sinkhorn iterations, ``f + omega (T(f) - f)`` n_iter times.

    O(T n m). Source: Thibault et al. 2021, changed as the top of the file says (derived).

    Parameters
    ----------
    query_dual
        Where to start: a prediction, or the dual of softmax.
    omega : array () or (H,), ...
        Between 0 and 2, or iterations may diverge; 1 is Sinkhorn. Its axes are the last ones of the leading axes.
    n_iter : int
        How many iterations; 0 gives back the start.

    Returns
    -------
    array (..., n)
        To be followed by `two_sided_c_transform`: rows of its plan are not exact yet. Zero at masked queries.

    Examples
    --------
    >>> import numpy as np
    >>> S, f = np.asarray([[3.0, 0.0], [1.0, 2.0]]), np.zeros(2)
    >>> plain = over_relaxed_dual(S, f, np.asarray(1.0), n_iter=3)
    >>> np.allclose(plain, two_sided_c_transform(S, over_relaxed_dual(S, f, np.asarray(1.0), n_iter=2)).query)
    True
    """
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    step, f = _of_each_query(omega, scores), keep(query_dual, query_mask)
    for _ in range(n_iter):
        f = (1 - step) * f + step * two_sided_c_transform(scores, f, **settings).query
    return f


@vjp_of(over_relaxed_dual)
def over_relaxed_dual_vjp(scores, query_dual, omega, *, n_iter=1, epsilon=1.0, query_mask=None, key_mask=None):
    """The dual and its VJP, ``vjp(df) -> (d_scores, d_query_dual, d_omega)``.

    Backwards through f' = (1 - omega) f + omega T(f): df gets (1 - omega) df' and what T's own VJP makes of omega df';
    d_omega is the sum of (T(f) - f) df'. O(T n m) time, O(n m + n T) memory: of each iteration its dual is kept.

    Examples
    --------
    >>> import numpy as np
    >>> f, vjp = over_relaxed_dual_vjp(np.zeros((2, 2)), np.asarray([1.0, -1.0]), np.asarray(1.5))
    >>> f.round(3)  # T(f) is 0.434 for both
    array([0.151, 1.151])
    >>> round(float(vjp(np.asarray([1.0, 0.0]))[2]), 3)
    -0.566
    """
    xp = array_namespace(scores, query_dual)
    settings = dict(epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
    step, visited = _of_each_query(omega, scores), [keep(query_dual, query_mask)]
    for _ in range(n_iter):
        f = visited[-1]
        visited.append((1 - step) * f + step * two_sided_c_transform(scores, f, **settings).query)

    def vjp(df):
        df, d_scores, d_step = keep(df, query_mask), xp.zeros_like(scores), xp.zeros_like(df)
        for f in reversed(visited[:-1]):
            (transformed, g), transform_vjp = two_sided_c_transform_vjp(scores, f, **settings)
            d_step = d_step + (transformed - f) * df
            more, df_more = transform_vjp(Duals(step * df, xp.zeros_like(g)))
            d_scores, df = d_scores + more, (1 - step) * df + keep(df_more, query_mask)
        if isinstance(omega, float):
            return d_scores, df, None
        shared = tuple(range(df.ndim - 1 - omega.ndim))
        return d_scores, df, xp.sum(d_step, axis=(*shared, -1))

    return visited[-1], vjp


@dataclass(frozen=True)
class OverRelaxation:
    """Over-relaxed iterations between a prediction and its two-sided transform: a ``refinement`` of attentions.

    Examples
    --------
    >>> import numpy as np
    >>> f = OverRelaxation(1, np.asarray(1.5))(np.zeros((2, 2)), np.asarray([1.0, -1.0]))
    >>> f.round(3)
    array([0.151, 1.151])
    """

    n_iter: int
    omega: Any  # one number, or (H,) in the module of the scores

    def __call__(self, scores, query_dual, **settings):
        """The dual (..., n) that the iterations reach."""
        return over_relaxed_dual(scores, query_dual, self.omega, n_iter=self.n_iter, **settings)

    def vjp(self, scores, query_dual, **settings):
        """The dual and ``vjp(df) -> (d_scores, d_query_dual)``; omega is held fixed."""
        f, vjp = over_relaxed_dual_vjp(scores, query_dual, self.omega, n_iter=self.n_iter, **settings)
        return f, lambda df: vjp(df)[:2]


def _of_each_query(omega, scores):
    """Omega (...) -> (..., 1); a plain number as it is."""
    if isinstance(omega, float):
        return omega
    leading = tuple(scores.shape[:-2])
    if tuple(omega.shape) != leading[len(leading) - omega.ndim :]:
        raise ValueError(
            f"omega has shape {tuple(omega.shape)}, expected the last of the leading axes {leading} of the scores, "
            "such as () or (H,)"
        )
    return omega[..., None]
