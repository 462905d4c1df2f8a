"""Regenerate the figures and tables of the repository: ``asap-ref figures``.

Each is a script NAME.py somewhere below figures/, with ``measure() -> record`` and ``draw(record, folder) -> paths``;
the record is committed as NAME.json beside it, and so are the outputs. A name says all, since it is there once.
figures/README.md lists them, and says in full what a script holds.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import sys
from pathlib import Path

from asap_ref.support import files
from asap_ref.support.words import did_you_mean

ROOT = Path(__file__).resolve().parents[2]  # of the repository, where the package lies in one
FIGURES = ROOT / "figures"


def scripts(folder=FIGURES):
    """Find every script below a folder, what figures share included: {name: path}, by name.

    Raises
    ------
    ValueError
        If two have the same name.
    FileNotFoundError
        If there is no such folder, as where the package was installed without its repository.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: scripts and records of figures are in the repository, not in an installed "
            "package; clone it, pip install -e '.[test,peers]', and run asap-ref figures there"
        )
    found = {}
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.stem):
        if path.stem in found:
            raise ValueError(f"two scripts are called {path.stem}: {found[path.stem]} and {path}; rename one")
        found[path.stem] = path
    return found


def names(folder=FIGURES):
    """List the figures below a folder: the scripts that define ``draw``, by name."""
    return [name for name, path in scripts(folder).items() if "draw" in _functions(path)]


def regenerate(chosen=(), *, measure=False, folder=FIGURES, out=None, say=print):
    """Draw figures from their committed records, or measure first.

    Parameters
    ----------
    chosen : sequence of str
        Names, as of `names`; all when empty.
    measure : bool
        Run the measurements again and rewrite the records. What has no ``measure`` any more keeps its record.
    folder : path
        Below which the scripts and their records are.
    out : path, optional
        Where to write, instead of beside each script.
    say : callable
        Where lines for people go.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    ValueError
        If a name is unknown or there twice, or a record is missing.
    FileNotFoundError
        If there is no such folder, as where the package was installed without its repository.
    """
    known = names(folder)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        hint = did_you_mean(unknown[0], known)
        raise ValueError(f"no figure {', '.join(unknown)}; there are: {', '.join(known)}{hint}")
    paths = scripts(folder)
    figures = [(name, load(name, folder), paths[name].parent) for name in (chosen or known)]
    written = []
    if measure:
        for name, script, home in figures:
            if not hasattr(script, "measure"):  # what it measured is gone
                say(f"{name}: cannot be measured again; drawn from its record")
                continue
            say(f"{name}: measuring")
            path = Path(out or home) / f"{name}.json"
            files.save_text(path, json.dumps(script.measure(), indent=1) + "\n")
            written.append(path)
    for name, script, home in figures:
        target, source = Path(out or home), f"{name}.json"
        record = target / source if (target / source).exists() else home / source
        if not record.exists():
            raise ValueError(f"{name}: no record {source}; make it with: asap-ref figures {name} --measure")
        drawn = script.draw(json.loads(record.read_text()), target)
        written += drawn
        say(f"{name}: {', '.join(path.name for path in drawn)}")
    return written


def load(name, folder=FIGURES):
    """Import the script of that name, with its own folder importable for what scripts share."""
    path = scripts(folder)[name]
    with importable(path.parent):
        spec = importlib.util.spec_from_file_location(f"figures_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def importable(*folders):
    """Let modules of these folders be imported by their bare names, for a while."""
    before = list(sys.path)
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        sys.path[:] = before


def _functions(script):
    return {node.name for node in ast.parse(script.read_text()).body if isinstance(node, ast.FunctionDef)}
