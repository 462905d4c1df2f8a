"""What each option of the map buys on digits and news: moments a fifth, one refining iteration half."""

from pathlib import Path

import numpy as np

from asap_ref import Attention
from asap_ref.fidelity.comparison import compare_attentions
from asap_ref.lab.experiments import experiment
from asap_ref.lab.machine import machine
from asap_ref.lab.replacements import geometric_mean
from asap_ref.lab.runs import calibration_batches, sample, trained
from asap_ref.model.compilation import compile_model
from asap_ref.support import files, presentation
from asap_ref.support.tables import markdown_table

SEEDS = (0, 1, 2)
DATASETS = {"digits": "digits", "r8": "Reuters R8"}
PLAINEST = {"candidates": None, "moments": 0, "ridge": 1e-4}
PLAIN = {"n_slices": 16, "quadratic": 0}
CHOSEN = {"n_slices": 16, "candidates": 64, "quadratic": 12}
VARIANTS = {
    "16 slices": PLAIN | {"cumulants": False},
    "16 slices + cumulants": PLAIN,
    "16 chosen slices + cumulants + quadratic": CHOSEN,
    "the same + moments": CHOSEN | {"moments": 12},
    "the same, refine = 1": CHOSEN | {"refine": 1},
}
TRUNCATED = (1, 2, 3, 5)
BAR = 0.05


def measure():
    """Train a teacher for each data set and seed, compile it in every way, and compare on test inputs."""
    return {
        "datasets": {name: [of_seed(name, seed) for seed in SEEDS] for name in DATASETS},
        "machine": machine(),
    }


def of_seed(dataset, seed):
    """Errors of each variant, one a layer and head."""
    run = experiment(dataset, seed=seed)
    data = run.load()
    teacher = trained(run, data, Attention("sinkhorn", run.teacher), label=f"{dataset}, seed {seed}")
    calibration, test = calibration_batches(run, data), sample(data.test_inputs)
    rows = []
    for name, settings in VARIANTS.items():
        compiled, _ = compile_model(teacher, calibration, seed=seed, **(PLAINEST | settings))
        rows.append({"name": name} | errors(teacher, compiled.attentions, test))
    for T in TRUNCATED:
        cut = (Attention("sinkhorn", {**run.teacher, "n_iter": T}),) * len(teacher.attentions)
        rows.append({"name": f"Sinkhorn, T = {T}"} | errors(teacher, cut, test))
    return {"seed": seed, "teacher": run.teacher, "test": len(test), "rows": rows}


def errors(teacher, attentions, inputs):
    """Output and column errors, (layers, heads) each."""
    layers = compare_attentions(teacher, attentions, inputs)
    return {key: [layer[key] for layer in layers] for key in ("output_error", "column_error")}


# ---------------------------------------------------------------------------------------------------- presentation


def draw(record, folder):
    """Write the table and the figure."""
    table = Path(folder) / "options.md"
    files.save_text(table, markdown(record))
    fig, axes = presentation.subplots(1, len(DATASETS), figsize=(11.0, 4.2), sharey=True)
    place = {name: len(VARIANTS) - 1 - i for i, name in enumerate(VARIANTS)}
    for axis, (dataset, told) in zip(axes, DATASETS.items(), strict=True):
        seeds = record["datasets"][dataset]
        found = np.asarray([[_error(seed, name) for seed in seeds] for name in VARIANTS])
        axis.barh(
            list(place.values()),
            found.mean(1),
            xerr=found.std(1),
            height=0.6,
            color=presentation.COLOURS["asap"],
        )
        for T in (2, 3, 5):
            error = np.mean([_error(seed, f"Sinkhorn, T = {T}") for seed in seeds])
            axis.axvline(error, ls="--", lw=1.2, color=presentation.COLOURS["sinkhorn"])
            axis.annotate(f" T = {T}", (error, len(VARIANTS) - 0.45), ha="left", fontsize=9)
        axis.set(title=told, xlabel="output error; dashed: Sinkhorn cut to T", ylim=(-0.6, len(VARIANTS)))
        axis.grid(visible=False, axis="y")
    axes[0].set_yticks(list(place.values()), list(place))
    axes[0].set_ylabel("map")
    return [table, *presentation.save(fig, Path(folder) / "options")]


def markdown(record):
    """Write output and column errors, and whether they meet the bar."""
    head = ["attention"]
    for told in DATASETS.values():
        head += [f"{told}: {what}" for what in ("output error", "column error", "nearer than T = 5")]
    lines = [head]
    for name in (*VARIANTS, *(f"Sinkhorn, T = {T}" for T in TRUNCATED)):
        line = [name]
        for dataset in DATASETS:
            seeds = record["datasets"][dataset]
            found = [_error(seed, name) for seed in seeds]
            columns = np.mean([_row(seed, name)["column_error"] for seed in seeds])
            line += [f"{np.mean(found):.3f} ± {np.std(found):.3f}", f"{columns:.3f}"]
            won = [x < y for seed in seeds for x, y in zip(*(_layers(seed, n) for n in (name, FIVE)), strict=True)]
            line.append(f"{sum(won)} of {len(won)} layers" if name in VARIANTS else "")
        lines.append(line)
    told = []
    for dataset, name in DATASETS.items():
        seeds = record["datasets"][dataset]
        met = [told for told in VARIANTS if np.mean([_error(seed, told) for seed in seeds]) <= BAR]
        told.append(
            f"{name} (T = {seeds[0]['teacher']['n_iter']}, epsilon = {seeds[0]['teacher']['epsilon']:g}, "
            f"{seeds[0]['test']} test inputs): an output error of {BAR} at most with 16 slices is reached by "
            f"{', '.join(f'“{one}”' for one in met) or 'none'}"
        )
    made_on = record["machine"]
    return markdown_table(lines) + (
        f"\n{'; '.join(told)}. Seeds {', '.join(map(str, SEEDS))}: means with standard deviations; output errors are "
        f"relative to the teacher's output, geometric means over heads. {made_on['processor']}, NumPy "
        f"{made_on['numpy']}.\n"
    )


FIVE = "Sinkhorn, T = 5"


def _row(seed, name):
    return next(row for row in seed["rows"] if row["name"] == name)


def _layers(seed, name):
    return [geometric_mean(layer) for layer in _row(seed, name)["output_error"]]


def _error(seed, name):
    return geometric_mean(_row(seed, name)["output_error"])
