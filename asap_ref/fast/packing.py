"""Float32 numbers with the places they came from, in one float64 each: what sorts the one sorts both. NumPy only.

As float64, a number of float32 leaves 29 bits unused at the end: its place goes there, and takes part in a sort only
between equal numbers. Below half a unit in the last place of float32, it vanishes when rounded to that again.
"""

from __future__ import annotations

import numpy as np


def packed_with_places(x, places):
    """Pack x of float32 with integers from 0 to 2^28, which broadcast to it: float64."""
    packed = x.astype(np.float64)
    packed.view(np.int64)[...] |= places
    return packed


def unpacked(packed):
    """Numbers, and where each came from."""
    return packed.astype(np.float32), packed.view(np.int64) & (2**29 - 1)
