"""Layers that several tables are about: of trained teachers, and made up. A call is (q, k, v, query_mask, key_mask)."""

import tempfile
from pathlib import Path

import numpy as np
from hard_case import layer as hard_layer

from asap_ref import Attention
from asap_ref.lab import competitors
from asap_ref.lab.experiments import experiment
from asap_ref.lab.runs import trained
from asap_ref.model.recording import record

KEPT = Path(tempfile.gettempdir()) / "asap-ref-teachers"  # checkpoints, from which an interrupted training goes on
HARD, MADE_UP = {"n_iter": 15, "epsilon": 1.0}, {"n_iter": competitors.N_ITER, "epsilon": 1.0}


def teacher(dataset, seed):
    """(experiment, its data, the Sinkhorn model as ``asap-ref reproduce`` trains it)."""
    run = experiment(dataset, seed=seed)
    data = run.load()
    KEPT.mkdir(exist_ok=True)
    options = {"checkpoint": KEPT / f"{dataset}-{seed}.npz", "resume": True, "label": f"{dataset}, seed {seed}"}
    return run, data, trained(run, data, Attention("sinkhorn", run.teacher), **options)


def by_layer(model, batches):
    """What each layer is given on some batches: [layer][batch] calls."""
    return list(zip(*(record(model, batch) for batch in batches), strict=True))


def made_up(n, sharpness, seeds, **sizes):
    """One call on the benchmark's layers, a sequence for each seed; sharpness is the deviation of the scores."""
    drawn = [competitors.layer(n, sharpness, seed=seed, **sizes) for seed in seeds]
    return (*(np.stack(arrays) for arrays in zip(*drawn, strict=True)), None, None)


def hard(seed, count, draw):
    """Calls on one layer of the hard case, in batches of 128 sequences."""
    q, k, v = (x.astype(np.float32) for x in hard_layer(seed)(count, draw))
    return [(q[i : i + 128], k[i : i + 128], v[i : i + 128], None, None) for i in range(0, count, 128)]
