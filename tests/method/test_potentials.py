"""One-dimensional potentials are certificates: feasible, without a duality gap, against exact solvers."""

import numpy as np
import ot
import pytest
from gradients import check_against_torch, check_vjp
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import qkv
from scipy.optimize import linear_sum_assignment, linprog

from asap_ref import (
    attention_scores,
    kantorovich_potentials_1d,
    kantorovich_potentials_1d_vjp,
    slice_directions,
    sliced_potentials,
    sliced_potentials_vjp,
)

COSTS = {"bilinear": lambda x, y: -np.outer(x, y), "sqeuclidean": lambda x, y: np.subtract.outer(x, y) ** 2 / 2}
# few distinct values, so that ties are the rule
TIED = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=9)
SMOOTH = st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=9)


@pytest.mark.parametrize("cost", COSTS)
@given(pairs=TIED | SMOOTH)
@settings(max_examples=100, deadline=None)
def test_potentials_are_feasible_and_close_the_duality_gap(cost, pairs):
    x, y = np.asarray(pairs, dtype=float).T
    C = COSTS[cost](x, y)
    phi, psi = kantorovich_potentials_1d(x, y, cost=cost)
    rounding = 1e-12 * (1 + np.abs(C).max()) * len(x)
    assert np.all(phi[:, None] + psi[None, :] <= C + rounding)
    assert abs(phi.sum() + psi.sum() - C[linear_sum_assignment(C)].sum()) <= rounding * len(x)
    assert abs(phi.sum()) <= rounding * len(x)


@pytest.mark.parametrize("cost", COSTS)
def test_the_dual_value_is_that_of_a_linear_programme(cost):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(5), rng.integers(0, 3, 5).astype(float)  # y tied
    C = COSTS[cost](x, y)
    marginals = np.concatenate([np.kron(np.eye(5), np.ones(5)), np.kron(np.ones(5), np.eye(5))])
    programme = linprog(C.ravel(), A_eq=marginals, b_eq=np.ones(10))
    phi, psi = kantorovich_potentials_1d(x, y, cost=cost)
    assert phi.sum() + psi.sum() == pytest.approx(programme.fun, abs=1e-9)  # the solver's own tolerance


def test_the_dual_value_is_pots_one_dimensional_cost():
    x, y = np.random.default_rng(0).standard_normal((2, 40))
    phi, psi = kantorovich_potentials_1d(x, y, cost="sqeuclidean")
    assert phi.mean() + psi.mean() == pytest.approx(ot.emd2_1d(x, y, metric="sqeuclidean") / 2, rel=1e-12)


@pytest.mark.parametrize("cost", COSTS)
def test_equality_holds_on_matched_pairs(cost):
    x, y = np.random.default_rng(0).standard_normal((2, 12))
    phi, psi = kantorovich_potentials_1d(x, y, cost=cost)
    i, j = np.argsort(x), np.argsort(y)
    np.testing.assert_allclose(phi[i] + psi[j], COSTS[cost](x, y)[i, j], atol=1e-13)


def test_the_trapezoid_treats_both_sides_alike():
    """Swapping the samples swaps the potentials: the choice among optimal slopes favours neither."""
    x, y = np.random.default_rng(0).standard_normal((2, 12))
    phi, psi = kantorovich_potentials_1d(x, y)
    phi_of_y, psi_of_x = kantorovich_potentials_1d(y, x)
    np.testing.assert_allclose(phi_of_y, psi - psi.mean(), atol=1e-13)
    np.testing.assert_allclose(psi_of_x - psi_of_x.mean(), phi, atol=1e-13)


def test_order_and_shift_of_the_samples():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 9))
    phi, psi = kantorovich_potentials_1d(x, y)
    i, j = rng.permutation(9), rng.permutation(9)
    for found, expected in zip(kantorovich_potentials_1d(x[i], y[j]), (phi[i], psi[j]), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-13)
    # moving every y by t tilts phi by -t x; moving both does not change the squared cost
    tilted, _ = kantorovich_potentials_1d(x, y + 2.0)
    np.testing.assert_allclose(tilted, phi - 2.0 * (x - x.mean()), atol=1e-13)
    phi, _ = kantorovich_potentials_1d(x, y, cost="sqeuclidean")
    moved, _ = kantorovich_potentials_1d(x + 5, y + 5, cost="sqeuclidean")
    np.testing.assert_allclose(moved, phi, atol=1e-12)


def test_phi_is_minus_the_area_under_the_monotone_map():
    """For y = a x the map is a line, and phi is -a x² / 2 up to its constant, exactly: trapezoids under a line."""
    x = np.random.default_rng(0).standard_normal(15)
    phi, _ = kantorovich_potentials_1d(x, 3 * x)
    np.testing.assert_allclose(phi, -1.5 * (x**2 - np.mean(x**2)), atol=1e-13)


