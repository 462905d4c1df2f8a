"""CUDA text compiled by g++ and run on NumPy arrays: `Module` is a stand-in for CuPy's RawModule (emulator.h).

With ASAP_REF_RACES set, threads are threads and g++'s ThreadSanitizer looks at them: see test_kernels_races.py.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FLAGS = ("-std=c++20", "-O1", "-march=native", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE")
if os.environ.get("ASAP_REF_RACES"):
    FLAGS += ("-DTHREADS", "-fsanitize=thread", "-g", "-pthread")
INCLUDE = ("-I", HERE, "-I", HERE / "stand_in_headers")
ORDERS = (0, 1, 2, 3)  # threads first to last, last to first, two shuffles
_order = 0


def missing():
    """Why nothing can be emulated here, or None."""
    return None if shutil.which("g++") else "g++ is not installed: the kernels cannot be emulated"


@contextmanager
def threads_in_order(order):
    """Let the threads of a block run in another order."""
    global _order
    before, _order = _order, order
    try:
        yield
    finally:
        _order = before


def edit(code):
    """Change the text before it is compiled: those who seed faults put another function here."""
    return code


class EmulationError(Exception):
    """What a GPU might let pass: a barrier that not all threads reach, or a write that is out of bounds."""


MOST_SHARED, ALLOWED_UNASKED = 227 * 1024, 48 * 1024  # bytes of shared memory of a block, on an H100
_allowed = {}  # by library and kernel, as on a card: the functions of a module that bear one name are one function


class Module:
    """CUDA text, compiled for the CPU."""

    def __init__(self, *, code, options=()):
        code = edit(code)
        self.names = re.findall(r'extern "C" __global__ void (?:__launch_bounds__\(\w+\))?\s*(\w+)\(', code)
        self.library = _compiled(code, tuple(self.names))

    def get_function(self, name):
        """Give the kernel of that name."""
        return Kernel(name, self.library)


class Kernel:
    """A kernel that is called as CuPy's are: (blocks,), (threads,), arguments."""

    def __init__(self, name, library):
        self.name, self.function, self.key = name, library[f"emulate_{name}"], (library._name, name)

    @property
    def max_dynamic_shared_size_bytes(self):
        """What a launch may ask for; one for all who ask the library for the kernel."""
        return _allowed.get(self.key, ALLOWED_UNASKED)

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        if size > MOST_SHARED:
            raise EmulationError(f"{self.name}: a block cannot have {size} bytes of shared memory")
        _allowed[self.key] = size

    def __call__(self, grid, block, args, *, shared_mem=0):
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise EmulationError(f"{self.name}: {shared_mem} bytes of shared memory were not asked for before")
        for x in args:
            if not isinstance(x, np.ndarray | np.generic):
                raise EmulationError(f"{self.name}: {type(x).__name__} is not an argument a kernel can have")
            if isinstance(x, np.ndarray) and not x.flags.c_contiguous:
                raise EmulationError(f"{self.name}: an array is not contiguous")
        values = [np.asarray(np.uintp(x.ctypes.data) if isinstance(x, np.ndarray) else x) for x in args]
        pointers = (ctypes.c_void_p * len(args))(*(x.ctypes.data for x in values))
        sizes = (ctypes.c_int * len(args))(*(x.itemsize for x in values))
        code = self.function(pointers, sizes, len(args), grid[0], block[0], shared_mem, _order)
        if code:
            what = {-1: "more shared memory is written than was asked for", -2: "arguments are not of its types"}
            raise EmulationError(
                f"{self.name}: {what.get(code, f'not all threads reach the barrier of line {code}')}"
            )


def program(code, names):
    """The emulator, the text, and what makes its kernels callable."""
    return '#include "emulator.h"\n' + code + "".join(f"\nEMULATED({name})" for name in names) + "\n"


@functools.cache
def _compiled(code, names):
    text = program(code, names)
    key = hashlib.sha256((text + (HERE / "emulator.h").read_text() + repr(FLAGS)).encode()).hexdigest()[:24]
    # once for all test workers of a user: they may compile the same twice, but never see half a file
    folder = Path(tempfile.gettempdir()) / f"asap-ref-emulated-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise EmulationError(f"{folder} belongs to somebody else: remove it")
    library = folder / f"{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            source, made = Path(own) / "kernels.cpp", Path(own) / "kernels.so"
            source.write_text(text)
            command = ["g++", *FLAGS, *INCLUDE, "-shared", "-fPIC", source, "-o", made]
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
            if done.returncode:
                raise EmulationError(f"g++: {done.stderr[:2000]}")
            os.replace(made, library)
    return ctypes.CDLL(str(library))
