"""What version 2 of the oracle catches: bugs of kernels, one at a time, in a copy of the torch example.

Each is checked in the operator where it sits: by version 2 first, and where that passes by a minute of fuzzing.
Needs torch, the extra "peers".
"""

import types
from pathlib import Path

from kernel_bugs import BUGS, PRELUDE

from asap_ref import oracle
from asap_ref.support import files
from asap_ref.support.tables import markdown_table

SOURCE = Path(__file__).resolve().parents[2] / "tests" / "oracle" / "examples" / "torch_layer.py"
SECONDS = 60


def mutant(bug):
    """Return the torch example with one bug."""
    text = SOURCE.read_text(encoding="utf-8")
    if text.count(bug.right) != 1:
        raise ValueError(f"{bug.name}: the right text occurs {text.count(bug.right)} times in {SOURCE.name}")
    module = types.ModuleType(f"{SOURCE.stem} with a bug")
    exec(compile(text.replace(bug.right, bug.wrong) + PRELUDE, SOURCE.name, "exec"), module.__dict__)
    return module


def outcome(bug):
    """Run the oracle on the example with one bug: what it caught, and what it pointed at."""
    module, by = mutant(bug), "version 2"
    report = oracle.check_module(module, operator=bug.operator, dtype=bug.dtype, version=2)
    if report.passed:
        by, report = "fuzzing", oracle.fuzz(module, operator=bug.operator, dtype=bug.dtype, seconds=SECONDS)
    suspects = report.suspects()[:2] if report.failed else []
    remarks = [remark for r in report.failed for c in r.comparisons for remark in c.remarks]
    breaches = [sentence for r in report.failed for _, sentence in r.breaches]
    return {
        "bug": bug.name,
        "dtype": bug.dtype,
        "operator": bug.operator,
        "flags": list(bug.flags),
        "caught": bool(report.failed),
        "by": by if report.failed else "",
        "failed": len(report.failed),
        "cases": len(report.reports) + len(report.layouts),
        "suspects": suspects,
        "remark": next(iter([*breaches, *remarks]), ""),
        "hint_named": bool(set(suspects) & set(bug.flags)),
    }


def measure():
    """Inject every bug."""
    names = dict.fromkeys((bug.operator, bug.dtype) for bug in BUGS)
    clean = [oracle.check_module(SOURCE, operator=name, dtype=dtype, version=2).passed for name, dtype in names]
    return {"rows": [outcome(bug) for bug in BUGS], "passes_without": all(clean), "seconds": SECONDS}


def draw(record, folder):
    """Write the table."""
    rows = record["rows"]
    caught = [row for row in rows if row["caught"]]
    named = sum(row["hint_named"] for row in rows)
    table = [["bug", "sits in", "dtype", "caught by", "failed", "first two suspects", "right", "first remark"]]
    for row in rows:
        table.append(
            [
                row["bug"],
                f"`{row['operator']}`",
                row["dtype"],
                row["by"] or "**nothing**",
                f"{row['failed']} of {row['cases']}",
                ", ".join(row["suspects"]),
                "yes" if row["hint_named"] else f"no: {', '.join(row['flags'])}",
                row["remark"],
            ]
        )
    by_fuzzing = sum(row["by"] == "fuzzing" for row in rows)
    text = (
        "# What the oracle catches of bugs in kernels\n\n"
        f"{len(rows)} bugs of tiles, masks, formats, memory and arguments, each injected alone into a copy of "
        "tests/oracle/examples/torch_layer.py, which passes without, and checked in the operator where it sits, "
        f"in the dtype where it matters. **{len(caught)} of {len(rows)} are caught**, {by_fuzzing} of them not by "
        f"version 2 but by at most {record['seconds']} seconds of fuzzing. The right area is among the first two "
        f"suspects for **{named}**, {100 * named / len(rows):.0f} %. Which areas are right is written in "
        "figures/kernel_bugs.py, before the oracle was asked; the ranking was then mended with these bugs in sight, "
        "so expect less for others.\n\n" + markdown_table(table)
    )
    path = Path(folder) / "kernel_mutations.md"
    files.save_text(path, text)
    return [path]


if __name__ == "__main__":
    from asap_ref.cli import main

    raise SystemExit(main(["figures", "kernel_mutations"]))
