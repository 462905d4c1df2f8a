"""The main job: train on real data, compile, and compare the replacement with the teacher in one table.

Two models are trained alike, one with softmax and one with Sinkhorn attention. The Sinkhorn model is the teacher:
its attention is cut to fewer iterations, and replaced by ASAP, with nothing retrained. Everything goes into one
folder: report.json, report.md, a figure, the models, and checkpoints from which an interrupted run resumes.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from asap_ref.fidelity.hardness import hardness
from asap_ref.fidelity.report import fidelity_report
from asap_ref.lab import experiments
from asap_ref.lab.cloud_pictures import cloud_of
from asap_ref.lab.machine import load_average, machine
from asap_ref.lab.outcome import draw, markdown
from asap_ref.lab.page import write_page
from asap_ref.lab.replacements import compare, variants
from asap_ref.lab.runs import calibration_batches, sample, trained
from asap_ref.lab.stopwatch import timed
from asap_ref.model.compilation import compile_model
from asap_ref.model.mechanism import Attention
from asap_ref.support import files
from asap_ref.support.arrays import array_module


@dataclass(frozen=True)
class ReproduceSettings:
    """What the main job depends on; None stands for the experiment's own setting."""

    dataset: str = "clouds"
    epochs: int | None = None
    n_iter: int | None = None
    slices: int | None = None
    seed: int = 0
    backend: str = "numpy"
    attention: tuple[str, ...] = ()  # mechanisms to train a model with, besides softmax and sinkhorn

    def experiment(self):
        """Look up the experiment, with these settings."""
        return experiments.experiment(
            self.dataset, seed=self.seed, epochs=self.epochs, n_iter=self.n_iter, slices=self.slices
        )


def reproduce(settings, out, *, resume=False, say=print):
    """Train, compile and compare on a data set; write everything to the folder ``out`` and return the report.

    Parameters
    ----------
    settings : ReproduceSettings
    out : path
        Folder for index.html, which shows all of it, report.json, report.md, reproduce.png and .svg, the fidelity of
        each head (fidelity.md, .png, .svg and .npz), the models and their checkpoints.
    resume : bool
        Go on from the checkpoints in ``out``.
    say : callable
        Where lines for people go.

    Returns
    -------
    dict
        ``{"rows": [{"attention": ..., "accuracy": ..., ...}, ...], "seconds": ..., ...}``.

    Raises
    ------
    ValueError
        If the checkpoints in ``out`` come from other settings.
    """
    start, out = time.perf_counter(), Path(out)
    xp = array_module(settings.backend)  # what is not installed is named before any work
    run = settings.experiment()
    data = run.load()
    out.mkdir(parents=True, exist_ok=True)  # an unusable folder is found now, not after an epoch
    seconds = {}
    models = train_all(settings, run, data, out, xp=xp, resume=resume, seconds=seconds)
    with timed(seconds, "compile"):
        models["asap"], calibration = compile_model(
            models["sinkhorn"], calibration_batches(run, data), **run.compilation
        )
    write_models(models, sample(data.test_inputs, run.lengths[0].sampled), out)
    compared = variants(models, data, run)
    with timed(seconds, "compare"):
        rows, alone = judge(compared, run, data)
    report = {
        "rows": rows,
        "layers": alone,
        "seconds": None if resume else time.perf_counter() - start,  # resumed: part of it was done before
        "seconds_by_stage": None if resume else seconds,
        "dataset": sizes(run, data),
        "settings": told(settings, run),
        "teacher": hardness(models["sinkhorn"], sample(data.test_inputs, run.lengths[0].sampled)),
        "compile": {"seconds": seconds["compile"]},
        "calibration": calibration,
        "machine": machine(),
        "load_average": load_average(),
    }
    if run.points is not None:
        report["cloud"] = cloud_of(compared, data.test_inputs[0])
    files.save_json(out / "report.json", "report", report)
    files.save_text(out / "report.md", markdown(report))
    draw(report, out)
    write_page(out, title=f"Softmax, Sinkhorn and ASAP on {data.name}", next_steps=next_steps(settings, out))
    say(markdown(report))
    say(f"Report, figures and models are in {out}; {out / 'index.html'} shows them on one page")
    return report


# ------------------------------------------------------------------------------------------------------ its stages


def train_all(settings, run, data, out, *, xp, resume, seconds):
    """Train a model with softmax, one with Sinkhorn attention, and those that were asked for besides: {name: model}."""
    models = {}
    more = [Attention(name) for name in settings.attention if name not in ("softmax", "sinkhorn")]
    for attention in (Attention("softmax"), Attention("sinkhorn", run.teacher), *more):
        name = attention.name
        with timed(seconds, f"train_{name}"):
            checkpoint = {"checkpoint": out / f"{name}.checkpoint.npz", "resume": resume}
            models[name] = trained(run, data, attention, xp=xp, label=f"train {name}", **checkpoint)
    return models


def judge(variants, run, data):
    """Rows of the table at every length of the experiment, and those of the attention alone."""
    rows, alone = [], []
    for length in run.lengths:
        inputs, labels = run.test_inputs(data, length.n), data.test_labels
        found, layers = compare(variants, inputs[: length.judged], labels[: length.judged], length)
        n = run.n_tokens if length.n is None else length.n
        rows += [{**row, "n": n} for row in found]
        alone += [{**row, "n": n} for row in layers]
    return rows, alone


def write_models(models, inputs, out):
    """Write the models, and how faithful each head of the compiled one is on these inputs."""
    fidelity_report(models["asap"], inputs, teacher=models["sinkhorn"]).write(out / "fidelity")
    for name, model in models.items():
        model.save(out / f"{name}.npz")


def next_steps(settings, out):
    """What to do with the folder: [(sentence, line to type), ...]."""
    model, own = out / "sinkhorn.npz", f"asap-ref train --data own.npz --out {out / 'own.npz'}"
    return [
        (
            "What is cheapest at your length, and near enough?",
            f"asap-ref advise {model} --dataset {settings.dataset}",
        ),
        ("The compiled model in Python:", f'asap_ref.predict(asap_ref.load_model("{out / "asap.npz"}"), inputs)'),
        ("The same on data of your own, an .npz of X (N, tokens, features) and y (N,):", own),
        ("Where the numbers come from, how to write ASAP yourself, and what did not work:", "asap-ref"),
    ]


def sizes(run, data):
    """Tell how many examples there were for what."""
    return {
        "name": data.name,
        "train": len(data.train_labels),
        "test": len(data.test_labels),
        "sampled": len(sample(data.test_inputs, run.lengths[0].sampled)),  # for what needs whole plans
        "lengths": [asdict(length) for length in run.lengths],
        "calibrated": sum(map(len, calibration_batches(run, data))),
    }


def told(settings, run):
    """Tell everything that the numbers depend on."""
    return {
        "seed": settings.seed,
        "backend": settings.backend,
        "architecture": asdict(run.architecture),
        "training": asdict(run.training) | {"word_dropout": run.word_dropout},
        "teacher": dict(run.teacher),
        "compilation": dict(run.compilation),
        "rounds": run.lengths[0].rounds,
        "points": run.points,
    }
