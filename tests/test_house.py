"""A folder is one charter, and imports go only downwards: whoever reads a folder needs none that comes after it."""

import ast
from pathlib import Path

import asap_ref

HOUSE = Path(asap_ref.__file__).parent
# From the ground up. The door is asap_ref/__init__.py, and what only commands need stands above everything.
FLOORS = [
    *("support", "staircase", "method", "fast", "extensions", "rivals", "calibration", "model", "fidelity"),
    "__init__",
    *("lab", "oracle", "cli", "__main__"),
]


def place(path):
    """The floor of a file or folder of the package, given as the parts of its path."""
    return next((part.removesuffix(".py") for part in path if part.removesuffix(".py") in FLOORS), "__init__")


def imported(file):
    """The floors that a file imports from, wherever in it the import stands."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asap_ref"):
            _, *path = node.module.split(".")
            yield from [place(path)] if path else [place([alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from [place(a.name.split(".")[1:]) for a in node.names if a.name.split(".")[0] == "asap_ref"]


def test_imports_go_only_downwards():
    upwards = [
        f"{file.relative_to(HOUSE)} imports {floor}"
        for file in HOUSE.rglob("*.py")
        for floor in imported(file)
        if FLOORS.index(floor) > FLOORS.index(place(file.relative_to(HOUSE).parts))
    ]
    assert upwards == []


def test_each_folder_says_its_charter_in_a_sentence():
    folders = [file for file in HOUSE.rglob("__init__.py") if file.parent != HOUSE]
    floors = {floor for floor in FLOORS if (HOUSE / floor).is_dir()}
    assert {str(file.parent.relative_to(HOUSE)) for file in folders} == {*floors, "fast/kernels"}
    for file in folders:
        charter = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
        assert 20 < len(charter) <= 120 and charter.endswith("."), f"{file.relative_to(HOUSE)}: {charter!r}"
