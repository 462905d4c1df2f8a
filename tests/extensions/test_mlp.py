"""The hidden layer of the amortizer: gradients, its start at the ridge regression, and what it buys."""

import numpy as np
import pytest
from gradients import check_against_torch, check_vjp
from problems import masks, qkv

from asap_ref import (
    Amortizer,
    SufficientStatistics,
    asap_attention,
    asap_attention_vjp,
    attention_scores,
    dual_features,
    dual_features_vjp,
    fit_amortizer,
    recalibrate,
    sinkhorn,
)
from asap_ref.extensions.mlp import Hidden, hidden_units, hidden_units_vjp, loss_and_gradients, train_hidden
from asap_ref.method import attention as readable
from asap_ref.method.masks import centred

rng = np.random.default_rng(0)
PLACES = rng.standard_normal((2, 3, 8, 4))
FIT = {"n_slices": 4, "n_iter": 6, "epsilon": 0.7}


def sequences(count, seed=0, noise=0.6):
    """Queries and keys of tokens that have a place and some noise, as in a trained layer: 3 heads, 8 tokens."""
    return tuple(2 * PLACES[:, None] + noise * np.random.default_rng(seed).standard_normal((2, count, 3, 8, 4)))


def layer(units, inputs, heads=3, seed=0):
    drawn = np.random.default_rng(seed)
    return Hidden(drawn.standard_normal((heads, units, inputs)), drawn.standard_normal((heads, units)))


def objective(amortizer, q, k, ridge=1e-4):
    """What calibration minimises over the weights, head by head; of all features, the hidden ones too."""
    settings = {"cumulants": amortizer.cumulants, "basis": amortizer.basis, "hidden": amortizer.hidden}
    features = dual_features(q, k, amortizer.directions, **settings)
    target = centred(
        sinkhorn(attention_scores(q, k), n_iter=FIT["n_iter"] - 1, epsilon=FIT["epsilon"]).query, None
    )
    predicted = (amortizer.weights[:, None, :] @ features)[..., 0, :]
    penalty = np.sum(np.sum(features**2, (0, 3)) * amortizer.weights**2, -1)
    return np.sum((target - predicted) ** 2, (0, 2)) + ridge * penalty


# ------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("mask", [None, masks(2, 6, 6)[0][:, None]])
def test_gradient_of_the_units(mask):
    features, hidden = rng.standard_normal((2, 3, 7, 6)), layer(4, 5)
    arguments = [features]
    check_vjp(
        lambda x: hidden_units(x, hidden, mask=mask), lambda x: hidden_units_vjp(x, hidden, mask=mask), arguments
    )
    if mask is None:

        def formula(torch, x):
            W, b = map(torch.tensor, hidden)
            t = torch.tanh(torch.einsum("huf,bhfn->bhun", W, x[..., :5, :]) + b[None, :, :, None])
            return t - t.mean(-1, keepdim=True)

        check_against_torch(lambda x: hidden_units_vjp(x, hidden), formula, arguments)


@pytest.mark.parametrize("padding", [False, True])
def test_gradient_of_features_with_a_hidden_layer(padding):
    q, k, _ = qkv(2, 3, n=6, m=5, d=4)
    options = {
        "basis": rng.standard_normal((4, 2)),
        "hidden": layer(3, 6),
    }  # slices, cumulants and one of the others
    if padding:
        options |= {
            name: mask[:, None] for name, mask in zip(("query_mask", "key_mask"), masks(2, 6, 5), strict=True)
        }
    check_vjp(
        lambda q, k, t: dual_features(q, k, t, **options),
        lambda q, k, t: dual_features_vjp(q, k, t, **options),
        [q, k, rng.standard_normal((4, 2))],
    )


def problem(tokens=30, inputs=4, units=3):
    x, r = rng.standard_normal((inputs, tokens)), rng.standard_normal(tokens)
    parameters = rng.standard_normal((units, inputs)), rng.standard_normal(units), rng.standard_normal(units)
    return parameters, x, r, np.sort(rng.integers(0, 5, tokens))


