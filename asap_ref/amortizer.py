"""The amortizer: a linear map, one weight vector a head, from slice potentials to the query dual.

    f_hat = Phiᵀ w,    Phi (..., F, n) features of the tokens,  w (F,) weights of a head.

Features are the L centred slice potentials (paper) and, optionally, three second-cumulant features (derived):
expanding ``LSE_j(S_ij)`` to second order in the spread of the keys gives q·mean(k) and qᵀ Cov(k) q, and |q|²
stands for what the expansion leaves. A dual has a free constant, so features and target are centred over the
valid tokens of each sequence.

Calibration is ridge regression to the *closure-ready* dual f^(T-1) of a Sinkhorn teacher of T iterations, whose
two-sided c-transform is exactly the teacher's plan. It needs only sums over tokens, ``Phi Phiᵀ``, ``Phi f`` and
``f f``, so batches stream, and statistics of parts add up to those of the whole.

Shapes: q (..., H, n, d), k (..., H, m, d), directions (d, L), weights (H, F), query dual (..., H, n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from asap_ref import files
from asap_ref.arrays import array_namespace, to_numpy, transpose
from asap_ref.contracts import check_choice, check_count, check_epsilon, operator
from asap_ref.potentials import slice_directions, sliced_potentials, sliced_potentials_vjp
from asap_ref.sinkhorn import sinkhorn
from asap_ref.transport import attention_scores

N_CUMULANTS = 3

# -------------------------------------------------------------------------------------------------- features


@operator(q="n d", k="m d", directions=None)
def dual_features(q, k, directions, *, cumulants=True):
    """Features from which the query dual is predicted, each centred over its tokens.

    Parameters
    ----------
    q : array (..., n, d)
    k : array (..., m, d)
    directions : array (d, L)
    cumulants : bool
        Whether to append q·mean(k), |q|² and qᵀ Cov(k) q (derived).

    Returns
    -------
    array (..., F, n)
        F = L, or L + 3 with cumulants.

    Raises
    ------
    TypeError, ValueError
        On mixed modules or dtypes, wrong shapes, or non-finite input.

    Notes
    -----
    O(L n (d + log n)), and O((n + m) d²) for the cumulants. Source: METHOD "Slices".

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> q, k = rng.standard_normal((2, 1, 5, 4))
    >>> dual_features(q, k, slice_directions(4, 8)).shape
    (1, 11, 5)
    """
    xp = array_namespace(q, k, directions)
    phi, _ = sliced_potentials(q, k, directions)
    return xp.concat([phi, _cumulant_features(q, k)], axis=-2) if cumulants else phi


@operator(q="n d", k="m d", directions=None)
def dual_features_vjp(q, k, directions, *, cumulants=True):
    """Features and their VJP, ``vjp(d_features) -> (d_q, d_k, d_directions)``.

    Same arguments, errors and cost as `dual_features`. Derived.

    Examples
    --------
    >>> q, k = np.ones((2, 1, 3, 2))
    >>> features, vjp = dual_features_vjp(q, k, np.eye(2))
    >>> [d.shape for d in vjp(features)]
    [(1, 3, 2), (1, 3, 2), (2, 2)]
    """
    xp = array_namespace(q, k, directions)
    (phi, psi), potentials_vjp = sliced_potentials_vjp(q, k, directions)
    if not cumulants:
        return phi, lambda d_phi: potentials_vjp((d_phi, xp.zeros_like(psi)))
    n_slices = directions.shape[1]
    extra, cumulants_vjp = _cumulant_features_vjp(q, k)

    def vjp(d_features):
        d_q, d_k, d_directions = potentials_vjp((d_features[..., :n_slices, :], xp.zeros_like(psi)))
        d_q_extra, d_k_extra = cumulants_vjp(d_features[..., n_slices:, :])
        return d_q + d_q_extra, d_k + d_k_extra, d_directions

    return xp.concat([phi, extra], axis=-2), vjp


def _cumulant_features(q, k):
    """(..., n, d), (..., m, d) -> (..., 3, n)."""
    xp = array_namespace(q, k)
    q = q / math.sqrt(q.shape[-1])
    mean = xp.mean(k, axis=-2, keepdims=True)  # (..., 1, d)
    cov = transpose(k - mean) @ (k - mean) / k.shape[-2]  # (..., d, d)
    features = [xp.sum(q * mean, axis=-1), xp.sum(q * q, axis=-1), xp.sum((q @ cov) * q, axis=-1)]
    features = xp.stack(features, axis=-2)
    return features - xp.mean(features, axis=-1, keepdims=True)


def _cumulant_features_vjp(q, k):
    xp = array_namespace(q, k)
    scale = 1 / math.sqrt(q.shape[-1])
    m = k.shape[-2]

    def vjp(d_features):
        d = d_features - xp.mean(d_features, axis=-1, keepdims=True)
        d_dot, d_square, d_cov = (d[..., i, :, None] for i in range(N_CUMULANTS))  # (..., n, 1)
        u = scale * q
        mean = xp.mean(k, axis=-2, keepdims=True)
        centred = k - mean
        cov = transpose(centred) @ centred / m
        d_u = d_dot * mean + 2 * d_square * u + 2 * d_cov * (u @ cov)
        # cov's gradient is sum_i d_i u_i u_iᵀ; what it sends through the mean of k vanishes, k being centred
        d_k = 2 / m * centred @ (transpose(u * d_cov) @ u) + xp.sum(d_dot * u, axis=-2, keepdims=True) / m
        return scale * d_u, d_k

    return _cumulant_features(q, k), vjp


# ------------------------------------------------------------------------------------------------ prediction


@operator(q="H n d", k="H m d", directions=None, weights=None)
def amortized_query_dual(q, k, directions, weights, *, cumulants=True):
    """Predict the query dual, ``f_hat = Phiᵀ w`` (paper).

    Parameters
    ----------
    q : array (..., H, n, d)
    k : array (..., H, m, d)
    directions : array (d, L)
    weights : array (H, F)
    cumulants : bool
        Whether the features include the three cumulants, so that F = L + 3.

    Returns
    -------
    array (..., H, n)
        Mean zero over the tokens.

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
    _check_weights(q, directions, weights, cumulants)
    features = dual_features(q, k, directions, cumulants=cumulants)
    return (weights[:, None, :] @ features)[..., 0, :]


