"""Potentials between samples of different size, weighted and padded: certificates, against exact solvers."""

from fractions import Fraction

import numpy as np
import ot
import pytest
from gradients import check_against_torch, check_vjp
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import scores

from asap_ref import array_module, kantorovich_potentials_1d, kantorovich_potentials_1d_vjp, to_numpy
from asap_ref.staircase.levels import sum_into

COSTS = {"bilinear": lambda x, y: -np.outer(x, y), "sqeuclidean": lambda x, y: np.subtract.outer(x, y) ** 2 / 2}


def sample(values, weights):
    return st.lists(st.tuples(values, weights), min_size=1, max_size=9)


# values: few distinct ones, so that ties are the rule; any; all the same
VALUES = st.integers(-3, 3).map(float) | st.floats(-50, 50) | st.just(1.0)
# weights: one each; counts, so that levels meet and some weights are zero; any, from tiny to large
WEIGHTS = [st.just(1.0), st.integers(0, 3).map(float), st.just(0.0) | st.floats(1e-6, 1e3)]
PROBLEMS = st.sampled_from(WEIGHTS).flatmap(lambda w: st.tuples(sample(VALUES, w), sample(VALUES, w)))


@pytest.mark.parametrize("cost", COSTS)
@given(problem=PROBLEMS)
@settings(max_examples=300, deadline=None)
def test_potentials_are_feasible_and_close_the_duality_gap(cost, problem):
    (x, a), (y, b) = (np.asarray(side).T for side in problem)
    a[0], b[-1] = a[0] or 1.0, b[-1] or 1.0  # some mass there must be
    phi, psi = kantorovich_potentials_1d(x, y, cost=cost, x_weights=a, y_weights=b)
    C = COSTS[cost](x, y)
    rounding = 1e-12 * (1 + np.abs(C).max()) * (len(x) + len(y))
    assert np.all(phi[:, None] + psi[None, :] <= C + rounding)
    a, b = a / a.sum(), b / b.sum()
    # POT's solver wants costs that are not negative, and is itself exact to 1e-9
    solver = ot.emd2(a, b, C - C.min()) + C.min()
    assert abs(a @ phi + b @ psi - solver) <= rounding + 1e-9 * (1 + np.abs(C).max())
    assert abs(a @ phi) <= rounding


@pytest.mark.parametrize("cost", COSTS)
@given(problem=st.tuples(sample(VALUES, st.just(1.0)), sample(VALUES, st.just(1.0))))
@settings(max_examples=100, deadline=None)
def test_uniform_potentials_of_any_sizes(cost, problem):
    (x, a), (y, b) = (np.asarray(side).T for side in problem)
    phi, psi = kantorovich_potentials_1d(x, y, cost=cost)
    C = COSTS[cost](x, y)
    rounding = 1e-12 * (1 + np.abs(C).max()) * (len(x) + len(y))
    assert np.all(phi[:, None] + psi[None, :] <= C + rounding)
    squared = ot.emd2_1d(x, y, metric="sqeuclidean") / 2
    expected = squared if cost == "sqeuclidean" else squared - np.mean(x**2) / 2 - np.mean(y**2) / 2
    assert abs(phi.mean() + psi.mean() - expected) <= 1e-12 * (1 + 50**2)
    same = kantorovich_potentials_1d(x, y, cost=cost, x_weights=7 * a, y_weights=b)  # weights one are no weights
    for found, e in zip(same, (phi, psi), strict=True):
        np.testing.assert_allclose(found, e, atol=rounding)


@pytest.mark.parametrize("cost", COSTS)
def test_equality_holds_where_the_optimal_plan_has_mass(cost):
    rng = np.random.default_rng(0)
    x, y, a, b = (draw(size) for draw in (rng.standard_normal, rng.random) for size in (12, 17))
    C = COSTS[cost](x, y)
    P = ot.emd_1d(x, y, a / a.sum(), b / b.sum(), metric="sqeuclidean")
    phi, psi = kantorovich_potentials_1d(x, y, cost=cost, x_weights=a, y_weights=b)
    np.testing.assert_allclose((phi[:, None] + psi)[P > 0], C[P > 0], atol=1e-13)


