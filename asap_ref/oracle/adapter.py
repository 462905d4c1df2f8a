"""Run a whole implementation through the oracle: a module whose functions are named as the operators.

The adapter module offers, for each operator it has, a function of that name that takes the inputs and arguments
of the manifest by keyword and returns the outputs in their order. It may also offer

    to_array(x, dtype)      a NumPy array (float64, bool or int64) as the implementation's own, in the dtype of
                            that name ("float64", ..., "bool", "int64"); without it, NumPy arrays are passed
    <operator>_vjp(...)     same arguments -> (outputs, vjp), and vjp(cotangents) -> gradients of the real inputs
                            in their order; the last ones may be left out (an amortizer that is held fixed)

Without the latter, outputs that are torch or JAX arrays are differentiated by their own autograd.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asap_ref.oracle.case import cases, operators
from asap_ref.oracle.check import Report, check
from asap_ref.oracle.diagnosis import LEAST_OF_FLOAT32, MOST_OF_FLOAT32


@dataclass(frozen=True)
class ModuleReport:
    """Reports of all cases of a module; `.passed`, and a text that says where to begin."""

    name: str
    reports: tuple
    absent: tuple  # operators that the module does not have
    version: int = 1

    @property
    def passed(self):
        """Whether every case of every operator that is there passed, and there was one."""
        return bool(self.reports) and all(report.passed for report in self.reports)

    @property
    def failed(self):
        """Reports that did not pass, lowest operator first."""
        return tuple(report for report in self.reports if not report.passed)

    def first_operator(self):
        """Return the lowest operator that fails: what stands above it may be right."""
        failing = {report.case.operator for report in self.failed}
        return next((name for name in operators(self.version) if name in failing), None)

    def suspects(self):
        """Flags of the failing cases of the lowest failing operator, most telling first.

        If few cases fail, a flag tells much if those that bear it fail and others pass. If most fail, so does the
        ordinary case, whose flags describe the formula itself; rather those than flags that other operators share.
        Wrong gradients of right values, and errors of the size of float32, speak for themselves.
        """
        first = self.first_operator()
        mine = [report for report in self.reports if report.case.operator == first]
        failed = [report for report in mine if not report.passed]
        most = 2 * len(failed) > len(mine)
        scores = {}
        for flag in {flag for report in failed for flag in report.case.flags} - {"plain"}:
            with_flag = [not r.passed for r in mine if flag in r.case.flags]
            without = [not r.passed for r in mine if flag not in r.case.flags]
            fails, others_fail = (sum(x) / len(x) if x else 0.0 for x in (with_flag, without))
            ordinary = flag in failed[0].case.flags
            told = (ordinary, fails) if most else (round(fails - others_fail, 1), ordinary)
            own = len(with_flag) / sum(flag in case.flags for case in cases(version=self.version))
            scores[flag] = (*told, own, flag)
        ranked = sorted(scores, key=scores.get, reverse=True)
        wrong = [c for report in failed for c in report.comparisons if c.status == "wrong"]
        if wrong and all(c.name.startswith("gradient") for c in wrong) and not any(r.message for r in failed):
            ranked.insert(0, "gradient_through_both_sides")
        if wrong and all(LEAST_OF_FLOAT32 < c.error < MOST_OF_FLOAT32 for c in wrong):
            ranked.insert(0, "float32_inside")
        return list(dict.fromkeys(ranked))

    def __str__(self):
        lines = [str(report) for report in self.failed]
        n = len(self.reports)
        lines.append(f"{self.name}: {n - len(self.failed)} of {n} cases passed")
        if self.absent:
            lines.append(f"not there, not checked: {', '.join(self.absent)}")
        without = sorted(
            {
                report.case.operator
                for report in self.reports
                if any(c.status == "not given" and c.name.startswith("gradient") for c in report.comparisons)
            }
        )
        if without:
            lines.append(f"not all gradients given: {', '.join(without)}")
        if self.failed:
            first = self.first_operator()
            lines.append(f"begin with {first}, the lowest operator that fails: others are built on it")
            lines.append(f"its failures have most in common: {', '.join(self.suspects()[:3])}")
        return "\n".join(lines)


def check_module(module, *, operator=None, flags=None, dtype="float64", version=1):
    """Check every operator that a module offers.

    Parameters
    ----------
    module : module, or its name, or the path of a .py file
    operator, flags, version
        Which cases, as in `cases`.
    dtype : {"float64", "float32", "float16", "bfloat16"}
        What to compute in, and whose tolerances count.

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
    module = load_module(module)
    wanted = [case for case in cases(operator, flags, version) if runs_in(case, dtype)]
    names = list(dict.fromkeys(case.operator for case in wanted))
    absent = tuple(name for name in names if not callable(getattr(module, name, None)))
    if len(absent) == len(names):
        raise ValueError(f"{module.__name__} offers none of {', '.join(names) or 'the operators asked for'}")
    reports = tuple(run_case(module, case, dtype=dtype) for case in wanted if case.operator not in absent)
    return ModuleReport(module.__name__, reports, absent, version)


