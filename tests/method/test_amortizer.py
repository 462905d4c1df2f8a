"""The amortizer: its regression against other libraries, its statistics, and what calibration buys."""

import numpy as np
import pytest
from families import amortized_query_dual, amortized_query_dual_vjp, dual_features, dual_features_vjp
from gradients import check_vjp
from problems import qkv
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from asap_ref import (
    Amortizer,
    Slices,
    SufficientStatistics,
    attention_scores,
    fit_amortizer,
    sinkhorn,
    slice_directions,
    transport_plan,
    two_sided_c_transform,
)
from asap_ref import dual_features_vjp as of_families_vjp

rng = np.random.default_rng(0)
FEATURES, TARGET = rng.standard_normal((20, 2, 5, 6)), rng.standard_normal((20, 2, 6))
FEATURES -= FEATURES.mean(-1, keepdims=True)
TARGET -= TARGET.mean(-1, keepdims=True)
PLACES = rng.standard_normal((2, 3, 8, 4))  # two heads' worth of structure that all sequences share


def sequences(count, seed=0, dtype=np.float64):
    """Queries and keys of tokens that have a place and some noise, as in a trained layer."""
    noise = np.random.default_rng(seed).standard_normal((2, count, 3, 8, 4))
    q, k = 2 * PLACES[:, None] + 0.3 * noise
    return q.astype(dtype), k.astype(dtype)


def test_statistics_of_two_halves_add_to_those_of_the_whole():
    whole = SufficientStatistics.of(FEATURES, TARGET)
    halves = SufficientStatistics.of(FEATURES[:7], TARGET[:7]) + SufficientStatistics.of(FEATURES[7:], TARGET[7:])
    for name in ("gram", "cross", "square"):
        np.testing.assert_allclose(getattr(halves, name), getattr(whole, name), rtol=1e-10, atol=1e-12)
    assert halves.count == whole.count == 20 * 6
    np.testing.assert_allclose(halves.ridge(1e-3), whole.ridge(1e-3), rtol=1e-10)


def test_ridge_is_scikit_learns_on_scaled_features():
    weights = SufficientStatistics.of(FEATURES, TARGET).ridge(0.1)
    for head in range(2):
        rows = np.moveaxis(FEATURES[:, head], 1, -1).reshape(-1, 5)
        size = np.sqrt((rows**2).sum(0))
        judge = Ridge(alpha=0.1, fit_intercept=False).fit(rows / size, TARGET[:, head].ravel())
        np.testing.assert_allclose(weights[head], judge.coef_ / size, rtol=1e-9)


def test_r_squared_is_scikit_learns():
    statistics = SufficientStatistics.of(FEATURES, TARGET)
    weights = statistics.ridge(1e-3)
    for head in range(2):
        rows = np.moveaxis(FEATURES[:, head], 1, -1).reshape(-1, 5)
        expected = r2_score(TARGET[:, head].ravel(), rows @ weights[head])  # the target has mean zero
        assert statistics.r_squared(weights)[head] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("strength", [0.0, 1e-17])
def test_features_that_depend_on_each_other_but_for_rounding_get_small_weights(strength):
    """The last is a sum of others, in float32: the rounding of that sum explains nothing, and weighed 1e5 for it."""
    features = FEATURES.astype(np.float32)
    features[..., 4, :] = features[..., 0, :] + features[..., 1, :] + features[..., 2, :]
    weights = SufficientStatistics.of(features, TARGET).ridge(strength)
    independent = SufficientStatistics.of(features[..., :4, :], TARGET).ridge(0.0)
    assert np.abs(weights).max() <= np.abs(independent).max()
    np.testing.assert_allclose(  # the same map
        np.einsum("hf,bhfn->bhn", weights, features),
        np.einsum("hf,bhfn->bhn", independent, features[..., :4, :]),
        atol=1e-5 * np.abs(TARGET).max(),
    )


def test_a_dual_in_the_span_of_the_features_is_found_exactly():
    weights = rng.standard_normal((2, 5))
    target = np.einsum("hf,bhfn->bhn", weights, FEATURES)
    statistics = SufficientStatistics.of(FEATURES, target)
    np.testing.assert_allclose(statistics.ridge(0.0), weights, rtol=1e-9)
    np.testing.assert_allclose(statistics.r_squared(weights), 1, rtol=1e-12)


def test_a_feature_that_never_varies_gets_weight_zero():
    features = FEATURES.copy()
    features[:, :, 2] = 0
    weights = SufficientStatistics.of(features, TARGET).ridge(1e-6)
    assert np.all(weights[:, 2] == 0) and np.isfinite(weights).all()


def test_calibration_beats_no_prediction_and_a_truncated_loop_on_new_data():
    (q, k), (q_new, k_new) = sequences(300), sequences(50, seed=1)
    amortizer = fit_amortizer([(q, k)], n_slices=8, n_iter=20)
    S = attention_scores(q_new, k_new)
    teacher = transport_plan(S, sinkhorn(S, n_iter=20))

    def error(start):
        return np.linalg.norm(transport_plan(S, two_sided_c_transform(S, start)) - teacher)

    assert error(amortizer.predict(q_new, k_new)) < 0.5 * error(sinkhorn(S, n_iter=0).query)
    assert np.all(amortizer.r_squared > 0.9)


def test_prediction_has_mean_zero_and_forgets_constants_of_the_keys():
    q, k = sequences(5)
    amortizer = fit_amortizer([(q, k)], n_slices=8, n_iter=5)
    np.testing.assert_allclose(amortizer.predict(q, k).mean(-1), 0, atol=1e-13)


