"""A training run that is killed, at any moment and as often as one likes, ends with the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tallies import KILLS, SAME, note


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked, which this system cannot")
def test_killed_runs_resume_to_the_numbers_of_an_undisturbed_one(tmp_path):
    single = {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "ASAP_REF_THREADS": "1",
    }  # forks carry no threads
    done = subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "helpers" / "kills.py", tmp_path],
        capture_output=True,
        text=True,
        timeout=3600,  # only ends what would never end
        check=False,
        env=os.environ | single,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 23 and all(record["same"] for record in records)
    by_trial = {record["trial"]: record["epochs_kept"] for record in records}
    assert by_trial["half written"] == by_trial["before the move"] == [9]  # the tenth checkpoint was not there yet
    assert by_trial["after the move"] == [10]
    kills = [kept for trial, kept in by_trial.items() if isinstance(trial, int)]
    assert sum(map(len, kills)) >= 20
    assert len({kept for run in kills for kept in run}) > 10  # they came at many different moments
    assert all(run == sorted(run) for run in kills)  # nothing that was finished was lost
    note(KILLS, SAME, len(records))
    leftovers = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in ("run.npz",)]
    assert all(path.name.startswith(".run.npz.") or path.parent == tmp_path for path in leftovers)
