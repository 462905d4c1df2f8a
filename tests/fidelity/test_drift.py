"""Drift is found where data changed and not where it did not; recalibration merges, and repairs."""

import numpy as np
import pytest

from asap_ref import Attention, compile_model, detect_drift, fidelity_report, fit_amortizer, recalibrate
from asap_ref.fidelity.report import FidelityReport
from asap_ref.model.architecture import Architecture
from asap_ref.model.transformer import Transformer

SMALL = Architecture(image=(6, 6), patch=2, n_classes=3, width=12, n_layers=1, n_heads=3)
TEACHER = Transformer.create(SMALL, Attention("sinkhorn", {"n_iter": 6, "epsilon": 0.5}))


def images(count, seed, size=1.0):
    return size * np.random.default_rng(seed).standard_normal((count, 6, 6)).astype(np.float32)


COMPILED, _ = compile_model(TEACHER, [images(200, 0)], n_slices=4, candidates=None, moments=0, quadratic=0)


def test_shifted_data_is_flagged_and_fresh_data_of_the_same_kind_is_not():
    before = fidelity_report(COMPILED, images(120, 1))
    same = detect_drift(before, fidelity_report(COMPILED, images(120, 2)))
    assert not same.drifted and str(same) == "no drift found (level 0.05)"
    larger = detect_drift(before, fidelity_report(COMPILED, images(120, 2, size=3.0)))
    assert larger.drifted and "of layer 0 head" in str(larger)
    assert larger.findings == sorted(larger.findings, key=lambda finding: finding["p_value"])
    assert len(larger.findings) == 4 * 3  # measures and heads


def test_false_alarms_are_as_rare_as_the_level_says():
    pool = np.random.default_rng(0).lognormal(size=(100, 2, 60, 2, 4))
    pool[..., 1:] += pool[..., :1]  # heads depend on each other
    alarms = [
        detect_drift(*(FidelityReport([], {"a": x, "b": x**2}) for x in pair), level=0.1).drifted for pair in pool
    ]
    # binomial with 100 trials at 0.1: mean 10, standard deviation 3; Holm is conservative, so fewer
    assert sum(alarms) <= 10 + 3 * 3


def test_p_values_are_corrected_over_all_heads():
    rng = np.random.default_rng(0)
    before, after = rng.standard_normal((2, 50, 1, 3))
    after[:, 0, 0] += 2
    after[:, 0, 2] = np.nan  # a head left to Sinkhorn predicts nothing
    found = detect_drift(FidelityReport([], {"a": before}), FidelityReport([], {"a": after})).findings
    from scipy.stats import ks_2samp

    p = sorted(ks_2samp(before[:, 0, h], after[:, 0, h], method="asymp").pvalue for h in (0, 1))
    assert [f["p_value"] for f in found] == pytest.approx([2 * p[0], max(2 * p[0], p[1])])
    assert [f["head"] for f in found] == [0, 1]


@pytest.mark.parametrize("options", [{}, {"candidates": 12, "quadratic": 2}])
def test_merging_the_statistics_of_halves_is_fitting_the_whole(options):
    q, k = np.random.default_rng(0).standard_normal((2, 80, 3, 7, 4))
    # slices are chosen, and the basis found, on the first data; the whole is fitted with the same ones
    first = fit_amortizer([(q[:40], k[:40])], n_slices=4, n_iter=5, **options)
    merged = recalibrate(first, [(q[40:60], k[40:60]), (q[60:], k[60:])])
    whole = recalibrate(first, [(q, k)], forget=0.0)
    np.testing.assert_allclose(merged.weights, whole.weights, rtol=0, atol=1e-10 * np.abs(whole.weights).max())
    np.testing.assert_allclose(merged.r_squared, whole.r_squared, atol=1e-10)
    assert merged.statistics.count == whole.statistics.count == 80 * 7
    if not options:
        fitted = fit_amortizer([(q, k)], n_slices=4, n_iter=5)
        np.testing.assert_allclose(
            merged.weights, fitted.weights, rtol=0, atol=1e-10 * np.abs(fitted.weights).max()
        )
        np.testing.assert_allclose(merged.r_squared, fitted.r_squared, rtol=0, atol=1e-10)


def test_forgetting_half_is_counting_the_new_twice():
    q, k = np.random.default_rng(0).standard_normal((2, 60, 2, 6, 4))
    amortizer = fit_amortizer([(q[:30], k[:30])], n_slices=4, n_iter=5)
    new = (q[30:], k[30:])
    fixed = {"ridge": 1e-3}  # the default one also asks how many tokens there are
    found = recalibrate(amortizer, [new], forget=0.5, **fixed)
    expected = recalibrate(amortizer, [new, new], **fixed)
    # the penalty is relative to the features' own size, so only the ratio counts
    np.testing.assert_allclose(found.weights, expected.weights, rtol=0, atol=1e-10 * np.abs(found.weights).max())
    np.testing.assert_allclose(found.r_squared, expected.r_squared, rtol=0, atol=1e-10)
    assert 2 * found.statistics.count == expected.statistics.count


def test_statistics_are_saved_with_the_amortizer_and_more_data_can_follow(tmp_path):
    q, k = np.random.default_rng(0).standard_normal((2, 60, 2, 6, 4))
    amortizer = fit_amortizer([(q[:30], k[:30])], n_slices=4, n_iter=5)
    amortizer.save(tmp_path / "a.npz")
    again = type(amortizer).load(tmp_path / "a.npz")
    found, expected = (recalibrate(a, [(q[30:], k[30:])]).weights for a in (again, amortizer))
    np.testing.assert_array_equal(found, expected)


def test_recalibration_on_shifted_data_lowers_the_error_there():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 200, 2, 6, 4))
    amortizer = fit_amortizer([(q, k)], n_slices=4, n_iter=5)
    new = [2 * x + 1 for x in rng.standard_normal((2, 400, 2, 6, 4))]
    repaired = recalibrate(amortizer, [tuple(x[:200] for x in new)], forget=0.1)
    target = fit_amortizer([tuple(new)], n_slices=4, n_iter=5).predict(
        *(x[200:] for x in new)
    )  # as good as it gets

    def error(a):
        return np.sum((a.predict(*(x[200:] for x in new)) - target) ** 2)

    assert error(repaired) < 0.5 * error(amortizer)


def test_what_cannot_be_compared_or_merged_is_refused():
    q, k = np.random.default_rng(0).standard_normal((2, 20, 2, 6, 4))
    report, other = (FidelityReport([], {"a": np.zeros((5, 1, h))}) for h in (2, 3))
    with pytest.raises(ValueError, match="reports of the same model"):
        detect_drift(report, other)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        detect_drift(report, report, level=1.0)
    with pytest.raises(TypeError, match="after must be a FidelityReport, got dict"):
        detect_drift(report, {})
    amortizer = fit_amortizer([(q, k)], n_slices=2, n_iter=3)
    with pytest.raises(ValueError, match="batches is empty"):
        recalibrate(amortizer, [])
    with pytest.raises(ValueError, match="forget must be from 0 to 1"):
        recalibrate(amortizer, [(q, k)], forget=2.0)
    from dataclasses import replace

    with pytest.raises(ValueError, match="keeps no statistics"):
        recalibrate(replace(amortizer, statistics=None), [(q, k)])
    with pytest.raises(ValueError, match="cannot be merged"):
        amortizer.statistics + fit_amortizer([(q, k)], n_slices=3, n_iter=3).statistics
