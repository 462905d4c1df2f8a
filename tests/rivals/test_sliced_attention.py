"""Sliced-transport attention: soft sorting, its limit, exact marginals, gradients, and POT as the judge."""

import numpy as np
import pytest
from gradients import check_against_torch, check_vjp
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import masks, qkv, scores

from asap_ref import slice_directions, sliced_attention, sliced_attention_vjp, soft_sort, soft_sort_vjp

SQUARE = qkv(2, 3, n=6, d=4, p=5)
RECTANGULAR = qkv(2, 3, n=6, m=8, d=4, p=5)
QM, KM = (mask[:, None] for mask in masks(2, 6, 8))
THETA = slice_directions(4, 5)
SOFT = {"temperature": 0.3, "inverse_temperature": 0.5}  # soft enough for finite differences to see the curve


def plan(q, k, **options):
    """The plan of an attention is its output on the identity."""
    m = k.shape[-2]
    return sliced_attention(q, k, np.broadcast_to(np.eye(m), (*k.shape[:-2], m, m)), **options)


# ---------------------------------------------------------------------------------------------------- soft sort


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12), st.floats(1e-4, 10))
def test_soft_sort_rows_sum_to_one_and_hard_sort_sorts(values, temperature):
    x = np.asarray(values)
    U = soft_sort(x, temperature=temperature)
    np.testing.assert_allclose(U.sum(-1), 1, rtol=1e-12)
    assert (U >= 0).all()
    P = soft_sort(x, hard=True)
    np.testing.assert_array_equal(P @ x, np.sort(x))
    np.testing.assert_array_equal(P.T @ P, np.eye(len(x)))


def test_soft_sort_tends_to_the_permutation_as_t_falls():
    x = scores(4, 9)
    errors = [np.abs(soft_sort(x, temperature=t) - soft_sort(x, hard=True)).max() for t in (1.0, 0.1, 1e-2, 1e-4)]
    assert errors == sorted(errors, reverse=True)
    gap = np.diff(np.sort(x)).min()
    assert errors[-1] <= 9 * np.exp(-(gap**2) / 1e-4)  # what the nearest neighbours leave


@pytest.mark.parametrize("mask", [None, masks(2, 7, 7)[0]], ids=["whole", "masked"])
def test_soft_sort_gradient(mask):
    x = scores(2, 7)
    check_vjp(
        lambda x: soft_sort(x, temperature=0.5, mask=mask),
        lambda x: soft_sort_vjp(x, temperature=0.5, mask=mask),
        [x],
    )
    if mask is None:

        def formula(torch, x):
            ordered = torch.sort(x, -1)[0]
            return torch.softmax(-((x[..., None, :] - ordered[..., :, None]) ** 2) / 0.5, -1)

        check_against_torch(lambda x: soft_sort_vjp(x, temperature=0.5), formula, [x])


# ---------------------------------------------------------------------------------------- plans with hard sorting


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 8), (9, 6)])
def test_with_hard_sorting_the_plan_of_a_slice_is_pots(n, m):
    ot = pytest.importorskip("ot", reason="POT is not installed: pip install asap-ref[test]")
    q, k, _ = qkv(n=n, m=m, d=4)
    for theta in THETA.T:
        G = plan(q, k, directions=theta[:, None], hard=True)
        expected = n * ot.emd_1d(q @ theta, k @ theta, metric="sqeuclidean")  # there both marginals are uniform
        np.testing.assert_allclose(G, expected, atol=1e-12)
        if n == m:
            assert set(np.unique(G)) == {0.0, 1.0}
            np.testing.assert_array_equal(G.sum(0), 1)
            np.testing.assert_array_equal(G.sum(1), 1)


@pytest.mark.parametrize("inverse_temperature", [0.0, 0.4])
def test_with_hard_sorting_the_plan_is_pots_expected_sliced_plan(inverse_temperature):
    ot = pytest.importorskip("ot", reason="POT is not installed: pip install asap-ref[test]")
    q, k, _ = qkv(n=8, d=4)  # a power of two: 1/n is exact, and POT sees that its plans are permutations
    expected = ot.sliced.expected_sliced_plan(
        q / 2,  # d^(-1/2), which the attention applies by itself
        k / 2,
        projections=THETA,
        metric="euclidean",
        beta=8 * inverse_temperature,  # POT's plans have mass 1, ours n
    )[0]
    found = plan(q, k, directions=THETA, inverse_temperature=inverse_temperature, hard=True)
    np.testing.assert_allclose(found, 8 * np.asarray(expected), atol=1e-12)


