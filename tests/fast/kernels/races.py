"""All kernels once, on few tokens and very small tiles: what ThreadSanitizer watches (test_kernels_races.py)."""

import sys

import battery
import emulator
import stand_in

from asap_ref.fast.kernels import build, launch


def main(part=None, removed=None):
    """Run them; of ``part`` without its barrier number ``removed``."""
    if part:
        emulator.edit = lambda code: without_barrier(code, part, int(removed))
    build.TILES, launch.shared_limit = (16,), lambda *_: 20 * 1024  # few threads
    case = battery.Case(stand_in.NAMESPACE.asarray, 20, 35, d=20, queries="left", keys="holes")
    battery.sinkhorn(case, 1)
    battery.asap(case, battery.amortizer(20, n_slices=20, quadratic=3, moments=3))
    battery.gradients(case, 1)


def without_barrier(code, part, number):
    """The text without one of the barriers of a file, which keeps its lines."""
    before, text = code.split(f'#line 1 "{part}.cu"\n', 1) if f'"{part}.cu"' in code else (code, "")
    pieces = text.split("__syncthreads();")
    if len(pieces) <= number + 1:
        return code
    pieces[number] += pieces.pop(number + 1)
    return before + f'#line 1 "{part}.cu"\n' + "__syncthreads();".join(pieces)


if __name__ == "__main__":
    main(*sys.argv[1:])
