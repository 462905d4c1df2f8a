"""Types of the public names, written by .ci/public_types.py. Shapes are on the def lines of the code."""

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from types import ModuleType
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from asap_ref.calibration.amortizer import Amortizer as Amortizer
from asap_ref.extensions.cumulants import Cumulants as Cumulants
from asap_ref.extensions.moments import Moments as Moments
from asap_ref.extensions.one_pass import OnePass as OnePass
from asap_ref.extensions.quadratic import Quadratic as Quadratic
from asap_ref.fidelity.drift import Drift as Drift
from asap_ref.fidelity.report import FidelityReport as FidelityReport
from asap_ref.method.features import Slices as Slices
from asap_ref.method.regression import SufficientStatistics as SufficientStatistics
from asap_ref.method.transport import Duals as Duals
from asap_ref.model.architecture import Architecture as Architecture
from asap_ref.model.mechanism import Attention as Attention
from asap_ref.model.optimiser import TrainingSettings as TrainingSettings
from asap_ref.model.sequences import Sequences as Sequences
from asap_ref.model.transformer import Transformer as Transformer
from asap_ref.support.family import Family as Family

class _Array(Protocol):  # NumPy, CuPy, torch, JAX and other modules of the array API standard
    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...

_A = TypeVar("_A", bound=_Array)  # results are arrays of the module of the arguments
_M = TypeVar("_M", bound=_Array)  # masks, of that module as well
_Inputs = _Array | Sequences
_Path = str | PathLike[str]

__version__: str
__all__: list[str]

def accuracy(
    model: Transformer,
    inputs: _Inputs,
    labels: _Array,
) -> float: ...
def amortized_query_dual(
    q: _A,
    k: _A,
    families: Sequence[Family],
    weights: _A,
    *,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> _A: ...
def amortized_query_dual_vjp(
    q: _A,
    k: _A,
    families: Sequence[Family],
    weights: _A,
    *,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[Any, ...]]]: ...
def array_module(
    name: Literal["numpy", "cupy", "torch", "jax", "array_api_strict"],
) -> ModuleType: ...
def array_namespace(
    *arrays: _Array | None,
) -> ModuleType: ...
def asap_attention(
    q: _A,
    k: _A,
    v: _A,
    amortizer: Amortizer,
    *,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> _A: ...
def asap_attention_vjp(
    q: _A,
    k: _A,
    v: _A,
    amortizer: Amortizer,
    *,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[_A, ...]]]: ...
def attention_scores(
    q: _A,
    k: _A,
) -> _A: ...
def attention_scores_vjp(
    q: _A,
    k: _A,
) -> tuple[_A, Callable[[_A], tuple[_A, ...]]]: ...
def compile_model(
    model: Transformer,
    batches: Any,
    *,
    into: str = ...,
    n_slices: int = ...,
    candidates: int | None = ...,
    quadratic: int = ...,
    moments: int = ...,
    objective: Literal["regression", "kl"] = ...,
    refine: int = ...,
    fallback: float | None = ...,
    client: Any = ...,
    progress: bool = ...,
    **settings: Any,
) -> tuple[Transformer, list[dict[str, Any]]]: ...
def detect_drift(
    before: FidelityReport,
    after: FidelityReport,
    *,
    level: float = ...,
) -> Drift: ...
def dual_features(
    q: _A,
    k: _A,
    families: Sequence[Family],
    *,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> _A: ...
def dual_features_vjp(
    q: _A,
    k: _A,
    families: Sequence[Family],
    *,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[Any, ...]]]: ...
def dual_softmax_attention(
    q: _A,
    k: _A,
    v: _A,
    *,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> _A: ...
def dual_softmax_attention_vjp(
    q: _A,
    k: _A,
    v: _A,
    *,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[_A, ...]]]: ...
def entropic_c_transform(
    scores: _A,
    dual: _A,
    *,
    onto: Literal["key", "query"] = ...,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> _A: ...
def entropic_c_transform_vjp(
    scores: _A,
    dual: _A,
    *,
    onto: Literal["key", "query"] = ...,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[_A, ...]]]: ...
