"""The main job: train on real data, compile, and compare the replacement with the teacher in one table.

Two models are trained alike, one with softmax and one with Sinkhorn attention. The Sinkhorn model is the teacher:
its attention is cut to fewer iterations, and replaced by ASAP, with nothing retrained. Everything goes into one
folder: report.json, report.md, a figure, the models, and checkpoints from which an interrupted run resumes.
"""

from __future__ import annotations

import math
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from asap_ref.fidelity.comparison import compare_attentions
from asap_ref.fidelity.hardness import hardness
from asap_ref.fidelity.report import fidelity_report
from asap_ref.lab.experiments import experiment
from asap_ref.model.compilation import compile_model
from asap_ref.model.mechanism import Attention
from asap_ref.model.text import batches, trimmed
from asap_ref.model.training import predict, train
from asap_ref.model.transformer import Transformer
from asap_ref.rivals.initial_duals import STARTS
from asap_ref.support import files
from asap_ref.support.arrays import array_module, to_numpy
from asap_ref.support.tables import markdown_table

TRUNCATIONS = (1, 2, 3, 4, 5)
RIVALS_TOLD = (
    "initial: duals that nobody learned, with ASAP's two-sided transform; one-sided: ASAP's prediction on the key "
    "side and one softmax. "
)
COLUMNS = {
    "attention": "attention",
    "accuracy": "test accuracy",
    "agreement": "agreement with teacher",
    "output_error": "attention output error",
    "column_error": "column error",
    "ms_per_forward": "ms a forward pass",
    "speedup": "speed against teacher",
}


@dataclass(frozen=True)
class ReproduceSettings:
    """What the main job depends on; None stands for the experiment's own setting."""

    dataset: str = "digits"
    epochs: int | None = None
    n_iter: int | None = None
    slices: int | None = None
    seed: int = 0
    backend: str = "numpy"
    attention: tuple[str, ...] = ()  # mechanisms to train a model with, besides softmax and sinkhorn


def reproduce(settings, out, *, resume=False, say=print):
    """Train, compile and compare on a data set; write everything to the folder ``out`` and return the report.

    Parameters
    ----------
    settings : ReproduceSettings
    out : path
        Folder for report.json, report.md, reproduce.png and .svg, the fidelity of each head (fidelity.md, .png, .svg
        and .npz), the models and their checkpoints.
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
    xp = array_module(settings.backend)
    run = experiment(
        settings.dataset,
        seed=settings.seed,
        epochs=settings.epochs,
        n_iter=settings.n_iter,
        slices=settings.slices,
    )
    data = run.load()
    out.mkdir(parents=True, exist_ok=True)  # an unusable folder is found now, not after an epoch

    seconds, models = {}, {}
    more = [Attention(name) for name in settings.attention if name not in ("softmax", "sinkhorn")]
    for attention in (Attention("softmax"), Attention("sinkhorn", run.teacher), *more):
        began = time.perf_counter()
        models[attention.name] = trained(
            run,
            data,
            attention,
            xp=xp,
            checkpoint=out / f"{attention.name}.checkpoint.npz",
            resume=resume,
            label=f"train {attention.name}",
        )
        seconds[f"train_{attention.name}"] = time.perf_counter() - began
    teacher = models["sinkhorn"]

    began = time.perf_counter()
    compiled, calibration = compile_model(teacher, calibration_batches(run, data), **run.compilation)
    seconds["compile"] = time.perf_counter() - began
    models["asap"] = compiled
    fidelity_report(compiled, sample(data.test_inputs), teacher=teacher).write(out / "fidelity")
    for name, model in models.items():
        model.save(out / f"{name}.npz")

    variants = {name: model for name, model in models.items() if name != "asap"}
    for t in TRUNCATIONS:
        variants[f"sinkhorn-{t}"] = teacher.with_attention(Attention("sinkhorn", {**run.teacher, "n_iter": t}))
    variants["asap"] = compiled
    variants |= rivals(teacher, data, run)
    began = time.perf_counter()
    rows = compare(variants, data.test_inputs, data.test_labels, rounds=run.rounds)
    seconds["compare"] = time.perf_counter() - began
    report = {
        "rows": rows,
        "seconds": None if resume else time.perf_counter() - start,  # resumed: part of it was done before
        "seconds_by_stage": None if resume else seconds,
        "dataset": {
            "name": data.name,
            "train": len(data.train_labels),
            "test": len(data.test_labels),
            "sampled": len(sample(data.test_inputs)),  # for what needs whole plans
            "calibrated": sum(map(len, calibration_batches(run, data))),
        },
        "settings": {
            "seed": settings.seed,
            "backend": settings.backend,
            "architecture": asdict(run.architecture),
            "training": asdict(run.training) | {"word_dropout": run.word_dropout},
            "teacher": dict(run.teacher),
            "compilation": dict(run.compilation),
            "rounds": run.rounds,
        },
        "teacher": hardness(teacher, sample(data.test_inputs)),
        "calibration": calibration,
        "machine": machine(),
    }
    files.save_json(out / "report.json", "report", report)
    files.save_text(out / "report.md", markdown(report))
    draw(report, out)
    say(markdown(report))
    say(f"Report, figure and models are in {out}")
    return report


def machine():
    """Describe what the figures were measured on: processor, operating system, versions."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = f"{names[0]}, {len(names)} cores" if names else processor
    packages = {name: version(name) for name in ("asap-ref", "numpy", "scipy", "array-api-compat")}
    return {"processor": processor, "system": platform.system(), "python": platform.python_version()} | packages


