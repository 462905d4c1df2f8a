"""When to use what: ASAP for long sequences of scores that are not sharp; elsewhere Sinkhorn, cut if they are flat."""

from dataclasses import replace
from pathlib import Path

import teachers
from matplotlib.patches import Patch, Rectangle

from asap_ref import Attention, fit_amortizer
from asap_ref.lab.competitors import MAP
from asap_ref.lab.layers_alone import race_layer
from asap_ref.lab.machine import machine
from asap_ref.lab.replacements import cut_short, geometric_mean, without_learning
from asap_ref.support import files, presentation
from asap_ref.support.tables import markdown_table

LENGTHS, SHARPNESS = (16, 64, 256, 1024, 4096), (0.5, 3.0, 10.0, 20.0)
ERRORS = (0.05, 0.01)
HEADS, WIDTH = 2, 32
SCORES = 2**19  # of a head, in the batch that is timed, for lengths that leave a choice
TOKENS, LONGEST = 4096, 1024  # to calibrate on, in sequences of at most that length
GROUPS = {  # how a name begins: what is told of it, and its colour
    "softmax": ("softmax", "softmax"),
    "dual-softmax": ("dual softmax", "black"),
    "sinkhorn": ("Sinkhorn", "sinkhorn"),
    "over-relaxed-softmax": ("over-relaxed, from softmax", "light"),
    "over-relaxed-gaussian": ("over-relaxed, from the Gaussian dual", "sliced"),
    "asap": ("ASAP", "asap"),
}


def measure():
    """Time everybody on a made-up layer of each length and sharpness, with its error; ASAP calibrated on others."""
    cells = [of_cell(n, sharpness) for n in LENGTHS for sharpness in SHARPNESS]
    settings = {"heads": HEADS, "d": WIDTH, **teachers.MADE_UP}
    return {"cells": cells, "settings": settings, "machine": machine()}


def of_cell(n, sharpness):
    """Output error and milliseconds of each attention at one length and sharpness."""
    sizes = {"heads": HEADS, "d": WIDTH}
    given = Attention("sinkhorn", teachers.MADE_UP)
    m = min(n, LONGEST)
    q, k, *_ = teachers.made_up(m, sharpness, range(100, 100 + TOKENS // m), **sizes)
    refined = fit_amortizer([(q, k)], refine=1, **MAP, **teachers.MADE_UP)
    attentions = {
        "softmax": Attention("softmax"),
        "sinkhorn": given,
        **cut_short(given, (1, 2, 3, 5, 8, 12)),
        **without_learning(given),
        "asap": Attention("asap", {"amortizer": replace(refined, refine=0)}),
        "asap-refined": Attention("asap", {"amortizer": refined}),
    }
    call = teachers.made_up(n, sharpness, range(min(max(SCORES // n**2, 1), 64)), **sizes)
    found = race_layer(given, attentions, call, rounds=7, least=3, budget=0.2)
    rows = {name: {"error": geometric_mean(errors), "ms": ms} for name, (errors, ms) in found.items()}
    return {"n": n, "sharpness": sharpness, "sequences": len(call[0]), "rows": rows}


# -------------------------------------------------------------------------------------------------- presentation


def winner(cell, error):
    """Name of the cheapest that is within an error."""
    rows = cell["rows"]
    return min((name for name, row in rows.items() if row["error"] <= error), key=lambda name: rows[name]["ms"])


def group(name):
    """The longest beginning of a name that GROUPS has."""
    return max((start for start in GROUPS if name.startswith(start)), key=len)


def short(name, n_iter):
    """What is written into a cell."""
    last = name.rpartition("-")[2]
    if name == "sinkhorn":
        return f"T = {n_iter}"
    if name == "asap-refined":
        return "refined"
    return {"sinkhorn": f"T = {last}", "asap": "ASAP"}.get(group(name), f"{last} + 1" if last.isdigit() else "")


def draw(record, folder):
    """Write the table and the figure."""
    table = Path(folder) / "when.md"
    files.save_text(table, markdown(record))
    fig, axes = presentation.subplots(1, len(ERRORS), figsize=(10.5, 4.6), sharey=True)
    seen = set()
    for axis, error in zip(axes, ERRORS, strict=True):
        for cell in record["cells"]:
            x, y = LENGTHS.index(cell["n"]), SHARPNESS.index(cell["sharpness"])
            name = winner(cell, error)
            seen.add(group(name))
            colour = presentation.COLOURS[GROUPS[group(name)][1]]
            axis.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, color=colour, linewidth=0))
            told = short(name, record["settings"]["n_iter"])
            axis.annotate(told, (x, y), ha="center", va="center", fontsize=9, color="white", weight="bold")
        axis.set(xlim=(-0.5, len(LENGTHS) - 0.5), ylim=(-0.5, len(SHARPNESS) - 0.5))
        axis.set_xticks(range(len(LENGTHS)), LENGTHS)
        axis.set_yticks(range(len(SHARPNESS)), [f"{x:g}" for x in SHARPNESS])
        axis.set(xlabel="tokens", title=f"cheapest within {error:.0%} of the teacher")
        axis.grid(visible=False)
    axes[0].set_ylabel("standard deviation of the scores")
    keys = [
        Patch(color=presentation.COLOURS[colour], label=told)
        for start, (told, colour) in GROUPS.items()
        if start in seen
    ]
    fig.legend(handles=keys, loc="outside lower center", ncols=len(keys), fontsize=9)
    return [table, *presentation.save(fig, Path(folder) / "when")]


def markdown(record):
    """Write the winners, what they save, and how near ASAP and its best rival of the same price come."""
    lines = [["tokens", "deviation of the scores"]]
    for error in ERRORS:
        lines[0] += [f"cheapest within {error:.0%}", "ms", "teacher / it", "softmax / it"]
    lines[0] += ["error of ASAP", "ASAP / softmax"]
    for cell in record["cells"]:
        rows = cell["rows"]
        line = [str(cell["n"]), f"{cell['sharpness']:g}"]
        for error in ERRORS:
            name = winner(cell, error)
            ms = rows[name]["ms"]
            line += [name, f"{ms:.2f}", f"{rows['sinkhorn']['ms'] / ms:.2f}", f"{rows['softmax']['ms'] / ms:.2f}"]
        line += [f"{rows['asap']['error']:.3f}", f"{rows['asap']['ms'] / rows['softmax']['ms']:.2f}"]
        lines.append(line)
    s, made_on = record["settings"], record["machine"]
    count = {error: _wins(record, error) for error in ERRORS}
    told = "; ".join(
        f"within {error:.0%} " + ", ".join(f"{GROUPS[start][0]} in {wins}" for start, wins in found.items())
        for error, found in count.items()
    )
    return (
        f"{markdown_table(lines)}\nWho wins, of {len(record['cells'])} cells: {told}.\n\n"
        f"{s['heads']} heads of dimension {s['d']}, float32, layers of the benchmark (asap_ref/lab/competitors.py), "
        f"teacher T = {s['n_iter']}; sinkhorn-t is the teacher cut to t, over-relaxed-...-t has t such iterations and "
        f"a closing one. ASAP is calibrated on {TOKENS} tokens of other sequences of that sharpness, of that length up "
        f"to {LONGEST}. Errors are relative to the teacher's output, geometric means over heads; times are medians of "
        f"interleaved calls of a batch, while the machine had other work too: between attentions whose times are"
        f" near each other the winner is chance. {made_on['processor']}, NumPy {made_on['numpy']}.\n"
    )


def _wins(record, error):
    names = [group(winner(cell, error)) for cell in record["cells"]]
    return {start: names.count(start) for start in GROUPS if start in names}
