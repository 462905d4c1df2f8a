"""What every public operator promises about its arguments, written on its ``def`` line and checked.

``@operator(q="n d", k="m d", v="m p")`` states the trailing axes of each array; equal letters are equal
sizes, and the leading (batch, head) axes agree. The decorator makes the promises that would otherwise
clutter the mathematics:

- one array module and one device; real floating point (masks: boolean);
- float16 and bfloat16 are computed in float32 and come back as they came;
- non-finite results are never silent: the cause is looked for only then, so that the check costs one pass
  over the (small) output instead of one over every input, and one wait for the device;
- no floating-point warning escapes: what matters is raised, the rest is meant (exp of -large is 0).

An operator that another one calls is not checked again: the outermost speaks for those it calls.
"""

from __future__ import annotations

import functools
import inspect
import math
import threading

import numpy as np

from asap_ref.support.arrays import array_namespace, is_array, is_half
from asap_ref.support.trees import flatten

_scope = threading.local()  # whether this thread is inside an operator


def operator(**shapes):
    """Decorate an operator with the shapes of its array arguments; see the module docstring.

    A value is the trailing axes, as in ``"n m"``; a tuple of such strings is a tuple of arrays (duals).
    An argument whose name ends in ``mask`` is boolean; it and ``weights`` may broadcast along the leading axes.
    ``None`` leaves the trailing axes to the operator, and allows a nested dict of arrays (parameters).
    ``inputs``, those of a model, may also be integers: the model knows whether it takes token ids.
    """
    contracts = {name: _axes(contract) for name, contract in shapes.items()}

    def decorate(function):
        name, signature = function.__name__, inspect.signature(function)
        bind = signature.bind
        required = {key for key in contracts if signature.parameters[key].default is inspect.Parameter.empty}

        def examined(*args, **kwargs):
            """The arguments by name, settings converted; [(name, array, axes)]; their module."""
            arguments = bind(*args, **kwargs).arguments
            arrays = _named_arrays(name, arguments, contracts, required)
            xp = _check_kind(name, arrays)
            _check_shapes(name, arrays)
            check_settings(name, arguments)
            return arguments, arrays, xp

        @functools.wraps(function)
        def checked(*args, **kwargs):
            if is_inside():
                return function(*args, **kwargs)
            arguments, arrays, xp = examined(*args, **kwargs)
            half = next((x.dtype for _, x, _ in arrays if _kind(xp, x.dtype) == "half"), None)
            if half is not None:
                arguments |= {key: _cast_half(xp, arguments[key]) for key in contracts if key in arguments}
            result = inside(function, **arguments)
            if isinstance(result, tuple) and callable(result[-1]):
                value, vjp = result
                _explain_non_finite(xp, name, value, arrays)
                value = _cast_back(xp, value, half)
                return value, _checked_vjp(xp, name, value, vjp, half)
            _explain_non_finite(xp, name, result, arrays)
            return _cast_back(xp, result, half)

        checked.examined = examined
        return checked

    return decorate


def _checked_vjp(xp, name, value, vjp, half):
    outputs = value if isinstance(value, tuple) else (value,)

    @functools.wraps(vjp)
    def checked(cotangent):
        given = cotangent if isinstance(value, tuple) else (cotangent,)
        if not isinstance(given, tuple | list) or len(given) != len(outputs):
            got = f"{len(given)}" if isinstance(given, tuple | list) else type(given).__name__
            raise ValueError(
                f"{name}: cotangent must be a tuple of {len(outputs)} arrays, as the value, got {got}"
            )
        arrays = []
        for i, (output, c) in enumerate(zip(outputs, given, strict=True)):
            label = f"cotangent[{i}]" if len(outputs) > 1 else "cotangent"
            if output.ndim == 0 and isinstance(c, int | float):
                continue  # a number stands for a 0-d array
            if not is_array(c) or tuple(c.shape) != tuple(output.shape):
                got = tuple(c.shape) if is_array(c) else type(c).__name__
                raise ValueError(f"{name}: {label} must have the value's shape {tuple(output.shape)}, got {got}")
            arrays.append((label, c, None))
        _check_kind(name, [*arrays, ("value", outputs[0], None)])
        if half is not None:
            cotangent = _cast_half(xp, cotangent)
        gradients = inside(vjp, cotangent)
        _explain_non_finite(xp, f"{name} (backward)", gradients, arrays)
        return _cast_back(xp, gradients, half)

    return checked


