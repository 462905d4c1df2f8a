"""Softmax, Sinkhorn and ASAP attention: gradients, masks, and how they relate to each other."""

from dataclasses import dataclass

import numpy as np
import pytest
from gradients import check_against_torch, check_vjp
from problems import masks, qkv

from asap_ref import Amortizer, Family, fit_amortizer, sinkhorn
from asap_ref.method import attention as readable
from asap_ref.method import transport
from asap_ref.method.attention import (
    asap_attention,
    asap_attention_vjp,
    sinkhorn_attention,
    sinkhorn_attention_vjp,
    softmax_attention,
    softmax_attention_vjp,
)
from asap_ref.method.transport import attention_scores
from asap_ref.support import arrays
from asap_ref.support.family import FAMILIES

Q, K, V = qkv(2, 3, n=6, d=4, p=5)
RECTANGULAR = qkv(2, 3, n=6, m=8, d=4, p=5)
AMORTIZER = fit_amortizer([(Q, K)], n_slices=5, n_iter=4, epsilon=0.7)
QM, KM = (mask[:, None] for mask in masks(2, 6, 8))


def test_sinkhorn_without_iterations_is_softmax():
    np.testing.assert_allclose(
        sinkhorn_attention(*RECTANGULAR, n_iter=0), softmax_attention(*RECTANGULAR), rtol=1e-12, atol=1e-14
    )


def test_asap_with_the_closure_ready_dual_is_the_teacher():
    """An amortizer that predicts f^(T-1) exactly gives the attention of the teacher of T iterations."""

    @dataclass(frozen=True)
    class ClosureReady(Family, name="closure-ready dual of a test"):
        count = 1

        def features(self, q, k, **masks):
            return sinkhorn(attention_scores(q, k), n_iter=8, epsilon=0.7).query[..., None, :]

    del FAMILIES["closure-ready dual of a test"]
    exact = Amortizer((ClosureReady(),), np.ones((Q.shape[-3], 1)), epsilon=0.7)
    expected = sinkhorn_attention(Q, K, V, n_iter=9, epsilon=0.7)
    np.testing.assert_allclose(asap_attention(Q, K, V, exact), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("attention", "settings", "passes"),
    [
        (softmax_attention, {}, 1),
        (sinkhorn_attention, {"n_iter": 0}, 3),
        (sinkhorn_attention, {"n_iter": 7}, 2 * 7 + 3),
        (asap_attention, {"amortizer": AMORTIZER}, 4),
    ],
)
def test_passes_over_the_scores_are_as_many_as_the_header_says(attention, settings, passes, monkeypatch):
    """A pass is a log-sum-exp or a softmax of an n x m matrix."""
    seen = []
    for module in (transport, readable):
        for function in (arrays.logsumexp, arrays.softmax):

            def counted(x, *, axis, function=function, **valid):
                seen.append(x.shape)
                return function(x, axis=axis, **valid)

            monkeypatch.setattr(module, function.__name__, counted, raising=False)
    attention(*RECTANGULAR, **settings)
    assert seen == [(2, 3, 6, 8)] * passes


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((Q, K, V), {}), (RECTANGULAR, {}), (RECTANGULAR, {"query_mask": QM, "key_mask": KM})],
    ids=["square", "rectangular", "masked"],
)
def test_gradients(arguments, options):
    for f, f_vjp, settings in (
        (softmax_attention, softmax_attention_vjp, {}),
        (sinkhorn_attention, sinkhorn_attention_vjp, {"n_iter": 4, "epsilon": 0.7}),
    ):
        check_vjp(
            lambda *a, f=f, s=settings: f(*a, **s, **options),
            lambda *a, f=f_vjp, s=settings: f(*a, **s, **options),
            arguments,
        )


def test_asap_gradient():
    check_vjp(lambda *a: asap_attention(*a, AMORTIZER), lambda *a: asap_attention_vjp(*a, AMORTIZER), [Q, K, V])


