"""The main job on clouds: its report, its sentence, which follows from the numbers alone, and its pictures."""

from dataclasses import replace

import numpy as np
import pytest

from asap_ref import Attention, Transformer
from asap_ref.lab import cloud_pictures, experiments
from asap_ref.lab.experiments import EXPERIMENTS, Length, experiment
from asap_ref.lab.outcome import markdown, times
from asap_ref.lab.readable import ReadableAttention
from asap_ref.lab.reproduce import ReproduceSettings, reproduce
from asap_ref.lab.runs import calibration_batches
from asap_ref.lab.verdict_of_lengths import in_few_words


def row(n, attention, ms, error, log_domain=100.0):
    return {
        "n": n,
        "attention": attention,
        "judged": 200,
        "agreement": 0.995,
        "output_error": error,
        "ms_per_forward": ms,
        "speedup": 10 / ms,
        "speedup_log_domain": log_domain / ms,
    }


def report_of(*rows, layers=()):
    return {
        "rows": list(rows),
        "layers": list(layers),
        "settings": {"teacher": {"n_iter": 10}, "backend": "numpy"},
    } | {
        "dataset": {"lengths": [{"judged": None}], "test": 50},
        "machine": {"processor": "two cores"},
    }


def test_the_sentence_names_the_length_below_which_sinkhorn_is_about_as_near_in_about_the_same_time():
    short = [row(64, "sinkhorn", 10, 0.0), row(64, "sinkhorn-3", 7.2, 0.03), row(64, "sinkhorn-2", 5, 0.031)]
    long = [row(256, "sinkhorn", 10, 0.0), row(256, "sinkhorn-3", 6, 0.01), row(256, "asap", 4, 0.02)]
    told = in_few_words(report_of(*short, row(64, "asap", 7, 0.02), *long))
    assert "At 256 tokens (two cores, NumPy) a forward pass with the teacher, Sinkhorn with T = 10, takes" in told
    assert "at 256 tokens the label is the teacher's for 199 of 200 test inputs." in told
    assert (
        "takes 2.5 times as long as with ASAP in the fast scaling form and 25 times as long in the log domain"
        in told
    )
    assert ". Its output is off by 2.0% of the teacher's; at 256" in told
    assert told.endswith(
        "At 64 tokens and below use Sinkhorn with T = 3, about as near as ASAP in about the same time or less.**"
    )


def test_the_sentence_says_so_where_the_whole_teacher_is_faster_and_where_nothing_is():
    slow = [row(64, "sinkhorn", 10, 0.0), row(64, "sinkhorn-3", 6, 0.5), row(64, "asap", 20, 0.02)]
    told = in_few_words(report_of(*slow))
    assert (
        "takes 0.50 times as long as with ASAP in the fast scaling form" in told
        and "use the teacher itself, in about" in told
    )
    relaxed = [row(64, "sinkhorn", 10, 0.0), row(64, "over-relaxed-gaussian-1", 3, 0.02), row(64, "asap", 4, 0.02)]
    told = in_few_words(report_of(*relaxed))
    assert "use a few over-relaxed iterations (the row over-relaxed-gaussian-1), about as near" in told
    fast = [row(64, "sinkhorn", 10, 0.0), row(64, "asap", 2, 0.02)]
    assert "At no length measured" in in_few_words(report_of(*fast))


def test_the_sentence_tells_of_labels_where_enough_of_them_were_judged():
    many, few = (row(64, "asap", 9, 0.1), row(4096, "asap", 9, 0.1) | {"judged": 6})
    told = in_few_words(report_of(row(64, "sinkhorn", 10, 0.0), many, row(4096, "sinkhorn", 10, 0.0), few))
    assert (
        told.startswith("**At 4,096 tokens") and "at 64 tokens the label is the teacher's for 199 of 200" in told
    )


