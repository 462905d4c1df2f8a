"""Every public callable on arrays of every dtype of every module: right, or refused with the dtype in the message.

The callables and their arguments are those of public.py, so that a new one is covered without being listed. What is
right: the numbers of NumPy in float64 on the same (rounded) values, within a tolerance of the dtype, gradients too.
"""

import contextlib
import dataclasses
import re

import numpy as np
import public

import asap_ref as ar
from asap_ref.support.arrays import array_module, array_namespace, from_numpy, is_array, is_half, to_numpy
from asap_ref.support.trees import map_leaves, tree_map

FLOATS = ("float16", "bfloat16", "float32", "float64")
OTHERS = ("int8", "int16", "int32", "int64", "uint8", "bool", "complex64", "complex128")
MODULES = {  # with what each has besides, or lacks
    "numpy": (*FLOATS, *OTHERS),  # longdouble is for the definitions alone: the oracle's makers use it
    "array_api_strict": ("float32", "float64", *OTHERS),
    "torch": (*FLOATS, *OTHERS, "float8_e4m3fn"),
    "jax": (*FLOATS, *OTHERS),
}
# what the rounding of a result of that dtype is to its largest entry, and a sharp plan makes more of it
TOLERANCE = {"float16": 5e-3, "bfloat16": 4e-2, "float32": 2e-4, "float64": 1e-9}
RIGHT, REFUSED, NO_ARRAYS = "right", "refused", "takes no arrays"


@contextlib.contextmanager
def switched(module):
    """JAX has float64 only where it is told so."""
    if module != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


def dtype_of(module, name):
    """The dtype of a module, or None if it has none of that name."""
    if module == "numpy" and name == "bfloat16":
        import ml_dtypes  # comes with JAX

        return np.dtype(ml_dtypes.bfloat16)
    return getattr(array_module(module), name, None)


def _values(x, dtype):
    """Values that an array of that dtype holds, from those of float64."""
    if "float" in dtype or "double" in dtype:
        return x
    scaled = np.round(2 * np.abs(x) if dtype.startswith("u") else 2 * x)
    return scaled > 0 if dtype == "bool" else scaled


def placed(x, module, name):
    """An array of real numbers in a module and dtype; masks and labels as they are."""
    if x.dtype.kind != "f":
        return from_numpy(x, array_module(module)) if module != "numpy" else x
    values, dtype = _values(x, name), dtype_of(module, name)
    if module == "numpy":
        return values.astype(dtype)
    if name == "float8_e4m3fn":
        return from_numpy(values, array_module(module)).to(dtype)
    return from_numpy(values, array_module(module), dtype=dtype)


def _of_model(model, change):
    return dataclasses.replace(model, params=tree_map(change, model.params))


def _changed(value, change):
    """Arguments with all arrays changed: of models their parameters; reports and settings have none that count."""
    if isinstance(value, ar.Transformer):
        return _of_model(value, change)
    if isinstance(value, ar.FidelityReport | ar.Amortizer | ar.TrainingSettings):
        return value
    if isinstance(value, list):
        return [_changed(part, change) for part in value]
    return map_leaves(lambda x: change(x) if is_array(x) else x, value)


def numbers(value):
    """What a result says in numbers, as float64 arrays on the host: of a model its predictions."""
    if isinstance(value, ar.Amortizer):
        return [np.asarray(value.predict(public.Q, public.Q))]
    if isinstance(value, ar.Transformer):
        wide = _of_model(value, lambda x: to_numpy(x).astype(np.float64))
        return [ar.predict(wide, public.IMAGES)]
    if isinstance(value, ar.FidelityReport):
        return numbers(value.samples)
    if isinstance(value, dict):
        return [x for key in sorted(value) for x in numbers(value[key])]
    if isinstance(value, tuple | list):
        return [x for part in value for x in numbers(part)]
    if is_array(value):
        x = to_numpy(value)
        return [x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return numbers([getattr(value, field.name) for field in dataclasses.fields(value)])
    return [np.asarray(float(value))] if isinstance(value, int | float) else []


def _result(name, arguments):
    """(numbers of the value and of its gradients, arrays of the value)."""
    value = getattr(ar, name)(**arguments)
    if isinstance(value, tuple) and callable(value[-1]):
        value, vjp = value
        cotangent = map_leaves(lambda x: x / x.shape[-1] if x.ndim else x, value)
        return numbers((value, vjp(cotangent))), value
    return numbers(value), value


def arguments_of(name, module, dtype):
    """The right arguments of a public callable, its arrays in that module and dtype; None if it takes no arrays."""
    right, names = public.parameters(name, getattr(ar, name))
    if name == "to_numpy":
        right = {"x": public.Q}
    if not right and "x" not in names:
        return None
    found = {key: _changed(value, lambda x: placed(x, module, dtype)) for key, value in right.items()}
    if "labels" in found or name == "predict":  # what a model is trained on stays on the host
        host = "numpy" if dtype_of("numpy", dtype) is not None else module
        found |= {"inputs": placed(right["inputs"], host, dtype)}
        found |= {key: right[key] for key in ("labels",) if key in found}
    return found if any(found[key] is not right[key] for key in found) else None


def outcome(name, module, dtype):
    """``right``, ``refused`` or what is wrong, of a public callable on arrays of a module and dtype."""
    arguments = arguments_of(name, module, dtype)
    if arguments is None:
        return NO_ARRAYS
    try:
        found, value = _result(name, arguments)
    except (TypeError, ValueError) as error:
        told = str(error)
        named = re.search(r"dtype|float|complex|integer|bool|int\d|numbers|NumPy array", told)
        ours = re.search(rf"\b{name.removesuffix('_vjp')}|must|expected", told)
        return REFUSED if named and ours else f"{type(error).__name__}: {told[:100]}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]}"
    if not (dtype in TOLERANCE or name == "to_numpy"):
        return f"taken, and gives {len(found)} arrays"
    expected, _ = _result(name, {key: _changed(x, _plain) for key, x in arguments.items()})
    tolerance = TOLERANCE.get(dtype, 0.0)
    for x, y in zip(found, expected, strict=True):
        off = np.abs(x - y).max(initial=0) / max(1e-30, np.abs(y).max(initial=0))
        if not off <= tolerance and np.abs(x - y).max(initial=0) > tolerance:
            return f"off by {off:.1e}"
    if is_array(value) and _is_real(value) and name in OPERATORS and value.dtype != dtype_of(module, dtype):
        return f"{dtype} gives {value.dtype}"
    return RIGHT


def _plain(x):
    return to_numpy(x).astype(np.float64) if _is_real(x) else to_numpy(x)


def _is_real(x):
    return is_half(x.dtype) or array_namespace(x).isdtype(x.dtype, "real floating")


OPERATORS = [name for name, function in public.public_callables() if hasattr(function, "examined")]
NAMES = [name for name, _ in public.public_callables()]