def test_batches_stream():
    q, k = sequences(60)
    whole = fit_amortizer([(q, k)], n_slices=4, n_iter=5)
    streamed = fit_amortizer(((q[i : i + 20], k[i : i + 20]) for i in range(0, 60, 20)), n_slices=4, n_iter=5)
    np.testing.assert_allclose(streamed.weights, whole.weights, rtol=1e-9)


def test_float32_calibration_is_float64s_but_for_rounding():
    q, k = sequences(60)
    single = fit_amortizer([sequences(60, dtype=np.float32)], n_slices=4, n_iter=5)
    double = fit_amortizer([(q, k)], n_slices=4, n_iter=5)
    expected = double.predict(q, k)
    found = single.predict(*sequences(60, dtype=np.float32))
    assert found.dtype == np.float32
    # features carry 1e-6 relative; the ridge of 1e-4 bounds what the solve makes of it
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("cumulants", [True, False])
def test_gradient_of_features_and_prediction(cumulants):
    q, k, _ = qkv(2, 3, n=6, d=4)
    theta = slice_directions(4, 5)
    check_vjp(
        lambda q, k, t: dual_features(q, k, t, cumulants=cumulants),
        lambda q, k, t: dual_features_vjp(q, k, t, cumulants=cumulants),
        [q, k, theta],
    )
    weights = rng.standard_normal((3, 5 + 3 * cumulants))
    check_vjp(
        lambda *a: amortized_query_dual(*a, cumulants=cumulants),
        lambda *a: amortized_query_dual_vjp(*a, cumulants=cumulants),
        [q, k, theta, weights],
    )


def test_cumulants_are_those_of_the_keys():
    q, k, _ = qkv(1, n=7, d=4)
    features = dual_features(q, k, slice_directions(4, 2))[0, 2:]
    u, cov = q[0] / 2, np.cov(k[0].T, bias=True)  # sqrt(d) is 2
    expected = [u @ k[0].mean(0), (u**2).sum(-1), np.einsum("ia,ab,ib->i", u, cov, u)]
    np.testing.assert_allclose(features, [e - e.mean() for e in expected], atol=1e-13)


def test_a_saved_amortizer_loads_to_the_same_numbers(tmp_path):
    q, k = sequences(10)
    amortizer = fit_amortizer([(q, k)], n_slices=4, n_iter=5, epsilon=0.5, cumulants=False)
    amortizer.save(tmp_path / "a.npz")
    loaded = Amortizer.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(loaded.predict(q, k), amortizer.predict(q, k))
    assert (loaded.epsilon, loaded.n_iter, loaded.family("cumulants")) == (0.5, 5, None)
    np.testing.assert_array_equal(loaded.r_squared, amortizer.r_squared)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_iter": 0}, ValueError, "n_iter must be at least 1"),
        ({"epsilon": 0}, ValueError, "epsilon must be positive"),
        ({"objective": "magic"}, ValueError, "objective must be one of"),
        ({"n_slices": 0}, ValueError, "n_slices must be at least 1"),
        ({"n_slices": 2.5}, TypeError, "n_slices must be an integer"),
        ({"kind": "pca"}, TypeError, "no setting kind; the families of features are"),
        ({"ridge": -1.0}, ValueError, "ridge must be at least 0"),
    ],
)
def test_wrong_settings_say_what_was_expected(options, error, message):
    with pytest.raises(error, match=message):
        fit_amortizer([sequences(2)], **options)


def test_no_batches_and_other_head_counts_are_refused():
    with pytest.raises(ValueError, match="batches is empty"):
        fit_amortizer([])
    amortizer = fit_amortizer([sequences(5)], n_slices=2, n_iter=2)
    q, k, _ = qkv(2, 4, n=6, d=4)
    with pytest.raises(ValueError, match=r"weights has shape \(3, 5\), expected \(H, F\) with H = 4 as in q"):
        amortizer.predict(q, k)


def test_parameters_follow_the_dtype_of_each_call():
    """They are copied once a dtype, and a copy for float64 does not serve float32."""
    q, k = sequences(2)
    amortizer = fit_amortizer([(q, k)], n_slices=4, n_iter=4)
    wide = amortizer.predict(q, k)
    narrow = amortizer.predict(q.astype(np.float32), k.astype(np.float32))
    assert (wide.dtype, narrow.dtype) == (np.float64, np.float32)
    np.testing.assert_allclose(narrow, wide, rtol=0, atol=2e-5 * np.abs(wide).max())


@pytest.mark.parametrize("n_iter", [1, 5])
def test_the_target_is_the_closure_ready_dual_one_iteration_before_the_teachers(n_iter):
    q, k = sequences(10)
    amortizer = fit_amortizer([(q, k)], n_slices=4, n_iter=n_iter, epsilon=0.7, ridge=1e-3)
    target = sinkhorn(attention_scores(q, k), n_iter=n_iter - 1, epsilon=0.7).query
    features = dual_features(q, k, amortizer.family("slices").directions)
    judge = SufficientStatistics.of(features, target - target.mean(-1, keepdims=True))
    np.testing.assert_allclose(amortizer.weights, judge.ridge(1e-3), rtol=1e-9)


def test_each_family_gets_its_own_gradient():
    q, k = np.random.default_rng(0).standard_normal((2, 2, 6, 4))
    families = [Slices(slice_directions(4, 3, seed=seed)) for seed in (0, 1)]
    features, vjp = of_families_vjp(q, k, families)
    d_features = np.random.default_rng(1).standard_normal(features.shape)
    found = vjp(d_features)[2]
    for i, family in enumerate(families):
        _, alone = of_families_vjp(q, k, [family])
        expected = alone(d_features[:, 3 * i : 3 * i + 3])[2][0]
        np.testing.assert_allclose(found[i]["directions"], expected["directions"], rtol=1e-12)