def test_one_sample_and_an_empty_batch():
    phi, psi = kantorovich_potentials_1d(np.asarray([2.0]), np.asarray([3.0]))
    assert phi == 0 and psi == -6
    assert kantorovich_potentials_1d(np.zeros((0, 4)), np.zeros((0, 4)))[0].shape == (0, 4)


# -------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("cost", COSTS)
def test_gradient_of_the_potentials(cost):
    x, y = np.random.default_rng(0).standard_normal((2, 3, 7))
    check_vjp(
        lambda x, y: kantorovich_potentials_1d(x, y, cost=cost),
        lambda x, y: kantorovich_potentials_1d_vjp(x, y, cost=cost),
        [x, y],
    )


@pytest.mark.parametrize("cost", COSTS)
def test_gradient_of_the_potentials_agrees_with_torch(cost):
    def formula(torch, x, y):
        xs, i = torch.sort(x)
        ys, j = torch.sort(y)
        step = -(ys[..., :-1] + ys[..., 1:]) / 2 * torch.diff(xs)
        phi = torch.nn.functional.pad(torch.cumsum(step, -1), (1, 0))
        c = -xs * ys
        if cost == "sqeuclidean":
            phi, c = phi + xs**2 / 2, (xs - ys) ** 2 / 2
        phi = phi - phi.mean(-1, keepdim=True)
        return torch.zeros_like(x).scatter(-1, i, phi), torch.zeros_like(y).scatter(-1, j, c - phi)

    x, y = np.random.default_rng(0).standard_normal((2, 3, 7))
    check_against_torch(lambda x, y: kantorovich_potentials_1d_vjp(x, y, cost=cost), formula, [x, y])


def test_gradient_of_sliced_potentials():
    q, k, _ = qkv(2, 3, n=6, d=4)
    check_vjp(sliced_potentials, sliced_potentials_vjp, [q, k, slice_directions(4, 5)])


# ----------------------------------------------------------------------------------------------------- slices


def test_full_orthonormal_basis_of_slices_sums_to_the_scores():
    q, k, _ = qkv(n=6, d=4)
    theta = slice_directions(4, 4)
    x, y = 4**-0.25 * q @ theta, 4**-0.25 * k @ theta
    np.testing.assert_allclose(np.einsum("il,jl->ij", x, y), attention_scores(q, k), atol=1e-13)


def test_sliced_potentials_are_those_of_each_projection_centred():
    q, k, _ = qkv(2, n=6, d=4)
    theta = slice_directions(4, 3, kind="gaussian")
    phi, psi = sliced_potentials(q, k, theta)
    for b in range(2):
        for slice_ in range(3):
            x, y = 4**-0.25 * q[b] @ theta[:, slice_], 4**-0.25 * k[b] @ theta[:, slice_]
            expected = kantorovich_potentials_1d(x, y)
            np.testing.assert_allclose(phi[b, slice_], expected[0], atol=1e-13)
            np.testing.assert_allclose(psi[b, slice_], expected[1] - expected[1].mean(), atol=1e-13)


@pytest.mark.parametrize("kind", ["orthogonal", "gaussian"])
def test_directions_are_unit_columns_and_depend_on_the_seed_alone(kind):
    theta = slice_directions(6, 15, kind=kind, seed=3)
    assert theta.shape == (6, 15) and theta.dtype == np.float64
    np.testing.assert_allclose(np.linalg.norm(theta, axis=0), 1, rtol=1e-14)
    np.testing.assert_array_equal(theta, slice_directions(6, 15, kind=kind, seed=3))
    assert not np.array_equal(theta, slice_directions(6, 15, kind=kind, seed=4))


def test_orthogonal_directions_come_in_orthonormal_blocks_uniform_on_the_sphere():
    theta = slice_directions(5, 13)
    np.testing.assert_allclose(theta[:, :5].T @ theta[:, :5], np.eye(5), atol=1e-14)
    np.testing.assert_allclose(theta[:, 10:].T @ theta[:, 10:], np.eye(3), atol=1e-14)
    many = slice_directions(3, 6000)
    np.testing.assert_allclose(many.mean(1), 0, atol=0.05)  # 1 / sqrt(6000 * 3) is 0.0075
    np.testing.assert_allclose(many @ many.T / 6000, np.eye(3) / 3, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: slice_directions(0, 4), "dim must be at least 1"),
        (lambda: slice_directions(4, 0), "n_slices must be at least 1"),
        (lambda: slice_directions(4, 4, kind="random"), "kind must be one of 'orthogonal', 'gaussian'"),
        (lambda: kantorovich_potentials_1d(np.ones(3), np.ones(3), cost="l1"), "cost must be one of"),
        (lambda: sliced_potentials(np.ones((3, 4)), np.ones((3, 4)), np.ones((5, 2))), r"expected \(d, L\)"),
    ],
)
def test_wrong_calls_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
