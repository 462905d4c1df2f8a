"""Omega is found at calibration, and pays on data that calibration has not seen."""

from dataclasses import replace

import numpy as np
import pytest
from problems import qkv

from asap_ref import Amortizer, asap_attention, fit_amortizer, sinkhorn_attention
from asap_ref.calibration.omega import _lowest, fitted_omega


@pytest.mark.parametrize("refine", [1, 2])
@pytest.mark.parametrize("size", [1.2, 2.5])
def test_refining_with_the_omega_found_is_nearer_to_the_teacher_than_with_one(refine, size):
    q, k, _ = qkv(64, 3, n=24, d=6, size=size, dtype=np.float32)
    test = qkv(16, 3, n=24, d=6, size=size, seed=1, dtype=np.float32)
    amortizer = fit_amortizer([(q, k)], n_slices=8, n_iter=10, refine=refine)
    teacher = sinkhorn_attention(*test, n_iter=10)
    found, plain = (
        np.linalg.norm(asap_attention(*test, a) - teacher) for a in (amortizer, replace(amortizer, omega=None))
    )
    assert amortizer.omega.shape == (3,) and np.all((amortizer.omega > 1) & (amortizer.omega < 1.8))
    assert found < 0.95 * plain


def test_padding_does_not_count():
    q, k, _ = qkv(32, 2, n=10, d=4)
    amortizer = replace(fit_amortizer([(q, k)], n_slices=4, n_iter=6), refine=1)
    mask = np.arange(12) < 10
    padded = [np.concatenate([x, np.full((32, 2, 2, 4), np.nan)], axis=-2) for x in (q, k)]
    padded = [np.where(mask[:, None], x, 1e3) for x in padded]
    masks = np.broadcast_to(mask, (1, 1, 12))
    np.testing.assert_allclose(
        fitted_omega(amortizer, *padded, masks, masks), fitted_omega(amortizer, q, k), rtol=1e-9
    )


def test_the_lowest_point_of_parabolas():
    x = np.asarray([0.8, 1.0, 1.2, 1.4])
    tops = np.asarray([1.07, 1.31, 5.0, -5.0])  # the last two beyond what was tried
    np.testing.assert_allclose(_lowest(x, (x[:, None] - tops) ** 2), [1.07, 1.31, 1.4, 0.8])
    np.testing.assert_allclose(_lowest(x, np.stack([x, -x], axis=-1)), [0.8, 1.4])


def test_no_omega_is_looked_for_where_nothing_is_refined():
    q, k, _ = qkv(16, 2, n=6, d=4)
    assert fit_amortizer([(q, k)], n_slices=4, n_iter=3).omega is None


def test_omega_is_saved_and_cut_to_heads(tmp_path):
    q, k, v = qkv(16, 3, n=6, d=4)
    amortizer = fit_amortizer([(q, k)], n_slices=4, n_iter=3, refine=1)
    amortizer.save(tmp_path / "map.npz")
    loaded = Amortizer.load(tmp_path / "map.npz")
    np.testing.assert_array_equal(loaded.omega, amortizer.omega)
    np.testing.assert_array_equal(asap_attention(q, k, v, loaded), asap_attention(q, k, v, amortizer))
    np.testing.assert_allclose(
        asap_attention(*(x[:, 1:] for x in (q, k, v)), amortizer.of_heads([1, 2])),
        asap_attention(q, k, v, amortizer)[:, 1:],
        rtol=1e-12,
        atol=1e-14,
    )
    with pytest.raises(ValueError, match=r"omega must be \(H,\) = \(3,\) numbers between 0 and 2"):
        replace(amortizer, omega=np.asarray([1.0, 2.0, 1.0]))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_omega_of_any_batch_that_calibrates(dtype):
    """Of half precision, of one sequence without an axis for it, of masks that lack axes."""
    q, k, _ = (x.astype(dtype) for x in qkv(3, 2, n=12, d=4))
    mask, settings = np.arange(12) < 9, {"n_slices": 4, "n_iter": 5, "refine": 1}
    whole, lacking = (
        fit_amortizer([(q, k, *[each] * 2)], **settings).omega for each in (np.tile(mask, (3, 2, 1)), mask)
    )
    np.testing.assert_array_equal(lacking, whole)
    assert fit_amortizer([(q[0], k[0])], **settings).omega.shape == (2,)
    long_q, long_k, _ = (x.astype(dtype) for x in qkv(2, n=1500, d=4))  # more scores than are looked at
    assert fit_amortizer([(long_q, long_k)], **settings).omega.shape == (2,)