def test_the_plan_tends_to_the_hard_one_as_t_falls():
    q, k, _ = RECTANGULAR
    hard = plan(q, k, hard=True)
    gap = min(np.diff(np.sort(x, axis=-2), axis=-2).min() for x in (q / 2, k / 2))  # of the closest neighbours
    errors = [np.abs(plan(q, k, temperature=t) - hard).max() for t in (1e-1, 1e-3, 1e-5, gap**2 / 40)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-13  # the costs of slices are sums of some 50 terms; exp(-40) is far below rounding


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 10**6))
def test_marginals_are_exact_with_hard_sorting_and_masks(n, m, seed):
    q, k, _ = qkv(2, n=n, m=m, d=3, seed=seed)
    rng = np.random.default_rng(seed)
    query_mask, key_mask = rng.random((2, n)) < 0.7, rng.random((2, m)) < 0.7
    query_mask[:, 0] = key_mask[:, -1] = True
    P = plan(q, k, hard=True, query_mask=query_mask, key_mask=key_mask)
    ratio = query_mask.sum(-1) / key_mask.sum(-1)
    np.testing.assert_allclose(P.sum(-1), query_mask, atol=1e-12)
    np.testing.assert_allclose(P.sum(-2), ratio[:, None] * key_mask, atol=1e-12)
    assert not P[~(query_mask[:, :, None] & key_mask[:, None, :])].any()


# ------------------------------------------------------------------------------------------------ the attention


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(
    ("arguments", "options"),
    [(SQUARE, {}), (RECTANGULAR, {}), (RECTANGULAR, {"query_mask": QM, "key_mask": KM})],
    ids=["square", "rectangular", "masked"],
)
def test_gradients(arguments, options, hard):
    options = SOFT | options | {"hard": hard}
    per_head = np.stack([slice_directions(4, 5, seed=h) for h in range(3)])
    for extra in ([], [THETA], [per_head], [per_head[:1]]):
        check_vjp(
            lambda *a: sliced_attention(*a, **options),
            lambda *a: sliced_attention_vjp(*a, **options),
            [*arguments, *extra],
        )


def test_agrees_with_torch():
    def formula(torch, q, k, v, theta):
        def sort(x):
            x = x.transpose(-1, -2)  # (..., L, n)
            ordered = torch.sort(x, -1)[0]
            return torch.softmax(-((x[..., None, :] - ordered[..., :, None]) ** 2) / 0.3, -1)

        G = sort(q @ theta / 2).transpose(-1, -2) @ sort(k @ theta / 2)
        costs = (
            torch.linalg.norm((q[..., :, None, :] - k[..., None, :, :]) / 2, dim=-1)[..., None, :, :] * G
        ).sum((-1, -2))
        w = torch.softmax(-0.5 * costs, -1)
        return (w[..., None, None] * G).sum(-3) @ v

    check_against_torch(lambda *a: sliced_attention_vjp(*a, **SOFT), formula, [*SQUARE, THETA])


@pytest.mark.parametrize("slices_at_once", [1, 3, 5, 50])
def test_forming_slices_in_groups_changes_nothing(slices_at_once):
    whole, whole_vjp = sliced_attention_vjp(*RECTANGULAR, THETA, **SOFT)
    found, found_vjp = sliced_attention_vjp(*RECTANGULAR, THETA, slices_at_once=slices_at_once, **SOFT)
    np.testing.assert_allclose(found, whole, rtol=1e-12, atol=1e-14)
    for a, b in zip(found_vjp(whole), whole_vjp(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


def test_permuted_tokens_give_permuted_results():
    q, k, v = RECTANGULAR
    i, j = np.random.default_rng(1).permutation(6), np.random.default_rng(2).permutation(8)
    expected = sliced_attention(q, k, v, **SOFT)
    np.testing.assert_allclose(
        sliced_attention(q[..., i, :], k[..., j, :], v[..., j, :], **SOFT), expected[..., i, :], atol=1e-13
    )


@pytest.mark.parametrize("padding", [0.0, np.nan, 1e30])
def test_padding_is_invisible(padding):
    """Masked tokens, wherever they stand and whatever they hold, change nothing for the others."""
    q, k, v = (x[0] for x in RECTANGULAR)
    expected, expected_vjp = sliced_attention_vjp(q, k, v, **SOFT)
    query_mask, key_mask = np.ones(9, bool), np.ones(11, bool)
    query_mask[[0, 4, 8]] = key_mask[[1, 2, 7]] = False

    def padded(x, mask):
        out = np.full((3, len(mask), x.shape[-1]), padding)
        out[:, mask] = x
        return out

    arguments = padded(q, query_mask), padded(k, key_mask), padded(v, key_mask)
    found, vjp = sliced_attention_vjp(*arguments, query_mask=query_mask, key_mask=key_mask, **SOFT)
    np.testing.assert_allclose(found[:, query_mask], expected, atol=1e-12)
    assert not found[:, ~query_mask].any()
    gradients = vjp(np.where(query_mask[:, None], found, 0.0))
    for a, b, mask in zip(gradients, expected_vjp(expected), (query_mask, key_mask, key_mask), strict=True):
        np.testing.assert_allclose(a[:, mask], b, atol=1e-12 * max(1, np.abs(b).max()))
        assert not a[:, ~mask].any()


def test_a_query_on_a_key_has_a_gradient():
    q = qkv(n=5, d=3)[0]
    out, vjp = sliced_attention_vjp(q, q, q, **SOFT)
    assert all(np.isfinite(d).all() for d in vjp(out))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"inverse_temperature": -1.0}, "inverse_temperature must be at least 0"),
        ({"slices_at_once": 0}, "slices_at_once must be at least 1"),
        ({"directions": np.ones((3, 2))}, r"expected \(d, L\)"),
    ],
)
def test_wrong_calls_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        sliced_attention(*SQUARE, **options)