@pytest.mark.parametrize("cost", COSTS)
def test_a_weight_of_three_is_a_sample_that_comes_three_times(cost):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(7), rng.standard_normal(5)
    a, b = np.asarray([1, 3, 2, 0, 1, 1, 2]), np.asarray([2, 0, 1, 4, 3])
    found = kantorovich_potentials_1d(x, y, cost=cost, x_weights=1.0 * a, y_weights=1.0 * b)
    expected = kantorovich_potentials_1d(np.repeat(x, a), np.repeat(y, b), cost=cost)
    for f, e, count in zip(found, expected, (a, b), strict=True):
        np.testing.assert_allclose(np.repeat(f, count), e, atol=1e-13)


def test_where_levels_meet_the_slope_is_the_mean_and_elsewhere_it_is_the_quantile():
    """Two against four: levels meet at 1/2. Two against three: the level 1/2 is inside the second y."""
    x = np.asarray([0.0, 1.0])
    phi, _ = kantorovich_potentials_1d(x, np.asarray([0.0, 1.0, 4.0, 9.0]))
    assert phi[1] - phi[0] == -(1 + 4) / 2
    phi, _ = kantorovich_potentials_1d(x, np.asarray([0.0, 1.0, 4.0]))
    assert phi[1] - phi[0] == -1


def test_all_true_masks_and_equal_weights_give_the_trapezoid():
    x, y = np.random.default_rng(0).standard_normal((2, 3, 12))
    valid = np.ones(12, bool)
    expected = kantorovich_potentials_1d(x, y)
    for extra in ({"x_mask": valid, "y_mask": valid}, {"x_weights": np.ones(12)}):
        for found, e in zip(kantorovich_potentials_1d(x, y, **extra), expected, strict=True):
            np.testing.assert_allclose(found, e, rtol=0, atol=1e-14)
            # every step is the same to the last bit; the mean that is taken off is added up in another order
    xs, ys = np.sort(x), np.sort(y)
    phi, _ = kantorovich_potentials_1d(xs, ys, x_mask=valid)
    square, _ = kantorovich_potentials_1d(xs, ys)
    np.testing.assert_allclose(np.diff(phi), np.diff(square), rtol=0, atol=1e-15)


def test_samples_of_weight_zero_do_not_move_the_others():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(9), rng.standard_normal(11)
    a, b = rng.integers(0, 3, 9) + 0.0, rng.integers(0, 3, 11) + 0.0
    phi, psi = kantorovich_potentials_1d(x, y, x_weights=a, y_weights=b)
    alone = kantorovich_potentials_1d(x[a > 0], y[b > 0], x_weights=a[a > 0], y_weights=b[b > 0])
    np.testing.assert_allclose(phi[a > 0], alone[0], atol=1e-14)
    np.testing.assert_allclose(psi[b > 0], alone[1], atol=1e-14)


