"""The matcher: its loss and gradients (differences, torch), padding, points without a partner, modules, files, ASAP."""

import math
from dataclasses import replace

import numpy as np
import pytest
from gradients import check_parameter_gradients

from asap_ref import Attention, array_module, compile_model, fidelity_report, sinkhorn, sinkhorn_vjp, to_numpy
from asap_ref.fast.scaling import scaled_sinkhorn_vjp
from asap_ref.model.matching import Matcher, MatcherArchitecture, Pairs
from asap_ref.model.partners import log_plan_loss_vjp, partners_of, target_of
from asap_ref.model.sequences import Sequences
from asap_ref.support.contracts import inside
from asap_ref.support.trees import flatten, place

SINKHORN = Attention("sinkhorn", {"n_iter": 4, "epsilon": 0.5})
SMALL = MatcherArchitecture(width=12, n_layers=1, n_heads=3, sharpness=2.0)
rng = np.random.default_rng(0)
FIRST, SECOND = rng.standard_normal((3, 6, 2)), rng.standard_normal((3, 5, 2))
FIRST_MASK = np.arange(6) < np.asarray([6, 3, 5])[:, None]
SECOND_MASK = np.arange(5) < np.asarray([5, 4, 2])[:, None]
WHOLE = Pairs(FIRST, SECOND)
PADDED = Pairs(
    Sequences(np.where(FIRST_MASK[..., None], FIRST, np.nan), FIRST_MASK),
    Sequences(np.where(SECOND_MASK[..., None], SECOND, np.nan), SECOND_MASK),
)
PARTNERS = np.asarray([[1, 0, 4, -1, 2, 3], [3, -1, 0, -1, -1, -1], [-1, 1, -1, 0, -1, -1]])


def create(bins, attention=SINKHORN, dtype=np.float64):
    return Matcher.create(replace(SMALL, bins=bins), attention, dtype=dtype)


# -------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("size", [1.0, 40.0, 1e4], ids=["flat", "sharp", "1e4"])
@pytest.mark.parametrize("n_iter", [0, 1, 10])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_duals_in_scaling_form_have_the_gradient_of_the_definition(size, n_iter, masked):
    scores = size * rng.standard_normal((3, 6, 5))
    masks = dict(query_mask=FIRST_MASK, key_mask=SECOND_MASK) if masked else {}
    settings = dict(n_iter=n_iter, epsilon=0.5, **masks)
    found, found_vjp = inside(scaled_sinkhorn_vjp, scores, **settings)
    expected, expected_vjp = sinkhorn_vjp(scores, **settings)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10 * size)
    cotangent = [rng.standard_normal(dual.shape) * (dual != 0) for dual in expected]
    (d_scores,), (judged,) = inside(found_vjp, cotangent), expected_vjp(tuple(cotangent))
    # a gradient at scores of 1e4 inherits their rounding, 1e-12, over epsilon
    np.testing.assert_allclose(d_scores, judged, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("n_iter", [0, 3])
def test_loss_is_the_negative_log_of_the_plan(n_iter):
    scores = rng.standard_normal((2, 4, 5))
    target = target_of(np.asarray([[0, 4, -1, 2], [3, 1, 0, -1]]), (4, 5), np.float64)
    loss, _ = log_plan_loss_vjp(scores, target, n_iter=n_iter, epsilon=0.5)
    f, g = sinkhorn(scores, n_iter=n_iter, epsilon=0.5)
    plan = np.exp((f[..., None] + g[..., None, :] + scores) / 0.5)
    assert float(loss) == pytest.approx(-np.mean(np.log(plan[target > 0])), rel=1e-12)


def test_a_pair_held_impossible_still_has_a_gradient():
    scores = np.asarray([[[900.0, 0.0], [0.0, 900.0]]], np.float32)  # the true pairs have a plan of exp(-900) = 0
    target = target_of(np.asarray([[1, 0]]), (2, 2), np.float32)
    loss, vjp = log_plan_loss_vjp(scores, target, n_iter=5)
    assert float(loss) == pytest.approx(900, rel=1e-6)
    (d_scores,) = vjp(1.0)
    np.testing.assert_allclose(d_scores, [[[0.5, -0.5], [-0.5, 0.5]]], atol=1e-6)


def test_with_bins_every_point_has_a_weight_of_one():
    target = target_of(PARTNERS, (6, 5), np.float64, bins=True, first_mask=FIRST_MASK, second_mask=SECOND_MASK)
    assert target.shape == (3, 11, 11)
    np.testing.assert_allclose(target[:, :6].sum(-1), FIRST_MASK, atol=1e-15)
    np.testing.assert_allclose(target[:, :, :5].sum(-2), SECOND_MASK, atol=1e-15)
    real = np.concatenate([FIRST_MASK, SECOND_MASK], 1), np.concatenate([SECOND_MASK, FIRST_MASK], 1)
    assert np.all(target[~(real[0][:, :, None] & real[1][:, None, :])] == 0)


# -------------------------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("pairs", [WHOLE, PADDED], ids=["whole", "padded"])
@pytest.mark.parametrize("bins", [False, True], ids=["no bins", "bins"])
@pytest.mark.parametrize("n_iter", [0, 4])
def test_gradient_of_the_loss_is_its_derivative(bins, pairs, n_iter):
    model = create(bins, Attention("sinkhorn", {"n_iter": n_iter, "epsilon": 0.5}))
    _, grads = model.loss_and_gradients(pairs, PARTNERS)
    # atol: rounding of a loss near 3, 1e-15, over the step of 1e-5
    check_parameter_gradients(model, grads, lambda moved: moved.loss_and_gradients(pairs, PARTNERS)[0], atol=1e-9)


@pytest.mark.parametrize("bins", [False, True], ids=["no bins", "bins"])
def test_loss_and_gradients_agree_with_torch(bins):
    torch = pytest.importorskip("torch", reason="torch, the judge, is not installed: pip install asap-ref[peers]")
    from torch_transformer import matching_loss

    model = create(bins)
    loss, grads = model.loss_and_gradients(WHOLE, PARTNERS)
    judge = {key: torch.tensor(value, requires_grad=True) for key, value in flatten(model.params).items()}
    sets = torch.tensor(FIRST), torch.tensor(SECOND)
    expected = matching_loss(judge, *sets, PARTNERS, n_heads=3, n_iter=4, epsilon=0.5)
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-12)
    for key, gradient in flatten(grads).items():
        np.testing.assert_allclose(gradient, judge[key].grad.numpy(), rtol=1e-8, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("bins", [False, True], ids=["no bins", "bins"])
def test_padding_is_not_seen(bins):
    model = create(bins)
    plan = model(PADDED)
    for b in range(3):
        n, m = FIRST_MASK[b].sum(), SECOND_MASK[b].sum()
        alone = model(Pairs(FIRST[b : b + 1, :n], SECOND[b : b + 1, :m]))
        np.testing.assert_allclose(plan[b, :n, :m], alone[0], rtol=1e-9, atol=1e-14)
        assert np.all(plan[b, n:] == 0) and np.all(plan[b, :, m:] == 0)


def test_both_marginals_hold_with_bins_at_most():
    converged = Attention("sinkhorn", {"n_iter": 500, "epsilon": 0.5})
    square = Pairs(FIRST[:, :5], SECOND)
    plan = create(False, converged)(square)
    np.testing.assert_allclose(plan.sum(-1), 1, atol=1e-10)
    np.testing.assert_allclose(plan.sum(-2), 1, atol=1e-6)  # what 500 iterations leave
    binned = create(True, converged)(WHOLE)
    assert np.all(binned.sum(-1) < 1) and np.all(binned.sum(-2) < 1 + 1e-6)


def test_order_of_the_points_does_not_matter():
    model, order = create(True), rng.permutation(6)
    moved = model(Pairs(FIRST[:, order], SECOND))
    np.testing.assert_allclose(moved, model(WHOLE)[:, order], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.slow), "array_api_strict"])
