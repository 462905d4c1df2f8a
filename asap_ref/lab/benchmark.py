"""``asap-ref bench``: how fast the attentions are, side by side in one run, and how near to the teacher.

    frozen      attention forward as in a trained layer: time, and distance from the teacher
    sharp       the same with scores that spread much more
    uniform     the same with scores that hardly spread, and few tokens
    parts       where the time of ASAP goes
    training    forward and backward of a layer
    small       many small problems: the default form against the readable one
    long        long sequences, Sinkhorn in tiles of its own
    compile     seconds to compile a layer, and after how many forward passes that is paid back
    memory      peak beyond the inputs, in a process of its own
    reproduce   the main job, and the layers of the model that it trains

The record holds every raw time; bars.py reads it, and figures/speed/bench.py draws it. Sections can be measured apart:
what is already in the record stays.
"""

from __future__ import annotations

import functools
import gc
import json
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from asap_ref.calibration.fit import fit_amortizer
from asap_ref.fast import attention as fast
from asap_ref.fast.threads import worker_count
from asap_ref.lab import competitors as ours
from asap_ref.lab import gallery
from asap_ref.lab.bars import ASAP, FROM_DUAL, SCALING, SDPA, TILES, TORCH_LOG, markdown
from asap_ref.lab.competitors import HEADS, N_ITER, WIDTH, Competitor, Teacher
from asap_ref.lab.experiments import experiment
from asap_ref.lab.reproduce import ReproduceSettings, machine, reproduce
from asap_ref.lab.stopwatch import BUDGET, LEAST, ROUNDS, interleaved, peak_memory
from asap_ref.method import attention as readable
from asap_ref.model.mechanism import Attention
from asap_ref.model.recording import record as record_layers
from asap_ref.model.training import train
from asap_ref.model.transformer import Transformer
from asap_ref.support import files
from asap_ref.support.arrays import array_module, to_numpy
from asap_ref.support.settings import check_choice

PARETO = 1024  # tokens at which slice counts are compared
TRUNCATIONS = (1, 2, 3, 5, 7)
SLICES = (4, 8, 16, 32, 64)
KINDS = {"frozen": "recorded-like", "sharp": "sharp", "uniform": "near-uniform"}
SECTIONS = (*KINDS, "parts", "training", "small", "long", "compile", "memory", "reproduce")


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
    compile: int = 256
    reproduce: bool = True


