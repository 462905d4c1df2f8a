"""Some steps of fine-tuning recover most of what a coarse ASAP had lost; a good one has little to recover."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from asap_ref import Attention
from asap_ref.lab.experiments import experiment
from asap_ref.lab.machine import machine
from asap_ref.lab.runs import trained, whole_batches
from asap_ref.model.compilation import compile_model
from asap_ref.model.measures import column_error
from asap_ref.model.optimiser import TrainingSettings
from asap_ref.model.recording import record as record_layers
from asap_ref.model.training import accuracy, predict, train
from asap_ref.support import files, presentation
from asap_ref.support.tables import markdown_table

SEEDS = (0, 1, 2)
TUNING = TrainingSettings(epochs=3, batch_size=64, learning_rate=3e-4, warmup=0.25)
PLAINEST = {"n_slices": 16, "candidates": None, "quadratic": 8, "moments": 0, "ridge": 1e-4}
COMPILED = {
    "ASAP, 1 slice": {"n_slices": 1, "cumulants": False, "quadratic": 0},
    "ASAP, 2 slices": {"n_slices": 2, "cumulants": False, "quadratic": 0},
    "ASAP as compiled": {},
}
SWAPPED = {
    "softmax": Attention("softmax"),
    "Sinkhorn, T = 1": Attention("sinkhorn", {"n_iter": 1, "epsilon": 1.0}),
}


def measure():
    """Train a teacher for each seed, replace its attention, and train on from there."""
    return {
        "seeds": [of_seed(seed) for seed in SEEDS],
        "settings": {
            "epochs": TUNING.epochs,
            "batch_size": TUNING.batch_size,
            "learning_rate": TUNING.learning_rate,
        },
        "machine": machine(),
    }


def of_seed(seed):
    """Accuracy, agreement with the teacher and column error, before the first step and after each epoch."""
    run = experiment("digits", seed=seed)
    data = run.load()
    teacher = trained(run, data, Attention("sinkhorn", run.teacher), label=f"seed {seed}")
    answers = predict(teacher, data.test_inputs).argmax(-1)

    def evaluate(model):
        return {
            "accuracy": accuracy(model, data.test_inputs, data.test_labels),
            "agreement": float(np.mean(predict(model, data.test_inputs).argmax(-1) == answers)),
            "column_error": column_error(model, record_layers(model, data.test_inputs)),
        }

    starts = {
        name: compile_model(teacher, whole_batches(data.train_inputs), seed=seed, **(PLAINEST | settings))[0]
        for name, settings in COMPILED.items()
    }
    starts |= {
        name: replace(teacher, attentions=(attention,) * len(teacher.attentions))
        for name, attention in SWAPPED.items()
    }
    rows = []
    for name, model in starts.items():
        tuned = train(
            model,
            data.train_inputs,
            data.train_labels,
            replace(TUNING, seed=seed),
            evaluate=evaluate,
            label=f"{name}, seed {seed}",
        )[1]
        rows.append({"name": name, "history": [evaluate(model), *tuned]})
    return {"seed": seed, "examples": len(data.train_inputs), "teacher": evaluate(teacher), "rows": rows}


# ---------------------------------------------------------------------------------------------------- presentation

LINES = {
    "ASAP, 1 slice": ("asap", ":", "*"),
    "ASAP, 2 slices": ("asap", "--", "*"),
    "ASAP as compiled": ("asap", "-", "*"),
    "softmax": ("softmax", "-", "s"),
    "Sinkhorn, T = 1": ("sinkhorn", "-", "o"),
}


def draw(record, folder):
    """Write the table and the figure."""
    table = Path(folder) / "fine_tuning.md"
    files.save_text(table, markdown(record))
    fig, axes = presentation.subplots(1, 2, figsize=(10.0, 4.0))
    for axis, key, title in zip(
        axes, ("accuracy", "agreement"), ("Test accuracy", "Answers as the teacher's"), strict=True
    ):
        for name, (colour, line, marker) in LINES.items():
            found = _mean(record, name, key)
            steps = _steps_an_epoch(record) * np.arange(len(found))
            axis.plot(steps, found, line, marker=marker, color=presentation.COLOURS[colour], label=name)
        teacher = np.mean([seed["teacher"][key] for seed in record["seeds"]])
        axis.axhline(teacher, ls="-.", lw=1.2, color=presentation.COLOURS["black"], label="teacher")
        axis.set(title=title, xlabel="steps of fine-tuning", ylabel=key)
    axes[0].legend(fontsize=8)
    return [table, *presentation.save(fig, Path(folder) / "fine_tuning")]


def markdown(record):
    """Write accuracy, agreement and column error before and after."""
    steps = _steps_an_epoch(record) * (len(record["seeds"][0]["rows"][0]["history"]) - 1)
    head = ["attention", *(f"{m}, {t}" for m in ("test accuracy", "agreement with teacher") for t in _TIMES)]
    head += [f"column error, {t}" for t in _TIMES]
    lines = [head]
    for name in LINES:
        cells = [f"{100 * _mean(record, name, key)[i]:.1f}%" for key in ("accuracy", "agreement") for i in (0, -1)]
        lines.append([name, *cells, *(f"{_mean(record, name, 'column_error')[i]:.3f}" for i in (0, -1))])
    of_teacher = [
        np.mean([seed["teacher"][key] for seed in record["seeds"]]) for key in ("accuracy", "column_error")
    ]
    s, made_on = record["settings"], record["machine"]
    return markdown_table(lines) + (
        f"\nDigits, seeds {', '.join(str(seed['seed']) for seed in record['seeds'])}: mean over them. The teacher "
        f"reaches {100 * of_teacher[0]:.1f}% with a column error of {of_teacher[1]:.3f}. After: {steps} steps of AdamW "
        f"on the training images ({s['epochs']} epochs in batches of {s['batch_size']}) at a learning rate of at most "
        f"{s['learning_rate']:g}; the amortizer is held fixed and gradients pass through it, so that the layers around "
        f"it adapt and its column error does not. {made_on['processor']}, NumPy {made_on['numpy']}.\n"
    )


_TIMES = ("before", "after")


def _steps_an_epoch(record):
    return -(-record["seeds"][0]["examples"] // record["settings"]["batch_size"])


def _mean(record, name, key):
    rows = [row for seed in record["seeds"] for row in seed["rows"] if row["name"] == name]
    return np.mean([[entry[key] for entry in row["history"]] for row in rows], axis=0)
