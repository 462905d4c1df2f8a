"""The matching task as a whole: train, compile, judge (matching.py), then a table, a picture and a page in a folder."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from asap_ref.lab.machine import machine
from asap_ref.lab.matching import (
    CHUNK,
    NAMES,
    TRAINED,
    VARIANTS,
    closings,
    compile_matcher,
    judge,
    judged_pairs,
    plans,
    train_matcher,
)
from asap_ref.lab.page import write_page
from asap_ref.lab.pictures import plot_matches
from asap_ref.lab.stopwatch import timed
from asap_ref.model.partners import partners_of
from asap_ref.support import files, presentation
from asap_ref.support.tables import markdown_table

COLUMNS = {
    "trained": ("trained through", ""),
    "attention": ("closed by", ""),
    "n": ("points", "d"),
    "right": ("right matches", ".1%"),
    "distinct": ("distinct matches", ".1%"),
    "displacement": ("displacement", ".3f"),
    "plan_error": ("plan error", ".3f"),
    "column_error": ("column error", ".3f"),
    "ms": ("ms a forward pass", ".1f"),
}
NOT_TIMED = tuple(COLUMNS)[:-1]


def reproduce_matching(run, out, *, resume=False, say=print):
    """Train the two, compile, judge; write report.json, report.md, a picture and the models to the folder ``out``.

    Examples
    --------
    It is ``asap-ref reproduce --dataset matching``.
    """
    start, out, seconds, models = time.perf_counter(), Path(out), {}, {}
    out.mkdir(parents=True, exist_ok=True)
    for name in TRAINED:
        with timed(seconds, f"train_{name}"):
            checkpoint = {"checkpoint": out / f"{name}.checkpoint.npz", "resume": resume}
            models[name] = train_matcher(run, name, label=f"train {name}", **checkpoint)
    with timed(seconds, "compile"):
        models["asap"], calibration = compile_matcher(run, models["sinkhorn"])
        variants = {name: compile_matcher(run, models["sinkhorn"], **more)[0] for name, more in VARIANTS.items()}
    for name, model in models.items():
        model.save(out / f"{name}.npz")
    matchers = closings(run, models | variants)
    with timed(seconds, "judge"):
        rows = [row for n in run.judged for row in judge(matchers, run, n)]
    report = {
        "rows": rows,
        "calibration": calibration,
        "seconds": None if resume else time.perf_counter() - start,
        "seconds_by_stage": None if resume else seconds,
        "settings": asdict(run),
        "machine": machine(),
    }
    files.save_json(out / "report.json", "report", report)
    files.save_text(out / "report.md", markdown(report))
    presentation.save(draw_picture(drawn_pair(models, run)), out / "matching")
    line = "from asap_ref.model.matching import Matcher, Pairs; "
    line += f'Matcher.load("{out / "asap.npz"}")(Pairs(first, second))  # float32, (B, n, 2) and (B, m, 2)'
    steps = [("The plan that a matcher gives for pairs of clouds:", line)]
    write_page(out, title="Matching clouds: softmax, Sinkhorn and ASAP", next_steps=steps)
    say(markdown(report))
    say(f"Report, figure and models are in {out}; {out / 'index.html'} shows them on one page")
    return report


def markdown(report):
    """Write the table, and a sentence on what was run."""
    settings, made_on = report["settings"], report["machine"]
    whole = "" if report["seconds"] is None else f" Whole run: {report['seconds']:.0f} s."
    lines = [[title for title, _ in COLUMNS.values()]]
    lines += [[f"{row[key]:{form}}" for key, (_, form) in COLUMNS.items()] for row in report["rows"]]
    return (
        f"{markdown_table(lines)}\n"
        f"Clouds of {settings['points']} points and moved copies, {settings['test']} test pairs (of more points "
        "fewer), seed "
        f"{settings['training']['seed']}, {settings['training']['epochs']} epochs; teacher T = {settings['n_iter']}. "
        "Right: the largest entry of a row is at its true partner. Plan error: against the plan of the attention that "
        f"the matcher was trained through. Forward pass: {CHUNK} pairs, median of {settings['rounds']}. "
        f"{made_on['processor']}, NumPy {made_on['numpy']}.{whole}\n"
    )


def drawn_pair(models, run):
    """What a picture of one pair holds, JSON-ready: its clouds, its partners, and what each model names.

    It is the test pair on which all models come nearest to their own averages.
    """
    pairs, partners = judged_pairs(run, run.judged[0])
    named = {name: partners_of(plans(model, pairs)) for name, model in models.items()}
    right = np.stack([np.mean(found == partners, axis=-1) for found in named.values()])  # (models, pairs)
    i = int(np.argmin(np.sum((right - right.mean(axis=1, keepdims=True)) ** 2, axis=0)))
    clouds = {name: getattr(pairs, name)[i].tolist() for name in ("first", "second")}
    return {
        **clouds,
        "partners": partners[i].tolist(),
        "named": {name: x[i].tolist() for name, x in named.items()},
    }


def draw_picture(drawn):
    """Draw one pair of clouds with lines between what is matched, for each of the models."""
    first, second = (np.asarray(drawn[name])[:, ::-1] * [1, -1] for name in ("first", "second"))  # (x, y)
    matches = {NAMES[name]: named for name, named in drawn["named"].items()}
    fig = plot_matches(matches, first, second, drawn["partners"], figsize=(11.5, 3.1))
    fig.suptitle(
        "A cloud (dots) and its moved copy (squares): right matches blue, wrong ones orange; nobody names the hollow.\n"
        "Of all test pairs the one nearest to the average",
        fontsize=10.5,
    )
    return fig
