"""The tests run nearly every line and branch of the package; what they do not run is listed."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from asap_ref import files
from asap_ref.reproduce import machine

ROOT = Path(__file__).parents[1]


def measure():
    """Run all tests but the slow ones under coverage.py, subprocesses too: three times as long as without."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        env = os.environ | {"COVERAGE_FILE": str(Path(folder) / "data")}
        commands = (
            ["run", "--rcfile=pyproject.toml", "-m", "pytest", "-q", "-p", "no:xdist"],
            ["combine", "-q"],
            ["json", "-q", "-o", str(report)],
        )
        for arguments in commands:
            subprocess.run([sys.executable, "-m", "coverage", *arguments], cwd=ROOT, env=env, check=True)
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
    lines = ["| file | lines | of | branches | of | not run |", "| --- | --- | --- | --- | --- | --- |"]
    totals = [sum(told[key] for told in record["files"].values()) for key in KEYS]
    rows = [(name, [told[key] for key in KEYS], told) for name, told in record["files"].items()]
    whole = [row for row in rows if row[1][0] == row[1][1] and row[1][2] == row[1][3]]
    for name, (n_lines, ran, n_branches, taken), told in rows:
        if (name, [n_lines, ran, n_branches, taken], told) not in whole:
            left = [str(line) for line in told["missing_lines"]]
            left += [
                f"{a} to {'exit' if b < 0 else b}"
                for a, b in told["missing_branches"]
                if a not in told["missing_lines"]
            ]
            lines.append(f"| {name} | {ran} | {n_lines} | {taken} | {n_branches} | {', '.join(left)} |")
    lines.append(f"| all {len(rows)} files | {totals[1]} | {totals[0]} | {totals[3]} | {totals[2]} | |")
    return "\n".join(lines) + (
        f"\n\nLines {100 * totals[1] / totals[0]:.1f} %, branches {100 * totals[3] / totals[2]:.1f} %; the "
        f"{len(whole)} files that are not listed are run in full. Measured with coverage.py over the default tests, "
        f"without the slow ones and without a GPU ({record['machine']['processor']}).\n"
    )


if __name__ == "__main__":
    from asap_ref.cli import main

    raise SystemExit(main(["figures", "covered"]))
