"""The page that lists operators, flags and cases, from a manifest."""

from __future__ import annotations

import json

from asap_ref.oracle.recipe import Recipe


def page(manifest_path):
    """Markdown of everything that the manifest lists."""
    listed = json.loads(manifest_path.read_text(encoding="utf-8"))
    stored, drawn = listed["cases"], listed.get("drawn", [])
    cases = stored + drawn
    version, made = listed["version"], {1: "generate.py", 2: "generate_v2.py"}
    count = f"{len(stored)} cases" + (f" with files, {len(drawn)} drawn from seeds," if drawn else "")
    lines = [
        "# What the oracle asks" + ("" if version == 1 else f", version {version}"),
        "",
        f"Version {version}: {count} of {len(listed['operators'])} operators. "
        f"Written by tests/oracle/making/{made[version]}; README.md explains the words.",
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
        given = case["arguments"] if "arguments" in case else Recipe.read(case["recipe"]).settings
        arguments = ", ".join(f"{key} {value}" for key, value in given.items())
        lines.append(
            f"| `{case['id']}` | {arguments or '-'} | {', '.join(case['flags'])} | {cell(case['note'])} |"
        )
    return "\n".join(lines) + "\n"


def cell(text):
    return text.replace("|", "\\|")