def fidelity_report(
    compiled: Transformer,
    inputs: _Inputs | list[_Inputs],
    *,
    teacher: Transformer | None = ...,
    most: int = ...,
) -> FidelityReport: ...
def fit_amortizer(
    batches: Any,
    *,
    n_slices: int = ...,
    n_iter: int = ...,
    epsilon: float = ...,
    objective: Literal["regression", "kl"] = ...,
    candidates: int | None = ...,
    ridge: float = ...,
    refine: int = ...,
    seed: int | np.random.Generator = ...,
    client: Any = ...,
    progress: bool = ...,
    **families: Any,
) -> Amortizer: ...
def initial_attention(
    q: _A,
    k: _A,
    v: _A,
    *,
    start: Literal["zero", "gaussian", "sorting"] = ...,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> _A: ...
def initial_attention_vjp(
    q: _A,
    k: _A,
    v: _A,
    *,
    start: Literal["zero", "gaussian", "sorting"] = ...,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[_A, ...]]]: ...
def initial_dual(
    q: _A,
    k: _A,
    *,
    start: Literal["zero", "gaussian", "sorting"] = ...,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> _A: ...
def initial_dual_vjp(
    q: _A,
    k: _A,
    *,
    start: Literal["zero", "gaussian", "sorting"] = ...,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[_A, ...]]]: ...
def kantorovich_potentials_1d(
    x: _A,
    y: _A,
    *,
    cost: Literal["bilinear", "sqeuclidean"] = ...,
    x_weights: _A | None = ...,
    y_weights: _A | None = ...,
    x_mask: _M | None = ...,
    y_mask: _M | None = ...,
) -> tuple[_A, _A]: ...
def kantorovich_potentials_1d_vjp(
    x: _A,
    y: _A,
    *,
    cost: Literal["bilinear", "sqeuclidean"] = ...,
    x_weights: _A | None = ...,
    y_weights: _A | None = ...,
    x_mask: _M | None = ...,
    y_mask: _M | None = ...,
) -> tuple[tuple[_A, _A], Callable[[tuple[_A, _A]], tuple[_A, ...]]]: ...
def load_model(
    path: _Path,
    *,
    backend: Literal["numpy", "cupy", "torch", "jax", "array_api_strict"] = ...,
) -> Transformer: ...
def marginal_error(
    plan: _A,
    *,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, _A]: ...
def mixed_attention(
    q: _A,
    k: _A,
    v: _A,
    parts: Iterable[tuple[Attention, Sequence[int]]],
    *,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> _A: ...
def mixed_attention_vjp(
    q: _A,
    k: _A,
    v: _A,
    parts: Iterable[tuple[Attention, Sequence[int]]],
    *,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[_A, ...]]]: ...
def one_sided_attention(
    q: _A,
    k: _A,
    v: _A,
    amortizer: Amortizer,
    *,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> _A: ...
def one_sided_attention_vjp(
    q: _A,
    k: _A,
    v: _A,
    amortizer: Amortizer,
    *,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[_A, ...]]]: ...
def over_relaxed_attention(
    q: _A,
    k: _A,
    v: _A,
    *,
    n_iter: int = ...,
    omega: float = ...,
    initial: Literal["softmax", "zero", "gaussian", "sorting"] = ...,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> _A: ...
def over_relaxed_attention_vjp(
    q: _A,
    k: _A,
    v: _A,
    *,
    n_iter: int = ...,
    omega: _A | float = ...,
    initial: Literal["softmax", "zero", "gaussian", "sorting"] = ...,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[_A, ...]]]: ...
def over_relaxed_dual(
    scores: _A,
    query_dual: _A,
    omega: _A | float,
    *,
    n_iter: int = ...,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> _A: ...
def over_relaxed_dual_vjp(
    scores: _A,
    query_dual: _A,
    omega: _A | float,
    *,
    n_iter: int = ...,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[_A, ...]]]: ...
