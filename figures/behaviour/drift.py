"""Drift of a compiled digits model: changed images raise an alarm, new ones of the same kind hardly ever do."""

import numpy as np

from asap_ref import Attention, detect_drift, fidelity_report
from asap_ref.fidelity.report import FidelityReport
from asap_ref.lab.experiments import experiment
from asap_ref.lab.machine import machine
from asap_ref.lab.runs import trained, whole_batches
from asap_ref.model.compilation import compile_model
from asap_ref.support import files
from asap_ref.support.tables import markdown_table

SEEDS = (0, 1, 2)
LEVELS = (0.01, 0.05, 0.1)
SIZES = (30, 90, 180)  # sequences in each of the two reports
SPLITS = 300  # random ones, of a seed and size
SHIFTS = {
    "none": lambda x, rng: x,
    "noise of a quarter of the standard deviation": lambda x, rng: (
        x + 0.25 * x.std() * rng.standard_normal(x.shape)
    ),
    "noise of one standard deviation": lambda x, rng: x + x.std() * rng.standard_normal(x.shape),
    "values times 0.8": lambda x, rng: 0.8 * x,
    "values times 0.5": lambda x, rng: 0.5 * x,
    "one pixel to the right": lambda x, rng: np.roll(x, 1, -1),
    "turned by a quarter": lambda x, rng: np.rot90(x, axes=(1, 2)),
    "pixels in random order": lambda x, rng: x.reshape(len(x), -1)[:, rng.permutation(x[0].size)].reshape(x.shape),
}


def measure():
    """Train, compile, and split the test images at random: one half as it is, the other changed."""
    return {
        "seeds": [of_seed(seed) for seed in SEEDS],
        "settings": {"levels": LEVELS, "sizes": SIZES, "splits": SPLITS, "seeds": SEEDS},
        "machine": machine(),
    }


def of_seed(seed):
    """Alarms of each change, size and level, as counts; and what each change does to the output error."""
    run = experiment("digits", seed=seed)
    data = run.load()
    teacher = trained(run, data, Attention("sinkhorn", run.teacher), label=f"seed {seed}")
    compiled, _ = compile_model(teacher, whole_batches(data.train_inputs), **run.compilation)
    rng = np.random.default_rng(seed)
    reports = {
        name: fidelity_report(compiled, shift(data.test_inputs, rng).astype(np.float32), teacher=teacher, most=1)
        for name, shift in SHIFTS.items()
    }
    calibration = fidelity_report(compiled, data.train_inputs, teacher=teacher, most=1)
    rows = []
    for size in SIZES:
        for name, report in reports.items():
            # what a change does is seen from few splits; how rare false alarms are takes many
            splits = SPLITS if name == "none" else SPLITS // 10
            rows.append(
                {"shift": name, "size": size, "splits": splits}
                | alarms(reports["none"], report, size, splits, rng)
            )
        told = alarms(calibration, reports["none"], size, SPLITS // 10, rng)
        rows.append({"shift": "calibration data before", "size": size, "splits": SPLITS // 10} | told)
    errors = {name: [row["output_error"] for row in report.rows] for name, report in reports.items()}
    return {"seed": seed, "test": len(data.test_inputs), "rows": rows, "output_error": errors}


def alarms(before, after, size, splits, rng):
    """How often there is an alarm at each level, over random halves that share no image."""
    count = dict.fromkeys(map(str, LEVELS), 0)
    for _ in range(splits):
        if len(next(iter(before.samples.values()))) == len(next(iter(after.samples.values()))):
            order = rng.permutation(len(before.samples["output_error"]))
            one, other = order[:size], order[size : 2 * size]
        else:  # other images anyway
            one, other = (rng.permutation(len(r.samples["output_error"]))[:size] for r in (before, after))
        drift = detect_drift(_part(before, one), _part(after, other))
        strongest = drift.findings[0]["p_value"]
        for level in LEVELS:
            count[str(level)] += strongest <= level
    return {"alarms": count}


def _part(report, indices):
    return FidelityReport([], {name: x[indices] for name, x in report.samples.items()})


# --------------------------------------------------------------------------------------------------------- drawing


def draw(record, folder):
    """Write drift.md."""
    path = folder / "drift.md"
    files.save_text(path, markdown(record))
    return [path]


def markdown(record):
    """Write the rates of alarms, false ones first, and say what they were measured on."""
    settings, made_on = record["settings"], record["machine"]
    sizes = settings["sizes"]
    lines = [["new data", "output error", *(f"alarms, {size} images" for size in sizes)]]
    for name in SHIFTS:
        error = np.exp(np.mean([np.log(seed["output_error"][name]) for seed in record["seeds"]]))
        lines.append(
            [TITLES.get(name, name), f"{error:.3f}", *(f"{_rate(record, name, size, 0.05):.0%}" for size in sizes)]
        )
    name = "calibration data before"
    lines.append([TITLES[name], "", *(f"{_rate(record, name, size, 0.05):.0%}" for size in sizes)])
    false = ", ".join(
        f"{max(_rate(record, 'none', size, level) for size in sizes):.1%} at level {level}"
        for level in settings["levels"]
    )
    return (
        f"{markdown_table(lines)}\n"
        "Digits, a model compiled with the settings of `asap-ref reproduce --dataset digits`, seeds "
        f"{', '.join(map(str, settings['seeds']))}. Each alarm is `detect_drift` at level 0.05 between two reports on "
        f"that many test images each, no image in both: {settings['splits']} random splits a seed where nothing "
        f"changed, {settings['splits'] // 10} elsewhere. False alarms, the most over the three sizes: {false}; "
        f"the splits are of the same {record['seeds'][0]['test']} images, so these rates are less certain than their "
        "number of splits suggests. Output error: geometric mean over heads and seeds. In the last line the first "
        "report is on the images that calibrated the model, which no guarantee covers. "
        f"{made_on['processor']}, Python {made_on['python']}, NumPy {made_on['numpy']}.\n"
    )


TITLES = {
    "none": "other images, unchanged (false alarms)",
    "calibration data before": "unchanged, but compared with the calibration data",
}


def _rate(record, name, size, level):
    rows = [r for seed in record["seeds"] for r in seed["rows"] if (r["shift"], r["size"]) == (name, size)]
    return sum(r["alarms"][str(level)] for r in rows) / sum(r["splits"] for r in rows)
