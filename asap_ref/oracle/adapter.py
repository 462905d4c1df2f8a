"""Run a whole implementation through the oracle: a module whose functions are named as the operators.

README.md, "The contract of an adapter", says what such a module offers: a function for each operator it has, called
by keyword, and optionally

    to_array(x, dtype)      a NumPy array (float64, bool or int64) as the implementation's own, in the dtype of
                            that name ("float64", ..., "bool", "int64"); without it, NumPy arrays are passed
    <operator>_vjp(...)     same arguments -> (outputs, vjp), and vjp(cotangents) -> gradients of the real inputs
                            in their order; the last ones may be left out (an amortizer that is held fixed)

Without the latter, outputs that are torch or JAX arrays are differentiated by their own autograd.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path

import numpy as np

from asap_ref.oracle import whatif
from asap_ref.oracle.contract import Inputs, all_names, breaches, misfit, misspelt, right_signature
from asap_ref.oracle.module_report import ModuleReport
from asap_ref.oracle.stored import cases
from asap_ref.oracle.verdict import GRADIENT, Report, check

OWN = "asap_ref"  # whose operators take pairs of duals and amortizers, not the arrays they are made of
ONLY_LONG = ("slice_directions", "fit_amortizer", "training_trace", "compile_model")
AGAIN = "again"  # no layout: the same call once more
LAYOUTS = ("transposed", "interleaved", AGAIN)


def check_module(
    module,
    *,
    operator=None,
    flags=None,
    dtype="float64",
    version=None,
    require_gradients=False,
    stop_at_first=False,
    on_report=None,
):
    """Check every operator that a module offers.

    Parameters
    ----------
    module : module, or its name, or the path of a .py file
    operator, flags, version
        Which cases, as in `cases`.
    dtype : {"float64", "float32", "float16", "bfloat16"}
        What to compute in, and whose tolerances count.
    require_gradients : bool
        Whether a gradient that is not given fails.
    stop_at_first : bool
        Whether to stop at the first case that fails.
    on_report : callable, optional
        Told ``(number done, number of all, report)`` after each case.

    Returns
    -------
    ModuleReport

    Raises
    ------
    ValueError
        If the module offers none of the operators asked for.

    Examples
    --------
    >>> from asap_ref import oracle
    >>> oracle.check_module("asap_ref.oracle.reference", operator="softmax_attention").passed
    True
    """
    module, remark = resolved(module)
    wanted = cases(operator, flags, version)
    names = list(dict.fromkeys(case.operator for case in wanted))
    absent = tuple(name for name in names if not callable(getattr(module, name, None)))
    meant = misspelt(module, absent)
    if len(absent) == len(names):
        told = "".join(f"; is its {yours} meant to be {name}?" for name, yours in meant.items())
        raise ValueError(f"{module.__name__} offers none of {', '.join(names) or 'the operators asked for'}{told}")
    wanted = [case for case in wanted if case.operator not in absent]
    reports, skipped, layouts, misfits = [], [], [], set()
    run = dict(dtype=dtype, require_gradients=require_gradients)
    for done, case in enumerate(wanted, start=1):
        if reason := why_not(case, dtype):
            skipped.append((case.id, reason))
            continue
        function = getattr(module, case.operator)
        if misfit(function, [*case.inputs, *case.arguments]):
            wrong_call = f"your {case.operator} {misfit(function, all_names(case.operator))}"
            if case.operator in misfits:
                skipped.append((case.id, wrong_call))
                continue
            misfits.add(case.operator)  # said once
            text = f"{wrong_call}; it is called as {right_signature(case.operator)}"
            report = Report(case, dtype, breaches=(("signature", text),))
        else:
            tried = sum(not r.passed and r.case.operator == case.operator for r in reports)
            report = run_case(module, case, explain=tried < whatif.PER_OPERATOR, **run)
        reports.append(report)
        if on_report is not None:
            on_report(done, len(wanted), report)
        if stop_at_first and not report.passed:
            break
    else:
        layouts = in_other_layouts(module, reports, **run)
    report = ModuleReport(
        module.__name__,
        tuple(reports),
        absent,
        tuple(skipped),
        tuple(layouts),
        tuple(meant.items()),
        remark,
        stopped=stop_at_first and any(not report.passed for report in reports),
    )
    if report.failed:
        from asap_ref.oracle import shrinking  # built on this file

        family = shrinking.failing_family(module, report.first_operator(), dtype)
        report = dataclasses.replace(report, localised=family)
    return report


def resolved(module):
    """(the module that is meant, a remark if it is not the one named)."""
    module = load_module(module)
    if module.__name__ != OWN:
        return module, ""
    module = importlib.import_module("asap_ref.oracle.reference")
    return (
        module,
        f"{OWN} itself takes pairs of duals and amortizers: checked as {module.__name__}, which takes arrays",
    )


def why_not(case, dtype):
    """Say why a case is not asked in a dtype; an empty text if it is."""
    rules = case.at(dtype).rules["outputs"].values()
    if any(dtype in rule["tolerance"] for rule in rules):
        return ""
    if "float32_inside" in case.flags:
        return f"{dtype} has too few digits for its data"
    if case.operator in ONLY_LONG:
        return f"{dtype} is not asked of fits, whole models and random directions"
    return f"in {dtype} rounding alone changes the result by a quarter or more"


def in_other_layouts(module, reports, **run):
    """Run again, with views as inputs and just so, a passed case of each operator: with most and largest arrays."""
    best = {}
    for report in reports:
        inputs = report.case.inputs
        size = (len(inputs), sum(x.size for x in inputs.values()))
        if report.passed and any(x.ndim for x in inputs.values()) and "/" not in "".join(inputs):
            now = best.get(report.case.operator, ((0, 0), None))
            best[report.case.operator] = max(now, (size, report.case), key=lambda pair: pair[0])
    return [
        run_case(module, case, layout=layout, explain=False, **run)
        for _, case in best.values()
        for layout in LAYOUTS
    ]


def run_case(module, case, *, dtype="float64", require_gradients=False, layout=None, explain=True):
    """Compute one case with a module, gradients included where it can, and check it.

    An exception is a failure, and so is a breach of the contract: see contract.py. ``layout`` is one of those of
    `contract.Inputs`; the case's own if not given, or if it is "again". ``explain`` as in `check`.
    """
    case = case.at(dtype)
    own_layout = getattr(case, "layout", "contiguous")
    to_array = converter(module, dtype)
    inputs = Inputs(case.inputs, to_array, dtype, own_layout if layout in (None, AGAIN) else layout)
    cotangents = [to_array(x, dtype) for x in case.cotangents.values()]
    if layout == AGAIN:  # memory that outputs may come to lie in, and that they must fill
        left = [to_array(np.full_like(x, np.nan), dtype) for x in case.outputs.values()]
        del left
    try:
        outputs, gradients = _compute(module, case, dtype, inputs.arrays, cotangents)
    except Exception as error:  # whatever the implementation raises is what its author must see
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        what = next(iter(str(error).splitlines()), "")
        report = Report(case, dtype, message=f"raised {type(error).__name__}: {what} ({where})")
    else:
        named = dict(zip(case.outputs, _flat(outputs, case), strict=False))
        named = {name: x for name, x in named.items() if x is not None}
        named |= {f"{GRADIENT}{name}": x for name, x in (gradients or {}).items()}
        broken = breaches(inputs, named, dtype)
        report = _checked(
            case, outputs, gradients=gradients, dtype=dtype, require_gradients=require_gradients, explain=explain
        )
        report = dataclasses.replace(report, breaches=tuple(broken))
    if layout and layout != own_layout and not report.passed:
        name, text = "memory_layout", f"it does not when its inputs are views of larger arrays ({layout})"
        if layout == AGAIN:
            name, text = "not_repeatable", "it does not when it is asked for the same again"
        report = dataclasses.replace(report, breaches=((name, f"the case passes; {text}"), *report.breaches))
    return report


def _checked(case, outputs, *, dtype, **more):
    """`check`, where outputs without a name or number that fits are a failure and not an error of the caller."""
    if len(_flat(outputs, case)) and all(x is None for x in _flat(outputs, case)):
        return Report(case, dtype, message=f"returned None; expected {', '.join(case.outputs)}")
    try:
        return check(case, outputs, dtype=dtype, **more)
    except (ValueError, TypeError) as error:
        return Report(case, dtype, message=str(error))


def _compute(module, case, dtype, inputs, cotangents):
    """(outputs, gradients by name or None) of one call."""
    function = getattr(module, case.operator)
    asked = any(dtype in rule["tolerance"] for rule in case.rules["gradients"].values())
    if not cotangents or not asked:
        return function(**inputs, **case.arguments), None
    if callable(getattr(module, f"{case.operator}_vjp", None)):
        outputs, vjp = getattr(module, f"{case.operator}_vjp")(**inputs, **case.arguments)
        found = vjp(tuple(cotangents) if isinstance(outputs, tuple | list) else cotangents[0])
        found = found if isinstance(found, tuple | list) else (found,)
        floats = [name for name, x in case.inputs.items() if x.dtype.kind == "f"]
        gradients = {name: g for name, g in zip(floats, found, strict=False) if name in case.gradients}
        gradients = {name: g for name, g in gradients.items() if g is not None}
        return function(**inputs, **case.arguments), gradients  # the value without a backward pass is checked
    return _autograd(function, inputs, case, cotangents)


def _flat(outputs, case):
    """Outputs in their order, None where one is missing."""
    if isinstance(outputs, dict):
        return tuple(outputs.get(name) for name in case.outputs)
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def converter(module, dtype):
    """The module's ``to_array``, or that of NumPy; ValueError if it does not make arrays of the dtype."""
    to_array = getattr(module, "to_array", _numpy_array)
    try:
        to_array(np.zeros(2), dtype)
    except Exception as error:  # whatever the implementation raises is what its author must see
        if to_array is _numpy_array:
            raise ValueError(
                f"NumPy has no {dtype}: give the module a to_array(x, dtype) that makes arrays of what has it "
                "(torch, JAX), or check float16"
            ) from error
        name = getattr(module, "__name__", "the module")
        raise ValueError(f"{name}: to_array(x, {dtype!r}) raised {type(error).__name__}: {error}") from error
    return to_array


