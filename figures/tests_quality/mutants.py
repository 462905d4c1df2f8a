"""Seeded faults in the operators, and how many of them the tests notice."""

import contextlib
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import platformdirs
import pytest
from faults import FAULTS, TESTS

from asap_ref.lab.gallery import ROOT
from asap_ref.lab.machine import machine
from asap_ref.support import files
from asap_ref.support.tables import markdown_table

PART = Path(platformdirs.user_cache_dir("asap_ref")) / "mutants.json"  # what is known of a measurement under way
PATIENCE = 150  # seconds of computing that a run of tests may take: a fault that never ends is noticed too
HEAVY = ("scipy.stats", "sklearn.linear_model", "hypothesis", "array_api_strict", "ot", "torch", "jax")


def measure(faults=FAULTS, at_once=1, part=PART):
    """Seed each fault in a copy of the package and run its tests: which test fails first, if any.

    What is known is written down as it comes, and a measurement that was interrupted goes on from there.
    """
    for name in HEAVY:  # imported once, here: the runs are forks of this process
        importlib.import_module(name)
    known = json.loads(part.read_text()) if part.exists() else {}
    todo = [(tests, None) for tests in _each_once(TESTS.values())] + [
        (TESTS[fault.file], fault) for fault in faults
    ]
    todo = [run for run in todo if _name(*run) not in known]
    for some in (todo[i : i + at_once] for i in range(0, len(todo), at_once)):
        for (tests, fault), failing in zip(some, first_failures(some), strict=True):
            if fault is None and failing is not None:
                raise RuntimeError(f"without any fault {failing} fails: nothing can be learnt from faults")
            known[_name(tests, fault)] = failing
        files.save_text(part, json.dumps(known))
    rows = [fault._asdict() | {"caught by": known[_name(TESTS[fault.file], fault)]} for fault in faults]
    part.unlink()
    return {"faults": rows, "machine": machine()}


def _each_once(lists):
    return [[test] for test in dict.fromkeys(test for tests in lists for test in tests)]


def _name(tests, fault):
    return repr(tests if fault is None else fault[:3])


def first_failures(runs):
    """Run tests on copies of the package, a fault in each, at the same time: the first test that fails, or None."""
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch and jax are imported, but have not begun to work
        started = []
        for tests, fault in runs:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for part in ("asap_ref", "tests"):
                shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "pyproject.toml", folder)
            if fault is not None:
                path = folder / "asap_ref" / fault.file
                path.write_text(seeded(path.read_text(), fault))
            process = multiprocessing.get_context("fork").Process(target=_run, args=(folder, tests))
            process.start()
            started.append((process, folder, tests))
        return [_first_failure(*one) for one in started]


def _run(folder, tests):
    """Run the tests in this process, which was made for it, on the package of the folder."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "asap_ref"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, 2 * PATIENCE))
    with open("output", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    options = ["-qx", "--assert=plain", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--tb=short"]
    pytest.main([*options, *(f"tests/{test}" for test in tests)], plugins=[Witness()])


class Witness:
    """Writes down the first test that fails, and that tests have run."""

    def pytest_runtest_logreport(self, report):
        """Note a test."""
        if report.failed and not Path("failed").exists():
            Path("failed").write_text(report.nodeid.removeprefix("tests/").partition("[")[0])

    def pytest_collectreport(self, report):
        """Note a file that cannot even be imported."""
        if report.failed:
            Path("failed").write_text(f"{report.nodeid.removeprefix('tests/')}: import")


def _first_failure(process, folder, tests):
    process.join()
    if (folder / "failed").exists():
        return (folder / "failed").read_text()
    if process.exitcode == -signal.SIGXCPU:
        return f"{tests[0]}: no end"
    said = (folder / "output").read_text()
    if process.exitcode != 0 or " passed" not in said:
        raise RuntimeError(f"tests did not run, exit code {process.exitcode}: {said}")
    return None


def seeded(text, fault):
    """Put the fault into the text of its file."""
    if text.count(fault.old) != 1:
        raise ValueError(f"asap_ref/{fault.file} holds {text.count(fault.old)} times, not once: {fault.old!r}")
    return text.replace(fault.old, fault.new)


def draw(record, folder):
    """Write the shares by file, and every fault with the test that noticed it."""
    rows = record["faults"]
    counted = []
    for file in dict.fromkeys(row["file"] for row in rows):
        own = [row for row in rows if row["file"] == file]
        counted.append([f"`{file}`", *_counts(own)])
    survivors = [row for row in rows if row["caught by"] is None]
    lines = [
        markdown_table([["file", "faults", "noticed", "harmless", "missed"], *counted, ["all", *_counts(rows)]]),
        "Each fault is one substitution in the source, made in a copy, on which the tests then ran. *Harmless* faults "
        "change nothing that is promised; the reason stands below.",
        "",
        markdown_table(
            [
                ["file", "instead of", "there stood", "why nobody noticed"],
                *(
                    [row["file"], _code(row["old"]), _code(row["new"]), row["harmless"] or "missed"]
                    for row in survivors
                ),
            ]
        ),
        markdown_table(
            [
                ["file", "instead of", "there stood", "noticed by"],
                *(
                    [row["file"], _code(row["old"]), _code(row["new"]), f"`{row['caught by']}`"]
                    for row in rows
                    if row["caught by"] is not None
                ),
            ]
        ),
    ]
    path = Path(folder) / "mutants.md"
    files.save_text(path, "\n".join(lines))
    return [path]


def _counts(rows):
    noticed = sum(row["caught by"] is not None for row in rows)
    harmless = sum(row["caught by"] is None and bool(row["harmless"]) for row in rows)
    return [str(count) for count in (len(rows), noticed, harmless, len(rows) - noticed - harmless)]


def _code(text):
    return f"`{' '.join(text.split())}`".replace("|", r"\|") if text.strip() else "(nothing)"
