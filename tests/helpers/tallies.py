"""What was tried to break things, and what came of it: tests note it, and the figure "robustness" adds it up.

Without ASAP_REF_TALLIES, the folder to note it in, nothing is written.
"""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

CALLS = "wrong calls of functions"
MISTAKES = "mistakes on the command line"
ANY_SCALE = "inputs of any scale (1e-323 to 1e300, in float32 1e-45 to 1e37), ties among them"
ANY_SIZE = "attention on random sizes, down to one token, and scores up to 1e6"
OF_MEMORY = "layouts of memory: reversed, strided, Fortran, read-only, subclass, big-endian"
CUT, CHANGED, MOVED = "files cut short", "files with bytes changed", "files with bytes put in, taken out or moved"
FOREIGN = "foreign files, pickles, bombs, other kinds and versions"
LACKING = "sound files that lack an array or a setting"
BATCHES = "calibration files that are damaged or foreign"
KILLS = "training runs killed (SIGKILL), some of them again while they resumed"

REFUSED, SAME, FINITE = "refused, saying why", "same numbers", "finite numbers"


def note(what, outcome, count=1):
    """Note so many trials with the same outcome, after it was asserted."""
    if folder := os.environ.get("ASAP_REF_TALLIES"):
        with open(Path(folder) / f"{os.getpid()}.jsonl", "a") as file:
            file.write(json.dumps([what, outcome, count]) + "\n")


@contextmanager
def refused(what, error, *, match):
    """``pytest.raises``, noted as a refusal."""
    with pytest.raises(error, match=match):
        yield
    note(what, REFUSED)
