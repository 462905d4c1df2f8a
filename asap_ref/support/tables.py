"""Tables in Markdown, as reports and figures write them."""


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
