"""Duals without learning: where each is exact, gradients, padding; and attention from them."""

import numpy as np
import pytest
from gradients import check_against_torch, check_vjp
from problems import masks, qkv, scores

from asap_ref import attention_scores, fit_amortizer, sinkhorn, sinkhorn_attention, two_sided_c_transform
from asap_ref.fast.scaling import scale, scaled_duals
from asap_ref.rivals.initial_duals import (
    STARTS,
    _entropic_map_vjp,
    initial_attention,
    initial_attention_vjp,
    initial_dual,
    initial_dual_vjp,
)
from asap_ref.rivals.one_sided import one_sided_attention, one_sided_attention_vjp

SQUARE = qkv(2, 3, n=6, d=4, p=5)
QM, KM = (mask[:, None] for mask in masks(2, 6, 8))


def centred(f):
    return f - f.mean(-1, keepdims=True)


def test_zero_is_zero():
    assert not initial_dual(*SQUARE[:2], start="zero").any()


def test_the_gaussian_dual_is_sinkhorns_between_large_normal_samples():
    """With quantiles of correlated normals for points, only the discretisation is left."""
    rng = np.random.default_rng(0)
    n, d = 1500, 2
    q, k = (rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + rng.standard_normal(d) for _ in range(2))
    S = attention_scores(q, k)
    exact = centred(
        scaled_duals(scale(S, n_iter=300, epsilon=1.0), 1.0).query
    )  # sinkhorn's, in a tenth of the time
    found = centred(initial_dual(q, k))
    assert np.abs(found - exact).std() < 0.05 * exact.std()  # sampling: 1 / sqrt(1500) is 0.026
    with_regularisation = np.abs(found - exact).std()
    without = np.abs(centred(initial_dual(q, k, epsilon=1e-6)) - exact).std()  # Thornton & Cuturi's
    assert with_regularisation < 0.5 * without


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
def test_the_entropic_map_solves_its_equation(epsilon):
    Sa, Sb = (x @ x.mT for x in scores(2, 3, 4, 6))
    A, _ = _entropic_map_vjp(Sa, Sb, epsilon)
    # the ridge moves Sb by a hundred thousandth of its mean variance
    np.testing.assert_allclose(A @ Sa @ A + epsilon * A, Sb, rtol=0, atol=2e-5 * np.abs(Sb).max())
    np.testing.assert_allclose(A, A.mT, rtol=0, atol=1e-12 * np.abs(A).max())


def test_sorting_is_the_exact_dual_in_one_dimension():
    """Its two-sided transform at small epsilon is the sorted assignment."""
    q, k, _ = qkv(n=7, d=1)
    S = attention_scores(q, k)
    duals = two_sided_c_transform(S, initial_dual(q, k, start="sorting"), epsilon=1e-5)
    plan = np.exp((duals.query[:, None] + duals.key + S) / 1e-5)
    expected = np.zeros((7, 7))
    expected[np.argsort(q[:, 0]), np.argsort(k[:, 0])] = 1
    np.testing.assert_allclose(plan, expected, atol=1e-6)  # exp(-gap / epsilon)


@pytest.mark.parametrize("start", STARTS)
def test_gradients(start):
    options = {"start": start, "epsilon": 0.7}
    check_vjp(lambda *a: initial_dual(*a, **options), lambda *a: initial_dual_vjp(*a, **options), SQUARE[:2])
    check_vjp(lambda *a: initial_attention(*a, **options), lambda *a: initial_attention_vjp(*a, **options), SQUARE)


@pytest.mark.parametrize("arguments", [qkv(2, 3, n=6, m=8, d=4), qkv(2, 3, n=3, m=3, d=4)], ids=["whole", "few"])
def test_gaussian_gradients_of_unequal_masked_and_few_tokens(arguments):
    options = {"epsilon": 0.7}
    if arguments[0].shape[-2] == 6:
        options |= {"query_mask": QM, "key_mask": KM}
    # the ridge divides by small variances, which costs digits of the difference quotient
    check_vjp(
        lambda *a: initial_attention(*a, **options),
        lambda *a: initial_attention_vjp(*a, **options),
        arguments,
        rtol=1e-5,
    )