def runs_in(case, dtype):
    """Whether the case has a tolerance for the dtype."""
    return any(dtype in rule["tolerance"] for rule in case.rules["outputs"].values())


def run_case(module, case, *, dtype="float64"):
    """Compute one case with a module, gradients included where it can, and check it; an exception is a failure."""
    function = getattr(module, case.operator)
    to_array = getattr(module, "to_array", _numpy_array)
    inputs = {name: to_array(x, dtype if x.dtype.kind == "f" else str(x.dtype)) for name, x in case.inputs.items()}
    cotangents = [to_array(x, dtype) for x in case.cotangents.values()]
    gradients = None
    try:
        if not cotangents or not any(dtype in rule["tolerance"] for rule in case.rules["gradients"].values()):
            outputs = function(**inputs, **case.arguments)
        elif callable(getattr(module, f"{case.operator}_vjp", None)):
            outputs, vjp = getattr(module, f"{case.operator}_vjp")(**inputs, **case.arguments)
            found = vjp(tuple(cotangents) if isinstance(outputs, tuple | list) else cotangents[0])
            floats = [name for name, x in case.inputs.items() if x.dtype.kind == "f"]
            gradients = {name: g for name, g in zip(floats, found, strict=False) if name in case.gradients}
            outputs = function(**inputs, **case.arguments)  # the value without a backward pass is the one to check
        else:
            wanted = list(case.gradients)
            outputs, gradients = _autograd(function, inputs, case.arguments, wanted, cotangents)
    except Exception as error:  # whatever the implementation raises is what its author must see
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        what = next(iter(str(error).splitlines()), "")
        return Report(case, dtype, message=f"raised {type(error).__name__}: {what} ({where})")
    return check(case, outputs, gradients=gradients, dtype=dtype)


def _numpy_array(x, dtype):
    return x.astype(dtype)


def _autograd(function, inputs, arguments, wanted, cotangents):
    """(outputs, gradients by name) by the framework of the inputs; gradients are None for other arrays."""
    framework = type(inputs[wanted[0]]).__module__.partition(".")[0]
    if framework == "torch":
        import torch

        leaves = {name: inputs[name].clone().requires_grad_() for name in wanted}
        outputs = function(**(inputs | leaves), **arguments)
        flat = outputs if isinstance(outputs, tuple | list) else (outputs,)
        pairs = [(y, c) for y, c in zip(flat, cotangents, strict=True) if y.requires_grad]
        if not pairs:
            return outputs, {name: torch.zeros_like(x) for name, x in leaves.items()}
        values, weights = zip(*pairs, strict=True)
        found = torch.autograd.grad(values, list(leaves.values()), weights, allow_unused=True)
        zero = (torch.zeros_like(x) for x in leaves.values())
        filled = (z if g is None else g for g, z in zip(found, zero, strict=True))
        return outputs, dict(zip(leaves, filled, strict=True))
    if framework in ("jax", "jaxlib"):
        import jax

        def of_leaves(*leaves):
            return function(**(inputs | dict(zip(wanted, leaves, strict=True))), **arguments)

        outputs, vjp = jax.vjp(of_leaves, *(inputs[name] for name in wanted))
        structure = tuple(cotangents) if isinstance(outputs, tuple | list) else cotangents[0]
        if hasattr(outputs, "_fields"):
            structure = type(outputs)(*cotangents)
        return outputs, dict(zip(wanted, vjp(structure), strict=True))
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


def numpy_inputs(case, dtype="float64"):
    """Inputs of a case as NumPy arrays of that dtype, masks and labels as they are."""
    return {name: x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x for name, x in case.inputs.items()}
