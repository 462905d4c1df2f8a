"""``asap-ref bench``: how fast the attentions are, side by side in one run, and how near to the teacher.

    frozen      the attention of a trained layer, forward: time, and distance from the teacher
    training    forward and backward of a layer
    small       many small problems: the default form against the readable one
    long        long sequences, Sinkhorn in tiles of its own
    compile     seconds to compile a layer, and after how many forward passes that is paid back
    memory      peak beyond the inputs, in a process of its own
    reproduce   the main job

The record holds every raw time; bars.py reads it, and figures/bench.py draws it.
"""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from asap_ref import attention as readable
from asap_ref import competitors as ours
from asap_ref import files, fused, gallery
from asap_ref.arrays import array_module, array_namespace, to_numpy
from asap_ref.bars import markdown
from asap_ref.calibration import fit_amortizer
from asap_ref.competitors import HEADS, N_ITER, WIDTH, Competitor
from asap_ref.contracts import check_choice
from asap_ref.reproduce import ReproduceSettings, machine, reproduce
from asap_ref.stopwatch import ROUNDS, interleaved, peak_memory
from asap_ref.workers import worker_count

PARETO = 1024  # tokens at which truncations and slice counts are compared
TRUNCATIONS = (1, 2, 3, 5, 7)
SLICES = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Extent:
    """How much is measured; the longest sequence at which each kind takes part keeps the time bounded."""

    lengths: tuple = (64, 256, 1024, 4096)
    kinds: tuple = ("recorded-like", "sharp")
    log_domain: int = 1024  # also of the other libraries
    sliced: int = 256
    fidelity: int = 1024
    training: tuple = (64, 512, 1024)
    small: tuple = (16, 32, 64)
    long: tuple = (1024, 4096, 16384)  # on two heads
    memory: tuple = (1024, 4096, 16384)
    reproduce: bool = True


EXTENTS = {
    "quick": Extent(
        lengths=(64, 256, 1024),
        kinds=("recorded-like",),
        log_domain=256,
        sliced=64,
        fidelity=256,
        training=(64, 256),
        small=(16,),
        long=(),
        memory=(1024,),
        reproduce=False,
    ),
    "default": Extent(),
    "full": Extent(
        log_domain=4096, sliced=1024, long=(1024, 4096, 16384, 65536), memory=(1024, 4096, 16384, 65536)
    ),
}


def bench(out, *, extent="default", backend="numpy", say=print):
    """Run the benchmark, write its record to ``out`` (JSON), and say how the bars were met.

    Parameters
    ----------
    out : path or None
        None writes nothing.
    extent : {"quick", "default", "full"}
        Within a minute; some five; and with sequences of 65536, much longer.
    backend : str
        Array module of our functions. Times on other than NumPy are absolute, and without the memory of the host.
    say : callable
        Where lines for people go.

    Returns
    -------
    dict
        The record.

    Raises
    ------
    ValueError, ModuleNotFoundError
        If there is no such extent or module.
    """
    check_choice(extent, "extent", "bench", tuple(EXTENTS))
    if out is not None:  # not found out after minutes
        files.save_json(out, "bench", {})
    with threadpool_limits(worker_count()):
        record = Benchmark(EXTENTS[extent], backend, say).run()
    record["settings"]["extent"] = extent
    if out is not None:
        files.save_json(out, "bench", record)
    say(markdown(record))
    return record


