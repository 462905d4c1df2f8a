"""The same code runs on every array module: where it ran, how far from NumPy's numbers, what a GPU would do.

The checks are those of the tests (agreement.py and test_counts.py there), which need the test extra installed.
"""

import importlib
import json
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from asap_ref.fast.kernels.attention import LAUNCH_BOUND
from asap_ref.lab.gallery import ROOT, importable
from asap_ref.lab.machine import card, machine
from asap_ref.support import files
from asap_ref.support.tables import markdown_table

TESTS = [ROOT / "tests" / folder for folder in ("helpers", "fast")]
COLUMNS = ("values", "gradients", "training step", "compiled, saved, loaded")


def measure():
    """Go through all modules, devices and dtypes; and count kernels, waits and transfers.

    What is missing here keeps the row that the committed record has: a GPU is measured where there is one.
    """
    with importable(*TESTS):
        from backends import BACKENDS
        from test_counts import table

        committed = Path(__file__).with_suffix(".json")
        old = json.loads(committed.read_text())["rows"] if committed.exists() else []
        measured = {(row["module"], row["dtype"]): row for row in old if "values" in row}
        rows = []
        for backend in BACKENDS.values():
            reason = backend.missing()
            for dtype in backend.dtypes:
                row = {"module": backend.name, "dtype": dtype, "missing": reason}
                if reason:
                    rows.append(measured.get((backend.name, dtype), row))
                else:
                    on = {"card": card()} if backend.module == "cupy" else {}
                    rows.append(row | _errors(backend, dtype) | on)
        return {"rows": rows, "counts": table(), "dtypes": _dtypes(), "machine": machine()}


def _dtypes():
    """Go through all public callables on all dtypes of all modules, and count."""
    import dtypes

    rows = []
    for module, known in dtypes.MODULES.items():
        if find_spec(module) is None:
            continue
        for dtype in known:
            if dtypes.dtype_of(module, dtype) is not None:
                with dtypes.switched(module):
                    found = {name: dtypes.outcome(name, module, dtype) for name in dtypes.NAMES}
                rows.append({"module": module, "dtype": dtype, "told": _told(found)})
    return rows


def _errors(backend, dtype):
    import agreement
    from operators import OPERATORS

    def worst(pairs):
        return max(agreement.error(*pair) for pair in pairs)

    with backend(dtype) as (_, place), tempfile.TemporaryDirectory() as folder:
        of_operators = [agreement.of_operator(name, place) for name in OPERATORS]
        steps = [pair for name in agreement.ATTENTIONS for pair in agreement.of_training_step(name, place)[0]]
        return {
            "version": str(importlib.import_module(backend.module).__version__),
            "operators": len(of_operators),
            "values": max(worst(values) for values, _ in of_operators),
            "gradients": max(worst(gradients) for _, gradients in of_operators),
            "training step": worst(steps),
            "compiled, saved, loaded": worst(agreement.of_files(place, backend.module, Path(folder))),
        }


def draw(record, folder):
    """Write the two tables."""
    lines = [["array module", "dtype", "calls", *COLUMNS]]
    for row in record["rows"]:
        about = ", ".join(row[key] for key in ("version", "card") if key in row)
        name = f"{row['module']} ({about})" if about else row["module"]
        cells = [f"{row[column]:.0e}" if column in row else "not run" for column in COLUMNS]
        lines.append([name, row["dtype"], row.get("operators", ""), *cells])
    reasons = sorted(
        {f"{row['module']}: {row['missing'].split(':')[0]}" for row in record["rows"] if row["missing"]}
    )
    of_dtypes = [["dtype", *dict.fromkeys(row["module"] for row in record["dtypes"])]]
    for dtype in dict.fromkeys(row["dtype"] for row in record["dtypes"]):
        found = {row["module"]: row["told"] for row in record["dtypes"] if row["dtype"] == dtype}
        of_dtypes.append([dtype, *(found.get(module, "") for module in of_dtypes[0][1:])])
    calls = {row["operators"] for row in record["rows"] if "operators" in row}
    since = " (fewer where the last run is older, as on a GPU)" if len(calls) > 1 else ""
    text = (
        f"{markdown_table(lines)}\n"
        "Largest difference from NumPy in float64, relative to the largest entry, over so many calls of "
        f"operators{since}, a training step of the Transformer, and the logits of a model "
        "that was trained, compiled and saved there, then loaded on NumPy, and back. "
        f"Not run: {'; '.join(reasons) or 'none'}.\n\n"
        f"{markdown_table([['work', 'kernels', 'waits', 'transfers'], *record['counts']])}\n"
        "What a GPU would do, counted on the strict module: kernels launched, times the host waits for the device "
        "(one, to make sure that the result is finite; Sinkhorn looks at its scalings besides), and arrays that "
        "move between host and device. These are the array forms. CuPy arrays take CUDA kernels: forward, one launch "
        f"for softmax, 2T + 1 for Sinkhorn (up to {LAUNCH_BOUND:,} scores, beyond which it takes the array form as "
        "long as there is room) and 7 for ASAP (5 where slices are its only features; up to the "
        "[length](../speed/kernels.md) that a card can sort), with neither wait nor transfer, counted in "
        "tests/fast/kernels. The rows of CuPy above were run on a card before there were kernels, which have not run "
        "on a card yet. Errors about what is not finite come from kernels when results are brought to the host by "
        "`to_numpy`, not by `x.get()`.\n\n"
        f"{markdown_table(of_dtypes)}\n"
        "Public callables that give the numbers of float64 within the rounding of the dtype, and those that refuse it "
        "by name (integers and what is not real: all but `to_numpy`, which takes what NumPy has). Nothing else is "
        "allowed: tests/promises/test_dtypes.py.\n"
    )
    path = Path(folder) / "modules.md"
    files.save_text(path, text)
    return [path]


def _told(found):
    """One cell: how many are right and refused, and who is neither."""
    counts = Counter(found.values())
    right, refused = counts.pop("right", 0), counts.pop("refused", 0)
    counts.pop("takes no arrays", None)
    others = sorted(name for name, told in found.items() if told in counts)
    few = f" ({', '.join(name for name, told in found.items() if told == 'refused')})" if 0 < refused < 9 else ""
    return f"{right} right, {refused} refused{few}" + (f", wrong: {', '.join(others)}" if others else "")
