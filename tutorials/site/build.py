"""Build the documentation site, without a network: python tutorials/site/build.py [--out FOLDER] [--open].

Needs the extra: pip install -e '.[docs]'. Pages are staged in a folder laid out as the repository, so that their
relative links hold in both; the pages of the API and of the figures are written from docstrings and records. Then
Sphinx runs, warnings being errors.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shutil
import sys
import webbrowser
from pathlib import Path

from reading_order import GROUPS

import asap_ref as ar
from asap_ref.lab import gallery
from asap_ref.lab.gallery import FIGURES, ROOT
from asap_ref.lab.page import PICTURES

SITE = Path(__file__).resolve().parent
EXPLAIN = {
    "notation": "One notation",
    "deviations": "Deviations and derivations",
    "what_did_not_work": "What did not work",
    "errors": "Errors met in practice",
}
ORACLE = "asap_ref/oracle"
LINK = re.compile(
    r"(\]\()(?!\w+:|#)([^)#\s]+)((?:#[^)\s]*)?\))"
)  # to a file of the repository, perhaps with an anchor


def main(argv=None):
    """Stage the pages, and run Sphinx; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", default=ROOT / "build" / "site", type=Path, help="where the pages go"
    )
    parser.add_argument("--open", action="store_true", help="show it in a browser afterwards")
    args = parser.parse_args(argv)
    stage = args.out.with_name(f"{args.out.name}-pages")
    for folder in (stage, args.out):
        shutil.rmtree(folder, ignore_errors=True)
    stage_all(stage)
    code = sphinx(stage, args.out)
    if not code and args.open:
        webbrowser.open((args.out / "index.html").resolve().as_uri())
    return code


def sphinx(stage, out):
    """Run Sphinx on the staged pages."""
    from sphinx.cmd.build import main as build

    options = [
        "-q",
        "-W",
        "--keep-going",
        "-j",
        "2",
        "-d",
        str(out.with_name(f"{out.name}-cache")),
        "-c",
        str(SITE),
    ]
    code = build([*options, str(stage), str(out)])
    if not code:  # files of the look, which no page names
        shutil.copy(SITE / "site.css", out / "_static")
        shutil.copy(mathjax(), out / "_static" / "tex-svg.js")
    return code


# ---------------------------------------------------------------------------------------------------------- staging


def stage_all(stage):
    """Write every page, and what pages link to."""
    pages = {"index.md": front(), "tutorials/explain/index.md": listed("Explained", EXPLAIN)}
    pages |= {str(path.relative_to(ROOT)): path.read_text() for path in texts()}
    pages |= api_pages() | figure_pages()
    for name, text in pages.items():
        write(stage / name, re.sub(r"<!--.*?-->\n?", "", text))
    for notebook in notebooks():
        copy(notebook, stage)
    for name in pages:
        text = (stage / name).read_text()
        write(stage / name, LINK.sub(lambda match, name=name: linked(match, name, stage), text))


def notebooks():
    """The course and its solutions."""
    return [
        *sorted((ROOT / "tutorials").glob("*.ipynb")),
        *sorted((ROOT / "tutorials" / "solutions").glob("*.ipynb")),
    ]


def texts():
    """Pages that are written by hand."""
    found = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", FIGURES / "README.md"]
    found += [
        path
        for folder in ("tutorials", "tutorials/explain", ORACLE)
        for path in sorted((ROOT / folder).glob("*.md"))
    ]
    return found


def mathjax():
    """MathJax as one file, from the package that brings it."""
    import mathjax as package

    return Path(package.__file__).parent / "static" / "mathjax" / "es5" / "tex-svg.js"


def front():
    """The README, and the contents of the site behind it."""
    course = [
        "tutorials/README",
        *(
            str(path.relative_to(ROOT).with_suffix(""))
            for path in notebooks()
            if "solutions" not in path.parts
        ),
    ]
    others = [
        path for path in texts() if path.parent == ROOT / "tutorials" and path.name != "README.md"
    ]
    course += [str(path.relative_to(ROOT).with_suffix("")) for path in others]
    course += ["tutorials/solutions/index"]
    contents = {
        "Learn": course,
        "Look up": ["api/index"],
        "Explain": [f"tutorials/explain/{name}" for name in EXPLAIN],
        "Evidence": ["figures/README"],
        "Check your own": [f"{ORACLE}/{name}" for name in ("README", "CASES", "CASES_V2")],
        "The project": ["CHANGELOG", "CONTRIBUTING"],
    }
    trees = "".join(toctree(entries, caption=caption) for caption, entries in contents.items())
    return f"{(ROOT / 'README.md').read_text()}\n{trees}"


def toctree(entries, caption=None):
    """A part of the contents, which the side bar shows."""
    head = f":caption: {caption}\n" if caption else ""
    return (
        "\n```{toctree}\n:hidden:\n"
        + head
        + "\n"
        + "\n".join(f"/{entry}" for entry in entries)
        + "\n```\n"
    )


def listed(title, pages):
    """A page that lists pages of its folder."""
    return f"---\norphan: true\n---\n# {title}\n\n" + "".join(
        f"- [{name}]({page}.md)\n" for page, name in pages.items()
    )