@pytest.mark.parametrize("padding", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weighted", [False, True])
def test_padding_equals_leaving_samples_out(weighted, padding):
    rng = np.random.default_rng(0)
    x, y, a, b = (draw((4, size)) for draw in (rng.standard_normal, rng.random) for size in (9, 7))
    x_mask, y_mask = rng.random((4, 9)) < 0.6, rng.random((4, 7)) < 0.6
    x_mask[:, 0] = y_mask[:, 3] = True
    extra = {"x_weights": np.where(x_mask, a, padding), "y_weights": np.where(y_mask, b, padding)}
    hidden = np.where(x_mask, x, padding), np.where(y_mask, y, padding)
    (phi, psi), vjp = kantorovich_potentials_1d_vjp(
        *hidden, x_mask=x_mask, y_mask=y_mask, **(extra if weighted else {})
    )
    d_phi, d_psi = rng.standard_normal((4, 9)), rng.standard_normal((4, 7))
    d_x, d_y = vjp((d_phi, d_psi))
    assert not any(z[~mask].any() for z, mask in ((phi, x_mask), (psi, y_mask), (d_x, x_mask), (d_y, y_mask)))
    for i in range(4):
        r, c = x_mask[i], y_mask[i]
        extra = {"x_weights": a[i, r], "y_weights": b[i, c]} if weighted else {}
        alone, alone_vjp = kantorovich_potentials_1d_vjp(x[i, r], y[i, c], **extra)
        for found, e in zip((phi[i, r], psi[i, c]), alone, strict=True):
            np.testing.assert_allclose(found, e, rtol=0, atol=1e-13)
        for found, e in zip((d_x[i, r], d_y[i, c]), alone_vjp((d_phi[i, r], d_psi[i, c])), strict=True):
            np.testing.assert_allclose(found, e, rtol=0, atol=1e-13)


def test_levels_are_compared_without_rounding_in_float32():
    """5001 and 5000 levels lie closer than float32 can tell; as integers they do not meet but at the end."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(5001), rng.standard_normal(5000)
    expected = kantorovich_potentials_1d(x, y)
    found = kantorovich_potentials_1d(x.astype(np.float32), y.astype(np.float32))
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == np.float32
        np.testing.assert_allclose(f, e, rtol=0, atol=2e-5 * np.abs(e).max())


def test_no_matrix_of_all_pairs_is_formed():
    x, y = np.random.default_rng(0).standard_normal(100_000), np.linspace(-1, 1, 70_000)  # it would take 56 GB
    phi, psi = kantorovich_potentials_1d(x, y, cost="sqeuclidean")
    assert phi.mean() + psi.mean() == pytest.approx(ot.emd2_1d(x, y, metric="sqeuclidean") / 2, rel=1e-9)


# -------------------------------------------------------------------------------------------------- gradients

SIZES = {
    "other sizes": ({}, 6, 9),
    "sizes that share levels": ({}, 4, 8),
    "weights": ({"x_weights": np.asarray([0.3, 1, 2, 0.1]), "y_weights": np.asarray([1.0, 0.2, 0.7])}, 4, 3),
    "weights zero": ({"x_weights": np.asarray([1.0, 0, 2, 0, 1]), "y_weights": np.asarray([0.0, 1, 0, 1])}, 5, 4),
    "masks": ({"x_mask": np.asarray([1, 1, 0, 1], bool), "y_mask": np.asarray([0, 1, 1, 1, 1], bool)}, 4, 5),
    "one": ({}, 1, 4),
}


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("name", SIZES)
def test_gradient_of_the_potentials(name, cost):
    extra, n, m = SIZES[name]
    rng = np.random.default_rng(0)
    check_vjp(
        lambda x, y: kantorovich_potentials_1d(x, y, cost=cost, **extra),
        lambda x, y: kantorovich_potentials_1d_vjp(x, y, cost=cost, **extra),
        [rng.standard_normal((2, 3, n)), rng.standard_normal((2, 3, m))],
    )


@pytest.mark.parametrize("cost", COSTS)
def test_gradient_of_the_potentials_agrees_with_torch(cost):
    """Torch walks the merged levels one by one, in fractions; phi steps where an x is used up."""
    a, b = [1, 2, 1, 2], [2, 1, 3]

    def formula(torch, x, y):
        (xs, i), (ys, j) = torch.sort(x), torch.sort(y)
        A, B = (np.cumsum([0, *(Fraction(w[k], sum(w)) for k in o)]) for w, o in ((a, i), (b, j)))
        phi, psi = [torch.zeros((), dtype=x.dtype)], []
        for k in range(1, 4):
            left = next(t for t in range(3) if B[t] < A[k] <= B[t + 1])
            right = next(t for t in range(3) if B[t] <= A[k] < B[t + 1])
            phi.append(phi[-1] - (ys[left] + ys[right]) / 2 * (xs[k] - xs[k - 1]))
        phi = torch.stack(phi)
        if cost == "sqeuclidean":
            phi = phi + xs**2 / 2
        phi = phi - (torch.tensor(a, dtype=x.dtype)[i] * phi).sum() / sum(a)
        for t in range(3):
            k = next(k for k in range(4) if max(A[k], B[t]) < min(A[k + 1], B[t + 1]))
            psi.append((-xs[k] * ys[t] if cost == "bilinear" else (xs[k] - ys[t]) ** 2 / 2) - phi[k])
        return torch.zeros_like(x).scatter(-1, i, phi), torch.zeros_like(y).scatter(-1, j, torch.stack(psi))

    rng = np.random.default_rng(0)
    check_against_torch(
        lambda x, y: kantorovich_potentials_1d_vjp(
            x, y, cost=cost, x_weights=np.asarray(a, float), y_weights=np.asarray(b, float)
        ),
        formula,
        [rng.standard_normal(4), rng.standard_normal(3)],
    )


# ------------------------------------------------------------------------------------------------ wrong calls

X = np.arange(3.0)


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ({"x_weights": np.asarray([1.0, -1, 1])}, ValueError, "x_weights must be finite and at least 0"),
        ({"y_weights": np.asarray([1.0, np.nan, 1])}, ValueError, "y_weights must be finite and at least 0"),
        ({"y_weights": np.asarray([1.0, np.inf, 1])}, ValueError, "y_weights must be finite and at least 0"),
        ({"y_weights": np.asarray([1e308, 1e308, 1])}, ValueError, "y_weights must be finite .* and so their sum"),
        ({"x_weights": np.zeros(3)}, ValueError, "x_weights must not sum to zero"),
        (
            {"x_weights": np.asarray([1.0, 0, 0]), "x_mask": np.asarray([False, True, True])},
            ValueError,
            "x_weights must not sum to zero",
        ),
        ({"x_weights": np.ones(4)}, ValueError, r"x_weights has shape \(4,\)"),
        ({"x_weights": np.ones((2, 3))}, ValueError, r"do not broadcast to \(\)"),
        ({"x_weights": np.ones(3, np.float32)}, TypeError, "must share one dtype"),
        ({"x_mask": np.ones(3)}, TypeError, "x_mask must be boolean"),
    ],
)
def test_wrong_weights_and_masks_say_what_was_expected(extra, error, message):
    with pytest.raises(error, match=message):
        kantorovich_potentials_1d(X, X, **extra)


@pytest.mark.parametrize("module", ["numpy", "torch", "jax", "array_api_strict"])
def test_sums_at_indices_are_as_exact_as_their_values(module):
    """Running totals of 20,000 float32 numbers reach 1e4, and are off by 1e-3: more than a thousandth of a value."""
    xp, values = array_module(module), np.random.default_rng(0).random((2, 20_000), np.float32) + 0.5
    for each in (1, 3):  # how many values go to an index
        index = np.broadcast_to(np.arange(20_000) // each, values.shape)
        expected = np.add.reduceat(values.astype(np.float64), np.arange(0, 20_000, each), axis=-1)
        found = sum_into(*(xp.asarray(x.copy()) for x in (values, index)), expected.shape[-1])
        np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-6)


def test_more_levels_than_integers_can_hold_are_refused():
    jax = pytest.importorskip("jax", reason="jax is not installed: pip install 'asap-ref[test]'")
    with jax.enable_x64(False), pytest.raises(ValueError, match="levels overflow int32; use 64-bit integers"):
        kantorovich_potentials_1d(jax.numpy.zeros(50_000), jax.numpy.zeros(50_001))


@pytest.mark.parametrize("cost", ["bilinear", "sqeuclidean"])
def test_a_side_without_samples_leaves_the_other_without_potentials(cost):
    x, y = scores(2, 4), scores(2, 3)
    mask = np.asarray([[False] * 3, [True, True, False]])
    (phi, psi), vjp = kantorovich_potentials_1d_vjp(x, y, cost=cost, y_mask=mask)
    assert not phi[0].any() and not psi[0].any()
    assert phi[1].any()
    d_x, d_y = vjp((np.ones((2, 4)), np.ones((2, 3))))
    assert not d_x[0].any() and not d_y[0].any()
