"""The documentation site is built without a warning or a network, and its pages hold what they promise."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import asap_ref as ar

ROOT = Path(__file__).resolve().parent.parent
EXPLAIN = ROOT / "tutorials" / "explain"


def test_errors_met_in_practice_are_what_the_package_says():
    failed, tried = doctest.testfile(str(EXPLAIN / "errors.md"), module_relative=False)
    assert not failed and tried > 10


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    """-W makes a warning an error; no page asks for anything of another host but by a link that somebody follows."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, str(ROOT / "tutorials" / "site" / "build.py"), "--out", str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | nowhere, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {
        page.relative_to(tmp_path / "site").as_posix(): page.read_text()
        for page in tmp_path.glob("site/**/*.html")
    }
    for name, page in pages.items():
        asked = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"(https?:[^\"]+)\"", page)
        assert not asked, (name, asked)
    api = "".join(page for name, page in pages.items() if name.startswith("api/"))
    for name in ar.__all__:
        assert f'id="asap_ref.{name}"' in api, name
    assert "Those of `" not in api  # a sentence with a link, not the name of a parameter
    assert "reproduce_two_plans.svg" in pages["figures/claims/reproduce.html"]  # pictures beside its own, too
    scorer = (tmp_path / "site" / "_static" / "language_data.js").read_text()
    assert "glossary" in scorer  # definitions stand first in a search
    assert 'id="asap_ref.sinkhorn_vjp"' in pages["api/sinkhorn.html"]  # beside its function
    assert (tmp_path / "site" / "_static" / "tex-svg.js").stat().st_size > 1e6
    index = (tmp_path / "site" / "searchindex.js").read_text()
    assert all(f'"{word}"' in index or f"{word}:" in index for word in ("epsilon", "column", "error"))
