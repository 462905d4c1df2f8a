"""Digits as clouds of points: real data in any number of points, with nothing to download.

A cloud is n points drawn with the ink of an image's pixels as probability, uniform within their pixel: a digit as a
distribution, of which n only says how well it is sampled. Coordinates are (row, column), centred, in units of 2.5
pixels, so that they have about unit size.

Shapes: images (N, height, width) -> clouds (N, n, 2).
"""

from __future__ import annotations

import numpy as np

from asap_ref.lab.datasets import Dataset, load_digits

UNIT = 2.5  # pixels


def draw_clouds(images, n, rng):
    """Draw a cloud of n points from each image: non-negative ink (N, height, width) -> (N, n, 2) float32.

    An image without any ink counts as evenly grey.

    Examples
    --------
    >>> dot = np.zeros((1, 3, 3))
    >>> dot[0, 0, 2] = 1.0  # all points in the upper right pixel
    >>> cloud = draw_clouds(dot, 5, np.random.default_rng(0))
    >>> cloud.shape, bool(np.all(cloud[..., 0] < 0)), bool(np.all(cloud[..., 1] > 0))
    ((1, 5, 2), True, True)
    """
    N, height, width = images.shape
    ink = images.reshape(N, height * width).astype(np.float64)
    total = ink.sum(-1, keepdims=True)
    up_to = np.cumsum(np.where(total > 0, ink, 1.0), axis=-1)  # (N, pixels)
    drawn = rng.random((N, n)) * up_to[:, -1:]
    pixel = np.stack([np.searchsorted(row, x, side="right") for row, x in zip(up_to, drawn, strict=True)])
    pixel = np.minimum(pixel, height * width - 1)  # where rounding would put a point past the last
    corner = np.stack([pixel // width, pixel % width], axis=-1)  # (N, n, 2)
    points = corner + rng.random((N, n, 2)) - np.asarray([height, width]) / 2
    return (points / UNIT).astype(np.float32)


def fresh_clouds(n):
    """Make what draws fresh clouds of n points from each batch of images, as `train` augments: ``(images, rng)``.

    Examples
    --------
    >>> fresh_clouds(64)(np.ones((2, 8, 8)), np.random.default_rng(0)).shape
    (2, 64, 2)
    """
    return lambda images, rng: draw_clouds(images, n, rng)


def load_clouds(n=64, *, seed=0):
    """Load scikit-learn's digits as clouds; the split is that of `load_digits`.

    Parameters
    ----------
    n : int
        Points of a test cloud.
    seed : int
        Of the test clouds, with n: a cloud is the same at every call.

    Returns
    -------
    Dataset
        For training the ink itself, (N, 8, 8) from 0 to 1, of which `fresh_clouds` draws anew each epoch; for
        testing clouds (N, n, 2).

    Examples
    --------
    >>> clouds = load_clouds(64)
    >>> clouds.train_inputs.shape, clouds.test_inputs.shape
    ((1437, 8, 8), (360, 64, 2))
    """
    digits = load_digits()
    train_ink, test_ink = ((images + 1) / 2 for images in (digits.train_inputs, digits.test_inputs))
    test_clouds = draw_clouds(test_ink, n, np.random.default_rng([seed, n]))
    return Dataset("clouds", train_ink, digits.train_labels, test_clouds, digits.test_labels, digits.classes)


# ----------------------------------------------------------------------------------------- the pair of the tutorials


def pair_of_clouds(n=24, m=None, *, digits=(0, 7), seed=5):
    """Draw the two clouds that come back in every tutorial: a nought of n points and a seven of m.

    Parameters
    ----------
    n, m : int
        Points of the two clouds; as many of each by default.
    digits : tuple of int
        What they show, from 0 to 9.

    Returns
    -------
    tuple of numpy.ndarray (n, 2), (m, 2)
        Points (x, y) float64 with y upwards, unlike those of `draw_clouds`, and each cloud's mean at the origin. The
        same at every call.

    Examples
    --------
    >>> nought, seven = pair_of_clouds(24, 20)
    >>> nought.shape, seven.shape, bool(np.allclose(seven.mean(0), 0))
    ((24, 2), (20, 2), True)
    """
    dataset = load_digits()
    rng = np.random.default_rng(seed)
    clouds = []
    for digit, count in zip(digits, (n, n if m is None else m), strict=True):
        ink = (dataset.train_inputs[dataset.train_labels == digit][:1] + 1) / 2
        points = draw_clouds(ink, count, rng)[0].astype(np.float64)[:, ::-1] * [1, -1]  # (row, column) -> (x, y)
        clouds.append(points - points.mean(axis=0))
    return tuple(clouds)


def queries_and_keys(first, second, *, sharpness=3.0):
    """Scale two clouds to queries and keys whose scores are ``sharpness`` times the inner products of the points.

    So the transport cost differs from half the squared distance, times ``sharpness``, by what depends on one point
    alone: doubly-stochastic attention gives the same plan for both, softmax does not.

    Examples
    --------
    >>> from asap_ref import attention_scores
    >>> nought, seven = pair_of_clouds()
    >>> q, k = queries_and_keys(nought, seven, sharpness=3.0)
    >>> bool(np.allclose(attention_scores(q, k), 3.0 * nought @ seven.T))
    True
    """
    scale = np.sqrt(sharpness * np.sqrt(first.shape[-1]))  # undoes the 1 / sqrt(d) of attention
    return scale * first, scale * second