def test_gradients_of_the_training_loss_are_torchs_and_those_of_central_differences():
    torch = pytest.importorskip("torch", reason="torch, the judge, is not installed: pip install asap-ref[peers]")
    parameters, x, r, sequence = problem()
    loss, gradients = loss_and_gradients(*parameters, x, r, sequence)
    W, b, u = (torch.tensor(p, requires_grad=True) for p in parameters)
    member = torch.tensor(np.eye(5)[sequence])  # (N, 5)
    a = torch.tanh(W @ torch.tensor(x) + b[:, None])
    a = a - (a @ member / member.sum(0)) @ member.T
    expected = ((torch.tensor(r) - u @ a) ** 2).sum() / (r @ r) + 0.5e-5 * ((W**2).sum() + (u**2).sum())
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for found, judge in zip(gradients, torch.autograd.grad(expected, (W, b, u)), strict=True):
        np.testing.assert_allclose(found, judge.numpy(), rtol=0, atol=1e-12 * np.abs(judge.numpy()).max())
    h = 1e-6
    for i, gradient in enumerate(gradients):
        direction = rng.standard_normal(gradient.shape)
        moved = [
            loss_and_gradients(
                *(p + t * direction if j == i else p for j, p in enumerate(parameters)), x, r, sequence
            )[0]
            for t in (h, -h)
        ]
        assert (moved[0] - moved[1]) / (2 * h) == pytest.approx(np.sum(gradient * direction), rel=1e-6)


def test_gradient_through_attention_with_a_hidden_layer():
    q, k, v = qkv(2, 3, n=6, d=4)
    amortizer = fit_amortizer([sequences(40)], hidden=4, quadratic=2, max_iter=10, **FIT)
    for home in (readable.asap_attention, asap_attention):
        np.testing.assert_allclose(
            home(q, k, v, amortizer), readable.asap_attention(q, k, v, amortizer), atol=1e-12
        )
    check_vjp(
        lambda *a: readable.asap_attention(*a, amortizer),
        lambda *a: readable.asap_attention_vjp(*a, amortizer),
        [q, k, v],
    )
    out, vjp = asap_attention_vjp(q, k, v, amortizer)
    for found, expected in zip(vjp(out), readable.asap_attention_vjp(q, k, v, amortizer)[1](out), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)


# ----------------------------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize("max_iter", [1, 30])
@pytest.mark.parametrize("options", [{}, {"quadratic": 2, "candidates": 9}, {"cumulants": False, "ridge": 1e-2}])
def test_never_worse_than_the_linear_map_on_what_calibration_minimises(options, max_iter):
    q, k = sequences(60)
    ridge = options.get("ridge", 1e-4)
    linear, deep = (fit_amortizer([(q, k)], hidden=h, max_iter=max_iter, **FIT, **options) for h in (0, 5))
    before, after = objective(linear, q, k, ridge), objective(deep, q, k, ridge)
    assert np.all(after <= before * (1 + 1e-9))
    np.testing.assert_array_equal(deep.directions, linear.directions)


def test_with_no_weight_on_its_units_it_is_the_linear_map():
    q, k = sequences(20)
    linear = fit_amortizer([(q, k)], **FIT)
    units = layer(5, 7)
    weights = np.concatenate([linear.weights, np.zeros((3, 5))], axis=-1)
    deep = Amortizer(linear.directions, weights, hidden=units, epsilon=0.7)
    np.testing.assert_allclose(deep.predict(q, k), linear.predict(q, k), atol=1e-13)


def test_it_explains_more_of_new_data_where_the_dual_is_no_linear_function():
    data, (q, k) = sequences(400), sequences(80, seed=1)
    target = centred(sinkhorn(attention_scores(q, k), n_iter=5, epsilon=0.7).query, None)

    def residual(**options):
        found = fit_amortizer([data], **FIT, **options).predict(q, k)
        return np.sum((found - target) ** 2) / np.sum(target**2)

    assert residual(hidden=16, max_iter=100) < 0.8 * residual()


