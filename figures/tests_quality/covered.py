"""The tests run nearly every line and branch of the package; what they do not run is listed."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from asap_ref.lab.gallery import ROOT
from asap_ref.lab.machine import machine
from asap_ref.support import files
from asap_ref.support.tables import markdown_table


def measure():
    """Run all tests but the slow ones under coverage.py, subprocesses too: three times as long as without."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        env = os.environ | {"COVERAGE_FILE": str(Path(folder) / "data")}

        def coverage(*arguments, check=True):
            return subprocess.run([sys.executable, "-m", "coverage", *arguments], cwd=ROOT, env=env, check=check)

        tests = coverage("run", "--rcfile=pyproject.toml", "-m", "pytest", "-q", "-n", "auto", check=False)
        coverage("combine", "-q")
        coverage("json", "-q", "-o", str(report))
        found = json.loads(report.read_text())
    return {
        "files": {
            name.removeprefix("asap_ref/"): {
                **{key: told["summary"][key] for key in KEYS},
                "missing_lines": told["missing_lines"],
                "missing_branches": told["missing_branches"],
            }
            for name, told in sorted(found["files"].items())
        },
        "tests_passed": tests.returncode == 0,
        "machine": machine(),
    }


KEYS = ("num_statements", "covered_lines", "num_branches", "covered_branches")


def draw(record, folder):
    """Write the table."""
    table = Path(folder) / "covered.md"
    files.save_text(table, markdown(record))
    return [table]


def markdown(record):
    """Write the shares, and the lines and branches that no test runs."""
    failed = "" if record["tests_passed"] else "; some of them failed"
    lines = [["file", "lines", "of", "branches", "of", "not run"]]
    counts = {name: [told[key] for key in KEYS] for name, told in record["files"].items()}
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    whole = {
        name for name, (n_lines, ran, n_branches, taken) in counts.items() if (ran, taken) == (n_lines, n_branches)
    }
    for name in sorted(counts.keys() - whole):
        (n_lines, ran, n_branches, taken), told = counts[name], record["files"][name]
        left = [str(line) for line in told["missing_lines"]]
        left += [
            f"{a} to {'exit' if b < 0 else b}"
            for a, b in told["missing_branches"]
            if a not in told["missing_lines"]
        ]
        lines.append([name, ran, n_lines, taken, n_branches, ", ".join(left)])
    lines.append([f"all {len(counts)} files", totals[1], totals[0], totals[3], totals[2], ""])
    return markdown_table(lines) + (
        f"\nLines {100 * totals[1] / totals[0]:.1f} %, branches {100 * totals[3] / totals[2]:.1f} %; the "
        f"{len(whole)} files that are not listed are run in full. Measured with coverage.py over the default tests, "
        f"without the slow ones and without a GPU ({record['machine']['processor']}){failed}.\n"
    )
