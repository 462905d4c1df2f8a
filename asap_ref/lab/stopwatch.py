"""Fair timing: competitors in turn within each round, on equal threads; and peak memory in a fresh process.

A machine is never quiet for long. So nobody is timed alone: each round times everybody once, the order turning by
one from round to round, and two competitors are compared within rounds.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from asap_ref.fast.threads import blas_on_one_thread
from asap_ref.support.arrays import to_numpy

ROUNDS, LEAST, BUDGET = 21, 5, 5.0  # who has taken more than so many seconds may stop after LEAST rounds
# To the C library's allocator: give blocks back when freed, or what was freed before a call hides what it takes.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
PAUSE = 0.005  # seconds before each call: threads that another library keeps spinning go to sleep


def interleaved(calls, *, rounds=ROUNDS, least=LEAST, budget=BUDGET):
    """Time functions in turn: {name: [seconds of each round]}.

    Parameters
    ----------
    calls : dict
        Functions without arguments, by name, each of which returns an array or a tuple of arrays.
    rounds : int
        After one call each that does not count.
    least, budget : int, float
        Who has taken more than ``budget`` seconds and ``least`` rounds sits out the rest.

    Examples
    --------
    >>> times = interleaved({"ones": lambda: np.ones(3), "zeros": lambda: np.zeros(3)}, rounds=2)
    >>> {name: len(seconds) for name, seconds in times.items()}
    {'ones': 2, 'zeros': 2}
    """
    names = list(calls)
    for name in names:
        wait(calls[name]())
    times = {name: [] for name in names}
    for i in range(rounds):
        for name in turns(names, i):
            spent = times[name]
            if len(spent) < least or sum(spent) < budget:
                time.sleep(PAUSE)
                start = time.perf_counter()
                wait(calls[name]())
                spent.append(time.perf_counter() - start)
    return times


def least_times(calls, *, rounds):
    """Time functions in turn and keep what they return: {name: (milliseconds, result)}, the least of all rounds.

    It is the time that processors spend, all cores together, because other programs disturb that least. BLAS is on one
    thread: those that it keeps spinning after a call would be charged to whose turn is next.

    Parameters
    ----------
    calls : dict
        NumPy functions without arguments, by name.
    rounds : int
        All count: with two or more the first call is hardly ever the least.

    Examples
    --------
    >>> least_times({"ones": lambda: np.ones(2)}, rounds=3)["ones"][1]
    array([1., 1.])
    """
    names, least, results = list(calls), dict.fromkeys(calls, np.inf), {}
    with blas_on_one_thread():
        for i in range(rounds):
            for name in turns(names, i):
                start = time.process_time()
                results[name] = calls[name]()
                least[name] = min(least[name], 1e3 * (time.process_time() - start))
    return {name: (least[name], results[name]) for name in names}


def turns(names, i):
    """Names in the order of round i, which turns by one from round to round."""
    return names[i % len(names) :] + names[: i % len(names)]


@contextlib.contextmanager
def timed(seconds, name):
    """Put the seconds that a block takes into a dict, under a name.

    Examples
    --------
    >>> seconds = {}
    >>> with timed(seconds, "nothing"):
    ...     pass
    >>> list(seconds)
    ['nothing']
    """
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


def wait(result):
    """Return when the result is there: some modules compute while the host goes on. One entry tells."""
    last = result[-1] if isinstance(result, tuple) else result
    if not isinstance(last, np.ndarray):
        to_numpy(last[(0,) * last.ndim])


def ratio(slow, fast):
    """Compare two lists of seconds: ratio of the medians, and the quartiles of the ratios within rounds.

    Examples
    --------
    >>> ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    (2.0, 2.0, 2.0)
    """
    low, high = np.percentile([a / b for a, b in zip(slow, fast, strict=False)], (25, 75))
    return float(np.median(slow) / np.median(fast)), float(low), float(high)


# ------------------------------------------------------------------------------------------------------- memory


def peak_memory(function, *, exact=True, **arguments):
    """What a call needs beyond its inputs, and how long it takes, in a process of its own.

    Parameters
    ----------
    function : function
        On top of its module; it returns (prepare, call): ``prepare()`` does a small problem, so that libraries are
        loaded and threads started, and what ``call()`` adds at its peak is the result.
    exact : bool
        Have the C library give freed blocks back at once; otherwise it keeps some, as where nobody asks it.
    **arguments
        Its arguments, plain enough for JSON.

    Returns
    -------
    dict or None
        Bytes and seconds; None where the system does not tell (it is read from /proc).
    """
    if not os.path.exists("/proc/self/status"):
        return None
    module = function.__module__
    home = (
        Path(inspect.getfile(function)).resolve().parents[module.count(".")]
    )  # where the module is imported from
    path = [str(home), *sys.path]
    job = json.dumps({"module": module, "function": function.__name__, "arguments": arguments, "path": path})
    done = subprocess.run(
        [sys.executable, "-c", "from asap_ref.lab import stopwatch; stopwatch.measure_peak()"],
        input=job,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(EXACT if exact else {}), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode:
        raise OSError(f"measuring memory of {arguments} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_peak():
    """Be the fresh process: read the job, do it, print bytes and seconds."""
    job = json.loads(sys.stdin.read())
    sys.path[:] = job["path"]
    prepare, call = getattr(importlib.import_module(job["module"]), job["function"])(**job["arguments"])
    prepare()
    reset_peak()
    before = resident("VmRSS")
    began = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - began
    print(json.dumps({"bytes": max(resident("VmHWM") - before, 0), "seconds": seconds}))
    del result


def reset_peak():
    """Let the high-water mark of this process start again from where it stands; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(what):
    """Bytes of this process that are in memory now ("VmRSS"), or were at the peak ("VmHWM"); Linux only."""
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith(what))
    return 1024 * int(line.split()[1])
