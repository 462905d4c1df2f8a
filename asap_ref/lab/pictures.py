"""Pictures of what attention does between points: a plan or a match as lines, a dual as colour.

Each function takes your own arrays and draws on the axis it is given, or on a new figure, which it returns; `show`
puts a figure into a notebook, with a text for those who do not see it. Colours say what a thing is, and are the same
everywhere: queries are black dots, keys purple squares, a mechanism has its colour of `presentation.COLOURS`.
(Pictures of how the method works, its slices, its hill and its pipeline, are in diagrams.py; of error against time in
time_pictures.py.)

Shapes: points (n, 2), as (x, y) with y upwards; plans (n, m); query duals (n).
"""

from __future__ import annotations

import io

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from asap_ref.model.partners import partners_of
from asap_ref.support import presentation

COLOURS = presentation.COLOURS
RETINA = 2  # pixels of the picture for one on the page


# ------------------------------------------------------------------------------------------------- in a notebook


def show(picture, alt):
    """Show a figure in a notebook as a sharp PNG with alternative text, which a notebook nobody trusts shows as well.

    Parameters
    ----------
    picture : matplotlib Figure, or list of PIL images
        A list, as `diagrams.turning_slice` returns, is an animation: an animated PNG, which plays in a static page.
    alt : str
        What the picture shows, for those who do not see it: the alternative text of the image in HTML, and what
        stands in its place where there are no images.

    Notes
    -----
    The text goes into the metadata of the output (``{"image/png": {"alt": ...}}``) and into its text/plain; for the
    pages of the documentation, tutorials/execute.py copies it to where MyST-NB looks. (HTML with an embedded picture
    could carry it everywhere, but JupyterLab shows no such picture in an untrusted notebook.) JupyterLab 4.6 and
    nbconvert 7.17 have no place for the text of a PNG; nbconvert's template "classic" has. The background is white on
    dark pages as well: all colours are chosen for it.
    """
    from IPython.display import display

    if not alt.strip():
        raise ValueError("alt is empty: say in a sentence what the picture shows")
    frames = picture if isinstance(picture, list) else [as_image(picture)]
    buffer = io.BytesIO()
    animated = (
        {"save_all": True, "append_images": frames[1:], "duration": 130, "loop": 0} if len(frames) > 1 else {}
    )
    frames[0].save(buffer, format="PNG", optimize=True, **animated)
    width, height = (round(length / frames[0].info["sharpness"]) for length in frames[0].size)
    display(
        {"image/png": buffer.getvalue(), "text/plain": alt},
        metadata={"image/png": {"alt": alt, "width": width, "height": height}},
        raw=True,
    )


def as_image(fig, *, sharpness=RETINA, palette=None):
    """Turn a figure into a PIL image of 128 colours, or a given image's; ``sharpness`` pixels for one on the page."""
    from PIL import Image  # comes with matplotlib

    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=100 * sharpness, facecolor="white")
    colours = Image.open(buffer).convert("RGB")
    image = colours.quantize(128, palette=palette, dither=Image.Dither.NONE)
    image.info = {"sharpness": sharpness}
    return image


def axis_and_figure(axis, figsize):
    """The axis to draw on, and its figure; a new one if there is none."""
    return (axis, axis.figure) if axis is not None else presentation.subplots(figsize=figsize)[::-1]


# ------------------------------------------------------------------------------------------------------- plans


def plot_plan(P, queries, keys=None, *, axis=None, title="", colour="sinkhorn", apart=None, threshold=0.02):
    """Draw a plan as lines between two clouds, or within one: width is mass, and a key's size is its column sum.

    Parameters
    ----------
    P : array (n, m)
    queries, keys : arrays (n, 2) and (m, 2)
        Without keys the plan is within one cloud.
    colour : str
        A mechanism of `presentation.COLOURS`.
    apart : float, optional
        How far the keys are moved to the right; by default just so far that the clouds do not overlap.
    threshold : float
        Entries below it are not drawn.

    Examples
    --------
    >>> fig = plot_plan(np.eye(3), np.zeros((3, 2)), np.ones((3, 2)), title="one to one")
    """
    axis, fig = axis_and_figure(axis, (5.0, 3.6))
    P, queries, keys = np.asarray(P, np.float64), *placed(queries, keys, apart)
    _lines(axis, P, queries, keys, colour, threshold)
    if keys is not queries:
        axis.scatter(*queries.T, s=16, color=COLOURS["query"], zorder=3, label="queries")
    _keys(axis, keys, P.sum(0) * P.shape[1] / max(P.sum(), 1e-12))
    bare(axis, title)
    return fig


