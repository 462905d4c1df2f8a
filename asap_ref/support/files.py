"""Files that cannot be half written and need no pickle: one .npz holds arrays and the settings behind them.

A file is a plain NumPy .npz: nested dicts of arrays with their keys joined by "/", and one JSON text under
``header`` that names the kind of content, the format version, and the settings that made it. Reports are JSON with
the same three words on top.

What is read is not trusted. Parts are stored as they are, never compressed, so no part can be larger than the
file that holds it (a "zip bomb"); a part's own header must ask for exactly the bytes that are there before any is
read; checksums are verified, and that no part is missing; object arrays, which would have to be unpickled, are
refused.
"""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import secrets
import stat
import time
import zipfile
from pathlib import Path

import numpy as np

from asap_ref.support.arrays import to_numpy
from asap_ref.support.trees import flatten, unflatten

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
    flat = {key: to_numpy(x) for key, x in flatten(arrays).items()}
    header = json.dumps(_signed(kind) | {"settings": settings, "arrays": list(flat)}, default=_plain)
    write_atomically(path, lambda file: np.savez(file, header=np.asarray(header), **flat))


def load(path, kind, build=lambda arrays, settings: (arrays, settings)):
    """Read what `save` wrote: ``build(nested dict of NumPy arrays, settings)``, or the two as they are.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, not ours, of another kind, of another format version, or holds what ``build``
        does not know.
    """
    with _opened(path) as file:
        try:
            flat = _read_parts(file)
            if "header" not in flat:
                raise ValueError(f"it has no header, only {', '.join(flat):.60}")
            header = json.loads(str(flat.pop("header")))
            if header["arrays"] != list(flat):
                raise ValueError("some of its arrays are missing, or are not its own")
            arrays, settings = unflatten(flat), header["settings"]
        except Exception as error:  # whatever foreign bytes can raise
            raise _not_readable(path, kind, error) from error
    _check_signature(path, header, kind)
    try:
        return build(arrays, settings)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} holds a {kind} that this release cannot rebuild ({what})") from error


def save_json(path, kind, content):
    """Write a dict as JSON, atomically, with format, version and kind on top."""
    save_text(path, json.dumps(_signed(kind) | content, indent=1, default=_plain) + "\n")


def load_json(path, kind):
    """Read what `save_json` wrote; raises as `load` does."""
    with _opened(path) as file:
        try:
            content = json.loads(file.read().decode())
            content.keys()
        except Exception as error:  # whatever foreign bytes can raise
            raise _not_readable(path, kind, error) from error
    _check_signature(path, content, kind)
    return {key: value for key, value in content.items() if key not in _signed(kind)}


def _plain(x):
    """What JSON holds in place of a number of NumPy's, which counts as a number everywhere else."""
    if isinstance(x, np.generic):
        return x.item()
    raise TypeError(f"a {type(x).__name__} cannot be written to a file: {x!r:.60}")


def _signed(kind):
    return {"format": "asap_ref", "version": FORMAT_VERSION, "kind": kind}


def _check_signature(path, header, kind):
    if header.get("format") != "asap_ref":
        raise _damaged(path, "it does not say that it is")
    if header.get("kind") != kind:
        raise ValueError(f"{path} is of kind {header.get('kind')!r}, expected {kind!r}")
    if header.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {header.get('version')}, this release reads {FORMAT_VERSION}; "
            "update asap_ref, or write the file anew"
        )


def _opened(path):
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None


def _damaged(path, error):
    return ValueError(f"{path} is damaged or was not written by asap_ref: {error}")


def _not_readable(path, kind, error):
    """What is wrong with a file: it is one of ours in the other of our two forms, or damaged, or not ours."""
    with open(path, "rb") as file, contextlib.suppress(Exception):
        other = json.loads(file.read(2**24)) if file.read(1) == b"{" and not file.seek(0) else _header_of(file)
        if other["format"] == "asap_ref":
            return ValueError(f"{path} is of kind {other['kind']!r}, expected {kind!r}")
    return _damaged(path, error)


def _header_of(file):
    return json.loads(str(_read_parts(file)["header"]))


def _read_parts(file):
    """{name: array} of an open .npz, nothing of which is read before its size is known to be right."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("its parts are compressed, ours never are")
        if sum(part.file_size for part in parts) > size:
            raise ValueError("its parts claim to be larger than the file")
        if len({part.filename for part in parts}) != len(parts):
            raise ValueError("two of its parts have the same name")
        return {part.filename.removesuffix(".npy"): _read_part(archive, part) for part in parts}


def _read_part(archive, part):
    with archive.open(part) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}[version]
        shape, _, dtype = getattr(np.lib.format, read_header)(stream)
        if dtype.kind not in "biufU":
            raise ValueError(f"part {part.filename} is of type {dtype}, which this release does not read")
        if stream.tell() + math.prod(shape) * dtype.itemsize != part.file_size:
            raise ValueError(f"part {part.filename} is not of the size that its header asks for")
    with archive.open(part) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def save_text(path, text):
    """Write a text file atomically, as UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_atomically(path, write):
    """Call ``write(binary file)`` on a temporary file beside path, then move it there in one step."""
    path = Path(os.path.realpath(path))  # a link goes on pointing where it did
    if path.exists() and not path.is_file():  # a move would put a file in the place of a device
        raise OSError(f"{path} is {'a folder' if path.is_dir() else 'no ordinary file'}; give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.parent / f"{_temporary_stem(path)}{secrets.token_hex(8)}.tmp"
    before = path.stat() if path.exists() else None
    try:
        # what is written again keeps its mode (0600, say), from the first byte on; a new file is an ordinary one
        mode = 0o666 if before is None else stat.S_IMODE(before.st_mode)
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), mode)
    except OSError as error:
        raise type(error)(error.errno, f"cannot be written to: {os.strerror(error.errno)}", str(path)) from None
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            with contextlib.suppress(OSError, AttributeError):  # a file system, or a system, without owners
                os.chown(temporary, before.st_uid, before.st_gid)
            os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _temporary_stem(path):
    """How the names of temporary files beside path begin: short enough for any file system."""
    return f".{path.name.encode(errors='surrogateescape')[:200].decode(errors='ignore')}."


def _remove_leftovers(path, *, age=3600):
    """Remove temporary files that a killed process left beside path, if no writer can still be at them."""
    for leftover in path.parent.glob(f"{glob.escape(_temporary_stem(path))}{'[0-9a-f]' * 16}.tmp"):
        with contextlib.suppress(OSError):  # another process may be removing it too
            if time.time() - leftover.stat().st_mtime > age:
                leftover.unlink()
