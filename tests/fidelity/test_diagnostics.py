"""Diagnostics against values worked out by hand, and against what they must be at the extremes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import masks, qkv, scores

from asap_ref import Attention, attention_scores, marginal_error, sinkhorn, transport_plan
from asap_ref.fidelity.diagnostics import (
    attention_entropy,
    equivalent_iterations,
    rank_residual,
    rank_residual_by_depth,
    sink_score,
)
from asap_ref.model.architecture import Architecture
from asap_ref.model.transformer import Transformer


def plan(S, n_iter, **options):
    """The plan after n_iter iterations from zero."""
    return transport_plan(S, sinkhorn(S, n_iter=n_iter, init=np.zeros(S.shape[:-1]), **options), **options)


def test_marginal_error_by_hand():
    P = np.asarray([[0.25, 0.25, 0.0, 0.25], [0.25, 0.25, 0.25, 0.25]])  # rows 0.75 and 1, columns 0.5 but one
    rows, columns = marginal_error(P)
    assert rows == 0.25
    assert columns == 0.25
    rows, columns = marginal_error(P, query_mask=np.asarray([False, True]))  # columns want 1/4: row 0 is too much
    assert rows == 0
    assert columns == 0.25


def test_by_hand():
    P = np.asarray([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]])
    assert sink_score(P) == pytest.approx(1.0 / (2 / 3))  # columns 1, 0.75, 0.25; fair share 2/3
    assert attention_entropy(P) == pytest.approx((np.log(2) + 1.5 * np.log(2)) / 2)
    X = np.asarray([[3.0, 0.0], [1.0, 2.0]])  # mean (2, 1): deviations (1, -1), (-1, 1)
    assert rank_residual(X) == pytest.approx(np.sqrt(4 / 14))


def test_extremes():
    one_sink = np.tile(np.eye(5)[2], (4, 1))  # every query attends to key 2
    assert sink_score(one_sink) == pytest.approx(5.0)
    assert attention_entropy(one_sink) == 0
    uniform = np.full((4, 5), 1 / 5)
    assert sink_score(uniform) == pytest.approx(1.0)
    assert attention_entropy(uniform) == pytest.approx(np.log(5))
    assert sink_score(plan(scores(2, 6, 6), 500)) == pytest.approx(np.ones(2), abs=1e-6)
    assert rank_residual(np.zeros((3, 2))) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10**6))
def test_softmax_plans_stay_in_range(n, m, seed):
    P = Attention("softmax")(*qkv(1, n=n, m=m, d=3, seed=seed)[:2], np.eye(m)[None])
    assert 1 - 1e-12 <= sink_score(P)[0] <= m * (1 + 1e-12)
    assert -1e-12 <= attention_entropy(P)[0] <= np.log(m) + 1e-12
    assert 0 <= rank_residual(P)[0] <= 1 + 1e-12


def test_padding_does_not_count():
    q, k, _ = qkv(2, 3, n=7, m=8)
    query_mask, key_mask = (mask[:, None] for mask in masks(2, 7, 8))
    S = attention_scores(q, k)
    both = {"query_mask": query_mask, "key_mask": key_mask}
    P = plan(S, 2, **both)
    reference = plan(S, 200, **both)
    for b in range(2):
        i, j = query_mask[b, 0], key_mask[b, 0]
        cut = P[b][:, i][:, :, j]
        np.testing.assert_allclose(sink_score(P, **both)[b], sink_score(cut), rtol=1e-12)
        np.testing.assert_allclose(
            attention_entropy(P, query_mask=query_mask)[b], attention_entropy(cut), rtol=1e-12
        )
        np.testing.assert_allclose(rank_residual(q, mask=query_mask)[b], rank_residual(q[b][:, i]), rtol=1e-12)
    np.testing.assert_array_equal(equivalent_iterations(S, P, reference, **both), 2)


@pytest.mark.parametrize("t", [1, 2, 5])
def test_a_sinkhorn_plan_is_worth_its_own_iterations(t):
    S = scores(3, 6, 8)
    reference = plan(S, 300, epsilon=0.8)
    np.testing.assert_array_equal(equivalent_iterations(S, plan(S, t, epsilon=0.8), reference, epsilon=0.8), t)
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install asap-ref[peers]")
    there = [torch.tensor(x) for x in (S, plan(S, t, epsilon=0.8), reference)]
    assert equivalent_iterations(*there, epsilon=0.8).tolist() == [t] * 3
    exact = equivalent_iterations(S, reference, reference, epsilon=0.8, most=4)
    np.testing.assert_array_equal(exact, 4)  # not reached: told as the most that was tried


def test_uniform_attention_without_skips_would_collapse_and_depth_is_read_off_the_model():
    model = Transformer.create(Architecture(n_layers=2, width=16, n_heads=2), Attention("softmax"))
    images = np.random.default_rng(0).standard_normal((3, 8, 8))
    residuals = rank_residual_by_depth(model, images)
    assert len(residuals) == 3 and all(r.shape == (3,) for r in residuals)
    silent = Transformer(model.architecture, _without_branches(model.params), model.attentions)
    for r in rank_residual_by_depth(silent, images)[1:]:  # blocks that write nothing change nothing
        np.testing.assert_array_equal(r, rank_residual_by_depth(silent, images)[0])
    x = scores(5, 4)
    assert rank_residual(np.full((5, 5), 0.2) @ x) < 1e-15  # one layer of uniform attention is enough


def _without_branches(params):
    """The same parameters with zeros where attention and MLP write to the residual stream."""
    params = {name: dict(part) for name, part in params.items()}
    for name in ("block0", "block1"):
        for branch, last in (("heads", "out"), ("mlp", "down")):
            layer = {key: 0 * x for key, x in params[name][branch][last].items()}
            params[name][branch] = {**params[name][branch], last: layer}
    return params


def test_wrong_calls_say_what_is_wrong():
    with pytest.raises(ValueError, match="most must be at least 1"):
        equivalent_iterations(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)), most=0)
    with pytest.raises(ValueError, match="plan contains NaN"):
        sink_score(np.full((2, 2), np.nan))