def _numpy_array(x, dtype):
    return x.astype(dtype)


def _autograd(function, inputs, case, cotangents):
    """(outputs, gradients by name) by the framework of the inputs; gradients are None for other arrays."""
    wanted, arguments = list(case.gradients), case.arguments
    framework = type(inputs[wanted[0]]).__module__.partition(".")[0]
    if framework == "torch":
        import torch

        leaves = {name: inputs[name].detach().requires_grad_() for name in wanted}  # views stay views
        outputs = function(**(inputs | leaves), **arguments)
        pairs = [
            (y, c)
            for y, c in zip(_flat(outputs, case), cotangents, strict=False)
            if y is not None and y.requires_grad
        ]
        if not pairs:
            return outputs, {name: torch.zeros_like(x) for name, x in leaves.items()}
        values, weights = zip(*((y, c.to(y.dtype)) for y, c in pairs), strict=True)
        found = torch.autograd.grad(values, list(leaves.values()), weights, allow_unused=True)
        zero = (torch.zeros_like(x) for x in leaves.values())
        filled = (z if g is None else g for g, z in zip(found, zero, strict=True))
        return outputs, dict(zip(leaves, filled, strict=True))
    if framework in ("jax", "jaxlib"):
        import jax

        def of_leaves(*leaves):
            return function(**(inputs | dict(zip(wanted, leaves, strict=True))), **arguments)

        outputs, vjp = jax.vjp(of_leaves, *(inputs[name] for name in wanted))
        by_name = dict(zip(case.cotangents, cotangents, strict=True))
        if isinstance(outputs, dict):
            weights = {name: by_name[name].astype(y.dtype) for name, y in outputs.items() if name in by_name}
        else:
            flat = _flat(outputs, case)
            weights = [c.astype(y.dtype) for y, c in zip(flat, cotangents, strict=False) if y is not None]
            if hasattr(outputs, "_fields"):
                weights = type(outputs)(*weights)
            else:
                weights = type(outputs)(weights) if isinstance(outputs, tuple | list) else weights[0]
        return outputs, dict(zip(wanted, vjp(weights), strict=True))
    return function(**inputs, **arguments), None


def load_module(module):
    """Return a module given as itself, by name, or as the path of a file."""
    if not isinstance(module, str | Path):
        return module
    path = Path(module)
    if path.suffix != ".py":
        if str(Path.cwd()) not in sys.path:  # as `python -m` does: modules of the folder one stands in
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(str(module))
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
