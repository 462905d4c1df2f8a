"""The matching task on a small scale: it trains, resumes, compiles, and its measures say what they should."""

import json
from dataclasses import replace

import numpy as np
import pytest

from asap_ref.cli import main
from asap_ref.lab.matching import (
    VARIANTS,
    MatchingRun,
    judge,
    judged_pairs,
    measures,
    plans,
    train_matcher,
)
from asap_ref.lab.matching_report import reproduce_matching
from asap_ref.model.matching import Matcher, MatcherArchitecture, Pairs
from asap_ref.support.trees import leaves


@pytest.fixture
def small():
    run = MatchingRun(
        points=10,
        judged=(10,),
        n_iter=3,
        truncations=(1,),
        architecture=MatcherArchitecture(width=12, n_layers=1, n_heads=2),
        calibrate_on=64,
        test=12,
        rounds=1,
        compilation={"n_slices": 4},
    )
    return replace(run, training=replace(run.training, epochs=2, batch_size=256))


def test_measures_of_the_true_plan_and_of_a_greedy_one():
    rng = np.random.default_rng(0)
    pairs = Pairs(*rng.standard_normal((2, 2, 4, 2)))
    partners = np.asarray([[1, 0, 3, 2], [0, 1, 2, 3]])
    true = np.eye(4)[partners]
    assert measures(true, pairs, partners) == pytest.approx(
        {"right": 1.0, "distinct": 1.0, "displacement": 0.0, "column_error": 0.0}
    )
    greedy = np.zeros((2, 4, 4))
    greedy[:, :, 0] = 1.0  # all to the first
    found = measures(greedy, pairs, partners)
    assert (found["right"], found["distinct"], found["column_error"]) == (0.25, 0.25, 1.5)


def test_the_whole_task(small, tmp_path):
    report = reproduce_matching(small, tmp_path, say=lambda text: None)
    assert json.loads((tmp_path / "report.json").read_text())["rows"]
    rows = {(row["trained"], row["attention"]): row for row in report["rows"]}
    assert rows["softmax", "softmax"]["plan_error"] == rows["sinkhorn", "sinkhorn"]["plan_error"] == 0
    assert {
        ("softmax", "dual-softmax"),
        ("sinkhorn", "over-relaxed-1"),
        *(("sinkhorn", name) for name in VARIANTS),
    } <= {*rows}
    assert rows["sinkhorn", "asap"]["column_error"] < rows["sinkhorn", "softmax"]["column_error"]
    assert {path.name for path in tmp_path.iterdir()} >= {"report.md", "matching.png", "asap.npz", "sinkhorn.npz"}
    loaded = Matcher.load(tmp_path / "asap.npz")
    assert loaded.attentions[0].name == "asap"
    (tmp_path / "sinkhorn.checkpoint.npz").stat()
    shorter = replace(small, training=replace(small.training, epochs=1))
    with pytest.raises(ValueError, match="other settings"):
        reproduce_matching(shorter, tmp_path, resume=True, say=lambda text: None)


def test_a_run_without_rounds_is_judged_and_not_timed(small):
    model = train_matcher(small, "sinkhorn")
    (timed,), (untimed,) = (
        judge({("sinkhorn", "sinkhorn"): model}, run, 10) for run in (small, replace(small, rounds=0))
    )
    assert timed.pop("ms") > 0
    assert timed == untimed


def test_resumed_training_ends_with_the_same_numbers(small, tmp_path):
    whole = train_matcher(small, "sinkhorn")
    longer = train_matcher(small, "sinkhorn", checkpoint=tmp_path / "c.npz")
    resumed = train_matcher(small, "sinkhorn", checkpoint=tmp_path / "c.npz", resume=True)
    for one, two, three in zip(leaves(whole.params), leaves(longer.params), leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def test_the_command_runs_the_task(tmp_path, capsys):
    command = [
        "reproduce",
        "--dataset",
        "matching",
        "--out",
        str(tmp_path / "out"),
        "--epochs",
        "1",
        "--slices",
        "2",
    ]
    assert main([*command, "--attention", "sliced"]) == 2
    assert "--attention is not for" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["torch", "array_api_strict"])
def test_on_another_array_module(small, backend):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    expected = train_matcher(small, "sinkhorn")
    found = train_matcher(replace(small, backend=backend), "sinkhorn")
    pairs, _ = judged_pairs(small, 10)
    # plans, not parameters: AdamW makes full steps of gradients that are zero but for rounding, which move no plan
    np.testing.assert_allclose(plans(found, pairs), plans(expected, pairs), atol=1e-3)  # a dozen steps in float32
