"""ThreadSanitizer finds no race in the kernels, and one as soon as any barrier is missing: none is there in vain.

Fibers, which the other tests use, see a race only where it changes a result.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import emulator
import pytest

from asap_ref.fast.kernels import build

HERE = Path(__file__).parent
RACE = 66  # the exit code that is asked for
# a rare fault of the sanitizer itself, which answers nothing: it is asked again
OWN_FAULT = "ERROR: ThreadSanitizer failed to allocate"
BARRIERS = [
    (part, number)
    for part in dict.fromkeys((*build.FORWARD, *build.BACKWARD))
    for number in range(build._text(part).count("__syncthreads();"))
]


def sanitized(*arguments):
    """Run something in Python under ThreadSanitizer; skip where there is none."""
    if reason := emulator.missing():
        pytest.skip(reason)
    found = subprocess.run(["g++", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True)
    if not Path(found.stdout.strip()).is_absolute():
        pytest.skip("g++ has no ThreadSanitizer here (libtsan)")
    more = {
        "ASAP_REF_RACES": "1",
        "LD_PRELOAD": found.stdout.strip(),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(build.__file__).parents[3]), os.environ.get("PYTHONPATH", "")]),
        "TSAN_OPTIONS": f"exitcode={RACE} halt_on_error=1 report_signal_unsafe=0",
    }
    # it wants its addresses where they were when it was written, which are not to be had at random
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    command = [*fixed, sys.executable, *arguments]
    for _ in range(3):
        done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True, cwd=HERE)
        if OWN_FAULT not in done.stderr:
            break
    return done


@pytest.fixture(scope="module")
def sanitizer():
    works = sanitized("-c", "pass")
    if works.returncode:
        pytest.skip(f"ThreadSanitizer does not run here: {works.stderr[:200]}")
    return lambda *arguments: sanitized("races.py", *map(str, arguments))


@pytest.mark.slow
def test_no_kernel_has_a_race(sanitizer):
    done = sanitizer()
    assert done.returncode == 0, done.stderr[:2000]


@pytest.mark.slow
@pytest.mark.parametrize(("part", "number"), BARRIERS)
def test_every_barrier_is_needed(sanitizer, part, number):
    done = sanitizer(part, number)
    assert done.returncode == RACE and "ThreadSanitizer: data race" in done.stderr, done.stderr[:2000]
