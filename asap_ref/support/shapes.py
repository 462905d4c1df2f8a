"""Shapes written as annotations, and arrays checked against them: the grammar is that of contracts.py."""

from __future__ import annotations

import ast
import functools
from typing import NamedTuple

from asap_ref.support.arrays import array_namespace, check_values_are_known, is_array, is_half
from asap_ref.support.trees import named_leaves


class Form(NamedTuple):
    """One way an array may be shaped: its axes, and whether leading ones may come before them."""

    leading: bool
    axes: tuple[str, ...]

    def __str__(self):
        written = ("...",) * self.leading + self.axes
        return f"({', '.join(written)}{',' * (len(written) == 1)})"


def literal(annotation):
    """What was written: with ``from __future__ import annotations`` it comes as source, ``"'... n m'"``."""
    return ast.literal_eval(annotation) if isinstance(annotation, str) and annotation[0] in "'\"(" else annotation


def contract(shape):
    """The forms of an array, None where any will do; a list of these for a tuple of arrays."""
    if isinstance(shape, tuple):
        return [contract(part) for part in shape]
    if shape == "...":
        return None
    forms = [form.split() for form in shape.split("|")]
    return tuple(Form(axes[0] == "...", tuple(axis for axis in axes if axis != "...")) for axes in forms)


def named_arrays(function, arguments, contracts, required):
    """[(name, array, forms or None)]; a tuple such as Duals, or a dict, counts as several arrays."""
    arrays = []
    for name, forms in contracts.items():
        value = arguments.get(name)
        if value is None and name not in required:
            continue
        if isinstance(forms, list):
            if not isinstance(value, tuple | list) or len(value) != len(forms):
                raise TypeError(
                    f"{function}: {name} must be a tuple of {len(forms)} arrays, got {type(value).__name__}"
                )
            arrays += [(f"{name}[{i}]", x, f) for i, (x, f) in enumerate(zip(value, forms, strict=True))]
        elif forms is None and value is not None:
            arrays += [(label, x, None) for label, x in named_leaves(name, value)]
        else:
            arrays.append((name, value, forms))
    return arrays


def check_kind(function, arrays):
    """Check one module, one device, and the kinds of dtype; return the module."""
    for name, x, _ in arrays:
        if not is_array(x):
            raise TypeError(f"{function}: {name} must be an array, got {type(x).__name__}; use numpy.asarray")
    try:
        xp = array_namespace(*(x for _, x, _ in arrays))
        for name, x, _ in arrays:
            check_values_are_known(x, name)
    except TypeError as error:
        raise TypeError(f"{function}({', '.join(name for name, _, _ in arrays)}): {error}") from None
    first = None
    for name, x, _ in arrays:
        kind = kind_of(xp, x.dtype)
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
def kind_of(xp, dtype):
    """Say what kind of dtype it is: asked for every argument of every call, so remembered."""
    if is_half(dtype):
        return "half"
    if "float8" in str(dtype):  # torch counts it among the real floating ones, but computes next to nothing in it
        return "other"
    return next((kind for kind in KINDS if xp.isdtype(dtype, KINDS[kind])), "other")


def check_shapes(function, arrays):
    """Check that equal letters are equal sizes and that leading axes agree; ValueError says which does not."""
    sizes, leading, first, problems = {}, None, None, None
    for name, x, forms in arrays:
        if forms is None:
            continue
        shape = tuple(x.shape)
        form = forms[0] if len(forms) == 1 else next((f for f in forms if len(f.axes) == len(shape)), forms[0])
        axes, split = form.axes, len(shape) - len(form.axes)
        if split < 0 or (split and not form.leading):
            expected = f"at least {len(axes)} axes {form}" if form.leading else " or ".join(map(str, forms))
            raise ValueError(f"{function}: {name} has shape {shape}, expected {expected}")
        if name.endswith("mask") and "n" in sizes and "m" in sizes:  # queries and keys
            alone = sum(other.endswith("mask") for other, _, _ in arrays) == 1
            _refuse_mask_of_pairs(function, name, x, (sizes["n"][0], sizes["m"][0]), problems, alone)
        for axis, size in zip(axes, shape[split:], strict=True):
            known, owner = sizes.setdefault(axis, (size, name))
            if size != known:
                raise ValueError(
                    f"{function}: {name} has shape {shape}, expected {form} with {axis} = {known} as in {owner}"
                )
            if size == 0:
                raise ValueError(f"{function}: {name} has shape {shape}; its axis {axis} must not be empty")
        if not form.leading:
            continue
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
                f"{function}: {name} has shape {shape}, expected {form} with leading axes {leading} as in {first}"
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
        if not alone or len(shape) > 2 or 1 in shape or not bool(xp.all(mask == xp.tril(mask | ~mask))):
            return
    raise ValueError(
        f"{function}: {name} has shape {shape}, one entry a pair of query and key, but masks mark padding: "
        "(..., n) for queries, (..., m) for keys. A causal mask leaves a doubly-stochastic plan only the identity "
        "(the first query may use the first key alone, so no other query may, and so on): causal models need "
        "softmax attention, as in torch's scaled_dot_product_attention(..., is_causal=True)"
    )


def _broadcasts(shape, onto):
    return len(shape) <= len(onto) and all(
        s in (1, o) for s, o in zip(reversed(shape), reversed(onto), strict=False)
    )
