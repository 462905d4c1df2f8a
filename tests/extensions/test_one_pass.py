"""Features of one pass over the scores: gradients, padding, and that they pay where plans are sharp."""

import numpy as np
import pytest
from gradients import check_vjp
from problems import masks, qkv

from asap_ref import OnePass, asap_attention, dual_features, fit_amortizer, sinkhorn, sinkhorn_attention
from asap_ref.fast.prediction import predicted_dual
from asap_ref.method.transport import attention_scores

FAMILY = OnePass(np.asarray([0.7, 2.0]))
MASKED = dict(zip(("query_mask", "key_mask"), (mask[:, None] for mask in masks(2, 6, 8)), strict=True))


@pytest.mark.parametrize("options", [{}, MASKED], ids=["all", "masked"])
def test_gradients(options):
    def with_vjp(q, k):
        features, vjp = FAMILY.features_vjp(q, k, **options)
        return features, lambda d: vjp(d)[:2]

    check_vjp(lambda q, k: FAMILY.features(q, k, **options), with_vjp, qkv(2, 3, n=6, m=8, d=4)[:2])


def test_the_first_is_the_dual_of_softmax():
    q, k, _ = qkv(2, n=6, m=8, d=4)
    f0 = sinkhorn(attention_scores(q, k), n_iter=0, epsilon=0.7).query
    found = dual_features(q, k, [FAMILY])[:, 0]
    np.testing.assert_allclose(found, f0 - f0.mean(-1, keepdims=True), rtol=0, atol=1e-13)


def test_a_key_that_nobody_attends_to_and_padding_that_is_all_make_no_nan():
    q, k, _ = qkv(2, 1, n=5, d=3, size=1e3)
    assert np.isfinite(FAMILY.features(q, k)).all()
    nothing = np.zeros((2, 1, 5), bool)
    assert not FAMILY.features(q, k, query_mask=nothing, key_mask=nothing).any()


def test_they_pay_where_plans_are_sharp():
    q, k, _ = qkv(64, 2, n=24, d=6, size=2.5, dtype=np.float32)
    test = qkv(16, 2, n=24, d=6, size=2.5, seed=1, dtype=np.float32)
    teacher = sinkhorn_attention(*test, n_iter=10)
    without, with_them = (
        np.linalg.norm(asap_attention(*test, fit_amortizer([(q, k)], n_slices=8, n_iter=10, **options)) - teacher)
        for options in ({}, {"one_pass": 1.0})
    )
    assert with_them < 0.8 * without


def test_the_fast_prediction_is_the_readable_one_up_to_a_constant():
    q, k, _ = qkv(5, 2, n=24, d=6)
    amortizer = fit_amortizer([(q, k)], n_slices=4, n_iter=5, one_pass=(1.0, 3.0))
    assert amortizer.family("one_pass").count == 6
    difference = predicted_dual(q, k, amortizer) - amortizer.predict(q, k)
    assert np.ptp(difference, axis=-1).max() < 1e-10


def test_temperatures_are_positive_numbers_in_a_row():
    q, k, _ = qkv(5, 2, n=24, d=6)
    with pytest.raises(ValueError, match="one_pass must be positive"):
        fit_amortizer([(q, k)], one_pass=-1.0)
    with pytest.raises(ValueError, match=r"temperatures has shape \(1, 2\), expected \(K,\)"):
        dual_features(q, k, [OnePass(np.ones((1, 2)))])
