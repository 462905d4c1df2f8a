"""A moved copy is the same cloud: shuffled, turned, sheared, shifted, bent, a little noisy; partners say who is who."""

import numpy as np
import pytest

from asap_ref.lab.pairs import BEND, NOISE, draw_bends, draw_pairs

INK = np.random.default_rng(0).random((5, 8, 8))


def draw(n=40, **settings):
    return draw_pairs(INK, n, np.random.default_rng(1), **settings)


def test_partners_are_an_affine_image_of_each_point():
    pairs, partners = draw(bend=0.0)
    assert np.all(np.sort(partners, axis=1) == np.arange(40))
    for first, second, partner in zip(pairs.first, pairs.second, partners, strict=True):
        points = np.concatenate([first, np.ones((40, 1))], axis=1)
        moved, *_ = np.linalg.lstsq(points, second[partner], rcond=None)
        # what an affine map does not explain is the noise, within a fifth (80 numbers)
        assert np.std(second[partner] - points @ moved) == pytest.approx(NOISE, rel=0.25)
        wrong, *_ = np.linalg.lstsq(points, second, rcond=None)
        assert np.std(second - points @ wrong) > 5 * NOISE  # unshuffled they do not fit


def test_a_bend_has_unit_variance_and_moves_near_points_alike():
    points = np.random.default_rng(2).standard_normal((400, 50, 2))
    near = points + 1e-3
    bends, beside = (draw_bends(at, np.random.default_rng(3)) for at in (points, near))
    # of 400 fields, each with a few independent values: a standard deviation within a few percent
    assert np.std(bends) == pytest.approx(1.0, rel=0.1)
    assert np.abs(bends - beside).max() < 0.03  # a slope of at most a few standard deviations, times 1e-3
    assert np.std(bends.mean(axis=1)) > 0.3  # most of it is common to a cloud: it is smooth


def test_without_a_bend_the_copies_differ_by_it_alone():
    bent, partners = draw()
    rigid, same = draw(bend=0.0)
    np.testing.assert_array_equal(partners, same)
    np.testing.assert_array_equal(bent.first, rigid.first)
    assert np.std(bent.second - rigid.second) == pytest.approx(BEND, rel=0.5)  # of five fields


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
