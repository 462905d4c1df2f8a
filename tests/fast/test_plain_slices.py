"""Plain sequences: the slice potentials made in passes over all slices at once."""

import numpy as np
import pytest
from problems import qkv

from asap_ref.fast.packing import packed_with_places, unpacked
from asap_ref.fast.plain_slices import SHORT, plain, weighted_sum
from asap_ref.method.slices import slice_directions, sliced_potentials


def test_places_come_back_with_the_numbers():
    x = np.round(np.random.default_rng(0).standard_normal((3, 5, 9)), 1).astype(np.float32)  # with ties
    values, places = unpacked(np.sort(packed_with_places(x, np.arange(9)), axis=-1))
    np.testing.assert_array_equal(values, np.sort(x, axis=-1))
    np.testing.assert_array_equal(np.take_along_axis(x, places, axis=-1), values)


@pytest.mark.parametrize("n", [1, 2, 17, SHORT, SHORT + 1])
@pytest.mark.parametrize(("rounded", "per_head"), [(False, True), (True, True), (False, False)])
def test_the_sum_is_that_of_the_potentials(n, rounded, per_head):
    q, k, _ = qkv(7, 3, n=n, d=4, dtype=np.float32)
    if rounded:
        q, k = np.round(q), np.round(k)
    theta = np.stack([slice_directions(4, 5, seed=h) for h in range(3)]).astype(np.float32)  # of each head its own
    theta = theta if per_head else theta[0]
    w = np.random.default_rng(1).standard_normal((3, 5, 1)).astype(np.float32)
    given = q.copy(), k.copy()
    found = weighted_sum(q, k, theta * 4**-0.25, -0.5 * w)
    phi, _ = sliced_potentials(*(x.astype(np.float64) for x in (q, k, theta)))
    expected = np.sum(phi * w, axis=-2)
    found = found - found.mean(-1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * max(np.abs(expected).max(), 1e-3))
    assert all(np.array_equal(x, y) for x, y in zip(given, (q, k), strict=True))


def test_what_lies_between_two_slices_or_sequences_does_not_count():
    """All go through the same passes, one after the other: here with steps between them that overflow."""
    q, k, _ = qkv(3, 1, n=9, d=4, dtype=np.float32)
    theta, w = slice_directions(4, 5).astype(np.float32), np.ones((1, 5, 1), np.float32)
    alone = weighted_sum(q[:1], k[:1], theta, w)
    q[1], k[1] = 1e30, 1e30
    with np.errstate(over="ignore"):
        found = weighted_sum(q, k, theta, w)
    np.testing.assert_allclose(found[:1], alone, rtol=1e-6, atol=1e-6)
    assert not found[1].any()  # all tokens are equal


def test_it_is_for_float32_without_padding_and_as_many_keys_as_queries():
    q, mask = np.zeros((3, 2, 9, 4), np.float32), np.ones((3, 2, 9), bool)
    assert plain(q, q, None, None)
    assert not plain(q, q, mask, None) and not plain(q, q, None, mask)
    assert not plain(q.astype(np.float64), q, None, None)
    assert not plain(q, q[..., :7, :], None, None)
