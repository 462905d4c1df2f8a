"""Objectives and features of calibration: gradients, optima, selection, and what they buy on data."""

from dataclasses import replace

import numpy as np
import pytest
from families import dual_features, dual_features_vjp
from gradients import check_against_torch, check_vjp
from problems import masks, qkv, scores
from scipy.optimize import minimize

from asap_ref import (
    Amortizer,
    Cumulants,
    Quadratic,
    Slices,
    SufficientStatistics,
    asap_attention,
    asap_attention_vjp,
    attention_scores,
    fit_amortizer,
    sinkhorn,
    sinkhorn_attention,
    transport_plan,
    two_sided_c_transform,
)
from asap_ref.calibration.fit import principal_directions
from asap_ref.calibration.kl import kl_statistics
from asap_ref.calibration.objectives import dual_loss_and_gradient, kl_loss_and_gradient
from asap_ref.calibration.penalty import penalties
from asap_ref.calibration.recalibration import recalibrate
from asap_ref.calibration.slice_choice import select
from asap_ref.extensions.moments import _of_projected_vjp
from asap_ref.fast import prediction
from asap_ref.method import attention as readable
from asap_ref.method.features import dual_features as features_of
from asap_ref.support.masks import centred, keep_tokens

rng = np.random.default_rng(0)
PLACES = rng.standard_normal((2, 3, 12, 4))


def sequences(count, seed=0, noise=0.4):
    """Queries and keys of tokens that have a place and some noise, as in a trained layer: 3 heads, 12 tokens."""
    drawn = np.random.default_rng(seed).standard_normal((2, count, 3, 12, 4))
    return tuple(2 * PLACES[:, None] + noise * drawn)


MASKS = dict(zip(("query_mask", "key_mask"), masks(2, 5, 7), strict=True))


@pytest.mark.parametrize("padding", [{}, MASKS])
@pytest.mark.parametrize("objective", ["kl", "dual"])
def test_gradient_of_the_objectives(objective, padding):
    S, f = scores(2, 5, 7), scores(2, 5, seed=1)
    settings = {"epsilon": 0.7, **padding}
    teacher = transport_plan(S, sinkhorn(S, n_iter=3, **settings), **settings).sum(-2)

    def loss(f):
        found = (
            kl_loss_and_gradient(S, f, teacher, **settings)
            if objective == "kl"
            else dual_loss_and_gradient(S, f, **settings)
        )
        return found[0].sum(), found[1]

    direction = rng.standard_normal(f.shape)
    if padding:
        direction = np.where(padding["query_mask"], direction, 0)
    h = 1e-5  # truncation h² and rounding 1e-16 / h are both below 1e-9
    numeric = (loss(f + h * direction)[0] - loss(f - h * direction)[0]) / (2 * h)
    assert numeric == pytest.approx(np.sum(loss(f)[1] * direction), rel=1e-7, abs=1e-9)
    if padding:
        assert np.all(loss(f)[1][~padding["query_mask"]] == 0)


def test_kl_loss_is_the_divergence_up_to_a_constant():
    S, f, other = scores(5, 5), scores(5, seed=1), scores(5, seed=2)
    teacher = transport_plan(S, sinkhorn(S, n_iter=4))

    def divergence(f):
        student = transport_plan(S, two_sided_c_transform(S, f))
        return np.sum(teacher * np.log(teacher / student)) / 5

    found = [kl_loss_and_gradient(S, x, teacher.sum(-2))[0] for x in (f, other)]
    assert found[0] - found[1] == pytest.approx(divergence(f) - divergence(other), rel=1e-10)


def test_the_semi_dual_is_largest_at_the_converged_dual():
    S = scores(6, 6)
    best = sinkhorn(S, n_iter=500).query
    loss, gradient = dual_loss_and_gradient(S, best)
    assert np.abs(gradient).max() < 1e-8
    for seed in range(5):
        assert dual_loss_and_gradient(S, best + 0.1 * scores(6, seed=seed))[0] > loss