def test_on_every_array_module(backend, tmp_path):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    model = create(True, dtype=np.float32)
    compiled, report = compile_model(model, [model.place(PADDED)], n_slices=4, candidates=None, moments=0)
    assert len(report) == 1 and compiled.attentions[0].name == "asap"
    compiled.save(tmp_path / "matcher.npz")
    expected = compiled(compiled.place(PADDED))
    np.testing.assert_array_equal(Matcher.load(tmp_path / "matcher.npz")(model.place(PADDED)), expected)
    other = Matcher.load(tmp_path / "matcher.npz", backend=backend)
    np.testing.assert_allclose(
        to_numpy(other(other.place(PADDED))), expected, atol=2e-5
    )  # float32, plan at most 1
    xp = array_module(backend)
    trained = replace(create(True), params=place(create(True).params, xp))
    _, grads = trained.loss_and_gradients(trained.place(PADDED), xp.asarray(PARTNERS))
    _, judged = create(True).loss_and_gradients(PADDED, PARTNERS)
    for key, gradient in flatten(judged).items():
        close = 1e-4 if backend == "jax" else 1e-9  # jax holds float32 unless told otherwise
        np.testing.assert_allclose(to_numpy(flatten(grads)[key]), gradient, rtol=close, atol=close, err_msg=key)


def test_a_compiled_matcher_is_reported_on():
    model = create(False)
    pairs = Pairs(*rng.standard_normal((2, 20, 8, 2)))
    compiled, _ = compile_model(model, [pairs], n_slices=8, candidates=None, moments=0)
    report = fidelity_report(compiled, pairs, teacher=model)
    teacher, student = model(pairs), compiled(pairs)
    error = np.linalg.norm(student - teacher) / np.linalg.norm(teacher)
    assert report.rows[0]["output_error"] == pytest.approx(error, rel=1e-9)  # the output is the plan
    assert error < 0.2


def test_partners_are_the_largest_of_a_row_or_none():
    plan = np.asarray([[[0.1, 0.7, 0.1], [0.3, 0.1, 0.1], [0.2, 0.2, 0.5]]])
    np.testing.assert_array_equal(partners_of(plan), [[1, -1, 2]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create(False, Attention("softmax")).loss_and_gradients(WHOLE, PARTNERS), "n_iter=0 is softmax"),
        (lambda: MatcherArchitecture(width=10), "not a multiple"),
        (lambda: create(False)(Pairs(np.full((1, 3, 2), np.nan), np.zeros((1, 3, 2)))), "NaN"),
        (lambda: create(False).loss_and_gradients(WHOLE, PARTNERS[:, :4]), "partners"),
        (lambda: create(False).loss_and_gradients(WHOLE, PARTNERS + 2), "partners"),
        (lambda: create(False)(Pairs(np.zeros((1, 3, 3)), np.zeros((1, 3, 2)))), r"expected \(batch, n, 2\)"),
        (lambda: create(False)(Pairs(np.zeros((1, 3, 2)), np.zeros((2, 3, 2)))), "as many"),
        (lambda: create(False).loss_and_gradients(WHOLE, -np.ones((3, 6), int)), "no point has a partner"),
    ],
)
def test_wrong_calls_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    assert math.isfinite(float(create(False).loss_and_gradients(WHOLE, PARTNERS)[0]))
