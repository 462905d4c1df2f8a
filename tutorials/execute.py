"""Execute the tutorials and write their outputs in place.

    python tutorials/execute.py              all of them, solutions included
    python tutorials/execute.py 02 05        those whose name begins so
    python tutorials/execute.py --check      compare printed outputs with committed ones

A notebook is committed executed, and normalised: the same run gives the same file, with no times,
paths or widget state in it. Outputs of cells tagged "varies" (times, versions) are not compared.

Each notebook opens with links that run it elsewhere, and with a cell that installs the package where it is
missing. Both are written here, from the repository's address in pyproject.toml.
"""

import argparse
import sys
import tempfile
import tomllib
from pathlib import Path
from urllib.parse import quote

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError

TUTORIALS = Path(__file__).resolve().parent
PROJECT = tomllib.loads((TUTORIALS.parent / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]
REPOSITORY = PROJECT["urls"][
    "Repository"
]  # the one setting of links and of the cell that installs
INSTALL = f'''\
from importlib.util import find_spec

if find_spec("asap_ref") is None:  # in Colab or Binder, say
    %pip install --quiet "asap-ref[tutorials] @ git+{REPOSITORY}"'''
CELL_TIMEOUT = 300  # seconds; the slowest cell trains a model, in about fifteen on an idle machine
WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {
    "name": "python",
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "pygments_lexer": "ipython3",
}


def notebooks(beginnings=()):
    """List the paths of the notebooks, solutions after their tutorials."""
    paths = sorted(TUTORIALS.glob("[0-9]*.ipynb")) + sorted(
        TUTORIALS.glob("solutions/[0-9]*.ipynb")
    )
    return [path for path in paths if not beginnings or path.name.startswith(tuple(beginnings))]


def execute(path, *, last=False):
    """Run a notebook from its committed source in a new kernel and an empty folder; an error in a cell is raised.

    So none can come to need a file that stands beside it in the repository.
    A kernel that dies or falls silent (a message between two processes was lost) is given one more chance.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    try:
        with tempfile.TemporaryDirectory() as folder:
            client = NotebookClient(
                notebook,
                timeout=CELL_TIMEOUT,
                kernel_name=KERNEL["name"],
                resources={"metadata": {"path": folder}},
                record_timing=False,
                coalesce_streams=True,
            )
            return normalise(client.execute(), path)
    except (
        CellTimeoutError,
        RuntimeError,
    ):  # a kernel that dies at its start is a plain RuntimeError
        if last:
            raise
        return execute(path, last=True)


def normalise(notebook, path):
    """Leave nothing in a notebook that differs from run to run or from machine to machine, and open it as all are."""
    open_as_all_are(notebook, path)
    notebook.metadata = {"kernelspec": KERNEL, "language_info": LANGUAGE}
    notebook.nbformat_minor = 5
    count = 0
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        tags = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        cell.metadata = {**tags, **picture_of(cell)}
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            # a widget needs a running kernel; beside each one stands a static view, which is kept
            cell.outputs = [
                output for output in cell.outputs if WIDGET not in output.get("data", {})
            ]
    return notebook


def picture_of(cell):
    """What MyST-NB wants to know of a cell's picture: the text and the width that `pictures.show` gave it."""
    given = [o.get("metadata", {}).get("image/png", {}) for o in cell.get("outputs", [])]
    given = [picture for picture in given if "alt" in picture]
    if not given:
        return {}
    image = {"alt": given[0]["alt"], "width": f"{given[0]['width']}px"}
    return {"mystnb": {"image": image}}


def open_as_all_are(notebook, path):
    """Put links under the title, and a first code cell that installs what is missing."""
    title, _, rest = notebook.cells[0].source.partition("\n\n")
    if rest.startswith("[Open in Colab]"):
        rest = rest.partition("\n\n")[2]
    notebook.cells[0].source = f"{title}\n\n{links(path)}\n\n{rest}"
    if "find_spec" not in notebook.cells[1].source:
        notebook.cells.insert(1, nbformat.v4.new_code_cell(outputs=[]))
    notebook.cells[1].source = INSTALL


def links(path):
    """Links that open the notebook where it can be run without installing anything."""
    place = path.relative_to(TUTORIALS.parent).as_posix()
    owner_and_name = "/".join(REPOSITORY.split("/")[-2:])
    colab = f"https://colab.research.google.com/github/{owner_and_name}/blob/main/{place}"
    binder = f"https://mybinder.org/v2/gh/{owner_and_name}/main?labpath={quote(place, safe='')}"
    return f"[Open in Colab]({colab}) · [Open in Binder]({binder})"


def printed(notebook):
    """List the texts that each code cell shows; None for a cell tagged "varies"."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        texts = []
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "stream" and output.name == "stdout":
                texts.append(output.text)
            elif data and not any(kind.startswith("image/") for kind in data):
                texts.append(data.get("text/markdown") or data.get("text/plain", ""))
        cells.append(None if "varies" in cell.metadata.get("tags", []) else texts)
    return cells


def differences(committed, fresh):
    """Describe each cell whose printed output is not what was committed."""
    pairs = zip(printed(committed), printed(fresh), strict=True)
    return [
        f"code cell {i + 1}:\n  committed {a}\n  now       {b}"
        for i, (a, b) in enumerate(pairs)
        if a != b
    ]


def main():
    """Execute, then write or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="beginnings of names, such as 02; all if none"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where printed outputs differ"
    )
    args = parser.parse_args()
    paths, failed = notebooks(args.names), False
    if not paths:
        sys.exit(f"no notebook begins with {', '.join(args.names)}")
    for path in paths:
        fresh = execute(path)
        if args.check:
            found = differences(nbformat.read(path, as_version=4), fresh)
            print(
                path.relative_to(TUTORIALS), *(found or ["as committed"]), sep="\n  ", flush=True
            )
            failed |= bool(found)
        else:
            nbformat.write(fresh, path)
            print(path.relative_to(TUTORIALS), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
