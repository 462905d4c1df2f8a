"""A stand-in for CuPy: an array module whose `RawModule` runs CUDA text on the CPU, and which counts and guards.

NumPy is inside, so that whatever the array forms ask for is there as well. What is counted is what makes a GPU wait:

launches    kernels, and calls that compute a new array; to make room for one, and views, cost nothing
waits       conversions of an array to a Python number
transfers   arrays that move between host and device

There are two devices. As with CuPy, arrays are made on the one that is current, whichever is asked for, and results of
arithmetic are there; a kernel sees the arrays of that one alone.

Every array lies between two margins that are all ones: floating-point NaN, and true. They are looked at after each
kernel, so that a write past an end is found, and a read shows in the result.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace
from typing import ClassVar

import array_api_compat.numpy
import emulator
import numpy as np

MARGIN = 512  # bytes
VIEWS = {
    "reshape",
    "permute_dims",
    "expand_dims",
    "squeeze",
    "broadcast_to",
    "matrix_transpose",
    "empty",
    "moveaxis",
}
VIEWS |= {"isdtype", "result_type", "finfo", "iinfo"}


class Device:
    """What the kernels ask of a device."""

    attributes: ClassVar = {"MaxSharedMemoryPerBlockOptin": emulator.MOST_SHARED}  # an H100's

    def __init__(self, index):
        self.index = index

    def __str__(self):
        return f"device {self.index} of the stand-in"

    def __enter__(self):
        _current.append(self)

    def __exit__(self, *_):
        _current.pop()


DEVICES = (Device(0), Device(1))
_current = [DEVICES[0]]

counts = Counter()


@contextmanager
def counted():
    """Count what happens inside, by kind, and of launches by name as ("launch", name)."""
    counts.clear()
    found = Counter()
    yield found
    found.update(counts)


def count(name):
    """Count a call by its name."""
    if name not in VIEWS:
        counts["launches"] += 1
        counts["launch", name] += 1


def guarded(shape, dtype):
    """NumPy memory between two margins, all ones."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.full(size + 2 * MARGIN, 0xFF, np.uint8)
    return memory[MARGIN : MARGIN + size].view(dtype).reshape(shape)


def margins_are_whole(x):
    """Whether nothing was written beside an array that `guarded` made."""
    memory = x
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    return memory.dtype != np.uint8 or bool(np.all(memory[:MARGIN] == 0xFF) and np.all(memory[-MARGIN:] == 0xFF))


class Array:
    """An array on the device that is not there."""

    __hash__ = None

    def __init__(self, inner, device=None):
        self.inner, self.device = inner, device or _current[-1]

    def __array_namespace__(self, api_version=None):
        return NAMESPACE

    def __array__(self, dtype=None, copy=None):
        counts["transfers"] += 1
        return np.asarray(self.inner, dtype=dtype)

    def __getattr__(self, name):  # shape, dtype, flags, ndim, size, mT
        if name.startswith("__"):  # not NumPy's ways of looking into an array
            raise AttributeError(name)
        return wrap(getattr(object.__getattribute__(self, "inner"), name), self.device)

    def __getitem__(self, key):
        return wrap(self.inner[unwrap(key)], self.device)

    def transpose(self, axes):
        """A view, as CuPy's method of the name makes."""
        return wrap(self.inner.transpose(axes), self.device)

    def __setitem__(self, key, value):
        count("setitem")
        self.inner[unwrap(key)] = unwrap(value)

    def _to_host(self, convert):
        counts["waits"] += 1
        return convert(self.inner)

    def __bool__(self):
        return self._to_host(bool)

    def __float__(self):
        return self._to_host(float)

    def __int__(self):
        return self._to_host(int)


def unwrap(x):
    """NumPy arrays, inside tuples and lists too."""
    if isinstance(x, Array):
        return x.inner
    return type(x)(map(unwrap, x)) if type(x) in (tuple, list) else x


def wrap(x, device=None):
    """Results as arrays of the stand-in, on the current device if none is named."""
    if type(x) is tuple and any(isinstance(item, np.ndarray) for item in x):
        return tuple(wrap(item, device) for item in x)
    return Array(np.asarray(x), device) if isinstance(x, np.ndarray | np.generic) else x


def _operator(name):
    def forward(self, *others):
        count(name)
        return wrap(getattr(self.inner, name)(*map(unwrap, others)))

    return forward


BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
for _name in (
    "neg",
    "abs",
    "invert",
    "lt",
    "le",
    "gt",
    "ge",
    "eq",
    "ne",
    *BINARY,
    *(f"r{name}" for name in BINARY),
):
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__"))


class RawModule(emulator.Module):
    """CuPy's class of this name, on the CPU; each launch is counted, and what it was given is looked at afterwards."""

    def get_function(self, name):
        return RawKernel(name, self.library)


class RawKernel(emulator.Kernel):
    def __call__(self, grid, block, args, *, shared_mem=0):
        count(self.name)
        for x in args:
            if isinstance(x, Array) and x.device is not _current[-1]:
                raise emulator.EmulationError(f"{self.name}: an array is on {x.device}, not on {_current[-1]}")
        super().__call__(grid, block, tuple(map(unwrap, args)), shared_mem=shared_mem)
        for x in args:
            if isinstance(x, Array) and not margins_are_whole(x.inner):
                raise emulator.EmulationError(f"{self.name}: written past the end of an array")


class Namespace:
    """The array module; arrays are made in guarded memory."""

    __name__ = "stand_in"
    RawModule = RawModule

    def asarray(self, x, *, dtype=None, device=None, copy=None):
        if isinstance(x, Array) and not copy and dtype in (None, x.dtype):
            return x
        counts["transfers"] += not isinstance(x, Array | int | float | bool)
        x = np.asarray(unwrap(x), dtype=dtype)
        by_columns = x.flags.f_contiguous and not x.flags.c_contiguous  # CuPy keeps that order
        inner = guarded(x.T.shape, x.dtype).T if by_columns else guarded(x.shape, x.dtype)
        inner[...] = x
        return Array(inner)

    def empty(self, shape, *, dtype, device=None):
        return Array(guarded(shape, dtype))

    def ascontiguousarray(self, x):
        count("ascontiguousarray")
        return self.asarray(np.ascontiguousarray(x.inner))

    def __getattr__(self, name):
        found = getattr(array_api_compat.numpy, name)
        if not callable(found) or isinstance(found, type):  # a constant, a dtype
            return found

        def forward(*args, device=None, **kwargs):
            count(name)
            of_view = args[0].device if name in VIEWS and args and isinstance(args[0], Array) else None
            return wrap(found(*map(unwrap, args), **{key: unwrap(x) for key, x in kwargs.items()}), of_view)

        return forward


NAMESPACE = Namespace()


class WholeModule(Namespace):
    """With what else CuPy has, for who takes it for CuPy itself."""

    __name__, __version__ = "stand_in", "0"

    class cuda:  # noqa: N801
        class Device:
            def synchronize(self):
                counts["waits"] += 1

        class runtime:  # noqa: N801
            @staticmethod
            def getDeviceProperties(index):  # noqa: N802
                return {"name": b"no card"}

    def is_available(self):
        return True

    def get_default_memory_pool(self):
        return SimpleNamespace(free_all_blocks=lambda: None, total_bytes=lambda: 0)
