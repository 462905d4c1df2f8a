"""What every public operator promises about its arguments: written on its ``def`` line, and checked.

    @operator
    def sinkhorn(scores: "... n m", *, n_iter=20, epsilon=1.0, query_mask=None, key_mask=None, init: "... n" = None):

An annotation is the shape of an array; a parameter without one is a setting. The two masks, which almost every operator
takes, need none: ``query_mask`` is "... n" and ``key_mask`` is "... m", True at valid tokens.

    "... n m"           an array of trailing axes n and m; ``...`` are the leading (batch, head) axes
    "a b"               exactly these axes
    "d L | H d L"       one or the other
    "..."               any array, or a nest of arrays (dicts, tuples, dataclasses): the operator looks at them
    ("... n", "... m")  a tuple of arrays, such as Duals
    = None              the argument may be left out

Within a call equal letters are equal sizes, none is zero, and all ``...`` agree; those of masks and weights, parameters
whose names end so, may also broadcast to them, so that ``(B, 1, n)`` masks ``(B, H, n)``. The decorator makes the
promises that would otherwise stand in every docstring and clutter the mathematics:

- TypeError unless all arrays are of one module, one device and one real floating-point dtype (a mask is boolean, and
  ``inputs``, those of a model, may be integers); ValueError where a shape is not the one promised;
- settings that many operators share are checked as well: epsilon is positive, n_iter a count (settings.py);
- float16 and bfloat16 are computed in float32 and come back as they came;
- non-finite results are never silent: ValueError if an input was not finite, FloatingPointError if the dtype
  overflowed. The cause is looked for only then, so that the check costs one pass over the (small) output instead of
  one over every input, and one wait for the device (attentions that are kernels on CuPy do not wait: the error comes
  when results are brought to the host, asap_ref.fast.kernels.finite);
- no floating-point warning escapes: what matters is raised, the rest is meant (exp of -large is 0); and under
  `torch.autocast` it computes in the dtype of its arrays all the same.

An operator that another one calls is not checked again: the outermost speaks for those it calls.

Parameters that mean the same everywhere (`SHARED`) are described by the decorator, where the docstring does not.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading

import numpy as np

from asap_ref.support.arrays import is_array, is_half
from asap_ref.support.settings import check_settings
from asap_ref.support.shapes import check_kind, check_shapes, contract, kind_of, literal, named_arrays
from asap_ref.support.trees import map_leaves, named_leaves

_scope = threading.local()  # whether this thread is inside an operator

MASKS = {"query_mask": "... n", "key_mask": "... m"}
SHARED = {
    "q": "Queries.",
    "k": "Keys.",
    "v": "Values.",
    "scores": "Similarity S, the negative of the transport cost; any size.",
    "epsilon": "Regularisation, in the units of the scores; positive.",
    "query_mask": "True at valid queries, False at padding.",
    "key_mask": "True at valid keys, False at padding.",
}
CONTRACT = """Contract
--------
Shapes, module, device and dtype of arrays are checked, and that results are finite: TypeError, ValueError or
FloatingPointError, as of every operator (asap_ref.support.contracts)."""


def operator(function):
    """Decorate an operator, whose ``def`` line says the shapes of its arrays; see the module docstring."""
    written = {name: literal(x) for name, x in function.__annotations__.items()}
    shapes = {name: written.get(name, MASKS.get(name)) for name in inspect.signature(function).parameters}
    function.__doc__ = _with_shared_parameters(inspect.cleandoc(function.__doc__ or ""), shapes)
    return _checked(function, {name: shape for name, shape in shapes.items() if shape is not None}, CONTRACT)


def _with_shared_parameters(text, names):
    """Describe in a docstring that says what is returned the shared parameters that it leaves out."""
    before, head, rest = text.partition("Parameters\n----------\n")
    if not head:
        before, returns, after = text.partition("Returns\n-------\n")
        head, rest = "Parameters\n----------\n", f"\n{returns}{after}"
        if not returns:
            return text
    lines = [line for line in rest.partition("\n\n")[0].splitlines() if not line.startswith(" ")]
    own = {name.strip() for line in lines for name in line.partition(" : ")[0].split(",")}
    shared = [f"{name}\n    {SHARED[name]}\n" for name in names if name in SHARED and name not in own]
    return f"{before}{head}{''.join(shared)}{rest}" if shared else text


def vjp_of(forward):
    """Decorate the VJP of an operator, which takes the same arguments: their shapes are those of its ``def`` line."""

    def decorate(function):
        annotations = _of_same_parameters(function, forward).__annotations__
        return _checked(function, annotations, f"Parameters\n----------\nThose of `{forward.__name__}`.", CONTRACT)

    return decorate


def fast_form_of(definition):
    """Decorate a faster form of an operator, which takes over its name, contract and docstring.

    What the two promise is said once, at the definition; the docstring of the fast form says how it keeps it.
    """

    def decorate(function):
        readable = _of_same_parameters(function, definition)
        home, how = f"{readable.__module__}.{readable.__name__}", inspect.cleandoc(function.__doc__ or "")
        function.__name__ = readable.__name__  # in messages; __qualname__ still says where it stands
        function.__doc__ = definition.__doc__
        see = f"See Also\n--------\n{home} : the definition, against which this form is tested.\n    {how}"
        return _checked(function, readable.__annotations__, see)

    return decorate


def _of_same_parameters(function, operator):
    """Return what an operator decorates; raise TypeError unless the function takes the same parameters."""
    other = inspect.unwrap(operator)
    ours, theirs = (
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()] for f in (function, other)
    )
    if ours != theirs:
        raise TypeError(f"{function.__qualname__} must have the parameters of {other.__qualname__}")
    return other


def _checked(function, annotations, *more):
    """Check the arguments of a function against annotations; `help` shows these, and more behind its docstring."""
    function.__annotations__ = dict(annotations)
    function.__doc__ = "\n\n".join((inspect.cleandoc(function.__doc__ or ""), *more))
    name, signature = function.__name__, inspect.signature(function)
    bind = signature.bind
    contracts = {key: contract(shape) for key, shape in function.__annotations__.items()}
    required = {key for key in contracts if signature.parameters[key].default is inspect.Parameter.empty}

    def examined(*args, **kwargs):
        """Arguments by name, checked, with settings converted; [(name, array, forms)]; their module."""
        arguments = bind(*args, **kwargs).arguments
        arrays = named_arrays(name, arguments, contracts, required)
        xp = check_kind(name, arrays)
        check_shapes(name, arrays)
        check_settings(name, arguments)
        return arguments, arrays, xp

    @functools.wraps(function)
    def checked(*args, **kwargs):
        if is_inside():
            return function(*args, **kwargs)
        arguments, arrays, xp = examined(*args, **kwargs)
        half = next((x.dtype for _, x, _ in arrays if kind_of(xp, x.dtype) == "half"), None)
        if half is not None:
            arguments |= {key: _cast_half(xp, arguments[key]) for key in contracts if key in arguments}
        result = inside(function, **arguments)
        if isinstance(result, tuple) and callable(result[-1]):
            value, vjp = result
            _explain_non_finite(xp, name, value, arrays)
            value = _cast_back(xp, name, value, half)
            return value, _checked_vjp(xp, name, value, vjp, half)
        _explain_non_finite(xp, name, result, arrays)
        return _cast_back(xp, name, result, half)

    checked.examined = examined
    return checked


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
        check_kind(name, [*arrays, ("value", outputs[0], None)])
        if half is not None:
            cotangent = _cast_half(xp, cotangent)
        gradients = inside(vjp, cotangent)
        _explain_non_finite(xp, f"{name} (backward)", gradients, arrays)
        return _cast_back(xp, f"{name} (backward)", gradients, half)

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
        with np.errstate(all="ignore"), in_their_dtypes():
            return function(*args, **kwargs)
    finally:
        _scope.inside = False


@contextlib.contextmanager
def in_their_dtypes():
    """Let torch compute in the dtypes of its arrays inside: `torch.autocast` would round products to half."""
    torch = sys.modules.get("torch")
    is_on = getattr(torch, "is_autocast_enabled", None)  # another thread may be importing it
    with contextlib.ExitStack() as off:
        for device in ("cpu", "cuda") if is_on else ():
            if is_on(device):
                off.enter_context(torch.autocast(device, enabled=False))
        yield


# ------------------------------------------------------------------------------------------------- the results


def _cast_half(xp, x):
    """Float16 and bfloat16 arrays to float32; everything else as it is."""
    return map_leaves(
        lambda leaf: xp.astype(leaf, xp.float32) if is_array(leaf) and is_half(leaf.dtype) else leaf, x
    )


def _cast_back(xp, function, x, half):
    """Results to the half precision of the inputs; raise if a number does not fit (65504 is the largest of float16)."""
    if half is None:
        return x
    with np.errstate(over="ignore"):
        back = map_leaves(lambda leaf: xp.astype(leaf, half) if kind_of(xp, leaf.dtype) == "float" else leaf, x)
    for _, leaf in named_leaves(function, back):
        if kind_of(xp, leaf.dtype) == "half" and not bool(xp.all(xp.isfinite(xp.astype(leaf, xp.float32)))):
            raise FloatingPointError(
                f"{function}: the result does not fit into {half}; convert the input to float32"
            )
    return back


def _explain_non_finite(xp, function, result, arrays):
    """If a result is not finite, say which input is to blame, or that the dtype overflowed."""
    floats = [x for _, x in named_leaves(function, result) if kind_of(xp, x.dtype) in ("float", "half")]
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
    what = "NaN" if any(bool(xp.any(xp.isnan(x))) for x in floats) else "infinity"
    largest = max((float(xp.max(xp.abs(x))) for name, x, _ in arrays if not name.endswith("mask")), default=0.0)
    raise FloatingPointError(
        f"{function}: the result overflows {dtype} although every input is finite (it holds {what}, inputs reach "
        f"{largest:.3g}); scale the input down, raise epsilon, or use float64"
    )