def test_a_dual_that_is_a_layer_is_found():
    """One unit made the residual; training several finds it, whatever the units of the inputs are."""
    x = rng.standard_normal((60, 1, 3, 9)) * np.asarray([1.0, 100.0, 0.01])[:, None]
    truth = Hidden(np.asarray([[[1.0, -0.01, 50.0]]]), np.asarray([[0.3]]))
    r = 2 * hidden_units(x, truth)[:, :, 0, :]
    found = train_hidden([(x, r, None)], 4, seed=0, max_iter=300)
    statistics = SufficientStatistics.of(hidden_units(x, found), r)
    assert statistics.r_squared(statistics.ridge(1e-9))[0] > 0.999


@pytest.mark.parametrize("batches", ["one", "several"])
def test_padding_and_batches_change_nothing(batches):
    q, k = sequences(20)
    query_mask, key_mask = (mask[:, None] for mask in masks(20, 8, 8, seed=3))
    padded = q, k, query_mask, key_mask
    settings = {**FIT, "hidden": 3, "max_iter": 4}
    expected = fit_amortizer([padded], **settings)
    if batches == "several":
        given = [tuple(x[i : i + 6] for x in padded) for i in range(0, 20, 6)]
    else:  # what padding holds does not matter
        given = [
            tuple(np.where(m[..., None], x, np.nan) for x, m in ((q, query_mask), (k, key_mask))) + padded[2:]
        ]
    found = fit_amortizer(given, **settings)
    for x, y in zip(found.hidden, expected.hidden, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-7 * np.abs(y).max())  # L-BFGS makes more of rounding
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-6 * np.abs(expected.weights).max())


def test_kl_and_dual_go_on_from_there():
    data = sequences(60)
    start = fit_amortizer([data], hidden=4, max_iter=20, **FIT)
    for name in ("kl", "dual"):
        found = fit_amortizer([data], hidden=4, max_iter=20, objective=name, **FIT)
        np.testing.assert_array_equal(found.hidden.weight, start.hidden.weight)
        assert np.abs(found.weights - start.weights).max() > 0


def test_the_layer_is_kept_when_new_data_comes():
    first, second = sequences(40), sequences(40, seed=1)
    amortizer = fit_amortizer([first], hidden=4, max_iter=10, **FIT)
    merged = recalibrate(amortizer, [second])
    settings = {"cumulants": True, "hidden": amortizer.hidden}
    features = [dual_features(*data, amortizer.directions, **settings) for data in (first, second)]
    target = [
        centred(sinkhorn(attention_scores(*data), n_iter=5, epsilon=0.7).query, None) for data in (first, second)
    ]
    judge = SufficientStatistics.of(np.concatenate(features), np.concatenate(target))
    np.testing.assert_allclose(merged.weights, judge.ridge(1e-4), rtol=1e-7, atol=1e-9)


def test_the_layer_survives_a_file_and_heads_are_picked(tmp_path):
    q, k = sequences(30)
    amortizer = fit_amortizer([(q, k)], hidden=3, max_iter=5, quadratic=2, **FIT)
    amortizer.save(tmp_path / "a.npz")
    loaded = Amortizer.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(loaded.predict(q, k), amortizer.predict(q, k))
    some = loaded.of_heads([2, 0])
    np.testing.assert_allclose(
        some.predict(q[:, [2, 0]], k[:, [2, 0]]), amortizer.predict(q, k)[:, [2, 0]], atol=1e-13
    )


@pytest.mark.parametrize(
    ("attempt", "error", "message"),
    [
        (lambda: fit_amortizer([sequences(5)], hidden=-1), ValueError, "hidden must be at least 0, got -1"),
        (lambda: fit_amortizer([sequences(5)], hidden=2.5), TypeError, "hidden must be an integer"),
        (lambda: fit_amortizer(iter([sequences(5)]), hidden=2), TypeError, "only once"),
        (lambda: hidden_units(np.ones((3, 4, 5)), layer(2, 5)), ValueError, "hidden has weight .* at most 4"),
        (lambda: hidden_units(np.ones((2, 6, 5)), layer(2, 5)), ValueError, "H = 2"),
        (
            lambda: dual_features(*sequences(2), np.eye(4), hidden=layer(2, 5)[:1]),
            TypeError,
            "hidden must be a tuple of 2 arrays",
        ),
    ],
)
def test_mistakes_say_what_was_expected(attempt, error, message):
    with pytest.raises(error, match=message):
        attempt()
