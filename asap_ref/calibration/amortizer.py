"""What calibration makes: the linear map of method/amortizer.py with its weights, what made it, and files of it.

    f_hat = Phiᵀ w,    Phi (..., F, n) features of the tokens,  w (F,) weights of a head

A file holds nested arrays, and settings beside them that are JSON (its *state*); a model holds the states of its layers
in its own.

Shapes: q (..., H, n, d), k (..., H, m, d), weights (H, F), query dual (..., H, n).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np

from asap_ref.extensions.relaxation import OverRelaxation
from asap_ref.method.amortizer import amortized_query_dual, amortized_query_dual_vjp
from asap_ref.method.regression import SufficientStatistics
from asap_ref.support import files
from asap_ref.support.arrays import array_namespace, check_values_are_known, is_made_under_a_mode
from asap_ref.support.family import FAMILIES
from asap_ref.support.printing import extent, in_short
from asap_ref.support.tables import html_table
from asap_ref.support.trees import EqualByValue, map_leaves, named_leaves, of_heads, place_like, read_only

SETTINGS = ("epsilon", "n_iter", "objective", "refine")  # in files, beside the arrays
MEASURED = ("r_squared", "omega")  # arrays that may be missing


@dataclass(frozen=True, eq=False)
class Amortizer(EqualByValue):
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
    omega: np.ndarray | None = None  # (H,) how far each refining iteration goes (relaxation.py); None is 1
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

    def __reduce__(self):
        # pickle and deepcopy make it anew, without the constants of this process and its devices
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

    def refinement(self, q):
        """Over-relaxed iterations, placed like q: between prediction and transform, where ``refine`` is not 0."""
        omega = 1.0 if self.omega is None else self.placed(q, "omega", lambda: self.omega)
        return OverRelaxation(self.refine, omega)

    def families_and_weights(self, q):
        """Families, and weights (H, F), in the module, dtype and device of q: the map itself."""
        return self.placed(q, "readable", lambda: (self.families, self.weights))

    def predict(self, q, k, *, query_mask=None, key_mask=None) -> Any:
        """Predict the query dual of q (..., H, n, d) and k (..., H, m, d) -> (..., H, n), zero at padding."""
        return amortized_query_dual(q, k, *self.families_and_weights(q), query_mask=query_mask, key_mask=key_mask)

    def predict_vjp(self, q, k, *, query_mask=None, key_mask=None) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
        """Prediction and its VJP, ``vjp(d_dual) -> (dq, dk)``; the amortizer itself is held fixed."""
        masks = {"query_mask": query_mask, "key_mask": key_mask}
        dual, vjp = amortized_query_dual_vjp(q, k, *self.families_and_weights(q), **masks)
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

    # ------------------------------------------------------------------------------------------------ files

    def save(self, path) -> None:
        """Write it as .npz, atomically."""
        files.save(path, "amortizer", *self.state())

    @classmethod
    def load(cls, path) -> Self:
        """Read what `save` wrote."""
        return files.load(path, "amortizer", cls.from_state)

    def state(self):
        """(nested dict of arrays, JSON-ready settings), from which `from_state` rebuilds the object."""
        arrays = {"weights": self.weights} | {name: getattr(self, name) for name in MEASURED}
        arrays = {name: x for name, x in arrays.items() if x is not None}
        for i, family in enumerate(self.families):
            arrays[f"family{i}"] = {each.name: getattr(family, each.name) for each in fields(family)}
        if self.statistics is not None:
            arrays["statistics"] = self.statistics.state()
        names = [family.name for family in self.families]
        return arrays, {"families": names} | {name: getattr(self, name) for name in SETTINGS}

    @classmethod
    def from_state(cls, arrays, settings):
        """Rebuild an object from its `state`, or from what release 0.1 wrote."""
        if "families" not in settings:
            arrays, settings = _from_0_1(arrays, settings)
        arrays, settings = dict(arrays), dict(settings)
        names = settings.pop("families")
        unknown = [name for name in names if name not in FAMILIES]
        if unknown:
            raise ValueError(f"families {unknown} are not among those here, {list(FAMILIES)}; import their module")
        families = tuple(FAMILIES[name](**arrays.pop(f"family{i}", {})) for i, name in enumerate(names))
        if "statistics" in arrays:
            arrays["statistics"] = SufficientStatistics.from_state(arrays["statistics"])
        if settings.keys() != set(SETTINGS):
            raise ValueError(f"settings are {sorted(settings)}, expected {sorted(SETTINGS)}")
        return cls(families, **arrays, **settings)


def _from_0_1(arrays, settings):
    """What release 0.1 wrote, family by family: it knew four by name, and a hidden layer that is no more."""
    if "hidden" in arrays:
        raise ValueError("a hidden layer was left out after release 0.1, since it did not pay; calibrate anew")
    arrays, settings = dict(arrays), dict(settings)
    arrays.pop("slice_errors", None)  # of numbers of slices that it tried
    if settings["objective"] != "regression":  # of which it kept the sums all the same
        arrays.pop("statistics", None)
    basis = {"basis": arrays.pop("basis")} if "basis" in arrays else None
    families = [("slices", {"directions": arrays.pop("directions")})]
    families += [("cumulants", {})] if settings.pop("cumulants") else []
    families += [("quadratic", basis)] if basis else []
    families += [("moments", basis)] if settings.pop("moments") else []
    arrays |= {f"family{i}": family for i, (_, family) in enumerate(families)}
    return arrays, settings | {"families": [name for name, _ in families]}
