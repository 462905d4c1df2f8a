"""Cases as files for other languages; results.py judges what they write."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np

from asap_ref.oracle.stored import VECTORS, VERSIONS, cases, flags, manifest, operators
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
    content = {"format": "asap_ref oracle", "version": "drawn", "dtype": dtype}
    content |= {"flags": flags(), "operators": operators()}
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