def placed(queries, keys=None, apart=None):
    """Two clouds side by side, the keys moved to the right by ``apart``, or just far enough; one cloud is both."""
    queries = np.asarray(queries, np.float64)
    if keys is None:
        return queries, queries
    keys = np.asarray(keys, np.float64)
    if apart is None:
        apart = queries[:, 0].max() - keys[:, 0].min() + 0.5
    return queries, keys + np.array([apart, 0.0])


def _lines(axis, P, queries, keys, colour, threshold=0.02):
    i, j = np.nonzero(threshold < P)
    colours = np.empty((len(i), 4))
    colours[:] = to_rgba(COLOURS[colour])
    colours[:, 3] = np.clip(0.25 + P[i, j], 0.25, 0.9)
    ends = np.stack([queries[i], keys[j]], axis=1)
    axis.add_collection(LineCollection(ends, colors=colours, linewidths=3.5 * P[i, j] ** 0.75))


def _keys(axis, keys, share):
    """Keys as squares whose area is the share of the mass that they receive, 1 being what is fair."""
    axis.scatter(*keys.T, s=3 + 34 * share, marker="s", color=COLOURS["key"], alpha=0.85, linewidths=0, zorder=2)


def bare(axis, title=""):
    """Make an axis of a place where points lie, with nothing to read off its sides."""
    axis.set_title(title, fontsize=10)
    axis.set_aspect("equal")
    axis.set_axis_off()
    axis.margins(0.06)


def plot_plans(plans, queries, keys=None, *, teacher=None, apart=None, figsize=None):
    """Draw plans in a row on the same points, their column sums above on one scale, the distance to a teacher below.

    Parameters
    ----------
    plans : dict of str -> array (n, m)
        By title; its colour is the mechanism that the title begins with, in any case of letters.
    teacher : str, optional
        One of the titles: in a third row each other plan's difference to it, orange where there is too much mass, blue
        where too little.

    Examples
    --------
    >>> points = np.random.default_rng(0).standard_normal((5, 2))
    >>> fig = plot_plans({"softmax": np.full((5, 5), 0.2), "Sinkhorn": np.eye(5)}, points, teacher="Sinkhorn")
    """
    rows = 2 if teacher is None else 3
    width = min(3.3, 8.6 / len(plans))
    figsize = figsize or (width * len(plans) + 0.4, 1.0 + (0.5 + 0.65 * width) * (rows - 1))
    heights = [0.42, 1, 1][:rows]
    fig, axes = presentation.subplots(rows, len(plans), figsize=figsize, squeeze=False, height_ratios=heights)
    sums = {title: np.asarray(P).sum(0) for title, P in plans.items()}
    top = 1.08 * max(column.max() for column in sums.values())
    for column, (title, P) in enumerate(plans.items()):
        colour = mechanism_colour(title)
        bars, cloud, *rest = axes[:, column]
        bars.bar(np.arange(len(sums[title])), sums[title], color=COLOURS[colour], width=0.8)
        bars.axhline(np.sum(P) / np.shape(P)[1], color="black", lw=0.9, ls="--")
        bars.set(ylim=(0, top), xticks=[])
        bars.set_title(title, fontsize=10.5)
        bars.set_ylabel("" if column else "column\nsums", fontsize=9)
        bars.tick_params(labelsize=8, labelleft=not column)
        plot_plan(P, queries, keys, axis=cloud, colour=colour, apart=apart)
        if rest:
            D = np.asarray(P) - np.asarray(plans[teacher])
            _plot_difference(D, queries, keys, rest[0], title == teacher, apart)
    return fig


def _plot_difference(D, queries, keys, axis, is_teacher, apart):
    if is_teacher:
        axis.text(0.5, 0.7, "this is\nthe teacher", ha="center", va="center", transform=axis.transAxes, fontsize=9)
        for name, text in (("warm", "too much"), ("light", "too little")):
            axis.plot([], [], color=COLOURS[name], label=text)
        axis.legend(loc="center", bbox_to_anchor=(0.5, 0.3), fontsize=9)
        axis.set_axis_off()
        return
    queries, keys = placed(queries, keys, apart)
    _lines(axis, D, queries, keys, "warm")
    _lines(axis, -D, queries, keys, "light")
    axis.scatter(*queries.T, s=8, color=COLOURS["query"], zorder=3)
    _keys(axis, keys, np.full(len(keys), 0.2))
    bare(axis, f"off by {np.abs(D).sum():.1f} in all")


def mechanism_colour(title):
    """The colour that a title asks for: that of the mechanism whose name it begins with.

    >>> mechanism_colour("Sinkhorn, T = 1"), mechanism_colour("teacher"), mechanism_colour("mine")
    ('sinkhorn', 'sinkhorn', 'other')
    """
    first = title.lower().replace("teacher", "sinkhorn")
    return next((name for name in ("softmax", "sinkhorn", "asap", "sliced") if first.startswith(name)), "other")


