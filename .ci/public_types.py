"""Write asap_ref/__init__.pyi: the types of the public names, for type checkers and editors.

    python .ci/public_types.py           rewrite it
    python .ci/public_types.py --check   only say whether it is up to date

On the ``def`` line of an operator an annotation is the shape of an array, which is checked when it is called. Type
checkers want types. Here the signatures are read, each parameter gets its type (arrays by having a shape, settings by
their names, which mean the same everywhere), and the result is a stub that takes the place of the door alone.
"""

import inspect
import sys
from pathlib import Path

import asap_ref

STUB = Path(asap_ref.__file__).with_name("__init__.pyi")
HEAD = '''"""Types of the public names, written by .ci/public_types.py. Shapes are on the def lines of the code."""

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from types import ModuleType
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
'''
ARRAY = """
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
"""
BACKEND = 'Literal["numpy", "cupy", "torch", "jax", "array_api_strict"]'
SETTINGS = {  # by name
    "n_iter": "int",
    "epsilon": "float",
    "onto": 'Literal["key", "query"]',
    "cost": 'Literal["bilinear", "sqeuclidean"]',
    "start": 'Literal["zero", "gaussian", "sorting"]',
    "initial": 'Literal["softmax", "zero", "gaussian", "sorting"]',
    "kind": 'Literal["orthogonal", "gaussian"]',
    "objective": 'Literal["regression", "kl"]',
    "temperature": "float",
    "inverse_temperature": "float",
    "hard": "bool",
    "slices_at_once": "int | None",
    "omega": "_A | float",
    "duals": "Duals | tuple[_A, _A]",
    "families": "Sequence[Family]",
    "weights": "_A",
    "amortizer": "Amortizer",
    "parts": "Iterable[tuple[Attention, Sequence[int]]]",
    "dim": "int",
    "n_slices": "int",
    "seed": "int | np.random.Generator",
    "batches": "Any",  # what `asap_ref.calibration.sources.resolved` takes: arrays, pairs, paths, zarr, dask
    "candidates": "int | None",
    "quadratic": "int",
    "moments": "int",
    "ridge": "float",
    "forget": "float",
    "refine": "int",
    "client": "Any",
    "progress": "bool",
    "into": "str",
    "fallback": "float | None",
    "model": "Transformer",
    "compiled": "Transformer",
    "teacher": "Transformer | None",
    "inputs": "_Inputs",
    "labels": "_Array",
    "settings": "TrainingSettings",
    "augment": "Callable[[Any, np.random.Generator], Any] | None",
    "checkpoint": "_Path | None",
    "resume": "bool",
    "label": "str | None",
    "evaluate": "Callable[[Transformer], dict[str, float]] | None",
    "batch_size": "int",
    "before": "FidelityReport",
    "after": "FidelityReport",
    "level": "float",
    "most": "int",
    "path": "_Path",
    "backend": BACKEND,
    "name": BACKEND,
    "arrays": "_Array | None",
}
OTHERWISE = {
    ("omega", "over_relaxed_attention"): "float",
    ("inputs", "fidelity_report"): "_Inputs | list[_Inputs]",
}
RESULTS = {  # of functions; the attentions give an array
    "amortized_query_dual": "_A",
    "attention_scores": "_A",
    "dual_features": "_A",
    "entropic_c_transform": "_A",
    "initial_dual": "_A",
    "over_relaxed_dual": "_A",
    "soft_sort": "_A",
    "transport_plan": "_A",
    "kantorovich_potentials_1d": "tuple[_A, _A]",
    "sliced_potentials": "tuple[_A, _A]",
    "marginal_error": "tuple[_A, _A]",
    "sinkhorn": "Duals",
    "two_sided_c_transform": "Duals",
    "accuracy": "float",
    "array_module": "ModuleType",
    "array_namespace": "ModuleType",
    "compile_model": "tuple[Transformer, list[dict[str, Any]]]",
    "detect_drift": "Drift",
    "fidelity_report": "FidelityReport",
    "fit_amortizer": "Amortizer",
    "load_model": "Transformer",
    "predict": "np.ndarray[Any, np.dtype[Any]]",
    "recalibrate": "Amortizer",
    "slice_directions": "np.ndarray[Any, np.dtype[np.float64]]",
    "to_numpy": "np.ndarray[Any, np.dtype[Any]]",
    "train": "tuple[Transformer, list[dict[str, Any]]]",
}
GRADIENTS = {  # of VJPs whose gradients are not all arrays: dicts of families, pairs of duals
    "amortized_query_dual_vjp": "tuple[Any, ...]",
    "dual_features_vjp": "tuple[Any, ...]",
    "transport_plan_vjp": "tuple[_A, Duals]",
}


def type_of(function, parameter):
    """Type of a parameter."""
    if parameter.name.endswith("mask"):
        return "_M | None"
    if (parameter.name, function) in OTHERWISE:
        return OTHERWISE[parameter.name, function]
    if parameter.kind is parameter.VAR_KEYWORD:
        return "Any"
    if parameter.name in SETTINGS:
        return SETTINGS[parameter.name]
    if function == "to_numpy":
        return "_Array"
    if not isinstance(parameter.annotation, str):
        sys.exit(f"{function}: no type is known for {parameter.name}; add it to .ci/public_types.py")
    return "_A" if parameter.default is parameter.empty else "_A | None"


def result_of(name):
    """Type of what a function returns."""
    value = name.removesuffix("_vjp")
    result = RESULTS.get(value) or ("_A" if value.endswith("_attention") else None)
    if result is None:
        sys.exit(f"{name}: no result is known; add it to .ci/public_types.py")
    if value == name:
        return result
    return f"tuple[{result}, Callable[[{result}], {GRADIENTS.get(name, 'tuple[_A, ...]')}]]"


def parameters_of(name, function):
    """Parameters as they stand on a ``def`` line, a string each."""
    keyword_only = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            yield "*"
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else " = ..."
        yield f"{stars}{parameter.name}: {type_of(name, parameter)}{default}"


def stub():
    """Text of the stub, as ruff formats it."""
    classes = [name for name in asap_ref.__all__ if inspect.isclass(getattr(asap_ref, name))]
    functions = [name for name in asap_ref.__all__ if name not in classes]
    imports = sorted(f"from {getattr(asap_ref, name).__module__} import {name} as {name}\n" for name in classes)
    lines = [HEAD, "\n", *imports, ARRAY, "\n"]
    for name in functions:
        parameters = "".join(f"    {each},\n" for each in parameters_of(name, getattr(asap_ref, name)))
        lines.append(f"def {name}(\n{parameters}) -> {result_of(name)}: ...\n")
    return "".join(lines)


def formatted(text):
    """Text of a stub in the house's format."""
    import subprocess

    command = [sys.executable, "-m", "ruff", "format", "-q", "--stdin-filename", str(STUB), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    text = formatted(stub())
    if "--check" not in sys.argv:
        STUB.write_text(text)
    elif STUB.read_text() != text:
        sys.exit(f"{STUB.name} is out of date: run python .ci/public_types.py")
