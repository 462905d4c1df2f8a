"""A moved copy is the same cloud: shuffled, turned, sheared, shifted, a little noisy, and partners say who is who."""

import numpy as np
import pytest

from asap_ref.lab.pairs import NOISE, draw_pairs

INK = np.random.default_rng(0).random((5, 8, 8))


def draw(n=40, **settings):
    return draw_pairs(INK, n, np.random.default_rng(1), **settings)


def test_partners_are_an_affine_image_of_each_point():
    pairs, partners = draw()
    assert np.all(np.sort(partners, axis=1) == np.arange(40))
    for first, second, partner in zip(pairs.first, pairs.second, partners, strict=True):
        points = np.concatenate([first, np.ones((40, 1))], axis=1)
        moved, *_ = np.linalg.lstsq(points, second[partner], rcond=None)
        # what an affine map does not explain is the noise, within a fifth (80 numbers)
        assert np.std(second[partner] - points @ moved) == pytest.approx(NOISE, rel=0.25)
        wrong, *_ = np.linalg.lstsq(points, second, rcond=None)
        assert np.std(second - points @ wrong) > 5 * NOISE  # unshuffled they do not fit


def test_missing_points_have_no_partner():
    pairs, partners = draw(missing=0.25)  # of 40: ten lack in the second, five in the first
    assert pairs.first.shape == (5, 35, 2) and pairs.second.shape == (5, 30, 2)
    assert np.all(np.sum(partners < 0, axis=1) == 10)
    for row in partners:
        known = row[row >= 0]
        assert len(np.unique(known)) == 25 and known.max() < 30


def test_the_same_seed_gives_the_same_pairs():
    (first, same), (again, other) = draw(), draw()
    np.testing.assert_array_equal(first.second, again.second)
    np.testing.assert_array_equal(same, other)
    assert first.first.dtype == first.second.dtype == np.float32