class Benchmark:
    """One run: who takes part, and on which device."""

    def __init__(self, extent, backend, say):
        self.extent, self.backend, self.say = extent, backend, say
        self.xp = array_module(backend)
        self.left_out = []
        self.peers = load_peers()
        if self.peers is None:
            self.left_out.append("other libraries: figures/peers.py, which holds them, is in the repository only")
        else:
            self.left_out += [f"{name}, not installed" for name in self.peers.missing()]
        self.device = "cuda" if backend == "cupy" else "cpu"

    def run(self):
        """Measure all sections."""
        start = time.perf_counter()
        sections = {
            name: getattr(self, name)() for name in ("frozen", "training", "small", "long", "compile", "memory")
        }
        if self.extent.reproduce:
            sections["reproduce"] = self.reproduce()
        return {
            "settings": {"backend": self.backend, "heads": HEADS, "d": WIDTH, "n_iter": N_ITER, "rounds": ROUNDS},
            "limits": asdict(self.extent),
            "machine": machine() | self.processor_of_arrays(),
            "versions": {} if self.peers is None else self.peers.versions(),
            "threads": threads(self.peers),
            "left_out": self.left_out,
            "seconds": time.perf_counter() - start,
            **sections,
        }

    def processor_of_arrays(self):
        """Tell the card's name, where there is one."""
        if self.backend != "cupy":
            return {}
        import cupy

        return {"device": cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(), "cupy": cupy.__version__}

    def place(self, arrays):
        """Move NumPy arrays to the array module."""
        return arrays if self.backend == "numpy" else tuple(self.xp.asarray(x) for x in arrays)

    def race(self, title, racers, arrays, **about):
        """Time competitors on the same arrays: a dict with a row for each."""
        self.say(f"{title}: {', '.join(racers)}")
        gc.collect()
        prepared = {name: racer.prepare(*arrays) for name, racer in racers.items()}
        times = interleaved(prepared)
        rows = [
            {
                "name": name,
                "mechanism": racers[name].mechanism,
                "median": float(np.median(seconds)),
                "seconds": seconds,
            }
            for name, seconds in times.items()
        ]
        for row in rows:
            if hasattr(prepared[row["name"]], "compile_seconds"):
                row["compile_seconds"] = prepared[row["name"]].compile_seconds
        return {"n": arrays[0].shape[-2], **about, "rows": rows}

    # ----------------------------------------------------------------------------------------------- sections

    def frozen(self):
        """Attention forward on eight heads."""
        races = []
        for kind in self.extent.kinds:
            for n in self.extent.lengths:
                arrays = self.place(ours.layer(n, kind))
                racers = self.frozen_racers(n, kind)
                race = self.race(f"frozen layer, {kind}, n = {n}", racers, arrays, kind=kind)
                teacher = Teacher(arrays, with_plan=n <= self.extent.fidelity)
                for row in race["rows"]:
                    row |= teacher.distance(racers[row["name"]].prepare)
                races.append(race)
        return races

    def frozen_racers(self, n, kind):
        """Everybody who is not too slow for that length."""
        racers = ours.FLOORS | ours.SOFTMAX
        racers["Sinkhorn, scaling form"] = ours.sinkhorn()
        peers = {} if self.peers is None else self.peers.forward(self.device)
        if n <= self.extent.log_domain:
            racers |= ours.LOG_DOMAIN
        if n <= self.extent.sliced:
            racers |= ours.SLICED
        for name, peer in peers.items():
            limit = {"softmax": np.inf, "sinkhorn": self.extent.log_domain, "sliced": self.extent.sliced}
            if n <= limit[peer.mechanism]:
                racers[name] = peer
        pareto = n == PARETO
        for t in TRUNCATIONS if pareto else ():
            racers[f"Sinkhorn, T = {t}"] = ours.sinkhorn(t)
        for count in SLICES if pareto else (16, 32):
            racers[f"ASAP, {count} slices"] = ours.asap(n, kind, HEADS, count)
        return racers

    def training(self):
        """Forward and backward of a layer."""
        peers = {} if self.peers is None else self.peers.training(self.device)
        return [
            self.race(f"training step, n = {n}", ours.TRAINING | peers, self.place(ours.layer(n)))
            for n in self.extent.training
        ]

    def small(self):
        """Many small problems: 256 heads of 16 to 64 tokens, default form and readable form."""
        races = []
        for n in self.extent.small:
            q, k, v = self.place(tuple(x.reshape(32, 8, n, 16) for x in ours.layer(n, heads=256, d=16)))
            fitted = fit_amortizer([(to_numpy(q), to_numpy(k))], n_slices=16, n_iter=N_ITER)
            racers = {}
            for form, home in (("default", fused), ("readable", readable)):
                racers |= {
                    f"softmax, {form}": Competitor("softmax", ours.calls(home.softmax_attention)),
                    f"Sinkhorn, {form}": Competitor("sinkhorn", ours.calls(home.sinkhorn_attention)),
                    f"ASAP, {form}": Competitor("asap", ours.calls(home.asap_attention, amortizer=fitted)),
                    f"softmax step, {form}": Competitor("softmax", ours.steps(home.softmax_attention_vjp)),
                    f"Sinkhorn step, {form}": Competitor("sinkhorn", ours.steps(home.sinkhorn_attention_vjp)),
                    f"ASAP step, {form}": Competitor(
                        "asap", ours.steps(home.asap_attention_vjp, amortizer=fitted)
                    ),
                }
            races.append(self.race(f"small problems, n = {n}", racers, (q, k, v), heads=256, d=16))
        return races

    def long(self):
        """Long sequences on two heads; Sinkhorn keeps its kernel while that fits, and forms tiles beyond."""
        if self.backend != "numpy" and self.extent.long:
            self.left_out.append("long sequences: tiles are for NumPy")
            return []
        races = []
        for n in self.extent.long:
            racers = {**ours.SOFTMAX, "ASAP, 16 slices": ours.asap(n, "recorded-like", 2, 16, block=256)}
            if n <= 8192:
                racers["Sinkhorn, scaling form"] = ours.sinkhorn()
            if n <= 16384:
                racers["Sinkhorn, in tiles"] = Competitor("sinkhorn", ours.calls(ours.sinkhorn_in_tiles))
            races.append(self.race(f"long sequences, n = {n}", racers, ours.layer(n, heads=2)))
        return races

    def compile(self):
        """Seconds to calibrate one layer of eight heads, n = 256."""
        self.say("compile: one layer")
        ours.amortizer.cache_clear()
        start = time.perf_counter()
        ours.amortizer(256, "recorded-like", HEADS, 16)
        return {"n": 256, "tokens": ours.TOKENS, "seconds": time.perf_counter() - start}

    def memory(self):
        """Peak beyond the inputs: a forward pass by length, and a training step."""
        if self.backend != "numpy":
            self.left_out.append("memory: that of the host is measured, for NumPy")
            return []
        jobs = [("forward", name, n, 1) for n in self.extent.memory for name in forward_by_memory(n)]
        jobs += [("training", name, n, HEADS) for n in self.extent.training for name in TRAINED]
        rows = []
        for what, name, n, heads in jobs:
            if name.startswith("torch") and (self.peers is None or name not in self.peers.training()):
                continue
            self.say(f"memory: {what}, {name}, n = {n}")
            peak = peak_memory("asap_ref.benchmark:memory_job", what=what, name=name, n=n, heads=heads)
            if peak is None:
                self.left_out.append("memory: this system does not tell the peak of a process")
                return []
            rows.append({"what": what, "name": name, "n": n, "heads": heads, "bytes": peak})
        return rows

    def reproduce(self):
        """Seconds of ``asap-ref reproduce``."""
        import tempfile

        self.say("the main job")
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            reproduce(ReproduceSettings(), folder, say=lambda line: None)
        return {"seconds": time.perf_counter() - start}


