"""Teachers that several tables are about: of a data set and seed, trained once and kept, and what their layers see."""

import tempfile
from pathlib import Path

from asap_ref import Attention
from asap_ref.lab.experiments import experiment
from asap_ref.lab.runs import trained

KEPT = Path(tempfile.gettempdir()) / "asap-ref-teachers"  # checkpoints, from which an interrupted training goes on


def teacher(dataset, seed):
    """(experiment, its data, the Sinkhorn model as ``asap-ref reproduce`` trains it)."""
    run = experiment(dataset, seed=seed)
    data = run.load()
    KEPT.mkdir(exist_ok=True)
    options = {"checkpoint": KEPT / f"{dataset}-{seed}.npz", "resume": True, "label": f"{dataset}, seed {seed}"}
    return run, data, trained(run, data, Attention("sinkhorn", run.teacher), **options)
