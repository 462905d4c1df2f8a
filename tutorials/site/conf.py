"""Sphinx's settings. The pages are staged by build.py, which calls Sphinx with this file."""

import re
import warnings
from pathlib import Path

from asap_ref import __version__

project = "asap_ref"
author = "The asap_ref authors"
copyright = author
release = __version__

extensions = [
    *(
        "myst_nb",
        "sphinx.ext.autodoc",
        "sphinx.ext.viewcode",
        "sphinx.ext.mathjax",
        "numpydoc",
        "sphinx_copybutton",
    ),
]
exclude_patterns = ["_build"]
default_role = "autolink"  # a name in backticks is a link where there is such a name

# names
autodoc_member_order = "bysource"
autodoc_typehints = "signature"  # shapes stand there, not types
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
python_display_short_literal_types = True

# pages and notebooks
nb_execution_mode = "off"  # they are committed as executed
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
suppress_warnings = [
    "mystnb.unknown_mime_type",
    "myst.header",
]  # widgets have a picture beside them

# looks
html_theme = "furo"
html_title = "asap_ref"
html_css_files = ["site.css"]
html_search_scorer = str(Path(__file__).with_name("scorer.js"))
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
mathjax_path = "tex-svg.js"  # MathJax 3 as one file, so that formulas need no network
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


warnings.filterwarnings(
    "ignore", message="Unknown section Contract"
)  # it is shown all the same, see below


def setup(app):
    """Show the section Contract of docstrings, which numpydoc does not know and would leave out."""
    app.connect("autodoc-process-docstring", _take_contract, priority=100)  # before numpydoc
    app.connect("autodoc-process-docstring", _give_contract, priority=900)
    app.connect("autodoc-process-signature", _dots, priority=900)


_contracts = {}
THOSE = re.compile(
    r"\*\*(Those of `\w+`\.)\*\*"
)  # a VJP's parameters: a sentence, not a parameter's name


def _take_contract(app, what, name, thing, options, lines):
    if "Contract" in lines and lines[lines.index("Contract") + 1].startswith("---"):
        start = lines.index("Contract")
        stop = next(
            (i - 1 for i in range(start + 2, len(lines)) if lines[i].startswith("---")), len(lines)
        )
        _contracts[name] = lines[start + 2 : stop]
        del lines[start:stop]


def _give_contract(app, what, name, thing, options, lines):
    lines[:] = [THOSE.sub(r"\1", line) for line in lines]
    if name in _contracts:
        lines += ["", ".. rubric:: Contract", "", *_contracts.pop(name), ""]


def _dots(app, what, name, thing, options, signature, result):
    """Leading axes as one character: what parses signatures makes two dots of three."""
    return (signature or "").replace("...", "…") or signature, result