# ------------------------------------------------------------------------------------------------------- fidelity


class Teacher:
    """Sinkhorn attention of T iterations in float64, and how far others are from it."""

    def __init__(self, arrays, *, with_plan):
        self.arrays = arrays
        q, k, v = (to_numpy(x).astype(np.float64) for x in arrays)
        self.out = fused.sinkhorn_attention(q, k, v, n_iter=N_ITER)
        self.plan = None
        if with_plan:
            self.plan = fused.sinkhorn_attention(q, k, self.identity(np.float64), n_iter=N_ITER)

    def identity(self, dtype):
        """Values that make the output the plan."""
        n = self.arrays[1].shape[-2]
        return np.broadcast_to(np.eye(n, dtype=dtype), (len(self.arrays[1]), n, n))

    def distance(self, prepare):
        """Relative error of the output; KL of the plans, a row; mean distance of column sums from one."""
        q, k, v = self.arrays
        found = to_numpy(prepare(q, k, v)()).astype(np.float64)
        error = {"output_error": float(np.linalg.norm(found - self.out) / np.linalg.norm(self.out))}
        if self.plan is None:
            return error
        xp = array_namespace(q)
        identity = xp.asarray(np.ascontiguousarray(self.identity(np.float32)))
        plan = to_numpy(prepare(q, k, identity)()).astype(np.float64)  # any attention shows its plan
        P, P_hat = (np.maximum(plan, 1e-30) for plan in (self.plan, plan))
        kl = float(np.mean(np.sum(P * np.log(P / P_hat), axis=-1)))
        return error | {"kl": kl, "column_error": float(np.mean(np.abs(plan.sum(-2) - 1)))}


# --------------------------------------------------------------------------------------------- memory, threads

TRAINED = ("Sinkhorn, scaling form", "torch Sinkhorn, log domain")


def forward_by_memory(n):
    """Whose memory is measured at that length: a plan of 16384 tokens is 1 GiB, and some keep several."""
    return ["ASAP, 16 slices", "softmax", *(["Sinkhorn, scaling form"] if n <= 4096 else [])]


def memory_job(what, name, n, heads):
    """(prepare, call) for `peak_memory`."""
    if what == "training":
        racers = ours.TRAINING | (load_peers().training() if name.startswith("torch") else {})
    else:
        racers = {
            **ours.SOFTMAX,
            "Sinkhorn, scaling form": ours.sinkhorn(),
            "ASAP, 16 slices": ours.asap(n, "recorded-like", heads, 16, block=256),
        }
    call = racers[name].prepare(*ours.layer(n, heads=heads))
    return racers[name].prepare(*ours.layer(64, heads=heads)), call


def load_peers():
    """The competitors from other libraries: None where there is no figures/peers.py, as in an installed package."""
    return gallery.load("peers") if (gallery.FIGURES / "peers.py").exists() else None


def threads(peers):
    """How many threads everybody had."""
    found = {"workers": worker_count()}
    found |= {info["internal_api"]: info["num_threads"] for info in threadpool_info()}
    if "torch" in sys.modules:
        found["torch"] = sys.modules["torch"].get_num_threads()
    return found
