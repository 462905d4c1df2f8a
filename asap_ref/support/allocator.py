"""The C library's allocator, told to keep what is freed: for a process that is all ours, as the command's is."""

from __future__ import annotations

import ctypes
import os

TRIM, MMAP = -1, -3  # names of the settings in malloc.h of glibc
KEPT, LARGEST = 2**28, 2**25  # bytes that are kept when freed; of a block, at most (glibc allows no more)


def keep_freed_memory():
    """Have glibc keep freed blocks for the next arrays, and say whether it does; other libraries are left as they are.

    Each operation of NumPy makes an array. By default its memory soon goes back to the system, which has to clear the
    pages again: about a quarter of the time of training on clouds. Settings of the user's own (MALLOC_...) stay.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
    return bool(mallopt(TRIM, KEPT) and mallopt(MMAP, LARGEST))
