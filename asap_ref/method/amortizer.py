"""The amortizer: a linear map, one weight vector a head, from features of the tokens to the query dual.

    f_hat = Phiᵀ w,    Phi (..., F, n) features of the tokens (features.py),  w (F,) weights of a head.

With units of a hidden layer among the features it is a multilayer perceptron (mlp.py). How the weights are found is
calibration.py.

Shapes: q (..., H, n, d), k (..., H, m, d), directions (d, L) or (H, d, L), weights (H, F), query dual (..., H, n).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from asap_ref.extensions.mlp import Hidden
from asap_ref.method.features import count_features, dual_features, dual_features_vjp
from asap_ref.method.regression import SufficientStatistics
from asap_ref.method.slices import check_directions
from asap_ref.support import files
from asap_ref.support.arrays import array_namespace
from asap_ref.support.contracts import operator


@operator(
    q="H n d",
    k="H m d",
    directions=None,
    weights=None,
    basis=None,
    hidden=(None, None),
    query_mask="n",
    key_mask="m",
)
def amortized_query_dual(
    q,
    k,
    directions,
    weights,
    *,
    cumulants=True,
    basis=None,
    moments=False,
    hidden=None,
    query_mask=None,
    key_mask=None,
):
    """Predict the query dual, ``f_hat = Phiᵀ w`` (paper).

    Parameters
    ----------
    q : array (..., H, n, d)
    k : array (..., H, m, d)
    directions : array (d, L) or (H, d, L)
    weights : array (H, F)
    cumulants : bool
        Whether the features include the three cumulants.
    basis : array (d, r) or (H, d, r), optional
        Basis of the quadratic features, if they are among the features.
    moments : bool
        Whether the moment features are among them too.
    hidden : Hidden, optional
        The hidden layer (mlp.py), if its units are among the features.
    query_mask, key_mask : boolean arrays (..., n) and (..., m), optional
        True at valid tokens.

    Returns
    -------
    array (..., H, n)
        Mean zero over the valid tokens, zero at the others.

    Raises
    ------
    TypeError, ValueError
        On mixed modules or dtypes, wrong shapes, or non-finite input.

    Notes
    -----
    The cost is that of `dual_features`.

    Examples
    --------
    >>> q, k = np.random.default_rng(0).standard_normal((2, 1, 2, 5, 4))
    >>> amortized_query_dual(q, k, np.eye(4), np.ones((2, 4)), cumulants=False).shape
    (1, 2, 5)
    """
    _check_weights(q, directions, weights, cumulants, basis, moments, hidden)
    masks = dict(query_mask=query_mask, key_mask=key_mask)
    features = dual_features(
        q, k, directions, cumulants=cumulants, basis=basis, moments=moments, hidden=hidden, **masks
    )
    return (weights[:, None, :] @ features)[..., 0, :]


@operator(
    q="H n d",
    k="H m d",
    directions=None,
    weights=None,
    basis=None,
    hidden=(None, None),
    query_mask="n",
    key_mask="m",
)
def amortized_query_dual_vjp(
    q,
    k,
    directions,
    weights,
    *,
    cumulants=True,
    basis=None,
    moments=False,
    hidden=None,
    query_mask=None,
    key_mask=None,
):
    """Predicted query dual and its VJP, ``vjp(d_dual) -> (d_q, d_k, d_directions, d_weights)``.

    Same arguments, errors and cost as `amortized_query_dual`. Derived.

    Examples
    --------
    >>> q, k = np.random.default_rng(0).standard_normal((2, 1, 2, 5, 4))
    >>> dual, vjp = amortized_query_dual_vjp(q, k, np.eye(4), np.ones((2, 4)), cumulants=False)
    >>> vjp(dual)[3].shape
    (2, 4)
    """
    xp = array_namespace(q, k, directions, weights)
    _check_weights(q, directions, weights, cumulants, basis, moments, hidden)
    masks = dict(query_mask=query_mask, key_mask=key_mask)
    features, features_vjp = dual_features_vjp(
        q, k, directions, cumulants=cumulants, basis=basis, moments=moments, hidden=hidden, **masks
    )

    def vjp(d_dual):
        d_q, d_k, d_directions = features_vjp(weights[:, :, None] * d_dual[..., None, :])
        d_weights = (features @ d_dual[..., None])[..., 0]  # (..., H, F)
        return d_q, d_k, d_directions, xp.sum(d_weights, axis=tuple(range(d_weights.ndim - 2)))

    return (weights[:, None, :] @ features)[..., 0, :], vjp


def _check_weights(q, directions, weights, cumulants, basis, moments, hidden):
    expected = (q.shape[-3], _count(directions, cumulants, basis, moments, hidden))
    if tuple(weights.shape) != expected:
        raise ValueError(f"weights has shape {tuple(weights.shape)}, expected (H, F) = {expected}")


ARRAYS = ("directions", "weights", "basis", "r_squared", "slice_errors")  # that are saved, if there


def _count(directions, cumulants, basis, moments, hidden):
    """F, the number of features."""
    rank, units = 0 if basis is None else basis.shape[-1], 0 if hidden is None else hidden.bias.shape[-1]
    return count_features(directions.shape[-1], cumulants, rank, moments, units)


SETTINGS = ("cumulants", "moments", "epsilon", "n_iter", "objective", "refine")  # that are saved beside the arrays


@dataclass(frozen=True)
class Amortizer:
    """A calibrated map from queries and keys to the query dual, with the settings that made it.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> q, k = rng.standard_normal((2, 16, 1, 6, 4))  # 16 sequences, one head, 6 tokens, dimension 4
    >>> from asap_ref import fit_amortizer
    >>> amortizer = fit_amortizer([(q, k)], n_slices=4, n_iter=5)
    >>> amortizer.predict(q, k).shape
    (16, 1, 6)
    """

    directions: np.ndarray  # (d, L) or (H, d, L)
    weights: np.ndarray  # (H, F)
    cumulants: bool = True
    basis: np.ndarray | None = None  # (d, r) or (H, d, r), of the quadratic features
    moments: bool = False  # whether the moment features are formed on that basis too
    hidden: Hidden | None = None  # layer of the hidden features
    epsilon: float = 1.0
    n_iter: int = 20
    objective: str = "regression"
    refine: int = 0  # Sinkhorn iterations after the two-sided transform
    r_squared: np.ndarray | None = None  # (H,) on the calibration data
    statistics: SufficientStatistics | None = field(
        default=None, repr=False
    )  # of it: what new data is merged with
    slice_errors: np.ndarray | None = None  # (K, 2): L, and its held-out error, of the candidates of "auto"
    _placed: dict = field(default_factory=dict, repr=False, compare=False)

    @property
    def families(self):
        """What `dual_features` is told of the families beside the slices."""
        return {name: getattr(self, name) for name in ("cumulants", "basis", "moments", "hidden")}

    def parameters(self, like):
        """(directions, weights, dict of feature settings) in the module, dtype and device of ``like``; copied once."""
        layer = self.hidden or (None, None)
        directions, weights, basis, *layer = self.placed(
            like, "parameters", lambda: (self.directions, self.weights, self.basis, *layer)
        )
        hidden = None if self.hidden is None else Hidden(*layer)
        return directions, weights, {**self.families, "basis": basis, "hidden": hidden}

    def placed(self, like, name, make):
        """The tuple of arrays that ``make()`` gives, where and in the dtype that ``like`` is; made once."""
        xp = array_namespace(like)
        key = (name, xp.__name__, str(like.dtype), str(like.device))
        if key not in self._placed:
            self._placed[key] = tuple(
                # torch takes no reversed views, which eigenvectors in descending order are
                None if x is None else xp.asarray(np.ascontiguousarray(x), dtype=like.dtype, device=like.device)
                for x in make()
            )
        return self._placed[key]

    def check_heads(self, q):
        """Raise ValueError unless the amortizer was made for queries (..., H, n, d) of this shape."""
        check_directions("directions", self.directions, q)
        _check_weights(q, self.directions, self.weights, self.cumulants, self.basis, self.moments, self.hidden)

    def predict(self, q, k, *, query_mask=None, key_mask=None):
        """Predict the query dual of q (..., H, n, d) and k (..., H, m, d) -> (..., H, n), zero at padding."""
        directions, weights, families = self.parameters(q)
        return amortized_query_dual(
            q, k, directions, weights, **families, query_mask=query_mask, key_mask=key_mask
        )

    def predict_vjp(self, q, k, *, query_mask=None, key_mask=None):
        """Prediction and its VJP, ``vjp(d_dual) -> (d_q, d_k)``; the amortizer itself is held fixed."""
        directions, weights, families = self.parameters(q)
        masks = dict(query_mask=query_mask, key_mask=key_mask)
        dual, vjp = amortized_query_dual_vjp(q, k, directions, weights, **families, **masks)
        return dual, lambda d_dual: vjp(d_dual)[:2]

    def of_heads(self, heads):
        """Return the amortizer of some of the heads, by index."""
        heads = list(heads)
        if not heads or not set(heads) <= set(range(len(self.weights))):
            raise ValueError(f"of_heads: heads must be some of 0 to {len(self.weights) - 1}, got {heads}")
        directions, basis = (
            x[heads] if x is not None and x.ndim == 3 else x for x in (self.directions, self.basis)
        )
        return replace(
            self,
            directions=directions,
            basis=basis,
            weights=self.weights[heads],
            hidden=None if self.hidden is None else Hidden(*(x[heads] for x in self.hidden)),
            r_squared=None if self.r_squared is None else self.r_squared[heads],
            statistics=None if self.statistics is None else self.statistics.of_heads(heads),
            _placed={},
        )

    def state(self):
        """(dict of arrays, JSON-ready settings), from which `from_state` rebuilds the amortizer."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        arrays = {name: x for name, x in arrays.items() if x is not None}
        if self.hidden is not None:
            arrays["hidden"] = self.hidden._asdict()
        if self.statistics is not None:
            arrays["statistics"] = self.statistics.state()
        return arrays, {name: getattr(self, name) for name in SETTINGS}

    @classmethod
    def from_state(cls, arrays, settings):
        """Rebuild an amortizer from its `state`."""
        if "statistics" in arrays:
            arrays = {**arrays, "statistics": SufficientStatistics.from_state(arrays["statistics"])}
        if "hidden" in arrays:
            arrays = {**arrays, "hidden": Hidden(**arrays["hidden"])}
        if settings.keys() != set(SETTINGS):
            raise ValueError(f"settings are {sorted(settings)}, expected {sorted(SETTINGS)}")
        made = cls(**arrays, **settings)
        F = _count(made.directions, made.cumulants, made.basis, made.moments, made.hidden)
        if made.weights.ndim != 2 or made.weights.shape[1] != F:
            raise ValueError(f"weights has shape {made.weights.shape}, expected (H, F) = (H, {F})")
        return made

    def save(self, path):
        """Write the amortizer as .npz, atomically."""
        files.save(path, "amortizer", *self.state())

    @classmethod
    def load(cls, path):
        """Read an amortizer that `save` wrote."""
        return files.load(path, "amortizer", cls.from_state)
