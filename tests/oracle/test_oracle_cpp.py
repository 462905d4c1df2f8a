"""The C++ example reads the vectors, and what it writes passes: the page is enough for another language."""

import shutil
import subprocess
from pathlib import Path

import pytest

from asap_ref import cli, oracle
from asap_ref.oracle import exchange

SOURCE = Path(__file__).parent / "examples" / "attend.cpp"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    target = tmp_path_factory.mktemp("cpp") / "attend"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror"]
    built = subprocess.run([compiler, *flags, SOURCE, "-o", target], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return target


def test_cpp_example_passes_the_cases_with_files(program, tmp_path, capsys):
    assert cli.main(["oracle", "export", str(tmp_path / "vectors")]) == 0
    subprocess.run([program, tmp_path / "vectors" / "v2", tmp_path / "results"], check=True, capture_output=True)
    assert cli.main(["oracle", "check-files", str(tmp_path / "results")]) == 0
    n = sum(case.path is not None for name in ("lse", "attend") for case in oracle.cases(name))
    assert f"{n} of {n} cases passed" in capsys.readouterr().out


def test_cpp_example_passes_large_cases(program, tmp_path):
    drawn = [case for name in ("lse", "attend") for case in oracle.cases(name) if case.path is None]
    exchange.save_cases(tmp_path / "vectors", drawn, "float64")
    subprocess.run([program, tmp_path / "vectors", tmp_path / "results"], check=True, capture_output=True)
    report = exchange.check_files(tmp_path / "results", vectors=tmp_path / "vectors")
    assert report.passed and len(report.reports) == len(drawn), report