def predict(
    model: Transformer,
    inputs: _Inputs,
    *,
    batch_size: int = ...,
) -> np.ndarray[Any, np.dtype[Any]]: ...
def recalibrate(
    amortizer: Amortizer,
    batches: Any,
    *,
    ridge: float = ...,
    forget: float = ...,
) -> Amortizer: ...
def sinkhorn(
    scores: _A,
    *,
    n_iter: int = ...,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
    init: _A | None = ...,
) -> Duals: ...
def sinkhorn_attention(
    q: _A,
    k: _A,
    v: _A,
    *,
    n_iter: int = ...,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> _A: ...
def sinkhorn_attention_vjp(
    q: _A,
    k: _A,
    v: _A,
    *,
    n_iter: int = ...,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[_A, ...]]]: ...
def sinkhorn_vjp(
    scores: _A,
    *,
    n_iter: int = ...,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
    init: _A | None = ...,
) -> tuple[Duals, Callable[[Duals], tuple[_A, ...]]]: ...
def slice_directions(
    dim: int,
    n_slices: int,
    *,
    kind: Literal["orthogonal", "gaussian"] = ...,
    seed: int | np.random.Generator = ...,
) -> np.ndarray[Any, np.dtype[np.float64]]: ...
def sliced_attention(
    q: _A,
    k: _A,
    v: _A,
    directions: _A | None = ...,
    *,
    temperature: float = ...,
    inverse_temperature: float = ...,
    hard: bool = ...,
    slices_at_once: int | None = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> _A: ...
def sliced_attention_vjp(
    q: _A,
    k: _A,
    v: _A,
    directions: _A | None = ...,
    *,
    temperature: float = ...,
    inverse_temperature: float = ...,
    hard: bool = ...,
    slices_at_once: int | None = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[_A, ...]]]: ...
def sliced_potentials(
    q: _A,
    k: _A,
    directions: _A,
    *,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, _A]: ...
def sliced_potentials_vjp(
    q: _A,
    k: _A,
    directions: _A,
    *,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[tuple[_A, _A], Callable[[tuple[_A, _A]], tuple[_A, ...]]]: ...
def soft_sort(
    x: _A,
    *,
    temperature: float = ...,
    hard: bool = ...,
    mask: _M | None = ...,
) -> _A: ...
def soft_sort_vjp(
    x: _A,
    *,
    temperature: float = ...,
    hard: bool = ...,
    mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[_A, ...]]]: ...
def softmax_attention(
    q: _A,
    k: _A,
    v: _A,
    *,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> _A: ...
def softmax_attention_vjp(
    q: _A,
    k: _A,
    v: _A,
    *,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[_A, ...]]]: ...
def to_numpy(
    x: _Array,
) -> np.ndarray[Any, np.dtype[Any]]: ...
def train(
    model: Transformer,
    inputs: _Inputs,
    labels: _Array,
    settings: TrainingSettings,
    *,
    augment: Callable[[Any, np.random.Generator], Any] | None = ...,
    checkpoint: _Path | None = ...,
    resume: bool = ...,
    label: str | None = ...,
    evaluate: Callable[[Transformer], dict[str, float]] | None = ...,
) -> tuple[Transformer, list[dict[str, Any]]]: ...
def transport_plan(
    scores: _A,
    duals: Duals | tuple[_A, _A],
    *,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> _A: ...
def transport_plan_vjp(
    scores: _A,
    duals: Duals | tuple[_A, _A],
    *,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[_A, Callable[[_A], tuple[_A, Duals]]]: ...
def two_sided_c_transform(
    scores: _A,
    query_dual: _A,
    *,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> Duals: ...
def two_sided_c_transform_vjp(
    scores: _A,
    query_dual: _A,
    *,
    epsilon: float = ...,
    query_mask: _M | None = ...,
    key_mask: _M | None = ...,
) -> tuple[Duals, Callable[[Duals], tuple[_A, ...]]]: ...