# --------------------------------------------------------------------------------------------------- comparison


def rivals(teacher, data, run):
    """What else could replace the teacher's attention without retraining: {name: model}.

    Three duals that nobody learned, each with the two-sided transform of ASAP, and ASAP on the key side alone.
    """
    epsilon = run.teacher.get("epsilon", 1.0)
    found = {
        f"initial-{start}": teacher.with_attention(Attention("initial", {"start": start, "epsilon": epsilon}))
        for start in STARTS
    }
    found["one-sided"], _ = compile_model(
        teacher, calibration_batches(run, data), into="one-sided", **run.compilation
    )
    return found


def compare(variants, inputs, labels, *, rounds):
    """Rows of the table: every variant of the model against the one called "sinkhorn", the teacher.

    A model that was trained on its own (its parameters are not the teacher's) has no attention output error.
    """
    teacher = variants["sinkhorn"]
    times = forward_milliseconds(variants, whole_batches(inputs), rounds)
    expected = np.argmax(predict(teacher, inputs), axis=-1)
    rows = []
    for name, model in variants.items():
        found = np.argmax(predict(model, inputs), axis=-1)
        same_parameters = model.params is teacher.params
        by_layer = compare_attentions(teacher if same_parameters else model, model.attentions, sample(inputs))
        errors = np.concatenate([layer["output_error"] for layer in by_layer])
        rows.append(
            {
                "attention": name,
                "accuracy": float(np.mean(found == labels)),
                "agreement": float(np.mean(found == expected)),
                "output_error": geometric_mean(errors) if same_parameters else None,
                "column_error": float(np.mean([layer["column_error"] for layer in by_layer])),
                "ms_per_forward": times[name],
                "speedup": times["sinkhorn"] / times[name],
            }
        )
    return rows


def geometric_mean(x):
    """Geometric mean over heads: the errors of easy and hard heads differ by powers of ten."""
    x = np.asarray(x)
    return float(np.exp(np.mean(np.log(x)))) if np.all(x > 0) else 0.0


def forward_milliseconds(variants, batches, rounds):
    """Median milliseconds of a forward pass over all batches, the variants taking turns."""
    placed = [next(iter(variants.values())).place(batch) for batch in batches]
    times = {name: [] for name in variants}
    for _ in range(rounds + 1):  # the first is a warm-up
        for name, model in variants.items():
            began = time.perf_counter()
            for batch in placed:
                to_numpy(model(batch))  # waits for the device
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: float(np.median(t[1:])) for name, t in times.items()}


def whole_batches(inputs):
    """All inputs in batches that fit into memory, texts with others of like length."""
    return [trimmed(inputs[picked]) for picked in batches(inputs, 512)]


def trained(run, data, attention, *, xp=np, **options):
    """Train the model of an experiment with an attention in every layer; the options are those of `train`."""
    model = Transformer.create(run.architecture, attention, seed=run.training.seed, xp=xp)
    return train(model, data.train_inputs, data.train_labels, run.training, augment=run.augment, **options)[0]


def calibration_batches(run, data):
    """Training inputs, without labels, on which an experiment calibrates."""
    return whole_batches(every(data.train_inputs, run.calibrate_on or len(data.train_inputs)))


def sample(inputs, most=400):
    """Some of the inputs, for what needs whole plans: those of all of them may not fit into memory."""
    return trimmed(every(inputs, most))


def every(inputs, most):
    """Every so many-th of the inputs, ``most`` of them at most.

    Examples
    --------
    >>> every(np.arange(10), 4)
    array([0, 3, 6, 9])
    """
    return inputs[:: math.ceil(len(inputs) / most)]


# ------------------------------------------------------------------------------------------------- presentation


