"""Over-relaxed iterations: plain ones where omega is 1, gradients, and for which omega they are stable."""

import numpy as np
import pytest
from gradients import check_against_torch, check_vjp
from problems import masks, scores

from asap_ref import over_relaxed_dual, over_relaxed_dual_vjp, sinkhorn, transport_plan, two_sided_c_transform

S = scores(2, 3, 6, 8, size=1.5)
F = scores(2, 3, 6, size=1.0, seed=1)
OMEGA = np.asarray([0.6, 1.0, 1.7])
QM, KM = (mask[:, None] for mask in masks(2, 6, 8))


def test_omega_one_is_sinkhorn():
    found = over_relaxed_dual(S, F, np.asarray(1.0), n_iter=3, epsilon=0.7, query_mask=QM, key_mask=KM)
    expected = sinkhorn(S, init=F, n_iter=3, epsilon=0.7, query_mask=QM, key_mask=KM).query
    np.testing.assert_array_equal(found, expected)


def test_each_head_has_its_own_omega():
    together = over_relaxed_dual(S, F, OMEGA, n_iter=2)
    for h, omega in enumerate(OMEGA):
        np.testing.assert_allclose(
            together[:, h], over_relaxed_dual(S[:, h], F[:, h], np.asarray(omega), n_iter=2), rtol=1e-13
        )


@pytest.mark.parametrize("options", [{}, {"query_mask": QM, "key_mask": KM}], ids=["all", "masked"])
def test_gradients(options):
    settings = {"n_iter": 3, "epsilon": 0.7, **options}
    check_vjp(
        lambda *a: over_relaxed_dual(*a, **settings),
        lambda *a: over_relaxed_dual_vjp(*a, **settings),
        [S, F, OMEGA],
    )


def test_gradients_agree_with_torch():
    def formula(torch, S, f, omega):
        for _ in range(3):
            g = 0.7 * np.log(6 / 8) - 0.7 * torch.logsumexp((f[..., :, None] + S) / 0.7, -2)
            f = f + omega[:, None] * (-0.7 * torch.logsumexp((g[..., None, :] + S) / 0.7, -1) - f)
        return f

    check_against_torch(lambda *a: over_relaxed_dual_vjp(*a, n_iter=3, epsilon=0.7), formula, [S, F, OMEGA])


@pytest.mark.parametrize("size", [0.1, 1.5, 6.0])
def test_the_jacobian_of_an_iteration_has_eigenvalues_from_one_minus_omega_to_one(size):
    """The bound that the module states, at duals that are anywhere; and that its rows sum to one."""
    S, f = scores(6, 8, size=size), scores(6, seed=1)
    for omega in (0.5, 1.0, 1.9):
        vjp = over_relaxed_dual_vjp(S, f, np.asarray(omega))[1]
        J = np.stack([vjp(row)[1] for row in np.eye(6)])
        np.testing.assert_allclose(J.sum(-1), 1, atol=1e-12)
        eigenvalues = np.linalg.eigvals(J)
        assert np.abs(eigenvalues.imag).max() < 1e-9
        assert eigenvalues.real.min() > 1 - omega - 1e-9 and eigenvalues.real.max() < 1 + 1e-9
        assert np.sum(eigenvalues.real > 1 - 1e-9) == 1  # the constant alone


@pytest.mark.parametrize(("omega", "stable"), [(0.1, True), (1.5, True), (1.95, True), (2.1, False)])
def test_iterations_converge_below_two_and_not_above(omega, stable):
    S = scores(6, 8, size=0.3)  # a plan of nearly low rank
    limit = sinkhorn(S, n_iter=200).query
    moved = limit + 1e-3 * scores(6, size=1.0, seed=2)
    error = over_relaxed_dual(S, moved, np.asarray(omega), n_iter=300) - limit
    assert (np.ptp(error) < 1e-4) == stable


def test_relaxation_speeds_sinkhorn_up():
    S = scores(30, 30, size=2.0)
    exact = transport_plan(S, sinkhorn(S, n_iter=2000))
    start = sinkhorn(S, n_iter=0).query
    errors = [
        np.abs(
            transport_plan(S, two_sided_c_transform(S, over_relaxed_dual(S, start, np.asarray(omega), n_iter=4)))
            - exact
        ).max()
        for omega in (1.0, 1.6)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_an_omega_of_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=r"omega has shape \(2,\), expected the last of the leading axes \(2, 3\)"
    ):
        over_relaxed_dual(S, F, np.ones(2))