def is_inside():
    """Say whether this thread is inside an operator, whose arguments have been checked."""
    return getattr(_scope, "inside", False)


def inside(function, *args, **kwargs):
    """Call a function as part of an operator whose arguments have been checked, on this thread."""
    if is_inside():
        return function(*args, **kwargs)
    _scope.inside = True
    try:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)
    finally:
        _scope.inside = False


# ------------------------------------------------------------------------------------------------- the arrays


def _axes(contract):
    """Split ``"n m"`` into its letters, and a tuple of such strings into a list of them."""
    if isinstance(contract, tuple):
        return [_axes(part) for part in contract]
    return None if contract is None else tuple(contract.split())


def _named_arrays(function, arguments, contracts, required):
    """[(name, array, axes or None)]; a tuple such as Duals, or a dict, counts as several arrays."""
    arrays = []
    for name, axes in contracts.items():
        value = arguments.get(name)
        if value is None and name not in required:
            continue
        if isinstance(axes, list):
            if not isinstance(value, tuple | list) or len(value) != len(axes):
                raise TypeError(
                    f"{function}: {name} must be a tuple of {len(axes)} arrays, got {type(value).__name__}"
                )
            arrays += [(f"{name}[{i}]", x, a) for i, (x, a) in enumerate(zip(value, axes, strict=True))]
        elif axes is None and isinstance(value, dict):
            arrays += [(f"{name}/{key}", x, None) for key, x in flatten(value).items()]
        else:
            arrays.append((name, value, axes))
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
    first = None
    for name, x, _ in arrays:
        kind = _kind(xp, x.dtype)
        if name.endswith("mask"):
            if kind != "boolean":
                raise TypeError(
                    f"{function}: {name} must be boolean (True = a valid token), got {x.dtype}; try {name} != 0"
                )
        elif name == "inputs" and kind == "integer":
            continue
        elif kind not in ("float", "half"):
            raise TypeError(
                f"{function}: {name} must be real floating point, got {x.dtype}; convert it to float32"
            )
        elif first is None:
            first = name, x.dtype
        elif x.dtype != first[1]:
            raise TypeError(
                f"{function}: arrays must share one dtype, got {first[0]} is {first[1]}, {name} is {x.dtype}; "
                "convert them to one"
            )
    return xp


KINDS = {"float": "real floating", "boolean": "bool", "integer": "integral"}


@functools.cache
def _kind(xp, dtype):
    """Say what kind of dtype it is: asked for every argument of every call, so remembered."""
    if is_half(dtype):
        return "half"
    return next((kind for kind in KINDS if xp.isdtype(dtype, KINDS[kind])), "other")


def _check_shapes(function, arrays):
    sizes, leading, first, problems = {}, None, None, None
    for name, x, axes in arrays:
        if axes is None:
            continue
        shape = tuple(x.shape)
        split = len(shape) - len(axes)
        if split < 0:
            raise ValueError(
                f"{function}: {name} has shape {shape}, expected at least {len(axes)} axes {_written(axes)}"
            )
        if name.endswith("mask") and "n" in sizes and "m" in sizes:  # queries and keys
            alone = sum(other.endswith("mask") for other, _, _ in arrays) == 1
            _refuse_mask_of_pairs(function, name, x, (sizes["n"][0], sizes["m"][0]), problems, alone)
        for axis, size in zip(axes, shape[split:], strict=True):
            known, owner = sizes.setdefault(axis, (size, name))
            if size != known:
                raise ValueError(
                    f"{function}: {name} has shape {shape}, "
                    f"expected {_written(axes)} with {axis} = {known} as in {owner}"
                )
            if size == 0:
                raise ValueError(f"{function}: {name} has shape {shape}; its axis {axis} must not be empty")
        if leading is None:
            leading, first = shape[:split], name
            problems = shape[: -min(len(axes), 2)]  # batch and heads, whether the contract names H or not
        elif name.endswith(("mask", "weights")):
            if not _broadcasts(shape[:split], problems):
                raise ValueError(
                    f"{function}: {name} has shape {shape}, whose leading axes do not broadcast to {problems}, "
                    f"those of {first}; insert axes of size 1, as in {name}[:, None, :]"
                )
        elif shape[:split] != leading:
            raise ValueError(
                f"{function}: {name} has shape {shape}, "
                f"expected {_written(axes)} with leading axes {leading} as in {first}"
            )


