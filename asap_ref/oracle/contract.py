"""The contract of an implementation, apart from the numbers: how it is called, and what it leaves alone.

A breach is a short name and a sentence; README.md, "The contract of an adapter", says the same to people.
"""

from __future__ import annotations

import difflib
import inspect

import numpy as np

from asap_ref.oracle.stored import operators
from asap_ref.oracle.verdict import dtype_name, to_host

HINTS = {
    "signature": "the function is called with the names on the page, arrays and arguments alike by keyword.",
    "missing_output": "all outputs are returned, in the order on the page, as a tuple or by name.",
    "missing_gradient": "gradients were required, and are not there.",
    "wrong_dtype": "results have the dtype of the inputs: compute in a longer one if you like, and convert once.",
    "wrong_device": "results stay on the device of the inputs.",
    "changed_inputs": "inputs are the caller's: copy before writing into them.",
    "memory_layout": (
        "inputs may be views: transposed, or every other element of a larger array. Ask for the strides, or copy."
    ),
    "not_repeatable": (
        "the same call gave another result: an output that is not written everywhere, a sum that does not begin "
        "with 0, a race, or a random number."
    ),
    "exception": "the implementation raised an error; the report has its text and line.",
}


def right_signature(operator):
    """How the operator is called: ``sinkhorn(scores, init=None, query_mask=None, ..., *, n_iter, epsilon)``."""
    known = operators()[operator]
    arrays = [name for name in known["inputs"] if "/" not in name]
    optional = [name for name in arrays if "optional" in known["inputs"][name]]
    text = [name if name not in optional else f"{name}=None" for name in arrays]
    text += ["*", *known["arguments"]] if known["arguments"] else []
    if len(arrays) < len(known["inputs"]):
        text.append("**parameters")  # names with a slash
    return f"{operator}({', '.join(text)})"


def misfit(function, given):
    """Say why a function cannot be called with these names; an empty text if it can."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin that has none
        return ""
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [name for name in given if name not in named and not takes_all]
    asked = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given
    ]
    by_place = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    reasons = []
    if unknown:
        reasons.append(f"does not take {', '.join(unknown)}{_meant(unknown, named)}")
    if asked:
        reasons.append(f"asks for {', '.join(asked)}, which the oracle does not have")
    if by_place:
        reasons.append(f"takes {', '.join(by_place)} by position only")
    return " and ".join(reasons)


def all_names(operator):
    """Every name by which the operator may be called."""
    known = operators()[operator]
    return [*known["inputs"], *known["arguments"]]


def _meant(unknown, named):
    pairs = [(name, *difflib.get_close_matches(name, named, n=1, cutoff=0.7)) for name in unknown]
    found = [f"{pair[0]} is your {pair[1]}?" for pair in pairs if len(pair) == 2]
    return f" ({' '.join(found)})" if found else ""


def misspelt(module, absent):
    """For operators that a module does not have: its function of nearly that name, where there is one."""
    known = {name.removesuffix("_vjp") for name in operators()}
    names = [
        name
        for name in dir(module)
        if not name.startswith("_") and name not in known and callable(getattr(module, name))
    ]
    close = {name: difflib.get_close_matches(name, names, n=1, cutoff=0.85) for name in absent}
    return {name: found[0] for name, found in close.items() if found}


# --------------------------------------------------------------------------------------------------------- a call


class Inputs:
    """The arrays of one call, in a memory layout, and whether the call left them as they were.

    Layouts: "contiguous", as ``to_array`` makes them; "transposed", with the axes in the opposite order in memory;
    "interleaved", every other element of an array that holds NaN between them.
    """

    def __init__(self, arrays, to_array, dtype, layout="contiguous"):
        lay = {"contiguous": contiguous, "transposed": transposed, "interleaved": interleaved}[layout]
        self.given = arrays
        self.arrays = {
            name: lay(x, lambda y: to_array(y, dtype if y.dtype.kind == "f" else str(y.dtype)))
            for name, x in arrays.items()
        }
        self.before = {name: np.array(to_host(x)) for name, x in self.arrays.items()}

    def changed(self):
        """Return names of the arrays that are no longer what they were."""
        return [
            name
            for name, x in self.arrays.items()
            if not np.array_equal(to_host(x), self.before[name], equal_nan=self.before[name].dtype.kind == "f")
        ]


def contiguous(x, convert):
    """An array as it is made."""
    return convert(x)


def transposed(x, convert):
    """An array whose axes lie in memory in the opposite order."""
    y = convert(np.ascontiguousarray(x.transpose()))
    axes = tuple(reversed(range(x.ndim)))
    return y.permute(axes) if hasattr(y, "permute") else y.transpose(axes)


def interleaved(x, convert):
    """Every other element, along the last axis, of an array twice as long; what lies between is NaN, or not x."""
    if not x.ndim:
        return convert(x)
    between = np.full_like(x, np.nan) if x.dtype.kind == "f" else ~x if x.dtype.kind == "b" else -1 - x
    return convert(np.stack([x, between], axis=-1).reshape(*x.shape[:-1], -1))[..., ::2]


def breaches(inputs, outputs, dtype):
    """Dtype, device and inputs after a call, as (name, sentence) pairs; ``outputs`` are arrays by name."""
    found = []
    float_inputs = [x for name, x in inputs.arrays.items() if inputs.given[name].dtype.kind == "f"]
    if float_inputs:
        kinds = {name: dtype_name(x) for name, x in outputs.items() if hasattr(x, "dtype")}
        wrong = {
            name: kind for name, kind in kinds.items() if kind.startswith(("float", "bfloat")) and kind != dtype
        }
        found += [
            ("wrong_dtype", f"{name} is {kind}; inputs are {dtype}, and so must results be")
            for name, kind in wrong.items()
        ]
        here = _device(float_inputs[0])
        elsewhere = {
            name: _device(x)
            for name, x in outputs.items()
            if type(x).__module__.partition(".")[0] == type(float_inputs[0]).__module__.partition(".")[0]
        }
        found += [
            ("wrong_device", f"{name} is on {place}; inputs are on {here}")
            for name, place in elsewhere.items()
            if place != here
        ]
    changed = inputs.changed()
    if changed:
        found.append(("changed_inputs", f"{', '.join(changed)} changed during the call"))
    return found


def _device(x):
    return str(getattr(x, "device", "cpu"))