def divergence(S, teacher, f, **settings):
    """KL(P_teacher || P_hat), summed over queries, a number for each leading index."""
    student = transport_plan(S, two_sided_c_transform(S, f, **settings), **settings)
    return np.sum(
        teacher * np.log(np.where(teacher > 0, teacher, 1) / np.where(teacher > 0, student, 1)), (-2, -1)
    )


@pytest.mark.parametrize("padding", [{}, MASKS])
@pytest.mark.parametrize("epsilon", [0.7, 1.0])
def test_kl_statistics_are_the_second_order_of_the_divergence(padding, epsilon):
    q, k, _ = qkv(2, 1, n=5, m=7, d=4)
    settings = {"epsilon": epsilon, **{name: mask[:, None] for name, mask in padding.items()}}
    families = (Slices(rng.standard_normal((4, 3))), Cumulants())
    found = kl_statistics(q, k, families, n_iter=3, **settings)
    S = attention_scores(q, k)
    f = sinkhorn(S, n_iter=2, **settings).query
    teacher = transport_plan(S, two_sided_c_transform(S, f, **settings), **settings)
    delta, h = rng.standard_normal(6), 1e-3
    of_tokens = {name: settings.get(name) for name in ("query_mask", "key_mask")}
    move = np.sum(delta[:, None] * features_of(q, k, families, **of_tokens), -2)

    def second_difference(u, v):
        """d²KL(f + s u + t v) / ds dt; what is of the third order drops out, of the fourth is h² of it."""
        corners = [(s * t, f + h * (s * u + t * v)) for s in (-1, 1) for t in (-1, 1)]
        return sum(sign * divergence(S, teacher, x, **settings).sum() for sign, x in corners) / (2 * h) ** 2

    assert delta @ found.gram[0] @ delta == pytest.approx(second_difference(move, move), rel=1e-4)
    assert delta @ found.cross[0] == pytest.approx(second_difference(move, f), rel=1e-4)
    assert found.square[0] == pytest.approx(second_difference(f, f), rel=1e-4)


