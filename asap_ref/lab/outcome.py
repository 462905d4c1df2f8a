"""What came out of the main job, from its report: a table with the sentences that belong to it, and a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from asap_ref.support import presentation
from asap_ref.support.tables import markdown_table

RIVALS_TOLD = (
    "initial: duals that nobody learned, with ASAP's two-sided transform; over-relaxed: so many Sinkhorn iterations, "
    "by 1.7, from softmax or the Gaussian dual, and the transform; dual-softmax: row times column softmax; "
    "asap-refined: one over-relaxed iteration more; asap-one-pass: with features of one pass over the scores; "
    "one-sided: ASAP's prediction on the key side and one softmax. "
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