def markdown(report):
    """Write the table, and a sentence on the data, the teacher and the machine."""
    lines = [list(COLUMNS.values())]
    for row in report["rows"]:
        error = "" if row["output_error"] is None else f"{row['output_error']:.3f}"
        cells = [row["attention"], f"{row['accuracy']:.1%}", f"{row['agreement']:.1%}", error]
        cells += [f"{row['column_error']:.3f}", f"{row['ms_per_forward']:.1f}", f"{row['speedup']:.1f}x"]
        lines.append(cells)
    settings, data, made_on = report["settings"], report["dataset"], report["machine"]
    training, teacher, compilation = (settings[part] for part in ("training", "teacher", "compilation"))
    ranges = np.concatenate([layer["score_range"] for layer in report["teacher"]])
    needed = np.concatenate([layer["iterations"] for layer in report["teacher"]])
    has_rivals = any(row["attention"] == "one-sided" for row in report["rows"])
    rivals_told = RIVALS_TOLD if has_rivals else ""
    slices = [layer.get("n_slices", compilation["n_slices"]) for layer in report["calibration"]]
    slices = " and ".join(map(str, slices if len(set(slices)) > 1 else slices[:1]))
    whole_run = "" if report["seconds"] is None else f" Whole run: {report['seconds']:.0f} s."
    where = "" if data["sampled"] == data["test"] else f", on {data['sampled']} test examples"
    on = "" if data["calibrated"] == data["train"] else f" calibrated on {data['calibrated']} training examples"
    return (
        f"{markdown_table(lines)}\n"
        f"{data['name']}, {data['train']} training and {data['test']} test examples, seed {settings['seed']}, "
        f"{training['epochs']} epochs. Teacher: Sinkhorn with T = {teacher['n_iter']} at epsilon = "
        f"{teacher['epsilon']}; the scores of a sequence span {ranges.min():.0f} to {ranges.max():.0f} epsilon "
        f"(mean of a head), and to bring every column sum within 0.05 a head needs {needed.min()} to "
        f"{needed.max()} iterations. ASAP: {slices} slices{on}. Attention output error: relative, on "
        "the teacher's q, k, v, geometric mean over heads; softmax was trained on its own and has none. Column "
        f"error: mean distance of the plan's column sums from 1{where}. {rivals_told}Forward pass: all "
        f"{data['test']} test examples, median of {settings['rounds']}. {made_on['processor']}, Python "
        f"{made_on['python']}, NumPy {made_on['numpy']}, array module {settings['backend']}."
        f"{whole_run}\n"
    )


def draw(report, out, *, name="reproduce"):
    """Draw accuracy, and fidelity, against the time of a forward pass; return the paths written.

    The title says what came out: the share of the teacher's accuracy that ASAP and one iteration keep.
    """
    from asap_ref.support import presentation

    accuracy = {row["attention"]: row["accuracy"] for row in report["rows"]}
    kept = {attention: value / accuracy["sinkhorn"] for attention, value in accuracy.items()}
    fig, axes = presentation.subplots(1, 2, figsize=(10, 4.6))
    others = iter("DPXv^<>")
    for row in report["rows"]:
        kind, label = row["attention"].split("-")[0], row["attention"].removeprefix("sinkhorn-")
        known = kind in presentation.MARKERS
        style = {
            "color": presentation.COLOURS[kind if known else "other"],
            "marker": presentation.MARKERS[kind] if known else next(others),
            "markersize": 14 if kind == "asap" else 8,
            "label": f"_{label}" if label.isdigit() else label,  # with an underscore the legend leaves it out
            "ls": "",
        }
        for axis, value in zip(axes, (100 * row["accuracy"], row["output_error"]), strict=True):
            if value:
                axis.plot(row["ms_per_forward"], value, **style)
                if label.isdigit():  # fits into the marker
                    text = {"ha": "center", "va": "center_baseline", "color": "white", "fontsize": 7}
                    axis.annotate(label, (row["ms_per_forward"], value), **text)
    axes[0].set(xlabel="milliseconds a forward pass", ylabel="test accuracy (%)")
    axes[1].set(xlabel="milliseconds a forward pass", ylabel="attention output error (relative)", yscale="log")
    for axis in axes:
        axis.margins(x=0.1, y=0.15)
    fig.legend(*axes[0].get_legend_handles_labels(), ncols=4, fontsize=9, loc="outside lower center")
    fig.suptitle(
        f"Compiled with ASAP, the Sinkhorn teacher keeps {kept['asap']:.1%} of its accuracy, cut to one iteration "
        f"{kept['sinkhorn-1']:.1%}\n({report['dataset']['name']}; left: higher is better, right: lower is better; "
        "a number is Sinkhorn cut to so many iterations)",
        fontsize=11,
    )
    return presentation.save(fig, Path(out) / name)