def plot_dual(duals, points, *, difference=None, label="f, centred", figsize=None):
    """Draw a cloud coloured by its dual, centred; several beside each other on one scale, and their difference.

    Parameters
    ----------
    duals : dict of str -> array (n), or array (n)
        By title.
    difference : tuple of str, optional
        Two titles: a last picture shows the first less the second, on the same scale.
    label : str
        What the scale of colours says.

    Examples
    --------
    >>> points = np.random.default_rng(0).standard_normal((5, 2))
    >>> duals = {"teacher": points[:, 0], "predicted": points[:, 0] + 0.1}
    >>> fig = plot_dual(duals, points, difference=("predicted", "teacher"))
    """
    duals = duals if isinstance(duals, dict) else {"query dual f": duals}
    duals = {title: np.asarray(dual) - np.mean(dual) for title, dual in duals.items()}
    if difference:
        duals["difference"] = duals[difference[0]] - duals[difference[1]]
    reach = max(np.abs(dual).max() for dual in duals.values())
    fig, axes = presentation.subplots(
        1, len(duals), figsize=figsize or (2.7 * len(duals) + 0.9, 2.9), squeeze=False
    )
    for axis, (title, dual) in zip(axes[0], duals.items(), strict=True):
        shown = axis.scatter(
            *np.asarray(points).T, c=dual, vmin=-reach, vmax=reach, s=42, cmap=presentation.SEQUENTIAL
        )
        bare(axis, title)
    fig.colorbar(shown, ax=axes[0], label=label)
    return fig


# ------------------------------------------------------------------------------------------------------ matches


def plot_matches(matches, first, second, partners=None, *, axes=None, apart=None, figsize=None):
    """Draw in a row what each attention matches two clouds by: a line from each point to the one that it names.

    A point that nobody names is a hollow square; one that several name is a larger one. Under each title stands how
    many different points are named, and how many matches are right where that is known.

    Parameters
    ----------
    matches : dict of str -> plan (n, m), or integer array (n)
        By title. A plan, whose rows sum to one or have the rest in bins that are left out, names the largest entry of
        each row, if that is larger than the rest; -1 names none.
    first, second : arrays (n, 2) and (m, 2)
    partners : integer array (n), optional
        The true ones, negative where there is none: right matches are drawn blue, wrong ones orange and on top.
    axes : list of matplotlib axes, optional
        One for each of the matches, to draw on.
    apart : float, optional
        How far the second cloud is moved to the right, as in `plot_plan`.

    Examples
    --------
    >>> points = np.random.default_rng(0).standard_normal((3, 2))
    >>> fig = plot_matches({"softmax": [0, 0, 2], "Sinkhorn": np.eye(3)}, points, points, partners=[0, 1, 2])
    >>> print(fig.axes[0].get_title())
    softmax
    2 of 3 right, 2 named
    """
    if axes is None:
        figsize = figsize or (3.4 * len(matches) + 0.2, 2.7)
        axes = presentation.subplots(1, len(matches), figsize=figsize, squeeze=False)[1][0]
    first, second = placed(first, second, apart)
    partners = None if partners is None else np.asarray(partners)
    for axis, (title, found) in zip(axes, matches.items(), strict=True):
        _plot_match(axis, title, _named_by(found, (len(first), len(second))), first, second, partners)
    return axes[0].figure


def _named_by(found, shape):
    """Integers as they are, a plan's rows by their largest entry: (n,)."""
    found = np.asarray(found)
    if found.shape not in (shape, shape[:1]):
        raise ValueError(
            f"plot_matches: a plan must be {shape}, without bins, or {shape[:1]} integers, got {found.shape}"
        )
    return found if found.ndim == 1 else partners_of(found[None])[0]


def _plot_match(axis, title, named, first, second, partners):
    i = np.nonzero(named >= 0)[0]
    right = np.ones(len(i), bool) if partners is None else named[i] == partners[i]
    for kind, colour, width in ((right, "sinkhorn", 0.9), (~right, "warm", 1.5)):
        ends = np.stack([first[i[kind]], second[named[i[kind]]]], axis=1)
        axis.add_collection(LineCollection(ends, colors=COLOURS[colour], linewidths=width, alpha=0.85))
    axis.scatter(*first.T, s=9, color=COLOURS["query"], zorder=3)
    times = np.bincount(named[i], minlength=len(second))  # how often each of the second is named
    once = times > 0
    axis.scatter(*second[once].T, s=12 * times[once], marker="s", color=COLOURS["key"], zorder=3, linewidths=0)
    axis.scatter(*second[~once].T, s=14, marker="s", facecolor="white", edgecolor=COLOURS["key"], zorder=3, lw=0.9)
    counted = f"{once.sum()} named"
    if partners is not None:
        counted = f"{np.sum(named == partners)} of {len(partners)} right, {counted}"
    bare(axis, f"{title}\n{counted}")
