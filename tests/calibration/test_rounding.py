"""Features that are nothing but rounding get no weight: of normalised queries, of keys less their mean."""

import numpy as np
import pytest
from problems import qkv

import asap_ref as ar
from asap_ref.calibration.rounding import is_rounding
from asap_ref.method import attention as readable

FAMILIES = {"quadratic": 4, "moments": 2, "one_pass": 1.0}
BASIS = np.eye(4)[:, :2]
ALL = (ar.Slices(np.eye(4)), ar.Cumulants(), ar.Quadratic(BASIS), ar.Moments(BASIS), ar.OnePass(np.ones(1)))


def normalised(x, axis):
    """Divided by its length (axis -1), or less its mean over tokens (axis -2)."""
    if axis == -2:
        return x - x.mean(axis, keepdims=True)
    return 2 * x / np.linalg.norm(x, axis=axis, keepdims=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("objective", ["regression", "kl"])
@pytest.mark.parametrize("axis", [-1, -2])
def test_what_is_calibrated_in_either_precision_serves_in_both(axis, objective, dtype):
    """With a weight of 1e12 for |q|² the output in float32 was off by half, where it is off by a fiftieth."""
    q, k, v = qkv(48, 2, n=12, d=4)
    q, k = normalised(q, axis), normalised(k, axis)
    amortizer = ar.fit_amortizer([(q.astype(dtype), k.astype(dtype))], objective=objective, n_slices=4, **FAMILIES)
    assert np.abs(amortizer.weights).max() < 1e3
    expected = readable.asap_attention(q, k, v, amortizer)
    for form in (ar.asap_attention, readable.asap_attention):
        found = form(*(x.astype("float32") for x in (q, k, v)), amortizer)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_what_is_marked_is_what_does_not_vary():
    q, k, _ = qkv(9, 2, n=12, d=4)
    k[:, 0] = normalised(k[:, 0], -2)  # of the first head
    q[:, 1] = normalised(q[:, 1], -1)  # of the second
    marked = is_rounding([ar.Cumulants()], q, k)
    np.testing.assert_array_equal(marked, [[True, False, False], [False, True, False]])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_features_that_vary_are_not_marked(dtype, offset, scale):
    q, k, _ = (scale * (x + offset).astype(dtype) for x in qkv(3, 2, n=12, m=9, d=4))
    mask = np.arange(12) < 7
    assert not is_rounding(ALL if (scale, offset) == (1, 0) else ALL[:-1], q, k, mask, None).any()


def test_new_data_are_asked_as_well():
    q, k, _ = qkv(16, 2, n=12, d=4)
    amortizer = ar.fit_amortizer([(normalised(q[:8], -1), k[:8])], n_slices=2)
    again = ar.recalibrate(amortizer, [(normalised(q[8:], -1), k[8:])])
    assert (again.weights[:, 3] == 0).all()  # |q|², the second behind two slices
