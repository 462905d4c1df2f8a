"""Tables in Markdown, as reports and figures write them, and in HTML, as notebooks show them."""

from __future__ import annotations

import html


def markdown_table(rows):
    """Write rows of cells, the first of which is the head.

    Examples
    --------
    >>> print(markdown_table([["tokens", "ms"], [64, "0.4"]]), end="")
    | tokens | ms |
    | --- | --- |
    | 64 | 0.4 |
    """
    head, *rest = ([str(cell) for cell in row] for row in rows)
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rest))


def html_table(rows, caption):
    """Write rows of cells, the first of which is the head, under a caption.

    Examples
    --------
    >>> print(html_table([["head", "R²"], [0, "0.9"]], "two < three"))
    <table><caption>two &lt; three</caption><tr><th>head</th><th>R²</th></tr><tr><td>0</td><td>0.9</td></tr></table>
    """

    def line(cells, tag):
        return f"<tr>{''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in cells)}</tr>"

    head, *rest = rows
    body = line(head, "th") + "".join(line(row, "td") for row in rest)
    return f"<table><caption>{html.escape(caption)}</caption>{body}</table>"
