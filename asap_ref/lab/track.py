"""Where the benchmark's races are run: how much is measured, who takes part, on which device, and one fair race.

An extent says how much, a pace how often; a track is one run of the benchmark, of which each section asks a race.
"""

from __future__ import annotations

import gc
import json
from dataclasses import asdict, dataclass, field

import numpy as np
from threadpoolctl import threadpool_info

from asap_ref.fast.threads import worker_count
from asap_ref.lab import gallery
from asap_ref.lab.competitors import HEADS, MAP, N_ITER, WIDTH
from asap_ref.lab.machine import card, machine
from asap_ref.lab.stopwatch import BUDGET, LEAST, ROUNDS, interleaved
from asap_ref.support.arrays import array_module


@dataclass(frozen=True)
class Extent:
    """How much is measured; the longest sequence at which each kind takes part keeps the time bounded."""

    lengths: dict = field(
        default_factory=lambda: {"frozen": (64, 256, 1024, 4096), "sharp": (256, 1024), "uniform": (16, 64, 256)}
    )
    log_domain: int = 1024  # also of the other libraries
    sliced: int = 256
    fidelity: int = 1024  # of whole plans
    parts: int = 1024
    training: tuple = (64, 512, 1024)
    small: tuple = (16, 32, 64)
    long: tuple = (1024, 4096, 16384)  # on two heads
    memory: tuple = (1024, 4096, 16384, 65536)
    compile: int = 1024
    reproduce: bool = True


EXTENTS = {
    "quick": Extent(
        lengths={"frozen": (256,), "sharp": (), "uniform": ()},
        parts=256,
        compile=256,
        training=(256,),
        small=(16,),
        long=(),
        memory=(1024,),
        reproduce=False,
    ),
    "default": Extent(),
}
PACES = {  # as `interleaved` takes them
    "quick": {"rounds": 9, "least": 3, "budget": 1.0},
    "default": {"rounds": ROUNDS, "least": LEAST, "budget": BUDGET},
}


class Track:
    """One run: who takes part, and on which device."""

    def __init__(self, extent, backend, say):
        self.extent, self.pace = EXTENTS[extent], PACES[extent]
        self.backend, self.say = backend, say
        self.xp = array_module(backend)
        self.left_out = []
        self.peers = load_peers()
        if self.peers is None:
            self.left_out.append(
                "torch, POT and OTT-JAX: how they are called is in the repository, not in an installed package; "
                "clone it, pip install -e '.[test,peers]', and run asap-ref bench there"
            )
        else:
            self.left_out += [f"{name}, not installed" for name in self.peers.missing()]
        self.device = "cuda" if backend == "cupy" else "cpu"

    def about(self):
        """Tell what the times depend on, as plain as JSON has it."""
        told = {
            "settings": {
                "backend": self.backend,
                "heads": HEADS,
                "d": WIDTH,
                "n_iter": N_ITER,
                "map": MAP,
                **self.pace,
            },
            "extent": asdict(self.extent),
            "machine": machine() | self.processor_of_arrays(),
            "versions": {} if self.peers is None else self.peers.versions(),
            "threads": threads(self.peers),
            "seeds": {"layer": 0, "calibration": "from 1"},
        }
        return json.loads(json.dumps(told))

    def processor_of_arrays(self):
        """Tell the card's name, where there is one."""
        if self.backend != "cupy":
            return {}
        import cupy

        return {"device": card(), "cupy": cupy.__version__}

    def place(self, arrays):
        """Move NumPy arrays to the array module."""
        return arrays if self.backend == "numpy" else tuple(self.xp.asarray(x) for x in arrays)

    def race(self, title, racers, arrays, teacher=None, **about):
        """Time competitors on the same arrays: a dict with a row for each, and its distance from a teacher."""
        self.say(f"{title}: {', '.join(racers)}")
        gc.collect()
        prepared = {name: racer.prepare(*arrays) for name, racer in racers.items()}
        rows = []
        for name, seconds in interleaved(prepared, **self.pace).items():
            row = {"name": name, "mechanism": racers[name].mechanism, "median": float(np.median(seconds))}
            row["seconds"] = seconds
            if hasattr(prepared[name], "compile_seconds"):
                row["compile_seconds"] = prepared[name].compile_seconds
            if teacher is not None and row["mechanism"] != "other":
                row |= teacher.distance(racers[name].prepare)
            rows.append(row)
        return {"n": arrays[0].shape[-2], **about, "rows": rows}


def load_peers():
    """The competitors from other libraries: None where there are no figures, as in an installed package."""
    return gallery.load("peers") if gallery.FIGURES.is_dir() else None


def threads(peers):
    """How many threads everybody has."""
    found = {"workers": worker_count()} | ({} if peers is None else peers.threads())
    return found | {info["internal_api"]: info["num_threads"] for info in threadpool_info()}
