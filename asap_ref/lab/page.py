"""A folder of results explains itself: index.html, one page with tables and pictures in it, and what to do next.

The page needs nothing beside it: pictures are embedded, so it can be sent by itself.
"""

from __future__ import annotations

import base64
import html
import re
import webbrowser
from pathlib import Path

from asap_ref.support import files

PICTURES = {  # the end of a picture's name, and what it shows
    "two_plans": "A test input under softmax and ASAP: lines are attention, the size of a token is what it receives.",
    "plans": "A test input, and the plan of one head between its tokens: softmax beside Sinkhorn and ASAP.",
    "accuracy": "Accuracy against the number of points; nothing is trained again for more of them.",
    "dual": "The query dual on an input: the teacher's, and what ASAP predicts.",
    "fidelity": "Each head of the compiled model: how far its output is from the teacher's.",
    "matching": "A cloud and its moved copy, matched three ways: right lines blue, wrong ones orange.",
    "reproduce": "What each replacement costs, and how near it comes to the teacher.",
}
FILES = {  # in the order in which they are listed
    "index.html": "this page",
    "report.md": "its tables, to paste elsewhere",
    "report.json": "every number, with settings and machine",
    "fidelity.md": "how faithful each head is",
    "fidelity.npz": "the same for each sequence: asap_ref.FidelityReport.load",
    "*.checkpoint.npz": "where --resume goes on from",
    "*.npz": "models: asap_ref.load_model; of matching: asap_ref.model.matching.Matcher.load",
    "*.svg": "pictures, sharp at any size",
    "*.png": "the same, for slides",
}
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #8886; text-align: right; }
td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left; }
td { white-space: nowrap; } .files td { white-space: normal; }
tr.new td { border-top: 2px solid #8886; }
img { max-width: 100%; background: white; } figure { margin: 1.5rem 0; } figcaption { font-style: italic; }
pre { background: #8882; padding: .8rem; overflow-x: auto; }
"""


def write_page(out, *, title, next_steps):
    """Write ``out/index.html`` from what lies in the folder; return its path.

    Parameters
    ----------
    out : path
        A folder with report.md, and pictures and a fidelity.md if there are any.
    title : str
    next_steps : list of (str, str)
        What to do next: a sentence, and the line to type.
    """
    out = Path(out)
    report = (out / "report.md").read_text(encoding="utf-8")
    sentence, tables = re.fullmatch(r"((?!\|).+?\n\s*\n)?(.*)", report.strip(), re.DOTALL).groups("")
    sections = {  # what one sees at once comes first
        "Pictures": [_figure(picture) for picture in _pictures(out)],
        "Tables": [of_markdown(tables)],
    }
    if (out / "fidelity.md").exists():
        sections["Fidelity, head by head"] = [of_markdown((out / "fidelity.md").read_text(encoding="utf-8"))]
    sections["What to do next"] = [
        f"<p>{html.escape(told)}</p><pre>{html.escape(line)}</pre>" for told, line in next_steps
    ]
    sections["What is in this folder"] = [_listed(out)]
    parts = [f"<h1>{html.escape(title)}</h1>", of_markdown(sentence) if sentence else "", _contents(sections)]
    for name, blocks in sections.items():
        parts += [f'<h2 id="{_anchor(name)}">{name}</h2>', *blocks]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(parts)
    head += f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    page = f"<!doctype html>\n<html lang=en><head>{head}</head>\n<body>\n{body}\n</body></html>\n"
    files.save_text(out / "index.html", page)
    return out / "index.html"


def show(path):
    """Open a page in the browser; say so where there is none."""
    if not webbrowser.open(Path(path).resolve().as_uri()):
        print(f"no browser was found; open {path} in one")


def of_markdown(text):
    """HTML of what our reports hold: paragraphs, tables, lists, **bold** and `code`.

    Examples
    --------
    >>> print(of_markdown("**a < b**"))
    <p><b>a &lt; b</b></p>
    """
    return "\n".join(_block(block.splitlines()) for block in re.split(r"\n\s*\n", text.strip()))


def _contents(sections):
    """A line of links to the sections."""
    links = [f'<a href="#{_anchor(name)}">{name}</a>' for name in sections]
    return f"<p>{' · '.join(links)}</p>"


def _anchor(name):
    return re.sub(r"\W+", "-", name.lower())


def _block(lines):
    """One paragraph, list or table; a table ends where its bars do."""
    if lines[0].startswith("|"):
        rows = [line for line in lines if line.startswith("|")]
        cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (rows[0], *rows[2:])]
        head = f"<tr>{''.join(_cell(cell, 'th') for cell in cells[0])}</tr>"
        table = head + "".join(map(_row, cells[1:], cells))
        rest = lines[len(rows) :]
        return f'<div class="wide"><table>{table}</table></div>' + (f"\n{_block(rest)}" if rest else "")
    if all(line.startswith("- ") for line in lines):
        return f"<ul>{''.join(f'<li>{_inline(line[2:])}</li>' for line in lines)}</ul>"
    return f"<p>{_inline(' '.join(lines))}</p>"


def _row(cells, above):
    """A row; a line parts it from the one above where the first cell changes, as the number of tokens does."""
    new = ' class="new"' if cells[0] != above[0] else ""
    return f"<tr{new}>{''.join(_cell(cell, 'td') for cell in cells)}</tr>"


def _cell(text, tag):
    return f"<{tag}>{_inline(text)}</{tag}>"


def _inline(text):
    text = html.escape(text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)


def _pictures(out):
    """Pictures of the folder, in the order of PICTURES; what is not known there comes last."""
    order = [*PICTURES]
    found = {
        path: next((key for key in order if path.stem.endswith(key)), None) for path in sorted(out.glob("*.svg"))
    }
    return sorted(found.items(), key=lambda item: order.index(item[1]) if item[1] else len(order))


def _figure(picture):
    path, key = picture
    told = html.escape(PICTURES.get(key, path.stem))
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{told}" src="data:image/svg+xml;base64,{data}"><figcaption>{told}</figcaption></figure>'


def _listed(out):
    """Table of the files that are there."""
    names, rows = {"index.html"} | {path.name for path in out.iterdir() if path.is_file()}, []
    for pattern, told in FILES.items():
        found = sorted(name for name in names if Path(name).match(pattern))
        names -= set(found)
        rows += [f"<tr><td>{html.escape(', '.join(found))}</td><td>{html.escape(told)}</td></tr>"] if found else []
    return f'<div class="wide files"><table>{"".join(rows)}</table></div>'
