"""Regenerate the figures and tables of the repository: ``asap-ref figures``.

Each is a script figures/NAME.py with ``measure() -> record`` and ``draw(record, folder) -> paths``; the record is
committed as figures/NAME.json and the outputs beside it. figures/README.md says it in full.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path

from asap_ref.support import files

FIGURES = Path(__file__).resolve().parents[2] / "figures"


def names(folder=FIGURES):
    """List the figures of a folder: the scripts that define ``draw``, by name."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: an installed package has no figures; clone the repository, "
            "pip install -e it, and run asap-ref figures there"
        )
    return [script.stem for script in sorted(folder.glob("*.py")) if "draw" in _functions(script)]


def regenerate(chosen=(), *, measure=False, folder=FIGURES, out=None, say=print):
    """Draw figures from their committed records, or measure first.

    Parameters
    ----------
    chosen : sequence of str
        Names, as of `names`; all when empty.
    measure : bool
        Run the measurements again and rewrite the records. Scripts that draw from another's record have none.
    folder : path
        Where the scripts and their records are.
    out : path, optional
        Where to write, instead of ``folder``.
    say : callable
        Where lines for people go.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    ValueError
        If a name is unknown, or a record is missing.
    FileNotFoundError
        If there is no such folder, as where the package was installed without its repository.
    """
    folder, out = Path(folder), Path(folder if out is None else out)
    known = names(folder)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise ValueError(f"no figure {', '.join(unknown)}; there are: {', '.join(known)}")
    scripts = {name: load(name, folder) for name in (chosen or known)}
    written = []
    if measure:
        for name, script in scripts.items():
            if hasattr(script, "measure"):
                say(f"{name}: measuring")
                path = out / f"{name}.json"
                files.save_text(path, json.dumps(script.measure(), indent=1) + "\n")
                written.append(path)
    for name, script in scripts.items():
        source = getattr(script, "RECORD", f"{name}.json")
        record = out / source if (out / source).exists() else folder / source
        if not record.exists():
            raise ValueError(f"{name}: no record {source}; make it with: asap-ref figures {name} --measure")
        paths = script.draw(json.loads(record.read_text()), out)
        written += paths
        say(f"{name}: {', '.join(path.name for path in paths)}")
    return written


def load(name, folder=FIGURES):
    """Import figures/NAME.py, with its folder importable for what scripts share."""
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(f"figures_{name}", Path(folder) / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


def _functions(script):
    return {node.name for node in ast.parse(script.read_text()).body if isinstance(node, ast.FunctionDef)}
