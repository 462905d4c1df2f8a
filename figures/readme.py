"""Put what is generated into README.md (a sentence, the words of a picture) and figures/README.md (the index).

python figures/readme.py            rewrite both
python figures/readme.py --check    only say whether they are up to date
"""

import ast
import json
import re
import sys

from asap_ref.lab.cloud_pictures import told_of_two_plans
from asap_ref.lab.gallery import FIGURES, ROOT, names, scripts
from asap_ref.support.tables import markdown_table

SENTENCE = re.compile(r"<!-- sentence: (\S+) -->\n.*?<!-- end of sentence -->", re.DOTALL)
PICTURE = re.compile(r"!\[[^]]*\]\((figures/claims/reproduce)_two_plans\.svg\)")
INDEX = re.compile(r"<!-- index -->\n.*?<!-- end of index -->", re.DOTALL)
FOLDERS = {
    "claims": "What the paper claims, and what is seen here.",
    "choices": "What each choice buys: features, slices, calibrations, refining.",
    "speed": "What it takes: time and memory, beside other libraries, on a GPU, on several workers. "
    "`bars` has the goals alone, measured anew more often than all of `bench`.",
    "behaviour": "How it behaves: by depth, between sets of different sizes, when data drift, when trained on.",
    "tests_quality": "What the checks are worth: what they catch, which lines they run, and where they ran.",
}


def with_sentences(text):
    """README text with the picture told anew, and each marked sentence the first paragraph of the file it names."""

    def picture(match):
        report = json.loads((ROOT / f"{match[1]}.json").read_text())
        return f"![{told_of_two_plans(report)}]({match[1]}_two_plans.svg)"

    def first(match):
        paragraph = (ROOT / match[1]).read_text().partition("\n\n")[0]
        return f"<!-- sentence: {match[1]} -->\n{paragraph}\n<!-- end of sentence -->"

    return SENTENCE.sub(first, PICTURE.sub(picture, text))


def with_index(text):
    """Text of figures/README.md with its index, folder by folder, from the scripts' own first sentences."""
    index = "\n".join(_of_folder(folder) for folder in FOLDERS)
    return INDEX.sub(lambda m: f"<!-- index -->\n{index}<!-- end of index -->", text)


def _of_folder(folder):
    """Heading, sentence, and a table of the figures; then what they share."""
    own = {name: path for name, path in scripts().items() if path.parent.name == folder}
    drawn = [name for name in names() if name in own]
    rows = [["figure", "what it shows", "how it is measured"]]
    rows += [[_links(own[name]), _sentence(own[name]), _sentence(own[name], "measure")] for name in drawn]
    shared = [f"\n`{path.name}`: {_sentence(path)}\n" for name, path in own.items() if name not in drawn]
    return f"## {folder}\n\n{FOLDERS[folder]}\n\n{markdown_table(rows)}{''.join(shared)}"


def _links(path):
    """Links to the table and the picture of a figure, whichever it has."""
    outputs = [path.with_suffix(suffix) for suffix in (".md", ".svg") if path.with_suffix(suffix).exists()]
    links = [f"[{output.suffix[1:]}]({output.relative_to(FIGURES).as_posix()})" for output in outputs]
    return f"`{path.stem}` ({', '.join(links)})"


def _sentence(path, function=None):
    """First line of the docstring of a script, or of one of its functions."""
    tree = ast.parse(path.read_text())
    if function is not None:
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        if function not in functions:
            return "It cannot be measured again: what it measured is no more."
        tree = functions[function]
    return ast.get_docstring(tree).splitlines()[0]


WRITTEN = {ROOT / "README.md": with_sentences, FIGURES / "README.md": with_index}


def main():
    """Rewrite or check."""
    for path, fill in WRITTEN.items():
        text = path.read_text()
        if "--check" not in sys.argv:
            path.write_text(fill(text))
        elif fill(text) != text:
            sys.exit(f"{path.relative_to(ROOT)} is out of date: run python figures/readme.py")


if __name__ == "__main__":
    main()