@operator(q="H n d", k="H m d", directions=None, weights=None)
def amortized_query_dual_vjp(q, k, directions, weights, *, cumulants=True):
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
    _check_weights(q, directions, weights, cumulants)
    features, features_vjp = dual_features_vjp(q, k, directions, cumulants=cumulants)

    def vjp(d_dual):
        d_q, d_k, d_directions = features_vjp(weights[:, :, None] * d_dual[..., None, :])
        d_weights = (features @ d_dual[..., None])[..., 0]  # (..., H, F)
        return d_q, d_k, d_directions, xp.sum(d_weights, axis=tuple(range(d_weights.ndim - 2)))

    return (weights[:, None, :] @ features)[..., 0, :], vjp


def _check_weights(q, directions, weights, cumulants):
    expected = (q.shape[-3], directions.shape[-1] + N_CUMULANTS * cumulants)
    if tuple(weights.shape) != expected:
        raise ValueError(f"weights has shape {tuple(weights.shape)}, expected (H, F) = {expected}")


# ------------------------------------------------------------------------------------------------ calibration


@dataclass(frozen=True)
class SufficientStatistics:
    """All that ridge regression needs of the data: sums over tokens, one a head, float64 on the host.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> features, target = rng.standard_normal((2, 1, 3, 5)), rng.standard_normal((2, 1, 5))
    >>> whole = SufficientStatistics.of(features, target)
    >>> first, second = (SufficientStatistics.of(features[i], target[i]) for i in (0, 1))
    >>> np.allclose(whole.gram, (first + second).gram), whole.count == (first + second).count
    (True, True)
    """

    gram: np.ndarray  # (H, F, F)  sum of Phi Phiᵀ
    cross: np.ndarray  # (H, F)    sum of Phi f
    square: np.ndarray  # (H,)     sum of f f
    count: int  # tokens

    @classmethod
    def of(cls, features, target):
        """Sums over features (..., H, F, n) and target (..., H, n)."""
        # (..., H, F, n) -> (H, F, ... n), in float64: float32 sums over many tokens lose the small slices
        phi, f = (np.asarray(to_numpy(x), dtype=np.float64) for x in (features, target))
        phi = np.moveaxis(phi, (-3, -2), (0, 1)).reshape(*phi.shape[-3:-1], -1)
        f = np.moveaxis(f, -2, 0).reshape(f.shape[-2], -1)
        return cls(phi @ phi.mT, (phi @ f[..., None])[..., 0], np.sum(f * f, axis=-1), f.shape[-1])

    def __add__(self, other):
        return SufficientStatistics(
            self.gram + other.gram,
            self.cross + other.cross,
            self.square + other.square,
            self.count + other.count,
        )

    def ridge(self, strength):
        """Weights (H, F) that minimise |f - Phiᵀ w|² + strength * sum_a (Phi Phiᵀ)_aa w_a².

        The penalty is relative to each feature's own size, so it does not depend on units.
        """
        size = np.diagonal(self.gram, axis1=-2, axis2=-1)  # (H, F)
        size = np.where(size > 0, size, 1.0)  # a feature that never varies gets weight 0
        scale = np.sqrt(size)
        correlation = self.gram / (scale[..., :, None] * scale[..., None, :])
        correlation = correlation + strength * np.eye(size.shape[-1])
        return np.linalg.solve(correlation, (self.cross / scale)[..., None])[..., 0] / scale

    def r_squared(self, weights):
        """Share of the dual's variance (over tokens, within sequences) that the weights explain, (H,)."""
        explained = 2 * np.sum(weights * self.cross, -1) - np.einsum("hf,hfg,hg->h", weights, self.gram, weights)
        return np.where(self.square > 0, explained / np.where(self.square > 0, self.square, 1.0), 1.0)


