"""Sections of the benchmark that are whole jobs: to compile a layer, memory in a fresh process, the main job.

A section is a function of a track (track.py).
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from asap_ref.calibration.fit import fit_amortizer
from asap_ref.fast import attention as fast
from asap_ref.lab import competitors as ours
from asap_ref.lab.bars import ASAP, SCALING, TEACHER, TORCH_LOG
from asap_ref.lab.competitors import HEADS, Competitor, Teacher
from asap_ref.lab.races import KINDS, TRUNCATIONS
from asap_ref.lab.readable import ReadableAttention
from asap_ref.lab.reproduce import ReproduceSettings, reproduce
from asap_ref.lab.stopwatch import interleaved, peak_memory, timed
from asap_ref.lab.track import load_peers
from asap_ref.model.mechanism import Attention
from asap_ref.model.recording import record as record_layers
from asap_ref.model.training import train
from asap_ref.model.transformer import Transformer

TRAINED = (SCALING, TORCH_LOG)  # whose training step's memory is measured


def compile_layer(track):
    """Calibration of one layer of eight heads, beside the teacher's forward pass on the same sequences."""
    track.say("compile: one layer")
    n = track.extent.compile
    drawn = [ours.layer(n, KINDS["frozen"], seed=seed) for seed in range(1, 5)]
    q, k, v = track.place(tuple(np.stack(arrays) for arrays in zip(*drawn, strict=True)))
    calls = {TEACHER: functools.partial(fast.sinkhorn_attention, q, k, v, n_iter=ours.N_ITER)}
    fit = functools.partial(fit_amortizer, [(q, k)], n_iter=ours.N_ITER)
    for objective in ("regression", "kl"):
        calls[objective] = _weights(functools.partial(fit, objective=objective))
    calls["regression, the default map"] = _weights(functools.partial(fit, **ours.MAP))
    times = interleaved(calls, **track.pace)
    rows = [{"name": name, "median": float(np.median(each)), "seconds": each} for name, each in times.items()]
    return {"n": n, "sequences": len(q), "rows": rows}


def _weights(fit):
    return lambda: fit().weights


def memory(track):
    """Peak beyond the inputs: a forward pass by length, and a training step."""
    if track.backend != "numpy":
        track.left_out.append("memory: that of the host is measured, for NumPy")
        return []
    jobs = [("forward", name, n, 1) for n in track.extent.memory for name in forward_by_memory(n)]
    jobs += [("training", name, n, HEADS) for n in track.extent.training for name in TRAINED]
    rows = []
    for what, name, n, heads in jobs:
        if name.startswith("torch") and (track.peers is None or name not in track.peers.training()):
            continue
        track.say(f"memory: {what}, {name}, n = {n}")
        found = peak_memory(memory_job, what=what, name=name, n=n, heads=heads)
        if found is None:
            track.left_out.append("memory: this system does not tell the peak of a process")
            return []
        rows.append({"what": what, "name": name, "n": n, "heads": heads, **found})
    return rows


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
            racers[ASAP] = ours.asap(n, KINDS["frozen"], heads)
    call = racers[name].prepare(*ours.layer(n, heads=heads))
    return racers[name].prepare(*ours.layer(64, heads=heads)), call


# ------------------------------------------------------------------------------------------------- the main job


def main_job(track):
    """Seconds of ``asap-ref reproduce --dataset digits``, and the attentions on the layers of its model."""
    if not track.extent.reproduce:
        return {}
    track.say("the main job")
    settings, found = ReproduceSettings("digits", backend=track.backend), {}
    with tempfile.TemporaryDirectory() as folder:
        with timed(found, "seconds"):
            reproduce(settings, folder, say=lambda line: None)
        teacher, compiled = (Transformer.load(Path(folder) / f"{name}.npz") for name in ("sinkhorn", "asap"))
    run = settings.experiment()
    return found | {"layers": trained_layers(track, teacher, compiled, run), "epochs": epochs(track, run)}


def epochs(track, run):
    """Seconds of an epoch of the main job, in the default forms and in the readable ones."""
    track.say("an epoch of the main job")
    data, calls = run.load(), {}
    for name, settings in (("softmax", {}), ("sinkhorn", run.teacher)):
        for form, kind in (("default", Attention), ("readable", ReadableAttention)):
            model = Transformer.create(run.architecture, kind(name, settings))
            calls[f"{name}, {form}"] = functools.partial(
                one_epoch, model, data.train_inputs, data.train_labels, run.training
            )
    return interleaved(calls, **track.pace)


def trained_layers(track, teacher, compiled, run):
    """Race on what the layers of a trained model are given, test set as a batch."""
    races, T = [], run.teacher["n_iter"]
    for layer, (q, k, v, *_) in enumerate(record_layers(teacher, run.load().test_inputs)):
        arrays = track.place((q, k, v))
        racers = {**ours.SOFTMAX, SCALING: ours.sinkhorn(T)}
        racers |= {f"Sinkhorn, T = {t}": ours.sinkhorn(t) for t in TRUNCATIONS if t < T}
        racers["ASAP"] = Competitor("asap", ours.calls(compiled.attentions[layer]))
        races.append(
            track.race(f"layer {layer} of the trained model", racers, arrays, Teacher(arrays, T), kind="trained")
        )
    return races


def one_epoch(model, inputs, labels, settings):
    """Train for an epoch; return its loss."""
    _, history = train(model, inputs, labels, replace(settings, epochs=1), label=None)
    return np.asarray(history[-1]["loss"])
