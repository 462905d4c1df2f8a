"""Where calibration batches come from, and how a sum over them is formed.

Calibration asks two things of its data: a first batch, and the sum over all batches of a function of one. That is
all a distributed engine needs to know as well (cluster.py). What is gone through are *parts*: a batch itself, the
path of a file, some rows of an array on disk. A batch is made of a part where, and when, it is used.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("q", "k", "query_mask", "key_mask")  # in .npz files and zarr groups, the masks optional


class InProcess:
    """Batches of an iterable, one in memory at a time; see `in_process`."""

    def __init__(self, parts, make):
        self._parts, self._make = parts, make

    def first(self):
        """Return the first batch, or None; an iterator still gives it again in the next pass."""
        part, self._parts = peek(self._parts)
        return None if part is None else self._make(part)

    def total(self, function):
        """Add up ``function(batch)`` over all batches."""
        return added_up(function(self._make(part)) for part in self._parts)


def in_process(batches):
    """Make a source of batches that are gone through here.

    Parameters
    ----------
    batches
        As in `resolved`.

    Examples
    --------
    >>> source = in_process(iter([1, 2, 3]))
    >>> source.first(), source.total(lambda x: 10 * x)
    (1, 60)
    """
    return InProcess(*resolved(batches))


def peek(parts):
    """(the first part or None, the parts with the first still in front)."""
    iterator = iter(parts)
    first = next(iterator, None)
    return first, itertools.chain([first], iterator) if iterator is parts and first is not None else parts


def added_up(parts):
    """Add parts in their order; None if there are none."""
    total = None
    for part in parts:
        total = part if total is None else total + part
    return total


class Total(tuple):
    """Numbers and arrays that are added entry by entry."""

    def __new__(cls, *parts):
        """Hold the parts."""
        return super().__new__(cls, parts)

    def __getnewargs__(self):
        return tuple(self)  # it travels between processes

    def __add__(self, other):
        return Total(*(a + b for a, b in zip(self, other, strict=True)))


# ------------------------------------------------------------------------------------------- what batches may be


@dataclass(frozen=True)
class Mapped:
    """Batches that a function makes of others, anew whenever they are gone through.

    On a cluster the function travels to the workers, and what it makes stays there.

    Examples
    --------
    >>> list(Mapped(sum, [[1, 2], [3]]))
    [3, 3]
    """

    function: Callable
    batches: Any

    def __iter__(self):
        parts, make = resolved(self)
        return map(make, parts)


@dataclass(frozen=True)
class Rows:
    """Some rows of arrays on disk: a batch that is not read yet."""

    arrays: tuple
    rows: slice
    alone: bool  # one array is the batch, not a tuple of them

    def load(self):
        """Read them: an array, or a tuple of arrays."""
        read = tuple(np.asarray(array[self.rows]) for array in self.arrays)
        return read[0] if self.alone else read


@dataclass(frozen=True)
class Chunked:
    """Arrays with chunks (zarr, dask), gone through one chunk of the first axis at a time."""

    arrays: tuple
    alone: bool

    def __iter__(self):
        sizes = self.arrays[0].chunks[0]
        if isinstance(sizes, int):  # zarr gives one size, dask all of them
            sizes = [sizes] * -(-self.arrays[0].shape[0] // sizes)
        ends = list(itertools.accumulate(sizes))
        for start, end in itertools.pairwise([0, *ends]):
            yield Rows(self.arrays, slice(start, min(end, self.arrays[0].shape[0])), self.alone)


def resolved(batches):
    """Find what is to be gone through, and how a batch is made of each part.

    Parameters
    ----------
    batches
        - an iterable of batches;
        - an iterable of paths: of .npz files with arrays ``q``, ``k`` and, if need be, ``query_mask``, ``key_mask``,
          or of .npy files, each an array that is the batch (for queries and keys, stacked on a first axis of 2);
        - a zarr group with arrays of those names, or its path; a batch is a chunk of the first axis;
        - a tuple of zarr or dask arrays, in the order of those names, or one such array that holds inputs of a model;
        - `Mapped` over any of these.

    Returns
    -------
    (parts, make)
        ``make(part)`` is a batch.

    Raises
    ------
    TypeError
        If there is nothing to go through.
    ValueError
        If a zarr group has no q or k, or arrays differ in their first axis.

    Examples
    --------
    >>> parts, make = resolved(Mapped(sum, [[1, 2], [3]]))
    >>> [make(part) for part in parts]
    [3, 3]
    """
    if isinstance(batches, Mapped):
        parts, make = resolved(batches.batches)
        return parts, partial(in_turn, (make, batches.function))
    if isinstance(batches, str | os.PathLike):
        batches = _opened(batches)
    zarr = sys.modules.get("zarr")
    if zarr is not None and isinstance(batches, zarr.Group):
        if not {"q", "k"} <= set(batches):
            raise ValueError(f"batches: the zarr group has {sorted(batches)}, expected arrays q and k")
        batches = tuple(batches[name] for name in NAMES if name in batches)
    alone = hasattr(batches, "chunks")
    arrays = (batches,) if alone else batches
    if isinstance(arrays, tuple) and arrays and all(hasattr(array, "chunks") for array in arrays):
        rows = [array.shape[0] for array in arrays]
        if not all(row == row for row in rows):  # NaN, where dask does not know
            raise ValueError(
                "batches: dask does not know the sizes of the chunks of these; call compute_chunk_sizes() on each"
            )
        if len(set(rows)) > 1:
            raise ValueError(f"batches: arrays of {rows} rows, expected as many of each")
        return Chunked(arrays, alone), load
    if not hasattr(batches, "__iter__"):
        raise TypeError(f"batches must be an iterable of batches, got {type(batches).__name__}")
    return batches, load


def _opened(path):
    try:
        import zarr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"batches: {path} is taken for a zarr group, and zarr is not installed; pip install "
            "'asap-ref[distributed]', or give a list of paths of .npz files"
        ) from error
    try:
        return zarr.open(path, mode="r")
    except FileNotFoundError as error:
        what = "is no zarr group" if Path(path).exists() else "is not there"
        raise FileNotFoundError(
            f"batches: {path} {what}; give the path of a zarr group, or .npz and .npy files as a list of paths"
        ) from error


def load(part):
    """Read a part if it is on disk; a batch that is in memory already is returned as it is."""
    if isinstance(part, Rows):
        return part.load()
    if isinstance(part, str | os.PathLike):
        try:
            read = _read(part)
        except FileNotFoundError:
            raise FileNotFoundError(f"batches: no file {part}") from None
        except OSError:
            raise
        except Exception as error:  # whatever foreign bytes can raise
            raise ValueError(f"batches: {part} is no .npy or .npz file of numbers, or damaged: {error}") from error
        if not isinstance(read, dict):
            return read
        if not {"q", "k"} <= set(read):
            raise ValueError(f"batches: {part} has {sorted(read)}, expected arrays q and k")
        masked = any(name in read for name in NAMES[2:])  # one mask may be there without the other
        return tuple(read.get(name) for name in NAMES) if masked else (read["q"], read["k"])
    return part


def _read(path):
    """Read the array of an .npy file, or a dict of those of an .npz file."""
    with open(path, "rb") as file:  # an error of NumPy's would leave it open
        found = np.load(file, allow_pickle=False)
        return (
            found
            if isinstance(found, np.ndarray)
            else {name: found[name] if name in NAMES else None for name in found}
        )


def in_turn(functions, part):
    """Apply one function after the other."""
    return reduce(lambda x, function: function(x), functions, part)
