"""Diagrams of how the method works: a slice and what is read off it, the hill of the dual, the way from tokens to plan.

As in pictures.py, each takes your own arrays and returns a figure (or draws on the axis it is given), and a colour has
one meaning: what belongs to a slice is green.

Shapes: points (n, 2), as (x, y); scores of two queries and two keys (2, 2).
"""

from __future__ import annotations

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from asap_ref.lab.pictures import COLOURS, as_image, axis_and_figure
from asap_ref.method.potentials import kantorovich_potentials_1d
from asap_ref.support import presentation

STAGES = {  # of the pipeline: what is written in its box
    "tokens": "tokens\nq, k",
    "slices": "slices\nθ·q, θ·k",
    "sort": "sort",
    "potential": "potentials\nφ",
    "weights": "weights\nw",
    "dual": "query dual\nf̂ = Φᵀw",
    "transforms": "c-transforms\nf̂ → g → f",
    "plan": "plan\nP",
}

# ------------------------------------------------------------------------------------------------------ slices


def plot_slice(queries, keys, angle, *, figsize=(9.0, 3.2)):
    """Draw one slice of two clouds of as many points: the projections, the sorted matching, and the area that is phi.

    Examples
    --------
    >>> points = np.random.default_rng(0).standard_normal((5, 2))
    >>> fig = plot_slice(points, points + 1, 30)
    """
    queries, keys = np.asarray(queries, np.float64), np.asarray(keys, np.float64)
    theta = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    x, y = np.sort(queries @ theta), np.sort(keys @ theta)
    phi, _ = kantorovich_potentials_1d(x, y)
    fig, (plane, line, area) = presentation.subplots(1, 3, figsize=figsize, width_ratios=[1, 1, 1.15])
    reach = 1.12 * max(np.linalg.norm(queries, axis=1).max(), np.linalg.norm(keys, axis=1).max())
    for points, colour, marker in ((keys, "key", "s"), (queries, "query", "o")):
        feet = (points @ theta)[:, None] * theta
        plane.add_collection(
            LineCollection(np.stack([points, feet], axis=1), colors=COLOURS[colour], lw=0.5, alpha=0.5)
        )
        plane.scatter(*points.T, s=14, color=COLOURS[colour], marker=marker, zorder=3)
    plane.plot(*np.outer(theta, [-reach, reach]), color=COLOURS["sliced"], lw=2.2)
    plane.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    plane.set_title(f"the slice at {angle:.0f}°", fontsize=10)
    plane.grid(False)
    matched = np.stack([np.stack([x, np.ones_like(x)], -1), np.stack([y, np.zeros_like(y)], -1)], axis=1)
    line.add_collection(LineCollection(matched, colors=COLOURS["sliced"], lw=1.0))
    line.scatter(x, np.ones_like(x), s=14, color=COLOURS["query"], zorder=3)
    line.scatter(y, np.zeros_like(y), s=14, color=COLOURS["key"], marker="s", zorder=3)
    line.set(xlim=(-reach, reach), ylim=(-0.35, 1.35), yticks=[0, 1], yticklabels=["keys", "queries"])
    line.set_xlabel("place on the slice")
    line.set_title("sorted, and matched in order", fontsize=10)
    area.plot(x, y, "-", color=COLOURS["key"], lw=1.2)
    area.fill_between(x, y, color=COLOURS["key"], alpha=0.25, label="key y of query x")
    area.plot(x, phi, "o-", ms=3, color=COLOURS["sliced"], label="φ: minus the area so far")
    area.axhline(0, color="black", lw=0.7)
    area.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="query x on the slice")
    area.legend(fontsize=8.5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return fig


def turning_slice(queries, keys, *, n_frames=18):
    """Draw a slice that turns through half a circle: a list of images, which `show` plays as an animation.

    Examples
    --------
    >>> points = np.random.default_rng(0).standard_normal((5, 2))
    >>> len(turning_slice(points, points + 1, n_frames=3))
    3
    """
    frames = []
    for angle in np.linspace(0, 180, n_frames, endpoint=False):
        fig = plot_slice(queries, keys, angle, figsize=(7.6, 2.8))
        frames.append(as_image(fig, sharpness=1.25, palette=frames[0] if frames else None))
    return frames


# ------------------------------------------------------------------------------------------------------ the hill


def plot_hill(S, *, epsilon=1.0, n_iter=10, start=None, axis=None, reach=None):
    """Draw the hill of the dual for two queries and two keys, and how Sinkhorn climbs it from softmax.

    Only differences of a dual count, so two tokens a side leave two numbers: f_1 - f_2 and g_1 - g_2. Half steps go
    along one axis at a time, each to the highest point on its line: a zigzag.

    Parameters
    ----------
    S : array (2, 2)
    start : float, optional
        A predicted f_1 - f_2: drawn as a star, where one update of g puts it.
    axis : matplotlib axis, optional
        On a new figure the legend stands below the hill; on yours none is drawn.

    Examples
    --------
    >>> fig = plot_hill(np.array([[2.0, 1.0], [1.5, -1.0]]), epsilon=0.5)
    """
    alone = axis is None
    axis, fig = axis_and_figure(axis, (4.6, 4.4))
    S = np.asarray(S, np.float64)

    def height(u, v):  # the dual objective, the free constant chosen for the best: -2 eps log of the mean mass
        f, g = np.stack([u, -u]) / 2, np.stack([v, -v]) / 2
        z = (f[:, None] + g[None, :] + S.reshape(2, 2, *[1] * np.ndim(u))) / epsilon
        return -2 * epsilon * np.logaddexp.reduce(z.reshape(4, *np.shape(u)), axis=0)

    def update(S, u):  # half a step of Sinkhorn: the best difference of one side, given that of the other
        first, second = epsilon * np.logaddexp(*((S + np.array([[u], [-u]]) / 2) / epsilon))
        return second - first

    path = [(update(S.T, 0.0), 0.0)]  # softmax: (u, v) is (f_1 - f_2, g_1 - g_2)
    for _ in range(n_iter):
        v = update(S, path[-1][0])
        path += [(path[-1][0], v), (update(S.T, v), v)]
    half = (S[0, 0] + S[1, 1] - S[0, 1] - S[1, 0]) / 2  # P is [[p, 1 - p], [1 - p, p]], log p/(1 - p) = half/eps
    top = (half - S[0, 0] + S[1, 0], half - S[0, 0] + S[0, 1])  # so says P_11 / P_21, and P_11 / P_12
    predicted = [] if start is None else [(start, update(S, start))]
    path, seen = np.array(path), np.array([*path, top, *predicted])
    middle = (seen.max(0) + seen.min(0)) / 2
    reach = reach or max(0.8 * np.ptp(seen, axis=0).max(), 0.5)
    U, V = np.meshgrid(*(centre + np.linspace(-reach, reach, 121) for centre in middle))
    axis.set(xlim=U[0, [0, -1]], ylim=V[[0, -1], 0])
    H, highest = height(U, V), height(*map(np.asarray, top))
    levels = highest - (highest - H.min()) * np.linspace(1, 0, 15)[:-1] ** 2  # closer together near the top
    axis.contour(U, V, H, levels=levels, cmap=presentation.SEQUENTIAL, linewidths=0.9)
    axis.plot(*path.T, "-", color=COLOURS["sinkhorn"], lw=1.6)
    axis.plot(*path[1:].T, "o", ms=3, color=COLOURS["sinkhorn"], label="Sinkhorn's half steps")
    axis.plot(*path[0], "s", color=COLOURS["softmax"], label="softmax", zorder=4)
    if predicted:
        star = {"marker": "*", "ms": 15, "mew": 1.4, "ls": "", "mfc": "none"}  # hollow: the top may lie under it
        axis.plot(*predicted[0], color=COLOURS["asap"], label="from a predicted f", zorder=5, **star)
    axis.plot(*top, "+", ms=8, mew=1.6, color=COLOURS["black"], label="the top", zorder=6)
    axis.set(xlabel="f₁ − f₂", ylabel="g₁ − g₂", title=f"ε = {epsilon:g}")
    axis.xaxis.set_major_locator(MaxNLocator(5))
    if alone:
        fig.legend(fontsize=8.5, loc="outside lower center", ncols=2)
    return fig


def plot_pipeline(stage=()):
    """Draw the strip that opens every notebook: the way from tokens to plan, what this notebook is about lit.

    An arrow above takes the scores straight from the tokens to the c-transforms, which need them beside the dual.

    Parameters
    ----------
    stage : str or tuple of str
        Of ``STAGES``, or "loop": Sinkhorn's loop below, which the way above replaces.

    Examples
    --------
    >>> fig = plot_pipeline("sort")
    >>> plot_pipeline("sorting")
    Traceback (most recent call last):
    ...
    ValueError: 'sorting' is no stage: tokens, slices, sort, potential, weights, dual, transforms, plan, loop
    """
    lit = (stage,) if isinstance(stage, str) else tuple(stage)
    for name in lit:
        if name not in STAGES and name != "loop":
            raise ValueError(f"{name!r} is no stage: {', '.join(STAGES)}, loop")
    fig, axis = presentation.subplots(figsize=(9.0, 2.1))
    for place, (name, text) in enumerate(STAGES.items()):
        _box(axis, place, 0.0, text, name in lit)
        if place:
            _arrow(axis, (place - 0.57, 0.0), (place - 0.43, 0.0))
    last, rebuilt = len(STAGES) - 1, list(STAGES).index("transforms")
    _arrow(axis, (0, 0.28), (rebuilt, 0.28), bend=-0.06)  # the plan is not made of f̂ alone
    label = {"ha": "center", "va": "center", "fontsize": 9.5, "zorder": 5}
    axis.text(rebuilt / 2, 0.5, "scores S", bbox={"fc": "white", "ec": "none", "pad": 3}, **label)
    _arrow(axis, (0, -0.28), (last / 2 - 1.47, -1.0), bend=0.12)
    _arrow(axis, (last / 2 + 1.47, -1.0), (last, -0.28), bend=0.12)
    _box(axis, last / 2, -1.0, "Sinkhorn's loop, T times:  f → g → f → …", "loop" in lit, half=1.45)
    if "loop" not in lit:
        for slope in (-0.2, 0.2):
            axis.plot(
                [last / 2 - 1.4, last / 2 + 1.4], [-1.0 - slope, -1.0 + slope], color=COLOURS["asap"], lw=1.5
            )
    axis.set(xlim=(-0.5, last + 0.5), ylim=(-1.35, 0.75))
    axis.set_axis_off()
    return fig


def _box(axis, x, y, text, lit, half=0.40):
    colour = COLOURS["warm"] if lit else "#F2F2F2"
    box = FancyBboxPatch(
        (x - half, y - 0.24), 2 * half, 0.48, boxstyle="round,pad=0.02", fc=colour, ec="#555555", lw=0.9
    )
    axis.add_patch(box)
    style = {"weight": "bold", "fontsize": 8.3} if lit else {"fontsize": 9.5}  # bold is wider
    axis.text(x, y, text, ha="center", va="center", zorder=5, **style)


def _arrow(axis, start, end, bend=0.0):
    style = f"arc3,rad={bend}"
    axis.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color="#555555", connectionstyle=style)
    )
