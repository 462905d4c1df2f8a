"""What every public operator promises about its arguments, written on its ``def`` line and checked.

``@operator(q="n d", k="m d", v="m p")`` states the trailing axes of each array; equal letters are equal
sizes, and the leading (batch, head) axes agree. The decorator makes the promises that would otherwise
clutter the mathematics:

- one array module and one device; real floating point (masks: boolean);
- float16 and bfloat16 are computed in float32 and come back as they came;
- non-finite results are never silent: the cause is looked for only then, so that the check costs one pass
  over the (small) output instead of one over every input;
- no floating-point warning escapes: what matters is raised, the rest is meant (exp of -large is 0).
"""

from __future__ import annotations

import functools
import inspect
import math
import threading

import numpy as np

from asap_ref.arrays import array_namespace, is_array, is_half

_scope = threading.local()  # the outermost operator speaks for those it calls


def operator(**shapes):
    """Decorate an operator with the shapes of its array arguments; see the module docstring.

    A value is the trailing axes, as in ``"n m"``; a tuple of such strings is a tuple of arrays (duals).
    An argument whose name ends in ``mask`` is boolean and may broadcast along the leading axes.
    ``None`` leaves the trailing axes to the operator.
    """

    def decorate(function):
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args, **kwargs):
            if getattr(_scope, "inside", False):
                return function(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            arrays = _named_arrays(bound.arguments, shapes)
            xp = _check_kind(function.__name__, arrays)
            _check_shapes(function.__name__, arrays)
            _check_settings(function.__name__, bound.arguments)
            half = {x.dtype for _, x, _ in arrays if is_half(x.dtype)}
            dtype = half.pop() if half else None
            if dtype is not None:
                for name in shapes:
                    if name in bound.arguments:
                        bound.arguments[name] = _cast_half(xp, bound.arguments[name])
            result = inside(function, *bound.args, **bound.kwargs)
            if not (isinstance(result, tuple) and callable(result[-1])):  # no VJP asked for
                _explain_non_finite(xp, function.__name__, result, arrays)
                return _cast_back(xp, result, dtype)
            value, vjp = result
            _explain_non_finite(xp, function.__name__, value, arrays)
            value = _cast_back(xp, value, dtype)
            return value, _checked_vjp(xp, function.__name__, value, vjp, dtype)

        return checked

    return decorate


def _checked_vjp(xp, name, value, vjp, dtype):
    @functools.wraps(vjp)
    def checked(cotangent):
        outputs = value if isinstance(value, tuple) else (value,)
        given = cotangent if isinstance(value, tuple) else (cotangent,)
        arrays = []
        for i, (output, c) in enumerate(zip(outputs, given, strict=True)):
            label = f"cotangent[{i}]" if len(outputs) > 1 else "cotangent"
            if not is_array(c) or tuple(c.shape) != tuple(output.shape):
                got = tuple(c.shape) if is_array(c) else type(c).__name__
                raise ValueError(f"{name}: {label} must have the value's shape {tuple(output.shape)}, got {got}")
            arrays.append((label, c, None))
        _check_kind(name, [*arrays, ("value", outputs[0], None)])
        if dtype is not None:
            cotangent = _cast_half(xp, cotangent)
        gradients = inside(vjp, cotangent)
        _explain_non_finite(xp, f"{name} (backward)", gradients, arrays)
        return _cast_back(xp, gradients, dtype)

    return checked


def inside(function, *args, **kwargs):
    """Call a function as part of an operator whose arguments have been checked, on this thread."""
    if getattr(_scope, "inside", False):
        return function(*args, **kwargs)
    _scope.inside = True
    try:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)
    finally:
        _scope.inside = False


def _leaves(x):
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, tuple | list):
        return [leaf for item in x for leaf in _leaves(item)]
    return [x] if x is not None else []


def _named_arrays(arguments, shapes):
    """[(name, array, shape contract)], a tuple such as Duals counting as several."""
    arrays = []
    for name, contract in shapes.items():
        value = arguments.get(name)
        if value is None:
            continue
        if isinstance(contract, tuple):
            if not isinstance(value, tuple | list) or len(value) != len(contract):
                raise TypeError(f"{name} must be a tuple of {len(contract)} arrays, got {type(value).__name__}")
            arrays += [(f"{name}[{i}]", x, c) for i, (x, c) in enumerate(zip(value, contract, strict=True))]
        else:
            arrays.append((name, value, contract))
    return arrays


