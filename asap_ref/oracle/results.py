"""Results that another program wrote: found and judged, with what is missing and what nothing is called so."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from asap_ref.oracle.adapter import why_not
from asap_ref.oracle.module_report import ModuleReport
from asap_ref.oracle.stored import Case, CaseAtHand, cases, flags, operators, read_cases, read_manifest
from asap_ref.oracle.verdict import DTYPES, Comparison, Report, check, dtype_name
from asap_ref.support.words import did_you_mean


@dataclass(frozen=True)
class FilesReport(ModuleReport):
    """What became of results in files; `.passed` only if they are complete, too."""

    missing: tuple = ()  # cases, of operators of which there are some, that have no results
    unknown: tuple = ()  # sentences about names that nothing has
    stored_only: bool = False  # drawn cases were left out on purpose

    @property
    def complete(self):
        """Whether every case of each operator that is there has results; with ``stored_only``, all with files."""
        return not any(case.path is not None or not self.stored_only for case in self.missing)

    @property
    def passed(self):
        """Whether every case of every operator that is there passed, and none is missing."""
        return super().passed and self.complete

    def counts(self, drawn):
        """How many cases were judged, and how many are missing, of those with files or of the drawn ones."""
        judged = sum((report.case.path is None) is drawn for report in self.reports)
        return {"judged": judged, "missing": sum((case.path is None) is drawn for case in self.missing)}

    def as_dict(self):
        """Return everything as plain dicts and lists, for JSON."""
        return super().as_dict() | {
            "complete": self.complete,
            "stored": self.counts(drawn=False),
            "drawn": self.counts(drawn=True),
            "missing": [case.id for case in self.missing],
            "unknown": list(self.unknown),
        }

    def __str__(self):
        stored = [case for case in self.missing if case.path is not None]
        drawn = [case for case in self.missing if case.path is None]
        lines = [super().__str__(), *self.unknown]
        if stored:
            lines.append(f"not there: {len(stored)} cases with files: {', '.join(case.id for case in stored)}")
        if drawn:
            judged = {flag for report in self.reports for flag in report.case.flags}
            asked = {flag for case in drawn for flag in case.flags} - judged
            only = ", ".join(flag for flag in flags() if flag in asked)
            lines.append(
                f"not there: {len(drawn)} cases drawn from seeds{f' ({only})' if only else ''}; "
                f"asap-ref oracle export FOLDER --drawn {self._dtype()} writes them"
            )
        if not self.complete:
            lines.append("NOT COMPLETE: what is not there was not checked, so this is no pass")
            if drawn and not stored:
                lines[-1] += "; --stored-only if the drawn cases are left out on purpose"
        return "\n".join(lines)

    def _dtype(self):
        return self.reports[0].dtype if self.reports else DTYPES[0]


def check_files(folder, *, vectors=None, dtype=None, require_gradients=False, stored_only=False, on_report=None):
    """Judge results that another program wrote.

    Parameters
    ----------
    folder : path
        ``<operator>/<case>/<output>.npy`` for each output, and ``<operator>/<case>/gradients/<input>.npy`` for
        gradients. Cases with files and drawn ones lie side by side.
    vectors : path, optional
        Folder with a manifest, whose cases alone are asked for; else all those of this package.
    dtype : str, optional
        What they were computed in; read off each output if not given. Say it for half precision.
    require_gradients : bool
        Whether a gradient that is not there fails.
    stored_only : bool
        Whether to be content without results of drawn cases, which alone are larger than a tile.
    on_report : callable, optional
        Told ``(number done, number of all, report)`` after each case.

    Returns
    -------
    FilesReport

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such folder, nothing in it belongs to a case, a dtype is unknown, or results belong to numbers
        that were drawn for another dtype.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"check_files: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    known = read_cases(vectors) if vectors is not None else cases()
    found = [case for case in known if any((folder / case.id).rglob("*.npy"))]
    unknown = list(unknown_folders(folder, known))
    if not found:
        such = f"{known[0].id}/{next(iter(known[0].outputs))}.npy"
        told = "".join(f"; {sentence}" for sentence in unknown)
        raise ValueError(f"check_files: {folder} has no files of a case; expected such as {such}{told}")
    drawn_for = read_manifest(vectors).get("dtype") if vectors is not None else None
    reports, skipped = [], []
    for done, case in enumerate(found, start=1):
        here = folder / case.id
        in_dtype = dtype or _dtype_of(here, case)
        if drawn_for not in (None, in_dtype):
            raise ValueError(
                f"check_files: {here} is {in_dtype}, and the cases of {vectors} were drawn for {drawn_for}: numbers "
                f"have the digits of their dtype. asap-ref oracle export FOLDER --drawn {in_dtype} writes those for "
                f"{in_dtype}; --dtype {drawn_for} judges what was computed in {drawn_for} and only stored in another"
            )
        case = case.at(in_dtype)
        if reason := why_not(case, in_dtype):
            skipped.append((case.id, reason))
            continue
        report = _judged(here, case, in_dtype, require_gradients)
        unknown += unknown_arrays(here, report.case)
        reports.append(report)
        if on_report is not None:
            on_report(done, len(found), report)
    there = {case.operator for case in found}
    judged = {case.id for case in found}
    asked_in = dtype or (reports[0].dtype if reports else DTYPES[0])
    missing = [
        case
        for case in known
        if case.operator in there and case.id not in judged and (case.path is None or not why_not(case, asked_in))
    ]
    return FilesReport(
        str(folder),
        tuple(reports),
        tuple(name for name in operators() if name not in there),
        tuple(skipped),
        missing=tuple(missing),
        unknown=tuple(unknown),
        stored_only=stored_only,
    )


