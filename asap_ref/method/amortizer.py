"""The amortizer: a linear map, one weight vector a head, from features of the tokens to the query dual.

    f_hat = Phiᵀ w,    Phi (..., F, n) features of the tokens (features.py),  w (F,) weights of a head.

The weights (calibration/fit.py) are a ridge regression (regression.py) to the query dual f^(T-1) of a teacher of T
Sinkhorn iterations, centred: the one from which the two-sided transform gives exactly the teacher's plan, whatever
``refine`` adds after it.

Shapes: q (..., H, n, d), k (..., H, m, d), weights (H, F), query dual (..., H, n).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from asap_ref.method.features import FAMILIES, check_families, dual_features, dual_features_vjp, of_heads
from asap_ref.method.regression import SufficientStatistics
from asap_ref.support.arrays import array_namespace, check_values_are_known, is_made_under_a_mode
from asap_ref.support.contracts import operator, vjp_of
from asap_ref.support.printing import extent, in_short
from asap_ref.support.saved import SavedWeights
from asap_ref.support.tables import html_table
from asap_ref.support.trees import EqualByValue, map_leaves, named_leaves, place_like, read_only


@operator
def amortized_query_dual(
    q: "... H n d", k: "... H m d", families: "...", weights: "...", *, query_mask=None, key_mask=None
):
    """Predict the query dual, ``f_hat = Phiᵀ w`` (paper), at the cost of `dual_features`.

    Parameters
    ----------
    families, weights : sequence of Family, array (H, F)
        Of the features Phi, as in `dual_features`; one for each head and feature.

    Returns
    -------
    array (..., H, n)
        Mean zero over the valid tokens, zero at the others.

    Examples
    --------
    >>> from asap_ref import Slices
    >>> q, k = np.random.default_rng(0).standard_normal((2, 1, 2, 5, 4))
    >>> amortized_query_dual(q, k, [Slices(np.eye(4))], np.ones((2, 4))).shape
    (1, 2, 5)
    """
    check_weights(q, families, weights)
    features = dual_features(q, k, families, query_mask=query_mask, key_mask=key_mask)
    return (weights[:, None, :] @ features)[..., 0, :]


@vjp_of(amortized_query_dual)
def amortized_query_dual_vjp(q, k, families, weights, *, query_mask=None, key_mask=None):
    """Predicted query dual and its VJP, ``vjp(d_dual) -> (d_q, d_k, d_families, d_weights)``.

    d_families is as in `dual_features_vjp`. Derived.

    Examples
    --------
    >>> from asap_ref import Slices
    >>> q, k = np.random.default_rng(0).standard_normal((2, 1, 2, 5, 4))
    >>> dual, vjp = amortized_query_dual_vjp(q, k, [Slices(np.eye(4))], np.ones((2, 4)))
    >>> vjp(dual)[3].shape
    (2, 4)
    """
    check_weights(q, families, weights)
    features, features_vjp = dual_features_vjp(q, k, families, query_mask=query_mask, key_mask=key_mask)

    def vjp(d_dual):
        d_q, d_k, d_families = features_vjp(weights[:, :, None] * d_dual[..., None, :])
        d_weights = (features @ d_dual[..., None])[..., 0]  # (..., H, F)
        shared = tuple(range(d_weights.ndim - 2))
        return d_q, d_k, d_families, array_namespace(weights).sum(d_weights, axis=shared)

    return (weights[:, None, :] @ features)[..., 0, :], vjp


def check_weights(q, families, weights):
    """Raise unless the families fit q (..., H, n, d), and the weights are (H, F)."""
    check_families(families, q)
    expected = (q.shape[-3], sum(family.count for family in families))
    if tuple(weights.shape) != expected:
        raise ValueError(f"weights has shape {tuple(weights.shape)}, expected (H, F) = {expected}")


@dataclass(frozen=True, eq=False)
class Amortizer(
    EqualByValue,
    SavedWeights,
    kind="amortizer",
    settings=("epsilon", "n_iter", "objective", "refine"),
    measured=("r_squared", "omega"),
    families=FAMILIES,
    statistics=SufficientStatistics,
):
    """A calibrated map from queries and keys to the query dual, with the settings that made it.

    Examples
    --------
    >>> from asap_ref import fit_amortizer
    >>> q, k = np.random.default_rng(0).standard_normal((2, 16, 1, 6, 4))  # 16 sequences, 1 head, 6 tokens, d = 4
    >>> fit_amortizer([(q, k)], n_slices=4, n_iter=5)
    <Amortizer: heads 1, slices 4 + cumulants 3, for T = 5 at epsilon 1 by regression, R² 0.96 to 0.96>
    """

    families: tuple  # of Family, NumPy arrays in them
    weights: np.ndarray  # (H, F)
    epsilon: float = 1.0
    n_iter: int = 20  # of the teacher
    objective: str = "regression"
    refine: int = 0  # over-relaxed Sinkhorn iterations before the two-sided transform
    r_squared: np.ndarray | None = None  # (H,) on the calibration data, in the metric of the objective
    statistics: SufficientStatistics | None = field(default=None, repr=False)  # what new data is merged with
    omega: np.ndarray | None = None  # (H,) how far each of the refining iterations goes (relaxation.py); None is 1
    _placed: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        # constants are worked out from them once (`placed`), so they must not change: copies that cannot be written
        for name in ("families", "weights"):
            object.__setattr__(self, name, map_leaves(read_only, getattr(self, name)))
        F = sum(family.count for family in self.families)
        if self.weights.ndim != 2 or self.weights.shape[1] != F:
            raise ValueError(f"weights has shape {self.weights.shape}, expected (H, F) = (H, {F})")
        if self.omega is not None:
            H = len(self.weights)
            if np.shape(self.omega) != (H,) or not np.all((self.omega > 0) & (self.omega < 2)):
                raise ValueError(f"omega must be (H,) = ({H},) numbers between 0 and 2, got {self.omega}")

    def __reduce__(
        self,
    ):  # pickle and deepcopy make it anew, without the constants of this process and its devices
        return type(self), tuple(getattr(self, field.name) for field in fields(self) if field.init)

    def __repr__(self):
        features = " + ".join(f"{family.name} {family.count}" for family in self.families)
        teacher = f"for T = {self.n_iter} at epsilon {self.epsilon:g} by {self.objective}"
        refine = f"refine {self.refine}{extent(' by omega', self.omega)}" if self.refine else ""
        return in_short(
            self, f"heads {len(self.weights)}", features, teacher, refine, extent("R²", self.r_squared)
        )

    def _repr_html_(self):
        measured = [] if self.r_squared is None else [["R²", *(f"{x:.3f}" for x in self.r_squared)]]
        return html_table([["head", *range(len(self.weights))], *measured], repr(self)[1:-1])

    def family(self, name):
        """Return the family of that name, or None."""
        return next((family for family in self.families if family.name == name), None)

    def placed(self, like, name, make):
        """What ``make()`` gives, its arrays in the module, dtype and device of ``like``; made once.

        What is made under a mode of its framework (inference, tracing) serves only there, and is not kept.
        """
        check_values_are_known(like, "q")
        key = (name, array_namespace(like).__name__, str(like.dtype), str(like.device))
        if key not in self._placed:
            made = place_like(like, make())
            if any(is_made_under_a_mode(x) for _, x in named_leaves("", made)):
                return made
            self._placed[key] = made
        return self._placed[key]

    def omega_like(self, q):
        """Omega (H,) in the module, dtype and device of q; 1.0 where none was found."""
        return 1.0 if self.omega is None else self.placed(q, "omega", lambda: self.omega)

    def predict(self, q, k, *, query_mask=None, key_mask=None) -> Any:
        """Predict the query dual of q (..., H, n, d) and k (..., H, m, d) -> (..., H, n), zero at padding."""
        families, weights = self.placed(q, "readable", lambda: (self.families, self.weights))
        return amortized_query_dual(q, k, families, weights, query_mask=query_mask, key_mask=key_mask)

    def predict_vjp(self, q, k, *, query_mask=None, key_mask=None) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
        """Prediction and its VJP, ``vjp(d_dual) -> (d_q, d_k)``; the amortizer itself is held fixed."""
        families, weights = self.placed(q, "readable", lambda: (self.families, self.weights))
        dual, vjp = amortized_query_dual_vjp(q, k, families, weights, query_mask=query_mask, key_mask=key_mask)
        return dual, lambda d_dual: vjp(d_dual)[:2]

    def of_heads(self, heads) -> Amortizer:
        """Return the amortizer of some of the heads, by index."""
        heads = list(heads)
        if not heads or not set(heads) <= set(range(len(self.weights))):
            raise ValueError(f"of_heads: heads must be some of 0 to {len(self.weights) - 1}, got {heads}")
        return replace(
            self,
            families=of_heads(self.families, heads),
            weights=self.weights[heads],
            r_squared=None if self.r_squared is None else self.r_squared[heads],
            statistics=None if self.statistics is None else self.statistics.of_heads(heads),
            omega=None if self.omega is None else self.omega[heads],
        )