def _check_kind(function, arrays):
    """Check one module, one device, and the kinds of dtype; return the module."""
    for name, x, _ in arrays:
        if not is_array(x):
            raise TypeError(f"{function}: {name} must be an array, got {type(x).__name__}; use numpy.asarray")
    try:
        xp = array_namespace(*(x for _, x, _ in arrays))
    except TypeError as error:
        raise TypeError(f"{function}({', '.join(name for name, _, _ in arrays)}): {error}") from None
    dtypes = {}
    for name, x, _ in arrays:
        if name.endswith("mask"):
            if x.dtype != xp.bool:
                raise TypeError(
                    f"{function}: {name} must be boolean (True = a valid token), got {x.dtype}; try {name} != 0"
                )
        elif not (is_half(x.dtype) or xp.isdtype(x.dtype, "real floating")):
            raise TypeError(
                f"{function}: {name} must be real floating point, got {x.dtype}; convert it to float32"
            )
        else:
            dtypes.setdefault(str(x.dtype), name)
    if len(dtypes) > 1:
        got = ", ".join(f"{name} is {dtype}" for dtype, name in dtypes.items())
        raise TypeError(f"{function}: arrays must share one dtype, got {got}; convert them to one")
    return xp


def _check_shapes(function, arrays):
    sizes, leading, first = {}, None, None
    for name, x, contract in arrays:
        if contract is None:
            continue
        axes, shape = contract.split(), tuple(x.shape)
        expected = f"(..., {', '.join(axes)})"
        if len(shape) < len(axes):
            raise ValueError(
                f"{function}: {name} has shape {shape}, expected at least {len(axes)} axes {expected}"
            )
        split = len(shape) - len(axes)
        for axis, size in zip(axes, shape[split:], strict=True):
            known, owner = sizes.setdefault(axis, (size, name))
            if size != known:
                raise ValueError(
                    f"{function}: {name} has shape {shape}, "
                    f"expected {expected} with {axis} = {known} as in {owner}"
                )
            if size == 0:
                raise ValueError(f"{function}: {name} has shape {shape}; its axis {axis} must not be empty")
        if leading is None:
            leading, first = shape[:split], name
        elif name.endswith("mask"):
            if not _broadcasts(shape[:split], leading):
                raise ValueError(
                    f"{function}: {name} has shape {shape}, whose leading axes do not broadcast to {leading}, "
                    f"those of {first}; insert axes of size 1, as in {name}[:, None, :]"
                )
        elif shape[:split] != leading:
            raise ValueError(
                f"{function}: {name} has shape {shape}, "
                f"expected {expected} with leading axes {leading} as in {first}"
            )


def _broadcasts(shape, onto):
    return len(shape) <= len(onto) and all(
        s in (1, o) for s, o in zip(reversed(shape), reversed(onto), strict=False)
    )


def _check_settings(function, arguments):
    if "epsilon" in arguments:
        # a Python float: a NumPy scalar would turn float32 arrays into float64
        arguments["epsilon"] = check_epsilon(arguments["epsilon"], function)
    if "n_iter" in arguments:
        check_count(arguments["n_iter"], "n_iter", function, least=0)


def check_epsilon(epsilon, function):
    """Return epsilon as a float; raise unless it is a positive finite number."""
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float | np.floating):
        raise TypeError(f"{function}: epsilon must be a number, got {type(epsilon).__name__}")
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"{function}: epsilon must be positive and finite, got {epsilon}")
    return float(epsilon)


def check_count(value, name, function, *, least):
    """Raise unless value is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{function}: {name} must be an integer, got {type(value).__name__} {value!r}")
    if value < least:
        raise ValueError(f"{function}: {name} must be at least {least}, got {value}")


def check_choice(value, name, function, choices):
    """Raise unless value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{function}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _cast_half(xp, x):
    """Float16 and bfloat16 arrays to float32; everything else as it is."""
    if isinstance(x, tuple | list):
        parts = [_cast_half(xp, item) for item in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return xp.astype(x, xp.float32) if is_array(x) and is_half(x.dtype) else x


def _cast_back(xp, x, dtype):
    if dtype is None or x is None:
        return x
    if isinstance(x, dict):
        return {key: _cast_back(xp, item, dtype) for key, item in x.items()}
    if isinstance(x, tuple):
        parts = [_cast_back(xp, item, dtype) for item in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    return xp.astype(x, dtype)


def _explain_non_finite(xp, function, result, arrays):
    """If a result is not finite, say which input is to blame, or that the dtype overflowed."""
    if all(bool(xp.all(xp.isfinite(x))) for x in _leaves(result)):
        return
    for name, x, _ in arrays:
        if name.endswith("mask") or bool(xp.all(xp.isfinite(x))):
            continue
        what = "NaN" if bool(xp.any(xp.isnan(x))) else "infinity"
        raise ValueError(
            f"{function}: {name} contains {what}; pass finite values (padding belongs in query_mask and key_mask)"
        )
    dtype = arrays[0][1].dtype
    raise FloatingPointError(
        f"{function}: the result overflows {dtype} although every input is finite; "
        "scale the input down, raise epsilon, or use float64"
    )
