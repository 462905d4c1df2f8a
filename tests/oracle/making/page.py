"""The page that lists operators, flags and cases, from a manifest."""

from __future__ import annotations

import json


def page(manifest_path):
    """Markdown of everything that the manifest lists."""
    listed = json.loads(manifest_path.read_text(encoding="utf-8"))
    cases = listed["cases"]
    lines = [
        "# What the oracle asks",
        "",
        f"Version {listed['version']}: {len(cases)} cases of {len(listed['operators'])} operators. "
        "Written by tests/oracle/making/generate.py; README.md explains the words.",
        "",
        "## Operators",
        "",
        "| operator | arrays in | arguments | arrays out | section of README.md |",
        "|---|---|---|---|---|",
    ]
    for name, operator in listed["operators"].items():
        arrays = [
            ", ".join(f"{key} {cell(shape)}" for key, shape in operator[side].items() if "/" not in key)
            for side in ("inputs", "outputs")
        ]
        if any("/" in key for key in operator["inputs"]):
            arrays[0] += ", and the parameters of the Transformer by name"
        arguments = ", ".join(operator["arguments"]) or "-"
        source = operator["source"].removeprefix("README, ")
        lines.append(f"| `{name}` | {arrays[0] or '-'} | {arguments} | {arrays[1]} | {source} |")
    lines += ["", "## Flags", "", "| flag | cases | what to look at when they fail |", "|---|---|---|"]
    for flag, hint in listed["flags"].items():
        lines.append(f"| `{flag}` | {sum(flag in case['flags'] for case in cases)} | {cell(hint)} |")
    lines += ["", "## Cases", "", "| case | arguments | flags | note |", "|---|---|---|---|"]
    for case in cases:
        arguments = ", ".join(f"{key} {value}" for key, value in case["arguments"].items())
        lines.append(
            f"| `{case['id']}` | {arguments or '-'} | {', '.join(case['flags'])} | {cell(case['note'])} |"
        )
    return "\n".join(lines) + "\n"


def cell(text):
    return text.replace("|", "\\|")
