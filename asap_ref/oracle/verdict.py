"""Compare what an implementation computed with a case, and say readably what is wrong.

The rule for each array: after what is free by gauge has been taken out, the largest deviation, divided by the
*scale* that the manifest gives (the largest expected entry), is at most the tolerance for the dtype. Plans,
potentials and gradients have many entries that are nearly zero, so nothing is compared entry by entry.
"""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from dataclasses import dataclass, field

import numpy as np

from asap_ref.oracle import gauge
from asap_ref.oracle.diagnosis import diagnose
from asap_ref.oracle.stored import Case
from asap_ref.support.arrays import to_numpy

DTYPES = ("float64", "float32", "float16", "bfloat16")
GRADIENT = "gradient of "
MOST_HINTS = 4


@dataclass(frozen=True)
class Comparison:
    """One array of a case against what was expected."""

    name: str
    status: str  # "ok", "wrong", "missing" (an output), "not given" (a gradient) or "not checked"
    error: float = 0.0  # largest deviation over the scale
    tolerance: float = 0.0
    worst: tuple = ()  # its index
    found: float = 0.0
    expected: float = 0.0
    remarks: tuple = ()  # what the error looks like
    evidence: tuple = ()  # flags that the remarks speak for
    problem: str = ""  # why entries cannot be compared at all

    @property
    def share(self):
        """Error as a share of the tolerance: up to 1 passes."""
        return self.error / self.tolerance if self.tolerance else float(self.error > 0)

    def __str__(self):
        if self.status in ("not given", "not checked"):
            return f"  {self.name:<22} {self.status}"
        if self.status == "missing":
            return f"  {self.name:<22} MISSING it was not returned"
        if self.status == "ok":
            return f"  {self.name:<22} ok      {self.share:.2g} of the tolerance {self.tolerance:.1e}"
        line = f"  {self.name:<22} WRONG   "
        if self.problem:
            return line + self.problem
        at = f"at [{', '.join(map(str, self.worst))}] " if self.worst else ""
        line += f"error {self.error:.2e} is {self.share:.2g} times the tolerance {self.tolerance:.1e};"
        worst = f"  {'':<22}         worst {at}found {self.found:.10g}, expected {self.expected:.10g}"
        indents = {"initial_indent": f"  {'':<22} - ", "subsequent_indent": f"  {'':<22}   "}
        remarks = [text for remark in self.remarks for text in textwrap.wrap(remark, 96, **indents)]
        return "\n".join([line, worst, *remarks])


@dataclass(frozen=True)
class Report:
    """Outcome of `check`: `.passed`, and a text that says what is wrong and where to look."""

    case: Case
    dtype: str
    comparisons: tuple = field(default_factory=tuple)
    message: str = ""  # why nothing could be compared
    breaches: tuple = ()  # of the contract: (name, sentence), see contract.py

    @property
    def passed(self):
        """Whether every output is there, and it and all else that was given is within its tolerance."""
        judged = [c for c in self.comparisons if c.status in ("ok", "wrong", "missing")]
        return not (self.message or self.breaches) and bool(judged) and all(c.status == "ok" for c in judged)

    @property
    def wrong(self):
        """Names of the arrays that are wrong or missing."""
        return tuple(c.name for c in self.comparisons if c.status in ("wrong", "missing"))

    @property
    def only_absent(self):
        """Whether all that fails is not there: then there is nothing that a hint could explain."""
        absent = [c.status == "missing" for c in self.comparisons if c.status in ("wrong", "missing")]
        return bool(absent) and all(absent) and not (self.message or self.breaches)

    def _hints(self):
        """The hints of a failure: those that the wrong arrays speak for, then those of the case, not too many."""
        hints = dict(line.split(": ", 1) for line in self.case.hint.splitlines())
        spoken = [flag for c in self.comparisons for flag in c.evidence if flag in hints]
        flags = list(dict.fromkeys([*spoken, *hints]))
        flags = [flag for flag in flags if flag != "half_gradients" or self.dtype in ("float16", "bfloat16")]
        return [f"{flag}: {hints[flag]}" for flag in flags[:MOST_HINTS]]

    def as_dict(self):
        """Return the report as plain dicts and lists, for JSON."""

        def finite(x):
            return x if np.isfinite(x) else str(x)

        return {
            "case": self.case.id,
            "dtype": self.dtype,
            "passed": self.passed,
            "message": self.message,
            "breaches": [list(pair) for pair in self.breaches],
            "comparisons": [
                {
                    "name": c.name,
                    "status": c.status,
                    "error": finite(c.error),
                    "tolerance": finite(c.tolerance),
                    "worst": list(c.worst),
                    "found": finite(c.found),
                    "expected": finite(c.expected),
                    "remarks": [c.problem] if c.problem else list(c.remarks),
                }
                for c in self.comparisons
            ],
            "flags": list(self.case.flags),
        }

    def __str__(self):
        outcome = "passed" if self.passed else "FAILED"
        lines = [f"{outcome}  {self.case.id}  ({self.dtype}): {self.case.note}"]
        if self.message:
            lines.append(f"  {self.message}")
        lines += [f"  {name.replace('_', ' '):<22} WRONG   {sentence}" for name, sentence in self.breaches]
        lines += [str(c) for c in self.comparisons if not (self.passed and c.status == "not given")]
        if not self.passed and not self.only_absent:
            settings = ", ".join(f"{key} = {value}" for key, value in self.case.arguments.items())
            lines.append(f"  arguments: {settings or 'none'}; source: {self.case.source}")
            for hint in self._hints():
                lines += textwrap.wrap(hint, 96, initial_indent="  look at    ", subsequent_indent=" " * 13)
        return "\n".join(lines)


