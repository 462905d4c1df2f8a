"""Sections of the benchmark that are races of attentions on made-up layers: by length, by parts, by form.

A section is a function of a track (track.py), and gives a list of races.
"""

from __future__ import annotations

import numpy as np

from asap_ref.calibration.fit import fit_amortizer
from asap_ref.fast import attention as fast
from asap_ref.lab import competitors as ours
from asap_ref.lab.bars import ASAP, FROM_DUAL, REFINED, SCALING, SDPA, TILES
from asap_ref.lab.competitors import HEADS, N_ITER, Competitor, Teacher
from asap_ref.method import attention as readable
from asap_ref.support.arrays import to_numpy

PARETO = 1024  # tokens at which slice counts are compared
TRUNCATIONS = (1, 2, 3, 5, 7)
SLICES = (4, 16, 32)  # beside the default
KINDS = {"frozen": "recorded-like", "sharp": "sharp", "uniform": "near-uniform"}


def forward(track, section):
    """Attention forward on eight heads, with scores of one kind."""
    races, kind = [], KINDS[section]
    for n in track.extent.lengths[section]:
        arrays = track.place(ours.layer(n, kind))
        teacher = Teacher(arrays, N_ITER, with_plan=n <= track.extent.fidelity)
        racers = racers_of(track, section, n, kind)
        races.append(track.race(f"{section}, n = {n}", racers, arrays, teacher, kind=kind))
    return races


def racers_of(track, section, n, kind):
    """Everybody who is not too slow for that length; other libraries in the first section only."""
    racers = ours.FLOORS | ours.SOFTMAX
    racers[SCALING] = ours.sinkhorn()
    racers |= {f"Sinkhorn, T = {t}": ours.sinkhorn(t) for t in TRUNCATIONS}
    racers |= ours.RELAXED | ours.DUAL_SOFTMAX
    racers |= {ASAP: ours.asap(n, kind, HEADS), REFINED: ours.asap(n, kind, HEADS, refine=1)}
    for count in SLICES if n == PARETO else ():
        racers[f"ASAP, {count} slices"] = ours.asap(n, kind, HEADS, n_slices=count)
    if section != "frozen":
        return racers
    if n <= track.extent.log_domain:
        racers |= ours.LOG_DOMAIN | ours.INITIAL | {"one-sided ASAP": ours.one_sided(n, kind)}
    if n <= track.extent.sliced:
        racers |= ours.SLICED
    limit = {"softmax": np.inf, "sinkhorn": track.extent.log_domain, "sliced": track.extent.sliced}
    peers = {} if track.peers is None else track.peers.forward(track.device)
    return racers | {name: peer for name, peer in peers.items() if n <= limit[peer.mechanism]}


def parts(track):
    """Time of what ASAP consists of, beside softmax and its floor."""
    n, kind = track.extent.parts, KINDS["frozen"]
    which = (n, kind, HEADS)
    racers = {**ours.FLOORS, **ours.SOFTMAX, "prediction": ours.prediction(*which), ASAP: ours.asap(*which)}
    if track.backend == "numpy":
        racers |= {
            "exponentials": Competitor("other", ours.calls(ours.exponentials)),
            "sorts": ours.sorts(*which),
            FROM_DUAL: ours.from_dual(*which),
        }
    if track.peers is not None:
        racers |= {name: peer for name, peer in track.peers.forward(track.device).items() if name == SDPA}
    return [track.race(f"parts of ASAP, n = {n}", racers, track.place(ours.layer(n, kind)))]


def training(track):
    """Forward and backward of a layer."""
    peers = {} if track.peers is None else track.peers.training(track.device)
    return [
        track.race(f"training step, n = {n}", ours.TRAINING | peers, track.place(ours.layer(n)))
        for n in track.extent.training
    ]


def small(track):
    """Many small problems: 256 heads of 16 to 64 tokens, default form and readable form."""
    races = []
    for n in track.extent.small:
        q, k, v = track.place(tuple(x.reshape(32, 8, n, 16) for x in ours.layer(n, heads=256, d=16)))
        fitted = fit_amortizer([(to_numpy(q), to_numpy(k))], n_iter=N_ITER, **ours.MAP)
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
        races.append(track.race(f"small problems, n = {n}", racers, (q, k, v), heads=256, d=16))
    return races


def long(track):
    """Long sequences on two heads; Sinkhorn keeps its kernel while that fits, and forms tiles beyond."""
    if track.backend != "numpy" and track.extent.long:
        track.left_out.append("long sequences: tiles are for NumPy")
        return []
    races = []
    for n in track.extent.long:
        racers = {**ours.SOFTMAX, ASAP: ours.asap(n, KINDS["frozen"], 2)}
        if n <= 4096:
            racers[SCALING] = ours.sinkhorn()
        racers[TILES] = Competitor("sinkhorn", ours.calls(ours.sinkhorn_in_tiles))
        races.append(track.race(f"long sequences, n = {n}", racers, ours.layer(n, heads=2)))
    return races
