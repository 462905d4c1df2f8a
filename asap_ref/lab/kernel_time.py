"""A lower bound on the time of the two kernels that go through all scores, from what the compiler makes of them.

Not a measurement. Of each thread's work on one tile of scores it counts fused multiply-adds, exponentials and reads of
shared memory in the PTX, each of which takes an issue slot whatever else happens. Loading tiles, addresses, barriers,
waits for memory and the launch itself are left out, and what ptxas puts around an exponential so that it keeps
denormals, three instructions, so that the true time is longer.
"""

from __future__ import annotations

import re

from asap_ref.lab.nvrtc import instructions

COUNTED = {"multiply-adds": "fma", "exponentials": "ex2", "reads": "ld.shared"}

# An H100 SXM as its maker describes it: multiprocessors, warps that each issues in a cycle (32 lanes of 128 to a warp),
# and the highest clock, with which 132 x 128 lanes make the 67 TFLOP/s of the data sheet.
MULTIPROCESSORS, ISSUED, HERTZ = 132, 4, 1.98e9


def instruction_mix(build, card="sm_90"):
    """{kernel: {kind: instructions of a thread, for one tile of scores}} of lse and attend.

    The loops inside the one over tiles are unrolled whole before compiling, so that each instruction counts once.
    """
    text = build.source().replace("#pragma unroll 4", "#pragma unroll")
    found = instructions(text, card)
    return {name: _counts(_loop_over_tiles(found[name])) for name in ("lse", "attend")}


def least_seconds(counts, problems, n, m, tile=64):
    """Bound from below the time of one launch over (problems, n, m) scores.

    Each block has ``tile`` rows and goes through all m columns; no card is quicker than its busiest multiprocessor.

    Examples
    --------
    One row of 64 x 64 tiles, of 256 threads, so 8 warps, 1,024 multiply-adds each:

    >>> round(least_seconds({"multiply-adds": 1024}, 1, 64, 1024) * HERTZ)  # 16 tiles x 8 warps x 1,024 / 4
    32768
    """
    rows, columns = -(-n // tile), -(-m // tile)
    blocks, warps = -(-problems * rows // MULTIPROCESSORS), tile * tile // 16 // 32
    return blocks * columns * warps * sum(counts.values()) / ISSUED / HERTZ


def _loop_over_tiles(lines):
    """Lines from the label that the farthest jump back over multiply-adds goes to, up to that jump."""
    labels = {line[:-1]: place for place, line in enumerate(lines) if re.fullmatch(r"\$\w+:", line)}
    jumps = [(place, re.search(r"\bbra\S*\s+(\$\w+)", line)) for place, line in enumerate(lines)]
    loops = [lines[labels[to[1]] : place] for place, to in jumps if to and labels[to[1]] < place]
    return max(loops, key=lambda loop: _counts(loop)["multiply-adds"])


def _counts(lines):
    return {
        kind: sum(re.match(rf"(@\S+ )?{name}\.", line) is not None for line in lines)
        for kind, name in COUNTED.items()
    }
