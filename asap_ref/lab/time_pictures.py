"""Pictures of who is the cheapest: error against time, at one length or several, and a map of who wins where.

An entry has a kind, as "Sinkhorn" or "over-relaxed in tiles", whose colour is that of its mechanism; where lengths
are several, and on the map, it has a label as well, as "3" or "2+1".
"""

from __future__ import annotations

import numpy as np
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from asap_ref.lab.pictures import COLOURS, axis_and_figure, mechanism_colour
from asap_ref.support import presentation

PALE = 0.45  # opacity of a field that is nearly a tie


def plot_front(curves, *, axis=None, title="", unit="ms", figsize=(5.2, 3.8)):
    """Draw error against time on logarithmic axes: what is lower and further left is better.

    Parameters
    ----------
    curves : dict of str -> list of (time, error, label)
        By name, whose colour is that of its mechanism; one point is drawn as a star, several as a line. An empty
        label is left out.

    Examples
    --------
    >>> fig = plot_front({"Sinkhorn": [(1.0, 0.5, "T = 1"), (2.0, 0.2, "T = 2")], "ASAP": [(1.0, 0.05, "")]})
    """
    axis, fig = axis_and_figure(axis, figsize)
    for name, points in curves.items():
        time, error = [p[0] for p in points], [p[1] for p in points]
        style = {"marker": "*", "ms": 15, "ls": ""} if len(points) == 1 else {"marker": "o", "ms": 5}
        axis.plot(time, error, color=COLOURS[mechanism_colour(name)], label=name, **style)
        for t, e, label in points:
            axis.annotate(label, (t, e), xytext=(7, 3), textcoords="offset points", fontsize=8.5)
    axis.set(xscale="log", yscale="log", xlabel=f"time ({unit})", ylabel="error (relative)", title=title)
    axis.margins(x=0.2, y=0.12)
    _few_times(axis.xaxis)
    axis.legend(fontsize=9)
    return fig


def _few_times(xaxis):
    """Label a logarithmic axis by few plain numbers, whatever it spans: 1, 10, 100; or 1, 2, 5, 10; or 2, 4."""
    low, high = sorted(xaxis.get_view_interval())
    if high / low < 7:  # too short to be sure of two of 1, 2, 5
        xaxis.set_major_locator(MaxNLocator(3))
    else:
        xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 50 else (1,)))
    xaxis.set_major_formatter("{x:g}")
    xaxis.set_minor_formatter(NullFormatter())


def plot_fronts(fronts, *, figsize=(9.4, 3.6)):
    """Draw error against time for several lengths, a panel each, with one key below.

    Kinds "in tiles" are dotted, and their labels, those of the solid lines, are left out.

    Parameters
    ----------
    fronts : dict of int -> dict of (kind, label) -> (milliseconds, error)
        By length. Points of one kind make a line, in the order of the dict.

    Examples
    --------
    >>> entries = {("Sinkhorn", "1"): (1.0, 0.2), ("Sinkhorn", "3"): (2.0, 0.05), ("ASAP", ""): (1.0, 0.02)}
    >>> fig = plot_fronts({64: entries, 1024: entries})
    """
    fig, axes = presentation.subplots(1, len(fronts), figsize=figsize, sharey=True, squeeze=False)
    for axis, (n, entries) in zip(axes[0], fronts.items(), strict=True):
        curves = {}
        for (kind, label), (ms, error) in entries.items():
            curves.setdefault(kind, []).append((ms, error, ""))
            if "in tiles" not in kind:  # those have the same labels, from the top
                left = kind.startswith("over-relaxed")
                where = {"xytext": (-5, -5) if left else (5, 3), "ha": "right" if left else "left"}
                where |= {"textcoords": "offset points", "fontsize": 7.5, "zorder": 4}
                axis.annotate(label, (ms, error), color=COLOURS[mechanism_colour(kind)], **where)
        plot_front(curves, axis=axis, title=f"{n:,} points")
        axis.get_legend().remove()
        axis.set(ylabel="" if axis is not axes[0, 0] else "error (relative)")
        for line in axis.lines:
            line.set_linestyle(":" if "in tiles" in line.get_label() else line.get_linestyle())
    keys = dict(zip(*axes[0, -1].get_legend_handles_labels()[::-1], strict=True))
    fig.legend(keys.values(), keys, loc="outside lower center", ncols=6, fontsize=8)
    return fig


def plot_cheapest(won, ties=(), *, xlabel="", ylabel="", figsize=(6.4, 4.0)):
    """Draw a map of who is the cheapest where: a field for each pair of settings, in the colour of who wins it.

    Parameters
    ----------
    won : dict of (x, y) -> (kind, label) or None
        Who wins a field, and what is written there; None where nobody does.
    ties : collection of (x, y)
        Fields that are nearly a tie, drawn pale.

    Examples
    --------
    >>> won = {(1, 64): ("Sinkhorn", "3"), (2, 64): ("ASAP", "A"), (1, 128): None, (2, 128): ("ASAP", "A+1")}
    >>> fig = plot_cheapest(won, ties={(2, 64)}, xlabel="sharpness", ylabel="points")
    """
    columns, rows = (list(dict.fromkeys(field[i] for field in won)) for i in (0, 1))
    fig, axis = presentation.subplots(figsize=figsize)
    keys = {}
    for field, winner in won.items():
        kind, label = winner or ("none", "none")
        kind = kind.removesuffix(" in tiles")
        colour = COLOURS["black" if winner is None else mechanism_colour(kind)]
        x, y = columns.index(field[0]), rows.index(field[1])
        pale = field in ties
        axis.add_patch(Rectangle((x, y), 0.96, 0.96, color=colour, alpha=PALE if pale else 1, lw=0))
        style = {"ha": "center", "va": "center", "weight": "bold", "color": "black" if pale else "white"}
        axis.text(x + 0.48, y + 0.48, label, **style)
        keys[kind] = Patch(color=colour, lw=0)
    if ties:
        keys["pale: nearly a tie"] = Patch(color=COLOURS["black"], alpha=PALE / 2, lw=0)
    axis.set(xlim=(0, len(columns)), ylim=(0, len(rows)), xlabel=xlabel, ylabel=ylabel)
    axis.set_xticks(np.arange(len(columns)) + 0.48, columns)
    axis.set_yticks(np.arange(len(rows)) + 0.48, rows)
    axis.grid(False)
    fig.legend(keys.values(), keys, loc="outside lower center", ncols=len(keys), fontsize=8)
    return fig