def check(case, outputs, *, gradients=None, intermediates=None, dtype=None, require_gradients=False, explain=True):
    """Compare an implementation's results with a case.

    Parameters
    ----------
    case : Case
    outputs : array, tuple or dict of arrays
        As the implementation returned them: by name, or in the order of ``case.outputs``. NumPy, CuPy, torch
        and JAX arrays, and whatever has ``__array__`` or ``__dlpack__``. All of them: one that is missing fails.
    gradients : dict or sequence of arrays, optional
        Gradients of ``sum(cotangent * output)``: by name of the input, or in the order of ``case.gradients``.
    intermediates : dict of arrays, optional
        Any of ``case.intermediates``; the first that is wrong says where the computation left the path.
    dtype : {"float64", "float32", "float16", "bfloat16"}, optional
        What the implementation computed in, whose tolerance counts; read off the outputs if not given.
    require_gradients : bool
        Whether a gradient that is not given fails.
    explain : bool
        Whether mistakes are tried out where something is wrong (whatif.py), which takes as long as computing the case
        some twenty times.

    Returns
    -------
    Report

    Raises
    ------
    TypeError, ValueError
        If an output has no such name, something is not an array, or the dtype is unknown. A wrong shape or
        a NaN is a failed check, not an error.

    Notes
    -----
    Potentials and duals are compared up to the constant that the problem leaves free (``rules["gauge"]``).
    Half precision is allowed twice the error of the same formula computed naively in that dtype.

    Examples
    --------
    >>> from asap_ref import oracle
    >>> case = oracle.case("sinkhorn/epsilon")
    >>> right = case.outputs
    >>> shifted = {"query_dual": right["query_dual"] + 5, "key_dual": right["key_dual"] - 5}  # the same plan
    >>> oracle.check(case, shifted).passed
    True
    >>> oracle.check(case, {"query_dual": right["query_dual"] / 0.25}).passed
    False
    """
    named = _by_name(case, outputs, tuple(case.outputs), "outputs")
    if not named:
        raise ValueError(f"check: no outputs for {case.id}; expected {', '.join(case.outputs)}")
    dtype = dtype or dtype_name(next(iter(named.values())))
    if dtype not in DTYPES:
        raise ValueError(f"check: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    case = case.at(dtype)
    compare = functools.partial(_compare, case, dtype)
    found = {name: to_host(x) for name, x in named.items()}
    comparisons = gauge.judged(case, found, compare)
    given = _by_name(case, gradients, tuple(case.gradients), "gradients")
    comparisons += [
        compare(f"{GRADIENT}{name}", to_host(given.get(name)), expected, case.rules["gradients"][name])
        for name, expected in case.gradients.items()
    ]
    if require_gradients:
        comparisons = [
            dataclasses.replace(c, status="missing") if c.status == "not given" else c for c in comparisons
        ]
    if explain:
        gradients = {name: to_host(x) for name, x in given.items()}
        comparisons = _explained(case, dtype, comparisons, found, gradients)
    if intermediates:
        known = case.intermediates
        tolerance = {"tolerance": next(iter(case.rules["outputs"].values()))["tolerance"]}
        comparisons += [
            compare(f"step {name}", to_host(intermediates[name]), known[name], tolerance)
            for name in known
            if name in intermediates
        ]
    return Report(case, dtype, tuple(comparisons))


def _explained(case, dtype, comparisons, outputs, gradients):
    """The comparisons, the first wrong one with the mistakes that give just what was found."""
    wrong = [c.name for c in comparisons if c.status == "wrong" and not c.problem]
    first = next((name for name in wrong), None)
    if first is None:
        return comparisons
    if first in outputs:
        found = {name: outputs[name] for name in wrong if name in outputs}
    else:
        found = {name.removeprefix(GRADIENT): gradients[name.removeprefix(GRADIENT)] for name in wrong}
    from asap_ref.oracle import (
        whatif,
    )  # which computes with the package's operators; only where something is wrong

    explained = whatif.explain(case, dtype, found)
    if not explained:
        return comparisons
    texts, flags = zip(*explained, strict=True)
    return [
        dataclasses.replace(c, remarks=(*texts, *c.remarks), evidence=(*flags, *c.evidence))
        if c.name == first
        else c
        for c in comparisons
    ]


def to_host(x):
    """Any array as NumPy float64 (integers and booleans as they are); None stays None."""
    if x is None:
        return None
    if hasattr(x, "detach"):  # torch: away from the graph and the device, and NumPy knows no bfloat16
        x = x.detach().cpu()
        x = (x.double() if x.is_floating_point() else x).numpy()
    elif hasattr(x, "get") and hasattr(x, "__cuda_array_interface__"):  # CuPy
        x = x.get()
    elif type(x).__module__.startswith("array_api_strict"):  # on whichever of its devices
        x = to_numpy(x)
    elif not hasattr(x, "__array__") and hasattr(x, "__dlpack__"):
        x = np.from_dlpack(x)
    x = np.asarray(x)
    if x.dtype == object or x.dtype.kind in "cSU":
        raise TypeError(f"check: expected arrays of real numbers, got dtype {x.dtype}")
    return x if x.dtype.kind in "biu" else x.astype(np.float64)


def dtype_name(x):
    """Name of an array's dtype, without its module."""
    return str(x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype).rpartition(".")[-1]


def _by_name(case, values, names, what):
    """Values as a dict by name; a lone array or a sequence is taken in order."""
    if values is None:
        return {}
    if isinstance(values, dict):
        unknown = set(values) - set(names)
        if unknown:
            raise ValueError(
                f"check: {case.id} has no {what} named {', '.join(sorted(unknown))}; it has {', '.join(names)}"
            )
        return {name: x for name, x in values.items() if x is not None}
    values = values if isinstance(values, tuple | list) else (values,)
    if len(values) > len(names):
        raise ValueError(f"check: {len(values)} {what} for {case.id}, which has {len(names)}: {', '.join(names)}")
    return {name: x for name, x in zip(names, values, strict=False) if x is not None}


# ------------------------------------------------------------------------------------------------------ metrics


def entries(found, expected):
    """The arrays themselves."""
    return found, expected


def unit_columns(found, expected):
    """Length of each column against 1: all that is asked of gaussian directions, whatever the generator."""
    return np.sqrt(np.sum(found**2, axis=-2)), np.ones(expected.shape[-1])


def orthonormal_blocks(found, expected):
    """Inner products of the columns within each block of d, against the identity."""
    d, n_slices = expected.shape[-2:]
    same_block = np.arange(n_slices)[:, None] // d == np.arange(n_slices)[None, :] // d
    return np.where(same_block, found.T @ found, 0.0), np.eye(n_slices)


METRICS = {"entries": entries, "unit_columns": unit_columns, "orthonormal_blocks": orthonormal_blocks}


@np.errstate(all="ignore")
def _compare(case, dtype, name, found, expected, rule):
    tolerance = rule["tolerance"].get(dtype)
    if tolerance is None:
        return Comparison(name, "not checked")
    if found is None:
        return Comparison(name, "missing" if name in case.rules["outputs"] else "not given")
    if found.shape != expected.shape:
        turned = " (the last two axes are swapped)" if found.shape == expected.swapaxes(-1, -2).shape else ""
        reason = f"has shape {found.shape}, expected {expected.shape}{turned}"
        return Comparison(name, "wrong", np.inf, tolerance, problem=reason)
    padding = case.must_be_zero.get(name)
    found, expected = METRICS[rule.get("metric", "entries")](found, expected)
    deviation = np.abs(found - expected) / rule.get("scale", max(1.0, float(np.abs(expected).max(initial=0))))
    deviation = np.where(np.isnan(deviation), np.inf, deviation)
    not_zero = padding is not None and bool(np.any(found[padding] != 0))
    if not_zero:  # exactly zero means exactly
        deviation = np.where(padding & (found != 0), np.inf, deviation)
    worst = np.unravel_index(np.argmax(deviation), deviation.shape) if deviation.size else ()
    worst = tuple(int(i) for i in worst)
    error = float(deviation[worst]) if deviation.size else 0.0
    if error <= tolerance:
        return Comparison(name, "ok", error, tolerance)
    remarks = diagnose(case, name, found, expected, dtype)
    if not_zero:
        elsewhere = np.where(padding, 0.0, deviation).max(initial=0) > tolerance
        remarks = [("padding must be exactly zero here", "" if elsewhere else "padding"), *remarks]
    evidence = tuple(dict.fromkeys(flag for _, flag in remarks if flag))
    values = float(found[worst]), float(expected[worst])
    return Comparison(
        name, "wrong", error, tolerance, worst, *values, tuple(text for text, _ in remarks), evidence
    )
