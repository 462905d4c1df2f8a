"""Amortizers that release 0.1 wrote are read to the same numbers, or refused with the reason."""

from pathlib import Path

import numpy as np
import pytest

from asap_ref import Amortizer

SAVED = Path(__file__).parent / "saved_by_0_1"


@pytest.mark.parametrize(
    ("name", "families"),
    [("slices", ["slices"]), ("all_families", ["slices", "cumulants", "quadratic", "moments"])],
)
def test_what_was_predicted_then_is_predicted_now(name, families, tmp_path):
    q, k = np.random.default_rng(0).standard_normal((2, 30, 2, 6, 4))
    amortizer = Amortizer.load(SAVED / f"{name}.npz")
    assert [family.name for family in amortizer.families] == families
    assert (amortizer.epsilon, amortizer.n_iter, amortizer.refine) == (0.7, 4, 1)
    expected = np.load(SAVED / f"{name}_predicted.npy")
    # the same float64 sums, but products may be taken in another order
    np.testing.assert_allclose(amortizer.predict(q[:2], k[:2]), expected, rtol=0, atol=1e-13)
    amortizer.save(tmp_path / "again.npz")
    np.testing.assert_array_equal(Amortizer.load(tmp_path / "again.npz").weights, amortizer.weights)


def test_a_hidden_layer_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"a hidden layer was left out after release 0\.1, since it did not pay"):
        Amortizer.load(SAVED / "hidden.npz")
