"""What came out of the main job, from its report: a sentence, a table with all that belongs to it, and figures."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from asap_ref.lab.cloud_pictures import draw_all
from asap_ref.lab.replacements import SUMMED
from asap_ref.lab.verdict_of_lengths import in_few_words
from asap_ref.support import presentation
from asap_ref.support.tables import markdown_table

RIVALS_TOLD = {  # what the names of rows begin with
    "initial": "initial: duals that nobody learned, with ASAP's two-sided transform",
    "over-relaxed": "over-relaxed: so many Sinkhorn iterations, by 1.7, from softmax or the Gaussian dual, and the "
    "transform",
    "dual-softmax": "dual-softmax: row times column softmax",
    "asap-refined": "asap-refined: one over-relaxed iteration more",
    "asap-one-pass": "asap-one-pass: with features of one pass over the scores",
    "one-sided": "one-sided: ASAP's prediction on the key side and one softmax",
}
BUSY = 4  # load average above which others took part of two cores: the main job alone has about 2
COLUMNS = {
    "n": "tokens n",
    "attention": "attention",
    "accuracy": "test accuracy",
    "agreement": "agreement with teacher",
    "output_error": "attention output error",
    "column_error": "column error",
    "ms_per_forward": "ms a forward pass",
    "speedup": "speed against teacher, scaling form",
    "speedup_log_domain": "against teacher, log domain",
}


def times(value):
    """So many times as fast, with as many digits as say something; nothing where it was not measured."""
    return "" if value is None else f"{value:.0f}x" if value >= 20 else f"{value:.1f}x"


def markdown(report):
    """Write the sentence, the table of the models, that of the attention alone, and what the numbers depend on."""
    lines = [list(COLUMNS.values())]
    for row in report["rows"]:
        error = "" if row["output_error"] is None else f"{row['output_error']:.3f}"
        cells = [str(row["n"]), row["attention"], f"{row['accuracy']:.1%}", f"{row['agreement']:.1%}", error]
        cells += [f"{row['column_error']:.3f}", f"{row['ms_per_forward']:.1f}"]
        lines.append([*cells, times(row["speedup"]), times(row["speedup_log_domain"])])
    cost = f"{1e3 * report['compile']['seconds']:.0f} (once)"
    lines.append([str(report["rows"][0]["n"]), "the compile step", "", "", "", "", cost, "", ""])
    alone = f"\n{of_layers(report)}" if report["layers"] else ""
    return f"{in_few_words(report)}\n\n{markdown_table(lines)}\n{told(report)}\n{alone}"


def of_layers(report):
    """Write the table of the attention alone, all layers in a row."""
    head = ["n", "attention", "output error, by layer", "ms, all layers", "over softmax", "speed against teacher"]
    lines, by_row = [[*head, "log domain, first layer"]], {}
    for row in report["layers"]:
        by_row.setdefault((row["n"], row["attention"]), []).append(row)
    for (n, name), rows in by_row.items():
        errors = ", ".join("" if row["output_error"] is None else f"{row['output_error']:.4f}" for row in rows)
        ms = sum(row["ms"] for row in rows)
        softmax, teacher = (sum(row["ms"] for row in by_row[n, other]) for other in ("softmax", "sinkhorn"))
        cells = [str(n), name, errors.strip(", "), f"{ms:.1f}", f"{ms / softmax:.2f}", times(teacher / ms)]
        lines.append([*cells, times(rows[0]["speedup_log_domain"])])
    lengths = [
        (length["n"], min(length["sampled"], length["timed"] or report["dataset"]["test"]))
        for length in report["dataset"]["lengths"]
    ]
    on = ", ".join(f"{count}" if n is None else f"{count} at n = {n}" for n, count in lengths)
    return (
        "The attention alone, on the q, k, v of the teacher (softmax on the same ones, for its time):\n\n"
        f"{markdown_table(lines)}\nTest inputs: {on}. The log domain, one operation on a whole array after "
        "another, is timed once, on the first head of the first layer, times the heads.\n"
    )


def told(report):
    """Say in sentences what the numbers are and depend on."""
    settings, data, made_on = report["settings"], report["dataset"], report["machine"]
    training, teacher = (settings[part] for part in ("training", "teacher"))
    ranges = np.concatenate([layer["score_range"] for layer in report["teacher"]])
    needed = np.concatenate([layer["iterations"] for layer in report["teacher"]])
    features = report["calibration"][0]["features"]
    features = ", ".join(f"{count} {name}" if name == "slices" else name for name, count in features.items())
    whole_run = "" if report["seconds"] is None else f" Whole run: {report['seconds']:.0f} s."
    on = "" if data["calibrated"] == data["train"] else f" calibrated on {data['calibrated']} training examples"
    if settings["points"] is not None:
        on += f" of {settings['points']} points, on which the models were trained too"
    names = [row["attention"] for row in report["rows"]]
    rivals = "; ".join(told for kind, told in RIVALS_TOLD.items() if any(name.startswith(kind) for name in names))
    return (
        f"{data['name']}, {data['train']} training and {data['test']} test examples, seed {settings['seed']}, "
        f"{training['epochs']} epochs. Teacher: Sinkhorn with T = {teacher['n_iter']} at epsilon = "
        f"{teacher['epsilon']}; the scores of a sequence span {ranges.min():.0f} to {ranges.max():.0f} epsilon "
        f"(mean of a head), and to bring every column sum within 0.05 a head needs {needed.min()} to "
        f"{needed.max()} iterations. ASAP: {features}{on}. Attention output error: relative, on "
        "the teacher's q, k, v, geometric mean over heads; softmax was trained on its own and has none. Column "
        f"error: mean distance of the plan's column sums from 1, of inputs with {SUMMED:,} scores or of one. {rivals}. "
        f"{_on_how_many(data)} "
        f"{made_on['processor']}, Python {made_on['python']}, NumPy {made_on['numpy']}, array module "
        f"{settings['backend']}.{whole_run}{_how_busy(report)}"
    )


def _how_busy(report):
    """Say so where other jobs ran beside this one."""
    load = report.get("load_average") or 0
    if load < BUSY:
        return ""
    return (
        f" The machine was busy (load average {load:.0f}): milliseconds are those of a share of it; ratios are "
        "of turns in one process."
    )


def _on_how_many(data):
    """Say on how many test inputs labels, errors and times rest."""
    rest = []
    for length in data["lengths"]:
        judged = length["judged"] or data["test"]
        at = "" if length["n"] is None else f"at n = {length['n']} "
        sampled, timed = min(length["sampled"], judged), length["timed"] or judged
        few = length["judged_others"]
        others = "" if few is None else f" ({few} for all but softmax, teacher and ASAP)"
        rest.append(f"{at}labels of {judged}{others}, errors of {sampled}, forward passes over {timed}")
    least = ", ".join(f"{length['rounds']}" for length in data["lengths"])
    return f"Test examples: {'; '.join(rest)}. Times are medians of at least {least} turns."


def draw(report, out, *, name="reproduce"):
    """Draw what a report of the main job holds; return the paths written."""
    pictures = draw_all if "cloud" in report else draw_one_length
    return pictures(report, out, name=name)


def draw_one_length(report, out, *, name):
    """Draw accuracy, and fidelity, against the time of a forward pass.

    The title says what came out: the share of the teacher's accuracy that ASAP and one iteration keep.
    """
    accuracy = {row["attention"]: row["accuracy"] for row in report["rows"]}
    kept = {attention: value / accuracy["sinkhorn"] for attention, value in accuracy.items()}
    fig, axes = presentation.subplots(1, 2, figsize=(10, 4.6))
    others = itertools.cycle("DPXv^<>hpd8H")
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