@pytest.mark.parametrize("n_iter", [0, 6])
def test_sinkhorn_attention_agrees_with_torch(n_iter):
    def formula(torch, q, k, v):
        S = q @ k.transpose(-1, -2) / 2  # sqrt(d)
        f = -0.7 * torch.logsumexp(S / 0.7, -1)
        g = torch.zeros_like(S[..., 0, :])
        for _ in range(n_iter):
            g = 0.7 * np.log(6 / 8) - 0.7 * torch.logsumexp((f[..., :, None] + S) / 0.7, -2)
            f = -0.7 * torch.logsumexp((g[..., None, :] + S) / 0.7, -1)
        return torch.exp((f[..., :, None] + g[..., None, :] + S) / 0.7) @ v

    check_against_torch(
        lambda *a: sinkhorn_attention_vjp(*a, n_iter=n_iter, epsilon=0.7), formula, list(RECTANGULAR)
    )


def test_softmax_attention_agrees_with_torch():
    check_against_torch(
        softmax_attention_vjp,
        lambda torch, q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v),
        list(RECTANGULAR),
    )


def test_asap_attention_agrees_with_torch():
    def formula(torch, q, k, v):
        theta, w = torch.tensor(AMORTIZER.family("slices").directions), torch.tensor(AMORTIZER.weights)
        x, i = torch.sort((q @ theta).transpose(-1, -2) / 4**0.25)
        y, _ = torch.sort((k @ theta).transpose(-1, -2) / 4**0.25)
        phi = torch.nn.functional.pad(torch.cumsum(-(y[..., :-1] + y[..., 1:]) / 2 * torch.diff(x), -1), (1, 0))
        phi = torch.zeros_like(x).scatter(-1, i, phi)
        u, mean = q / 2, k.mean(-2, keepdim=True)
        cov = (k - mean).transpose(-1, -2) @ (k - mean) / k.shape[-2]
        extra = torch.stack([(u * mean).sum(-1), (u * u).sum(-1), ((u @ cov) * u).sum(-1)], -2)
        features = torch.cat([phi, extra], -2)
        f = ((features - features.mean(-1, keepdim=True)) * w[:, :, None]).sum(-2)
        S = q @ k.transpose(-1, -2) / 2
        g = -0.7 * torch.logsumexp((f[..., :, None] + S) / 0.7, -2)
        return torch.softmax((g[..., None, :] + S) / 0.7, -1) @ v

    check_against_torch(lambda *a: asap_attention_vjp(*a, AMORTIZER), formula, [Q, K, V])


@pytest.mark.parametrize("padding", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("name", ["softmax", "sinkhorn"])
def test_what_padding_holds_does_not_matter(name, padding):
    q, k, v = RECTANGULAR
    f_vjp = sinkhorn_attention_vjp if name == "sinkhorn" else softmax_attention_vjp
    hidden = [np.where(mask[..., None], x, padding) for x, mask in zip((q, k, v), (QM, KM, KM), strict=True)]
    expected, expected_vjp = f_vjp(q, k, v, query_mask=QM, key_mask=KM)
    found, found_vjp = f_vjp(*hidden, query_mask=QM, key_mask=KM)
    np.testing.assert_array_equal(found, expected)
    assert not found[~np.broadcast_to(QM, found.shape[:-1])].any()
    for a, b, mask in zip(found_vjp(V * 0 + 1), expected_vjp(V * 0 + 1), (QM, KM, KM), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not a[~np.broadcast_to(mask, a.shape[:-1])].any()


def test_scores_of_range_300_in_float32_give_rows_that_sum_to_one():
    q, k, _ = qkv(4, n=32, d=16, size=8.6, dtype=np.float32)
    S = attention_scores(q, k)
    assert S.max() - S.min() > 300
    rows = sinkhorn_attention(q, k, np.ones((4, 32, 1), np.float32))
    np.testing.assert_allclose(rows, 1, atol=1e-5)


def test_half_precision_is_computed_in_float32_and_comes_back_as_it_came():
    half = [x.astype(np.float16) for x in (Q, K, V)]
    wide = [x.astype(np.float32) for x in half]
    found, vjp = sinkhorn_attention_vjp(*half, n_iter=5)
    expected, expected_vjp = sinkhorn_attention_vjp(*wide, n_iter=5)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected.astype(np.float16))
    gradients = vjp(found)
    for gradient, e in zip(gradients, expected_vjp(found.astype(np.float32)), strict=True):
        assert gradient.dtype == np.float16
        np.testing.assert_array_equal(gradient, e.astype(np.float16))
