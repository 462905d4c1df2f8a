"""Clouds are what their images say: where the ink is, as much as there is, the same points at the same seed."""

import numpy as np
import pytest

from asap_ref import Architecture, Attention, TrainingSettings, Transformer, train
from asap_ref.lab.clouds import UNIT, draw_clouds, fresh_clouds, load_clouds
from asap_ref.lab.datasets import load_digits


def pixels_of(cloud, height, width):
    """The pixel of each point, as an image of counts."""
    corner = np.floor(cloud.astype(np.float64) * UNIT + np.asarray([height, width]) / 2).astype(int)
    counts = np.zeros((height, width))
    np.add.at(counts, tuple(corner.T), 1)
    return counts


def test_points_lie_where_the_ink_is():
    image = np.asarray([[[0.0, 3.0, 0.0, 1.0], [0.0, 0.0, 4.0, 0.0]]])
    counts = pixels_of(draw_clouds(image, 8000, np.random.default_rng(0))[0], 2, 4)
    assert counts[image[0] == 0].sum() == 0
    # a share has a standard deviation of at most sqrt(1/4 / 8000) = 0.0056
    np.testing.assert_allclose(counts / 8000, image[0] / 8, atol=0.03)


def test_within_a_pixel_points_are_uniform():
    cloud = draw_clouds(np.ones((1, 1, 1)), 8000, np.random.default_rng(0))[0] * UNIT
    assert np.abs(cloud).max() <= 0.5
    np.testing.assert_allclose(cloud.var(axis=0), 1 / 12, atol=0.005)  # five of its standard deviations


def test_an_image_without_ink_is_evenly_grey():
    counts = pixels_of(draw_clouds(np.zeros((1, 2, 2)), 4000, np.random.default_rng(0))[0], 2, 2)
    assert counts.min() > 800


def test_test_clouds_are_fixed_and_training_clouds_fresh():
    first, again, denser = load_clouds(16), load_clouds(16), load_clouds(32)
    np.testing.assert_array_equal(first.test_inputs, again.test_inputs)
    assert denser.test_inputs.shape == (360, 32, 2)
    np.testing.assert_array_equal(first.test_labels, load_digits().test_labels)
    rng, draw = np.random.default_rng(0), fresh_clouds(16)
    one, other = (draw(first.train_inputs[:2], rng) for _ in range(2))
    assert one.dtype == np.float32
    assert not np.array_equal(one, other)


def test_a_model_of_points_trains_on_ink_from_which_clouds_are_drawn():
    data, labels = load_clouds(16), load_digits().train_labels[:40]
    model = Transformer.create(Architecture(features=2, width=8, n_layers=1, n_heads=2), Attention("softmax"))
    settings = TrainingSettings(epochs=2, batch_size=20)
    _, history = train(model, data.train_inputs[:40], labels, settings, augment=fresh_clouds(16), label=None)
    assert history[1]["loss"] < history[0]["loss"]
    with pytest.raises(ValueError, match=r"expected \(batch, n, 2\)"):
        train(model, data.train_inputs[:40], labels, settings, label=None)