def test_kl_in_one_solve_is_level_with_descent_on_the_divergence_itself():
    (q, k), new = sequences(150), sequences(60, seed=1)
    fits = {name: fit_amortizer([(q, k)], n_slices=6, n_iter=4, objective=name) for name in ("regression", "kl")}
    start, h = fits["regression"], 1
    features = start.families[0].features(q, k)
    features = np.concatenate([features, start.families[1].features(q, k)], -2)[:, h]
    S = attention_scores(q, k)[:, h]
    teacher = transport_plan(S, sinkhorn(S, n_iter=4))

    def loss(w):
        value, gradient = kl_loss_and_gradient(S, np.sum(w[:, None] * features, -2), teacher.sum(-2))
        return value.mean(), np.sum(features * gradient[:, None, :], (0, 2)) / len(q)

    best = minimize(loss, start.weights[h], jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
    of_new = np.concatenate([family.features(*new) for family in start.families], -2)[:, h]
    S = attention_scores(*new)[:, h]
    teacher = transport_plan(S, sinkhorn(S, n_iter=4))
    found = {
        name: divergence(S, teacher, np.sum(w[:, None] * of_new, -2)).mean()
        for name, w in [("descent", best), *((name, fit.weights[h]) for name, fit in fits.items())]
    }
    assert found["kl"] < 1.02 * found["descent"]
    assert found["kl"] < found["regression"]


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("padding", [False, True])
def test_gradient_of_the_quadratic_features(per_head, padding):
    q, k, _ = qkv(2, 3, n=6, m=5, d=4)
    theta = rng.standard_normal((4, 2))
    options = {"basis": rng.standard_normal((3, 4, 2) if per_head else (4, 2))}
    if padding:
        options |= {
            name: mask[:, None] for name, mask in zip(("query_mask", "key_mask"), masks(2, 6, 5), strict=True)
        }
    check_vjp(
        lambda q, k, t: dual_features(q, k, t, **options),
        lambda q, k, t: dual_features_vjp(q, k, t, **options),
        [q, k, theta],
    )


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("padding", [False, True])
def test_gradient_of_the_moment_features(per_head, padding):
    q, k, _ = qkv(2, 3, n=6, m=5, d=4)
    theta = rng.standard_normal((4, 2))
    options = {"basis": rng.standard_normal((3, 4, 3) if per_head else (4, 3)), "moments": True}
    if padding:
        options |= {
            name: mask[:, None] for name, mask in zip(("query_mask", "key_mask"), masks(2, 6, 5), strict=True)
        }
    check_vjp(
        lambda q, k, t: dual_features(q, k, t, **options),
        lambda q, k, t: dual_features_vjp(q, k, t, **options),
        [q, k, theta],
    )


def test_moment_features_and_their_gradients_are_torchs():
    def formula(torch, u, w):
        s = [u.mean(-1), *(torch.cov(x, correction=0).diagonal() for x in (w, u))]
        bilinear = [x * u[a] for x in torch.cat(s) for a in range(3)]
        squares = [
            torch.cov(x, correction=0)[a, b] * u[a] * u[b] for x in (w, u) for a in range(3) for b in range(a, 3)
        ]
        features = torch.stack([*bilinear, *squares])
        return features - features.mean(-1, keepdim=True)

    check_against_torch(
        lambda u, w: _of_projected_vjp(u, w, None, None), formula, [scores(3, 6), scores(3, 5, seed=1)]
    )


def test_with_moments_a_form_that_follows_the_covariances_is_found_exactly():
    q, k = sequences(300)
    u = q / 4**0.25
    forms = np.zeros((300, 3, 4, 4))
    for x, weight in ((q, 0.3), (k, -0.7)):
        spread = (x - x.mean(-2, keepdims=True)) / 4**0.25
        forms = forms + weight * np.eye(4) * (np.swapaxes(spread, -1, -2) @ spread / 12)
    target = np.sum((u @ forms) * u, -1)
    target -= target.mean(-1, keepdims=True)

    def explained(**options):
        features = dual_features(q, k, np.eye(4), basis=np.eye(4), **options)
        statistics = SufficientStatistics.of(features, target)
        return statistics.r_squared(statistics.ridge(1e-12))

    assert np.all(explained(moments=True) > 1 - 1e-9) and np.all(explained() < 0.999)


def test_quadratic_features_are_the_products_they_are_called():
    q, k, _ = qkv(1, n=7, d=4)
    found = Quadratic(np.eye(4)).features(q, k)[0]
    u, w = q[0] / 4**0.25, k[0].mean(0) / 4**0.25
    expected = [
        *u.T,
        *(u[:, a] * u[:, b] for a in range(4) for b in range(a, 4)),
        *(u[:, a] * w[b] for b in range(4) for a in range(4)),
    ]
    np.testing.assert_allclose(found, [e - e.mean() for e in expected], atol=1e-13)


@pytest.mark.parametrize(
    "options",
    [
        {"quadratic": 4},
        {"quadratic": 2},
        {"cumulants": False, "quadratic": 3},
        {"candidates": 12},
        {"cumulants": False},
        {"moments": 2},
        {"quadratic": 3, "moments": 3},
        {"quadratic": 4, "moments": 2, "cumulants": False, "candidates": 9},
    ],
)
def test_the_fast_prediction_knows_every_feature(options):
    q, k = sequences(30)
    amortizer = fit_amortizer([(q, k)], **{"n_slices": 5, "n_iter": 4, **options})
    lengths = np.random.default_rng(0).integers(0, 13, (2, 30, 1, 1))
    first, some = (np.arange(12) < lengths), np.random.default_rng(1).random((2, 30, 3, 12)) < 0.6
    for keys, query_mask, key_mask in [
        (k, None, None),
        (k[..., :7, :], None, None),
        (k, first[0], first[0]),  # as in self-attention
        (k, *first),
        (k, *some),
        (k[..., :7, :], some[0], None),
        (k[..., :7, :], None, some[1][..., :7]),
    ]:
        masks = {"query_mask": query_mask, "key_mask": key_mask}
        q_, k_ = keep_tokens(q, query_mask), keep_tokens(keys, key_mask)
        expected = amortizer.predict(q_, k_, **masks)
        found = centred(prediction.predicted_dual(q_, k_, amortizer, **masks), query_mask)
        valid = np.ones(q.shape[:-1], bool) if query_mask is None else np.broadcast_to(query_mask, q.shape[:-1])
        assert not found[~valid].any()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_quadratic_features_and_chosen_slices_explain_more_on_new_data():
    data, new = sequences(400), sequences(60, seed=1)
    S = attention_scores(*new)
    teacher = sinkhorn(S, n_iter=9).query
    teacher -= teacher.mean(-1, keepdims=True)

    def residual(**options):
        found = fit_amortizer([data], n_slices=4, n_iter=10, **options).predict(*new)
        return np.sum((found - teacher) ** 2) / np.sum(teacher**2)

    plain = residual()
    assert residual(candidates=32) < plain
    assert residual(quadratic=4) < 0.8 * plain


def test_selection_finds_the_slices_that_made_the_target():
    features = rng.standard_normal((50, 1, 9, 10))
    features -= features.mean(-1, keepdims=True)
    target = 2 * features[:, :, 5] - features[:, :, 1] + 0.5 * features[:, :, 8]  # 8 is always there
    statistics = SufficientStatistics.of(features, target)
    assert set(select(statistics, 8, 2)[0]) == {1, 5}
    kept = statistics.of_features(np.asarray([[5, 1, 8]]))
    np.testing.assert_allclose(kept.ridge(0.0), [[2, -1, 0.5]], atol=1e-10)


def test_with_fewer_tokens_than_features_the_penalty_keeps_selection_from_seeing_only_the_others():
    features = rng.standard_normal((1, 1, 8 + 60, 40))  # 60 features that are always there explain 40 tokens
    statistics = SufficientStatistics.of(features, features[:, :, 3])
    held_back = np.repeat([1e-3, 1.0], [1, 60])
    assert select(statistics, 8, 1, held_back).tolist() == [[3]]


def test_the_penalty_grows_with_the_features_of_a_family_a_token():
    families = [Slices(PLACES[0, 0]), Cumulants(), Quadratic(np.eye(4))]
    counts = [family.count for family in families]
    found = penalties(families, 90)
    np.testing.assert_allclose(found, np.repeat([1e-3 + count / 270 for count in counts], counts))
    np.testing.assert_allclose(penalties(families, 10**9), 1e-3, rtol=1e-3)  # with many tokens the floor is left


def test_ridge_takes_a_penalty_for_each_feature():
    features, target = rng.standard_normal((2, 1, 3, 50)), rng.standard_normal((2, 1, 50))
    statistics, penalty = SufficientStatistics.of(features, target), np.asarray([0.0, 0.1, 3.0])
    gram, cross = statistics.gram[0], statistics.cross[0]
    expected = np.linalg.solve(gram + np.diag(penalty * np.diagonal(gram)), cross)
    np.testing.assert_allclose(statistics.ridge(penalty)[0], expected, rtol=1e-10)
    np.testing.assert_array_equal(statistics.ridge(np.full(3, 0.1)), statistics.ridge(0.1))


def test_the_default_penalty_is_that_of_the_families_and_tokens():
    places = qkv(6, 2, n=7, d=3)[:2]
    amortizer = fit_amortizer([places], n_slices=3, n_iter=3)
    expected = amortizer.statistics.ridge(penalties(amortizer.families, 6 * 7))
    np.testing.assert_array_equal(amortizer.weights, expected)
    np.testing.assert_array_equal(recalibrate(amortizer, [places], forget=0).weights, expected)


@pytest.mark.parametrize("sequences", [8, 16])
def test_few_sequences_spoil_a_large_map_less_by_the_default_penalty_than_by_a_fixed_one(sequences):
    mixture = rng.standard_normal((4, 8))  # tokens are near one of four places

    def draw(count):
        return mixture[rng.integers(0, 4, (2, count, 1, 24))] + rng.standard_normal((2, count, 1, 24, 8))

    few, (q, k) = draw(sequences), draw(64)
    S = attention_scores(q, k)
    target = centred(sinkhorn(S, n_iter=9).query, None)
    error = {
        ridge: np.mean(
            (fit_amortizer([tuple(few)], n_slices=4, n_iter=10, quadratic=8, ridge=ridge).predict(q, k) - target)
            ** 2
        )
        for ridge in (None, 1e-3)
    }
    assert error[None] < 0.8 * error[1e-3]


def test_principal_directions_are_scikit_learns():
    from sklearn.decomposition import PCA

    q, k = sequences(50)
    found = principal_directions(q, k, None, None)
    for head in range(3):
        x = np.concatenate([z[:, head].reshape(-1, 4) - z[:, head].reshape(-1, 4).mean(0) for z in (q, k)])
        judge = PCA().fit(x).components_
        np.testing.assert_allclose(np.abs(np.sum(judge * found[head].T, -1)), 1, atol=1e-9)


@pytest.mark.parametrize("refine", [1, 3])
def test_refinement_iterates_on_and_its_gradient_follows(refine):
    q, k, v = qkv(2, 3, n=6, d=4)
    amortizer = fit_amortizer([sequences(30)], n_slices=3, n_iter=6, epsilon=0.7, refine=refine)
    amortizer = replace(amortizer, omega=None)  # plain iterations; over-relaxed ones are in test_relaxation.py
    out = asap_attention(q, k, v, amortizer)
    S = attention_scores(q, k)
    duals = sinkhorn(S, n_iter=1 + refine, init=amortizer.predict(q, k), epsilon=0.7)
    np.testing.assert_allclose(out, transport_plan(S, duals, epsilon=0.7) @ v, atol=1e-12)
    check_vjp(
        lambda *a: readable.asap_attention(*a, amortizer),
        lambda *a: readable.asap_attention_vjp(*a, amortizer),
        [q, k, v],
    )
    np.testing.assert_allclose(asap_attention_vjp(q, k, v, amortizer)[0], out, atol=1e-12)


def test_more_refinement_is_nearer_to_the_converged_plan():
    data, (q, k) = sequences(100), sequences(20, seed=1)
    v = rng.standard_normal(q.shape)
    converged = sinkhorn_attention(q, k, v, n_iter=300)
    errors = [
        np.linalg.norm(asap_attention(q, k, v, fit_amortizer([data], n_slices=4, refine=r)) - converged)
        for r in (0, 2, 8)
    ]
    assert errors == sorted(errors, reverse=True)


def test_every_field_survives_a_file(tmp_path):
    amortizer = fit_amortizer(
        [sequences(30)], n_slices=3, n_iter=5, quadratic=2, moments=3, candidates=6, objective="kl", refine=2
    )
    amortizer.save(tmp_path / "a.npz")
    loaded = Amortizer.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(loaded.predict(*sequences(3)), amortizer.predict(*sequences(3)))
    assert (loaded.objective, loaded.refine) == ("kl", 2)
    assert [family.name for family in loaded.families] == ["slices", "cumulants", "quadratic", "moments"]
    assert [loaded.family(name).basis.shape for name in ("quadratic", "moments")] == [(3, 4, 2), (3, 4, 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quadratic": -1}, "quadratic must be at least 0"),
        ({"moments": -2}, "moments must be at least 0"),
        ({"candidates": 2, "n_slices": 4}, "candidates must be at least 4"),
        ({"n_slices": 0}, "n_slices must be at least 1"),
        ({"refine": -1}, "refine must be at least 0"),
    ],
)
def test_wrong_settings_say_what_was_expected(options, message):
    with pytest.raises(ValueError, match=message):
        fit_amortizer([sequences(2)], **options)