@dataclass(frozen=True)
class Amortizer:
    """A calibrated map from queries and keys to the query dual, with the settings that made it.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> q, k = rng.standard_normal((2, 16, 1, 6, 4))  # 16 sequences, one head, 6 tokens, dimension 4
    >>> amortizer = fit_amortizer([(q, k)], n_slices=4, n_iter=5)
    >>> amortizer.predict(q, k).shape
    (16, 1, 6)
    """

    directions: np.ndarray  # (d, L)
    weights: np.ndarray  # (H, F)
    cumulants: bool = True
    epsilon: float = 1.0
    n_iter: int = 20
    objective: str = "regression"
    r_squared: np.ndarray | None = None  # (H,) on the calibration data
    _placed: dict = field(default_factory=dict, repr=False, compare=False)

    def parameters(self, like):
        """(directions, weights) in the module, dtype and on the device of ``like``; copied there once."""
        xp = array_namespace(like)
        key = (xp.__name__, str(like.dtype), str(like.device))
        if key not in self._placed:
            self._placed[key] = tuple(
                xp.asarray(x, dtype=like.dtype, device=like.device) for x in (self.directions, self.weights)
            )
        return self._placed[key]

    def predict(self, q, k):
        """Predict the query dual of q (..., H, n, d) and k (..., H, m, d) -> (..., H, n)."""
        return amortized_query_dual(q, k, *self.parameters(q), cumulants=self.cumulants)

    def state(self):
        """(dict of arrays, JSON-ready settings), from which `from_state` rebuilds the amortizer."""
        arrays = {"directions": self.directions, "weights": self.weights}
        if self.r_squared is not None:
            arrays["r_squared"] = self.r_squared
        settings = {name: getattr(self, name) for name in ("cumulants", "epsilon", "n_iter", "objective")}
        return arrays, settings

    @classmethod
    def from_state(cls, arrays, settings):
        """Rebuild an amortizer from its `state`."""
        return cls(**arrays, **settings)

    def save(self, path):
        """Write the amortizer as .npz, atomically."""
        files.save(path, "amortizer", *self.state())

    @classmethod
    def load(cls, path):
        """Read an amortizer that `save` wrote."""
        return cls.from_state(*files.load(path, "amortizer"))


def fit_amortizer(
    batches,
    *,
    n_slices=32,
    n_iter=20,
    epsilon=1.0,
    objective="regression",
    cumulants=True,
    kind="orthogonal",
    ridge=1e-4,
    seed=0,
):
    """Calibrate an amortizer on queries and keys, against a Sinkhorn teacher of n_iter iterations.

    Parameters
    ----------
    batches : iterable of (q, k)
        q (batch, H, n, d) and k (batch, H, m, d), of any array module. Read once, one batch in memory.
    n_slices : int
        L, the number of slice directions.
    n_iter : int
        T, the teacher's iterations; at least 1. The target is its closure-ready dual f^(T-1).
    epsilon : float
        Regularisation of the teacher.
    objective : {"regression"}
        Ridge regression to the closure-ready dual (paper).
    cumulants : bool
        Whether to use the second-cumulant features (derived).
    kind, seed
        As in `slice_directions`.
    ridge : float
        Penalty, relative to each feature's second moment (ours).

    Returns
    -------
    Amortizer

    Raises
    ------
    TypeError, ValueError
        On wrong settings, empty batches, or batches that disagree in heads or dimension.

    Notes
    -----
    One Sinkhorn run a batch, O(T n m), dominates; the statistics are O(H F²) and the solve O(H F³).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> q, k = rng.standard_normal((2, 64, 2, 6, 4))  # 64 sequences, 2 heads, 6 tokens, dimension 4
    >>> amortizer = fit_amortizer([(q, k)], n_slices=8, n_iter=10)
    >>> amortizer.weights.shape
    (2, 11)
    """
    check_count(n_iter, "n_iter", "fit_amortizer", least=1)
    epsilon = check_epsilon(epsilon, "fit_amortizer")
    check_choice(objective, "objective", "fit_amortizer", ("regression",))
    if not ridge >= 0:
        raise ValueError(f"fit_amortizer: ridge must be at least 0, got {ridge}")
    statistics, directions = None, None
    for q, k in batches:
        xp = array_namespace(q, k)
        if directions is None:
            directions = slice_directions(q.shape[-1], n_slices, kind=kind, seed=seed)
        theta = xp.asarray(directions, dtype=q.dtype, device=q.device)
        features = dual_features(q, k, theta, cumulants=cumulants)
        target = sinkhorn(attention_scores(q, k), n_iter=n_iter - 1, epsilon=epsilon).query
        target = target - xp.mean(target, axis=-1, keepdims=True)
        batch = SufficientStatistics.of(features, target)
        statistics = batch if statistics is None else statistics + batch
    if statistics is None or statistics.count == 0:
        raise ValueError("fit_amortizer: batches is empty; give at least one (q, k)")
    weights = statistics.ridge(ridge)
    return Amortizer(
        directions,
        weights,
        cumulants=cumulants,
        epsilon=epsilon,
        n_iter=n_iter,
        objective=objective,
        r_squared=statistics.r_squared(weights),
    )
