"""What can be drawn of a cloud of points: its plans, its dual, and what any number of points does to models.

All is drawn from a report of the main job, whose ``cloud`` holds one test cloud with the plans of one head.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from asap_ref.lab.pictures import plot_dual, plot_plan
from asap_ref.lab.replacements import geometric_mean
from asap_ref.method.sinkhorn import sinkhorn
from asap_ref.method.transport import attention_scores
from asap_ref.model.measures import output_error, plan_of
from asap_ref.model.recording import record
from asap_ref.support import presentation
from asap_ref.support.masks import centred

ENOUGH = 100  # test clouds from which an accuracy is drawn
DRAWN = {"softmax": "softmax", "sinkhorn-1": "Sinkhorn, T = 1", "asap": "ASAP", "sinkhorn": "teacher"}


def cloud_of(variants, cloud):
    """Plans and duals of a cloud (n, 2) in the head of the first layer that softmax attention fits worst.

    The plan of softmax is that of the teacher's own scores. The class token is left out.
    """
    teacher = variants["sinkhorn"]
    (q, k, v, *_), *_ = record(teacher, cloud[None])
    given, compiled = teacher.attentions[0], variants["asap"].attentions[0]
    attentions = {
        "softmax": type(given)("sinkhorn", {**given.settings, "n_iter": 0}),
        "sinkhorn-1": variants["sinkhorn-1"].attentions[0],
        "asap": compiled,
        "sinkhorn": given,
    }
    head = int(np.argmax(output_error(given, attentions["softmax"], [(q, k, v, None, None)])))
    closure_ready = {"n_iter": given.setting("n_iter") - 1, "epsilon": given.setting("epsilon")}
    duals = {
        "teacher": centred(sinkhorn(attention_scores(q, k), **closure_ready).query, None),
        "predicted": compiled.settings["amortizer"].predict(q, k),
    }
    return {
        "head": head,
        "points": _rounded(cloud),
        "plans": {name: _rounded(plan_of(each, q, k)[0, head, 1:, 1:]) for name, each in attentions.items()},
        "duals": {name: _rounded(np.asarray(dual)[0, head, 1:]) for name, dual in duals.items()},
    }


def _rounded(x):
    return np.asarray(x, np.float64).round(4).tolist()


# ------------------------------------------------------------------------------------------------------ pictures


def draw_plans(report, stem, *, drawn=DRAWN):
    """Draw a cloud with a plan between its points for each attention, column sums as the size of points."""
    points, plans = _upwards(report["cloud"]["points"]), report["cloud"]["plans"]
    whole = "sinkhorn" in drawn  # without its teacher it is for the top of a page, whose caption tells the rest
    fig, axes = presentation.subplots(1, len(drawn), figsize=(3 * len(drawn), 3.9 if whole else 3.1))
    spread = {}
    for axis, (name, title) in zip(axes, drawn.items(), strict=True):
        P = np.asarray(plans[name])
        spread[name] = P.sum(0).max()
        title = f"{title}: a point receives\n{_shares(P)}"
        plot_plan(P, points, axis=axis, title=title, colour=name.partition("-")[0])
    told = f"Softmax lets one point receive {spread['softmax']:.1f} times its share, ASAP at most {spread['asap']:.2f}"
    if whole:
        told += (
            f", its teacher {spread['sinkhorn']:.2f}\n(a test cloud; lines: entries of a head's plan above 0.02; "
        )
        told += "size of a point: its column sum)"
    fig.suptitle(told, fontsize=11)
    return presentation.save(fig, stem)


def told_of_two_plans(report):
    """Tell in words what is seen where a cloud is drawn under softmax and under ASAP."""
    softmax, asap = (_shares(np.asarray(report["cloud"]["plans"][name])) for name in ("softmax", "asap"))
    points = len(report["cloud"]["points"])
    return (
        f"One cloud of {points} points, the same scores. Under softmax a point receives {softmax} of attention, under "
        f"ASAP {asap}. Lines are weights, the size of a point is what it receives."
    )


def _shares(P):
    received = P.sum(0)
    return f"{received.min():.2f} to {received.max():.2f} times its share"


def draw_dual(report, stem):
    """Draw the cloud coloured by its query dual: the teacher's, the predicted one, and their difference."""
    points = _upwards(report["cloud"]["points"])
    teacher, predicted = (np.asarray(report["cloud"]["duals"][name]) for name in ("teacher", "predicted"))
    fig = plot_dual(
        {"teacher's": teacher, "predicted": predicted},
        points,
        difference=("predicted", "teacher's"),
        figsize=(10, 3.9),
    )
    worst, size = np.abs(predicted - teacher).max(), teacher.max() - teacher.min()
    fig.suptitle(
        f"The predicted dual is off by at most {worst:.2f} where the teacher's spans {size:.1f}\n"
        "(the same cloud and head; one scale of colours for all three)",
        fontsize=11,
    )
    return presentation.save(fig, stem)


def _upwards(points):
    """From (row, column), rows downwards, to (x, y)."""
    return np.asarray(points)[:, ::-1] * [1, -1]


