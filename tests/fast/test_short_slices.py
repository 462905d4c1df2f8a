"""Short sequences: a network that sorts, and the slice potentials made with it."""

import itertools

import numpy as np
import pytest
from problems import qkv

from asap_ref.fast.packing import packed_with_places, unpacked
from asap_ref.fast.short_slices import MANY, SHORT, merge_exchange, pays, sorted_columns, weighted_sum
from asap_ref.method.slices import slice_directions, sliced_potentials


@pytest.mark.parametrize("n", range(1, 9))
def test_the_network_sorts_every_sequence_of_zeros_and_ones(n):
    """And so every other (Knuth, volume 3, 5.3.4, theorem Z)."""
    x = np.asarray(list(itertools.product([0.0, 1.0], repeat=n))).T
    np.testing.assert_array_equal(sorted_columns(x.copy()), np.sort(x, axis=0))


@pytest.mark.parametrize("n", [SHORT, 17, 31, 48, 64])
def test_the_network_sorts_longer_ones(n):
    x = np.random.default_rng(n).standard_normal((n, 4, 50)).astype(np.float32)
    np.testing.assert_array_equal(sorted_columns(x.copy()), np.sort(x, axis=0))
    assert len(merge_exchange(n)) <= n * np.ceil(np.log2(n)) ** 2 / 3


def test_places_come_back_with_the_numbers():
    x = np.round(np.random.default_rng(0).standard_normal((9, 3, 5)), 1).astype(np.float32)  # with ties
    values, places = unpacked(np.sort(packed_with_places(x, np.arange(9)[:, None, None]), axis=0))
    np.testing.assert_array_equal(values, np.sort(x, axis=0))
    np.testing.assert_array_equal(np.take_along_axis(x, places, axis=0), values)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (5, 1), (17, 17), (6, 9), (9, 6), (48, 64)])
@pytest.mark.parametrize(("rounded", "per_head"), [(False, True), (True, True), (False, False)])
def test_the_sum_is_that_of_the_potentials(n, m, rounded, per_head):
    q, k, _ = qkv(7, 3, n=n, m=m, d=4, dtype=np.float32)
    if rounded:
        q, k = np.round(q), np.round(k)
    theta = np.stack([slice_directions(4, 5, seed=h) for h in range(3)]).astype(np.float32)  # of each head its own
    theta = theta if per_head else theta[0]
    w = np.random.default_rng(1).standard_normal((3, 5, 1)).astype(np.float32)
    found = weighted_sum(q, k, theta * 4**-0.25, -0.5 * w)
    phi, _ = sliced_potentials(*(x.astype(np.float64) for x in (q, k, theta)))
    expected = np.sum(phi * w, axis=-2)
    found = found - found.mean(-1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * max(np.abs(expected).max(), 1e-3))


def test_it_is_for_many_short_sequences_of_float32_without_padding():
    q, theta, mask = np.zeros((MANY // 8, 2, 9, 4), np.float32), np.eye(4, dtype=np.float32), np.ones((2, 9), bool)
    assert pays(q, q, theta, None, None) and pays(q, q, np.stack([theta] * 2), None, None)
    assert not pays(q, q, theta, mask, None) and not pays(q, q, theta, None, mask)
    assert not pays(q.astype(np.float64), q, theta, None, None)
    assert not pays(q[1:], q[1:], theta, None, None)
    assert not pays(np.zeros((MANY, 1, SHORT + 1, 4), np.float32), q, theta, None, None)
