"""Files to and from other languages: cases written for them, and their results read and judged."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np

from asap_ref.oracle.module_report import ModuleReport
from asap_ref.oracle.stored import VECTORS, VERSIONS, cases, flags, manifest, operators, read_cases
from asap_ref.oracle.verdict import DTYPES, check
from asap_ref.support.outputs import check_folder

GROUPS = ("inputs", "outputs", "cotangents", "gradients", "must_be_zero")


def write_npz(path, arrays):
    """Write a .npz whose bytes depend on the arrays alone: stored, not deflated, and with a fixed date.

    Returns its SHA-256. Local headers hold the true sizes, as `numpy.savez` would not have it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, x in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(x).reshape(np.shape(x)), version=(1, 0))
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, buffer.getvalue())
    return hashlib.sha256(path.read_bytes()).hexdigest()


def manifest_text(content):
    """JSON with a case, an operator or a flag on each line."""
    parts = []
    for key, value in content.items():
        if isinstance(value, dict):
            lines = [f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items()]
            parts.append(f'"{key}": {{\n' + ",\n".join(lines) + "\n}")
        elif isinstance(value, list):
            parts.append(
                f'"{key}": [\n' + ",\n".join(f"  {json.dumps(v, ensure_ascii=False)}" for v in value) + "\n]"
            )
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def save_cases(folder, chosen, dtype):
    """Write cases for one dtype as files that have the form of the vectors, with their own manifest.

    Inputs and cotangents are float64 if the dtype is, else float32, which holds them exactly.
    """
    folder, entries = Path(folder), []
    for case in (each.at(dtype) for each in chosen):
        arrays = {}
        for group in GROUPS:
            for name, x in getattr(case, group).items():
                short = group in ("inputs", "cotangents") and x.dtype.kind == "f" and dtype != "float64"
                arrays[f"{group}/{name}"] = x.astype(np.float32) if short else x
        file = f"{case.id}.npz"
        digest = write_npz(folder / file, arrays)
        inputs = {name: {"dtype": str(x.dtype), "shape": list(x.shape)} for name, x in arrays.items()}
        entries.append(
            {
                "id": case.id,
                "operator": case.operator,
                "note": case.note,
                "arguments": case.arguments,
                "flags": list(case.flags),
                "source": case.source,
                "second_source": case.second_source,
                "file": file,
                "sha256": digest,
                "inputs": {
                    name.removeprefix("inputs/"): x for name, x in inputs.items() if name.startswith("inputs/")
                },
                **{key: case.rules[key] for key in ("gauge", "outputs", "gradients")},
            }
        )
    content = {"format": "asap_ref oracle", "version": "drawn", "flags": flags(), "operators": operators()}
    (folder / "manifest.json").write_text(manifest_text({**content, "cases": entries}), encoding="utf-8")
    return len(entries)


def export(folder, drawn=None, *, force=False):
    """Copy all vectors and their description to a folder, empty unless ``force``; of a dtype, drawn cases too."""
    folder = Path(folder)
    check_folder(folder, "oracle export", force=force)
    for version in VERSIONS:
        shutil.copytree(VECTORS / f"v{version}", folder / f"v{version}", dirs_exist_ok=True)
    for page in ("README.md", "CASES.md", "CASES_V2.md"):
        shutil.copy(VECTORS.parent / page, folder / page)
    count = sum(len(manifest(version)["cases"]) for version in VERSIONS)
    if drawn is not None:
        count += save_cases(folder / "drawn", [case for case in cases() if case.path is None], drawn)
    return count


def check_files(folder, *, vectors=None, dtype=None, require_gradients=False, on_report=None):
    """Judge results that another program wrote.

    Parameters
    ----------
    folder : path
        ``<operator>/<case>/<output>.npy`` for each output, and ``<operator>/<case>/gradients/<input>.npy`` for
        gradients.
    vectors : path, optional
        Folder of the manifest whose cases were computed, if they were drawn; else those of this package.
    dtype : str, optional
        What they were computed in; read off each output if not given. Say it for half precision.
    require_gradients : bool
        Whether a gradient that is not there fails.
    on_report : callable, optional
        Told ``(number done, number of all, report)`` after each case.

    Returns
    -------
    ModuleReport

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such folder, nothing in it belongs to a case, or a dtype is unknown.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"check_files: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    known = read_cases(vectors) if vectors is not None else cases()
    found = [case for case in known if any((folder / case.id).glob("*.npy"))]
    if not found:
        such = f"{known[0].id}/{next(iter(known[0].outputs))}.npy"
        raise ValueError(f"check_files: {folder} has no files of a case; expected such as {such}")
    reports = []
    for done, case in enumerate(found, start=1):
        here = folder / case.id
        outputs = _arrays(here, case.outputs)
        gradients = _arrays(here / "gradients", case.gradients)
        if not outputs:
            names = ", ".join(path.name for path in sorted(here.glob("*.npy")))
            raise ValueError(
                f"check_files: {here} has {names}; expected {', '.join(f'{x}.npy' for x in case.outputs)}"
            )
        report = check(case, outputs, gradients=gradients, dtype=dtype, require_gradients=require_gradients)
        reports.append(report)
        if on_report is not None:
            on_report(done, len(found), report)
    there = {case.operator for case in found}
    skipped = [
        (case.id, "there are no files of it")
        for case in known
        if case.operator in there and case not in found and case.path is not None
    ]
    absent = tuple(name for name in operators() if name not in there)
    return ModuleReport(str(folder), tuple(reports), absent, tuple(skipped))


def _arrays(folder, names):
    return {
        name: np.load(folder / f"{name}.npy", allow_pickle=False)
        for name in names
        if (folder / f"{name}.npy").exists()
    }
