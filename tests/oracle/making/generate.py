"""Compute the oracle's vectors, hold each against a second source, and write them. The one script behind vectors/v1.

python tests/oracle/making/generate.py                rewrite asap_ref/oracle/vectors/v1
python tests/oracle/making/generate.py --check        compute them again and compare
python tests/oracle/making/generate.py --out FOLDER   write them somewhere else

A case is written only if the second source agrees: outputs with an independent formula at 50 digits, gradients with
torch's autograd of it in float64 and with a difference quotient of it at 50 digits, and where POT or SciPy solve the
problem, with them. Files are the same byte for byte on each run, and on another processor but for a rare last bit:
--check says which of the two it found. Released vectors never change; changed values make a new version.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import second_source
import torch
import trace_v1
from cases_v1 import SPECS, Spec
from judgement import DisagreementError, agree, judge
from language_v1 import FLAGS, OPERATORS
from our_values import intermediates, must_be_zero, our_values
from page import page

from asap_ref.oracle.exchange import manifest_text, write_npz
from asap_ref.oracle.stored import VECTORS, Case
from asap_ref.oracle.verdict import check

PAGE = VECTORS.parent / "CASES.md"
UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
GAUGES = {
    "sinkhorn": [["query_dual", 1], ["key_dual", -1]],
    "two_sided_c_transform": [["query_dual", 1], ["key_dual", -1]],
    "kantorovich_potentials_1d": [["phi", 1], ["psi", -1]],
    "amortized_query_dual": [["query_dual", 1]],
}


def stored(group, arrays):
    """Arrays under their group, inputs and cotangents as float32, which holds them exactly."""
    out = {}
    for name, x in arrays.items():
        x = np.asarray(x)
        if x.dtype.kind == "f":
            x = x.astype(np.float64)
            if group in ("inputs", "cotangents"):
                short = x.astype(np.float32)
                if not np.array_equal(short.astype(np.float64), x, equal_nan=True):
                    raise DisagreementError(f"{group}/{name} is not exactly representable in float32")
                x = short
        out[f"{group}/{name}"] = (
            x.astype(x.dtype.newbyteorder("<")) + x.dtype.type(0) if x.dtype.kind == "f" else x
        )
    return out


def round_up(x, digits):
    power = 10.0 ** (math.floor(math.log10(x)) - digits + 1)
    return float(f"{math.ceil(x / power - 1e-9) * power:.{digits}g}")


def size_of(x):
    largest = float(np.abs(np.asarray(x, dtype=np.float64)).max(initial=0))
    return round_up(largest, 6) if largest > 0 else 1.0


def tolerances(spec, case):
    """For each output: tolerance by dtype, from the error of the naive computation in that dtype."""
    if "float32_inside" in spec.flags:  # no number of float32 could pass
        return {name: {"float64": 1e-10} for name in case.outputs}
    naive = {}
    for dtype in ("float32", "float16", "bfloat16"):
        if spec.operator not in second_source.AXES:
            continue
        found = second_source.naively_in(dtype, spec.operator, spec.inputs, spec.arguments)
        report = check(case, dict(zip(case.outputs, found, strict=True)), dtype=dtype)
        naive[dtype] = {c.name: c.error for c in report.comparisons}
    table = {}
    for name in case.outputs:
        row = {"float64": 1e-10, "float32": 2e-5}
        if naive:
            error = naive["float32"][name]
            row["float32"] = max(2e-5, round_up(2 * error, 1) if math.isfinite(error) and error > 0 else 0)
            for dtype, unit in UNIT_ROUNDOFF.items():
                error = naive[dtype][name]
                if not math.isfinite(error):
                    row[dtype] = 4 * unit  # the naive computation overflows: compute in float32 and round
                elif error <= 0.25:  # beyond it even the naive answer says nothing
                    row[dtype] = max(2 * unit, round_up(2 * error, 2) if error > 0 else 0)
        table[name] = row
    return table


def naive_gradient_errors(spec, cotangents, gradients):
    """For each gradient: what autograd in float32 has of error, over the largest entry."""
    if spec.operator not in second_source.AXES or not gradients:
        return dict.fromkeys(gradients, 0.0)
    short = second_source.in_torch(
        spec.operator, spec.inputs, spec.arguments, list(gradients), list(cotangents.values()), torch.float32
    )[1]
    errors = {name: np.abs(np.asarray(g, dtype=np.float64) - short[name]).max() for name, g in gradients.items()}
    return {name: float(np.nan_to_num(e, nan=np.inf)) / size_of(gradients[name]) for name, e in errors.items()}


def generate(folder, only=None):
    """Write all vectors and the manifest to a folder."""
    entries = []
    for spec in SPECS:
        if only is None or spec.id in only:
            entries.append(one_case(spec, folder, *our_values(spec)))
    if only is None:
        entries += trace_and_compilation(folder)
    write_manifest(folder, entries)


def trace_and_compilation(folder):
    """The two cases of a whole model."""
    spec = trace_v1.trace_spec()
    outputs, first_gradient, trained = trace_v1.our_trace(spec)
    for name, expected in trace_v1.trace_by_torch(spec).items():
        agree(f"{spec.id} {name}, torch", outputs[name], expected, 1e-11)
    sources = ["a Transformer of torch's layers, its AdamW and its autograd (float64)"]
    table = {name: {"float64": 1e-10, "float32": 1e-4} for name in outputs}
    yield one_case(spec, folder, outputs, {}, {}, sources, table, first_gradient)

    spec = trace_v1.compile_spec(trained)
    outputs = trace_v1.our_compilation(spec)
    for name, expected in trace_v1.compilation_by_torch(spec).items():
        agree(f"{spec.id} {name}, torch", outputs[name], expected, 1e-9)
    sources = ["a Transformer of torch's layers (float64)", "numpy.linalg.lstsq of the augmented system"]
    table = {name: {"float64": 1e-9, "float32": 1e-3} for name in outputs}
    yield one_case(spec, folder, outputs, {}, {}, sources, table, {})


def one_case(spec: Spec, folder, outputs, cotangents, gradients, sources=None, table=None, steps=None):
    """Judge and write one case; return its manifest entry."""
    sources = judge(spec, outputs, cotangents, gradients) if sources is None else sources
    zero = must_be_zero(spec, outputs)
    arrays = {
        **stored("inputs", spec.inputs),
        **stored("outputs", outputs),
        **stored("intermediates", intermediates(spec) if steps is None else steps),
        **stored("cotangents", cotangents),
        **stored("gradients", gradients),
        **stored("must_be_zero", zero),
    }
    name = f"{spec.id}.npz"
    digest = write_npz(folder / name, arrays)
    metric = {"orthogonal": "orthonormal_blocks", "gaussian": "unit_columns"}.get(spec.arguments.get("kind"))
    infinite = dict.fromkeys(("float64", "float32", "float16", "bfloat16"), math.inf)
    rules = {
        "gauge": GAUGES.get(spec.operator, []),
        "outputs": {
            key: {
                "metric": metric or "entries",
                "scale": size_of(y) if metric is None else 1.0,
                "tolerance": infinite,
            }
            for key, y in outputs.items()
        },
        "gradients": {},
    }
    case = Case(spec.id, spec.operator, spec.arguments, (), "", "", "", "", rules, folder / name)
    for key, row in (tolerances(spec, case) if table is None else table).items():
        rules["outputs"][key]["tolerance"] = row
    naive = naive_gradient_errors(spec, cotangents, gradients)
    for key, g in gradients.items():
        tolerance = {"float64": 1e-9}
        if naive[key] < 0.1 and all("float32" in rule["tolerance"] for rule in rules["outputs"].values()):
            # in the log domain an exponent of hundreds is off by 1e-5, and gradients of nearly hard plans cancel
            floor = 1e-2 if "large_logits" in spec.flags else 1e-4
            tolerance["float32"] = max(floor, round_up(4 * naive[key], 1) if naive[key] > 0 else 0)
        rules["gradients"][key] = {"metric": "entries", "scale": size_of(g), "tolerance": tolerance}
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
        "inputs": {key.split("/", 1)[1]: describe(x) for key, x in arrays.items() if key.startswith("inputs/")},
        **rules,
    }


def describe(x):
    return {"dtype": x.dtype.name, "shape": list(x.shape)}


def write_manifest(folder, entries):
    operators = {
        name: {"inputs": inputs, "arguments": arguments, "outputs": outputs, "source": f"README, {source}"}
        for name, (inputs, arguments, outputs, source) in OPERATORS.items()
    }
    content = {
        "format": "asap_ref oracle",
        "version": 1,
        "flags": FLAGS,
        "operators": operators,
        "cases": entries,
    }
    (folder / "manifest.json").write_text(manifest_text(content), encoding="utf-8")


def differences(folder, committed):
    """Names of files that are not the same, byte for byte, in two folders."""
    names = {str(p.relative_to(f)) for f in (folder, committed) for p in f.rglob("*") if p.is_file()}
    return sorted(
        name
        for name in names
        if not ((folder / name).exists() and (committed / name).exists())
        or (folder / name).read_bytes() != (committed / name).read_bytes()
    )


def contradictions(folder, committed):
    """What differs by more than a last bit: arrays by 1e-13 of their largest entry, tolerances fourfold.

    In float32, which inputs have, that is not at all but near zero: training moves the bias of the keys, whose
    gradient is zero, by rounding errors, and these are the processor's and not the algorithm's.
    """
    found = []
    for name in differences(folder, committed):
        paths = folder / name, committed / name
        if not all(p.exists() for p in paths):
            found.append(f"{name}: only in {paths[not paths[0].exists()].parent}")
        elif name.endswith(".npz"):
            with np.load(paths[0]) as ours, np.load(paths[1]) as theirs:
                if ours.files != theirs.files:
                    found.append(f"{name}: other arrays")
                found += [f"{name}: {key}" for key in ours.files if not _same(key, ours[key], theirs[key])]
        else:
            ours, theirs = (json.loads(p.read_text(encoding="utf-8")) for p in paths)
            found += [f"{name}: {where}" for where in _unlike(ours, theirs)]
    return found


def _same(key, ours, theirs):
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    if not np.issubdtype(ours.dtype, np.floating):  # masks, labels, orders
        return np.array_equal(ours, theirs)
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.abs(ours - theirs).max(initial=0)) <= 1e-13 * max(1e-30, float(np.abs(theirs).max(initial=0)))


def _unlike(ours, theirs, where=""):
    if where.endswith("/sha256"):
        return []
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if list(ours) != list(theirs):
            return [f"{where} has other keys"]
        return [w for key in ours for w in _unlike(ours[key], theirs[key], f"{where}/{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            w for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) for w in _unlike(a, b, f"{where}/{i}")
        ]
    if isinstance(ours, float) and "/tolerance/" in where:  # twice an error, rounded up to one or two digits
        return [] if 0.25 <= ours / theirs <= 4 else [where]
    return [] if ours == theirs else [where]


def command(doc, make, folder, page_path):
    """Make vectors anew by ``make(folder)``; write those that changed into ``folder``, or with --check only compare."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=folder)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary)
        try:
            make(fresh)
        except DisagreementError as error:
            sys.exit(f"refused: {error}")
        changed = differences(fresh, args.out)
        if args.check:
            if wrong := contradictions(fresh, args.out):
                sys.exit("not the same: " + "; ".join(wrong))
            print(f"the same but for last bits in {', '.join(changed)}" if changed else "the same, byte for byte")
            return
        for name in changed:
            target = args.out / name
            target.unlink(missing_ok=True)
            if (fresh / name).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((fresh / name).read_bytes())
        if args.out == folder:
            page_path.write_text(page(args.out / "manifest.json"), encoding="utf-8")
    sizes = [p.stat().st_size for p in args.out.rglob("*") if p.is_file()]
    print(f"{len(sizes) - 1} cases, {sum(sizes) / 1000:.0f} kB, {len(changed)} files changed, in {args.out}")


if __name__ == "__main__":
    command(__doc__, generate, VECTORS / "v1", PAGE)
