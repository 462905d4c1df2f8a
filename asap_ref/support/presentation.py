"""How results are shown: one palette and one look for every figure, and source code inside notebooks.

The colours are those of Okabe & Ito, which people with any colour vision can tell apart. A mechanism has the same
colour everywhere: softmax is grey, Sinkhorn blue, ASAP vermilion; so have queries (black)
and keys (purple, from Paul Tol's scheme, since all of theirs are taken).
"""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from asap_ref.support import files
from asap_ref.support.held import Held

COLOURS = {
    "softmax": "#999999",
    "sinkhorn": "#0072B2",
    "asap": "#D55E00",
    "sliced": "#009E73",
    "other": "#CC79A7",
    "light": "#56B4E9",
    "warm": "#E69F00",
    "black": "#000000",
    "query": "#000000",
    "key": "#AA4499",
}
MARKERS = {"softmax": "s", "sinkhorn": "o", "asap": "*", "sliced": "^", "other": "D"}
SEQUENTIAL = "cividis"  # for heat maps: even in lightness, the same to all eyes

LOOK = {
    "figure.figsize": (8.0, 3.6),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
    "savefig.facecolor": "white",
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=[COLOURS[k] for k in ("sinkhorn", "asap", "sliced", "warm", "other")]),
    "grid.alpha": 0.3,
    "image.cmap": SEQUENTIAL,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "asap_ref",  # the same figure gives the same file
}

in_common_look = Held(lambda: mpl.rc_context(LOOK))


def use():
    """Give this notebook (or script) the common look; in a notebook figures become sharp PNG."""
    mpl.rcParams.update(LOOK)
    try:
        from IPython import get_ipython
    except ImportError:
        return
    if get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina", metadata={"Software": None})


def subplots(*args, figsize=LOOK["figure.figsize"], **kwargs):
    """Start a figure in the common look, away from any window system: (Figure, axes), as pyplot's subplots.

    Examples
    --------
    >>> fig, axis = subplots()
    >>> lines = axis.plot([1, 2], color=COLOURS["asap"])
    """
    with in_common_look:
        fig = Figure(figsize=figsize)
        return fig, fig.subplots(*args, **kwargs)


def save(fig, stem):
    """Write a figure as ``stem.svg`` and ``stem.png``, atomically, and return the two paths.

    Raises
    ------
    ValueError
        If an axis that shows numbers has no label.
    """
    for axes in fig.axes:
        for axis in (axes.xaxis, axes.yaxis):
            shown = axis.get_visible() and axes.axison and any(t.get_visible() for t in axis.get_ticklabels())
            if shown and not axis.get_label_text() and not getattr(fig, "_supylabel", None):
                raise ValueError(f"{Path(stem).name}: an axis shows numbers but has no label")
    written = []
    for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        with in_common_look:
            fig.savefig(buffer, format=suffix, metadata=metadata)
        path, data = Path(f"{stem}.{suffix}"), buffer.getvalue()
        files.write_atomically(path, lambda file, data=data: file.write(data))
        written.append(path)
    return written


def source(*functions):
    """Show the source of functions in a notebook, decorators and docstrings left out.

    Examples
    --------
    >>> from asap_ref import attention_scores
    >>> print(source(attention_scores).text)
    def attention_scores(q: "... n d", k: "... m d"):
        return (q / math.sqrt(q.shape[-1])) @ transpose(k)
    """
    return Source("\n\n".join(_without_docstring(inspect.unwrap(f)) for f in functions))


@dataclass(frozen=True)
class Source:
    """Python source that a notebook shows; as HTML too, since exported Markdown loses the fixed pitch.

    Colours are left to the page: they must be legible on light and dark grounds, and only the page knows its own.
    """

    text: str = field(repr=False)

    def _repr_markdown_(self):
        return f"```python\n{self.text}\n```"

    def _repr_html_(self):
        from pygments import highlight  # comes with IPython
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer

        return highlight(self.text, PythonLexer(), HtmlFormatter(prestyles="font-family: monospace"))


def _without_docstring(function):
    text = textwrap.dedent(inspect.getsource(function))
    lines = text.splitlines()
    node = ast.parse(text).body[0]
    if ast.get_docstring(node) is not None:
        first = node.body[0]
        del lines[first.lineno - 1 : first.end_lineno]
    return "\n".join(lines[node.lineno - 1 :])
