"""What is installed: how quickly it is imported, what it is made of, and that what is declared is what is needed."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = ("sklearn", "matplotlib", "scipy", "tqdm", "threadpoolctl", "platformdirs", "torch", "jax", "ot", "cupy")


@pytest.mark.parametrize("module", ["asap_ref", "asap_ref.cli", "asap_ref.oracle"])
def test_importing_imports_nothing_that_only_some_calls_need(module):
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_versions_agree():
    import asap_ref

    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation[1] == asap_ref.__version__
    assert f"## {asap_ref.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_each_requirement_has_a_lowest_version():
    """So that .ci/lowest.py can install it, and the tests run once with it."""
    needed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    assert [line for line in needed if not re.match(r"[\w.-]+(\[\w+\])?>=\d", line)] == []
    done = subprocess.run([sys.executable, ".ci/lowest.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == len(needed) and "numpy==2.0\n" in done.stdout


@pytest.mark.slow
def test_the_distributions_hold_what_they_should(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "asap_ref"
    wanted = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in wanted} <= inside
    assert {"asap_ref/py.typed", "asap_ref/__init__.pyi", "asap_ref/fast/kernels/tile.cu"} <= inside
    assert not [name for name in inside if name.startswith(("tests", "figures", "tutorials"))]
    with tarfile.open(source) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "tests/test_package.py",
        "figures/readme.py",
        "tutorials/README.md",
        "CHANGELOG.md",
        ".ci/lowest.py",
    ):
        assert name in sources, name