def api_pages():
    """A page a group of names, in reading order, a VJP after its function; and a page of all names."""
    rows, entries, placed = ["# The public names, in reading order\n"], [], []
    for title, told, names in GROUPS:
        page = title.lower().replace(" ", "_")
        named = [each for name in names for each in (name, f"{name}_vjp") if each in ar.__all__]
        placed += named
        entries.append(
            (
                f"api/{page}",
                f"# {title}\n\n{told}\n\n```{{eval-rst}}\n{''.join(map(directive, named))}```\n",
            )
        )
        rows.append(f"## [{title}]({page}.md)\n\n{told}\n\n" + "".join(map(row, named)))
    if sorted(placed) != sorted(ar.__all__):
        sys.exit(
            f"reading_order.py: every public name has one place; look at {set(placed) ^ set(ar.__all__)}"
        )
    index = "\n".join(rows) + toctree([page for page, _ in entries])
    return {f"{page}.md": text for page, text in entries} | {"api/index.md": index}


def directive(name):
    """What lets Sphinx describe a name."""
    if inspect.isfunction(getattr(ar, name)):
        return f"\n.. autofunction:: asap_ref.{name}\n"
    return f"\n.. autoclass:: asap_ref.{name}\n   :members:\n"


def row(name):
    """A name, linked, and its sentence."""
    sentence = (
        inspect.getdoc(getattr(ar, name)).split("\n\n")[0].replace("\n", " ").replace("``", "`")
    )
    return f"- {{py:obj}}`asap_ref.{name}`: {sentence}\n"


def figure_pages():
    """Each figure with what it shows, its command, machine, record, picture and table; and the list of solutions."""
    pages, by_folder = {}, {}
    for name in gallery.names():
        script = gallery.scripts()[name]
        page = script.with_suffix(".md").relative_to(ROOT)
        pages[str(page)] = figure_page(name, script)
        by_folder.setdefault(page.parent.name, []).append(str(page.with_suffix("")))
    index = (FIGURES / "README.md").read_text()
    entries = [entry for folder in by_folder.values() for entry in folder]
    pages["figures/README.md"] = index + toctree(entries)
    solutions = [
        str(path.relative_to(ROOT).with_suffix(""))
        for path in notebooks()
        if "solutions" in path.parts
    ]
    pages["tutorials/solutions/index.md"] = (
        "# Solutions of the exercises\n\nOne notebook for each of the course.\n"
        + toctree(solutions)
    )
    return pages


def figure_page(name, script):
    """The page of one figure."""
    sentence = inspect.cleandoc(gallery.load(name).__doc__).split("\n\n")[0].replace("\n", " ")
    record, table, picture = (script.with_suffix(suffix) for suffix in (".json", ".md", ".svg"))
    lines = [
        f"# {name}",
        "",
        sentence,
        "",
        f"- Drawn by `asap-ref figures {name}` from the record [{record.name}]({record.name})",
    ]
    if hasattr(gallery.load(name), "measure"):
        lines.append(
            f"- Measured by `asap-ref figures {name} --measure`, which is [{script.name}]({script.name})"
        )
    lines += [f"- Measured on: {machine}" for machine in machines(record)]
    lines += ["", f"![{sentence}]({picture.name})"] if picture.exists() else []
    lines += ["", table.read_text()] if table.exists() else []
    for path, told in further_pictures(name, script):
        lines += ["", f"![{told}]({path.name})", "", f"*{told}*"]
    return "\n".join(lines) + "\n"


def further_pictures(name, script):
    """Pictures that a figure has beside its own, each with what it shows."""
    for key, told in PICTURES.items():
        path = script.with_name(f"{name}_{key}.svg")
        if path.exists():
            yield path, told


def machines(record):
    """What the record says of where it was made, in words."""
    import json

    found = json.loads(record.read_text())
    machine = found.get("machine") or found.get("environment") or found.get("card")
    if isinstance(machine, dict):
        yield ", ".join(
            f"{key} {value}" if key not in ("processor", "system") else str(value)
            for key, value in machine.items()
        )
    elif machine:
        yield str(machine)


# ------------------------------------------------------------------------------------------------------------ links


def linked(match, page, stage):
    """A link as it should be on the site: to a page, to a file that comes along, or to a folder's own page."""
    target = os.path.normpath(os.path.join(os.path.dirname(page), match[2]))
    if (stage / target).is_file():
        return match[0]
    source = ROOT / target
    if source.is_dir():
        inside = next(
            (name for name in ("index.md", "README.md") if (stage / target / name).is_file()), None
        )
        target = f"{target}/{inside}" if inside else "api/index.md"
    elif source.is_file():
        copy(source, stage)  # Sphinx lets it be downloaded
    else:
        sys.exit(f"{page} links to {match[2]}, which is not there")
    return f"{match[1]}{os.path.relpath(target, os.path.dirname(page) or '.')}{match[3]}"


def copy(path, stage):
    """Copy a file of the repository to its place."""
    target = stage / path.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)


def write(path, text):
    """Write a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
