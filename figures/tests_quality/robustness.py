"""Wrong calls, extreme input, damaged files and kills: each is refused with a reason, or gives what is right."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from asap_ref.lab.gallery import ROOT
from asap_ref.lab.machine import machine
from asap_ref.support import files
from asap_ref.support.tables import markdown_table

NOTED = "from tallies import"  # what a file of tests that try to break things holds


def measure():
    """Run the tests that try to break things, the slow ones too, and add up what they note."""
    tests = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if NOTED in path.read_text()]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "", *tests],
            env=os.environ | {"ASAP_REF_TALLIES": folder},
            check=False,
        )
        if done.returncode:
            raise RuntimeError("a test failed: mend that first, there is nothing to count before")
        found = Counter()
        for path in Path(folder).glob("*.jsonl"):
            for line in path.read_text().splitlines():
                *kind, count = json.loads(line)
                found[tuple(kind)] += count
    return {"tried": [[*kind, count] for kind, count in found.items()], "machine": machine()}


def draw(record, folder):
    """Write the table."""
    table = Path(folder) / "robustness.md"
    files.save_text(table, markdown(record))
    return [table]


def markdown(record):
    """Write what was tried, how often, and with what outcomes."""
    counts = Counter({(what, outcome): count for what, outcome, count in record["tried"]})
    outcomes = list(dict.fromkeys(outcome for _, outcome in counts))
    lines = [["tried", "times", *outcomes]]
    for what in dict.fromkeys(what for what, _ in counts):
        each = [counts[what, outcome] for outcome in outcomes]
        lines.append([what, sum(each), *(n or "" for n in each)])
    return markdown_table(lines) + (
        f"\n{counts.total()} trials, each of them an assertion of tests/: nothing was silently wrong, no NaN came out, "
        "no input was changed, no file was lost or unpickled, and every refusal says what was given and what was "
        "expected. Same numbers: what was changed does not matter to them (a date in an archive, the layout of "
        f"memory), or the run that was killed ends with the same bits as an undisturbed one. "
        f"{record['machine']['processor']}, NumPy {record['machine']['numpy']}.\n"
    )
