"""The C++ example reads the vectors, and what it writes passes: the page is enough for another language."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from asap_ref import cli, oracle
from asap_ref.oracle import exchange
from asap_ref.oracle import results as judged

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


def checked(results, *options, capsys):
    """Exit status and report of check-files."""
    code = cli.main(["oracle", "check-files", str(results), "--json", *options])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def results(program, tmp_path_factory):
    """What the program makes of the export of its header's first lines, of the two operators that it has."""
    folder = tmp_path_factory.mktemp("results")
    drawn = [case for name in ("lse", "attend") for case in oracle.cases(name) if case.path is None]
    exchange.export(folder / "vectors")
    exchange.save_cases(folder / "vectors" / "drawn", drawn, "float64")
    subprocess.run([program, folder / "vectors", folder / "results"], check=True, capture_output=True)
    return folder / "results"


def test_cpp_example_passes_every_case_of_its_operators(results, capsys):
    code, report = checked(results, capsys=capsys)
    assert code == 0 and report["complete"] and not report["unknown"]
    stored, drawn = (
        [c for n in ("lse", "attend") for c in oracle.cases(n) if (c.path is None) is d] for d in (False, True)
    )
    assert report["stored"] == {"judged": len(stored), "missing": 0}
    assert report["drawn"] == {"judged": len(drawn), "missing": 0}


def test_its_gradient_is_checked(results):
    (case,) = (case for case in oracle.cases("lse") if case.id == "lse/tiles_rising")
    one = results / case.id / "gradients" / "query_dual.npy"
    report = check_one(case, np.load(one.parent.parent / "key_dual.npy"), np.load(one))
    assert report.passed and "gradient of query_dual" in str(report)
    assert not check_one(case, np.load(one.parent.parent / "key_dual.npy"), -np.load(one)).passed


def check_one(case, g, gradient):
    return oracle.check(case, g, gradients={"query_dual": gradient})


def test_results_without_the_drawn_cases_are_no_pass(results, tmp_path, capsys):
    for case in oracle.cases(version=2):
        if case.path is not None and case.operator in ("lse", "attend"):
            shutil.copytree(results / case.id, tmp_path / case.id)
    code, report = checked(tmp_path, capsys=capsys)
    drawn = [case.id for name in ("lse", "attend") for case in oracle.cases(name) if case.path is None]
    assert code == 1 and not report["complete"] and not report["passed"] and not report["failed"]
    assert sorted(report["missing"]) == sorted(drawn)
    assert report["drawn"] == {"judged": 0, "missing": len(drawn)}
    text = str(judged.check_files(tmp_path))
    assert f"not there: {len(drawn)} cases drawn from seeds (" in text
    assert "tile_edges, rising_scores" in text and "export FOLDER --drawn float64 writes them" in text
    code, report = checked(tmp_path, "--stored-only", capsys=capsys)
    assert code == 0 and report["complete"] and report["drawn"]["missing"] == len(drawn)
    shutil.rmtree(tmp_path / "lse" / "one_key")
    code, report = checked(tmp_path, "--stored-only", capsys=capsys)
    assert code == 1 and "lse/one_key" in report["missing"]