def test_gaussian_agrees_with_torch():
    def formula(torch, q, k):
        def root(S):
            values, V = torch.linalg.eigh(S)
            return (V * values.clamp(min=0).sqrt()[..., None, :]) @ V.mT

        x = q / 2
        u, z = x - x.mean(-2, keepdim=True), k - k.mean(-2, keepdim=True)
        Sa, Sb = u.mT @ u / 6, z.mT @ z / 6
        eye = torch.eye(4, dtype=q.dtype)
        Sb = Sb + 1e-5 * Sb.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * eye
        # the form with the inverse root of Sa: A = Sa^(-1/2) ((M + epsilon²/4)^(1/2) - epsilon/2) Sa^(-1/2)
        Ra = root(Sa)
        middle = root(Ra @ Sb @ Ra + 0.7**2 / 4 * eye) - 0.35 * eye
        A = torch.linalg.inv(Ra) @ middle @ torch.linalg.inv(Ra)
        return -(x * k.mean(-2, keepdim=True)).sum(-1) - 0.5 * ((u @ A) * u).sum(-1)

    check_against_torch(lambda *a: initial_dual_vjp(*a, epsilon=0.7), formula, SQUARE[:2], rtol=1e-8)


def test_equal_tokens_have_a_dual_and_a_gradient():
    q = np.ones((4, 3))
    out, vjp = initial_attention_vjp(q, q, np.eye(4), start="gaussian")
    np.testing.assert_allclose(out, 0.25, rtol=1e-12)
    assert all(np.isfinite(d).all() for d in vjp(out))


@pytest.mark.parametrize("start", ["zero", "gaussian"])
def test_padding_is_invisible(start):
    q, k, v = (x[0] for x in qkv(2, 3, n=6, m=8, d=4))
    query_mask, key_mask = np.ones(8, bool), np.ones(10, bool)
    query_mask[[0, 5]] = key_mask[[3, 9]] = False

    def padded(x, mask):
        out = np.full((3, len(mask), x.shape[-1]), np.nan)
        out[:, mask] = x
        return out

    found = initial_attention(
        padded(q, query_mask),
        padded(k, key_mask),
        padded(v, key_mask),
        start=start,
        query_mask=query_mask,
        key_mask=key_mask,
    )
    np.testing.assert_allclose(found[:, query_mask], initial_attention(q, k, v, start=start), atol=1e-12)
    assert not found[:, ~query_mask].any()


def test_a_wrong_start_is_named():
    with pytest.raises(ValueError, match="start must be one of 'zero', 'gaussian', 'sorting', got 'warm'"):
        initial_attention(*SQUARE, start="warm")


# ------------------------------------------------------------------------------------------------ one-sided ASAP

AMORTIZER = fit_amortizer([SQUARE[1::-1]], n_slices=5, n_iter=6, epsilon=0.7)


def test_one_sided_gradients():
    check_vjp(
        lambda *a: one_sided_attention(*a, AMORTIZER), lambda *a: one_sided_attention_vjp(*a, AMORTIZER), SQUARE
    )


def test_with_the_exact_key_dual_one_softmax_is_the_converged_plan():
    q, k, v = SQUARE

    class Exact:
        epsilon = 0.7

        def predict(self, k, q, *, query_mask, key_mask):
            return sinkhorn(attention_scores(k, q), n_iter=2000, epsilon=0.7).query

    expected = sinkhorn_attention(q, k, v, n_iter=2000, epsilon=0.7)
    np.testing.assert_allclose(one_sided_attention(q, k, v, Exact()), expected, atol=1e-10)