EXTENTS = {
    "quick": Extent(
        lengths={"frozen": (256,), "sharp": (), "uniform": ()},
        parts=256,
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


def bench(out, *, extent="default", only=(), backend="numpy", say=print):
    """Run the benchmark, write its record to ``out`` (JSON), and say how the bars were met.

    Parameters
    ----------
    out : path or None
        None writes nothing. Each section is written when it is done.
    extent : {"quick", "default"}
        Within a minute, or half an hour.
    only : sequence of str
        Sections to measure, of `SECTIONS`; the others stay as they are in ``out``, if it is there. All when empty.
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
        If there is no such extent, section or module, or ``out`` was measured otherwise or elsewhere.
    """
    check_choice(extent, "extent", "bench", tuple(EXTENTS))
    for section in only:
        check_choice(section, "only", "bench", SECTIONS)
    with threadpool_limits(worker_count()):
        run = Benchmark(extent, backend, say)
        about = run.about()
        record = {"about": about, "left_out": [], "seconds": {}}
        if only and out is not None and Path(out).exists():
            record = files.load_json(out, "bench")
            differ = [key for key in about if record["about"].get(key) != about[key]]
            if differ:
                raise ValueError(f"{out} was measured with another {', '.join(differ)}; choose another --out")
        if out is not None:  # not found out after minutes
            files.save_json(out, "bench", record)
        for section in only or SECTIONS:
            began = time.perf_counter()
            record[section] = run.measure(section)
            record["seconds"][section] = time.perf_counter() - began
            record["left_out"] = list(dict.fromkeys([*record["left_out"], *run.left_out]))
            if out is not None:
                files.save_json(out, "bench", record)
    say(markdown(record))
    return record


class Benchmark:
    """One run: who takes part, and on which device."""

    def __init__(self, extent, backend, say):
        self.extent, self.pace = EXTENTS[extent], PACES[extent]
        self.backend, self.say = backend, say
        self.xp = array_module(backend)
        self.left_out = []
        self.peers = load_peers()
        if self.peers is None:
            self.left_out.append("other libraries: figures/speed/peers.py is in the repository only")
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

        return {"device": cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(), "cupy": cupy.__version__}

    def measure(self, section):
        """Measure one section."""
        return self.forward(section) if section in KINDS else getattr(self, section)()

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

    # ----------------------------------------------------------------------------------------------- sections

    def forward(self, section):
        """Attention forward on eight heads, with scores of one kind."""
        races, kind = [], KINDS[section]
        for n in self.extent.lengths[section]:
            arrays = self.place(ours.layer(n, kind))
            teacher = Teacher(arrays, N_ITER, with_plan=n <= self.extent.fidelity)
            racers = self.racers(section, n, kind)
            races.append(self.race(f"{section}, n = {n}", racers, arrays, teacher, kind=kind))
        return races

    def racers(self, section, n, kind):
        """Everybody who is not too slow for that length; other libraries in the first section only."""
        racers = ours.FLOORS | ours.SOFTMAX
        racers[SCALING] = ours.sinkhorn()
        racers |= {f"Sinkhorn, T = {t}": ours.sinkhorn(t) for t in TRUNCATIONS}
        for count in SLICES if n == PARETO else (16, 32):
            racers[f"ASAP, {count} slices"] = ours.asap(n, kind, HEADS, count)
        if section != "frozen":
            return racers
        if n <= self.extent.log_domain:
            racers |= ours.LOG_DOMAIN | ours.INITIAL | {"one-sided ASAP": ours.one_sided(n, kind, 16)}
        if n <= self.extent.sliced:
            racers |= ours.SLICED
        limit = {"softmax": np.inf, "sinkhorn": self.extent.log_domain, "sliced": self.extent.sliced}
        peers = {} if self.peers is None else self.peers.forward(self.device)
        return racers | {name: peer for name, peer in peers.items() if n <= limit[peer.mechanism]}

    def parts(self):
        """Time of what ASAP consists of, beside softmax and its floor."""
        n, kind = self.extent.parts, KINDS["frozen"]
        which = (n, kind, HEADS, 16)
        racers = {**ours.FLOORS, **ours.SOFTMAX, "prediction": ours.prediction(*which), ASAP: ours.asap(*which)}
        if self.backend == "numpy":
            racers |= {
                "exponentials": Competitor("other", ours.calls(ours.exponentials)),
                "sorts": ours.sorts(*which),
                FROM_DUAL: ours.from_dual(*which),
            }
        if self.peers is not None:
            racers |= {name: peer for name, peer in self.peers.forward(self.device).items() if name == SDPA}
        return [self.race(f"parts of ASAP, n = {n}", racers, self.place(ours.layer(n, kind)))]

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
            for form, home in (("default", fast), ("readable", readable)):
                asap = {"amortizer": fitted}
                racers |= {
                    f"softmax, {form}": Competitor("softmax", ours.calls(home.softmax_attention)),
                    f"Sinkhorn, {form}": Competitor("sinkhorn", ours.calls(home.sinkhorn_attention)),
                    f"ASAP, {form}": Competitor("asap", ours.calls(home.asap_attention, **asap)),
                    f"softmax step, {form}": Competitor("softmax", ours.steps(home.softmax_attention_vjp)),
                    f"Sinkhorn step, {form}": Competitor("sinkhorn", ours.steps(home.sinkhorn_attention_vjp)),
                    f"ASAP step, {form}": Competitor("asap", ours.steps(home.asap_attention_vjp, **asap)),
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
            racers = {**ours.SOFTMAX, ASAP: ours.asap(n, KINDS["frozen"], 2, 16)}
            if n <= 4096:
                racers[SCALING] = ours.sinkhorn()
            racers[TILES] = Competitor("sinkhorn", ours.calls(ours.sinkhorn_in_tiles))
            races.append(self.race(f"long sequences, n = {n}", racers, ours.layer(n, heads=2)))
        return races

    def compile(self):
        """Seconds to calibrate one layer of eight heads."""
        self.say("compile: one layer")
        ours.amortizer.cache_clear()
        start = time.perf_counter()
        ours.amortizer(self.extent.compile, KINDS["frozen"], HEADS, 16)
        return {"n": self.extent.compile, "tokens": ours.TOKENS, "seconds": time.perf_counter() - start}

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
            found = peak_memory("asap_ref.lab.benchmark:memory_job", what=what, name=name, n=n, heads=heads)
            if found is None:
                self.left_out.append("memory: this system does not tell the peak of a process")
                return []
            rows.append({"what": what, "name": name, "n": n, "heads": heads, **found})
        return rows

    def reproduce(self):
        """Seconds of ``asap-ref reproduce``, and the attentions on the layers of its model."""
        if not self.extent.reproduce:
            return {}
        self.say("the main job")
        settings = ReproduceSettings(backend=self.backend)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            reproduce(settings, folder, say=lambda line: None)
            seconds = time.perf_counter() - start
            teacher, compiled = (Transformer.load(Path(folder) / f"{name}.npz") for name in ("sinkhorn", "asap"))
        run = experiment(settings.dataset)
        return {
            "seconds": seconds,
            "layers": self.trained_layers(teacher, compiled, run),
            "epochs": self.epochs(run),
        }

    def epochs(self, run):
        """Seconds of an epoch of the main job, in the default forms and in the readable ones."""
        self.say("an epoch of the main job")
        data, calls = run.load(), {}
        for name, settings in (("softmax", {}), ("sinkhorn", run.teacher)):
            for form, kind in (("default", Attention), ("readable", ReadableAttention)):
                model = Transformer.create(run.architecture, kind(name, settings))
                calls[f"{name}, {form}"] = functools.partial(
                    one_epoch, model, data.train_inputs, data.train_labels, run.training
                )
        return interleaved(calls, **self.pace)

    def trained_layers(self, teacher, compiled, run):
        """Race on what the layers of a trained model are given, test set as a batch."""
        races, T = [], run.teacher["n_iter"]
        for layer, (q, k, v, *_) in enumerate(record_layers(teacher, run.load().test_inputs)):
            arrays = self.place((q, k, v))
            racers = {**ours.SOFTMAX, SCALING: ours.sinkhorn(T)}
            racers |= {f"Sinkhorn, T = {t}": ours.sinkhorn(t) for t in TRUNCATIONS if t < T}
            racers["ASAP"] = Competitor("asap", ours.calls(compiled.attentions[layer]))
            races.append(
                self.race(
                    f"layer {layer} of the trained model", racers, arrays, Teacher(arrays, T), kind="trained"
                )
            )
        return races


class ReadableAttention(Attention):
    """The attention of a model in its readable form."""

    def vjp(self, q, k, v, **masks):
        """Return (out, vjp)."""
        return getattr(readable, f"{self.name}_attention_vjp")(q, k, v, **self.settings, **masks)


def one_epoch(model, inputs, labels, settings):
    """Train for an epoch; return its loss."""
    _, history = train(model, inputs, labels, replace(settings, epochs=1), label=None)
    return np.asarray(history[-1]["loss"])


# --------------------------------------------------------------------------------------------- memory, threads

TRAINED = (SCALING, TORCH_LOG)


def forward_by_memory(n):
    """Whose memory is measured at that length: a plan of 16384 tokens is 1 GiB, and some keep several."""
    return [ASAP, *(["softmax"] if n <= 16384 else []), *([SCALING] if n <= 4096 else [])]


def memory_job(what, name, n, heads):
    """(prepare, call) for `peak_memory`."""
    if what == "training":
        racers = ours.TRAINING | (load_peers().training() if name.startswith("torch") else {})
    else:
        racers = {**ours.SOFTMAX, SCALING: ours.sinkhorn()}
        if name == ASAP:
            racers[ASAP] = ours.asap(n, KINDS["frozen"], heads, 16)
    call = racers[name].prepare(*ours.layer(n, heads=heads))
    return racers[name].prepare(*ours.layer(64, heads=heads)), call


def load_peers():
    """The competitors from other libraries: None where there are no figures, as in an installed package."""
    return gallery.load("peers") if gallery.FIGURES.is_dir() else None


def threads(peers):
    """How many threads everybody has."""
    found = {"workers": worker_count()} | ({} if peers is None else peers.threads())
    return found | {info["internal_api"]: info["num_threads"] for info in threadpool_info()}