def draw_lengths(report, stem):
    """Draw error against time of the attention at each n: a line of truncated Sinkhorn, a star of ASAP."""
    lengths = list(dict.fromkeys(row["n"] for row in report["layers"]))
    fig, axes = presentation.subplots(1, len(lengths), figsize=(3.1 * len(lengths), 4.0), sharey=True)
    last = {}
    for axis, n in zip(axes, lengths, strict=True):
        at = of_attention(report, n)
        cut = {int(name.partition("-")[2]): at[name] for name in at if name.startswith("sinkhorn-")}
        axis.plot(
            *np.transpose(list(cut.values())),
            "o-",
            color=presentation.COLOURS["sinkhorn"],
            label="Sinkhorn, cut to T",
        )
        for iterations, (ms, error) in cut.items():
            axis.annotate(
                f"T = {iterations}", (ms, error), xytext=(7, 3), textcoords="offset points", fontsize=8.5
            )
        axis.plot(*at["asap"], "*", markersize=15, color=presentation.COLOURS["asap"], label="ASAP")
        rivals = [name for name in at if name.startswith(("asap-", "initial", "over-relaxed"))]
        for name, marker in zip(rivals, itertools.cycle("PDXv^"), strict=False):
            axis.plot(*at[name], marker, ls="", color=presentation.COLOURS["other"], label=name)
        axis.axvline(at["softmax"][0], color=presentation.COLOURS["softmax"], label="softmax")
        axis.axvline(at["sinkhorn"][0], color=presentation.COLOURS["sinkhorn"], ls=":", label="teacher")
        last[n] = at["sinkhorn"][0] / at["asap"][0]
        title = f"n = {n}: the teacher takes\n{last[n]:.1f} times ASAP's time"
        axis.set(xscale="log", yscale="log", xlabel="ms of attention, all layers", title=title)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.25, y=0.12)
    axes[0].set_ylabel("attention output error (relative)")
    fig.legend(*axes[0].get_legend_handles_labels(), ncols=4, fontsize=9, loc="outside lower center")
    n, m = lengths[0], lengths[-1]
    fig.suptitle(
        f"The teacher takes {last[n]:.1f} times ASAP's time at {n} points, {last[m]:.1f} times at {m}; "
        "lower and further left is better",
        fontsize=11,
    )
    return presentation.save(fig, stem)


def of_attention(report, n):
    """{attention: (ms over all layers, geometric mean of their errors or None)} at one length."""
    found = {}
    for row in report["layers"]:
        if row["n"] == n:
            found.setdefault(row["attention"], []).append(row)
    return {name: (sum(row["ms"] for row in rows), _mean_error(rows)) for name, rows in found.items()}


def _mean_error(rows):
    errors = [row["output_error"] for row in rows]
    return None if None in errors else geometric_mean(errors)


def draw_accuracy(report, stem):
    """Draw test accuracy against the number of points, for models trained on few."""
    fig, axis = presentation.subplots(figsize=(6.4, 4.2))
    styles = {
        "softmax": ("softmax", "s-"),
        "sinkhorn": ("sinkhorn", "o-"),
        "sinkhorn-1": ("light", "o:"),
        "sinkhorn-3": ("light", "^--"),
        "asap": ("asap", "*-"),
    }
    labels = {
        "sinkhorn": "teacher",
        "sinkhorn-1": "teacher cut to T = 1",
        "sinkhorn-3": "cut to T = 3",
        "asap": "ASAP",
    }
    found = {}
    for name, (colour, style) in styles.items():
        rows = [row for row in report["rows"] if row["attention"] == name and row["judged"] >= ENOUGH]
        found[name] = {row["n"]: 100 * row["accuracy"] for row in rows}
        size = {"markersize": 11} if name == "asap" else {}
        axis.plot(
            *zip(*found[name].items(), strict=True),
            style,
            color=presentation.COLOURS[colour],
            label=labels.get(name, name),
            **size,
        )
    ticks = list(found["sinkhorn"])
    axis.set(xscale="log", xlabel="points of a test cloud", ylabel="test accuracy (%)")
    axis.set_xticks(ticks, [str(n) for n in ticks])
    axis.set_xticks([], minor=True)
    axis.legend(fontsize=9)
    n, m = ticks[0], ticks[-1]
    fig.suptitle(
        f"Trained and compiled on {report['settings']['points']} points: the teacher gets "
        f"{found['sinkhorn'][n]:.1f} % of clouds of {n} right\nand {found['sinkhorn'][m]:.1f} % of {m}, ASAP "
        f"{found['asap'][m]:.1f} %",
        fontsize=10,
    )
    return presentation.save(fig, stem)


def draw_all(report, out, *, name="reproduce"):
    """Draw all pictures of a report on clouds; return the paths written."""
    stem = Path(out) / name
    return [
        *draw_lengths(report, stem),
        *draw_accuracy(report, f"{stem}_accuracy"),
        *draw_plans(report, f"{stem}_plans"),
        *draw_plans(report, f"{stem}_two_plans", drawn={name: DRAWN[name] for name in ("softmax", "asap")}),
        *draw_dual(report, f"{stem}_dual"),
    ]
