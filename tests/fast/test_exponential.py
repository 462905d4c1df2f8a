"""The exponential in place is NumPy's but for what underflows, which may be the smallest normal number."""

import numpy as np
import pytest

from asap_ref.fast.exponential import FLOOR, LOOK_AT_EVERY, exp_in_place


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("lowest", [-10.0, -90.0, -800.0, -1e6, -np.inf])
def test_it_is_the_exponential_but_for_what_underflows(dtype, lowest):
    x = np.linspace(-5, 3, 2 * 40 * 30).reshape(2, 40, 30).astype(dtype)
    x[:, ::3, ::2] = lowest
    expected, same = np.exp(x), x.copy()
    found = exp_in_place(same)
    assert found is same
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1.001 * np.exp(FLOOR[x.dtype.name]))
    assert found.min() >= np.finfo(dtype).tiny  # where rows that are looked at have any, none is left
    assert np.exp(dtype(FLOOR[x.dtype.name])) < 4 * np.finfo(dtype).tiny


def test_rows_that_are_not_looked_at_may_underflow():
    x = np.zeros((1, LOOK_AT_EVERY, 3))
    x[0, 1] = -2000.0
    assert exp_in_place(x)[0, 1].max() == 0.0


@pytest.mark.parametrize("row", [0, 1])
def test_nan_and_infinity_are_not_hidden(row):
    x = np.full((1, 4, 5), -1e3, np.float32)
    x[0, row, 2], x[0, row, 3] = np.nan, np.inf
    found = exp_in_place(x)[0, row]
    assert np.isnan(found[2]) and np.isinf(found[3])


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_nothing_is_nothing(shape):
    assert exp_in_place(np.empty(shape)).shape == shape