def _refuse_mask_of_pairs(function, name, mask, pairs, problems, alone):
    """Refuse a mask of (query, key) pairs, the causal one above all, where masks of tokens are meant.

    A lower triangle may also be the padding of sequences of lengths 1, 2, ..., n, if n of them make the batch.
    It is taken for that where the other mask is given as well, as self-attention over padding does.
    """
    shape = tuple(mask.shape)
    if shape[-2:] != pairs:
        return
    if _broadcasts(shape[:-1], problems):
        xp = array_namespace(mask)
        if not alone or len(shape) > 2 or shape[0] == 1 or not bool(xp.all(mask == xp.tril(mask | ~mask))):
            return
    raise ValueError(
        f"{function}: {name} has shape {shape}, one entry a pair of query and key, but masks mark padding: "
        "(..., n) for queries, (..., m) for keys. A causal mask leaves a doubly-stochastic plan only the identity "
        "(the first query may use the first key alone, so no other query may, and so on): causal models need "
        "softmax attention, as in torch's scaled_dot_product_attention(..., is_causal=True)"
    )


def _written(axes):
    return f"(..., {', '.join(axes)})"


def _broadcasts(shape, onto):
    return len(shape) <= len(onto) and all(
        s in (1, o) for s, o in zip(reversed(shape), reversed(onto), strict=False)
    )


# ----------------------------------------------------------------------------------------------- the settings

LEAST = {"n_iter": 0, "block": 1}  # counts that operators take, and how small they may be


def check_settings(function, arguments):
    """Check the settings among the arguments; epsilon becomes a Python float there."""
    if "epsilon" in arguments:
        # a Python float: a NumPy scalar would turn float32 arrays into float64
        arguments["epsilon"] = check_epsilon(arguments["epsilon"], function)
    for name, least in LEAST.items():
        if arguments.get(name) is not None:
            check_count(arguments[name], name, function, least=least)
    if "amortizer" in arguments and not hasattr(arguments["amortizer"], "predict"):
        got = type(arguments["amortizer"]).__name__
        raise TypeError(f"{function}: amortizer must be an Amortizer, as from fit_amortizer, got {got}")


def check_epsilon(epsilon, function):
    """Return epsilon as a float; raise unless it is a positive finite number."""
    return check_positive(epsilon, "epsilon", function)


def check_positive(value, name, function, *, or_zero=False):
    """Return value as a float; raise unless it is a positive (or zero, where that is allowed) finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and (value > 0 or (or_zero and value == 0))):
        bound = "at least 0" if or_zero else "positive"
        raise ValueError(f"{function}: {name} must be {bound} and finite, got {value}")
    return float(value)


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


# ------------------------------------------------------------------------------------------------- the results


def _cast_half(xp, x):
    """Float16 and bfloat16 arrays to float32; everything else as it is."""
    return _map(lambda leaf: xp.astype(leaf, xp.float32) if is_array(leaf) and is_half(leaf.dtype) else leaf, x)


def _cast_back(xp, x, half):
    return x if half is None else _map(lambda leaf: None if leaf is None else xp.astype(leaf, half), x)


def _map(change, x):
    """Apply a change to every array of an array, a tuple (named or not), a list or a dict."""
    if isinstance(x, dict):
        return {key: _map(change, item) for key, item in x.items()}
    if isinstance(x, tuple | list):
        parts = [_map(change, item) for item in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return change(x)


def _leaves(x):
    if isinstance(x, dict):
        x = x.values()
    elif not isinstance(x, tuple | list):
        return [] if x is None else [x]
    return [leaf for item in x for leaf in _leaves(item)]


def _explain_non_finite(xp, function, result, arrays):
    """If a result is not finite, say which input is to blame, or that the dtype overflowed."""
    floats = [x for x in _leaves(result) if _kind(xp, x.dtype) in ("float", "half")]
    # joined first: one wait for the device
    if floats and bool(functools.reduce(lambda a, b: a & b, [xp.all(xp.isfinite(x)) for x in floats])):
        return
    for name, x, _ in arrays:
        if name.endswith("mask") or bool(xp.all(xp.isfinite(x))):
            continue
        what = "NaN" if bool(xp.any(xp.isnan(x))) else "infinity"
        raise ValueError(
            f"{function}: {name} contains {what}; pass finite values (padding belongs in query_mask and key_mask)"
        )
    if not floats:  # counts, which say nothing of what they were made from
        return
    dtype = floats[0].dtype
    raise FloatingPointError(
        f"{function}: the result overflows {dtype} although every input is finite; "
        "scale the input down, raise epsilon, or use float64"
    )
