"""Compute what version 2 stores, hold it against a second source, and write it with the recipes of the rest.

python tests/oracle/making/generate_v2.py                rewrite asap_ref/oracle/vectors/v2
python tests/oracle/making/generate_v2.py --check        compute it again and compare
python tests/oracle/making/generate_v2.py --words        rewrite flags, hints, notes and recipes; the files stay

As generate.py does for version 1, whose files stay as they are; new here are NaN in padding, zeros in gradients, and
tolerances of gradients in half precision: twice the error of autograd in that dtype through the independent formula.
"""

from __future__ import annotations

import json
import sys
import zlib

import generate
import numpy as np
import second_source
import torch
from cases_v2 import drawn_recipes, stored_specs
from generate import (
    UNIT_ROUNDOFF,
    Case,
    command,
    manifest_text,
    round_up,
    size_of,
    stored,
    write_npz,
)
from judgement import judge
from language_v2 import FLAGS, OPERATORS
from our_values import in_long

from asap_ref.oracle import truth
from asap_ref.oracle.drawn import GAUGES, describe, flags_of, has_gradients, rule, without_noise, zeros_of
from asap_ref.oracle.recipe import rounded
from asap_ref.oracle.stored import VECTORS

PAGE = VECTORS.parent / "CASES_V2.md"


def values(spec, recipe):
    """Outputs, cotangents and gradients in extended precision."""
    names = list(OPERATORS[spec.operator][2])
    inputs = in_long(spec.inputs)
    outputs = truth.outputs_of(spec.operator, names, inputs, spec.arguments)
    cotangents, gradients = {}, {}
    if has_gradients(recipe):
        rng = np.random.default_rng(zlib.crc32(f"cotangent of {spec.id}".encode()))
        cotangents = {name: rounded(rng.standard_normal(y.shape), "float32") for name, y in outputs.items()}
        long = [c.astype(np.longdouble) for c in cotangents.values()]
        gradients = truth.gradients_of(spec.operator, inputs, spec.arguments, long)
        gradients = {name: without_noise(g) for name, g in gradients.items()}
    return outputs, cotangents, gradients


def gradient_tolerances(spec, cotangents, gradients):
    """For each gradient: tolerance by dtype, from the error of autograd in that dtype."""
    table = {name: {"float64": 1e-9} for name in gradients}
    for dtype in ("float32", *UNIT_ROUNDOFF) if gradients else ():
        try:
            _, short = second_source.in_torch(
                spec.operator,
                spec.inputs,
                spec.arguments,
                list(gradients),
                list(cotangents.values()),
                getattr(torch, dtype),
            )
        except RuntimeError:  # an operation that torch does not have in half precision on a CPU
            short = {}
        for name, g in gradients.items():
            if name not in short:
                continue
            error = np.abs(np.asarray(g, dtype=np.float64) - np.asarray(short[name], dtype=np.float64)).max(
                initial=0
            )
            error = float(error) / size_of(g)
            if not np.isfinite(error) or error > 0.25:
                continue
            least = 1e-4 if dtype == "float32" else 4 * UNIT_ROUNDOFF[dtype]
            more = 2 * UNIT_ROUNDOFF.get(dtype, 0.0)
            table[name][dtype] = max(least, more + (round_up(2 * error, 2) if error > 0 else 0))
    return table


@np.errstate(invalid="ignore")  # NaN in padding
def one_case(spec, recipe, folder):
    """Judge and write one case; return its manifest entry."""
    outputs, cotangents, gradients = values(spec, recipe)
    sources = judge(spec, outputs, cotangents, gradients)
    arrays = {
        **stored("inputs", spec.inputs),
        **stored("outputs", outputs),
        **stored("cotangents", cotangents),
        **stored("gradients", gradients),
        **stored("must_be_zero", zeros_of(recipe, spec.inputs, outputs, gradients)),
    }
    name = f"{spec.id}.npz"
    digest = write_npz(folder / name, arrays)
    rules = {
        "gauge": GAUGES.get(spec.operator, []),
        "outputs": {key: rule(np.asarray(y, dtype=np.float64)) for key, y in outputs.items()},
        "gradients": {},
    }
    for key, y in outputs.items():
        rules["outputs"][key]["scale"] = size_of(y)
    case = Case(spec.id, spec.operator, spec.arguments, (), "", "", "", "", rules, folder / name)
    for key, row in generate.tolerances(spec, case).items():
        # inputs have 24 digits: what rounding them leaves of a naive computation may cancel by chance
        more = {dtype: row[dtype] + 2 * unit for dtype, unit in UNIT_ROUNDOFF.items() if dtype in row}
        rules["outputs"][key]["tolerance"] = row | more
    for key, row in gradient_tolerances(spec, cotangents, gradients).items():
        rules["gradients"][key] = {"metric": "entries", "scale": size_of(gradients[key]), "tolerance": row}
    return {
        "id": spec.id,
        "operator": spec.operator,
        "note": spec.note,
        "arguments": spec.arguments,
        "flags": spec.flags.split(),
        "source": f"README, {OPERATORS[spec.operator][3]}",
        "second_source": "; ".join(sources),
        "file": name,
        "sha256": digest,
        "inputs": {
            key.split("/", 1)[1]: generate.describe(x) for key, x in arrays.items() if key.startswith("inputs/")
        },
        **rules,
    }


def write(folder, only=None):
    """Write all vectors and the manifest to a folder."""
    entries = [one_case(*pair, folder) for pair in stored_specs() if only is None or pair[0].id in only]
    if only is None:
        write_manifest(folder, entries)


def write_manifest(folder, entries):
    """Write what the manifest says besides the cases with files, whose entries these are."""
    operators = {
        name: {"inputs": inputs, "arguments": arguments, "outputs": outputs, "source": f"README, {source}"}
        for name, (inputs, arguments, outputs, source) in OPERATORS.items()
    }
    drawn = [
        {"id": name, "operator": r.operator, "note": describe(r), "flags": flags_of(r), "recipe": r.written()}
        for name, r in drawn_recipes()
    ]
    content = {"format": "asap_ref oracle", "version": 2, "flags": FLAGS, "operators": operators}
    (folder / "manifest.json").write_text(
        manifest_text({**content, "cases": entries, "drawn": drawn}), encoding="utf-8"
    )


def reword():
    """Write the manifest and its page anew around the entries of the files that are there."""
    path = VECTORS / "v2" / "manifest.json"
    said = {spec.id: {"note": spec.note, "flags": spec.flags.split()} for spec, _ in stored_specs()}
    entries = [entry | said[entry["id"]] for entry in json.loads(path.read_text(encoding="utf-8"))["cases"]]
    write_manifest(path.parent, entries)
    PAGE.write_text(generate.page(path), encoding="utf-8")


if __name__ == "__main__" and "--words" in sys.argv:
    reword()
elif __name__ == "__main__":
    command(__doc__, write, VECTORS / "v2", PAGE)
