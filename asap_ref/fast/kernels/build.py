"""The CUDA text made ready for one kind of problem, and compiled once.

What is fixed when compiled stands before the text as macros (tile.cu lists them). ``RawModule`` of the array module
compiles it: CuPy's, by NVRTC; nothing else of CuPy is needed, so that a stand-in can run the same text on the CPU.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

FORWARD = ("tile", "lse", "attend", "slices", "moments", "dual")
BACKWARD = ("tile", "gradient")
TILES = (64, 32)  # rows and columns of a tile of scores, best first; one of 16 would leave half a warp to a block
SIZE = {"float32": 4, "float64": 8}
C_NAMES = {"float32": "float", "float64": "double", "float16": "__half", "bfloat16": "Bfloat16"}


@dataclass(frozen=True)
class Build:
    """One compilation: the dtype that is computed in and the one tokens are kept in, dimensions, tile, which files.

    Examples
    --------
    >>> Build("float32", "float16", d=20, p=64, rows=64, columns=64).macros()["D"]
    24
    """

    real: str
    store: str
    d: int
    p: int
    rows: int
    columns: int
    parts: tuple = FORWARD

    @functools.cached_property
    def threads(self):
        """Threads of a block: each holds 4 x 4 scores."""
        return self.rows * self.columns // 16

    def macros(self):
        """What is fixed when compiled."""
        D, P = _rounded(self.d), _rounded(self.p)
        fixed = {"REAL": C_NAMES[self.real], "STORE": C_NAMES[self.store], "D": D, "P": P}
        fixed |= {"ROWS": self.rows, "COLS": self.columns}
        fixed |= {self.store.upper(): 1} if self.store == "bfloat16" else {}
        fixed |= {"EXACT": 1} if (self.d, self.p) == (D, P) else {}
        return fixed | {f"SHARED_{name.upper()}": size for name, size in self.shared.items()}

    @functools.cached_property
    def shared(self):
        """Bytes of shared memory of each kernel but slices, whose need follows the length (`sort_bytes`)."""
        D, P, R, C, X = _rounded(self.d) + 4, _rounded(self.p) + 4, self.rows, self.columns, self.columns // 4 + 1
        numbers = {
            "lse": (R + C) * D + C + 2 * R * X,
            "attend": (R + C) * D + C * P + R * (C + 4) + C + R * X,
            "project": (R + C) * D,
            "moments": R * D + D - 4,
            "dual": (R + C) * D + R * X,
            "pull": (R + C) * D + 2 * C + R * X,
            "gradient": (R + C) * (D + P) + R * (C + 4),
        }
        counts = dict.fromkeys(("lse", "pull"), 4 * self.threads)
        return {name: SIZE[self.real] * count + counts.get(name, 0) for name, count in numbers.items()}

    def source(self):
        """The whole text, from the macros on; compilers name the file and line a message is about."""
        header = "#include <cuda_fp16.h>\n" if self.store == "float16" else ""
        macros = "".join(f"#define {name} {value}\n" for name, value in self.macros().items())
        return header + macros + "".join(f'#line 1 "{part}.cu"\n{_text(part)}' for part in self.parts)


def _rounded(dimension):
    return -(-dimension // 8) * 8


@functools.cache
def _text(part):
    return (Path(__file__).parent / f"{part}.cu").read_text()


@functools.cache
def chosen(real, store, d, p, limit, parts=FORWARD):
    """The build with the largest tile whose kernels fit in ``limit`` bytes of shared memory; None if none does.

    Shared memory alone decides. Which tile is quickest was not tuned on any card: a tile of 32, two warps a block, is
    taken where 64 does not fit, and the array form where 32 does not.

    Examples
    --------
    >>> chosen("float64", "float64", 128, 128, limit=163 * 1024).rows
    32
    >>> chosen("float32", "float32", 1024, 64, limit=227 * 1024) is None
    True
    """
    needed = ("pull", "gradient") if parts == BACKWARD else ("lse", "attend", "project", "moments", "dual")
    for tile in TILES:
        build = Build(real, store, d, p, tile, tile, parts)
        if max(build.shared[name] for name in needed) <= limit:
            return build
    return None


def sort_threads(size):
    """A thread for each pair that is compared, at least a warp and at most what a block may have."""
    return min(max(size // 2, 32), 1024)


def sort_bytes(real, size):
    """Bytes of shared memory that sorting two samples of ``size`` takes, with an index beside each of the first."""
    return SIZE[real] * (3 * size + sort_threads(size)) + 8


def longest_slice(real, limit):
    """Say how many tokens, a power of two, are sorted in ``limit`` bytes of shared memory.

    Longer ones are predicted in the array form.

    Examples
    --------
    >>> [longest_slice(real, 227 * 1024) for real in ("float32", "float64")]
    [16384, 8192]
    """
    size = 2
    while sort_bytes(real, 2 * size) <= limit:
        size *= 2
    return size


@functools.cache
def function(xp, device, build, name, limit):
    """The compiled kernel, allowed all ``limit`` bytes of shared memory; once a device, which has to be current.

    What is allowed belongs to the device's function, which all that ask for it share, whatever they need in a launch.
    """
    found = _module(xp, build).get_function(name)
    found.max_dynamic_shared_size_bytes = limit
    return found


@functools.cache
def _module(xp, build):
    return xp.RawModule(code=build.source(), options=("--std=c++17",))
