"""Where results go: refused before any work where they cannot be written, or where there are some already.

One rule for every command: nothing is overwritten unless that is asked for.
"""

from __future__ import annotations

import os
from pathlib import Path

ANEW = "give another name, or --force to write over it"


def check_folder(path, what, *, holds=None, force=False, way_out=ANEW):
    """Make a folder; raise OSError if it cannot be, or written to, or holds some of the files that are to come.

    Parameters
    ----------
    path : path
    what : str
        What it is called to the user: an option, say.
    holds : sequence of str, optional
        Patterns of the files to come; none of which may be there, unless ``force``. None: the folder must be empty.
    way_out : str
        What to do about files that are there.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{what}: {path} is a file, expected a folder; give another name")
    _check_writable(path, what)
    patterns = ["*"] if holds is None else holds
    there = sorted({found.name for pattern in patterns for found in path.glob(pattern)}) if path.is_dir() else []
    if there and not force:
        raise FileExistsError(f"{what}: {path} holds {_some(there)} already; {way_out}")


def check_files(paths, what, *, force=False):
    """Raise OSError if files cannot be written, or some are there, unless ``force``."""
    paths = [Path(path) for path in paths]
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{what}: {path} is a folder, expected the name of a file")
        _check_writable(path.parent, what)
    there = [path.name for path in paths if path.exists()]
    if there and not force:
        raise FileExistsError(f"{what}: {_some(there)} in {paths[0].parent} is there already; {ANEW}")


def _some(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_writable(folder, what):
    """Raise unless the folder, or the nearest that is there above it, is one that can be written to."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"{what}: {folder} is a file, so that nothing can be below it; give another name")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{what}: {folder} cannot be written to; give another folder, or change its permissions"
        )
