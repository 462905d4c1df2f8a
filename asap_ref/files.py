"""Files that cannot be half written and need no pickle: one .npz holds arrays and the settings behind them.

A file is a plain NumPy .npz: nested dicts of arrays with their keys joined by "/", and one JSON text under
``header`` that names the kind of content, the format version, and the settings that made it.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from asap_ref.arrays import to_numpy
from asap_ref.parameters import flatten, unflatten

FORMAT_VERSION = 1


def save(path, kind, arrays, settings):
    """Write a nested dict of arrays and JSON-ready settings, atomically.

    Examples
    --------
    >>> import tempfile, os
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(os.path.join(folder, "x.npz"), "example", {"a": {"b": np.arange(2)}}, {"seed": 0})
    ...     load(os.path.join(folder, "x.npz"), "example")
    ({'a': {'b': array([0, 1])}}, {'seed': 0})
    """
    header = {"format": "asap_ref", "version": FORMAT_VERSION, "kind": kind, "settings": settings}
    flat = {key: to_numpy(x) for key, x in flatten(arrays).items()}
    write_atomically(path, lambda file: np.savez(file, header=np.asarray(json.dumps(header)), **flat))


def load(path, kind):
    """Read what `save` wrote: (nested dict of NumPy arrays, settings).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, not ours, of another kind, or of a newer format version.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            flat = {key: archive[key] for key in archive.files}
        header = json.loads(str(flat.pop("header")))
        found, version = header["kind"], header["version"]
        settings = header["settings"]
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged or was not written by asap_ref: {error}") from error
    if found != kind:
        raise ValueError(f"{path} is of kind {found!r}, expected {kind!r}")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, this release reads {FORMAT_VERSION}; update asap_ref"
        )
    return unflatten(flat), settings


def save_text(path, text):
    """Write a text file atomically, as UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_atomically(path, write):
    """Call ``write(binary file)`` on a temporary file beside path, then move it there in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private; ours are ordinary
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