def test_the_sentence_takes_the_attention_alone_where_it_was_timed():
    alone = [
        {"n": 64, "attention": name, "ms": ms, "speedup_log_domain": log}
        for name, ms, log in (("sinkhorn", 30, 3.0), ("sinkhorn", 30, None), ("asap", 5, 80.4), ("asap", 5, None))
    ]
    told = in_few_words(report_of(row(64, "sinkhorn", 10, 0.0), row(64, "asap", 9, 0.1), layers=alone))
    assert "the teacher's attention, Sinkhorn with T = 10, takes 6.0 times as long as ASAP's in" in told
    assert "80 times as long in the log domain" in told


def test_ratios_have_digits_that_say_something():
    assert [times(x) for x in (None, 0.42, 5.31, 104.2)] == ["", "0.4x", "5.3x", "104x"]


def test_the_readable_attention_is_the_same_in_more_time():
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 5, 4))
    given = Attention("sinkhorn", {"n_iter": 3})
    readable = ReadableAttention(given.name, given.settings)
    np.testing.assert_allclose(readable(q, k, v), given(q, k, v), rtol=1e-12)
    np.testing.assert_allclose(readable.vjp(q, k, v)[1](v)[0], given.vjp(q, k, v)[1](v)[0], rtol=1e-10, atol=1e-14)


def test_calibration_clouds_are_the_same_at_every_call_and_training_clouds_are_not():
    run = experiment("clouds")
    data = run.load()
    first, again = (calibration_batches(run, data) for _ in range(2))
    assert first[0].shape[1:] == (run.points, 2) and sum(map(len, first)) <= run.calibrate_on
    np.testing.assert_array_equal(first[0], again[0])
    rng = np.random.default_rng(0)
    assert not np.array_equal(*(run.augment(data.train_inputs[:2], rng) for _ in range(2)))


@pytest.mark.slow
def test_the_main_job_on_clouds_reports_every_length_in_both_forms_of_the_teacher(tmp_path, monkeypatch):
    lengths = (
        Length(16, judged=20, timed=4, sampled=4, rounds=2),
        Length(
            40,
            judged=4,
            timed=1,
            sampled=1,
            rounds=2,
            log_rounds=0,
            only=("sinkhorn", "asap"),
            alone=("sinkhorn", "asap"),
        ),
    )
    small = replace(EXPERIMENTS["clouds"], calibrate_on=40, lengths=lengths)
    monkeypatch.setitem(experiments.EXPERIMENTS, "clouds", small)
    monkeypatch.setattr(cloud_pictures, "ENOUGH", 10)  # clouds whose accuracy is drawn
    report = reproduce(ReproduceSettings(epochs=1, n_iter=5, slices=4), tmp_path, say=lambda line: None)
    cut = ["sinkhorn-1", "sinkhorn-2", "sinkhorn-3", "sinkhorn-5"]
    rivals = [
        "asap-refined",
        "initial-gaussian",
        "over-relaxed-softmax-2",
        "over-relaxed-gaussian-1",
        "dual-softmax",
    ]
    at = {n: [row["attention"] for row in report["rows"] if row["n"] == n] for n in (16, 40)}
    assert at == {
        16: ["softmax", "sinkhorn", *cut, "asap", *rivals],
        40: ["sinkhorn", "asap"],
    }
    assert all((row["speedup_log_domain"] is None) == (row["n"] == 40) for row in report["rows"])
    alone = [row for row in report["layers"] if row["n"] == 40]
    assert [row["attention"] for row in alone] == 2 * ["sinkhorn", "asap", "softmax"]
    assert all(row["speedup_log_domain"] > 0 for row in alone[:3])
    assert markdown(report) == (tmp_path / "report.md").read_text()
    pictures = {path.stem for path in tmp_path.glob("*.svg")}
    drawn = {"reproduce", "reproduce_accuracy", "reproduce_plans", "reproduce_two_plans", "reproduce_dual"}
    assert pictures == {"fidelity"} | drawn
    assert Transformer.load(tmp_path / "asap.npz").classes == tuple("0123456789")
    plans = report["cloud"]["plans"]
    np.testing.assert_allclose(np.asarray(plans["asap"]).sum(1), 1, atol=0.1)  # but for what the class token takes