def _judged(here, case, dtype, require_gradients):
    """The report of one case; ValueError where results are those of the numbers drawn for another dtype."""
    outputs, gradients = _arrays(here, case.outputs), _arrays(here / "gradients", case.gradients)
    if not outputs:
        return Report(case, dtype, tuple(Comparison(name, "missing") for name in case.outputs))
    report = check(case, outputs, gradients=gradients, dtype=dtype, require_gradients=require_gradients)
    if case.path is None and any(c.status == "wrong" for c in report.comparisons):
        for other in DTYPES:
            if other != dtype and check(_with_numbers_of(other, case), outputs, dtype=dtype, explain=False).passed:
                raise ValueError(
                    f"check_files: {here} is {dtype}, but these are right for the numbers that were drawn for {other}. "
                    f"asap-ref oracle export FOLDER --drawn {dtype} writes those for {dtype}; --dtype {other} judges "
                    f"what was computed in {other}"
                )
    return report


def _with_numbers_of(other, case):
    """A drawn case with the arrays of another dtype, judged as before."""
    words = {field.name: getattr(case, field.name) for field in fields(Case)}
    return CaseAtHand(**words, groups=case.at(other).made[0])


def _dtype_of(here, case):
    """Dtype of the first output that is there."""
    first = next((x for x in _arrays(here, operators()[case.operator]["outputs"]).values()), None)
    name = DTYPES[0] if first is None else dtype_name(first)
    if name not in DTYPES:
        raise ValueError(f"check_files: {here} is {name}, expected one of {', '.join(DTYPES)}")
    return name


def _arrays(folder, names):
    return {
        name: np.load(folder / f"{name}.npy", allow_pickle=False)
        for name in names
        if (folder / f"{name}.npy").exists()
    }


# ----------------------------------------------------------------------------------------------------- unknown names


def unknown_folders(folder, known):
    """A sentence for each folder of results that no operator, or no case, is called as."""
    ids = {case.id for case in (*known, *cases())}
    for operator in sorted(path for path in folder.iterdir() if any(path.rglob("*.npy"))):
        if operator.name not in operators():
            yield f"not looked at: {operator}, no such operator{did_you_mean(operator.name, operators())}"
            continue
        for case in sorted(
            path for path in operator.iterdir() if path.suffix == ".npy" or any(path.rglob("*.npy"))
        ):
            id_ = f"{operator.name}/{case.name}"
            if id_ not in ids:
                yield f"not looked at: {case}, no such case{did_you_mean(id_, ids)}"


def unknown_arrays(here, case):
    """A sentence for each file of a case that is none of its outputs, or gradients."""
    for place, names, what in ((here, case.outputs, "output"), (here / "gradients", case.gradients, "gradient")):
        for path in sorted(place.glob("*.npy")):
            if path.stem not in names:
                told = f"; there are {', '.join(names)}" if names else "; none is asked for"
                yield f"not looked at: {path}, no such {what}{did_you_mean(path.stem, names) or told}"
